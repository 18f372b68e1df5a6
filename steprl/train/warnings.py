"""Early warnings: what the last iterations say of a run that is going wrong, and what helps.

    rows of metrics.jsonl -> warnings        a pure function, `early_warnings`

Each has a column `warn/<name>` of 0 or 1 in `metrics.jsonl`, 1 while it holds, and is said in the log of
"steprl" the first time only: also in a run that was stopped and goes on.
"""

import logging
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steprl.config import Config
from steprl.metrics import read_metrics

_LOG = logging.getLogger("steprl")
_PREFIX = "warn/"

WINDOW = 20
"""Iterations that are looked at."""

_NO_SPREAD = 5  # iterations without a difference in reward
_SHORT = 3  # iterations of which a mean is taken, so that a single one says nothing
_LOW_ENTROPY = 0.01  # nats a token
_SOLVED = 0.98  # success from which on a policy may be sure of itself
_ENTROPY_FACTOR, _ENTROPY_RISE = 2.5, 0.3
_CLIPPED = 0.6
_UNTRAINED, _CRITIC_WINDOW, _EXPLAINED = 15, 10, 0.01
_MALFORMED, _MALFORMED_RISE = 0.3, 0.2
_CUT = 0.9
# Rounding of one forward pass done in two ways, the largest of a batch.
_LOGP_BOUND = {"float32": 1e-3, "bfloat16": 0.5}

Row = Mapping[str, Any]


class EarlyWarning(NamedTuple):
    """What was seen, and the settings that help."""

    name: str
    sentence: str
    remedy: str


def early_warnings(
    rows: Sequence[Row], config: Config, fixed_width: bool = False
) -> tuple[EarlyWarning, ...]:
    """What the last of some iterations warn of; nothing where there are too few to say so.

    Args:
        rows: metrics of iterations in their order, as in `metrics.jsonl`; the last `WINDOW` are enough.
        config: settings of the run.
        fixed_width: the environment is a game on the device, whose actions are as long as they may be.
    """
    played = [row for row in rows[-WINDOW:] if "actor/entropy" in row]
    found = []
    for name, check in _CHECKS.items():
        said = check(played, config, fixed_width)
        if said is not None:
            found.append(EarlyWarning(name, *said))
    return tuple(found)


class Warnings:
    """Looks at each iteration with those before it, and says each warning once.

    Args:
        file: `metrics.jsonl` of the run, with the iterations that it has behind it.
        config, fixed_width: as of `early_warnings`.
    """

    def __init__(self, file: Path, config: Config, fixed_width: bool) -> None:
        before = read_metrics(file) if file.is_file() else []
        self._config, self._fixed_width = config, fixed_width
        self._rows: deque[Row] = deque(before, WINDOW)
        self._said = {name for name in _CHECKS if any(row.get(_PREFIX + name) for row in before)}

    def check(self, iteration: int, metrics: Row) -> dict[str, float]:
        """The columns of an iteration; what is new is logged."""
        self._rows.append(metrics)
        found = early_warnings(tuple(self._rows), self._config, self._fixed_width)
        for one in found:
            if one.name not in self._said:
                self._said.add(one.name)
                _LOG.warning("iteration %d: %s. %s", iteration, one.sentence, one.remedy)
        holds = {one.name for one in found}
        return {_PREFIX + name: float(name in holds) for name in _CHECKS}


Said = tuple[str, str] | None


def _no_reward_spread(rows: Sequence[Row], config: Config, _: bool) -> Said:
    recent = rows[-_NO_SPREAD:]
    if len(recent) < _NO_SPREAD or any(_differ(row) for row in recent):
        return None
    mean = _mean(recent, "critic/rewards/mean")
    what = f"no two attempts that are compared scored differently in {_NO_SPREAD} iterations"
    what += f" (mean return {mean:.2f})"
    if _mean(recent, "rollout/success_rate") > _SOLVED:
        return f"{what}: all tasks are solved, and nothing is left to learn from them", (
            "Take harder tasks, or end the run"
        )
    malformed = _mean(recent, "env/parse_error_frac")
    if malformed > 0.5:
        what += f", and {malformed:.0%} of the actions were malformed"
    return f"{what}: there is nothing to learn from", (
        "Lengthen the warm start (sft.steps), make more attempts at a task (rollout.n), or choose easier "
        "tasks or a reward that pays for part of the way"
    )


def _differ(row: Row) -> bool:
    """Some attempts that a method compares have different rewards."""
    informative = row.get("rollout/informative_frac")
    if informative is not None:
        return bool(informative > 0)
    return _rewards_vary(row)


def _rewards_vary(row: Row) -> bool:
    return bool(row["critic/rewards/max"] > row["critic/rewards/min"])


def _entropy_low(rows: Sequence[Row], config: Config, _: bool) -> Said:
    recent = rows[-_SHORT:]
    highest = max((row["actor/entropy"] for row in recent), default=1.0)
    solved = bool(recent) and _mean(recent, "rollout/success_rate") > _SOLVED
    if len(recent) < _SHORT or solved or not highest < _LOW_ENTROPY:
        return None
    return (
        f"entropy fell to {highest:.4f} nats a token: all attempts at a task are nearly the same"
    ), (
        "Lower actor.lr, set actor.entropy_coeff or actor.use_kl_loss=true, or shorten the warm start "
        "(sft.steps)"
    )


