"""`steprl chat`."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
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
        choices=("wiki_search", "none"),
        help="play each question through the environment (default: that of the run)",
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
        shown = "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)
        self.console.print(shown, end=end, markup=False, style=style)


def _chat(options: argparse.Namespace, console: Console) -> int:
    from steprl.serving import serve_model
    from steprl.session import open_policy

    if options.max_tokens < 1 or options.temperature < 0:
        raise ValueError("--max-tokens starts at 1, --temperature at 0")
    with console.status(f"Opening {escape(options.model)} ..."):
        opened = open_policy(options.model, options.step)
        talk = _Talk(serve_model(opened, options.model, options.context), options, console)
    if talk.served.conversation is None:
        raise ValueError(
            f"{options.model} has no chat template, so there is nobody to talk to; `steprl rollout` "
            "shows what a run does in its environment"
        )
    of_run = opened.config.env.name if opened.config else "none"
    environment = options.env or (of_run if of_run == "wiki_search" else "none")
    if environment == "none":
        _converse(talk)
    else:
        _research(talk, opened)
    return 0


def _lines(talk: _Talk, hint: str) -> Iterator[str]:
    """What the user says: of the option, of a pipe, or typed."""
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
            asked = [*messages, {"role": "user", "content": line}]
            first = [{"role": "system", "content": system}] if system else []
            prompt = talk.served.conversation.encode([*first, *asked], [])
            if talk.settings(prompt, turn) is None:
                talk.console.print(
                    f"[red]The context of {talk.served.engine.context_length} tokens is full: "
                    "/reset.[/]"
                )
                continue
            _, text, _ = talk.reply(prompt, turn)
            messages = [*asked, {"role": "assistant", "content": text}]
            turn += 1


def _research(talk: _Talk, opened: Any) -> None:
    """Each line is a question, played through the environment as in a rollout."""
    from steprl.serving.play import play

    with talk.console.status("Opening the passages ..."):
        ask, context = _wiki_search(talk, opened)
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


def _wiki_search(talk: _Talk, opened: Any) -> tuple[Callable[[str], Any], Any]:
    """The environment of one typed question, and how it is read: as in the run, or as by default."""
    from steprl.config import Config
    from steprl.envs.wiki_search import Question, wiki_search
    from steprl.envs.wiki_search.prompts import SYSTEM
    from steprl.rollout.contexts import chat_context

    settings = (opened.config or Config()).env.wiki_search
    context = chat_context(
        opened.tokenizer, talk.options.system or SYSTEM, rebuild=settings.context == "rebuild"
    )
    # Prompt and reply fit into the context in any case, as in a rollout.
    room = talk.served.engine.context_length - len(context.begin(""))
    if opened.config is not None:
        room = min(room, opened.config.rollout.context_length - len(context.begin("")))
        talk.options.max_tokens = min(
            talk.options.max_tokens, opened.config.rollout.response_length
        )
    room -= talk.options.max_tokens
    if room < 256:
        raise ValueError(
            f"--max-tokens {talk.options.max_tokens} leaves {room} tokens of the context for a prompt; "
            "wiki_search needs some 256"
        )
    env = wiki_search(
        settings.questions, settings.passages, "all", settings.cache,
        max_steps=settings.max_steps, max_calls=settings.max_calls, hits=settings.hits,
        first_search=settings.first_search, recent_issues=settings.recent_issues,
        passage_length=settings.passage_length, context=settings.context, prompt_length=room,
        measure=lambda text: len(opened.tokenizer.encode(text)),
    )  # fmt: skip

    def ask(text: str) -> Any:
        return dataclasses.replace(env, questions=(Question("typed", text, ()),))

    return ask, context
