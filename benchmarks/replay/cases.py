"""What the replays of all families share: a case, its layout, and the usual deviations."""

from typing import Any

import jax
import numpy as np

from steprl import ops

Case = dict[str, Any]
Results = dict[str, Any]
Deviations = dict[str, tuple[str, Any]]

COMMON_REASONS = {
    "one": "one element has no spread: whitened to 0, where the reference is NaN or raises",
    "equal": "equal elements whiten to 0, where the reference divides a rounding residue",
    "masked": "masked tokens are 0 after whitening, where the reference leaves (0 - mean) / std",
    "empty": "nothing is active: 0, where the reference is NaN or raises",
    "poison": "NaN at a masked token is not read, where the reference returns NaN",
}

# Compiled as a whole: op by op, each of the many shapes would cost dozens of compilations.
whiten = jax.jit(ops.masked_whiten, static_argnames=("ddof", "epsilon_at", "shift_mean"))
sum_rows = jax.jit(lambda x, where: ops.masked_sum(x, where, axis=-1))


def step_ids(mask: np.ndarray) -> np.ndarray:
    """The references store one step a row: each active token belongs to step 0 of its row."""
    return np.where(mask != 0, 0, -1).astype(np.int32)


def cells_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Where each row stands in the reference's dense table of trajectories and steps."""
    return np.unique(case["trajectory_ids"], return_inverse=True)[1], case["step_ids"]


def grid(x_n: jax.Array | np.ndarray, cells: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Lay rows out as [trajectory, step]; a missing step is one of reward 0 and value 0."""
    table = np.zeros((int(cells[0].max()) + 1, int(cells[1].max()) + 1), x_n.dtype)
    table[cells] = np.asarray(x_n)
    return table


def masked_zeroed(case: Case, name: str, got: Results) -> np.ndarray:
    """The reference with its masked tokens at 0; unstable numbers are nothing to compare with."""
    reference = got[name] if case["check"] == "unstable" else case[f"out_{name}"]
    return np.where(case["mask"] != 0, reference, 0)


def no_spread(advantages: np.ndarray, zeros: np.ndarray) -> Deviations:
    """Zeros are right where there is one element, or where all are equal up to rounding."""
    if len(advantages) < 2:
        return {"advantages": ("one", zeros)}
    rounding = 8 * np.finfo(advantages.dtype).eps * np.abs(advantages).max()
    return {"advantages": ("equal", zeros)} if np.ptp(advantages) <= rounding else {}


def global_numbers(case: Case) -> dict[str, Any]:
    return {name.removeprefix("gb_"): case[name] for name in case if name.startswith("gb_")}


def empty(case: Case, got: Results) -> Deviations:
    """With nothing active, whatever the reference has as NaN is 0."""
    if (case["mask"] != 0).any():
        return {}
    nan = [name for name in got if np.isnan(case.get(f"out_{name}", 0.0)).any()]
    return {name: ("empty", np.zeros_like(case[f"out_{name}"])) for name in nan}
