"""Text of a reply as it grows: never half a character, half a stop string or half a tool call."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from steprl.serving.generation import Piece
from steprl.tools import ToolCall, read_reply

_BROKEN = "\ufffd"  # what an incomplete character is decoded to
_OPEN = "<tool_call>"
_FINISH = {"running": None, "stop_token": "stop", "length": "length", "context_full": "length"}


class Delta(NamedTuple):
    """What a piece adds to the text. Its tokens may be ahead of the text, which waits for more."""

    text: str
    piece: Piece
    finish: str | None = None  # as OpenAI names it: "stop", "length", "tool_calls"
    calls: tuple[ToolCall, ...] = ()


def read_text(
    pieces: Iterable[Piece], decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()
) -> Iterator[Delta]:
    """The text of a reply, piece by piece; it ends before a stop string.

    Args:
        pieces: as of `ReplyEngine.reply`; not read further after a stop string.
        decode: text of all tokens so far, without a stop token at the end.
        stops: strings that end the text and do not belong to it; the one that is complete first does.

    Returns:
        One delta a piece. Behind a stop string the tokens are cut where it was complete.
    """
    ids: list[int] = []
    sent = 0
    for piece in pieces:
        before = len(ids)
        ids += piece.ids
        text, finish = decode(ids), _FINISH[piece.reason]
        end = _first_stop(text, stops, sent)
        if end is not None:
            tokens = next(
                count
                for count in range(before, len(ids) + 1)
                if _first_stop(decode(ids[:count]), stops, sent) is not None
            )
            yield Delta(text[sent:end], _cut(piece, tokens - before), "stop")
            return
        ready = len(text) if finish else _settled_length(text, stops)
        yield Delta(text[sent:ready], piece, finish)
        sent = max(sent, ready)


def read_calls(deltas: Iterable[Delta], bare: bool = False, opened: str = "") -> Iterator[Delta]:
    """Text up to the first tool call, and at the end the calls; the text of all if one is none.

    Calls are those of the whole reply outside of its thoughts. Where any block cannot be read, none
    counts and the text is given as it is.

    Args:
        deltas: of the text.
        bare, opened: as of `split_calls`.
    """
    first = "{" if bare else _OPEN
    text, sent = "", 0
    for delta in deltas:
        text += delta.text
        if delta.finish is None:
            start = text.find(first)
            ready = start if start >= 0 else len(text) - _partial_length(text, (first,))
            yield delta._replace(text=text[sent:ready])
            sent = max(sent, ready)
            continue
        content, calls = split_calls(text, bare, opened)
        rest = content[sent:]
        if calls:
            rest = rest if rest.strip() else ""
            yield delta._replace(text=rest, finish="tool_calls", calls=calls)
        else:
            yield delta._replace(text=rest)


def split_calls(
    text: str, bare: bool = False, opened: str = ""
) -> tuple[str, tuple[ToolCall, ...]]:
    """The text around the tool calls, and the calls; all of it and no call if one cannot be read.

    Args:
        text: of a reply.
        bare: the model writes its calls without tags, as Llama 3.
        opened: what the prompt has begun, such as "<think>".

    Example:
        >>> split_calls('Look: <tool_call>{"name": "add"}</tool_call>')
        ('Look: ', (ToolCall(place=0, name='add', arguments={}),))
        >>> split_calls("<tool_call>add</tool_call>")
        ('<tool_call>add</tool_call>', ())
    """
    reply = read_reply(opened + text, bare=bare)
    if reply.errors or not reply.calls:
        return text, ()
    around, position = [], 0
    for start, end in reply.spans:
        around.append(text[position : start - len(opened)])
        position = end - len(opened)
    return "".join([*around, text[position:]]), tuple(reply.calls)


def _first_stop(text: str, stops: Sequence[str], sent: int) -> int | None:
    """Where the stop string begins that is complete first, of those the longest."""
    ends = [(place + len(stop), place) for stop in stops if (place := text.find(stop, sent)) >= 0]
    return min(ends)[1] if ends else None


def _settled_length(text: str, stops: Sequence[str]) -> int:
    """How many characters of the text stay as they are, whatever follows."""
    text = text.rstrip(_BROKEN)
    return len(text) - _partial_length(text, stops)


def _partial_length(text: str, strings: Sequence[str]) -> int:
    """Length of the longest suffix of the text that is a proper prefix of one of the strings."""
    longest = max((len(string) - 1 for string in strings), default=0)
    for size in range(min(longest, len(text)), 0, -1):
        if any(string.startswith(text[-size:]) for string in strings):
            return size
    return 0


def _cut(piece: Piece, tokens: int) -> Piece:
    return piece._replace(
        ids=piece.ids[:tokens],
        logprobs=piece.logprobs[:tokens],
        sampling_logprobs=piece.sampling_logprobs[:tokens],
        top=piece.top[:tokens],
        reason="stop_token",
    )
