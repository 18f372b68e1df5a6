"""Pictures of a run: learning curves, and credit over the tokens of one trajectory.

Both functions draw to a file with matplotlib's own objects, never with `pyplot`: no window, no
backend to choose, and no figure that stays in memory after an hour of training.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from steprl.metrics import STEP, Metrics

# Okabe and Ito's palette: told apart with any common form of colour blindness.
# Five more follow, for pictures of many runs.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
    "#7F7F7F", "#6A3D9A", "#8C510A", "#B2DF8A", "#F0E442",
)  # fmt: skip
_INK = "#222222"
_MUTED = "#6b6b6b"
_GRID = "#e4e4e4"
_DIVERGING = "RdBu"  # red below zero, blue above; safe for colour blindness
_READ, _READ_INK = "#dadde1", "#5b6168"

_DPI = 100
_WIDTH = 1200.0
_MARGIN = 20.0
_TOP = 98.0  # of the first line of tokens
_LINE, _CELL = 25.0, 21.0
_PAD = 3.0
_FONT = 10.0  # points
_CHAR = _FONT * _DPI / 72 * 0.602  # width of a sign of DejaVu Sans Mono
_STEP_COLUMN, _NUMBER_COLUMN = 60.0, 78.0
_VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "·", "Ġ": "·", "▁": "·", "Ċ": "↵"}

# Success rates in the large panel: metric, label, line style, width.
_SUCCESS = (
    ("eval/success_rate", "evaluation, sampled", "-", 2.2),
    ("eval/success_rate_greedy", "evaluation, greedy", "--", 1.6),
    ("rollout/success_rate", "training rollouts", ":", 1.4),
)
_PANELS = (
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
    figure = Figure((12.0, sum(heights) + 0.6), dpi=_DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold", color=_INK)
    if success:
        _draw_success(figure.add_subplot(grid[0, :]), runs, success)
    for i, (name, label) in enumerate(panels):
        axes = figure.add_subplot(grid[bool(success) + i // columns, i % columns])
        for color, rows in zip(_colors(len(runs)), runs.values(), strict=True):
            axes.plot(*_series(rows, name), color=color, linewidth=1.4)
        _dress(axes, label, name)
        if i + columns >= len(panels):
            axes.set_xlabel("iteration", color=_MUTED, fontsize=9)
    return _save(figure, path)


def plot_credit(
    tokens: Sequence[str],
    step_ids: np.ndarray,
    advantage: np.ndarray,
    value: np.ndarray | None,
    reward: np.ndarray | None,
    path: str | os.PathLike[str],
    title: str = "Credit over the tokens of a trajectory",
    *,
    max_tokens: int = 150,
    max_context: int = 30,
) -> Path:
    """One trajectory as lines of coloured tokens, one block a step.

    A token that the policy sampled has the colour of its advantage; one that it only read (step id
    -1) is grey. Beside each step stand the mean advantage of its tokens, the value at its first
    token, and the sum of its rewards.

    Args:
        tokens: [T] text of each token.
        step_ids: [T] step that sampled the token, or -1.
        advantage: [T]; read where a step id is, so the rest may be NaN.
        value: [T] of the critic, or None.
        reward: [T], or None.
        path: file to write; its ending says the format.
        title: headline of the picture.
        max_tokens: tokens drawn at most; the rest is cut with a note that counts them.
        max_context: tokens drawn at most of one stretch that was only read.

    Returns:
        The path.
    """
    ids = np.asarray(step_ids)
    arrays = {
        name: None if x is None else np.asarray(x, np.float64)
        for name, x in (("advantage", advantage), ("value", value), ("reward", reward))
    }
    for name, array in (("step_ids", ids), *arrays.items()):
        if array is not None and array.shape != (len(tokens),):
            raise ValueError(f"{name} has shape {array.shape}; there are {len(tokens)} tokens.")
    if not len(tokens):
        raise ValueError("A trajectory without tokens has no picture.")

    columns = {name: x for name, x in arrays.items() if x is not None}
    left = _MARGIN + _STEP_COLUMN + _NUMBER_COLUMN * len(columns) + _MARGIN
    blocks, height = _flow(_blocks(tokens, ids, max_tokens, max_context), left)

    figure = Figure((_WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(height, 0))
    axes.axis("off")
    sampled = np.abs(columns["advantage"][ids >= 0])
    largest = float(np.max(sampled, where=np.isfinite(sampled), initial=0.0))
    colors = ScalarMappable(Normalize(-(largest or 1.0), largest or 1.0), _DIVERGING)
    _draw_header(axes, title, columns, colors, left, height)
    for block in blocks:
        _draw_margin(axes, block, columns, ids)
        for cell in block.cells:
            _draw_cell(axes, cell, ids, columns["advantage"], colors)
    return _save(figure, path)


# Learning curves.


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
        axes.plot([], [], style, color=_INK if several else by_metric[name], linewidth=width)[0]
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
    _dress(axes, "Success rate", "band: 95 % interval" if banded else "")
    axes.set_xlabel("iteration", color=_MUTED, fontsize=9)
    axes.set_ylabel("solved tasks", color=_MUTED, fontsize=9)


def _series(rows: Sequence[Metrics], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have the metric. What is not a number leaves a gap."""
    pairs = [(row[STEP], row[name]) for row in rows if name in row and STEP in row]
    return [x for x, _ in pairs], [math.nan if y is None else float(y) for _, y in pairs]


