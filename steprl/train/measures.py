"""Rows of `metrics.jsonl`: what an iteration measured, and how long it took."""

import time
from pathlib import Path

from steprl.config import TrainerConfig
from steprl.metrics import STEP, CompilationCounter, MetricWriter, read_metrics
from steprl.update import Metrics


class Clock:
    """Seconds between laps, by the names of metrics; `timing_s/step` is their sum."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"timing_s/{name}"] = now - self._last
        self.laps["timing_s/step"] = now - self._start
        self._last = now


def row_of(metrics: Metrics, clock: Clock, compiled: CompilationCounter) -> dict[str, float]:
    """Metrics of an iteration, with what it cost so far."""
    found = metrics | clock.laps
    found["perf/agent_steps_per_s"] = float(metrics["step/count"]) / clock.laps["timing_s/step"]
    found["compile/count"] = compiled.count
    return {name: float(value) for name, value in found.items()}


def is_written(file: Path, iteration: int) -> bool:
    """Whether the row of an iteration is there: a process may end when it has saved, and before."""
    return file.is_file() and any(row.get(STEP) == iteration for row in read_metrics(file))


def open_metrics(run: Path, settings: TrainerConfig) -> MetricWriter:
    """Where the rows of a run go, as `trainer.logger` says."""
    tensorboard = run / "tensorboard" if "tensorboard" in settings.logger else None
    wandb = {"name": settings.experiment_name} if "wandb" in settings.logger else None
    return MetricWriter(run / "metrics.jsonl", tensorboard_dir=tensorboard, wandb=wandb)
