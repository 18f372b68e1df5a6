"""The rollouts of `steprl.rollout.branching`, grown inside one compiled program.

The same tasks, samples and keys give the same trajectories as there, row for row; only the order of
the rows is another: all originals first, then a place for each branch that could be.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steprl.config import BranchConfig
from steprl.ops import branch_attempts, branch_preference
from steprl.rollout.branching import CALL, begin_anew, select_places
from steprl.rollout.device import (
    DeviceEnv,
    DeviceMemory,
    Turn,
    batch_of_turns,
    remembered_rollout,
    rollout,
)
from steprl.rollout.device_branches import Starts, branch
from steprl.sampling import Sampling
from steprl.types import Branches, Params, Policy, StepBatch


class GrownBatch(NamedTuple):
    """Rollouts and what they cost."""

    batch: StepBatch
    sampled: jax.Array  # [] int32: tokens, those of branches that were thrown away as well
    branches: jax.Array  # [] int32: branches that were played


class _Cut(NamedTuple):
    """Where branches of some rows begin, by step and token of its action that is kept."""

    origin_K: jax.Array
    step_K: jax.Array
    taken_K: jax.Array
    there_K: jax.Array


def grow_plain(
    policy: Policy, env: DeviceEnv, params: Params, key: jax.Array, task_N: jax.Array,
    sample_N: jax.Array, sampling: Sampling, anchors: bool = False,
) -> GrownBatch:  # fmt: skip
    """Rollouts without branches.

    Args:
        anchors: say which steps saw the same.
    """
    batch = rollout(policy, env, params, key, task_N, sample_N, sampling)
    if anchors:
        batch = dataclasses.replace(batch, anchor_NS=_anchors(env, batch))
    return GrownBatch(batch, _sampled(batch), jnp.zeros((), jnp.int32))


def grow_by_score(
    policy: Policy, env: DeviceEnv, params: Params, key: jax.Array, task_N: jax.Array,
    sample_N: jax.Array, sampling: Sampling, attempts: int, settings: BranchConfig,
    method: str, nonblank_V: jax.Array, gamma: float | jax.Array,
    log_ratio: Callable[[StepBatch], jax.Array] | None,
) -> GrownBatch:  # fmt: skip
    """As `branching.grow_by_score`: APPO and ARPO.

    Args:
        attempts: at each task, one after the other in task_N and sample_N.

    Raises:
        ValueError: `settings.initial` leaves no attempt for branches.
    """
    tasks = task_N.shape[0] // attempts
    initial = begin_anew(settings, attempts)
    part = lambda x: x.reshape(tasks, attempts)  # noqa: E731
    first_N, new_K = part(sample_N)[:, :initial].ravel(), part(sample_N)[:, initial:].ravel()
    first_task_N = part(task_N)[:, :initial].ravel()
    begun, memory = remembered_rollout(policy, env, params, key, first_task_N, first_N, sampling)
    told = _packed(begun)
    ratio_NT = None if log_ratio is None or method == "arpo" else log_ratio(told)
    chosen = select_places(
        told, nonblank_V, ratio_NT, gamma,
        method=method, tasks=tasks, budget=attempts - initial, settings=settings,
    )  # fmt: skip
    row_K, token_K = chosen.row_b.ravel(), chosen.token_b.ravel()
    task = jnp.repeat(jnp.arange(tasks, dtype=jnp.int32), attempts - initial)
    origin_K = task * initial + jnp.maximum(row_K, 0)
    cut = _cut_at(told, origin_K, jnp.maximum(token_K, 0), row_K >= 0, method == "appo")
    new = _play(policy, env, params, key, memory, begun, cut, new_K, sampling)
    batch = _packed(_both(begun, _rows(env, begun, memory, new, cut, new_K)))
    rows = first_N.shape[0]
    branches = _descent(batch, cut, rows)._replace(
        score_N=jnp.concatenate(
            [jnp.zeros(rows), jnp.where(cut.there_K, chosen.score_b.ravel(), 0)]
        )
    )
    sampled = _sampled(begun) + _new_tokens(new, cut)
    batch = dataclasses.replace(batch, branches=branches)
    return GrownBatch(batch, sampled, jnp.sum(cut.there_K, dtype=jnp.int32))


def grow_branpo(
    policy: Policy, env: DeviceEnv, params: Params, key: jax.Array, task_N: jax.Array,
    sample_N: jax.Array, sampling: Sampling, attempts: int, settings: BranchConfig,
) -> GrownBatch:  # fmt: skip
    """As `branching.grow_branpo`: the contrast of each rollout, or an empty row.

    Args:
        attempts: at each task, one after the other in task_N and sample_N.
    """
    begun, memory = remembered_rollout(policy, env, params, key, task_N, sample_N, sampling)
    rows, threshold = task_N.shape[0], settings.threshold
    reward_N = jnp.sum(begun.reward_NS, axis=1)
    steps_N = jnp.sum(begun.mask_NS, axis=1, dtype=jnp.int32)
    accuracy_N, mean_N = _difficulty(reward_N, steps_N, attempts, threshold)
    number_NC, from_end_NC = branch_attempts(
        accuracy_N, mean_N, reward_N, steps_N, jnp.ones(rows, bool), threshold=threshold
    )
    calls = number_NC.shape[1]
    stride = jnp.max(sample_N) + 1

    class Wave(NamedTuple):
        number: jax.Array  # the next, of all calls
        found_N: jax.Array  # bool
        preference_N: jax.Array
        split_N: jax.Array
        kept: Turn  # [S, N, ...] of the continuations that contrast
        sampled: jax.Array
        played: jax.Array

    def open_rows(number: jax.Array, found_N: jax.Array) -> jax.Array:
        call, wave = number // CALL, number % CALL
        return ~found_N & (number_NC[:, jnp.minimum(call, calls - 1)] > wave + 1)

    def skip(wave: Wave) -> Wave:
        """To the next wave in which a row plays; each call that is begun moves its rows' split."""

        def idle(wave: Wave) -> jax.Array:
            return (wave.number < calls * CALL) & ~jnp.any(open_rows(wave.number, wave.found_N))

        return jax.lax.while_loop(idle, lambda w: moved(w._replace(number=w.number + 1)), wave)

    def moved(wave: Wave) -> Wave:
        call = jnp.minimum(wave.number // CALL, calls - 1)
        asked_N = (wave.number % CALL == 0) & (number_NC[:, call] > 0) & ~wave.found_N
        split_N = jnp.where(asked_N & (wave.number < calls * CALL), steps_N - from_end_NC[:, call],
                            wave.split_N)  # fmt: skip
        return wave._replace(split_N=split_N)

    def play(wave: Wave) -> Wave:
        there_N = open_rows(wave.number, wave.found_N)
        cut = _Cut(jnp.arange(rows), wave.split_N, jnp.zeros_like(steps_N), there_N)
        sample_K = stride * (1 + wave.number) + sample_N
        new = _play(policy, env, params, key, memory, begun, cut, sample_K, sampling)
        whole = _spliced(env, memory.turns, new, cut)
        new_reward_N = jnp.sum(whole.reward, axis=0)
        new_steps_N = jnp.sum(whole.alive, axis=0)
        preference_N = branch_preference(
            reward_N, steps_N, new_reward_N, new_steps_N, accuracy_N, threshold=threshold
        )
        hit_N = there_N & (preference_N != 0)
        keep = lambda a, b: jnp.where(hit_N.reshape(1, -1, *[1] * (a.ndim - 2)), a, b)  # noqa: E731
        wave = Wave(
            wave.number + 1,
            wave.found_N | hit_N,
            jnp.where(hit_N, preference_N, wave.preference_N),
            wave.split_N,
            jax.tree.map(keep, whole, wave.kept),
            wave.sampled + _new_tokens(new, cut),
            wave.played + jnp.sum(there_N, dtype=jnp.int32),
        )
        return skip(moved(wave))

    nothing = jax.tree.map(jnp.zeros_like, memory.turns)
    none_N, zero = jnp.zeros_like(steps_N), jnp.zeros((), jnp.int32)
    wave = Wave(zero, jnp.zeros(rows, bool), none_N, none_N, nothing, zero, zero)
    wave = skip(moved(wave))
    wave = jax.lax.while_loop(lambda w: w.number < calls * CALL, play, wave)

    width = env.prompt_width
    contrasts = batch_of_turns(
        env, begun.tokens_NT[:, :width], wave.kept, task_N, sample_N + stride
    )
    cut = _Cut(jnp.arange(rows), jnp.maximum(wave.split_N, 0), none_N, wave.found_N)
    batch = _both(begun, contrasts)
    branches = _descent(batch, cut, rows)
    branches = branches._replace(
        step_N=jnp.concatenate([cut.step_K, cut.step_K]),
        preference_N=jnp.concatenate([-wave.preference_N, wave.preference_N]),
    )
    batch = dataclasses.replace(batch, branches=branches)
    return GrownBatch(batch, _sampled(begun) + wave.sampled, wave.played)


def _difficulty(
    reward_N: jax.Array, steps_N: jax.Array, attempts: int, threshold: float
) -> tuple[jax.Array, jax.Array]:
    """Of each rollout's task: share of correct rollouts, and their mean number of steps."""
    correct = (reward_N >= threshold).reshape(-1, attempts)
    number = jnp.sum(correct, axis=1)
    steps = jnp.sum(jnp.where(correct, steps_N.reshape(-1, attempts), 0), axis=1)
    back = lambda x: jnp.repeat(x, attempts, total_repeat_length=reward_N.shape[0])  # noqa: E731
    return back(number / attempts), back(steps / jnp.maximum(number, 1))


# --- Where a branch begins ------------------------------------------------------------------------


def _packed(batch: StepBatch) -> StepBatch:
    """The batch without holes in its rows: APPO discounts by the distance of tokens in a row."""
    order_NT = jnp.argsort(batch.segment_ids_NT == 0, axis=1, stable=True)
    pack = lambda x_NT: jnp.take_along_axis(x_NT, order_NT, axis=1)  # noqa: E731
    return dataclasses.replace(
        batch,
        tokens_NT=pack(batch.tokens_NT),
        positions_NT=pack(batch.positions_NT),
        segment_ids_NT=pack(batch.segment_ids_NT),
        step_ids_NT=pack(batch.step_ids_NT),
        logprob_NT=pack(batch.logprob_NT),
        entropy_NT=pack(batch.entropy_NT),
    )


def _cut_at(
    batch: StepBatch, origin_K: jax.Array, token_K: jax.Array, there_K: jax.Array, after: bool
) -> _Cut:
    """Cuts at places of rows; `after` keeps the token that stands there."""
    ids_KT = batch.step_ids_NT[origin_K]
    step_K = jnp.take_along_axis(ids_KT, token_K[:, None], axis=1)[:, 0]
    own_KT = ids_KT == step_K[:, None]
    before_KT = own_KT & (jnp.arange(ids_KT.shape[1])[None] < token_K[:, None])
    taken_K = jnp.sum(before_KT, axis=1) + after
    whole_K = taken_K >= jnp.sum(own_KT, axis=1)
    step_K, taken_K = jnp.where(whole_K, step_K + 1, step_K), jnp.where(whole_K, 0, taken_K)
    none = lambda x_K: jnp.where(there_K, x_K, 0).astype(jnp.int32)  # noqa: E731
    return _Cut(origin_K, none(step_K), none(taken_K), there_K)


def _taken(env: DeviceEnv, cut: _Cut) -> jax.Array:
    """[K, A] bool: the tokens of the first action that are taken over."""
    return jnp.arange(env.action_width)[None] < cut.taken_K[:, None]


def _play(
    policy: Policy, env: DeviceEnv, params: Params, key: jax.Array, memory: DeviceMemory,
    batch: StepBatch, cut: _Cut, sample_K: jax.Array, sampling: Sampling,
) -> Turn:  # fmt: skip
    block = env.action_width + env.observation_width
    step_K = jnp.clip(cut.step_K, 0, env.max_steps - 1)
    tokens_KT = batch.tokens_NT[cut.origin_K]
    # The last token before the first that is sampled, wherever in the row it stands.
    end_K = env.prompt_width + step_K * block + cut.taken_K
    index_1T = jnp.arange(tokens_KT.shape[1])[None]
    before_KT = (index_1T < end_K[:, None]) & (batch.segment_ids_NT[cut.origin_K] > 0)
    last_K = jnp.max(jnp.where(before_KT, index_1T, 0), axis=1)
    pick = lambda x_KT: jnp.take_along_axis(x_KT, last_K[:, None], axis=1)[:, 0]  # noqa: E731
    own_KA = memory.turns.action[step_K, cut.origin_K]
    begun_KA = jnp.where(_taken(env, cut), own_KA, 0)
    begin = Starts(
        cut.there_K, cut.origin_K, step_K, batch.task_N[cut.origin_K], sample_K, pick(tokens_KT),
        pick(batch.positions_NT[cut.origin_K]), begun_KA, cut.taken_K,
    )  # fmt: skip
    return branch(policy, env, params, key, memory, begin, sampling)


# --- Rows of branches -----------------------------------------------------------------------------


def _spliced(env: DeviceEnv, origin: Turn, new: Turn, cut: _Cut) -> Turn:
    """[S, K, ...] the steps before each cut as they were, then the new ones."""
    step_S = jnp.arange(env.max_steps, dtype=jnp.int32)
    place_SK = step_S[:, None] - cut.step_K[None]

    def joined(old: jax.Array, own: jax.Array) -> jax.Array:
        ones = [1] * (old.ndim - 2)
        shape = place_SK.reshape(*place_SK.shape, *ones)
        moved = jnp.take_along_axis(own, jnp.maximum(shape, 0), axis=0)
        there = cut.there_K.reshape(1, -1, *ones)
        whole = jnp.where(shape >= 0, moved, old[:, cut.origin_K])
        return jnp.where(there, whole, 0).astype(old.dtype)

    made = jax.tree.map(joined, origin, new)
    # Of the step that had begun, the tokens that were taken over keep what they were sampled with.
    taken_SKA = (place_SK == 0)[:, :, None] & _taken(env, cut)[None]
    kept = lambda own, old: jnp.where(taken_SKA, old[:, cut.origin_K], own)  # noqa: E731
    return made._replace(
        logprob=kept(made.logprob, origin.logprob), entropy=kept(made.entropy, origin.entropy)
    )


def _rows(
    env: DeviceEnv, batch: StepBatch, memory: DeviceMemory, new: Turn, cut: _Cut, sample_K: jax.Array
) -> StepBatch:  # fmt: skip
    turns = _spliced(env, memory.turns, new, cut)
    prompt_KP = batch.tokens_NT[cut.origin_K, : env.prompt_width]
    return batch_of_turns(env, prompt_KP, turns, batch.task_N[cut.origin_K], sample_K)


def _both(one: StepBatch, other: StepBatch) -> StepBatch:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, other)


