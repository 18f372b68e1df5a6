"""Branches of episodes that live on the device: caches and states are gathered, nothing is replayed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steprl.models.tokenizer import detokenize
from steprl.rollout.device import DeviceEnv, DeviceMemory, Turn, answer, next_chunk
from steprl.rollout.rollouts import BranchPoint, Usage
from steprl.sampling import Sampling, generate, trajectory_key
from steprl.types import STOP_REASONS, Params, Policy, Step, Trajectory


class Starts(NamedTuple):
    """Where branches begin, a row each; rows that are none have `there_K` False."""

    there_K: Any  # bool
    origin_K: Any  # int32, row of the memory
    step_K: Any  # int32, the first step that is played
    task_K: Any
    sample_K: Any
    last_K: Any  # int32, the token before the first that is sampled
    place_K: Any  # int32, its position
    begun_KA: Any  # int32, tokens of the action that are taken over, 0 behind them
    taken_K: Any  # int32, how many


def starts(
    trajectories: Sequence[Trajectory], points: Sequence[BranchPoint], rows: int, action_width: int
) -> Starts:
    """The arrays of some branch points, filled up to `rows`.

    Raises:
        ValueError: a point lies outside its trajectory.
    """
    shapes = {"there_K": (rows,), "begun_KA": (rows, action_width)}
    arrays = {name: np.zeros(shapes.get(name, rows), np.int32) for name in Starts._fields}
    made = Starts(**arrays | {"there_K": np.zeros(rows, bool)})
    for row, point in enumerate(points):
        one = trajectories[point.origin]
        if not 0 <= point.step < len(one.steps):
            raise ValueError(
                f"step={point.step}: the trajectory has steps 0 to {len(one.steps) - 1} to branch from"
            )
        action = one.steps[point.step].action_ids
        if not 0 <= point.token < len(action):
            raise ValueError(
                f"token={point.token}: at least one of the {len(action)} tokens of step {point.step} "
                "must be sampled anew"
            )
        before = [len(s.observation_ids) + len(s.action_ids) for s in one.steps[: point.step]]
        seen = one.steps[point.step].observation_ids
        made.there_K[row] = True
        made.origin_K[row], made.step_K[row] = point.origin, point.step
        made.task_K[row], made.sample_K[row] = one.task, point.sample
        made.last_K[row] = action[point.token - 1] if point.token else seen[-1]
        made.place_K[row] = sum(before) + len(seen) + point.token - 1
        made.begun_KA[row, : point.token] = action[: point.token]
        made.taken_K[row] = point.token
    return made


def branch(
    policy: Policy,
    env: DeviceEnv,
    params: Params,
    key: jax.Array,
    memory: DeviceMemory,
    begin: Starts,
    sampling: Sampling = Sampling(),
) -> Turn:
    """Plays on from each start; runs under `jit`.

    Returns:
        What happened, [S, K, ...], the first step of each branch first; log-probs and entropies of
        tokens that were taken over are 0.
    """
    params = policy.prepare(params)
    cache = jax.tree.map(lambda x: x[begin.origin_K], memory.cache)
    state = jax.tree.map(lambda x: x[begin.step_K, begin.origin_K], memory.states)
    keys_K = jax.vmap(trajectory_key, in_axes=(None, 0, 0))(key, begin.task_K, begin.sample_K)
    index_A = jnp.arange(env.action_width)[None]

    def play(carry: Any, turn: jax.Array) -> Any:
        state, cache, chunk_KC, chunk_length_K, place_K, alive_K = carry
        number_K = jnp.asarray(begin.step_K) + turn
        taken_K = jnp.where(turn == 0, begin.taken_K, 0)
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
        action = jnp.where(new_KA, behind(out.tokens_BA), begin.begun_KA)
        mask = behind(out.mask_BA) | (~new_KA & alive_K[:, None])
        found = (
            action * mask, mask, behind(out.logprob_BA), behind(out.entropy_BA), out.stop_reason_B,
            support,
        )  # fmt: skip
        new_state, happened, over_K = answer(env, state, found, alive_K)
        size_K = jnp.sum(mask, axis=1)
        place_K = place_K + chunk_length_K + size_K - taken_K - 1
        cache, chunk_KC, chunk_length_K = next_chunk(
            out.cache, happened.action, size_K, happened.observation
        )
        alive_K = alive_K & ~over_K & (number_K + 1 < env.max_steps)
        return (new_state, cache, chunk_KC, chunk_length_K, place_K, alive_K), happened

    chunk_KC = jnp.pad(jnp.asarray(begin.last_K)[:, None], ((0, 0), (0, env.observation_width)))
    carry = (
        state, cache, chunk_KC, jnp.ones_like(begin.last_K), jnp.asarray(begin.place_K),
        jnp.asarray(begin.there_K),
    )  # fmt: skip
    shapes = jax.eval_shape(play, carry, jnp.zeros((), jnp.int32))[1]
    nothing = jax.tree.map(lambda x: jnp.zeros((env.max_steps, *x.shape), x.dtype), shapes)

    # Branches are mostly short: play on while there is one that is not over.
    def goes_on(loop: Any) -> jax.Array:
        turn, carry, _ = loop
        return (turn < env.max_steps) & jnp.any(carry[-1])

    def further(loop: Any) -> Any:
        turn, carry, turns = loop
        carry, happened = play(carry, turn)
        return (
            turn + 1,
            carry,
            jax.tree.map(lambda all_S, x: all_S.at[turn].set(x), turns, happened),
        )

    return jax.lax.while_loop(goes_on, further, (jnp.zeros((), jnp.int32), carry, nothing))[2]


def records(
    trajectories: Sequence[Trajectory], points: Sequence[BranchPoint], turns: Turn, tokenizer: Any
) -> list[Trajectory]:
    """The branches as trajectories, which begin with the steps that they share.

    Args:
        trajectories: those that the points refer to.
        turns: from `branch`, on the host.
    """
    found = []
    for row, point in enumerate(points):
        origin = trajectories[point.origin]
        old = origin.steps[point.step]
        steps = list(origin.steps[: point.step])
        success = False
        seen: Any = old.observation_ids
        text = old.observation
        for turn in np.flatnonzero(turns.alive[:, row]):
            size = int(turns.action_mask[turn, row].sum())
            taken = point.token if turn == 0 else 0
            own = lambda x, turn=turn, size=size: np.array(x[turn, row, :size])  # noqa: B023, E731
            logprobs, entropies = own(turns.logprob), own(turns.entropy)
            supports = None if turns.support is None else own(turns.support)
            logprobs[:taken], entropies[:taken] = old.logprobs[:taken], old.entropies[:taken]
            if supports is not None and old.supports is not None:
                supports[:taken] = old.supports[:taken]
            ids = own(turns.action)
            success |= bool(turns.success[turn, row])
            steps.append(
                Step(
                    observation=text,
                    action=detokenize(tokenizer, ids),
                    observation_ids=seen,
                    action_ids=ids,
                    logprobs=logprobs,
                    entropies=entropies,
                    reward=float(turns.reward[turn, row]),
                    terminated=bool(turns.terminated[turn, row]),
                    truncated=bool(turns.truncated[turn, row]),
                    stop_reason=STOP_REASONS[int(turns.stop[turn, row])],
                    valid=bool(turns.valid[turn, row]),
                    supports=supports,
                )
            )
            seen = turns.observation[turn, row][turns.observation_mask[turn, row]]
            text = detokenize(tokenizer, seen)
        found.append(
            Trajectory(
                origin.task, point.sample, tuple(steps), success, (point.origin, point.step), seen
            )
        )
    return found


def usage_of(trajectories: Sequence[Trajectory], points: Sequence[BranchPoint] = ()) -> Usage:
    """The tokens that rollouts on the device read, sampled, and found in the cache.

    Args:
        trajectories: all of them, or those of `branch`.
        points: where these went on.
    """
    prefilled = decoded = reused = 0
    for number, one in enumerate(trajectories):
        first, taken = (points[number].step, points[number].token) if points else (0, 0)
        length = 0
        for index, step in enumerate(one.steps):
            length += len(step.observation_ids)
            if index >= first:
                again = taken if index == first else 0  # of the action, in the cache already
                branched = bool(points) and index == first
                read = 1 if branched else len(step.observation_ids) + (index > 0)
                prefilled += read
                reused += length + again - read
                decoded += len(step.action_ids) - again
            length += len(step.action_ids)
    return Usage(
        prefilled, decoded, reused, max((len(one.steps) for one in trajectories), default=0)
    )
