"""Fills the measured parts of the documentation from `benchmarks/results/*.json`.

    python benchmarks/readme.py [--check]

With --check nothing is written; the exit status is 1 if a page is out of date.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pages import (
    audit,
    branches,
    collapse,
    critics,
    density,
    laboratory,
    learning,
    robustness,
    search,
    speed,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "benchmarks/results"
BEGIN, END = "<!-- {}: made by benchmarks/readme.py -->", "<!-- end of {} -->"

Part = Callable[[Path, str], str]
PAGES: Mapping[str, Mapping[str, Part]] = {
    "README.md": {"results": learning.success},
    "docs/results.md": {
        "runs": learning.curves,
        "methods": learning.methods,
        "laboratory": laboratory.in_short,
        "density": density.in_short,
        "critics": critics.in_short,
    },
    "docs/search.md": {"search": search.steppo, "appo": search.appo},
    "docs/audit.md": {
        "audit": audit.correlations,
        "errand": audit.errand,
        "shop": audit.shop,
    },
    "docs/training.md": {"robustness": robustness.campaign, "collapse": collapse.remedies},
    "docs/branching.md": {"branches": branches.in_short},
    "benchmarks/README.md": {
        "bias": speed.bias,
        "parity": speed.parity,
        "advantages": speed.advantages,
        "generation": speed.generation,
        "training": speed.training,
        "branches": branches.in_full,
        "algorithms": laboratory.in_full,
        "household": laboratory.household,
        "one program": laboratory.one_program,
    },
}


def filled(page: str, text: str, results: Path) -> str:
    """The text of a page with its measured parts replaced."""
    link = os.path.relpath(RESULTS, Path(page).parent)
    for name, part in PAGES[page].items():
        begin, end = BEGIN.format(name), END.format(name)
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{part(results, link)}\n{end}{rest.split(end)[1]}"
    return text


def main() -> int:
    """Writes the pages, or says whether they are up to date."""
    check, stale = "--check" in sys.argv, []
    for page in PAGES:
        path = ROOT / page
        before = path.read_text(encoding="utf-8")
        after = filled(page, before, ROOT / RESULTS)
        if before != after:
            stale.append(page)
            if not check:
                path.write_text(after, encoding="utf-8")
    if check:
        print(f"{', '.join(stale)}: run `python benchmarks/readme.py`" if stale else "up to date")
    else:
        print(f"written: {', '.join(stale) or 'nothing, all pages were up to date'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
