"""Metrics of a run: one JSON object a line in `metrics.jsonl`, and a few honest numbers.

    with MetricWriter(run_dir / "metrics.jsonl") as writer:
        writer.write(step, {"actor/pg_loss": loss, "timing_s/gen": seconds})

    rows = read_metrics(run_dir / "metrics.jsonl")

Names follow verl (`actor/pg_loss`, `critic/vf_explained_var`, ...); the step of a row is
`training/global_step`. TensorBoard and Weights & Biases are fed on request.
"""

from steprl.metrics.compilations import CompilationCounter
from steprl.metrics.rows import STEP, Metrics, MetricWriter, read_metrics, truncate_after
from steprl.metrics.statistics import (
    Interval,
    correlation,
    correlation_interval,
    mean_interval,
    pass_at_k,
    wilson_interval,
)

__all__ = [
    "STEP",
    "CompilationCounter",
    "Interval",
    "MetricWriter",
    "Metrics",
    "correlation",
    "correlation_interval",
    "mean_interval",
    "pass_at_k",
    "read_metrics",
    "truncate_after",
    "wilson_interval",
]
