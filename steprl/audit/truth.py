"""What the steps of played trajectories were truly worth: continuations from every one of them.

States fork, so the value of a state is the mean return of continuations from it, and the value of the
action that was taken there is its reward and the value of the state behind it:

    V(s_k) = E[G | s_k],   Q(s_k, a_k) = r_k + gamma V(s_{k+1}),   A_k = Q(s_k, a_k) - V(s_k)

V and Q of a step come from different continuations, and none of these is the trajectory itself. The
end of a trajectory is worth nothing more, whatever ended it. A continuation in which the environment
failed says nothing: the mean of the others stands for it. What an environment has drawn before the
step (which searches are going to fail, say) is part of its state and stays as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from steprl.rollout.rollouts import BranchPoint, Rollouts, Usage
from steprl.rollout.text_player import Player
from steprl.types import Params, Trajectory

_AT_A_TIME = 4  # points that are branched from in one call, for each trajectory: bounds the memory


class Truth(NamedTuple):
    """Continuations from each step of some trajectories; steps in order, one trajectory's together."""

    row_s: np.ndarray  # int, trajectory of the step
    reward_s: np.ndarray
    last_s: np.ndarray  # bool, nothing follows the step
    return_sm: np.ndarray  # discounted return of each continuation from the state before the step
    gamma: float

    def value(self, part: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """[S] V and the variance of its error, by some of the continuations."""
        chosen = self.return_sm[:, part]
        return chosen.mean(axis=1), chosen.var(axis=1, ddof=1) / chosen.shape[1]

    def action_value(self, part: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """[S] Q and the variance of its error; the reward of a last step is exact."""
        value_s, variance_s = self.value(part)
        follows_s = np.where(self.last_s, 0.0, self.gamma)
        next_s, error_s = np.roll(value_s, -1), np.roll(variance_s, -1)
        return self.reward_s + follows_s * next_s, follows_s**2 * error_s

    def advantage(self, part: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """[S] Q - V and the variance of its error."""
        value_s, of_value_s = self.value(part)
        action_s, of_action_s = self.action_value(part)
        return action_s - value_s, of_action_s + of_value_s

    def stake(self, part: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """[S] (Q - V)^2 without bias, and zeros.

        Over the actions that could have been taken its mean is the variance of Q: how much the
        choice of an action decides. The square of an estimate is too large by the variance of its
        error, which is subtracted; so it may be negative.
        """
        advantage_s, variance_s = self.advantage(part)
        return advantage_s**2 - variance_s, np.zeros_like(variance_s)


def columns_of(trajectories: Sequence[Trajectory]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trajectory, number within it, and reward of each step."""
    row_s = np.array([row for row, one in enumerate(trajectories) for _ in one.steps], np.int64)
    number_s = np.array([k for one in trajectories for k in range(len(one.steps))], np.int64)
    reward_s = np.array([step.reward for one in trajectories for step in one.steps], np.float64)
    return row_s, number_s, reward_s


def continue_all(
    player: Player,
    params: Params,
    key: jax.Array,
    rollouts: Rollouts,
    rows: int,
    continuations: int,
    first_sample: int,
    gamma: float,
    watch: Callable[[float], None] = lambda share: None,
    **how: Any,
) -> tuple[Truth, Usage]:
    """Continues from the state before every step of the first `rows` trajectories.

    Args:
        rollouts: of `player.explore`, with their memory.
        continuations: M, from each state, at least 2.
        first_sample: the random streams are named by numbers from here on, each used once.
        gamma: discount a step.
        watch: called with the share that is done.
        how: sampling, split.

    Returns:
        The truth, and what the continuations cost.
    """
    assert player.branch is not None
    played = rollouts.trajectories[:rows]
    row_s, number_s, reward_s = columns_of(played)
    last_s = np.append(row_s[1:] != row_s[:-1], True) if len(row_s) else np.zeros(0, bool)
    points = [
        BranchPoint(int(row), int(number), 0, first_sample + index * continuations + m)
        for index, (row, number) in enumerate(zip(row_s, number_s, strict=True))
        for m in range(continuations)
    ]
    returns: list[float] = []
    usage = Usage()
    at_a_time = _AT_A_TIME * len(rollouts.trajectories)
    for first in range(0, len(points), at_a_time):
        part = points[first : first + at_a_time]
        continued = player.branch(params, key, rollouts, part, **how)
        returns += [
            np.nan if trajectory.fault else discounted_return(trajectory, point.step, gamma)
            for point, trajectory in zip(part, continued.trajectories, strict=True)
        ]
        usage = jax.tree.map(lambda a, b: a + b, usage, continued.usage)
        watch(len(returns) / len(points))
    return_sm = _filled(np.array(returns).reshape(len(row_s), continuations))
    return Truth(row_s, reward_s, last_s, return_sm, gamma), usage


def _filled(return_sm: np.ndarray) -> np.ndarray:
    """The mean of a state's continuations where one failed; 0 where all did."""
    known_sm = ~np.isnan(return_sm)
    total_s = np.where(known_sm, return_sm, 0.0).sum(axis=1)
    mean_s = total_s / np.maximum(known_sm.sum(axis=1), 1)
    return np.where(known_sm, return_sm, mean_s[:, None])


def discounted_return(trajectory: Trajectory, step: int, gamma: float) -> float:
    """Of the steps from `step` on, as seen from there."""
    return float(sum(gamma**k * one.reward for k, one in enumerate(trajectory.steps[step:])))


def join(truths: Sequence[Truth], rows: int) -> Truth:
    """One after the other, of `rows` trajectories each."""
    row_s = np.concatenate([one.row_s + rows * number for number, one in enumerate(truths)])
    reward_s, last_s, return_sm = (
        np.concatenate([getattr(one, name) for one in truths])
        for name in ("reward_s", "last_s", "return_sm")
    )
    return Truth(row_s, reward_s, last_s, return_sm, truths[0].gamma)
