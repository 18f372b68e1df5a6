"""Signal and noise of policy gradients, group by group, at a policy that stays as it is.

One group of attempts at a task is one independent sample of a gradient: attempts are played, each step
gets its credit, and the gradient of the sum over steps of credit times log-probability is taken.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from steprl.algorithms import ALGORITHMS
from steprl.branching import Points
from steprl.config import Config
from steprl.envs.device_env import DeviceEnv
from steprl.models.scoring import score
from steprl.optimizer import CRITIC_PARTS
from steprl.rollout.device import DeviceMemory, remembered_rollout
from steprl.rollout.device_branches import branch
from steprl.types import Params, Policy

CREDITS = ("trajectory", "critic", "true, first half", "true, second half")
"""GRPO's; StepPO's with the critic that is there; the true advantage of each step, by continuations that
are no part of the trajectory, of which either half is independent of the other."""


def group_gradients(
    policy: Policy,
    env: DeviceEnv,
    params: Params,
    key: jax.Array,
    task: jax.Array,
    config: Config,
    continuations: int,
) -> jax.Array:
    """[credits, parameters of the policy] gradient of each credit, from the attempts at one task.

    Args:
        config: its `rollout.n` and what credit depends on.
        continuations: from each state in each half.
    """
    attempts = config.rollout.n
    sample_N = jnp.arange(attempts, dtype=jnp.int32)
    task_N = jnp.full_like(sample_N, task)
    batch, memory = remembered_rollout(policy, env, params, key, task_N, sample_N)
    network = {name: part for name, part in params.items() if name not in CRITIC_PARTS}

    def logprobs(network: Params) -> jax.Array:
        return score(policy, params | network, batch).logprob_NT

    value_NT = score(policy, params, batch).value_NT
    true_NSH = _true_advantages(policy, env, params, key, memory, continuations)
    step_NT = jnp.maximum(batch.step_ids_NT, 0)
    active_NT = batch.step_ids_NT >= 0

    def of_tokens(x_NS: jax.Array) -> jax.Array:
        return jnp.where(active_NT, jnp.take_along_axis(x_NS, step_NT, axis=1), 0.0)

    advantages = [
        ALGORITHMS["grpo"].credit(batch, value_NT, config.algorithm).advantage_NT,
        ALGORITHMS["steppo"].credit(batch, value_NT, config.algorithm).advantage_NT,
        *(of_tokens(true_NSH[..., half]) for half in range(2)),
    ]
    _, pull_back = jax.vjp(logprobs, network)
    found = [
        ravel_pytree(pull_back(jnp.where(active_NT, advantage_NT, 0.0))[0])[0]
        for advantage_NT in advantages
    ]
    return jnp.stack(found) / attempts


def _true_advantages(
    policy: Policy, env: DeviceEnv, params: Params, key: jax.Array, memory: DeviceMemory, many: int
) -> jax.Array:
    """[N, S, 2] reward and value of the state behind a step less that before it, by each half."""
    mask_NS, reward_NS = memory.batch.mask_NS, memory.batch.reward_NS
    rows, steps = mask_NS.shape
    origin_K = jnp.tile(jnp.arange(rows, dtype=jnp.int32), 2 * many)
    index_K = jnp.arange(2 * many * rows, dtype=jnp.int32)
    zero_K = jnp.zeros_like(origin_K)

    def value_before(_: None, step: jax.Array) -> tuple[None, jax.Array]:
        there_K = mask_NS[origin_K, step]
        sample_K = rows + step * len(index_K) + index_K  # a random stream of its own each
        points = Points(
            there_K, origin_K, jnp.full_like(origin_K, step), zero_K, sample_K,
            jnp.zeros(zero_K.shape, jnp.float32),
        )  # fmt: skip
        played = branch(policy, env, params, key, memory, points)
        later = jnp.arange(steps)[:, None] >= step
        return_K = jnp.sum(jnp.where(later, played.reward, 0.0), axis=0)
        return None, jnp.mean(return_K.reshape(2, many, rows), axis=1)

    _, value_SHN = jax.lax.scan(value_before, None, jnp.arange(steps, dtype=jnp.int32))
    value_NSH = jnp.transpose(value_SHN, (2, 0, 1))
    next_NSH = jnp.pad(value_NSH[:, 1:], ((0, 0), (0, 1), (0, 0)))
    follows_NS = jnp.pad(mask_NS[:, 1:], ((0, 0), (0, 1)))
    behind_NSH = jnp.where(follows_NS[..., None], next_NSH, 0.0)
    return jnp.where(mask_NS[..., None], reward_NS[..., None] + behind_NSH - value_NSH, 0.0)


def products(gradients_gcp: np.ndarray) -> dict[str, np.ndarray]:
    """Credit -> [groups, groups] products of gradients; of the true credit, of one half with the other.

    So the noise of the continuations, which differ between halves, is in none of them on average.
    """
    trajectory, critic, first, second = (
        np.asarray(gradients_gcp[:, credit], np.float64) for credit in range(len(CREDITS))
    )
    across = first @ second.T
    return {
        "trajectory": trajectory @ trajectory.T,
        "critic": critic @ critic.T,
        "true": (across + across.T) / 2,
    }


def signal_to_noise(product_gg: np.ndarray, weight_g: np.ndarray | None = None) -> float:
    """|E g|^2 / E |g - E g|^2 of one group's gradient g, without bias by the number of groups.

        |E g|^2 = sum_{i != j} w_i w_j g_i . g_j / (1 - sum_i w_i^2),   E |g|^2 = sum_i w_i g_i . g_i

    A batch of G groups has G times this.

    Args:
        product_gg: g_i . g_j.
        weight_g: how often each group counts, for a bootstrap: a group is never paired with itself.
    """
    count = len(product_gg)
    w = np.full(count, 1 / count) if weight_g is None else weight_g / weight_g.sum()
    own = np.diagonal(product_gg)
    signal = (w @ product_gg @ w - (w**2) @ own) / (1 - w @ w)
    return float(signal / (w @ own - signal))


def ratios(
    found: Mapping[str, np.ndarray], samples: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Of each step credit: signal over noise in amplitude, over that of trajectory credit.

    Returns:
        Name -> [1 + samples]: the estimate, and those of the bootstrap over groups; NaN where no
        signal was found.
    """
    count = len(found["trajectory"])
    draws: list[Any] = [np.ones(count)]
    draws += list(rng.multinomial(count, np.full(count, 1 / count), size=samples))
    table = {
        name: np.array([signal_to_noise(product, draw) for draw in draws])
        for name, product in found.items()
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: np.sqrt(
                table[name] / np.where(table["trajectory"] > 0, table["trajectory"], np.nan)
            )
            for name in found
            if name != "trajectory"
        }


def exponent(density_c: np.ndarray, ratio_cb: np.ndarray, horizon_c: np.ndarray) -> np.ndarray:
    """[B] slope of log ratio over log density by least squares, with a level of each horizon."""
    x = np.log(np.asarray(density_c, np.float64))
    y = np.log(ratio_cb)
    for horizon in np.unique(horizon_c):
        of = horizon_c == horizon
        x = np.where(of, x - x[of].mean(), x)
        y = np.where(of[:, None], y - y[of].mean(axis=0), y)
    return np.asarray(x @ y / (x @ x))
