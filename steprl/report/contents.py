"""What the page of a run says, as plain data: lists, numbers and texts, gathered from its folder."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import steprl
from steprl.config import Config
from steprl.config.yaml_text import parse
from steprl.metrics import STEP, Metrics, read_metrics

# Curves that the page opens with: title, note, and lines as (metric, label). The order is the order of
# colours, so training comes first wherever there is more than one.
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Success", "share of tasks solved", (
        ("rollout/success_rate", "training"),
        ("eval/success_rate", "evaluation"),
        ("eval/success_rate_greedy", "evaluation, greedy"),
    )),
    ("Return", "sum of rewards, mean", (
        ("critic/rewards/mean", "training"),
        ("eval/return", "evaluation"),
        ("eval/return_greedy", "evaluation, greedy"),
    )),
    ("Response length", "tokens of an action", (("response_length/mean", "mean"),)),
    ("Turns", "steps of a trajectory", (("num_turns/mean", "mean"),)),
    ("Entropy", "nats a token", (("actor/entropy", "of the sampling distribution"),)),
    ("Clip share", "tokens whose ratio is clipped", (
        ("actor/pg_clipfrac", "clipped"),
        ("actor/pg_clipfrac_lower", "dual clip"),
    )),
    ("Explained variance", "of the critic, 1 is best", (("critic/vf_explained_var", "critic"),)),
    ("KL", "nats a token", (
        ("actor/ppo_kl", "to the rollout policy"),
        ("actor/kl_loss", "to the reference, in the loss"),
        ("actor/reward_kl_penalty", "to the reference, in the reward"),
    )),
    ("Malformed actions", "share of steps", (
        ("env/parse_error_frac", "training"),
        ("eval/parse_error_frac", "evaluation"),
    )),
    ("Cut actions", "share that hit the limit of length", (
        ("response_length/clip_ratio", "training"),
    )),
    ("Policy loss", "", (("actor/pg_loss", "loss"),)),
    ("Gradient", "norm before clipping", (
        ("actor/grad_norm", "policy"),
        ("critic/grad_norm", "critic"),
    )),
    ("F1", "of the answers", (("env/f1", "training"), ("eval/f1", "evaluation"))),
    ("Warm start", "loss by step", (("sft/loss", "loss"),)),
)  # fmt: skip
_FAULTS = "crash|timeout|fault|context_full"
_ENDS = ("_low", "_high")


def curves(run: Path) -> dict[str, Any]:
    """The metrics of a run: columns by name, the panels that open the page, and all other names.

    A value that is absent or no number is None. The warm start has its own axis, `sft_steps`.
    """
    rows = _rows_of(run / "metrics.jsonl")
    warm = _rows_of(run / "sft.jsonl")
    columns = _columns(rows) | {
        name: values for name, values in _columns(warm).items() if name.startswith("sft/")
    }
    panels: list[dict[str, Any]] = []
    shown: set[str] = set()
    faults = [
        (name, name.removeprefix("env/").removesuffix("_frac").replace("_", " "))
        for name in sorted(columns)
        if re.fullmatch(rf"env/.*({_FAULTS}).*_frac", name)
    ]
    warned = [(name, name[5:].replace("_", " ")) for name in columns if name.startswith("warn/")]
    shown |= {name for name, _ in warned}
    warned = [(name, label) for name, label in warned if any(columns[name])]
    added = (
        ("Faults", "share of trajectories", tuple(faults)),
        ("Early warnings", "1 while it holds", tuple(warned)),
    )
    for title, note, lines in (*PANELS, *added):
        there = [(name, label) for name, label in lines if name in columns]
        if there:
            shown |= {name for name, _ in there}
            panels.append(
                {"title": title, "note": note, "lines": [_line(*x, columns) for x in there]}
            )
    bounds = {name for name in columns if _base(name) in columns and _base(name) != name}
    return {
        "steps": [row[STEP] for row in rows],
        "sft_steps": [row[STEP] for row in warm],
        "columns": columns,
        "panels": panels,
        "others": sorted(columns.keys() - shown - bounds),
    }


def _rows_of(file: Path) -> list[Metrics]:
    return [row for row in read_metrics(file) if STEP in row] if file.is_file() else []


def _columns(rows: Sequence[Metrics]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for row in rows for name in row if name != STEP)
    columns = {name: [number(row.get(name)) for row in rows] for name in names}
    return {n: column for n, column in columns.items() if any(x is not None for x in column)}


def _line(name: str, label: str, columns: Mapping[str, Any]) -> dict[str, str]:
    line = {"name": name, "label": label}
    low, high = (bound(name, end) for end in _ENDS)
    return line | ({"low": low, "high": high} if low in columns and high in columns else {})


def bound(name: str, end: str) -> str:
    """The name of the end of a metric's interval: `f1_low`, and of `f1_greedy` `f1_low_greedy`."""
    base = name.removesuffix("_greedy")
    return base + end + name[len(base) :]


