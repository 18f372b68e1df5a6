"""The best step: that of the highest value of a metric in the caller's record."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from orbax.checkpoint.checkpoint_managers import PreservationContext

from steprl.checkpoint.folders import all_steps, as_path

BEST = "best"
"""In place of the number of a step."""


def value_of(meta: Mapping[str, Any], metric: str) -> float | None:
    """The metric in `meta["row"]`, the metrics that a step was saved with; None where it has no value."""
    row = meta.get("row")
    value = row.get(metric) if isinstance(row, Mapping) else None
    fine = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if fine else None  # type: ignore[arg-type]


def recorded_values(directory: str | os.PathLike[str], metric: str) -> dict[int, float]:
    """The metric of each step that has it, by step. What cannot be read has none; `restore` verifies."""
    values = {}
    for step in all_steps(directory):
        try:
            record = json.loads((as_path(directory) / str(step) / "meta/metadata").read_bytes())
            value = value_of(record["meta"], metric)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if value is not None:
            values[step] = value
    return values


def best_steps(directory: str | os.PathLike[str], metric: str) -> list[int]:
    """The steps that were saved with a value of the metric, the best first; of equals the earlier first."""
    values = recorded_values(directory, metric)
    return sorted(values, key=lambda step: (-values[step], step))


class NewestAndBest:
    """A preservation policy of orbax: the newest steps are kept, and the best one.

    Args:
        newest: how many; None keeps all.
        values: of the steps that have one; the owner adds to them.
    """

    def __init__(self, newest: int | None, values: Mapping[int, float]) -> None:
        self._newest, self._values = newest, values

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: PreservationContext
    ) -> Sequence[bool]:
        """As orbax asks it of steps in ascending order."""
        steps = [int(one.step) for one in checkpoints]
        kept = set(steps if self._newest is None else steps[-self._newest :])
        valued = [step for step in steps if step in self._values]
        if valued:
            kept.add(max(valued, key=lambda step: (self._values[step], -step)))
        return [step in kept for step in steps]
