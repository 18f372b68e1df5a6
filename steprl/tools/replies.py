"""What a reply says: its thoughts left out, its tool calls and answers read in one pass.

Tags are parsed, not searched for. Thoughts, calls and answers may stand in any order:

- Nothing between `<think>` and `</think>` counts, and nothing behind a `<think>` that is never closed.
  Thoughts nest. A `</think>` that closes nothing ends a thought that the prompt began, so nothing
  before it counts either. So with `thinking`, `thought`, `reasoning` and `analysis`.
- A `<tool_call>` block holds a JSON object, see `steprl.tools.hermes`; tags inside its strings are text,
  as they are in any object in a thought.
- `<answer>` and `</answer>` enclose an answer, from the last opening tag before the closing one.

The tags of thoughts and answers may be in any case and have attributes; those of calls are exact.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from steprl.tools.call_objects import (
    ARGUMENTS,
    FORM,
    CallError,
    ToolCall,
    check_call,
    read_call,
    read_value,
)
from steprl.tools.schema import Tool

MAX_BLOCKS = 64  # of one text; behind them nothing is read
MAX_MENTIONS = 1000  # of blocks in thoughts; behind them nothing is read either
THOUGHTS = ("think", "thinking", "thought", "reasoning", "analysis")
"""Tags whose content is not part of what a reply says."""

_TAG = re.compile(
    rf"</?tool_call>|<(?P<end>/?)(?P<name>(?i:{'|'.join(THOUGHTS)}|answer))(?:\s[^<>]*)?>"
    r'|(?P<object>\{\s*")'
)
_CALL_TAG = re.compile(r"</?tool_call>")
_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s;,]*")
# What Llama 3 writes around its calls.
_BARE_HEAD = re.compile(r"\s*(?:<\|python_tag\|>\s*)?(?=\{)")
_BARE_TAIL = re.compile(r"\s*(?:<\|eom_id\|>|<\|eot_id\|>)?\s*\Z")
_BARE_KEYS = re.compile(r'"name"\s*:.*"(?:arguments|parameters)"\s*:', re.DOTALL)


class Reply(NamedTuple):
    """What a reply says."""

    text: str  # all but the thoughts; calls and answers as they are written
    answers: tuple[str, ...]  # in their order, without surrounding space
    calls: list[ToolCall]
    errors: list[CallError]
    spans: tuple[
        tuple[int, int], ...
    ]  # where the calls and errors that end are, in the whole reply
    thinking: bool  # it ends inside a thought


def read_reply(
    reply: str, tools: Mapping[str, Tool] | None = None, bare: bool | None = None
) -> Reply:
    """A reply, read.

    Args:
        reply: what the model wrote.
        tools: by name, to check the calls; None to take any name with any arguments.
        bare: also read calls without tags, as Llama 3 writes them: a reply that is nothing but
            `{"name": ..., "parameters": {...}}`, or several of these. None: where `tools` are given.

    Returns:
        What it says. Never raises, and takes time linear in the reply.

    Example:
        >>> read_reply("<think>Is it <answer>4</answer>?</think> <answer>5</answer>").answers
        ('5',)
        >>> read_reply("<think>It may be <answer>4</answer>, or").answers
        ()
    """
    bare = tools is not None if bare is None else bare
    scan = _Scan(reply, bare)
    scan.run()
    calls, text = scan.calls, "".join(scan.said)
    if bare and not calls and not scan.open:
        calls = _bare_calls(text)  # those that are broken
    if tools is not None:
        calls = [check_call(call, tools) if isinstance(call, ToolCall) else call for call in calls]
    return Reply(
        text=text,
        answers=tuple(text[start:end].strip() for start, end in scan.answers),
        calls=[call for call in calls if isinstance(call, ToolCall)],
        errors=[call for call in calls if isinstance(call, CallError)],
        spans=tuple(scan.spans),
        thinking=bool(scan.open),
    )


def parse_tool_calls(
    text: str, tools: Mapping[str, Tool] | None = None, bare: bool | None = None
) -> tuple[list[ToolCall], list[CallError]]:
    """The calls of a text, and what is wrong with those that are none.

    Strict where a guess could be wrong: one object a block, a name and arguments and no other key, no
    key twice, an end tag. Lenient where nothing can be meant otherwise: arguments may be left out if
    there are none, and be named `parameters`; a string may contain line breaks, or tags. See
    `check_arguments` for types. Thoughts are skipped. Never raises, and takes time linear in the text.

    Args:
        text: what the model wrote; text around the blocks is skipped.
        tools: by name, see `make_tools`; None to take any name with any arguments.
        bare: also read calls without tags, see `read_reply`.

    Returns:
        The calls, and the errors, each in the order of the text; `place` orders both together. At most
        64 blocks are read.

    Example:
        >>> block = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
        >>> parse_tool_calls(f"<think>Let me see.</think> {block}")
        ([ToolCall(place=0, name='add', arguments={'a': 1})], [])
        >>> parse_tool_calls(block[:-12])[1][0].text
        'Not called: the tool_call block has no end tag.'
    """
    reply = read_reply(text, tools, bare)
    return reply.calls, reply.errors


def last_answer(text: str) -> tuple[str, bool]:
    """The last `<answer>...</answer>` of a reply, else all that it says beside its thoughts.

    Returns:
        The answer without surrounding space, and whether it stood between the tags.

    Example:
        >>> last_answer("<answer>one</answer> or rather <answer> two </answer>")
        ('two', True)
        >>> last_answer("It is <answer>three")
        ('It is <answer>three', False)
        >>> last_answer("<think>It may be <answer>four</answer>, or")
        ('', False)
    """
    reply = read_reply(text)
    return (reply.answers[-1], True) if reply.answers else (reply.text.strip(), False)


class _Scan:
    """One pass over a reply."""

    def __init__(self, reply: str, bare: bool):
        self.reply, self.bare = reply, bare
        self.open: list[str] = []  # thoughts
        self.depth: Counter[str] = Counter()  # of each name among them
        # What was tried to be read: where JSON breaks off, Python counts the lines up to there.
        self.mentions = self.tries = 0
        self._restart()

    def _restart(self) -> None:
        """What was said so far was a thought."""
        self.said: list[str] = []
        self.length = 0  # of what was said
        self.silent = True  # that was nothing but blanks
        self.answers: list[tuple[int, int]] = []  # places in it
        self.answer_start: int | None = None
        self.calls: list[ToolCall | CallError] = []
        self.spans: list[tuple[int, int]] = []

    def run(self) -> None:
        reply, position, begin = self.reply, 0, 0
        if self._only_calls(0):
            return
        while tag := _TAG.search(reply, position):
            position = tag.end()
            name = (tag["name"] or "").lower()
            if tag["object"]:
                position = self._object(tag)
            elif not name:
                if len(self.calls) == MAX_BLOCKS and not self.open:
                    text = f"Not called: only {MAX_BLOCKS} tool_call blocks are read."
                    self.calls.append(CallError(MAX_BLOCKS, "too_many", text))
                    break
                self.mentions += bool(self.open)
                if self.mentions > MAX_MENTIONS:
                    break
                position = self._call(tag)
            elif tag.group().endswith("/>"):
                continue
            elif name == "answer":
                if not self.open:
                    self._answer(tag, begin)
                    begin = tag.end()
            elif not tag["end"]:
                if not self.open:
                    self._say(begin, tag.start())
                self.open.append(name)
                self.depth[name] += 1
            elif self.depth[name]:
                self._close(name)
                begin = tag.end()
                if self._only_calls(begin):
                    return
            elif not self.open:
                self._restart()
                begin = tag.end()
                if self._only_calls(begin):
                    return
        if not self.open:
            self._say(begin, len(reply))

    def _only_calls(self, begin: int) -> bool:
        """Takes the rest as calls without tags, where it is nothing else and nothing was said before."""
        if not self.bare or self.open or self.calls or not self.silent:
            return False
        self.tries += 1
        if self.tries > MAX_BLOCKS:
            return False
        calls = _bare_calls(self.reply, begin, whole=True)
        if not calls:
            return False
        self._say(begin, len(self.reply))
        self.calls, self.spans = calls, [(begin, len(self.reply))]
        return True

    def _close(self, name: str) -> None:
        """Ends the innermost thought of a name, and those inside it."""
        closed = ""
        while closed != name:
            closed = self.open.pop()
            self.depth[closed] -= 1

    def _say(self, start: int, end: int) -> None:
        said = self.reply[start:end]
        self.said.append(said)
        self.length += end - start
        self.silent &= not said.strip()

    def _answer(self, tag: re.Match[str], begin: int) -> None:
        self._say(begin, tag.end())
        if not tag["end"]:
            self.answer_start = self.length
        elif self.answer_start is not None:
            self.answers.append((self.answer_start, self.length - len(tag.group())))
            self.answer_start = None

    def _object(self, tag: re.Match[str]) -> int:
        """Where to read on: behind an object in a thought, whose strings hold no tags either."""
        self.mentions += bool(self.open)
        if not self.open or self.mentions > MAX_MENTIONS:
            return tag.end()
        read = read_value(self.reply, tag.start())
        return tag.end() if read.problem else read.end

    def _call(self, tag: re.Match[str]) -> int:
        """Reads the block that begins at a tag, and returns where to read on."""
        place, text = len(self.calls), self.reply
        if tag.group().startswith("</"):
            if not self.open:
                problem = "Not called: a tool_call end tag has no start tag before it."
                self.calls.append(CallError(place, "unopened", problem))
            return tag.end()
        read = read_value(text, _skip_space(text, tag.end()))
        closing = _CALL_TAG.match(text, _skip_space(text, read.end)) if not read.problem else None
        closed = closing is not None and closing.group() == "</tool_call>"
        # What was read as JSON is no place for tags, whether it is complete or was cut off.
        behind = len(text) if read.cut else read.end
        if self.open:
            return closing.end() if closing is not None and closed else max(behind, tag.end())
        call: ToolCall | CallError
        if closing is not None and closed:
            call = read_call(read.value, place)
        else:
            closing = _CALL_TAG.search(text, read.end)
            if closing is None or closing.group() == "<tool_call>":
                problem = "Not called: the tool_call block has no end tag."
                self.calls.append(CallError(place, "unclosed", problem))
                # A mention of the tag, perhaps, in a thought that ends further on.
                return max(min(behind, closing.start()) if closing else behind, tag.end())
            problem = read.problem or f"text behind the object; {FORM}"
            call = CallError(place, "bad_json", f"Not called: {problem}.")
        self.calls.append(call)
        self.spans.append((tag.start(), closing.end()))
        return closing.end()


def _bare_calls(text: str, begin: int = 0, whole: bool = False) -> list[ToolCall | CallError]:
    """The calls of a text that is nothing but JSON objects which look like calls; else none.

    Args:
        text: of a reply.
        begin: where it begins.
        whole: none either, if there is an error among them.
    """
    head = _BARE_HEAD.match(text, begin)
    if head is None:
        return []
    calls: list[ToolCall | CallError] = []
    position = head.end()
    while not _BARE_TAIL.match(text, position):
        read = read_value(text, position)
        if read.problem:
            if whole or not (calls or _BARE_KEYS.search(text, head.end(), head.end() + 1000)):
                return []
            return [*calls, CallError(len(calls), "bad_json", f"Not called: {read.problem}.")]
        value = read.value
        if not isinstance(value, dict) or "name" not in value or not value.keys() & {*ARGUMENTS}:
            return []
        call = read_call(value, len(calls), ignored=("type", "id"))
        if whole and isinstance(call, CallError):
            return []
        calls.append(call)
        if len(calls) == MAX_BLOCKS:
            break
        separator = _SEPARATOR.match(text, read.end)
        position = separator.end() if separator else read.end
    return calls


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start
