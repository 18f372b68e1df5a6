"""Branches of episodes that live on the device: caches and states are gathered, nothing is replayed."""

from typing import Any

import jax
import jax.numpy as jnp

from steprl.branching import Points
from steprl.rollout.device import (
    DeviceEnv,
    DeviceMemory,
    DeviceStep,
    answer,
    batch_of_steps,
    first_told,
    next_chunk,
)
from steprl.rollout.rollouts import Usage
from steprl.sampling import Sampling, generate, trajectory_key
from steprl.types import Params, Policy, StepBatch


def branch(
    policy: Policy,
    env: DeviceEnv,
    params: Params,
    key: jax.Array,
    memory: DeviceMemory,
    points: Points,
    sampling: Sampling = Sampling(),
) -> DeviceStep:
    """Continues from each point; runs under `jit`.

    Returns:
        All steps of each branch, [S, K, ...]: those that it shares with its origin, then its own.
        Rows without a branch are empty.
    """
    new = _continued(policy, env, policy.prepare(params), key, memory, points, sampling)
    old = memory.steps
    place_SK = jnp.arange(env.max_steps, dtype=jnp.int32)[:, None] - points.step_K[None]

    def joined(old: jax.Array, continued: jax.Array) -> jax.Array:
        ones = [1] * (old.ndim - 2)
        place = place_SK.reshape(*place_SK.shape, *ones)
        moved = jnp.take_along_axis(continued, jnp.maximum(place, 0), axis=0)
        there = points.there_K.reshape(1, -1, *ones)
        all_steps = jnp.where(place >= 0, moved, old[:, points.origin_K])
        return jnp.where(there, all_steps, 0).astype(old.dtype)

    # Tokens that were taken over keep what they were sampled with.
    taken_SKA = (place_SK == 0)[:, :, None] & (_taken(env, points) & points.there_K[:, None])[None]

    def kept(sampled: jax.Array, old: jax.Array) -> jax.Array:
        mask = taken_SKA.reshape(*taken_SKA.shape, *[1] * (sampled.ndim - 3))
        return jnp.where(mask, old[:, points.origin_K], sampled)

    steps = jax.tree.map(joined, old, new)
    support = None if old.support is None else kept(steps.support, old.support)
    return steps._replace(
        logprob=kept(steps.logprob, old.logprob),
        entropy=kept(steps.entropy, old.entropy),
        support=support,
    )


def branch_rows(
    env: DeviceEnv, memory: DeviceMemory, steps: DeviceStep, points: Points
) -> StepBatch:
    """The batch of what `branch` returns."""
    prompt_KP = memory.batch.tokens_NT[points.origin_K, : env.prompt_width]
    task_K = memory.batch.task_N[points.origin_K]
    told_KW = first_told(memory.batch, memory.steps)
    told_KW = None if told_KW is None else told_KW[points.origin_K]
    return batch_of_steps(env, prompt_KP, steps, task_K, jnp.asarray(points.sample_K), told_KW)


def usage_of(env: DeviceEnv, batch: StepBatch, points: Points | None = None) -> Usage:
    """The tokens that rollouts on the device read, sampled, and found in the cache.

    Args:
        batch: all rollouts, or the rows of branches.
        points: where these continued.
    """
    rows, steps = batch.mask_NS.shape
    real_NT = batch.segment_ids_NT > 0
    blocks = real_NT[:, env.prompt_width :].reshape(rows, steps, -1)
    action_NS = jnp.sum(blocks[:, :, : env.action_width], axis=2, dtype=jnp.int32)
    answer_NS = jnp.sum(blocks[:, :, env.action_width :], axis=2, dtype=jnp.int32)
    prompt_N1 = jnp.sum(real_NT[:, : env.prompt_width], axis=1, keepdims=True, dtype=jnp.int32)
    seen_NS = jnp.concatenate([prompt_N1, answer_NS[:, :-1]], axis=1)
    length_NS = jnp.cumsum(seen_NS + action_NS, axis=1) - action_NS  # before the action
    index_1S = jnp.arange(steps)[None]
    read_NS = seen_NS + (index_1S > 0)  # with the last token of the action before
    again_NS = jnp.zeros_like(read_NS)  # tokens of the action that are in the cache already
    played_NS = batch.mask_NS
    if points is not None:
        first_NS = index_1S == points.step_K[:, None]
        read_NS = jnp.where(first_NS, 1, read_NS)
        again_NS = jnp.where(first_NS, points.token_K[:, None], 0)
        played_NS &= index_1S >= points.step_K[:, None]
    total = lambda x_NS: jnp.sum(jnp.where(played_NS, x_NS, 0), dtype=jnp.int32)  # noqa: E731
    return Usage(
        total(read_NS),
        total(action_NS - again_NS),
        total(length_NS + again_NS - read_NS),
        jnp.max(jnp.sum(batch.mask_NS, axis=1, dtype=jnp.int32), initial=0),
    )


