"""Writes the pages that follow from the source: docs/ops.md and docs/settings.md.

    python docs/build.py [--check]

docs/ops.md has every public function of `steprl.ops`: its signature, what it computes, the equation of
its docstring, the papers named there, and the test files that call it. docs/settings.md has every
setting, from the comments beside the fields. With --check nothing is written; the exit status is 1 if a
page is old or a function has no test.
"""

import argparse
import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from steprl import ops
from steprl.config.described import sections
from steprl.config.environments import ADAPTERS, ENVIRONMENTS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "ops.md"
SETTINGS = ROOT / "docs" / "settings.md"
HEAD_OF_SETTINGS = """# Settings

Written by `python docs/build.py` from the comments beside the settings; do not edit. On the command line
`steprl help` says the same: `steprl help actor.lr`, `steprl help actor`, `steprl help lr`.

In a YAML file the sections nest; as overrides they are dotted: `steprl train quickstart actor.lr=1e-4`.
`train.steps` is short for `trainer.total_training_steps`. An unknown key is an error that names the nearest
one; `--dry-run` prints the settings of a run. Spellings are those of verl where it has the setting.
"""
HEAD = """# The functions of `steprl.ops`

Written by `python docs/build.py` from the docstrings, where arguments, shapes, errors and deviations
from the reference code stand (`help(ops.step_gae)`); do not edit. Suffixes name axes: `_t` token,
`_s` step, `_n` trajectory. Functions on one trajectory are lifted by `jax.vmap`; `where` selects what
counts.
"""
ROOMS = {
    "segments": "Tokens, steps and masks",
    "returns": "Returns and advantages with a critic",
    "values": "The critic: scale, distributions, and how much it explains",
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


def signature(function: Any) -> str:
    """The head of a function as in the source, on one line or an argument a line."""
    (node,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(inspect.unwrap(function)))).body
    assert isinstance(node, ast.FunctionDef) and node.returns is not None
    returns = ast.unparse(node.returns)
    depth, pieces = 0, [""]
    for character in ast.unparse(node.args):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    pieces = [p.strip().replace("=", " = ", 1) if ":" in p else p.strip() for p in pieces]
    if len(whole := f"{node.name}({', '.join(pieces)}) -> {returns}") <= 88:
        return whole
    lines = "".join(f"    {piece},\n" for piece in pieces)
    return f"{node.name}(\n{lines}) -> {returns}"


def settings_page() -> str:
    """The text of docs/settings.md."""
    lines = [HEAD_OF_SETTINGS]
    for section in sections().values():
        lines.append(f"## {section.key}\n\n{section.meaning}\n")
        if section.key == "env":
            names = ", ".join(f"`{name}`" for name in ENVIRONMENTS)
            others = ", ".join(f"`{name}`" for name in ADAPTERS)
            lines.append(f"Environments that ship: {names}; of other packages: {others}.\n")
        lines.append("| setting | default | may be | meaning |\n|---|---|---|---|")
        for setting in section.settings:
            may_be = ", ".join(filter(None, (setting.kind, setting.allowed)))
            cells = (f"`{setting.key}`", f"`{setting.default}`", may_be, setting.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


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


def functions_page() -> tuple[str, list[str]]:
    """The text of docs/ops.md, and the functions without a test."""
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
            lines.append(f"```python\n{signature(found[name])}\n```\n")
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
    text, untested = functions_page()
    if untested:
        print(f"without a test: {', '.join(untested)}", file=sys.stderr)
    pages = {PAGE: text, SETTINGS: settings_page()}
    old = [p for p, t in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != t]
    if parser.parse_args().check:
        for page in old:
            where = page.relative_to(ROOT)
            print(f"{where} is old: run `python docs/build.py`", file=sys.stderr)
        return int(bool(old or untested))
    for page in old:
        page.write_text(pages[page], encoding="utf-8")
        print(f"written: {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
