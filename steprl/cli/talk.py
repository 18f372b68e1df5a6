"""What the ways of talking to a policy share: its replies as they grow, and lines of the user."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console


class Talk(NamedTuple):
    """A policy on the terminal."""

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


def lines(talk: Talk, hint: str, blank: bool = False) -> Iterator[str]:
    """What the user writes: from the option, from a pipe, or typed, empty lines too if `blank`."""
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
            if line or blank:
                yield line
