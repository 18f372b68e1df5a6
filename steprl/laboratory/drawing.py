"""What the pictures of experiments share: looks of methods, pages of panels, names beside lines."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steprl.algorithms import ALGORITHMS, BRANCHES, GROUP, STEP, TOKEN
from steprl.laboratory.statistics import Curve
from steprl.report.style import INK, MUTED, PALETTE, dress

OTHER = "other"

_COLORS = {
    STEP: ("#0072B2", "#56B4E9", "#003A5C", "#8FA8FF"),
    TOKEN: ("#D55E00", "#E69F00", "#8C510A", "#F2A07B"),
    GROUP: ("#009E73", "#7FBF3F", "#0B5D3B", "#7A8C1E"),
    BRANCHES: ("#6A3D9A", "#CC79A7", "#A0144F", "#9E8AC8"),
    OTHER: ("#000000", "#7F7F7F", "#B3A100", "#5B4B8A"),
}
_LINES: dict[str, Any] = {
    STEP: "-", TOKEN: (0, (6, 2)), GROUP: (0, (1.6, 1.4)), BRANCHES: (0, (7, 2, 1.6, 2)), OTHER: "-",
}  # fmt: skip
_MARKERS = "osD^vP*X"
_WIDTH, _DPI = 9.0, 200  # inches of 100 pixels on the page, drawn twice as fine
FONT = 9.5


class Style(NamedTuple):
    """How a method looks."""

    family: str
    color: str
    line: Any
    marker: str


def styles(names: Sequence[str], families: Mapping[str, str] | None = None) -> dict[str, Style]:
    """A look for each name, the families together and in their order.

    Methods of `steprl.algorithms` are known, however they are spelled (`reinforce_pp`,
    `REINFORCE++`), and look the same whatever other names are drawn; other names take what is left.

    Args:
        names: to tell apart.
        families: name -> one of the families, where the family is not known or is another.

    Returns:
        name -> look.

    Raises:
        ValueError: a family that there is none of.
    """
    families = families or {}
    known: dict[str, tuple[str, int]] = {}
    for key, method in ALGORITHMS.items():
        before = sum(family == method.family for family, _ in known.values())
        known[_spelling(key)] = (method.family, before)
    members: dict[str, dict[str, int | None]] = {family: {} for family in _COLORS}
    for name in names:
        family, place = known.get(_spelling(name), (OTHER, None))
        chosen = families.get(name, family)
        if chosen not in members:
            raise ValueError(
                f"families[{name!r}]={chosen!r} is no family: choose of {', '.join(_COLORS)}."
            )
        members[chosen][name] = place if chosen == family else None
    looks = {}
    for family, places in members.items():
        taken = {place for place in places.values() if place is not None}
        free = iter([i for i in range(len(places) + len(taken)) if i not in taken])
        for name, place in places.items():
            i = next(free) if place is None else place
            colors = _COLORS[family] if len(members[OTHER]) < len(names) else PALETTE
            color = colors[i % len(colors)]
            looks[name] = Style(family, color, _LINES[family], _MARKERS[i % len(_MARKERS)])
    return looks


def _spelling(name: str) -> str:
    return "".join(c for c in name.lower().replace("+", "p") if c.isalnum())


def page(title: str, note: str, height: float) -> Figure:
    """An empty figure of the width of a page, with its headline and a note under it."""
    figure = Figure((_WIDTH, height), dpi=_DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    # The layout keeps room for the headline only, so that has a second line for the note.
    headline = f"{title}\n "
    figure.suptitle(headline, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.012, 1 - 0.31 / height, note, va="top", fontsize=8.5, color=MUTED)
    return figure


def percent(x: float, _: float = 0) -> str:
    """A share as text, for axes and labels."""
    return f"{100 * x:.3g}%"


def panels_of(drawn: Mapping[str, Any], what: str, depth: int = 1) -> Mapping[str, Any]:
    """`drawn` by cell: itself, or itself as the only cell where it has none.

    Args:
        drawn: cell -> name -> what is drawn, or name -> what is drawn.
        what: its name, for errors.
        depth: mappings that are left where there are no cells.

    Raises:
        ValueError: it is empty, or one of its cells is.
    """
    inner: Any = drawn
    for _ in range(depth):
        inner = next(iter(inner.values()), None) if isinstance(inner, Mapping) else None
    cells = drawn if isinstance(inner, Mapping) else {"": drawn}
    empty = [cell for cell, of in cells.items() if not of]
    if empty or not cells:
        where = f" in {', '.join(map(repr, empty))}" if any(empty) else ""
        raise ValueError(f"{what} has no methods{where}: there is nothing to draw.")
    return cells


def panels_figure(
    panels: Mapping[str, Mapping[str, Curve]],
    title: str,
    labels: tuple[str, str],
    families: Mapping[str, str] | None,
    draw: Callable[[Axes, str, Mapping[str, Curve], Mapping[str, Style]], None],
    note: str,
    direct: bool = True,
) -> Figure:
    """A panel a cell, with the names of the lines beside them if there is one panel, else below.

    Args:
        panels: cell -> name -> curve.
        title: headline.
        labels: of the axes.
        families: as in `styles`.
        draw: draws the curves of one panel, those of a family after each other.
        note: what lines and bands are.
        direct: a single panel may have the names at the ends of its lines.

    Returns:
        The figure.
    """
    looks = styles(list(dict.fromkeys(name for of in panels.values() for name in of)), families)
    direct = direct and len(panels) == 1
    columns = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    rows = math.ceil(len(panels) / columns)
    longest = max(_count(looks).values())
    below = 0.0 if direct else 0.25 + 0.17 * (longest + 1)
    height = 4.3 if len(panels) == 1 else 2.5 * rows
    figure = page(title, note, 0.55 + height + below)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for i, (axes, (cell, curves)) in enumerate(zip(grid, panels.items(), strict=False)):
        dress(axes, cell, "")
        draw(axes, cell, {name: curves[name] for name in looks if name in curves}, looks)
        if i + columns >= len(panels):
            axes.set_xlabel(labels[0], color=MUTED, fontsize=FONT)
        if i % columns == 0:
            axes.set_ylabel(labels[1], color=MUTED, fontsize=FONT)
    for axes in grid[len(panels) :]:
        axes.remove()
    if direct:
        _names_beside(figure, grid[0], next(iter(panels.values())), looks)
    elif len(looks) > 1:
        _names_below(figure, looks)
    return figure


def draw_band(axes: Axes, name: str, curve: Curve, look: Style) -> None:
    """A curve with its band, and a few markers, at other places for each marker."""
    axes.fill_between(curve.x, curve.low, curve.high, color=look.color, alpha=0.12, linewidth=0)
    every = max(1, len(curve.x) // 6)
    first = every * (_MARKERS.index(look.marker) + 1) // (len(_MARKERS) + 1)
    axes.plot(
        curve.x, curve.estimate, color=look.color, linestyle=look.line, linewidth=1.7,
        marker=look.marker, markevery=(first, every), markersize=5, label=name,
    )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the order of those wanted, and as near to them as can be.

    Pools neighbours that are too near until none are (isotonic regression of wantedᵢ − i gap).
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], -i))  # of equals, the first on top
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([wanted[i] - rank * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    places = [float(np.mean(pool)) for pool in pools for _ in pool]
    spread_places = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        spread_places[i] = places[rank] + rank * gap
    return spread_places


def _count(looks: Mapping[str, Style]) -> dict[str, int]:
    """Members by family, in the order of the families."""
    counts: dict[str, int] = {}
    for look in looks.values():
        counts[look.family] = counts.get(look.family, 0) + 1
    return counts


def _sample(look: Style) -> Line2D:
    return Line2D(
        [], [], color=look.color, linestyle=look.line, linewidth=1.7, marker=look.marker,
        markersize=5,
    )  # fmt: skip


def _names_beside(
    figure: Figure, axes: Axes, curves: Mapping[str, Curve], looks: Mapping[str, Style]
) -> None:
    """The names at the right edge, each as near to the end of its line as the others allow."""
    figure.draw_without_rendering()  # for the height of the axes
    line_height = 1.35 * FONT / 72 * figure.dpi / axes.get_window_extent().height
    low, high = axes.get_ylim()
    names = [name for name in looks if name in curves]
    ends = {name: float(curves[name].estimate[-1]) for name in names}
    wanted = [min(max((ends[name] - low) / (high - low), 0.0), 1.0) for name in names]
    for name, place in zip(names, spread(wanted, line_height), strict=True):
        look, end = looks[name], (float(curves[name].x[-1]), ends[name])
        axes.annotate(
            "", end, (1.045, place), textcoords="axes fraction", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": look.color, "linewidth": 0.6, "shrinkA": 0,
                        "shrinkB": 0},
        )  # fmt: skip
        line = _sample(look)
        line.set(transform=axes.transAxes, clip_on=False, markevery=[1])
        line.set_data([1.045, 1.075, 1.105], [place] * 3)
        axes.add_artist(line)
        axes.text(
            1.118, place, name, transform=axes.transAxes, va="center", fontsize=FONT, color=INK
        )


def _names_below(figure: Figure, looks: Mapping[str, Style]) -> None:
    """A legend under the panels, a column a family."""
    count = _count(looks)
    headed = len(count) > 1
    handles: list[Line2D] = []
    labels: list[str] = []
    heads = []
    blank = Line2D([], [], linestyle="none")
    for family, members in count.items():
        if headed:
            heads.append(len(labels))
            handles.append(blank)
            labels.append(family)
        family_looks = {name: look for name, look in looks.items() if look.family == family}
        short = max(count.values()) - members if headed else 0
        handles += [*map(_sample, family_looks.values()), *[blank] * short]
        labels += [*family_looks, *[""] * short]
    legend = figure.legend(
        handles, labels, loc="outside lower left", ncols=len(count) if headed else 4,
        frameon=False, fontsize=FONT - 0.5, handlelength=3.2, labelcolor=INK, columnspacing=1.6,
    )  # fmt: skip
    for i in heads:
        legend.get_texts()[i].set(fontweight="bold", color=MUTED)
