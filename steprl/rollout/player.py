"""What a run needs of its environment, whether that lives on the device or on the host."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from steprl.config import Config
from steprl.envs import Env
from steprl.rollout.device import demonstrations, rollout
from steprl.rollout.host import HostPlayer, scripted
from steprl.rollout.records import collate, pack
from steprl.sharding import shard_rows
from steprl.types import STOP_REASONS, Params, Policy, StepBatch, Trajectory

MAX_PACKED = 8
"""Demonstrations of one row at most, where several short ones share it."""


class Player(NamedTuple):
    """Functions of one environment.

    play(params, key, task_N, sample_N, split=..., temperature=..., top_k=..., top_p=...) -> StepBatch
    demonstrate(key, task_N) -> StepBatch of the warm start's demonstrator, on training tasks
    """

    play: Callable[..., StepBatch]
    demonstrate: Callable[[jax.Array, np.ndarray], StepBatch]
    tokenizer: Any
    splits: tuple[str, ...]  # training first, then those to evaluate on, the main one first


class Words(NamedTuple):
    """The language of an environment, known before there is a policy."""

    tokenizer: Any
    vocab_size: int


def words_of(config: Config) -> Words:
    """Tokenizer and number of tokens of the configured environment."""
    from steprl.models.tokenizer import phrase_tokenizer

    tokenizer = phrase_tokenizer(_vocabulary(config.env.name))
    return Words(tokenizer, len(tokenizer))


def _vocabulary(name: str) -> tuple[str, ...]:
    if name == "multihop":
        from steprl.envs.multihop import vocabulary
    elif name == "household":
        from steprl.envs.household.vocabulary import vocabulary
    else:
        raise ValueError(f"env.name={name!r}: allowed are multihop, household")
    return vocabulary()


def make_player(config: Config, policy: Policy, mesh: Mesh) -> Player:
    """The player of the configured environment; batches come back placed on the mesh."""
    make = {"multihop": _multihop_player, "household": _household_player}
    return make[config.env.name](config, policy, mesh)


def _multihop_player(config: Config, policy: Policy, mesh: Mesh) -> Player:
    from steprl.envs.multihop import Multihop, demonstrate

    settings = config.env.multihop
    often = settings.demo_search_failure
    shown = settings if often is None else dataclasses.replace(settings, search_failure=often)

    @functools.partial(jax.jit, static_argnames=("top_k", "top_p"))
    def compiled(params, key, task, sample, heldout, temperature, top_k, top_p):  # type: ignore[no-untyped-def]
        env = Multihop(settings, heldout)
        return rollout(policy, env, params, key, task, sample, temperature, top_k, top_p)

    @jax.jit
    def compiled_demonstrations(key: jax.Array, task: jax.Array) -> StepBatch:
        expert = functools.partial(demonstrate, settings)
        return demonstrations(Multihop(shown), expert, key, task)

    def play(
        params: Params, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray, split: str = "train",
        temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    ) -> StepBatch:  # fmt: skip
        task, sample = shard_rows(
            (np.asarray(task_N, np.int32), np.asarray(sample_N, np.int32)), mesh
        )
        heldout = np.bool_(split != "train")
        return compiled(params, key, task, sample, heldout, np.float32(temperature), top_k, top_p)

    def demonstrated(key: jax.Array, task_N: np.ndarray) -> StepBatch:
        return compiled_demonstrations(key, shard_rows(np.asarray(task_N, np.int32), mesh))

    return Player(play, demonstrated, words_of(config).tokenizer, ("train", "heldout"))


def _household_player(config: Config, policy: Policy, mesh: Mesh) -> Player:
    from steprl.envs.household import TASK_TYPES, Household
    from steprl.envs.household.expert import demonstrate
    from steprl.envs.household.reminder import Reminded

    settings = config.env.household
    splits = ("train", "valid_seen", "valid_unseen")
    tokenizer = words_of(config).tokenizer
    context = config.rollout.context_length
    lengths = [context // 4, context // 2, context]
    envs = {
        split: Household(
            split=split,
            task_types=TASK_TYPES if settings.task_types == ["all"] else tuple(settings.task_types),
            max_steps=settings.max_steps,
            rooms=settings.rooms,
            admissible=False,
        )
        for split in splits
    }
    shown: dict[str, Env] = {s: Reminded(e) if settings.remind else e for s, e in envs.items()}
    host = HostPlayer(
        policy, tokenizer, settings.max_steps, config.rollout.response_length, context
    )

    def play(
        params: Params, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray, split: str = "train",
        temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    ) -> StepBatch:  # fmt: skip
        tasks, samples = [int(t) for t in task_N], [int(s) for s in sample_N]
        played = host.play(shown[split], params, key, tasks, samples, temperature, top_k, top_p)
        return shard_rows(collate(played, settings.max_steps, lengths), mesh)

    def demonstrated(key: jax.Array, task_N: np.ndarray) -> StepBatch:
        # A row is filled with demonstrations of its own run of task numbers.
        seeds = np.asarray(jax.random.randint(key, (len(task_N),), 0, 2**31 - 1))
        rows = [
            _row_of(int(t) * MAX_PACKED, int(seed)) for t, seed in zip(task_N, seeds, strict=True)
        ]
        return shard_rows(pack(rows, context), mesh)

    def _row_of(first: int, seed: int) -> list[Trajectory]:
        row: list[Trajectory] = []
        room, sampled_room = context, context // 2
        env = envs["train"]
        for task in range(first, first + MAX_PACKED):
            actions = demonstrate(
                env,
                task,
                seed,
                wander=settings.demo_wander,
                slip=settings.demo_slip,
                give_up=settings.demo_give_up,
            ).actions
            played = scripted(shown["train"], tokenizer, task, actions, settings.max_steps, context)
            sampled = sum(len(step.action_ids) for step in played.steps)
            tokens = sampled + sum(len(step.observation_ids) for step in played.steps)
            if tokens > room or sampled > sampled_room:
                break
            row.append(played)
            room, sampled_room = room - tokens, sampled_room - sampled
        return row

    return Player(play, demonstrated, tokenizer, splits)


def attempts(first_task: int, tasks: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `tasks` tasks from `first_task` on, `n` attempts each: (task_N, sample_N)."""
    task_N = np.repeat(np.arange(first_task, first_task + tasks), n)
    return task_N, np.tile(np.arange(n), tasks)


