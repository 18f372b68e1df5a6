"""Files of conversations: JSONL in the chat format, as chat templates take them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}


class Conversation(NamedTuple):
    """A line of a file, ready for a chat template."""

    place: str  # file:line, for messages
    line: int
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


def read_conversations(path: str | Path) -> Iterator[Conversation]:
    """The conversations of a JSONL file, one a line; blank lines are skipped.

    A line is `{"messages": [{"role": ..., "content": ...}, ...]}`, with `tools` where there are some,
    or ShareGPT's `{"conversations": [{"from": "human", "value": ...}, ...]}`, either with `system`
    where that is a field of its own. Replies may have `tool_calls` as the API of OpenAI writes them, and
    `weight: 0` to be read only, not learnt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is something else; names file, line and what is wrong.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a JSONL file of conversations")
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                yield _conversation(text, f"{path}:{line}", line)


def _conversation(text: bytes, place: str, line: int) -> Conversation:
    try:
        row = json.loads(text)
        json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no character
    except ValueError as error:  # of JSON, or of bytes that are no text
        raise ValueError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a line is a JSON object, found {type(row).__name__}")
    raw = row.get("messages", row.get("conversations"))
    if not isinstance(raw, list) or not raw:
        has = ", ".join(row) or "nothing"
        raise ValueError(f'{place}: no list of messages in "messages"; the line has {has}')
    tools = row.get("tools") or None
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        raise ValueError(f'{place}: "tools" is a list of schemas')
    if isinstance(row.get("system"), str):  # beside the messages, as some of ShareGPT have it
        raw = [{"role": "system", "content": row["system"]}, *raw]
    messages = [_message(one, f"{place}: message {n}") for n, one in enumerate(raw, 1)]
    if not any(one["role"] == "assistant" and one.get("weight") != 0 for one in messages):
        raise ValueError(f"{place}: no message of the assistant, so there is nothing to learn")
    return Conversation(place, line, messages, tools)


def _message(raw: Any, place: str) -> dict[str, Any]:
    """A message with role, text, and calls whose arguments are objects, as templates want them."""
    if not isinstance(raw, dict):
        raise ValueError(f"{place} is {type(raw).__name__}, not an object")
    role = raw.get("role", raw.get("from"))
    if "role" not in raw:
        role = SHAREGPT_ROLES.get(str(role), role)
    if role not in ROLES:
        raise ValueError(f"{place}: role {role!r} is unknown; roles are {', '.join(ROLES)}")
    content = raw.get("content", raw.get("value"))
    calls = raw.get("tool_calls") or []
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise ValueError(f'{place}: "content" is text, found {type(content).__name__}')
    kept = {
        name: value for name, value in raw.items() if name not in ("from", "value", "tool_calls")
    }
    message = {**kept, "role": role, "content": content}
    if calls:
        if role != "assistant" or not isinstance(calls, list):
            raise ValueError(f'{place}: "tool_calls" is a list, in messages of the assistant')
        message["tool_calls"] = [_call(call, place) for call in calls]
    return message


def _call(raw: Any, place: str) -> dict[str, Any]:
    function = raw.get("function", raw) if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(
            f'{place}: a tool call is {{"function": {{"name": ..., "arguments": ...}}}}'
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # templates would write a string of a string
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(f"{place}: arguments of the call {function['name']} are no JSON object")
    called = {"name": function["name"], "arguments": arguments}
    kept = {name: raw[name] for name in ("id",) if name in raw}
    return {**kept, "type": "function", "function": called}
