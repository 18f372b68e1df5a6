"""Episodes of text environments that run on the host, the policy on the device.

All rows take their turns together. Each turn sends only what is new to the device: the last token of
the previous action and the observation; the KV cache holds the rest. Chunks are padded to a power of
two, so the number of compilations is bounded.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steprl.envs import Env
from steprl.models.tokenizer import detokenize
from steprl.sampling import Generation, generate, trajectory_key
from steprl.types import STOP_REASONS, Params, Policy, Step, Trajectory


class HostPlayer:
    """Plays episodes of one environment; holds nothing but settings and compiled functions.

    Args:
        policy: the language model.
        tokenizer: its `encode` turns observations into ids; actions end at `eos_token_id`.
        max_steps: turns at most; the environment may end earlier.
        response_length: tokens of one action at most.
        context_length: tokens of one trajectory at most. A trajectory whose next turn does not fit is
            truncated, kept and counted; a first observation that does not fit is an error.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: Any,
        max_steps: int,
        response_length: int,
        context_length: int,
    ):
        self.tokenizer, self.max_steps = tokenizer, max_steps
        self.response_length, self.context_length = response_length, context_length
        self._init_cache = policy.init_cache

        @functools.partial(jax.jit, static_argnames=("top_k", "top_p"), donate_argnames="cache")
        def turn(
            params: Params, cache: Any, tokens: jax.Array, length: jax.Array, start: jax.Array,
            keys: jax.Array, number: jax.Array, active: jax.Array, temperature: jax.Array,
            top_k: int, top_p: float,
        ) -> Generation:  # fmt: skip
            return generate(
                policy, params, cache, tokens, length, start,
                jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number), active,
                max_tokens=response_length, stop_ids=(tokenizer.eos_token_id,),
                temperature=temperature, top_k=top_k, top_p=top_p, pad_id=tokenizer.pad_token_id,
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
        episodes = [_Episode(env, self.tokenizer, task) for task in tasks]
        for episode in episodes:
            if not episode.chunk:
                raise ValueError(f"task {episode.task} begins with an observation of no tokens")
            if len(episode.chunk) + self.response_length > self.context_length:
                raise ValueError(
                    f"rollout.context_length={self.context_length}: task {episode.task} begins with "
                    f"{len(episode.chunk)} tokens and an action may need {self.response_length} more"
                )
        keys = self._keys(key, jnp.asarray(tasks), jnp.asarray(samples))
        cache = self._init_cache(rows, self.context_length)
        for number in range(self.max_steps):
            active = np.array([episode.alive for episode in episodes])
            if not active.any():
                break
            width = max(len(e.chunk) for e in episodes if e.alive)
            tokens = np.zeros((rows, _power_of_two(width)), np.int32)
            for row, episode in enumerate(episodes):
                if episode.alive:
                    tokens[row, : len(episode.chunk)] = episode.chunk
            out = self._turn(
                params, cache, tokens,
                np.array([len(e.chunk) if e.alive else 1 for e in episodes], np.int32),
                np.array([e.start for e in episodes], np.int32), keys, np.int32(number), active,
                np.float32(temperature), top_k=top_k, top_p=top_p,
            )  # fmt: skip
            cache = out.cache
            result = jax.device_get(out._replace(cache=None))
            for row, episode in enumerate(episodes):
                if episode.alive:
                    episode.take(env, result, row, self)
        return [
            Trajectory(
                task, sample, tuple(e.steps), e.success, final_observation_ids=e.final_ids(self)
            )
            for task, sample, e in zip(tasks, samples, episodes, strict=True)
        ]


class _Episode:
    """The bookkeeping of one row while it is played."""

    def __init__(self, env: Env, tokenizer: Any, task: int):
        self.task = task
        self.state, self.observation = env.reset(task)
        self.new_ids = np.asarray(tokenizer.encode(self.observation), np.int32)
        self.chunk = list(self.new_ids)  # what the policy has not read yet
        self.start = 0  # position of the chunk's first token
        self.alive, self.success = True, False
        self.steps: list[Step] = []

    def take(self, env: Env, out: Generation, row: int, player: HostPlayer) -> None:
        """Plays one sampled action and prepares the next turn."""
        size = int(out.mask_BA[row].sum())
        ids = np.asarray(out.tokens_BA[row, :size], np.int32)
        action = detokenize(player.tokenizer, ids)
        self.state, observation, reward, terminated, truncated, info = env.step(self.state, action)
        self.success |= bool(info["success"])
        new_ids = np.asarray(player.tokenizer.encode(observation), np.int32)
        start = self.start + len(self.chunk) + size - 1
        chunk = [int(ids[-1]), *new_ids]
        over = terminated or truncated or len(self.steps) + 1 >= player.max_steps
        full = start + len(chunk) + player.response_length > player.context_length
        self.steps.append(
            Step(
                observation=self.observation,
                action=action,
                observation_ids=self.new_ids,
                action_ids=ids,
                logprobs=np.asarray(out.logprob_BA[row, :size]),
                entropies=np.asarray(out.entropy_BA[row, :size]),
                reward=float(reward),
                terminated=bool(terminated),
                truncated=bool(truncated or (not terminated and (over or full))),
                stop_reason=STOP_REASONS[3 if full and not over else int(out.stop_reason_B[row])],
                valid=bool(info["valid"]),
                info={k: v for k, v in info.items() if isinstance(v, str | int | float | bool)},
                supports=None if out.support_BAW is None else np.array(out.support_BAW[row, :size]),
            )
        )
        self.observation, self.new_ids, self.chunk, self.start = observation, new_ids, chunk, start
        self.alive = not (over or full)

    def final_ids(self, player: HostPlayer) -> np.ndarray:
        """The last observation of a trajectory that a limit cut off, if the context has room.

        It is whole or not there: the critic is to read the state as it was.
        """
        last = self.steps[-1] if self.steps else None
        cut_off = last is not None and last.truncated and not last.terminated
        fits = self.start + len(self.chunk) <= player.context_length
        return self.new_ids if cut_off and fits else np.zeros(0, np.int32)


def scripted(
    env: Env, tokenizer: Any, task: int, actions: Sequence[str], max_steps: int, context_length: int
) -> Trajectory:
    """The trajectory of a demonstrator's actions, as many as fit into the context."""
    state, observation = env.reset(task)
    steps: list[Step] = []
    used, success = 0, False
    for action in actions[:max_steps]:
        seen_ids = np.asarray(tokenizer.encode(observation), np.int32)
        action_ids = np.asarray([*tokenizer.encode(action), tokenizer.eos_token_id], np.int32)
        used += len(seen_ids) + len(action_ids)
        if used > context_length:
            break
        state, next_observation, reward, terminated, truncated, info = env.step(state, action)
        unknown = np.zeros(len(action_ids), np.float32)
        success |= bool(info["success"])
        steps.append(
            Step(
                observation=observation,
                action=action,
                observation_ids=seen_ids,
                action_ids=action_ids,
                logprobs=unknown,
                entropies=unknown,
                reward=float(reward),
                terminated=bool(terminated),
                truncated=bool(truncated),
                stop_reason="stop_token",
                valid=bool(info["valid"]),
            )
        )
        observation = next_observation
        if terminated or truncated:
            break
    return Trajectory(task, 0, tuple(steps), success)


def _power_of_two(number: int, smallest: int = 16) -> int:
    return max(smallest, 1 << (number - 1).bit_length())