def _descent(batch: StepBatch, cut: _Cut, rows: int) -> Branches:
    """Of originals and then branches; the last shared token is the last one sampled before the cut."""
    ids_KT = batch.step_ids_NT[rows:]
    index_1T = jnp.arange(ids_KT.shape[1])[None]
    of_step_KT = ids_KT == cut.step_K[:, None]
    begun_KT = of_step_KT & (jnp.cumsum(of_step_KT, axis=1) <= cut.taken_K[:, None])
    shared_KT = ((ids_KT >= 0) & (ids_KT < cut.step_K[:, None])) | begun_KT
    token_K = jnp.max(jnp.where(shared_KT, index_1T, -1), axis=1)
    own_N = jnp.arange(rows, dtype=jnp.int32)
    place_K = rows + jnp.arange(ids_KT.shape[0], dtype=jnp.int32)
    zero_N = jnp.zeros(rows, jnp.int32)
    total = rows + ids_KT.shape[0]
    join = lambda a, b: jnp.concatenate([a, b.astype(jnp.int32)])  # noqa: E731
    return Branches(
        join(own_N, jnp.where(cut.there_K, cut.origin_K, place_K)),
        join(zero_N, jnp.where(cut.there_K, cut.step_K, 0)),
        join(zero_N - 1, jnp.where(cut.there_K, token_K, -1)),
        jnp.zeros(total, jnp.float32),
        jnp.zeros(total, jnp.int32),
    )