def _colors(count: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _dress(axes: Axes, title: str, note: str) -> None:
    """Title, a note that is lighter, a light grid, and no frame."""
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK)
    axes.set_title(note, loc="right", fontsize=8, color=_MUTED, family="monospace")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=_MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.margins(x=0.01)


# Credit over tokens. Lengths are pixels of a page that is 1200 wide.


class _Cell(NamedTuple):
    text: str
    token: int | None  # None: a note about tokens left out
    x: float = 0.0
    y: float = 0.0


class _Block(NamedTuple):
    """A stretch of tokens of one step, or of none."""

    step: int
    cells: list[_Cell]


def _blocks(
    tokens: Sequence[str], ids: np.ndarray, max_tokens: int, max_context: int
) -> list[_Block]:
    """Cuts the row where the step id changes, and leaves out what is too long to look at."""
    starts = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist()]
    blocks: list[_Block] = []
    drawn = 0
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        room = max_tokens - drawn
        if room == 0:
            blocks[-1].cells.append(_Cell(f"… {len(ids) - start} more tokens", None))
            break
        cells = [_Cell(_printable(tokens[k]), k) for k in range(start, end)]
        limit = min(room, max_context) if ids[start] < 0 else room
        drawn += min(limit, len(cells))
        if ids[start] < 0 and len(cells) > limit:  # its begin and its end tell the most
            tail = limit // 3
            note = _Cell(f"… {len(cells) - limit} more tokens …", None)
            cells[limit - tail : len(cells) - tail] = [note]
        elif len(cells) > limit:
            cells[limit:] = [_Cell(f"… {len(ids) - start - limit} more tokens", None)]
            end = len(ids)
        blocks.append(_Block(int(ids[start]), cells))
        if end == len(ids):
            break
    return blocks


def _flow(blocks: Sequence[_Block], left: float) -> tuple[list[_Block], float]:
    """Places the cells: a new line for each block, and where a line is full."""
    placed, y = [], _TOP
    for block in blocks:
        x, cells = left, []
        for cell in block.cells:
            width = _width(cell)
            if x > left and x + width > _WIDTH - _MARGIN:
                x, y = left, y + _LINE
            cells.append(cell._replace(x=x, y=y))
            x += width + 2
        placed.append(_Block(block.step, cells))
        y += _LINE + 6
    return placed, y + _MARGIN


