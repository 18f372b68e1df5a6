"""`steprl chat`."""

import argparse
from typing import Any

from rich.console import Console
from rich.markup import escape

from steprl.cli.playing import environment_of, play_lines
from steprl.cli.serve import add_model
from steprl.cli.talk import Talk, lines

_HELP = "/reset forgets the conversation, /system TEXT sets the system message, /quit leaves"


def add_commands(command: Any) -> None:
    """Adds it to the parser."""
    sub = command("chat", _chat, "Talk to a policy, or watch it use its tools.")
    add_model(sub)
    sub.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the environment: env.options.x=1 ..."
    )
    sub.add_argument("--question", metavar="TEXT", help="ask this one thing, and leave")
    sub.add_argument("--system", metavar="TEXT", help="the system message")
    sub.add_argument(
        "--env",
        metavar="NAME",
        help="let it play in this environment, of steprl or your own as module:function, or none (default: "
        "that of the run, where it takes questions)",
    )
    sub.add_argument("--task", type=int, metavar="N", help="play this task, and leave")
    sub.add_argument("--temperature", type=float, default=0.7, help="default: 0.7; 0 is greedy")
    sub.add_argument("--max-tokens", type=int, default=512, help="of one reply (default: 512)")
    sub.add_argument("--seed", type=int, help="so that the same words get the same replies")


def _chat(options: argparse.Namespace, console: Console) -> int:
    from steprl.serving import serve_model
    from steprl.session import open_policy

    if options.max_tokens < 1 or not 0 <= options.temperature < float("inf"):
        raise ValueError("--max-tokens starts at 1, --temperature at 0")
    if options.seed is not None and not -(2**63) <= options.seed < 2**63:
        raise ValueError(f"--seed {options.seed}: a whole number of 64 bits")
    if strangers := [item for item in options.overrides if not item.startswith("env.")]:
        raise ValueError(
            f"{strangers[0]}: chat takes settings of the environment only, env.KEY=VALUE"
        )
    with console.status(f"Opening {escape(options.model)} ..."):
        opened = open_policy(options.model, options.step)
        talk = Talk(serve_model(opened, options.model, options.context), options, console)
    suite, config = environment_of(talk, opened)
    if suite is not None:
        play_lines(talk, opened, suite, config)
    elif talk.served.conversation is None:
        raise ValueError(
            f"{options.model} has no chat template, so it cannot chat; with --env NAME it plays tasks"
        )
    else:
        _converse(talk)
    return 0


def _converse(talk: Talk) -> None:
    """A conversation, its history kept."""
    system = talk.options.system
    messages: list[dict[str, str]] = []
    turn = 0
    for line in lines(talk, _HELP):
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
