"""Pictures of an audit: how well estimates rank the steps, and one trajectory with both credits."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steprl.audit.comparison import (
    CONTINUATIONS,
    ENUMERATED,
    LINEAR,
    RANK,
    Audit,
    Score,
    enumerated,
)
from steprl.audit.estimates import ADVANTAGE, CRITIC, RANDOM, STAKE, TARGETS, VALUE
from steprl.report.style import INK, MUTED, PALETTE, dress, save

_TITLES = {
    VALUE: "Value of a state: V",
    ADVANTAGE: "Credit of an action: Q \N{MINUS SIGN} V",
    STAKE: "What a choice decides: variance of Q",
}
_Z_95 = 1.959963984540054
_COLORS = {CONTINUATIONS: PALETTE[0], ENUMERATED: PALETTE[1]}
_EXACT = PALETTE[4]
_MOST_STEPS = 10  # of the picture of a trajectory


def draw_audit(audit: Audit, path: str | os.PathLike[str], title: str) -> Path:
    """Rank correlations with their intervals, and below them estimates against the truth.

    Args:
        audit: from `run_audit`.
        path: file to write; its ending sets the format.
        title: headline of the picture.

    Returns:
        The path.
    """
    figure = Figure((15.0, 8.2), dpi=100, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)  # type: ignore[union-attr, call-arg]
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.0, 1.1)).ravel()
    figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold", color=INK)
    for axes, target in zip(above.subplots(1, 3), TARGETS, strict=True):
        rank_scores = [s for s in audit.scores if (s.target, s.kind) == (target, RANK)]
        kinds = [kind for kind in _COLORS if any(s.truth == kind for s in rank_scores)]
        groups = {f"truth by {kind}": [s for s in rank_scores if s.truth == kind] for kind in kinds}
        colors = {f"truth by {kind}": _COLORS[kind] for kind in kinds}
        _forest(axes, groups, colors, target)
        ceiling = audit.reliability[target].ceiling
        if math.isfinite(ceiling):
            axes.axvline(ceiling, color=_COLORS[CONTINUATIONS], linestyle=":", linewidth=1.3)
            axes.annotate(
                "ceiling", (ceiling, 1.0), (-3, -9), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="right", fontsize=8, color=_COLORS[CONTINUATIONS],
            )  # fmt: skip
    truth = audit.truth
    of_target = {VALUE: truth.value()[0], ADVANTAGE: truth.advantage()[0]}
    exact = {} if audit.bounds is None else enumerated(audit.bounds)
    shown = [
        (target, name)
        for target in (VALUE, ADVANTAGE)
        for name in audit.estimates[target]
        if name != RANDOM
    ][:5]
    note = "A dot a step; the line joins the means of tenths of the steps, by their estimate"
    below.suptitle(note, x=0.012, ha="left", fontsize=10, color=MUTED)
    cells = below.subplots(1, max(len(shown), 1), squeeze=False)[0]
    for axes, (target, name) in zip(cells, shown, strict=False):
        truth_s = exact.get(target, of_target[target])
        _scatter(axes, audit.estimates[target][name], truth_s, name, target)
    if not shown:
        cells[0].axis("off")
    return save(figure, path)


def draw_comparison(
    found: Mapping[str, Sequence[Score]], path: str | os.PathLike[str], title: str
) -> Path:
    """Rank correlations of several audits, a colour each.

    Args:
        found: scores by name of the audit, of one kind of truth.
        path: file to write; its ending sets the format.
        title: headline of the picture.

    Returns:
        The path.
    """
    figure = Figure((15.0, 11.5), dpi=100, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold", color=INK)
    for kind, row in zip((RANK, LINEAR), figure.subplots(2, 3), strict=True):
        for axes, target in zip(row, TARGETS, strict=True):
            groups = {
                name: [s for s in of if (s.target, s.kind) == (target, kind)]
                for name, of in found.items()
            }
            _forest(axes, groups, dict(zip(found, PALETTE, strict=False)), target)
    return save(figure, path)


def _forest(
    axes: Axes, groups: Mapping[str, Sequence[Score]], colors: Mapping[str, str], target: str
) -> None:
    """A line for each estimate, best first, and in it a dot and an interval for each group."""
    scores = [score for of in groups.values() for score in of]
    names = _by_rank(scores)
    labelled = set()
    for number, (group, of) in enumerate(groups.items()):
        for score in of:
            if math.isnan(score.correlation):
                continue
            apart = min(0.26, 0.8 / len(groups))
            y = names.index(score.estimate) + apart * ((len(groups) - 1) / 2 - number)
            label = None if group in labelled else group
            labelled.add(group)
            axes.plot([score.low, score.high], [y, y], color=colors[group], linewidth=2.2)
            axes.plot([score.correlation], [y], "o", color=colors[group], markersize=6, label=label)
    axes.axvline(0.0, color=MUTED, linewidth=0.8)
    dress(axes, _TITLES[target], "")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=9.5)
    axes.set_ylim(-0.7, len(names) - 0.2)
    low = min([0.0, *(s.low for s in scores if math.isfinite(s.low))])
    axes.set_xlim(low - 0.06, 1.03)
    axes.xaxis.set_major_locator(_ticks())
    whose = "Spearman's rank" if all(s.kind == RANK for s in scores) else "Pearson's"
    axes.set_xlabel(f"{whose} correlation, 95 % interval", color=MUTED, fontsize=9)
    if len(labelled) > 1 and target == VALUE:
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def _by_rank(scores: Sequence[Score]) -> list[str]:
    """Names of estimates, the one of the lowest mean correlation first."""
    of_name: dict[str, list[float]] = {}
    for score in scores:
        of_name.setdefault(score.estimate, [])
        if not math.isnan(score.correlation):
            of_name[score.estimate].append(score.correlation)
    return sorted(of_name, key=lambda name: float(np.mean(of_name[name] or [-2.0])))


def _ticks():  # type: ignore[no-untyped-def]
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(0.2)


def _scatter(
    axes: Axes, estimate_s: np.ndarray, truth_s: np.ndarray, name: str, target: str
) -> None:
    """A dot a step, and the mean truth of each tenth of the steps by their estimate."""
    axes.plot(estimate_s, truth_s, "o", color=PALETTE[0], alpha=0.22, markersize=4, mew=0)
    order = np.argsort(estimate_s, kind="stable")
    tenths = [part for part in np.array_split(order, 10) if len(part)]
    x = [estimate_s[part].mean() for part in tenths]
    y = [truth_s[part].mean() for part in tenths]
    axes.plot(x, y, "-o", color=PALETTE[1], linewidth=1.8, markersize=4.5)
    dress(axes, name, "")
    axes.margins(x=0.04)
    axes.set_xlabel("estimate", color=MUTED, fontsize=9)
    axes.set_ylabel("true V" if target == VALUE else "true Q \N{MINUS SIGN} V", color=MUTED)
    axes.xaxis.set_major_locator(_few())


def _few():  # type: ignore[no-untyped-def]
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)


def telling_row(audit: Audit) -> int:
    """The trajectory whose actions mattered most: by the enumeration, or else by continuations.

    The largest of noisy numbers is partly noise, so of few continuations the error bars matter.
    """
    stake_s = np.maximum(audit.truth.stake()[0], 0.0)
    if audit.bounds is not None:
        stake_s = enumerated(audit.bounds)[ADVANTAGE] ** 2
    total = np.bincount(audit.truth.row_s, stake_s, len(audit.trajectories))
    return int(np.argmax(total))


def draw_trajectory(
    audit: Audit, path: str | os.PathLike[str], title: str, row: int | None = None
) -> Path:
    """One trajectory, a line a step: what was read and done, its value, and its credit.

    Credit is in units of its own standard deviation over all steps of the audit, since methods scale
    it differently and training whitens it. The bars at the truth are 95 % intervals.

    Args:
        audit: from `run_audit`.
        path: file to write; its ending sets the format.
        title: headline of the picture.
        row: the trajectory; None for the one whose actions mattered most.

    Returns:
        The path.
    """
    row = telling_row(audit) if row is None else row
    steps = audit.trajectories[row].steps[:_MOST_STEPS]
    index_s = np.flatnonzero(audit.truth.row_s == row)[: len(steps)]
    credits = {n: x for n, x in audit.estimates[ADVANTAGE].items() if n != RANDOM}
    height = max(0.62, 0.17 * (len(credits) + 1) + 0.16)
    figure = Figure((14.0, 1.7 + height * len(steps)), dpi=100, layout="constrained",
                    facecolor="white")  # fmt: skip
    figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold", color=INK)
    words, values, credit = figure.subplots(1, 3, width_ratios=(1.15, 0.7, 1.3), sharey=True)
    for axes in (words, values, credit):
        axes.set_ylim(len(steps) - 0.5, -0.5)
        for edge in range(1, len(steps)):
            axes.axhline(edge - 0.5, color="#d8d8d8", linewidth=0.8)
    words.axis("off")
    for number, step in enumerate(steps):
        lines = [*_wrapped(step.observation, ""), *_wrapped(step.action or "(empty)", "> ")]
        style = {"fontsize": 9, "va": "center", "parse_math": False, "family": "monospace"}
        words.text(0.0, number, f"{number + 1}", fontweight="bold", color=INK, **style)
        words.text(0.05, number, "\n".join(lines), color=INK, **style)
    _draw_values(values, audit, index_s)
    _draw_credit(credit, audit, index_s, credits)
    values.set_yticks([])
    ending = "solved" if audit.trajectories[row].success else "not solved"
    words.set_title(
        f"task {audit.trajectories[row].task}, {ending}", loc="left", fontsize=10.5, color=INK
    )
    return save(figure, path)


def _wrapped(text: str, mark: str, width: int = 54, lines: int = 2) -> list[str]:
    """A text in a few lines; of a long one its end, which is what the step added last."""
    parts = textwrap.wrap(" ".join(text.split()), width - len(mark)) or [""]
    if len(parts) > lines:
        parts = ["… " + parts[-lines][2:], *parts[-lines + 1 :]] if lines > 1 else parts[-1:]
    return [(mark if k == 0 else " " * len(mark)) + part for k, part in enumerate(parts)]


def _draw_values(axes: Axes, audit: Audit, index_s: np.ndarray) -> None:
    value_s, variance_s = audit.truth.value()
    y = np.arange(len(index_s))
    error = _Z_95 * np.sqrt(variance_s[index_s])
    axes.errorbar(
        value_s[index_s],
        y,
        xerr=error,
        fmt="o",
        color=INK,
        markersize=6,
        capsize=3,
        label="true V",
    )
    if audit.bounds is not None:
        low, high = audit.bounds.value_s[index_s].T
        axes.hlines(y + 0.16, low, high, color=_EXACT, linewidth=6, label="enumerated")
    if CRITIC in audit.estimates[VALUE]:
        critic_s = audit.estimates[VALUE][CRITIC][index_s]
        axes.plot(critic_s, y - 0.16, "D", color=PALETTE[0], markersize=6, label="critic")
    dress(axes, "value before the step", "")
    axes.margins(x=0.06)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(_few())
    _legend_below(axes, len(index_s))


def _draw_credit(
    axes: Axes, audit: Audit, index_s: np.ndarray, credits: dict[str, np.ndarray]
) -> None:
    advantage_s, variance_s = audit.truth.advantage()
    unit = float(np.std(advantage_s)) or 1.0
    thick = 0.84 / (len(credits) + 1)
    y = np.arange(len(index_s)) - 0.42 + thick / 2
    error = _Z_95 * np.sqrt(variance_s[index_s]) / unit
    axes.barh(
        y, advantage_s[index_s] / unit, thick * 0.92, color=INK, label="true Q \N{MINUS SIGN} V",
        xerr=error, error_kw={"ecolor": "#999999", "capsize": 2, "elinewidth": 1.2},
    )  # fmt: skip
    if audit.bounds is not None:
        exact_s = enumerated(audit.bounds)[ADVANTAGE]
        axes.plot(
            exact_s[index_s] / unit,
            y,
            "D",
            color=_EXACT,
            markersize=7,
            mec="white",
            label="enumerated",
        )
    for number, (name, credit_s) in enumerate(credits.items()):
        spread = float(np.std(credit_s)) or 1.0
        axes.barh(
            y + thick * (number + 1), credit_s[index_s] / spread, thick * 0.92, color=PALETTE[number],
            label=name,
        )  # fmt: skip
    axes.axvline(0.0, color=MUTED, linewidth=0.8)
    dress(axes, "credit of the step, in its own standard deviations", "")
    axes.margins(x=0.04)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(_few())
    _legend_below(axes, len(index_s))


def _legend_below(axes: Axes, steps: int) -> None:
    """One line under the axes, the truth first."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: not labels[i].startswith("true"))
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order], frameon=False, fontsize=8,
        loc="upper center", bbox_to_anchor=(0.5, -0.36 / steps), ncols=len(order), columnspacing=1.0,
    )  # fmt: skip
