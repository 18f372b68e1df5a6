"""What `steprl chat` shows of a policy in an environment: typed questions, or its tasks."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from steprl.cli.talk import Talk, lines


def environment_of(talk: Talk, opened: Any) -> tuple[Any, Any]:
    """The suite that is played in, and the settings; None where it is only talked to.

    That of --env or env.name=..., or of the run: where that takes typed questions, where --task asks for
    it, or where the model has no chat template, so that playing is all it can do.
    """
    from steprl.config import load_config
    from steprl.envs.opening import open_suite
    from steprl.session.sources import settings_of

    options = talk.options
    named = [] if options.env in (None, "none") else [f"env.name={options.env}"]
    overrides = [*options.overrides, *named]
    is_named = any(item.startswith("env.name=") for item in overrides)
    if options.env == "none" or (opened.config is None and not is_named):
        if overrides or options.task is not None:
            what = overrides[0] if overrides else f"--task {options.task}"
            raise ValueError(f"{what}: in which environment? Add --env NAME")
        return None, opened.config
    if opened.config is None:
        config = load_config(None, overrides)
    else:
        config = settings_of(options.model, overrides) if overrides else opened.config
    try:
        with talk.console.status(f"Opening {escape(config.env.name)} ..."):
            suite = open_suite(config.env)
    except (ValueError, ImportError, FileNotFoundError) as error:
        if is_named or options.task is not None:
            raise
        talk.console.print(
            f"[dim]The environment of the run cannot be opened: {escape(str(error))}[/]"
        )
        return None, config
    plays = is_named or options.task is not None or talk.served.conversation is None
    if suite.question is None and not plays:
        return None, config
    if suite.question is None and options.question is not None:
        raise ValueError(
            f"--question: {config.env.name} takes no typed questions; --task N plays one of its tasks"
        )
    return suite, config


def play_lines(talk: Talk, opened: Any, suite: Any, config: Any) -> None:
    """Each line is a question, or the number of a task, played as in a rollout."""
    suite, context = _read_as_in_the_run(talk, opened, suite)
    split = suite.names[1]
    by_question = suite.question is not None and talk.options.task is None
    steps = suite.max_steps or config.rollout.max_steps
    if talk.options.task is not None:
        _play(talk, suite.splits[split], context, talk.options.task, steps)
        return
    if by_question:
        hint = "Each line is a question; /quit leaves"
    else:
        hint = f"A number plays that task of {split}, Enter the next one; /quit leaves"
    task = -1
    for line in lines(talk, hint, blank=not by_question):
        if line == "/quit":
            return
        if not by_question and line and not line.isdecimal():
            talk.console.print(f"[red]{escape(line)} is no number of a task.[/] [dim]{hint}.[/]")
            continue
        task = int(line) if not by_question and line else task + 1
        env = suite.question(line) if by_question else suite.splits[split]
        try:
            _play(talk, env, context, 0 if by_question else task, steps)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise


def _play(talk: Talk, env: Any, context: Any, task: int, max_steps: int) -> None:
    from steprl.serving.play import play

    turn = 0

    def reply(prompt: Sequence[int]) -> list[int]:
        nonlocal turn
        if talk.settings(prompt, turn) is None:
            raise ValueError(
                f"--context: the prompt has {len(prompt)} tokens, and all of them are "
                f"{talk.served.engine.context_length}"
            )
        ids, _, stopped = talk.reply(prompt, turn)
        turn += 1
        if stopped:
            raise KeyboardInterrupt
        return ids

    for number, step in enumerate(play(env, context, task, reply, max_steps)):
        _show(talk, step, number)


def _show(talk: Talk, step: Any, number: int) -> None:
    """What a step was answered, behind the reply itself."""
    from steprl.rollout.contexts import as_text

    outcomes = step.info.get("outcomes")
    if step.action is None or not outcomes:
        talk.write(as_text(step.observation), style="dim", end="\n")
    for outcome in outcomes or ():
        name = f"{outcome.name} {outcome.arguments}" if outcome.ok else "not called"
        talk.write(f"{name}:", style="cyan", end="\n")
        talk.write(outcome.text, style="dim", end="\n")
    if not step.over:
        talk.console.rule(f"step {number + 1}", style="dim", align="left")
    elif step.info.get("answer"):
        talk.write(f"Answer: {step.info['answer']}", style="bold", end="\n")
    elif "answer" in step.info:
        talk.console.print("[dim]No answer within the steps.[/]")
    if step.over and "answer" not in step.info:
        verdict = "Solved" if step.info.get("success") else "Not solved"
        talk.console.print(f"[bold]{verdict}[/], the last reward is {step.reward:g}.")


def _read_as_in_the_run(talk: Talk, opened: Any, suite: Any) -> tuple[Any, Any]:
    """The environment with prompts that fit, and how the policy reads them: as in a rollout."""
    from steprl.envs.games import text_game
    from steprl.envs.suite import Suite
    from steprl.rollout.contexts import suite_context

    options = talk.options
    if suite.game is not None:
        names = zip(suite.names, (False, True), strict=True)
        games = {name: text_game(suite.game, heldout) for name, heldout in names}
        options.max_tokens = min(options.max_tokens, games["train"].game.action_width)
        steps = games["train"].max_steps
        suite = Suite(splits=games, vocabulary=suite.vocabulary, max_steps=steps)
    if options.system:
        suite = dataclasses.replace(suite, system=options.system)
    chats = talk.served.conversation is not None
    if not chats and suite.vocabulary is None:
        raise ValueError(
            f"{options.model} has no chat template, so it cannot read an environment in natural language"
        )
    context = suite_context(suite, opened.tokenizer, pretrained=chats)
    # Prompt and reply fit into the context in any case.
    room = talk.served.engine.context_length - len(context.begin(""))
    if opened.config is not None:
        room = min(room, opened.config.rollout.context_length - len(context.begin("")))
        options.max_tokens = min(options.max_tokens, opened.config.rollout.response_length)
    room -= options.max_tokens
    if suite.limited is None:
        return suite, context
    try:
        return suite.limited(room, context.measure), context
    except ValueError as error:
        raise ValueError(
            f"--max-tokens {options.max_tokens} leaves {room} tokens of the context for a prompt; "
            f"{error}"
        ) from None