def _base(name: str) -> str:
    greedy = "_greedy" if name.endswith("_greedy") else ""
    base = name.removesuffix("_greedy")
    for end in _ENDS:
        base = base.removesuffix(end)
    return base + greedy


def evaluations(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each metric that was evaluated with an interval, at the first and the last evaluation.

    Args:
        found: from `curves`.

    Returns:
        name, label, and first and last as [iteration, mean, low, high]; first is None where there
        was one evaluation only.
    """
    columns, steps = found["columns"], found["steps"]
    listed = []
    for name, column in columns.items():
        low, high = (columns.get(bound(name, end)) for end in _ENDS)
        if not name.startswith("eval/") or low is None or high is None or _base(name) != name:
            continue
        points = [
            [step, *values]
            for step, *values in zip(steps, column, low, high, strict=True)
            if values[0] is not None
        ]
        if points:
            first = points[0] if len(points) > 1 else None
            listed.append({"name": name, "label": _label(name), "first": first, "last": points[-1]})
    return listed


def _label(name: str) -> str:
    *split, metric = name.removeprefix("eval/").split("/")
    how = "greedy" if metric.endswith("_greedy") else "sampled"
    words = metric.removesuffix("_greedy").replace("_", " ")
    return ", ".join([words.replace("success rate", "success"), how, *split])


def settings(run: Path) -> dict[str, Any]:
    """All settings of a run as text, and those that are not the defaults."""
    file = run / "config.resolved.yaml"
    if not file.is_file():
        return {"text": "", "changed": [], "values": {}}
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        values = _flat(parse(text))
    except ValueError:
        values = {}
    defaults = _flat(dataclasses.asdict(Config()))
    changed = [
        [name, _shown(value), _shown(defaults[name]) if name in defaults else None]
        for name, value in values.items()
        if name not in defaults or defaults[name] != value
    ]
    return {"text": text, "changed": changed, "values": values}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping) or not tree:
        return {prefix.removesuffix("."): tree} if prefix else {}
    return {
        name: value
        for key, branch in tree.items()
        for name, value in _flat(branch, f"{prefix}{key}.").items()
    }


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def headline(run: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the page is called, and what was trained on what."""
    model = values.get("model.path") or values.get("model.name") or values.get("model.preset")
    return {
        "name": run.resolve().name,
        "method": values.get("algorithm.name"),
        "env": values.get("env.name"),
        "model": model,
        "seed": values.get("trainer.seed"),
        "planned": values.get("trainer.total_training_steps"),
        "version": steprl.__version__,
    }


def number(value: Any, digits: int = 5) -> float | int | None:
    """A number in few digits, as JSON has it; None where it is none or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        short = float(f"{float(value):.{digits}g}")
    except OverflowError:  # an integer that no float can hold
        return None
    if not math.isfinite(short):
        return None
    return int(short) if abs(short) < 1e15 and short == int(short) else short
