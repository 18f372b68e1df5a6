"""The page of a run: one HTML file that needs nothing else, whatever is in its texts.

The data stands in script elements of type `application/json`, in ASCII and without `<`, `>` and `&`, so
no text can end the element. The script sets text as text and never as HTML, and the policy of the
page (`Content-Security-Policy`) allows its own script and style only, by their hashes, and no request.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from steprl.report.contents import curves, evaluations, headline, settings
from steprl.report.samples import MOST_CHARACTERS, samples
from steprl.rollout.trajectory_file import finite

DEFAULT_TRAJECTORIES = 1000
_SCRIPTS = ("text.js", "curves.js", "list.js", "tree.js", "steps.js", "start.js")
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def write_report(
    run: Path, target: Path | None = None, trajectories: int = DEFAULT_TRAJECTORIES
) -> Path:
    """Writes the page of a run, complete or not at all.

    Args:
        run: its folder.
        target: file to write; None for `report.html` in that folder.
        trajectories: that the page holds at most.

    Returns:
        The file.

    Raises:
        FileNotFoundError: the folder is not that of a run.
        ValueError: a file of the run is damaged, or `trajectories` is negative.
    """
    if trajectories < 0:
        raise ValueError(f"trajectories={trajectories}: must be at least 0")
    if not any((run / name).is_file() for name in ("config.resolved.yaml", "metrics.jsonl")):
        raise FileNotFoundError(
            f"{run} is not a run: it has neither config.resolved.yaml nor metrics.jsonl"
        )
    target = run / "report.html" if target is None else target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".tmp")
    # Half a surrogate pair in a file name cannot be written; in the data it is an escape.
    unfinished.write_text(page(run, trajectories), encoding="utf-8", errors="replace")
    unfinished.replace(target)
    return target


def page(run: Path, trajectories: int = DEFAULT_TRAJECTORIES) -> str:
    """The HTML of a run's page."""
    chosen = settings(run)
    metrics = curves(run)
    found = samples(run, trajectories)
    details, size = [], 0
    for detail in found.details:
        text = embedded(detail)
        size += len(text)
        if size > MOST_CHARACTERS:
            break
        details.append(text)
    if len(details) < len(found.details):
        found.notes.append(
            f"the last {len(found.details) - len(details)} trajectories are left out: the page would "
            f"be larger than {MOST_CHARACTERS // 1_000_000} MB"
        )
    head = headline(run, chosen["values"])
    data = {
        "head": head,
        "settings": {"text": chosen["text"], "changed": chosen["changed"]},
        "curves": metrics,
        "evaluations": evaluations(metrics),
        "entries": found.entries[: len(details)],
        "notes": found.notes,
    }
    blocks = [f'<script type="application/json" id="data">{embedded(data)}</script>']
    blocks += [
        f'<script type="application/json" id="t{place}">{detail}</script>'
        for place, detail in enumerate(details)
    ]
    return _filled("page.html", {"title": html.escape(head["name"]), "data": "\n".join(blocks)})


def embedded(value: Any) -> str:
    """JSON that can stand in a script element, whatever its texts and numbers are."""
    how: dict[str, Any] = dict(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    try:
        text = json.dumps(value, **how)
    except ValueError:
        text = json.dumps(finite(value), **how)
    for sign, escape in _UNSAFE.items():
        text = text.replace(sign, escape)
    return text


def _filled(name: str, slots: Mapping[str, str]) -> str:
    """The page with its slots filled; what fills one is not searched for others."""
    folder = files("steprl.report") / "page"
    read = lambda file: (folder / file).read_text(encoding="utf-8")  # noqa: E731
    style = read("page.css")
    script = '"use strict";\n(() => {\n' + "".join(map(read, _SCRIPTS)) + "})();\n"
    slots = {
        **slots,
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
    }
    return _SLOT.sub(lambda slot: slots[slot[1]], read(name))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