def _sampled(batch: StepBatch) -> jax.Array:
    return jnp.sum(batch.step_ids_NT >= 0, dtype=jnp.int32)


def _new_tokens(new: Turn, cut: _Cut) -> jax.Array:
    """Tokens that branches sampled, without those that they took over."""
    taken = jnp.sum(jnp.where(cut.there_K, cut.taken_K, 0))
    return jnp.sum(new.action_mask, dtype=jnp.int32) - taken.astype(jnp.int32)


def _anchors(env: DeviceEnv, batch: StepBatch) -> jax.Array:
    """[N, S] int32: the same number for steps of one task that saw the same tokens; -1 for none.

    What a step sees is the prompt, or what the action before was answered.
    """
    rows, steps = batch.mask_NS.shape
    width, block = env.prompt_width, env.action_width + env.observation_width
    blocks = batch.tokens_NT[:, width:].reshape(rows, steps, block)
    answers = blocks[:, :-1, env.action_width :]
    wide = max(width, env.observation_width)
    pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, wide - x.shape[-1])])  # noqa: E731
    seen = jnp.concatenate([pad(batch.tokens_NT[:, None, :width]), pad(answers)], axis=1)
    seen = seen.reshape(rows * steps, wide)
    task_M = jnp.repeat(batch.task_N, steps, total_repeat_length=rows * steps)
    there_M = batch.mask_NS.ravel()
    # Sorted by task and tokens, equal ones stand together.
    order_M = jnp.lexsort((*seen.T, task_M, ~there_M))
    keys = jnp.concatenate([seen, task_M[:, None], there_M[:, None]], axis=1)[order_M]
    new_M = jnp.any(keys[1:] != keys[:-1], axis=1)
    number_M = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), new_M.astype(jnp.int32)]))
    anchor_M = jnp.zeros(rows * steps, jnp.int32).at[order_M].set(number_M)
    return jnp.where(there_M, anchor_M, -1).reshape(rows, steps)
