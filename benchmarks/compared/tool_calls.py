"""Random texts through the parser of tool calls: changed calls, any characters, deep nesting."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from steprl.tools import make_tools, parse_tool_calls, render_tool_call

PIECES = (
    "<tool_call>", "</tool_call>", "{", "}", "[", "]", '"', "'", ":", ",", "\\", "\\u", "\\ud800", "\n",
    '"name"', '"arguments"', '"search"', '"query"', '"years"', "1", "-", "1e999", "9" * 400, "NaN", "true",
    "null", "é", "🦉", "\ud800", "\x00", "\u2028", " ",
)  # fmt: skip


class Parsed(NamedTuple):
    """What became of the texts."""

    raised: int
    seconds: float  # of a processor, in the parser
    kinds: dict[str, int]  # calls ("ok"), errors by kind, and texts without either


def search(
    query: str, years: list[int] | None = None, weights: dict[str, float] | None = None
) -> str:
    """Search.

    Args:
        query: what for.
        years: of what is found.
        weights: of the words.
    """
    return f"{query} {years} {weights}"


def random_text(draw: random.Random, calls: Sequence[str]) -> str:
    """One text of four kinds.

    Args:
        draw: where all of it comes from.
        calls: texts with valid calls, to be changed.
    """
    kind = draw.randrange(4)
    if kind == 0:
        return _changed(draw, draw.choice(calls))
    if kind == 1:
        text = _any_characters(draw, 60)
        return draw.choice((text, f"<tool_call>{text}</tool_call>", f"<tool_call>{text}"))
    if kind == 2:
        opens, closes = draw.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
        depth = int(10 ** draw.uniform(0, 4))
        nested = opens * depth + "1" + closes * draw.choice((depth, depth - 1, 0))
        call = f'{{"name": "search", "arguments": {{"query": {nested}}}}}'
        return f"<tool_call>{draw.choice((nested, call))}</tool_call>"
    return "".join(draw.choices(PIECES, k=int(10 ** draw.uniform(0, 3))))


def parse_random_texts(count: int, seed: int = 0) -> Parsed:
    """Parses `count` texts, half of them with tools to check against."""
    draw, tools = random.Random(seed), make_tools([search])
    calls = [
        render_tool_call("search", {"query": "Ada é", "years": [1815, 1852]}),
        "So. " + render_tool_call("search", {"query": "a", "weights": {"b": 0.5}}) * 2,
    ]
    raised, seconds = 0, 0.0
    kinds: Counter[str] = Counter()
    for number in range(count):
        text = random_text(draw, calls)
        begin = time.process_time()
        try:
            parsed, errors = parse_tool_calls(text, tools if number % 2 else None)
        except Exception as error:  # of any type: there must be none
            raised += 1
            kinds[f"raised {type(error).__name__}"] += 1
        else:
            kinds.update(["ok"] * len(parsed) + [error.kind for error in errors] or ["no call"])
        seconds += time.process_time() - begin
    return Parsed(raised, seconds, dict(kinds.most_common()))


def _changed(draw: random.Random, text: str) -> str:
    """A few places of a text cut out, doubled or replaced."""
    for _ in range(draw.randrange(1, 6)):
        place = draw.randrange(len(text) + 1)
        insertion = draw.choice(
            ("", text[place : place + 9], draw.choice(PIECES), _any_characters(draw, 3))
        )
        text = text[:place] + insertion + text[place + draw.randrange(4) :]
    return text


def _any_characters(draw: random.Random, most: int) -> str:
    top = draw.choice((0x80, 0x3000, 0x110000))
    return "".join(chr(draw.randrange(top)) for _ in range(draw.randrange(most)))
