"""What a run needs of its environment, whether that lives on the device or on the host."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from steprl.config import Config
from steprl.envs import Env
from steprl.envs.games import GAMES, make_game, player_of, vocabulary_of
from steprl.models.chat import chat_format
from steprl.rollout.contexts import chat_context, plain_context
from steprl.rollout.conversations import conversation_demonstrations
from steprl.rollout.device_player import device_player
from steprl.rollout.scripted import scripted
from steprl.rollout.text_player import Player, text_player
from steprl.types import Policy, StepBatch, Trajectory

Demonstrate = Callable[[jax.Array, np.ndarray], StepBatch]


def phrases_of(config: Config) -> Any | None:
    """The tokenizer of an environment with a small language of its own; None where it has none."""
    from steprl.models.tokenizer import phrase_tokenizer

    if config.env.name in GAMES:
        return phrase_tokenizer(vocabulary_of(config.env))
    if config.env.name == "household":
        from steprl.envs.household.vocabulary import vocabulary

        return phrase_tokenizer(vocabulary())
    return None


def make_player(config: Config, policy: Policy, mesh: Mesh, tokenizer: Any) -> Player:
    """The player of the configured environment; batches come back placed on the mesh.

    Args:
        tokenizer: of the language model, or from `phrases_of`.
    """
    make = {
        **dict.fromkeys(GAMES, _game_player),
        "household": _household_player,
        "wiki_search": _wiki_search_player,
        "mini_shop": _mini_shop_player,
    }.get(config.env.name, _custom_player)
    player = make(config, policy, mesh, tokenizer)
    if config.sft.data is not None:
        player = player._replace(demonstrate=_conversations(config, mesh, tokenizer))
    return player


def _conversations(config: Config, mesh: Mesh, tokenizer: Any) -> Demonstrate:
    """Demonstrations from a file of conversations, which is read when the first is asked for."""
    chat = chat_format(tokenizer)

    @functools.cache
    def read() -> Demonstrate:
        length, seed = config.rollout.context_length, config.trainer.seed
        return conversation_demonstrations(config.sft.data or "", chat, length, seed, mesh)

    return lambda key, task_N: read()(key, task_N)


def _game_player(config: Config, policy: Policy, mesh: Mesh, tokenizer: Any) -> Player:
    if config.model.path is not None:
        raise ValueError(
            f"env.name={config.env.name} has a language of its own and runs on the device: leave out "
            "model.path, or take another environment, such as wiki_search"
        )
    return device_player(
        functools.partial(make_game, config.env), policy, mesh, tokenizer,
        make_game(config.env, shown=True), player_of(config.env),
    )  # fmt: skip


def _household_player(config: Config, policy: Policy, mesh: Mesh, tokenizer: Any) -> Player:
    from steprl.envs.household import TASK_TYPES, Household
    from steprl.envs.household.expert import demonstrate
    from steprl.envs.household.reminder import Reminded

    settings = config.env.household
    chat = config.model.path is not None
    envs = {
        split: Household(
            split=split,
            task_types=TASK_TYPES if settings.task_types == ["all"] else tuple(settings.task_types),
            max_steps=settings.max_steps,
            rooms=settings.rooms,
            max_receptacles=settings.max_receptacles,
            max_object_types=settings.max_object_types,
            admissible=False,
        )
        for split in ("train", "valid_seen", "valid_unseen")
    }
    shown: dict[str, Env] = {s: Reminded(e) if settings.remind else e for s, e in envs.items()}
    context = chat_context(tokenizer, _HOUSEHOLD_SYSTEM) if chat else plain_context(tokenizer)

    def demonstrated(task: int, seed: int) -> Trajectory:
        actions = demonstrate(
            envs["train"], task, seed, wander=settings.demo_wander, slip=settings.demo_slip,
            give_up=settings.demo_give_up,
        ).actions  # fmt: skip
        length = config.rollout.context_length
        return scripted(shown["train"], context, task, actions, settings.max_steps, length)

    return text_player(
        shown, context, tokenizer, policy, mesh, config.rollout, settings.max_steps, demonstrated
    )


_HOUSEHOLD_SYSTEM = (
    "You act in a house. Reply with one command, such as: go to fridge 1; open fridge 1; take apple 1 "
    "from fridge 1; move apple 1 to table 1; heat apple 1 with microwave 1; use desklamp 1; look."
)


def _wiki_search_player(config: Config, policy: Policy, mesh: Mesh, tokenizer: Any) -> Player:
    from steprl.envs.wiki_search import demonstrate, wiki_search
    from steprl.envs.wiki_search.prompts import SYSTEM

    settings, length = config.env.wiki_search, config.rollout.context_length
    context = chat_context(tokenizer, SYSTEM, rebuild=settings.context == "rebuild")
    # What a prompt may measure, so that it and a reply always fit.
    room = length - config.rollout.response_length - len(context.begin(""))
    if room < 256:
        raise ValueError(
            f"rollout.context_length={length} leaves {room} tokens for a prompt beside "
            f"rollout.response_length={config.rollout.response_length}; wiki_search needs some 256"
        )
    options: dict[str, Any] = dict(
        kinds=settings.kinds, answers=settings.answers, cache=settings.cache,
        max_steps=settings.max_steps, max_calls=settings.max_calls,
        hits=settings.hits, first_search=settings.first_search, recent_issues=settings.recent_issues,
        passage_length=settings.passage_length, context=settings.context, reward=settings.reward,
        prompt_length=room, measure=lambda text: len(tokenizer.encode(text)),
    )  # fmt: skip
    panels: dict[str, Any] = dict(settings.eval_questions) or {"valid": settings.questions}
    envs: dict[str, Any] = {
        "train": wiki_search(settings.questions, settings.passages, "train", **options)
    }
    for split, questions in panels.items():
        part = "all" if settings.eval_questions else "valid"
        envs[split] = wiki_search(questions, settings.passages, part, **options)
    # The demonstrator searches for the titles that the data set names, if it names any.
    known = tuple(question for question in envs["train"].questions if question.titles)
    shown = dataclasses.replace(envs["train"], questions=known) if known else envs["train"]

    def demonstrated(task: int, seed: int) -> Trajectory:
        return scripted(shown, context, task, demonstrate, settings.max_steps, length)

    return text_player(
        envs, context, tokenizer, policy, mesh, config.rollout, settings.max_steps,
        demonstrated if known else None,
        {split: len(env.questions) for split, env in envs.items()},
    )  # fmt: skip


_WORKERS = 8  # environments of your own may wait for something


def _mini_shop_player(config: Config, policy: Policy, mesh: Mesh, tokenizer: Any) -> Player:
    from steprl.envs.mini_shop import demonstrate, open_splits
    from steprl.envs.mini_shop.pages import SYSTEM

    envs = open_splits(**vars(config.env.mini_shop))
    train = next(iter(envs.values()))
    context = chat_context(tokenizer, SYSTEM, rebuild=train.context == "rebuild")

    def demonstrated(task: int, seed: int) -> Trajectory:
        length = config.rollout.context_length
        return scripted(train, context, task, demonstrate, train.max_steps, length)

    return text_player(
        envs, context, tokenizer, policy, mesh, config.rollout, train.max_steps, demonstrated,
        {split: len(env.goals) for split, env in envs.items()},
    )  # fmt: skip


def _custom_player(config: Config, policy: Policy, mesh: Mesh, tokenizer: Any) -> Player:
    from steprl.envs.custom import load_environment
    from steprl.tools import describe_tools

    envs: Mapping[str, Env] = load_environment(config.env.name, config.env.options)
    env = envs["train"]
    system, tools = getattr(env, "system", None), getattr(env, "tools", None)
    rebuild = getattr(env, "context", "extend") == "rebuild"
    try:
        context = chat_context(tokenizer, system, tools, rebuild)
    except ValueError:  # a template that shows no tools; they are described instead
        described = "\n\n".join(part for part in (system, describe_tools(tools or ())) if part)
        context = chat_context(tokenizer, described or None, None, rebuild)
    max_steps = getattr(env, "max_steps", None) or config.rollout.max_steps
    player = text_player(
        envs, context, tokenizer, policy, mesh, config.rollout, max_steps, workers=_WORKERS
    )
    if len(envs) == 1:  # it is evaluated on what it is trained on, and called so
        player = player._replace(splits=("train", "train"))
    return player
