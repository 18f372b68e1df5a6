"""The best evaluation so far, and how long ago it was."""

from collections.abc import Mapping
from pathlib import Path

from steprl.checkpoint import recorded_values
from steprl.config import TrainerConfig


class Best:
    """Follows the evaluations of a run.

    The iteration of the best one is always saved with its metrics, so where a run goes on, it is found
    among the checkpoints.
    """

    def __init__(self, checkpoints: Path, settings: TrainerConfig) -> None:
        self._settings = settings
        self.metric = settings.keep_best
        values = {} if self.metric is None else recorded_values(checkpoints, self.metric)
        self.value = max(values.values(), default=None)
        self.step = min((s for s, value in values.items() if value == self.value), default=None)

    def check(self, metrics: Mapping[str, object]) -> None:
        """Whether evaluations measure what is to be compared.

        Raises:
            ValueError: they do not; names what they measure.
        """
        there = ", ".join(name for name in metrics if name.startswith("eval/"))
        if self.metric is None or self.metric in metrics or not there:
            return
        raise ValueError(
            f"trainer.keep_best={self.metric}: evaluations do not measure it; they measure {there}. Name one "
            "of these, or set trainer.keep_best=null"
        )

    def see(self, iteration: int, metrics: Mapping[str, object]) -> bool:
        """Whether an evaluation is better than all before."""
        self.check(metrics)
        if self.metric is None or self.metric not in metrics:
            return False
        value = float(metrics[self.metric])  # type: ignore[arg-type]
        better = value > (float("-inf") if self.value is None else self.value)  # NaN is not
        if better:
            self.step, self.value = iteration, value
        return better

    def is_over(self, iteration: int) -> bool:
        """Whether `trainer.patience` evaluations in a row, until this iteration, were no better."""
        patience, every = self._settings.patience, self._settings.test_freq
        if patience is None or not every or iteration % every:
            return False
        return iteration // every - (self.step or 0) // every >= patience
