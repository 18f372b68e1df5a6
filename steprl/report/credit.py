"""Credit over the tokens of one trajectory, as a picture."""

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
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from steprl.report.style import DPI, GRID, INK, MUTED, save

_DIVERGING = "RdBu"  # red below zero, blue above; safe for colour blindness
_READ, _READ_INK = "#dadde1", "#5b6168"

_WIDTH = 1200.0
_MARGIN = 20.0
_TOP = 98.0  # of the first line of tokens
_LINE, _CELL = 25.0, 21.0
_PAD = 3.0
_FONT = 10.0  # points
_CHAR = _FONT * DPI / 72 * 0.602  # width of a sign of DejaVu Sans Mono
_STEP_COLUMN, _NUMBER_COLUMN = 60.0, 78.0
_VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "·"}
_PART = "…"  # a token that holds only part of a character


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

    figure = Figure((_WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
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
    return save(figure, path)


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
            style["color"] = INK if light > 0.5 else "white"
        box = Rectangle((cell.x, cell.y), _width(cell), _CELL, facecolor=fill, edgecolor=edge)
        axes.add_patch(box)
    _text(axes, cell.x + _PAD, cell.y + _CELL / 2, cell.text, _FONT, **style)


def _draw_margin(
    axes: Axes, block: _Block, columns: Mapping[str, np.ndarray], ids: np.ndarray
) -> None:
    """The numbers of a step, beside its first line."""
    y = block.cells[0].y + _CELL / 2
    if block.step < 0:
        _text(axes, _MARGIN, y, "read", _FONT, color=MUTED)
        return
    axes.plot([_MARGIN, _WIDTH - _MARGIN], [block.cells[0].y - 4] * 2, color=GRID, linewidth=0.8)
    _text(axes, _MARGIN, y, f"step {block.step}", _FONT, fontweight="bold", color=INK)
    tokens = np.flatnonzero(ids == block.step)
    numbers = {
        "advantage": lambda x: x[tokens].mean(),
        "value": lambda x: x[tokens[0]],
        "reward": lambda x: x[tokens].sum(),
    }
    for i, (name, x) in enumerate(columns.items()):
        right = _MARGIN + _STEP_COLUMN + _NUMBER_COLUMN * (i + 1)
        number = f"{numbers[name](x):+.2f}".replace("-", "\N{MINUS SIGN}")
        color = MUTED if number[1:] == "0.00" else INK  # so that the rare reward stands out
        _text(axes, right, y, number, _FONT, family="monospace", color=color, ha="right")


def _draw_header(
    axes: Axes,
    title: str,
    columns: Mapping[str, np.ndarray],
    colors: ScalarMappable,
    left: float,
    height: float,
) -> None:
    _text(axes, _MARGIN, 30, title, 15, fontweight="bold", color=INK)
    for i, name in enumerate(columns):
        right = _MARGIN + _STEP_COLUMN + _NUMBER_COLUMN * (i + 1)
        _text(axes, right, _TOP - 18, name, 9, color=MUTED, ha="right")
    note = "coloured: sampled by the policy    grey: only read"
    _text(axes, left, _TOP - 18, note, 9, color=MUTED)
    figure = axes.get_figure(root=True)
    assert figure is not None
    bar = figure.add_axes(((_WIDTH - 260) / _WIDTH, 1 - 46 / height, 240 / _WIDTH, 12 / height))
    colorbar = figure.colorbar(colors, cax=bar, orientation="horizontal", ticks=MaxNLocator(5))
    colorbar.outline.set_visible(False)
    bar.set_title("advantage", fontsize=9, color=MUTED, pad=3)
    bar.tick_params(length=0, labelsize=8, labelcolor=MUTED)


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
    text = text or _PART
    return text if len(text) <= longest else text[: longest - 1] + "…"
