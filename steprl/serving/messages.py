"""Messages and tools of a request: nothing of them is dropped without a word."""

from typing import Any

from steprl.serving.fields import (
    ApiError,
    array,
    bad,
    check_values,
    only_keys,
    parse_json,
    show,
)

MAX_TOOLS = 128
ROLES = ("system", "developer", "user", "assistant", "tool")
_ANY_ROLE = {"role", "content", "name"}
_OF_ROLE = {
    # Answers of OpenAI come with `annotations`, and clients send them back: an empty list.
    "assistant": {
        "tool_calls",
        "refusal",
        "reasoning_content",
        "reasoning",
        "annotations",
        "function_call",
        "audio",
    },
    "tool": {"tool_call_id"},
}
_INSTEAD = {
    "function_call": "belongs to the old form of tools: use `tool_calls`",
    "audio": "cannot be read by this server: send its text as `content`",
    "annotations": "are not read by this server: leave them out",
}


def read_message(message: Any, where: str) -> dict[str, Any]:
    """A message as chat templates take it: plain text, arguments of calls as objects.

    Beside role and content there may be `name`, `tool_calls`, `tool_call_id` and `reasoning_content`;
    the text of a refusal is the content of its message.

    Raises:
        ApiError: 400, and which field is wrong.
    """
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise bad(where, f"needs a role, one of {', '.join(ROLES)}")
    role = "system" if message["role"] == "developer" else message["role"]
    for other, names in _OF_ROLE.items():
        for name in names:
            if role != other and message.get(name) not in (None, []):
                raise bad(f"{where}.{name}", f"belongs to messages of the role {other!r} only")
    only_keys(message, _ANY_ROLE.union(*_OF_ROLE.values()), where)
    for name, problem in _INSTEAD.items():
        if message.get(name) not in (None, []):
            raise bad(f"{where}.{name}", problem)
    result: dict[str, Any] = {"role": role, "content": _content(message, role, where)}
    if calls := array(message, "tool_calls", f"{where}."):
        result["tool_calls"] = [_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(calls)]
    for name in ("name", "tool_call_id"):
        if (value := _string(message, name, where)) is not None:
            result[name] = value
    if (thoughts := _reasoning(message, where)) is not None:
        result["reasoning_content"] = thoughts
    return result


def _content(message: dict[str, Any], role: str, where: str) -> str:
    content = message.get("content")
    if isinstance(content, list):
        if not content:
            raise bad(f"{where}.content", "has to be a text, or a list of at least one part")
        content = "".join(_part(p, f"{where}.content[{i}]") for i, p in enumerate(content))
    refusal = _string(message, "refusal", where)
    if refusal:
        if content:
            raise bad(f"{where}.refusal", "and `content` are both given: leave one of them out")
        content = refusal
    if content is None and role == "assistant":
        content = ""
    if not isinstance(content, str):
        raise bad(f"{where}.content", "has to be a text, or a list of parts of text")
    return content


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type", "text") != "text":
        raise bad(where, f"is {show(part)}; content may hold parts of text only")
    only_keys(part, {"type", "text"}, where)
    if not isinstance(part.get("text"), str):
        raise bad(f"{where}.text", "has to be a text")
    return part["text"]


def _reasoning(message: dict[str, Any], where: str) -> str | None:
    """The thoughts of an earlier reply, under either of the names that servers give them."""
    found = [_string(message, name, where) for name in ("reasoning_content", "reasoning")]
    if all(one is not None for one in found):
        raise bad(f"{where}.reasoning", "and `reasoning_content` say the same: give one of them")
    return found[0] if found[0] is not None else found[1]


def _string(message: dict[str, Any], name: str, where: str) -> str | None:
    value = message.get(name)
    if value is not None and not isinstance(value, str):
        raise bad(f"{where}.{name}", f"is {show(value)}; it has to be a text")
    return value


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad(where, 'has to be {"function": {"name": ..., "arguments": ...}}')
    if call.get("type", "function") not in ("function", None):
        raise bad(f"{where}.type", f"is {show(call['type'])}; this server knows 'function' only")
    only_keys(call, {"id", "type", "function", "index"}, where)  # the index is that of a stream
    only_keys(function, {"name", "arguments"}, f"{where}.function")
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"{where}.function.arguments")
        check_values(arguments, f"{where}.function.arguments")
    if not isinstance(arguments, dict):
        raise bad(f"{where}.function.arguments", "has to be the JSON text of an object")
    return {
        "id": _string(call, "id", where) or "",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def read_tools(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The tools of a request.

    Raises:
        ApiError: 400, and which field is wrong.
    """
    tools = array(body, "tools")
    if len(tools) > MAX_TOOLS:
        raise bad("tools", f"has {len(tools)} tools; a request may have {MAX_TOOLS}")
    names = [_tool_name(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise bad(f"tools[{index}].function.name", f"is {show(name)}, as that of another tool")
    return tools


def _tool_name(tool: Any, where: str) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise _no_tool(where)
    only_keys(tool, {"type", "function"}, where)
    where += ".function"
    only_keys(function, {"name", "description", "parameters", "strict"}, where)
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise bad(f"{where}.name", f"is {show(name)}; it has to be a text that is not empty")
    _string(function, "description", where)
    if not isinstance(function.get("parameters"), dict | None):
        raise bad(f"{where}.parameters", "has to be a JSON schema: an object")
    if function.get("strict") not in (None, False):
        raise bad(f"{where}.strict", "is not supported: what the model writes is not constrained")
    return name


def _no_tool(where: str) -> ApiError:
    return bad(where, 'has to be {"type": "function", "function": {"name": ..., ...}}')
