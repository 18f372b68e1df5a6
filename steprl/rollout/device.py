"""Whole episodes inside one compiled program, for environments written on token arrays.

A row holds the prompt, then a block a step: the action (A tokens) and what was answered (O tokens).
Blocks have fixed places, what is shorter leaves holes; positions count real tokens only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.envs.answers import UNREADABLE
from steprl.envs.device_env import DeviceEnv
from steprl.envs.privileged import PrivilegedGame
from steprl.sampling import STOPPED, Sampling, generate, trajectory_key
from steprl.types import Params, Policy, Privileged, StepBatch


class DeviceStep(NamedTuple):
    """One step of all rows; with one more axis before the others, all steps."""

    action: jax.Array  # [N, A]
    action_mask: jax.Array
    logprob: jax.Array
    entropy: jax.Array
    observation: jax.Array  # [N, O]
    observation_mask: jax.Array
    reward: jax.Array  # [N]
    alive: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    valid: jax.Array
    success: jax.Array
    stop: jax.Array
    support: jax.Array | None  # [N, A, W]
    privileged: jax.Array | None = (
        None  # [N, W] int32, what the critic is told of the state behind it
    )


class DeviceMemory(NamedTuple):
    """What is needed to continue from any step of a rollout."""

    batch: StepBatch
    cache: Any  # a row each
    states: Any  # of the environment before each step, [S, N, ...]
    steps: DeviceStep  # what happened, [S, N, ...]


def rollout(
    policy: Policy,
    env: DeviceEnv,
    params: Params,
    key: jax.Array,
    task_N: jax.Array,
    sample_N: jax.Array,
    sampling: Sampling = Sampling(),
) -> StepBatch:
    """One episode a row, sampled from the policy.

    Args:
        key: of the run; each token draws from fold_in(task, sample, step, token) of it.
        task_N, sample_N: which task, and which attempt at it, each row plays.
        sampling: its temperature may be traced; where it truncates, the batch holds the sets of
            tokens that could be sampled.
    """
    return remembered_rollout(policy, env, params, key, task_N, sample_N, sampling)[0]


def remembered_rollout(
    policy: Policy,
    env: DeviceEnv,
    params: Params,
    key: jax.Array,
    task_N: jax.Array,
    sample_N: jax.Array,
    sampling: Sampling = Sampling(),
) -> tuple[StepBatch, DeviceMemory]:
    """`rollout`, with a memory to branch from (`steprl.rollout.device_branches`)."""
    length = env.prompt_width + env.max_steps * (env.action_width + env.observation_width)
    rows = task_N.shape[0]
    params = policy.prepare(params)
    keys_N = jax.vmap(trajectory_key, in_axes=(None, 0, 0))(key, task_N, sample_N)

    def begin(prompt_NP: jax.Array, prompt_length_N: jax.Array) -> Any:
        # All but the last token of the prompt; that one begins the first chunk.
        index = jnp.broadcast_to(jnp.arange(prompt_NP.shape[1])[None, :], prompt_NP.shape)
        real = index < (prompt_length_N - 1)[:, None]
        _, cache = policy.apply(
            params, prompt_NP, index, real.astype(jnp.int32), policy.init_cache(rows, length)
        )
        last = jnp.take_along_axis(prompt_NP, (prompt_length_N - 1)[:, None], axis=1)
        return cache, jnp.pad(last, ((0, 0), (0, env.observation_width))), jnp.ones(rows, jnp.int32)

    def act(memory: Any, start_N: jax.Array, alive_N: jax.Array, turn: jax.Array) -> Any:
        cache, chunk_NC, chunk_length_N = memory
        out = generate(
            policy, params, cache, chunk_NC, chunk_length_N, start_N,
            jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_N, turn), alive_N,
            max_tokens=env.action_width, stop_ids=env.stop_ids,
            sampling=sampling,
        )  # fmt: skip
        return (
            out.tokens_BA,
            out.mask_BA,
            out.logprob_BA,
            out.entropy_BA,
            out.stop_reason_B,
            out.support_BAW,
        ), out.cache

    batch, memory, states, steps = _episodes(
        env, keys_N, task_N, sample_N, begin, act, next_chunk, keep_states=True
    )
    return batch, DeviceMemory(batch, memory, states, steps)


def next_chunk(cache: Any, action_NA: jax.Array, size_N: jax.Array, seen_NO: jax.Array) -> Any:
    """What the next turn reads: the last token of an action and what it was answered."""
    last = jnp.take_along_axis(action_NA, jnp.maximum(size_N - 1, 0)[:, None], axis=1)
    return cache, jnp.concatenate([last, seen_NO], axis=1), 1 + jnp.sum(seen_NO != 0, axis=1)


def demonstrations(
    env: DeviceEnv,
    expert: Callable[[Any, jax.Array], jax.Array],
    key: jax.Array,
    task_N: jax.Array,
) -> StepBatch:
    """One episode a row, played by `expert(state, trajectory_key) -> action tokens [A]`."""
    sample_N = jnp.zeros_like(task_N)
    keys_N = jax.vmap(trajectory_key, in_axes=(None, 0, 0))(key, task_N, sample_N)

    def act(
        memory: Any, start_N: jax.Array, alive_N: jax.Array, turn: jax.Array, state: Any
    ) -> Any:
        action_NA = jax.vmap(expert)(state, keys_N) * alive_N[:, None]
        zero = jnp.zeros(action_NA.shape, jnp.float32)
        stop_N = jnp.full(task_N.shape, STOPPED, jnp.int32)
        return (action_NA, action_NA != 0, zero, zero, stop_N, None), memory

    nothing = lambda *_: (jnp.zeros(()),)  # noqa: E731
    return _episodes(env, keys_N, task_N, sample_N, nothing, act, nothing, act_sees_state=True)[0]


def _episodes(
    env: DeviceEnv,
    keys_N: jax.Array,
    task_N: jax.Array,
    sample_N: jax.Array,
    begin: Callable[..., Any],
    act: Callable[..., Any],
    remember: Callable[..., Any],
    act_sees_state: bool = False,
    keep_states: bool = False,
) -> tuple[StepBatch, Any, Any, DeviceStep]:
    """The loop of agent and environment; the agent's memory between turns is opaque to it.

    Returns:
        The batch, the first part of the agent's last memory, the states before each step if
        `keep_states`, and all steps.
    """
    # The environment draws from a random stream apart from the tokens' (whose steps count from 0).
    env_keys_N = jax.vmap(lambda k: jax.random.fold_in(k, 2**31 - 1))(keys_N)
    state, prompt_NP = jax.vmap(env.reset)(task_N, env_keys_N)
    begun_N = _readable(env, prompt_NP) & (prompt_NP[:, 0] != 0)
    empty_P = jnp.arange(prompt_NP.shape[1]) == 0  # one <end>, so that there is something to read
    prompt_NP = jnp.where(begun_N[:, None], prompt_NP, empty_P.astype(prompt_NP.dtype))
    prompt_length_N = jnp.sum(prompt_NP != 0, axis=1)
    alive_N = jnp.ones(task_N.shape, bool)
    told_NW = _privileged(env, state)
    if told_NW is not None:
        begun_N &= _readable(env, told_NW)

    def turn_of(carry: Any, turn: jax.Array) -> Any:
        state, memory, start_N, chunk_N, alive_N = carry
        extra = (state,) if act_sees_state else ()
        sampled, memory = act(memory, start_N, alive_N, turn, *extra)
        new_state, out, over_N = answer(env, state, sampled, alive_N)
        out = out._replace(reward=jnp.where(begun_N | ~alive_N, out.reward, UNREADABLE))
        over_N |= ~begun_N
        size_N, shown_N = jnp.sum(out.action_mask, axis=1), jnp.sum(out.observation_mask, axis=1)
        memory = remember(memory, out.action, size_N, out.observation)
        # The next chunk begins with this action's last token, at the place behind the others.
        start_N = start_N + chunk_N + size_N - 1
        carry = (new_state, memory, start_N, 1 + shown_N, alive_N & ~over_N)
        return carry, (out, state if keep_states else None)

    carry = (
        state, begin(prompt_NP, prompt_length_N), prompt_length_N - 1, jnp.ones_like(prompt_length_N), alive_N
    )  # fmt: skip
    (_, memory, *_), (steps, states) = jax.lax.scan(turn_of, carry, jnp.arange(env.max_steps))
    batch = batch_of_steps(env, prompt_NP, steps, task_N, sample_N, told_NW)
    return batch, memory[0], states, steps


def answer(
    env: DeviceEnv, state: Any, found: tuple[Any, ...], alive_N: jax.Array
) -> tuple[Any, DeviceStep, jax.Array]:
    """The environments' answers to actions: new states, what happened, and which rows are over."""
    action, mask, logprob, entropy, stop, support = found
    new_state, seen = jax.vmap(env.step)(state, action)
    fine_N = _readable(env, seen.tokens)
    told_NW = _privileged(env, new_state)
    if told_NW is not None:
        told_NW = jnp.where(seen.terminated[:, None], 0, told_NW)
        fine_N &= _readable(env, told_NW)
    shown = (seen.tokens != 0) & (alive_N & fine_N)[:, None]
    out = DeviceStep(
        action=action,
        action_mask=mask,
        logprob=logprob,
        entropy=entropy,
        observation=jnp.where(shown, seen.tokens, 0),
        observation_mask=shown,
        reward=jnp.where(alive_N, jnp.where(fine_N, seen.reward, UNREADABLE), 0.0),
        alive=alive_N,
        terminated=seen.terminated & alive_N,
        truncated=seen.truncated & alive_N,
        valid=seen.valid & alive_N,
        success=seen.success & alive_N,
        stop=jnp.where(alive_N, stop, 0),
        support=support,
        privileged=told_NW,
    )
    return new_state, out, seen.terminated | seen.truncated | ~fine_N


