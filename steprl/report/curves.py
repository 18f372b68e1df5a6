"""Learning curves of one run or of several, as a picture."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from steprl.metrics import STEP, Metrics
from steprl.report.style import DPI, INK, MUTED, PALETTE, dress, save

# Success rates in the large panel: metric, label, line style, width.
_SUCCESS = (
    ("eval/success_rate", "evaluation, sampled", "-", 2.2),
    ("eval/success_rate_greedy", "evaluation, greedy", "--", 1.6),
    ("rollout/success_rate", "training rollouts", ":", 1.4),
)
_PANELS = (
    ("critic/rewards/mean", "return of training rollouts"),
    ("eval/return", "return, evaluation, sampled"),
    ("response_length/mean", "tokens per action"),
    ("env/f1", "F1 of training rollouts"),
    ("eval/f1", "F1, evaluation, sampled"),
    ("actor/pg_loss", "policy loss"),
    ("actor/pg_clipfrac", "clip fraction"),
    ("actor/ppo_kl", "KL to the rollout policy"),
    ("actor/entropy", "entropy (nats)"),
    ("critic/vf_explained_var", "explained variance"),
    ("num_turns/mean", "turns per trajectory"),
)


def plot_learning_curves(
    metrics: Sequence[Metrics] | Mapping[str, Sequence[Metrics]],
    path: str | os.PathLike[str],
    title: str = "Learning curves",
) -> Path:
    """Success rates over iterations, and below them what explains them.

    The band around the evaluation is the 95 % interval, where `eval/success_rate_low` and
    `..._high` are among the metrics. Metrics that no row has are left out.

    Args:
        metrics: rows as `read_metrics` gives them, or several runs by name, to lay over each other.
        path: file to write; its ending says the format (png, svg, pdf).
        title: headline of the picture.

    Returns:
        The path.
    """
    runs = dict(metrics) if isinstance(metrics, Mapping) else {"": metrics}
    present = {name for rows in runs.values() for row in rows for name in row}
    success = [s for s in _SUCCESS if s[0] in present]
    panels = [p for p in _PANELS if p[0] in present]
    if not success and not panels:
        known = ", ".join(name for name, *_ in (*_SUCCESS, *_PANELS))
        raise ValueError(f"Nothing to draw; no row has any of: {known}.")

    columns = min(3, max(1, len(panels)))
    small_rows = math.ceil(len(panels) / columns)
    heights = [3.9] * bool(success) + [2.0] * small_rows
    figure = Figure((12.0, sum(heights) + 0.6), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold", color=INK)
    if success:
        _draw_success(figure.add_subplot(grid[0, :]), runs, success)
    for i, (name, label) in enumerate(panels):
        axes = figure.add_subplot(grid[bool(success) + i // columns, i % columns])
        for color, rows in zip(_colors(len(runs)), runs.values(), strict=True):
            axes.plot(*_series(rows, name), color=color, linewidth=1.4)
        dress(axes, label, name)
        if i + columns >= len(panels):
            axes.set_xlabel("iteration", color=MUTED, fontsize=9)
    return save(figure, path)


def _draw_success(
    axes: Axes, runs: Mapping[str, Sequence[Metrics]], lines: Sequence[tuple[str, str, str, float]]
) -> None:
    # One run: a colour a metric. Several: a colour a run, and the line style says the metric.
    several = len(runs) > 1
    by_metric = dict(zip((name for name, *_ in _SUCCESS), PALETTE, strict=False))
    for run_color, rows in zip(_colors(len(runs)), runs.values(), strict=True):
        for name, label, style, width in lines:
            x, y = _series(rows, name)
            color = run_color if several else by_metric[name]
            marker = "o" if len(x) <= 30 and name.startswith("eval/") else None
            axes.plot(
                x, y, style, color=color, linewidth=width, marker=marker, markersize=4, label=label
            )
            if f"{name}_low" in {key for row in rows for key in row}:
                x_low, low = _series(rows, f"{name}_low")
                _, high = _series(rows, f"{name}_high")
                axes.fill_between(x_low, low, high, color=color, alpha=0.15, linewidth=0)
    handles = [
        axes.plot([], [], style, color=INK if several else by_metric[name], linewidth=width)[0]
        for name, _, style, width in lines
    ]
    labels = [label for _, label, *_ in lines]
    if several:
        handles += [Line2D([], [], color=color, linewidth=2.5) for color in _colors(len(runs))]
        labels += list(runs)
    axes.legend(handles, labels, loc="lower right", frameon=False, fontsize=9, ncols=1 + several)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    banded = any(key.endswith("_low") for rows in runs.values() for row in rows for key in row)
    dress(axes, "Success rate", "band: 95 % interval" if banded else "")
    axes.set_xlabel("iteration", color=MUTED, fontsize=9)
    axes.set_ylabel("solved tasks", color=MUTED, fontsize=9)


def _series(rows: Sequence[Metrics], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have the metric. What is not a number leaves a gap."""
    pairs = [(row[STEP], row[name]) for row in rows if name in row and STEP in row]
    return [x for x, _ in pairs], [
        float(y) if isinstance(y, int | float) else math.nan for _, y in pairs
    ]


def _colors(count: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]
