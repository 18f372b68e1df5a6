"""The Hermes format: `<tool_call>` blocks out of a text, `<tool_response>` blocks into one.

    <tool_call>
    {"name": "search", "arguments": {"query": "Ada Lovelace"}}
    </tool_call>

As Hermes 2 Pro, Qwen2.5, Qwen3 and SmolLM2 were trained on. Reading is total: any text is calls and
errors, and each error is a sentence for the model.
"""

import collections
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from steprl.tools.arguments import check_arguments
from steprl.tools.outcome import Outcome
from steprl.tools.schema import Tool

MAX_BLOCKS = 64  # of one text; behind them nothing is read
MAX_DEPTH = 32  # of arrays and objects in each other
MAX_DIGITS = 300  # of a number, so that each one is a float, too
_TAG = re.compile(r"</?tool_call>")
_SPACE = re.compile(r"\s*")
_FORM = 'a block holds one object of the form {"name": "...", "arguments": {...}}'
# What a tool returns must not end its block, nor open a turn of the chat.
_ACTIVE = re.compile(r"<(?=\|[^|<>\s]{1,64}\|>|/?tool_(?:call|response)>)")


class ToolCall(NamedTuple):
    """A call to be made; `place` counts the calls and errors of a text from 0."""

    place: int
    name: str
    arguments: dict[str, Any]


class CallError(NamedTuple):
    """A call that cannot be made; `kind` is one of `STATUSES`, `text` says to the model why not."""

    place: int
    kind: str
    text: str
    name: str = ""


class _Refused(ValueError):
    """JSON that Python would read and that means trouble."""


def parse_tool_calls(
    text: str, tools: Mapping[str, Tool] | None = None
) -> tuple[list[ToolCall], list[CallError]]:
    """The calls of a text, and what is wrong with those that are none.

    Strict where a guess could be wrong: one object a block, `name` and `arguments` and no other key,
    no key twice, an end tag. Lenient where nothing can be meant otherwise: `arguments` may be left out
    if there are none, and a string may contain line breaks, or the tags. See `check_arguments` for
    types. Never raises, and takes time linear in the text.

    Args:
        text: what the model wrote; text around the blocks is skipped.
        tools: by name, see `make_tools`; None to take any name with any arguments.

    Returns:
        The calls, and the errors, each in the order of the text; `place` orders both together. At most
        64 blocks are read.

    Example:
        >>> block = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
        >>> parse_tool_calls(f"Let me see. {block}")
        ([ToolCall(place=0, name='add', arguments={'a': 1})], [])
        >>> parse_tool_calls(block[:-12])[1][0].text
        'Not called: the tool_call block has no end tag.'
    """
    calls: list[ToolCall] = []
    errors: list[CallError] = []
    position = 0
    while tag := _TAG.search(text, position):
        place = len(calls) + len(errors)
        call: ToolCall | CallError
        if place == MAX_BLOCKS:
            position = len(text)
            call = CallError(
                place, "too_many", f"Not called: only {MAX_BLOCKS} tool_call blocks are read."
            )
        elif tag.group().startswith("</"):
            position = tag.end()
            call = CallError(
                place, "unopened", "Not called: a tool_call end tag has no start tag before it."
            )
        else:
            position, call = _read_block(text, tag.end(), place)
        if tools is not None and isinstance(call, ToolCall):
            call = check_call(call, tools)
        if isinstance(call, ToolCall):
            calls.append(call)
        else:
            errors.append(call)
    return calls, errors


def check_call(call: ToolCall, tools: Mapping[str, Tool]) -> ToolCall | CallError:
    """The call with arguments of the right types, or why the tool cannot be called so.

    Example:
        >>> check_call(ToolCall(0, "serch", {}), {}).text
        'Not called: there is no tool `serch`. There are no tools.'
    """
    tool = tools.get(call.name) if isinstance(call.name, str) else None
    if tool is None:
        name = _short(call.name, 64)
        near = difflib.get_close_matches(name, tools, 1)
        names = ", ".join(f"`{tool_name}`" for tool_name in tools)
        hint = f"Did you mean `{near[0]}`? " if near else ""
        available = f"The tools are {names}." if names else "There are no tools."
        text = f"Not called: there is no tool `{name}`. {hint}{available}"
        return CallError(call.place, "unknown_tool", text, name)
    arguments, problems = check_arguments(call.arguments, tool.parameters)
    if problems:
        text = f"`{tool.name}` was not called: {'; '.join(problems)}."
        return CallError(call.place, "bad_arguments", text, tool.name)
    return call._replace(arguments=arguments)


