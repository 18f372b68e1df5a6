"""Pictures of experiments with many methods and runs: curves, intervals, profiles and effects.

A method has the same look in all of them: its colour and line say the family of its credit, its
shade and marker say which one it is.

Each `plot_...` writes a file; the `..._figure` beside it makes the figure, for those who go on drawing.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from steprl.laboratory.drawing import (
    FONT,
    Style,
    draw_band,
    page,
    panels_figure,
    panels_of,
    styles,
)
from steprl.laboratory.drawing import (
    percent as percent_of,
)
from steprl.laboratory.statistics import Curve, Estimate, mean_curve
from steprl.report.style import INK, MUTED, dress, save

Runs = tuple[Sequence[ArrayLike], Sequence[ArrayLike]]
"""xs and ys of the runs of one method, as `mean_curve` takes them."""

_POINTS = 101  # of a curve
_STEPS = [1, 2, 5, 10]  # of the ticks, in powers of ten
_BAND = "Interquartile mean of the runs and its 95 % interval, point by point"

# Learning curves.


def plot_curves(
    curves: Mapping[str, Runs] | Mapping[str, Mapping[str, Runs]],
    path: str | os.PathLike[str],
    title: str,
    x_label: str = "tokens sampled",
    y_label: str = "success",
    *,
    percent: bool = True,
    families: Mapping[str, str] | None = None,
) -> Path:
    """Learning curves: interquartile mean over runs, with its 95 % band.

    A curve is drawn from where the last of its runs begins to where the first of them ends.

    Args:
        curves: method -> (xs, ys) of its runs; or cell -> such a mapping, for a panel a cell.
        path: file to write; its ending says the format (png, svg, pdf).
        title: headline of the picture.
        x_label, y_label: of the axes.
        percent: y is a share, 0 to 1.
        families: as in `styles`.

    Returns:
        The path.

    Raises:
        ValueError: nothing to draw, runs that have no stretch in common, or no shares.
    """
    figure = curves_figure(curves, title, x_label, y_label, percent=percent, families=families)
    return save(figure, path)


def curves_figure(
    curves: Mapping[str, Runs] | Mapping[str, Mapping[str, Runs]],
    title: str,
    x_label: str = "tokens sampled",
    y_label: str = "success",
    *,
    percent: bool = True,
    families: Mapping[str, str] | None = None,
) -> Figure:
    """The figure of `plot_curves`."""
    means = {
        cell: {name: _mean(name, cell, runs) for name, runs in methods.items()}
        for cell, methods in panels_of(curves, "curves").items()
    }

    largest = max(
        float(curve.high.max())
        for named_curves in means.values()
        for curve in named_curves.values()
    )
    least = min(
        float(curve.low.min()) for named_curves in means.values() for curve in named_curves.values()
    )
    if percent and not (-1e-6 <= least and largest <= 1 + 1e-6):
        raise ValueError(
            f"curves reach from {least:g} to {largest:g}, which are no shares: set percent=False."
        )
    top = largest if 0.0 < largest < 0.5 else 1.0  # the same in all panels

    def draw(axes: Axes, cell: str, lines: Mapping[str, Curve], looks: Mapping[str, Style]) -> None:
        for name, curve in lines.items():
            draw_band(axes, name, curve, looks[name])
        if percent:
            axes.yaxis.set_major_formatter(percent_of)
            axes.set_ylim(-0.02 * top, 1.02 * top)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))

    return panels_figure(means, title, (x_label, y_label), families, draw, _BAND)


def _mean(name: str, cell: str, runs: Runs) -> Curve:
    xs, ys = runs
    where = f"curves of {name}" + (f" in {cell}" if cell else "")
    if not len(xs) or any(not len(np.atleast_1d(x)) for x in xs):
        raise ValueError(f"{where}: no runs, or a run without a point.")
    begin = max(float(np.atleast_1d(x)[0]) for x in xs)
    end = min(float(np.atleast_1d(x)[-1]) for x in xs)
    if begin >= end:
        raise ValueError(
            f"{where}: one run begins at {begin:g} and one ends at {end:g}, so there is no stretch "
            "that all of them cover: leave out the run that was cut short, or run it again."
        )
    try:
        return mean_curve(xs, ys, np.linspace(begin, end, _POINTS))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


# Intervals.


def plot_intervals(
    table: Mapping[str, Estimate] | Mapping[str, Mapping[str, Estimate]],
    path: str | os.PathLike[str],
    title: str,
    *,
    percent: bool = True,
    families: Mapping[str, str] | None = None,
) -> Path:
    """A dot and an interval for each method, the best on top: the picture of a comparison.

    Args:
        table: method -> (estimate, low, high); or method -> column -> such a triple, for several
            panels side by side, such as final success and area under the curve. The first column
            says the order.
        path: file to write; its ending says the format.
        title: headline of the picture.
        percent: numbers are shares, 0 to 1.
        families: as in `styles`.

    Returns:
        The path.

    Raises:
        ValueError: nothing to draw, methods with other columns, or a number that is not finite.
    """
    return save(intervals_figure(table, title, percent=percent, families=families), path)


def intervals_figure(
    table: Mapping[str, Estimate] | Mapping[str, Mapping[str, Estimate]],
    title: str,
    *,
    percent: bool = True,
    families: Mapping[str, str] | None = None,
) -> Figure:
    """The figure of `plot_intervals`."""
    rows: dict[str, Mapping[str, Estimate]] = {
        name: row if isinstance(row, Mapping) else {"": row} for name, row in table.items()
    }
    columns = list(next(iter(rows.values()), {}))
    if not columns:
        raise ValueError("table has no intervals: there is nothing to draw.")
    for name, row in rows.items():
        if list(row) != columns:
            raise ValueError(
                f"table[{name!r}] has the columns {list(row)}, others have {columns}: give the same."
            )
        for column, interval in row.items():
            _finite(f"table[{name!r}]" + f"[{column!r}]" * bool(column), interval)
    names = sorted(rows, key=lambda name: rows[name][columns[0]][0])  # the best on top
    looks = styles(list(rows), families)
    figure = page(title, "Dot: estimate; line: 95 % interval", 1.2 + 0.27 * len(names))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    write = "{:.1%}".format if percent else "{:.3g}".format
    for axes, column in zip(panels, columns, strict=True):
        for y, name in enumerate(names):
            estimate, low, high = rows[name][column]
            style = looks[name]
            axes.plot([low, high], [y, y], color=style.color, linewidth=2.4, solid_capstyle="round")
            axes.plot([estimate], [y], style.marker, color=style.color, markersize=6.5, label=name)
            axes.text(
                1.02, y, write(estimate), transform=axes.get_yaxis_transform(), va="center",
                fontsize=FONT - 1, color=MUTED,
            )  # fmt: skip
        dress(axes, column, "")
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.04)
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=FONT)
        axes.xaxis.set_major_locator(MaxNLocator(5 if len(columns) < 3 else 3, steps=_STEPS))
        if percent:
            axes.xaxis.set_major_formatter(percent_of)
    return figure


# Profiles.


def plot_profiles(
    profiles: Mapping[str, Curve] | Mapping[str, Mapping[str, Curve]],
    path: str | os.PathLike[str],
    title: str,
    x_label: str = "success τ",
    y_label: str = "runs above τ",
    *,
    families: Mapping[str, str] | None = None,
) -> Path:
    """Performance profiles: the share of runs above each threshold, with its band.

    Args:
        profiles: method -> curve of `performance_profile`; or cell -> such a mapping.
        path: file to write; its ending says the format.
        title: headline of the picture.
        x_label, y_label: of the axes.
        families: as in `styles`.

    Returns:
        The path.

    Raises:
        ValueError: nothing to draw.
    """
    return save(profiles_figure(profiles, title, x_label, y_label, families=families), path)


def profiles_figure(
    profiles: Mapping[str, Curve] | Mapping[str, Mapping[str, Curve]],
    title: str,
    x_label: str = "success τ",
    y_label: str = "runs above τ",
    *,
    families: Mapping[str, str] | None = None,
) -> Figure:
    """The figure of `plot_profiles`."""
    panels = panels_of(profiles, "profiles")

    def draw(axes: Axes, cell: str, lines: Mapping[str, Curve], looks: Mapping[str, Style]) -> None:
        for name, curve in lines.items():
            draw_band(axes, name, curve, looks[name])
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(percent_of)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))

    # All profiles end at the same height, so there is no place for a name at the end of each.
    return panels_figure(
        panels,
        title,
        (x_label, y_label),
        families,
        draw,
        "Band: 95 % interval, point by point",
        direct=False,
    )


# Effects.


def plot_effects(
    effects: Mapping[str, Mapping[float, Estimate]]
    | Mapping[str, Mapping[str, Mapping[float, Estimate]]],
    path: str | os.PathLike[str],
    title: str,
    x_label: str,
    y_label: str,
    *,
    families: Mapping[str, str] | None = None,
) -> Path:
    """How an effect changes with a length: its interval at each power of two, a line each.

    Args:
        effects: name, such as a difference of two methods -> length (above 0) -> (estimate, low,
            high); or panel -> such a mapping.
        path: file to write; its ending says the format.
        title: headline of the picture.
        x_label, y_label: of the axes, such as "horizon (steps)" and "difference of success".
        families: as in `styles`.

    Returns:
        The path.

    Raises:
        ValueError: nothing to draw, a length that is not above 0, or a number that is not finite.
    """
    return save(effects_figure(effects, title, x_label, y_label, families=families), path)


def effects_figure(
    effects: Mapping[str, Mapping[float, Estimate]]
    | Mapping[str, Mapping[str, Mapping[float, Estimate]]],
    title: str,
    x_label: str,
    y_label: str,
    *,
    families: Mapping[str, str] | None = None,
) -> Figure:
    """The figure of `plot_effects`."""
    cells = panels_of(effects, "effects", depth=2)
    panels = {
        cell: {
            name: _curve_over_lengths(name, estimates, number - (len(named_estimates) - 1) / 2)
            for number, (name, estimates) in enumerate(named_estimates.items())
        }
        for cell, named_estimates in cells.items()
    }

    def draw(axes: Axes, cell: str, lines: Mapping[str, Curve], looks: Mapping[str, Style]) -> None:
        for name, curve in lines.items():
            style = looks[name]
            axes.vlines(curve.x, curve.low, curve.high, color=style.color, linewidth=1.8)
            axes.plot(
                curve.x, curve.estimate, color=style.color, linestyle=style.line, marker=style.marker,
                markersize=6, linewidth=1.6, label=name,
            )  # fmt: skip
        axes.axhline(0.0, color=INK, linewidth=1.0, zorder=1.5)
        axes.set_xscale("log", base=2)
        lengths = sorted({length for estimates in cells[cell].values() for length in estimates})
        axes.set_xticks(lengths, [f"{x:g}" for x in lengths])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.06)

    return panels_figure(panels, title, (x_label, y_label), families, draw, "Bars: 95 % intervals")


def _curve_over_lengths(name: str, estimates: Mapping[float, Estimate], offset: float) -> Curve:
    """The effect as a curve; lines stand beside each other, so that no interval hides another."""
    if not estimates:
        raise ValueError(f"effects[{name!r}] has no lengths: there is nothing to draw.")
    for length, interval in estimates.items():
        if not length > 0:
            raise ValueError(f"effects[{name!r}] has the length {length}, which has no logarithm.")
        _finite(f"effects[{name!r}][{length}]", interval)
    lengths = sorted(estimates)
    estimate, low, high = np.array([estimates[length] for length in lengths], np.float64).T
    return Curve(np.array(lengths) * 2 ** (0.07 * offset), estimate, low, high)


def _finite(name: str, interval: Estimate) -> None:
    if len(interval) != 3 or not np.all(np.isfinite(interval)):
        raise ValueError(
            f"{name}={tuple(interval)} is not (estimate, low, high) of finite numbers."
        )
