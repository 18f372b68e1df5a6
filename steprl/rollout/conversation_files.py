"""Files of conversations, JSONL or parquet, in the chat format, as chat templates take them."""

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
    """The conversations of a JSONL or parquet file, one a line or row; blank lines are skipped.

    A line is `{"messages": [{"role": ..., "content": ...}, ...]}`, with `tools` where there are some,
    ShareGPT's `{"conversations": [{"from": "human", "value": ...}, ...]}`, or `{"prompt": ...,
    "completion": ...}`; each with `system` where that is a field of its own. Prompt and completion (or
    `response`) are texts, of the user and of the assistant, or lists of messages. Replies may have
    `tool_calls` as the API of OpenAI writes them, and `weight: 0` to be read only, not learnt, as those
    in a prompt are. In a parquet file a field that is null is absent.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is something else; names file, line and what is wrong.
        ImportError: parquet files need `pip install 'steprl[search]'`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give a JSONL or parquet file of conversations"
        )
    if path.suffix == ".parquet":
        for line, row in enumerate(_parquet(path), 1):
            yield _conversation(_without_nulls(row), f"{path}:{line}", line)
        return
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                yield _conversation(_json(text, f"{path}:{line}"), f"{path}:{line}", line)


def _json(text: bytes, place: str) -> Any:
    try:
        row = json.loads(text)
        json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no character
    except RecursionError:
        raise ValueError(f"{place}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # of JSON, or of bytes that are no text
        raise ValueError(f"{place}: not valid JSON: {error}") from None
    return row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: parquet files need pyarrow: pip install 'steprl[search]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file that can be read: {error}") from None


def _without_nulls(value: Any) -> Any:
    """Fields of a row that are there: parquet gives all rows the fields of any."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _conversation(row: Any, place: str, line: int) -> Conversation:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a line is a JSON object, found {type(row).__name__}")
    raw = row.get("messages", row.get("conversations"))
    if raw is None and ("completion" in row or ("prompt" in row and "response" in row)):
        raw = _prompted(row, place)
    if not isinstance(raw, list) or not raw:
        has = ", ".join(row) or "nothing"
        raise ValueError(
            f'{place}: no list of messages in "messages", and no "prompt" with a "completion"; the line '
            f"has {has}"
        )
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


def _prompted(row: dict[str, Any], place: str) -> list[Any]:
    """The messages of a prompt, of which none is learnt, and of its completion."""
    reply = "completion" if "completion" in row else "response"
    if "prompt" not in row:
        raise ValueError(f'{place}: "{reply}" without "prompt"; the line has {", ".join(row)}')
    messages: list[Any] = []
    for name, role in (("prompt", "user"), (reply, "assistant")):
        value = row[name]
        if isinstance(value, str):
            value = [{"role": role, "content": value}]
        if not isinstance(value, list) or not value:
            found = "an empty list" if value == [] else type(value).__name__
            raise ValueError(f'{place}: "{name}" is text or a list of messages, found {found}')
        if name == "prompt":
            value = [{**one, "weight": 0} if isinstance(one, dict) and one.get("role") == "assistant"
                     else one for one in value]  # fmt: skip
        elif isinstance(row[name], str) and not row[name].strip():
            raise ValueError(f'{place}: "{name}" is empty, so there is nothing to learn')
        messages += value
    return messages


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
