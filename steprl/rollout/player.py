"""The player of a run: whatever the environment, one of two executors plays it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from steprl.config import Config
from steprl.envs.privileged import privileged_env, privileged_game
from steprl.envs.suite import Suite
from steprl.models.chat import chat_format
from steprl.rollout.contexts import suite_context
from steprl.rollout.conversations import conversation_demonstrations
from steprl.rollout.device_player import device_player
from steprl.rollout.scripted import scripted
from steprl.rollout.text_player import Player, text_player
from steprl.types import Policy, StepBatch, Trajectory

Demonstrations = Callable[[jax.Array, np.ndarray], StepBatch]


def make_player(
    suite: Suite,
    config: Config,
    policy: Policy,
    mesh: Mesh,
    tokenizer: Any,
    privileged: bool = False,
) -> Player:
    """The player of an environment; batches come back placed on the mesh.

    Args:
        tokenizer: of the language model, or `phrase_tokenizer(suite.vocabulary)`.
        privileged: batches hold what the environment tells the critic alone.

    Raises:
        ValueError: the environment and the settings of the model or the rollout do not fit each other,
            or it tells the critic nothing.
    """
    make = _text_player if suite.game is None else _device_player
    player = make(suite, config, policy, mesh, tokenizer, privileged)
    if config.sft.data is not None:
        player = player._replace(demonstrate=_conversations(config, mesh, tokenizer))
    return player


def _conversations(config: Config, mesh: Mesh, tokenizer: Any) -> Demonstrations:
    """Demonstrations from a file of conversations, which is read when the first is needed."""
    chat = chat_format(tokenizer)

    @functools.cache
    def read() -> Demonstrations:
        length, seed = config.rollout.context_length, config.trainer.seed
        return conversation_demonstrations(config.sft.data or "", chat, length, seed, mesh)

    return lambda key, task_N: read()(key, task_N)


def _device_player(
    suite: Suite, config: Config, policy: Policy, mesh: Mesh, tokenizer: Any, privileged: bool
) -> Player:
    game = suite.game
    assert game is not None
    if config.model.path is not None:
        raise ValueError(
            f"env.name={config.env.name} has a language of its own and runs on the device: leave out "
            "model.path, or take an environment in natural language"
        )
    if privileged:
        game = privileged_game(game, f"env.name={config.env.name}")
    return device_player(game.make, policy, mesh, tokenizer, game.shown(), game.demonstrate)


def _text_player(
    suite: Suite, config: Config, policy: Policy, mesh: Mesh, tokenizer: Any, privileged: bool
) -> Player:
    pretrained = suite.vocabulary is None or config.model.path is not None
    context = suite_context(suite, tokenizer, pretrained)
    length, response = config.rollout.context_length, config.rollout.response_length
    if suite.limited is not None:
        # What a prompt may measure, so that it and a reply always fit.
        room = length - response - len(context.begin(""))
        try:
            suite = suite.limited(room, context.measure)
        except ValueError as error:
            raise ValueError(
                f"rollout.context_length={length} leaves {room} tokens for a prompt beside "
                f"rollout.response_length={response}; {error}"
            ) from None
    max_steps, show = suite.max_steps or config.rollout.max_steps, suite.demonstrate
    shown = suite.train if suite.demonstration_env is None else suite.demonstration_env

    def demonstrated(task: int, seed: int) -> Trajectory:
        assert show is not None
        return scripted(shown, context, task, show(task, seed), max_steps, length)

    splits: Mapping[str, Any] = suite.splits
    if privileged:
        source = f"env.name={config.env.name}"
        splits = {name: privileged_env(env, source) for name, env in splits.items()}
    player = text_player(
        splits, context, tokenizer, policy, mesh, config.rollout, max_steps,
        None if show is None else demonstrated, suite.sizes, suite.workers,
    )  # fmt: skip
    return player._replace(splits=suite.names)
