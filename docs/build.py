"""Writes docs/ops.md, the page of every public function of `steprl.ops`, from their docstrings.

    python docs/build.py [--check]

A row a function: what it computes, the equation of its docstring, the papers named there, and the
test files that call it. With --check nothing is written; the exit status is 1 if the page is old or
a function has no test.
"""

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from steprl import ops

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "ops.md"
HEAD = """# The functions of `steprl.ops`

Written by `python docs/build.py` from the docstrings, where arguments, shapes, errors and deviations
from the reference code stand (`help(ops.step_gae)`); do not edit. Suffixes name axes: `_t` token,
`_s` step, `_n` trajectory. Functions on one trajectory are lifted by `jax.vmap`; `where` selects what
counts.
"""
ROOMS = {
    "segments": "Tokens, steps and masks",
    "returns": "Returns and advantages with a critic",
    "groups": "Advantages against a group",
    "anchors": "Ids, on the host",
    "branches": "BranPO: branches of a shared prefix",
    "procedures": "APPO: where to branch and what it was worth",
    "candidates": "Which tokens may be branched",
    "losses": "Losses",
    "future_kl": "APPO: future values and the future-KL loss",
    "correction": "Rollouts of another policy",
    "truncation": "Rollouts of a truncated distribution",
    "aggregation": "From one loss a token to one number",
}


def functions() -> dict[str, Any]:
    """Name -> function, of everything public that can be called and is not a type."""
    return {
        name: getattr(ops, name)
        for name in ops.__all__
        if inspect.isfunction(getattr(ops, name)) or hasattr(getattr(ops, name), "__wrapped__")
    }


def equation(doc: str) -> str:
    """The first indented block of a docstring, before its arguments."""
    body = doc.split("\nArgs:")[0]
    block = re.search(r"\n\n((?:    .*\n|\n(?=    ))+)", body + "\n")
    return inspect.cleandoc(block.group(1)) if block else ""


def papers(doc: str) -> list[str]:
    """Links of a docstring, in order, each once."""
    links = re.findall(r"https?://[^\s)>,;]+", doc)
    return list(dict.fromkeys(link.rstrip(".:") for link in links))


def tests_of(name: str, sources: dict[str, str]) -> list[str]:
    """Test files in which the name stands as a word."""
    return [path for path, text in sources.items() if re.search(rf"\b{name}\b", text)]


def page() -> tuple[str, list[str]]:
    """The text of the page, and the functions without a test."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    lines, untested, found = [HEAD], [], functions()
    for room, title in ROOMS.items():
        members = [n for n, f in found.items() if f.__module__ == f"steprl.ops.{room}"]
        if not members:
            continue
        lines.append(f"\n## {title}\n")
        for name in members:
            doc = inspect.getdoc(found[name]) or ""
            where = tests_of(name, sources)
            if not where:
                untested.append(name)
            links = " · ".join(f"[{link.split('/')[-1]}]({link})" for link in papers(doc))
            lines.append(f"### `{name}`\n\n{doc.splitlines()[0]}\n")
            if formula := equation(doc):
                lines.append(f"```text\n{formula}\n```\n")
            shown = ", ".join(f"[{Path(path).name}](../{path})" for path in where)
            lines.append(f"Papers: {links}  " if links else "Papers: none of its own  ")
            lines.append(f"Tests: {shown}\n")
    missing = [n for n, f in found.items() if f.__module__.split(".")[-1] not in ROOMS]
    if missing:
        raise SystemExit(f"no title in ROOMS for the module of: {', '.join(missing)}")
    return "\n".join(lines).rstrip() + "\n", untested


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    text, untested = page()
    if untested:
        print(f"without a test: {', '.join(untested)}", file=sys.stderr)
    if parser.parse_args().check:
        old = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text
        if old:
            print("docs/ops.md is old: run `python docs/build.py`", file=sys.stderr)
        return int(old or bool(untested))
    PAGE.write_text(text, encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
