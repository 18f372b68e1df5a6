"""How pictures look: colours, and axes without frames.

Figures are drawn with matplotlib's own objects, never with `pyplot`: no window, no backend to choose,
and no figure that stays in memory after an hour of training.
"""

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette: told apart with any common form of colour blindness.
# Five more follow, for pictures of many runs.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
    "#7F7F7F", "#6A3D9A", "#8C510A", "#B2DF8A", "#F0E442",
)  # fmt: skip
INK = "#222222"
MUTED = "#6b6b6b"
GRID = "#e4e4e4"
DPI = 100


def dress(axes: Axes, title: str, note: str) -> None:
    """Title, a note that is lighter, a light grid, and no frame."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_title(note, loc="right", fontsize=8, color=MUTED, family="monospace")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.margins(x=0.01)


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