def _taken(env: DeviceEnv, points: Points) -> jax.Array:
    """[K, A] bool: the tokens of the first action that are taken over."""
    return jnp.arange(env.action_width)[None] < jnp.asarray(points.token_K)[:, None]


def _continued(
    policy: Policy, env: DeviceEnv, params: Params, key: jax.Array, memory: DeviceMemory,
    points: Points, sampling: Sampling,
) -> DeviceStep:  # fmt: skip
    """What happened, [S, K, ...], the first step of each branch first; log-probs and entropies of
    tokens that were taken over are 0."""
    batch, origin_K, token_K = memory.batch, points.origin_K, jnp.asarray(points.token_K)
    first_K = jnp.clip(points.step_K, 0, env.max_steps - 1)
    cache = jax.tree.map(lambda x: x[origin_K], memory.cache)
    state = jax.tree.map(lambda x: x[first_K, origin_K], memory.states)
    keys_K = jax.vmap(trajectory_key, in_axes=(None, 0, 0))(
        key, batch.task_N[origin_K], points.sample_K
    )
    taken_KA = _taken(env, points)
    begun_KA = jnp.where(taken_KA, memory.steps.action[first_K, origin_K], 0)
    index_A = jnp.arange(env.action_width)[None]

    # The last token before the first that is sampled, wherever in the row it is.
    tokens_KT = batch.tokens_NT[origin_K]
    block = env.action_width + env.observation_width
    end_K = env.prompt_width + first_K * block + token_K
    index_1T = jnp.arange(tokens_KT.shape[1])[None]
    before_KT = (index_1T < end_K[:, None]) & (batch.segment_ids_NT[origin_K] > 0)
    last_K = jnp.max(jnp.where(before_KT, index_1T, 0), axis=1)
    pick = lambda x_KT: jnp.take_along_axis(x_KT, last_K[:, None], axis=1)  # noqa: E731

    def play(carry: Any, turn: jax.Array) -> Any:
        state, cache, chunk_KC, chunk_length_K, place_K, alive_K = carry
        number_K = first_K + turn
        taken_K = jnp.where(turn == 0, token_K, 0)
        out = generate(
            policy, params, cache, chunk_KC, chunk_length_K, place_K,
            jax.vmap(jax.random.fold_in)(keys_K, number_K), alive_K,
            max_tokens=env.action_width, stop_ids=env.stop_ids, sampling=sampling,
            taken_B=taken_K,
        )  # fmt: skip
        new_KA = index_A >= taken_K[:, None]

        def behind(x: jax.Array) -> jax.Array:
            """What was sampled, behind what was taken over."""
            shape = (*index_A.shape, *[1] * (x.ndim - 2))
            places = jnp.maximum(index_A - taken_K[:, None], 0).reshape(x.shape[0], *shape[1:])
            moved = jnp.take_along_axis(x, places, axis=1)
            return jnp.where(new_KA.reshape(*new_KA.shape, *[1] * (x.ndim - 2)), moved, 0)

        support = None if out.support_BAW is None else behind(out.support_BAW)
        action = jnp.where(new_KA, behind(out.tokens_BA), begun_KA)
        mask = behind(out.mask_BA) | (~new_KA & alive_K[:, None])
        sampled = (
            action * mask, mask, behind(out.logprob_BA), behind(out.entropy_BA), out.stop_reason_B,
            support,
        )  # fmt: skip
        new_state, happened, over_K = answer(env, state, sampled, alive_K)
        size_K = jnp.sum(mask, axis=1)
        place_K = place_K + chunk_length_K + size_K - taken_K - 1
        cache, chunk_KC, chunk_length_K = next_chunk(
            out.cache, happened.action, size_K, happened.observation
        )
        alive_K = alive_K & ~over_K & (number_K + 1 < env.max_steps)
        return (new_state, cache, chunk_KC, chunk_length_K, place_K, alive_K), happened

    chunk_KC = jnp.pad(pick(tokens_KT), ((0, 0), (0, env.observation_width)))
    carry = (
        state, cache, chunk_KC, jnp.ones_like(first_K), pick(batch.positions_NT[origin_K])[:, 0],
        jnp.asarray(points.there_K),
    )  # fmt: skip
    shapes = jax.eval_shape(play, carry, jnp.zeros((), jnp.int32))[1]
    nothing = jax.tree.map(lambda x: jnp.zeros((env.max_steps, *x.shape), x.dtype), shapes)

    # Branches are mostly short: play on while there is one that is not over.
    def goes_on(loop: Any) -> jax.Array:
        turn, carry, _ = loop
        return (turn < env.max_steps) & jnp.any(carry[-1])

    def further(loop: Any) -> Any:
        turn, carry, steps = loop
        carry, happened = play(carry, turn)
        steps = jax.tree.map(lambda all_S, x: all_S.at[turn].set(x), steps, happened)
        return turn + 1, carry, steps

    return jax.lax.while_loop(goes_on, further, (jnp.zeros((), jnp.int32), carry, nothing))[2]