def _draw_cell(
    axes: Axes, cell: _Cell, ids: np.ndarray, advantage: np.ndarray, colors: ScalarMappable
) -> None:
    style: dict[str, Any] = {"family": "monospace", "color": _READ_INK}
    if cell.token is None:
        style["style"] = "italic"
    else:
        fill: Any = _READ
        edge: Any = _READ
        if ids[cell.token] >= 0:
            fill = colors.to_rgba(advantage[cell.token])
            edge = "#b5b5b5"  # else a step without credit would be white on white
            light = np.dot(fill[:3], (0.299, 0.587, 0.114))
            style["color"] = _INK if light > 0.5 else "white"
        box = Rectangle((cell.x, cell.y), _width(cell), _CELL, facecolor=fill, edgecolor=edge)
        axes.add_patch(box)
    _text(axes, cell.x + _PAD, cell.y + _CELL / 2, cell.text, _FONT, **style)


def _draw_margin(
    axes: Axes, block: _Block, columns: Mapping[str, np.ndarray], ids: np.ndarray
) -> None:
    """The numbers of a step, beside its first line."""
    y = block.cells[0].y + _CELL / 2
    if block.step < 0:
        _text(axes, _MARGIN, y, "read", _FONT, color=_MUTED)
        return
    axes.plot([_MARGIN, _WIDTH - _MARGIN], [block.cells[0].y - 4] * 2, color=_GRID, linewidth=0.8)
    _text(axes, _MARGIN, y, f"step {block.step}", _FONT, fontweight="bold", color=_INK)
    tokens = np.flatnonzero(ids == block.step)
    numbers = {
        "advantage": lambda x: x[tokens].mean(),
        "value": lambda x: x[tokens[0]],
        "reward": lambda x: x[tokens].sum(),
    }
    for i, (name, x) in enumerate(columns.items()):
        right = _MARGIN + _STEP_COLUMN + _NUMBER_COLUMN * (i + 1)
        number = f"{numbers[name](x):+.2f}".replace("-", "\N{MINUS SIGN}")
        color = _MUTED if number[1:] == "0.00" else _INK  # so that the rare reward stands out
        _text(axes, right, y, number, _FONT, family="monospace", color=color, ha="right")


def _draw_header(
    axes: Axes,
    title: str,
    columns: Mapping[str, np.ndarray],
    colors: ScalarMappable,
    left: float,
    height: float,
) -> None:
    _text(axes, _MARGIN, 30, title, 15, fontweight="bold", color=_INK)
    for i, name in enumerate(columns):
        right = _MARGIN + _STEP_COLUMN + _NUMBER_COLUMN * (i + 1)
        _text(axes, right, _TOP - 18, name, 9, color=_MUTED, ha="right")
    note = "coloured: sampled by the policy    grey: only read"
    _text(axes, left, _TOP - 18, note, 9, color=_MUTED)
    figure = axes.get_figure(root=True)
    assert figure is not None
    bar = figure.add_axes(((_WIDTH - 260) / _WIDTH, 1 - 46 / height, 240 / _WIDTH, 12 / height))
    colorbar = figure.colorbar(colors, cax=bar, orientation="horizontal", ticks=MaxNLocator(5))
    colorbar.outline.set_visible(False)
    bar.set_title("advantage", fontsize=9, color=_MUTED, pad=3)
    bar.tick_params(length=0, labelsize=8, labelcolor=_MUTED)


def _width(cell: _Cell) -> float:
    return len(cell.text) * _CHAR + 2 * _PAD


def _text(axes: Axes, x: float, y: float, text: str, size: float, **style: Any) -> None:
    # A dollar sign in a token is a dollar sign, not the begin of a formula.
    style = {"va": "center", "ha": "left", "parse_math": False, **style}
    axes.text(x, y, text, fontsize=size, **style)


def _printable(token: str, longest: int = 40) -> str:
    """The token in signs that the font has: white space becomes visible."""
    glyphs = get_font(findfont("monospace")).get_charmap()
    text = "".join(
        _VISIBLE.get(c, c if ord(c) in glyphs and c.isprintable() else "□") for c in token
    )
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
