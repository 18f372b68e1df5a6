"""Whether two runs came to the same, bit for bit."""

from pathlib import Path

import jax
import numpy as np

from steprl.config import load_config
from steprl.metrics import read_metrics
from steprl.session import load_params, setup

STEP = "training/global_step"
CLOCKS = ("timing_s/", "perf/", "compile/")  # metrics that no two runs share


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs: the rows of their metrics, and the newest parameters."""
    found = []
    rows = [_rows(run) for run in (one, other)]
    if [row[STEP] for row in rows[0]] != [row[STEP] for row in rows[1]]:
        found.append("other iterations in metrics.jsonl")
    for left, right in zip(*rows, strict=False):
        names = sorted(name for name in left.keys() | right.keys() if not _same(left, right, name))
        if names:
            found.append(f"iteration {left[STEP]}: {', '.join(names[:4])}")
            break
    session = setup(load_config(one / "config.resolved.yaml"))
    arrays = [jax.tree.leaves(jax.device_get(load_params(session, run))) for run in (one, other)]
    if not all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True)):
        found.append("other parameters")
    return found


def _rows(run: Path) -> list[dict]:
    rows = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in rows]


def _same(left: dict, right: dict, name: str) -> bool:
    a, b = left.get(name), right.get(name)
    return a == b or (a != a and b != b)