def _readable(env: DeviceEnv, tokens_NW: jax.Array) -> jax.Array:
    """[N] bool: these are ids of the vocabulary, and padding behind them."""
    known_NW = (tokens_NW >= 0) & (tokens_NW < env.vocab_size)
    hole_NW = (tokens_NW[:, :-1] == 0) & (tokens_NW[:, 1:] != 0)
    return jnp.all(known_NW, axis=1) & ~jnp.any(hole_NW, axis=1)


def _privileged(env: DeviceEnv, state: Any) -> jax.Array | None:
    """[N, W] what the critic is told of states; None where nobody asked for it."""
    return jax.vmap(env.privileged)(state) if isinstance(env, PrivilegedGame) else None


def _told(first_NW: jax.Array | None, steps: DeviceStep) -> Privileged | None:
    """What is told before each action and behind the last, where it is not what was told before."""
    if first_NW is None or steps.privileged is None:
        return None
    told_SNW = jnp.concatenate([first_NW[None], steps.privileged])  # one more than there are steps
    number = jnp.arange(len(told_SNW), dtype=jnp.int32)[:, None, None]
    # Nothing stands for no change.
    last = jax.lax.cummax(jnp.where(told_SNW[:, :, :1] != 0, number, 0), axis=0)
    known_SNW = jnp.take_along_axis(told_SNW, last, axis=0)
    changed = jnp.any(known_SNW[1:] != known_SNW[:-1], axis=2)
    new_SN = jnp.concatenate([steps.alive[:1], steps.alive & ~steps.terminated & changed])
    there = new_SN[:, :, None] & (told_SNW != 0)
    flat = lambda x: jnp.moveaxis(x, 0, 1).reshape(first_NW.shape[0], -1)  # noqa: E731
    return Privileged(flat(told_SNW), flat(jnp.where(there, number, -1)))


