"""What a rollout gives: trajectories, what they cost, and how to go on from any of their steps."""

from typing import Any, NamedTuple

from steprl.types import Trajectory


class Usage(NamedTuple):
    """Tokens of a rollout, and where its time went."""

    prefilled: int = 0  # read: prompts and observations
    decoded: int = 0  # sampled
    reused: int = 0  # in the cache already when a turn began
    turns: int = 0  # calls of the language model
    seconds: float = 0.0


class BranchPoint(NamedTuple):
    """Where a trajectory is gone on with anew."""

    origin: int  # index of the trajectory
    step: int  # the first step to play
    token: int  # tokens of that step's action to keep
    sample: int  # names the random stream of what comes


class Rollouts(NamedTuple):
    """Trajectories, what they cost, and how to go on from their steps, where that was asked for."""

    trajectories: list[Trajectory]
    usage: Usage
    memory: Any = None