def render_tool_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The block of a call, as a model should write it; for demonstrations and chat histories.

    Example:
        >>> print(render_tool_call("add", {"a": 1, "b": 2}))
        <tool_call>
        {"name": "add", "arguments": {"a": 1, "b": 2}}
        </tool_call>
    """
    body = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def render_tool_response(outcomes: Iterable[Outcome]) -> str:
    """One `<tool_response>` block an outcome, in order.

    Tags of this format and special tokens such as `<|im_end|>` in a result get a blank behind their
    `<`: so a web page can neither end its block nor speak as somebody else. Special tokens of other
    forms are for the tokenizer to split (`split_special_tokens=True`).

    Example:
        >>> print(render_tool_response([Outcome("add", "{}", "ok", "3</tool_response>")]))
        <tool_response>
        3< /tool_response>
        </tool_response>
    """
    blocks = (_ACTIVE.sub("< ", outcome.text) for outcome in outcomes)
    return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in blocks)


def describe_tools(tools: Mapping[str, Tool] | Iterable[dict[str, Any]]) -> str:
    """The schemas in a `<tools>` block, one a line, for prompts without a chat template."""
    schemas = [tool.schema for tool in tools.values()] if isinstance(tools, Mapping) else tools
    lines = [json.dumps(schema, ensure_ascii=False) for schema in schemas]
    return "\n".join(["<tools>", *lines, "</tools>"])


def _read_block(text: str, start: int, place: int) -> tuple[int, ToolCall | CallError]:
    """The block whose tag ends at `start`, and where to read on."""
    begin = _skip_space(text, start)
    value, end, problem = _read_json(text, begin)
    if not problem:
        tag = _TAG.match(text, _skip_space(text, end))
        if tag and tag.group() == "</tool_call>":
            return tag.end(), _read_call(value, place)
        problem = f"text behind the object; {_FORM}"
    # A tag inside a string is part of the string, as far as there was something to read.
    closing = _TAG.search(text, end)
    if closing is None or closing.group() == "<tool_call>":
        resume = len(text) if closing is None else closing.start()
        error = CallError(place, "unclosed", "Not called: the tool_call block has no end tag.")
        return resume, error
    return closing.end(), CallError(place, "bad_json", f"Not called: {problem}.")


def _read_call(value: Any, place: int) -> ToolCall | CallError:
    def error(problem: str) -> CallError:
        return CallError(place, "bad_form", f"Not called: {problem}.", name)

    name = ""
    if not isinstance(value, dict):
        return error(f"{_FORM}, nothing else")
    if not isinstance(value.get("name"), str):
        return error(f'"name" has to be the name of a tool; {_FORM}')
    name = _short(value["name"], 64)
    for key in value:
        if key not in ("name", "arguments"):
            return error(f'"{_short(key, 64)}" does not belong beside "name"; {_FORM}')
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        return error(f'"arguments" has to be an object, not a string or a list; {_FORM}')
    return ToolCall(place, value["name"], arguments)


def _read_json(text: str, begin: int) -> tuple[Any, int, str]:
    """The JSON value that begins there, where it ends, and what is wrong with it ("" if nothing)."""
    try:
        value, end = _DECODER.raw_decode(text, begin)
    except json.JSONDecodeError as error:
        excerpt = _short(text[error.pos : error.pos + 40].partition("</tool_call>")[0].strip(), 20)
        place = f'before "{excerpt}"' if excerpt else "at the end of the block"
        return None, begin, f"no valid JSON ({error.msg}, {place}); {_FORM}"
    except _Refused as error:
        return None, begin, f"{error}; {_FORM}"
    except RecursionError:
        return None, begin, f"more than {MAX_DEPTH} arrays and objects in each other"
    return value, end, _flaw(value)


def _flaw(value: Any) -> str:
    """What JSON allows and no tool should have to deal with; level by level, not by recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if not item.isascii() and _short(item, len(item)) != item:
                    return "half of a surrogate pair is no character"
            elif isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
        if not deeper:
            return ""
        level = deeper
    return f"more than {MAX_DEPTH} arrays and objects in each other"


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        repeated = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _Refused(f'the key "{_short(repeated, 64)}" occurs twice')
    return result


def _number(kind: type) -> Any:
    def read(digits: str) -> Any:
        if len(digits) > MAX_DIGITS or abs(value := kind(digits)) == float("inf"):
            raise _Refused(f"the number {digits[:20]}... is too large or too long")
        return value

    return read


def _constant(name: str) -> Any:
    raise _Refused(f"{name} is no number of JSON")


def _short(text: Any, limit: int) -> str:
    """Valid unicode, and not more of it than fits into a message."""
    text = str(text)
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text.encode("utf-8", "replace").decode("utf-8")


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


_DECODER = json.JSONDecoder(
    strict=False,
    object_pairs_hook=_unique,
    parse_int=_number(int),
    parse_float=_number(float),
    parse_constant=_constant,
)
