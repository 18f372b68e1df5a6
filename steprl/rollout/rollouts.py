"""What a rollout gives: trajectories, what they cost, and how to continue from any of their steps."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from steprl.types import StepBatch, Trajectory


class Usage(NamedTuple):
    """Tokens of a rollout, and where its time went; inside a program, scalars of the device."""

    prefilled: Any = 0  # read: prompts and observations
    decoded: Any = 0  # sampled
    reused: Any = 0  # in the cache already when a turn began
    turns: Any = 0  # calls of the language model
    seconds: Any = 0.0


class BranchPoint(NamedTuple):
    """Where a trajectory is continued anew."""

    origin: int  # index of the trajectory
    step: int  # the first step to play
    token: int  # tokens of that step's action to keep
    sample: int  # names the random stream of what follows


class Rollouts(NamedTuple):
    """Trajectories, what they cost, and what continuing from their steps needs, if it was kept."""

    trajectories: list[Trajectory]
    usage: Usage
    memory: Any = None


class Experience(NamedTuple):
    """What one iteration learns from: a batch, what it cost by the names of metrics, and its records."""

    batch: StepBatch
    report: dict[str, Any]
    trajectories: Callable[[], Iterable[Trajectory]]  # made when called, and one by one
    faults: tuple[str, ...] = ()  # of the environment, as they are described


def add_usage(one: Usage, other: Usage) -> Usage:
    """The sum of both."""
    return Usage(*(a + b for a, b in zip(one, other, strict=True)))


def token_report(usage: Usage, first: Usage | None = None) -> dict[str, float]:
    """Tokens of a rollout by the names of metrics: read, sampled, and found in the cache.

    Args:
        usage: of all.
        first: of what began anew, where the others are branches.
    """
    report = {
        "token/prefilled": float(usage.prefilled),
        "token/decoded": float(usage.decoded),
        "token/reused": float(usage.reused),
    }
    if first is not None:
        decoded = float(usage.decoded)
        report["branch/decoded_frac"] = (decoded - float(first.decoded)) / max(decoded, 1.0)
        report["branch/prefill_tokens_saved"] = float(usage.reused) - float(first.reused)
    return report