def first_told(batch: StepBatch, steps: DeviceStep) -> jax.Array | None:
    """[N, W] what the critic was told before the first step of each row of a batch of `steps`."""
    if batch.privileged is None or steps.privileged is None:
        return None
    return batch.privileged.tokens_NP[:, : steps.privileged.shape[-1]]


def batch_of_steps(
    env: DeviceEnv, prompt_NP: jax.Array, steps: DeviceStep, task_N: jax.Array, sample_N: jax.Array,
    told_NW: jax.Array | None = None,
) -> StepBatch:  # fmt: skip
    """The batch of prompts and what happened after them, [S, N, ...]; a row without a step is empty.

    Args:
        told_NW: what the critic is told before the first step; None without a privileged one.
    """
    rows = prompt_NP.shape[0]
    prompt_NP = jnp.where(steps.alive[0][:, None], prompt_NP, 0)

    def layout(prompt: jax.Array, action: jax.Array, observation: jax.Array) -> jax.Array:
        blocks = jnp.concatenate([action, observation], axis=2)  # [S, N, A + O, ...]
        flat = jnp.moveaxis(blocks, 0, 1).reshape(rows, -1, *blocks.shape[3:])
        return jnp.concatenate([prompt, flat], axis=1)

    real = layout(prompt_NP != 0, steps.action_mask, steps.observation_mask)
    number = jnp.arange(env.max_steps, dtype=jnp.int32)[:, None, None]
    step_ids = layout(
        jnp.full_like(prompt_NP, -1),
        jnp.where(steps.action_mask, number, -1),
        jnp.full(steps.observation.shape, -1, jnp.int32),
    )
    nothing = jnp.zeros(prompt_NP.shape, jnp.float32)
    unseen = jnp.zeros(steps.observation.shape, jnp.float32)
    support_NTW = None
    if steps.support is not None:
        words = steps.support.shape[-1:]
        none = lambda x: jnp.zeros(x.shape + words, jnp.uint32)  # noqa: E731
        support_NTW = layout(none(prompt_NP), steps.support, none(steps.observation))
    return StepBatch(
        tokens_NT=layout(prompt_NP, steps.action, steps.observation),
        positions_NT=jnp.where(real, jnp.cumsum(real, axis=1) - 1, 0).astype(jnp.int32),
        segment_ids_NT=real.astype(jnp.int32),
        step_ids_NT=step_ids,
        logprob_NT=layout(nothing, steps.logprob, unseen),
        entropy_NT=layout(nothing, steps.entropy, unseen),
        reward_NS=steps.reward.T,
        mask_NS=steps.alive.T,
        terminated_NS=steps.terminated.T,
        truncated_NS=steps.truncated.T,
        valid_NS=steps.valid.T,
        stop_NS=steps.stop.T,
        success_N=jnp.any(steps.success, axis=0),
        task_N=task_N,
        sample_N=sample_N,
        support_NTW=support_NTW,
        privileged=_told(told_NW, steps),
        action_width=env.max_steps * env.action_width,
    )
