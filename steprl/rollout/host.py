"""Episodes of text environments that run on the host, the policy on the device.

All rows take their turns together. Each turn sends only what the KV cache does not hold: the last token
of the previous action and the observation, or where the context is written anew, what stands behind
the prefix that both have. Chunks are padded to a few widths, so the number of compilations is bounded.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steprl.envs import Env
from steprl.rollout.contexts import Context, as_text, common_prefix, next_context
from steprl.sampling import Generation, generate, trajectory_key
from steprl.types import STOP_REASONS, Params, Policy, Step, Trajectory

Demonstrator = Callable[[Any, Any], str]
"""From an environment and its state to the next action."""


class HostPlayer:
    """Plays episodes of one environment; holds nothing but settings and compiled functions.

    Args:
        policy: the language model.
        context: how observations become tokens, and where actions end.
        max_steps: turns at most; the environment may end earlier.
        response_length: tokens of one action at most.
        context_length: tokens of one context at most. A trajectory whose next turn does not fit is
            truncated, kept and counted; a first observation that does not fit is an error.
    """

    def __init__(
        self,
        policy: Policy,
        context: Context,
        max_steps: int,
        response_length: int,
        context_length: int,
    ):
        self.context, self.max_steps = context, max_steps
        self.response_length, self.context_length = response_length, context_length
        self._init_cache, self._prepare = policy.init_cache, jax.jit(policy.prepare)

        @functools.partial(jax.jit, static_argnames=("top_k", "top_p"), donate_argnames="cache")
        def turn(
            params: Params, cache: Any, tokens: jax.Array, length: jax.Array, start: jax.Array,
            keys: jax.Array, number: jax.Array, active: jax.Array, temperature: jax.Array,
            top_k: int, top_p: float,
        ) -> Generation:  # fmt: skip
            return generate(
                policy, params, cache, tokens, length, start,
                jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number), active,
                max_tokens=response_length, stop_ids=context.stop_ids,
                temperature=temperature, top_k=top_k, top_p=top_p, pad_id=context.pad_id,
            )  # fmt: skip

        self._turn = turn
        self._keys = jax.jit(jax.vmap(trajectory_key, in_axes=(None, 0, 0)))

    def play(
        self,
        env: Env,
        params: Params,
        key: jax.Array,
        tasks: Sequence[int],
        samples: Sequence[int],
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[Trajectory]:
        """One trajectory a row, in the order of `tasks`.

        Raises:
            ValueError: a first observation is empty, or does not fit into the context.
        """
        rows = len(tasks)
        episodes = [_Episode(env, self.context, task) for task in tasks]
        for episode in episodes:
            if not episode.ids:
                raise ValueError(f"task {episode.task} begins with an observation of no tokens")
            if len(episode.ids) + self.response_length > self.context_length:
                raise ValueError(
                    f"rollout.context_length={self.context_length}: task {episode.task} begins with "
                    f"{len(episode.ids)} tokens and an action may need {self.response_length} more"
                )
        params = self._prepare(params)
        keys = self._keys(key, jnp.asarray(tasks), jnp.asarray(samples))
        cache = self._init_cache(rows, self.context_length)
        for number in range(self.max_steps):
            active = np.array([episode.alive for episode in episodes])
            if not active.any():
                break
            chunks = [e.ids[e.start :] if e.alive else [0] for e in episodes]
            tokens = np.zeros((rows, _padded(max(map(len, chunks)))), np.int32)
            for row, chunk in enumerate(chunks):
                tokens[row, : len(chunk)] = chunk
            out = self._turn(
                params, cache, tokens, np.array([len(chunk) for chunk in chunks], np.int32),
                np.array([e.start for e in episodes], np.int32), keys, np.int32(number), active,
                np.float32(temperature), top_k=top_k, top_p=top_p,
            )  # fmt: skip
            cache = out.cache
            result = jax.device_get(out._replace(cache=None))
            for row, episode in enumerate(episodes):
                if episode.alive:
                    episode.take(env, result, row, self)
        return [
            episode.record(env, sample) for episode, sample in zip(episodes, samples, strict=True)
        ]


class _Episode:
    """The bookkeeping of one row while it is played."""

    def __init__(self, env: Env, context: Context, task: int):
        self.task = task
        self.state, self.observation = env.reset(task)
        self.ids = list(
            context.begin(self.observation)
        )  # the whole context, what was sampled included
        self.new_ids, self.fresh = self.ids, False  # what the next step adds to it
        self.start = 0  # tokens of the context that the cache holds
        self.alive, self.success = True, False
        self.steps: list[Step] = []
        self.infos: list[dict[str, Any]] = []
        self.final_ids: list[int] = []

    def take(self, env: Env, out: Generation, row: int, player: HostPlayer) -> None:
        """Plays one sampled action and prepares the next turn."""
        size = int(out.mask_BA[row].sum())
        sampled = np.asarray(out.tokens_BA[row, :size], np.int32)
        action = player.context.decode(sampled.tolist())
        self.state, observation, reward, terminated, truncated, info = env.step(self.state, action)
        self.success |= bool(info["success"])
        over = terminated or truncated or len(self.steps) + 1 >= player.max_steps
        so_far = [*self.ids, *sampled.tolist()]
        ids, fresh = so_far, False
        if not terminated:
            ids, fresh = next_context(player.context, so_far, observation)
        full = len(ids) + player.response_length > player.context_length
        self.steps.append(
            Step(
                observation=as_text(self.observation),
                action=action,
                observation_ids=np.asarray(self.new_ids, np.int32),
                action_ids=sampled,
                logprobs=np.asarray(out.logprob_BA[row, :size]),
                entropies=np.asarray(out.entropy_BA[row, :size]),
                reward=float(reward),
                terminated=bool(terminated),
                truncated=bool(truncated or (not terminated and (over or full))),
                stop_reason=STOP_REASONS[3 if full and not over else int(out.stop_reason_B[row])],
                valid=bool(info["valid"]),
                info={k: v for k, v in info.items() if isinstance(v, str | int | float | bool)},
                supports=None if out.support_BAW is None else np.array(out.support_BAW[row, :size]),
                fresh=self.fresh,
            )
        )
        self.infos.append(info)
        self.observation, self.ids, self.fresh = observation, ids, fresh
        self.new_ids = ids if fresh else ids[len(so_far) :]
        # All but the last sampled token are in the cache.
        self.start = min(common_prefix(so_far, ids), len(so_far) - 1, len(ids) - 1)
        self.alive = not (over or full)
        # The last observation of a trajectory that a limit cut off, whole or not there: the critic is
        # to read the state as it was.
        if not self.alive and not terminated and not fresh and len(ids) <= player.context_length:
            self.final_ids = self.new_ids

    def record(self, env: Env, sample: int) -> Trajectory:
        """All that happened; an environment may have a method `metrics(infos of the steps)`."""
        measure = getattr(env, "metrics", None)
        return Trajectory(
            self.task,
            sample,
            tuple(self.steps),
            self.success,
            final_observation_ids=np.asarray(self.final_ids, np.int32),
            metrics={} if measure is None else measure(self.infos),
        )


def scripted(
    env: Env, context: Context, task: int, actions: Iterable[str] | Demonstrator, max_steps: int,
    context_length: int,
) -> Trajectory:  # fmt: skip
    """The trajectory of a demonstrator's actions, as many as fit into the context.

    Args:
        actions: all of them, or a function from the environment and its state to the next one.
    """
    state, observation = env.reset(task)
    planned = None if callable(actions) else iter(actions)
    ids: list[int] = list(context.begin(observation))
    new_ids, fresh, success = ids, False, False
    steps: list[Step] = []
    while len(steps) < max_steps:
        action = actions(env, state) if callable(actions) else next(planned or iter(()), None)
        if action is None:
            break
        action_ids = context.encode(action)
        so_far = [*ids, *action_ids]
        if len(so_far) > context_length:
            break
        state, next_observation, reward, terminated, truncated, info = env.step(state, action)
        unknown = np.zeros(len(action_ids), np.float32)
        success |= bool(info["success"])
        steps.append(
            Step(
                observation=as_text(observation),
                action=action,
                observation_ids=np.asarray(new_ids, np.int32),
                action_ids=np.asarray(action_ids, np.int32),
                logprobs=unknown,
                entropies=unknown,
                reward=float(reward),
                terminated=bool(terminated),
                truncated=bool(truncated),
                stop_reason="stop_token",
                valid=bool(info["valid"]),
                fresh=fresh,
            )
        )
        if terminated or truncated:
            break
        observation = next_observation
        ids, fresh = next_context(context, so_far, observation)
        new_ids = ids if fresh else ids[len(so_far) :]
    return Trajectory(task, 0, tuple(steps), success)


def _padded(width: int, smallest: int = 16) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: at most a third is padding."""
    power = max(smallest, 1 << (width - 1).bit_length())
    return power * 3 // 4 if smallest < power and width <= power * 3 // 4 else power
