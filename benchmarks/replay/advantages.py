"""StepPO and Agent-R1: step and token advantages, returns, reward scaling, critic mask."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from replay.cases import (
    Case,
    Deviations,
    Results,
    cells_of,
    grid,
    masked_zeroed,
    no_spread,
    step_ids,
    sum_rows,
    whiten,
)

from steprl import ops

step_gae = jax.jit(jax.vmap(ops.step_gae, in_axes=(0, 0, 0, None)))
step_returns = jax.jit(jax.vmap(ops.discounted_returns))
token_gae = jax.jit(ops.token_gae)


def replay_step_gae(case: Case) -> tuple[Results, Deviations]:
    mask = case["mask"] != 0
    reward_n = sum_rows(case["rewards"], mask)
    value_n = case["values"][:, 0]
    cells = cells_of(case)
    reward, value = grid(reward_n, cells), grid(value_n, cells)
    discount = np.full_like(reward, case["gamma"])
    advantage_n = np.asarray(step_gae(reward, discount, value, case["lam"]))[cells]
    whitened_n = whiten(advantage_n, np.ones(len(mask), bool), epsilon_at="std")
    got = {
        "advantages": np.where(mask, np.asarray(whitened_n)[:, None], 0),
        "returns": np.where(mask, np.asarray(advantage_n + value_n)[:, None], 0),
    }
    return got, no_spread(advantage_n, np.zeros(mask.shape))


def replay_token_gae(case: Case) -> tuple[Results, Deviations]:
    mask = case["mask"] != 0
    width = mask.shape[1]
    # One packed row: trajectories one after the other, their rows in the order of their steps.
    trajectory_n = np.unique(case["trajectory_ids"], return_inverse=True)[1]
    order = np.lexsort((case["step_ids"], trajectory_n))
    step_ids = np.where(mask, np.arange(len(mask))[:, None], -1)[order].reshape(-1)
    discount = np.full(step_ids.shape, case["gamma"], case["values"].dtype)
    owner = np.repeat(trajectory_n[order], width)
    for trajectory in range(trajectory_n.max() + 1):
        last = np.flatnonzero((owner == trajectory) & (step_ids >= 0))[-1:]
        discount[last] = 0
    advantage = np.empty_like(case["values"])
    reward, value = (case[name][order].reshape(-1) for name in ("rewards", "values"))
    packed = token_gae(reward, discount, value, case["lam"], step_ids)
    advantage[order] = np.asarray(packed).reshape(mask.shape)
    got = {
        "advantages": whiten(advantage, mask),
        "returns": np.where(mask, advantage + case["values"], 0),
    }
    deviations = no_spread(advantage[mask], np.zeros(mask.shape))
    if "out_advantages" in case and not deviations:
        deviations["advantages"] = ("masked", masked_zeroed(case, "advantages", got))
    if "out_error" in case:
        reason = "one" if mask.any() else "empty"
        deviations = {"advantages": (reason, np.zeros(mask.shape)), "error": (reason, None)}
    return got, deviations


def replay_step_returns(case: Case) -> tuple[Results, Deviations]:
    cells = cells_of(case)
    reward = grid(sum_rows(case["rewards"], case["mask"] != 0), cells)
    returns = step_returns(reward, np.full_like(reward, case["gamma"]))
    return {"step_returns": np.asarray(returns)[cells]}, {}


def replay_critic_mask(case: Case) -> tuple[Results, Deviations]:
    ids = step_ids(case["mask"])
    if case["key"] == "token_gae":
        return {"mask": ids >= 0}, {}
    # A row is a step, tool tokens included, and the critic is read where the step begins.
    return {"mask": jax.vmap(ops.step_starts)(jnp.zeros_like(ids))}, {}


def replay_reward_scaling(case: Case) -> tuple[Results, Deviations]:
    moments = ops.RunningMoments() if case["call"] == 0 else _scaling[case["gamma"]]
    valid_n = ~case["is_pad"]
    reward_n = np.asarray(sum_rows(case["rewards"], case["mask"]), np.float64)
    cells = cells_of(case)
    reward = grid(np.where(valid_n, reward_n, 0), cells)
    # The recurrence runs backwards: a forward sum is that of the reversed steps.
    forward = ops.reverse_recurrence(reward.T[::-1], case["gamma"])[::-1].T
    sum_n = forward[cells]
    moments = ops.update_running_moments(moments, sum_n, valid_n)
    _scaling[case["gamma"]] = moments
    scale = 1 / np.sqrt(moments.variance + 1e-8)
    rewards = np.where(valid_n[:, None], case["rewards"] * scale, case["rewards"])
    got = {"rewards": rewards, "scale": scale, "mean": moments.mean}
    return got | {"var": moments.variance, "count": moments.number}, {}


_scaling: dict[float, ops.RunningMoments] = {}  # the reference's scaler lives from call to call


REASONS: dict[str, str] = {}
FAMILIES: dict[str, Callable[[Case], tuple[Results, Deviations]]] = {
    "step_gae": replay_step_gae,
    "token_gae": replay_token_gae,
    "agentr1_step_gae": replay_step_gae,
    "agentr1_token_gae": replay_token_gae,
    "step_returns": replay_step_returns,
    "critic_mask": replay_critic_mask,
    "reward_scaling": replay_reward_scaling,
}