def _entropy_rising(rows: Sequence[Row], config: Config, _: bool) -> Said:
    if len(rows) < _SHORT:
        return None
    now = min(row["actor/entropy"] for row in rows[-2:])  # twice, as one batch says little
    lowest = min(row["actor/entropy"] for row in rows[:-2])
    if not now >= max(_ENTROPY_FACTOR * lowest, lowest + _ENTROPY_RISE):
        return None
    return f"entropy rose from {lowest:.2f} to {now:.2f} nats a token: the policy comes apart", (
        "Go back to a checkpoint before the rise (trainer.keep_best keeps the best) with a lower actor.lr "
        "or with actor.use_kl_loss=true; actor.lr_schedule=linear and fewer actor.ppo_epochs hold it as well"
    )


def _clip_share(rows: Sequence[Row], config: Config, _: bool) -> Said:
    share = _mean(rows[-_SHORT:], "actor/pg_clipfrac")
    if len(rows) < _SHORT or not share > _CLIPPED:
        return None
    return (
        f"{share:.0%} of the tokens are clipped: the policy moves further in an iteration than the clip "
        "lets it learn"
    ), (
        "Lower actor.lr or actor.ppo_epochs, or raise actor.ppo_mini_batch_size; where ratios are of "
        "steps or sequences, raise actor.clip_ratio_low and actor.clip_ratio_high"
    )


def _blind_critic(rows: Sequence[Row], config: Config, _: bool) -> Said:
    name = "critic/vf_explained_var"
    # Where all returns are equal there is nothing that a critic could explain.
    judged = [row for row in rows[-_CRITIC_WINDOW:] if name in row and _returns_vary(row)]
    if len(rows) < _UNTRAINED or len(judged) < _CRITIC_WINDOW:
        return None
    explained = statistics.median(row[name] for row in judged)
    if not explained < _EXPLAINED:
        return None
    return (
        f"the critic explained {explained:.3f} of the variance of the returns in the last "
        f"{_CRITIC_WINDOW} iterations: it tells good states from bad ones no better than a constant"
    ), (
        "Raise critic.lr to several times actor.lr, set critic.grad_clip, model.value_head=separate or "
        "trainer.critic_warmup, or take a method without a critic, such as algorithm.name=grpo"
    )


def _returns_vary(row: Row) -> bool:
    equal = row.get("critic/returns/equal")
    return not equal if equal is not None else _rewards_vary(row)


def _logp_gap(rows: Sequence[Row], config: Config, _: bool) -> Said:
    bound = _LOGP_BOUND[config.model.dtype]
    if not rows or config.algorithm.rollout_is != "off":  # then the gap is corrected
        return None
    gap = rows[-1].get("agree/logp_absmax", 0.0)
    if not gap > bound:
        return None
    if config.rollout.top_k or config.rollout.top_p < 1.0:
        remedy = (
            "Sampling leaves tokens out, and training does not: set rollout.top_k=0 and rollout.top_p=1, "
            "or algorithm.rollout_is=token"
        )
    else:
        remedy = (
            "Set algorithm.rollout_is=token, which corrects for it, or model.dtype=float32; in a policy of "
            "your own, make its cache give what the whole text gives"
        )
    return (
        f"log-probs of the rollout and of training differ by up to {gap:.2g} nats, above the "
        f"{bound:g} that rounding explains in {config.model.dtype}"
    ), remedy


def _malformed(rows: Sequence[Row], config: Config, _: bool) -> Said:
    name = "env/parse_error_frac"
    share = _mean(rows[-_SHORT:], name)
    means = [_mean(rows[i : i + _SHORT], name) for i in range(len(rows) - 2 * _SHORT + 1)]
    if not means or not share >= max(_MALFORMED, min(means) + _MALFORMED_RISE):
        return None
    return f"the share of malformed actions rose from {min(means):.0%} to {share:.0%}", (
        "Go back to a checkpoint before the rise with a lower actor.lr, or lengthen the warm start "
        "(sft.steps); a penalty for a malformed action, where the environment has one, helps as well"
    )


def _truncated(rows: Sequence[Row], config: Config, fixed_width: bool) -> Said:
    recent = rows[-_SHORT:]
    if len(recent) < _SHORT:
        return None
    length = 0.0 if fixed_width else _mean(recent, "response_length/clip_ratio")
    if length > _CUT:
        return f"{length:.0%} of the actions are cut off at rollout.response_length", (
            f"Raise rollout.response_length={config.rollout.response_length}, or lengthen the warm start "
            "(sft.steps) until actions end by themselves"
        )
    full = _mean(recent, "env/context_full_frac")
    if full > _CUT:
        return f"{full:.0%} of the attempts fill their context before they end", (
            f"Raise rollout.context_length={config.rollout.context_length}, or make observations shorter"
        )
    steps = _mean(recent, "env/truncated_frac")
    if steps > _CUT and not any(row["rollout/success_rate"] for row in recent):
        return f"{steps:.0%} of the attempts run out of steps, and none succeeds", (
            "Allow more steps (max_steps or spare_steps of the environment), or lengthen the warm start "
            "(sft.steps)"
        )
    return None


_CHECKS: dict[str, Callable[[Sequence[Row], Config, bool], Said]] = {
    "no_reward_spread": _no_reward_spread,
    "entropy_low": _entropy_low,
    "entropy_rising": _entropy_rising,
    "clip_share": _clip_share,
    "blind_critic": _blind_critic,
    "logp_gap": _logp_gap,
    "malformed": _malformed,
    "truncated": _truncated,
}

NAMES = tuple(_CHECKS)
"""Of all warnings; the columns have `warn/` before them."""


def _mean(rows: Sequence[Row], name: str) -> float:
    """Over the rows that have it; 0 where none has."""
    values = [float(row[name]) for row in rows if name in row]
    return sum(values) / len(values) if values else 0.0
