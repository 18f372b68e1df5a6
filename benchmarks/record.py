"""Result files of the benchmarks: one schema, written by `--save`, read by `readme.py`."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def row(
    name: str,
    value: float,
    unit: str,
    spread: Sequence[float] | None = None,
    peer: str | None = None,
    peer_value: float | None = None,
    ratio: float | None = None,
    goal: str | None = None,
    met: bool | None = None,
) -> dict[str, Any]:
    """One measured number. `spread` is a 95 % interval or the quartiles; `ratio` above 1 is better
    for us; `goal` is the target in words and `met` whether it was reached."""
    return dict(
        name=name, value=value, unit=unit, spread=spread, peer=peer, peer_value=peer_value,
        ratio=ratio, goal=goal, met=met,
    )  # fmt: skip


def hardware() -> str:
    """Processor or accelerator, and how many cores this process may use."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if device.platform != "cpu":
        return f"{len(jax.devices())} x {device.device_kind}, {cores} CPU cores"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x
        ]
        name = models[0] if models else name
    return f"{cores} CPU cores, {name}"


def save(
    script: str,
    rows: Sequence[Mapping[str, Any]],
    minutes: float,
    variant: str = "",
    **more: Any,
) -> Path:
    """Writes `results/<script>[-<variant>].json`.

    Args:
        script: name of the benchmark, without its ending.
        rows: from `row`.
        minutes: how long the measured work took.
        more: further entries, such as the seed.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True
    )
    record = {
        "command": "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or None,
        "hardware": hardware(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "minutes": round(minutes, 2),
        **more,
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / (f"{script}-{variant}.json" if variant else f"{script}.json")
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the rows as a table."""
    width = max(len(r["name"]) for r in rows)
    for r in rows:
        spread = "  [{:.3f}, {:.3f}]".format(*r["spread"]) if r["spread"] else ""
        goal = f"  goal {r['goal']}: {'met' if r['met'] else 'MISSED'}" if r["goal"] else ""
        print(f"{r['name']:{width}s}  {r['value']:10.3f} {r['unit']}{spread}{goal}")
