"""`steprl chat`."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape

from steprl.cli.serve import add_model

_HELP = "/reset forgets the conversation, /system TEXT sets the system message, /quit leaves"


def add_commands(command: Any) -> None:
    """Adds it to the parser."""
    sub = command("chat", _chat, "Talk to a policy, or watch it use its tools.")
    add_model(sub)
    sub.add_argument("--question", metavar="TEXT", help="ask this one thing, and leave")
    sub.add_argument("--system", metavar="TEXT", help="the system message")
    sub.add_argument(
        "--env",
        metavar="NAME",
        help="play each question through this environment, or none (default: that of the run, where it "
        "takes questions)",
    )
    sub.add_argument("--temperature", type=float, default=0.7, help="default: 0.7; 0 is greedy")
    sub.add_argument("--max-tokens", type=int, default=512, help="of one reply (default: 512)")
    sub.add_argument("--seed", type=int, help="so that the same words get the same replies")


class _Talk(NamedTuple):
    """What the two ways of talking share."""

    served: Any
    options: argparse.Namespace
    console: Console

    def settings(self, prompt: Sequence[int], turn: int) -> Any:
        """How to draw the reply of a turn; None if the context is full."""
        from steprl.sampling import Sampling
        from steprl.serving import ReplySettings

        room = self.served.engine.context_length - len(prompt)
        if room < 1:
            return None
        options = self.options
        return ReplySettings(
            max_tokens=min(options.max_tokens, room),
            sampling=Sampling(options.temperature),
            stop_ids=self.served.stop_ids,
            seed=options.seed,
            choice=turn,
        )

    def reply(self, prompt: Sequence[int], turn: int) -> tuple[list[int], str, bool]:
        """Ids and text of a reply, shown as it grows, and whether Ctrl-C stopped it."""
        from steprl.serving import read_text

        ids: list[int] = []
        text, stopped = "", False
        pieces = self.served.engine.reply(prompt, self.settings(prompt, turn))
        try:
            for delta in read_text(pieces, self.served.decode):
                ids += delta.piece.ids
                text += delta.text
                self.write(delta.text)
        except KeyboardInterrupt:
            stopped = True
            self.console.print(" [dim](stopped)[/]", end="")
        finally:
            pieces.close()
        self.console.print()
        return ids, text, stopped

    def write(self, text: str, style: str | None = None, end: str = "") -> None:
        shown = "".join(
            character if character.isprintable() or character in "\n\t" else "\ufffd"
            for character in text
        )
        self.console.print(shown, end=end, markup=False, style=style)


def _chat(options: argparse.Namespace, console: Console) -> int:
    from steprl.serving import serve_model
    from steprl.session import open_policy

    if options.max_tokens < 1 or not 0 <= options.temperature < float("inf"):
        raise ValueError("--max-tokens starts at 1, --temperature at 0")
    with console.status(f"Opening {escape(options.model)} ..."):
        opened = open_policy(options.model, options.step)
        talk = _Talk(serve_model(opened, options.model, options.context), options, console)
    if talk.served.conversation is None:
        raise ValueError(
            f"{options.model} has no chat template, so there is nobody to talk to; `steprl rollout` "
            "shows what a run does in its environment"
        )
    suite = _questioned(talk, opened.config)
    if suite is None:
        _converse(talk)
    else:
        _research(talk, opened, suite)
    return 0


def _questioned(talk: _Talk, config: Any) -> Any:
    """The suite that questions are played through, if any: of --env, or of the run."""
    from steprl.config import Config
    from steprl.envs.opening import open_suite

    name = talk.options.env
    if name == "none" or (name is None and config is None):
        return None
    env = (Config() if config is None else config).env
    if name is None:
        try:
            suite = open_suite(env)
        except (ValueError, ImportError, FileNotFoundError) as error:
            talk.console.print(
                f"[dim]The environment of the run cannot be opened: {escape(str(error))}[/]"
            )
            return None
        return None if suite.question is None else suite
    with talk.console.status(f"Opening {escape(name)} ..."):
        suite = open_suite(dataclasses.replace(env, name=name))
    if suite.question is None:
        raise ValueError(f"--env {name}: it takes no typed questions")
    return suite


def _lines(talk: _Talk, hint: str) -> Iterator[str]:
    """What the user writes: from the option, from a pipe, or typed."""
    if talk.options.question is not None:
        yield talk.options.question
    elif not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
    else:
        import readline  # noqa: F401  # lines can be edited and repeated

        talk.console.print(f"[dim]{hint}; Ctrl-C stops a reply, Ctrl-D leaves.[/]")
        while True:
            try:
                line = talk.console.input("[bold]> [/]").strip()
            except EOFError:
                talk.console.print()
                return
            except KeyboardInterrupt:
                talk.console.print()
                continue
            if line:
                yield line


def _converse(talk: _Talk) -> None:
    """A conversation, its history kept."""
    system = talk.options.system
    messages: list[dict[str, str]] = []
    turn = 0
    for line in _lines(talk, _HELP):
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return
        if word in ("/reset", "/system"):
            system = (rest.strip() or None) if word == "/system" else system
            messages = []
            talk.console.print("[dim]A new conversation.[/]")
        elif word.startswith("/") and word[1:].isalpha():
            talk.console.print(f"[dim]{escape(word)} is no command. {_HELP}.[/]")
        else:
            history = [*messages, {"role": "user", "content": line}]
            first = [{"role": "system", "content": system}] if system else []
            prompt = talk.served.conversation.encode([*first, *history], [])
            if talk.settings(prompt, turn) is None:
                talk.console.print(
                    f"[red]The context of {talk.served.engine.context_length} tokens is full: "
                    "/reset.[/]"
                )
                continue
            _, text, _ = talk.reply(prompt, turn)
            messages = [*history, {"role": "assistant", "content": text}]
            turn += 1


def _research(talk: _Talk, opened: Any, suite: Any) -> None:
    """Each line is a question, played through the environment as in a rollout."""
    from steprl.serving.play import play

    suite, context = _read_as_in_the_run(talk, opened, suite)
    ask = suite.question
    assert ask is not None
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

    for line in _lines(talk, "Each line is a question; /quit leaves"):
        if line == "/quit":
            return
        try:
            for number, step in enumerate(play(ask(line), context, 0, reply)):
                _show(talk, step, number)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise


def _show(talk: _Talk, step: Any, number: int) -> None:
    """What a step was answered, behind the reply itself."""
    if step.action is None:
        talk.write(str(step.observation), style="dim", end="\n")
    for outcome in step.info.get("outcomes", ()):
        name = f"{outcome.name} {outcome.arguments}" if outcome.ok else "not called"
        talk.write(f"{name}:", style="cyan", end="\n")
        talk.write(outcome.text, style="dim", end="\n")
    if not step.over:
        talk.console.rule(f"step {number + 1}", style="dim", align="left")
    elif step.info.get("answer"):
        talk.write(f"Answer: {step.info['answer']}", style="bold", end="\n")
    else:
        talk.console.print("[dim]No answer within the steps.[/]")


def _read_as_in_the_run(talk: _Talk, opened: Any, suite: Any) -> tuple[Any, Any]:
    """The environment with prompts that fit, and how the policy reads them: as in a rollout."""
    from steprl.rollout.contexts import suite_context

    if talk.options.system:
        suite = dataclasses.replace(suite, system=talk.options.system)
    context = suite_context(suite, opened.tokenizer, pretrained=True)
    # Prompt and reply fit into the context in any case.
    room = talk.served.engine.context_length - len(context.begin(""))
    if opened.config is not None:
        room = min(room, opened.config.rollout.context_length - len(context.begin("")))
        talk.options.max_tokens = min(
            talk.options.max_tokens, opened.config.rollout.response_length
        )
    room -= talk.options.max_tokens
    if suite.limited is None:
        return suite, context
    try:
        return suite.limited(room, lambda text: len(opened.tokenizer.encode(text))), context
    except ValueError as error:
        raise ValueError(
            f"--max-tokens {talk.options.max_tokens} leaves {room} tokens of the context for a prompt; "
            f"{error}"
        ) from None