def summary(batch: StepBatch) -> dict[str, jax.Array]:
    """What happened in a batch, as scalars on the device, by the names of metrics."""
    steps = jnp.maximum(jnp.sum(batch.mask_NS), 1)
    turns_N = jnp.sum(batch.mask_NS, axis=1)
    sampled_NT = batch.step_ids_NT >= 0
    sampled = jnp.maximum(jnp.sum(sampled_NT), 1)
    return {
        "rollout/success_rate": jnp.mean(batch.success_N.astype(jnp.float32)),
        "critic/rewards/mean": jnp.mean(jnp.sum(batch.reward_NS, axis=1)),
        "critic/rewards/max": jnp.max(jnp.sum(batch.reward_NS, axis=1)),
        "critic/rewards/min": jnp.min(jnp.sum(batch.reward_NS, axis=1)),
        "num_turns/mean": jnp.mean(turns_N.astype(jnp.float32)),
        "num_turns/max": jnp.max(turns_N),
        "num_turns/min": jnp.min(turns_N),
        "step/count": jnp.sum(batch.mask_NS),
        "response_length/mean": sampled / steps,
        "actor/entropy": jnp.sum(batch.entropy_NT) / sampled,
        "response_length/clip_ratio": jnp.sum(batch.stop_NS == STOP_REASONS.index("length"))
        / steps,
        "env/context_full_frac": jnp.mean(
            jnp.any(batch.stop_NS == STOP_REASONS.index("context_full"), axis=1).astype(jnp.float32)
        ),
        "env/parse_error_frac": jnp.sum(batch.mask_NS & ~batch.valid_NS) / steps,
        "env/truncated_frac": jnp.mean(jnp.any(batch.truncated_NS, axis=1).astype(jnp.float32)),
        "token/sampled_frac": sampled / jnp.maximum(jnp.sum(batch.segment_ids_NT > 0), 1),
    }
