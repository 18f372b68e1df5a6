"""Requests in OpenAI's form, read strictly: what is not supported is refused by name, never skipped."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from steprl.serving.generation import MAX_TOP_LOGPROBS

MAX_CHOICES, MAX_STOPS = 128, 16
_ROLES = ("system", "developer", "user", "assistant", "tool")
# What clients send along and what changes no reply.
_IGNORED = {
    "metadata", "prompt_cache_key", "prompt_cache_retention", "return_token_ids",
    "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip
# Supported at the value that changes nothing.
_ONLY: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "min_p": 0,
    "logit_bias": {},
    "best_of": 1,
    "suffix": "",
    "echo": False,
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "functions": [],
    "function_call": "none",
}
_SHARED = {
    "model", "stream", "stream_options", "n", "stop", "seed", "temperature", "top_p", "top_k",
    "max_tokens", "logprobs",
}  # fmt: skip
_CHAT = _SHARED | {"messages", "tools", "tool_choice", "max_completion_tokens", "top_logprobs"}
_COMPLETION = _SHARED | {"prompt"}


class ApiError(Exception):
    """A request that is answered with an error, in OpenAI's form."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 403: "permission_error", 500: "server_error"}
        return {
            "error": {
                "message": self.message,
                "type": kinds.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


class Options(NamedTuple):
    """What both endpoints take."""

    model: str
    stream: bool
    include_usage: bool
    n: int
    stops: tuple[str, ...]
    seed: int | None
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int | None  # None: what fits into the context
    logprobs: bool
    top_logprobs: int


class Chat(NamedTuple):
    """A request to /v1/chat/completions."""

    options: Options
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]  # those that the model may call


class Completion(NamedTuple):
    """A request to /v1/completions; a prompt is text or token ids."""

    options: Options
    prompts: list[str | list[int]]


def read_chat(body: Any) -> Chat:
    """A checked chat request.

    Raises:
        ApiError: 400, and which field is wrong.
    """
    body = _fields(body, _CHAT)
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise _bad("max_tokens", "and `max_completion_tokens` say the same: give one of them")
    limit = "max_tokens" if body.get("max_tokens") is not None else "max_completion_tokens"
    top = _integer(body, "top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
    logprobs = _boolean(body, "logprobs")
    if top and not logprobs:
        raise _bad("top_logprobs", "needs `logprobs` to be true")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _bad("messages", "has to be a list of at least one message")
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(map(_is_tool, tools)):
        raise _bad(
            "tools", 'has to be a list of {"type": "function", "function": {"name": ..., ...}}'
        )
    choice = body.get("tool_choice") or ("auto" if tools else "none")
    if choice not in ("none", "auto"):
        raise _bad("tool_choice", f"is {_show(choice)}; this server knows 'none' and 'auto'")
    return Chat(
        _options(body, _integer(body, limit, None, 1), logprobs, top),
        [_message(message, f"messages[{i}]") for i, message in enumerate(messages)],
        tools if choice == "auto" else [],
    )


def read_completion(body: Any) -> Completion:
    """A checked completion request.

    Raises:
        ApiError: 400, and which field is wrong.
    """
    body = _fields(body, _COMPLETION)
    top = _integer(body, "logprobs", None, 0, MAX_TOP_LOGPROBS)
    prompt = body.get("prompt")
    prompts = prompt if isinstance(prompt, list) and not _are_ids(prompt) else [prompt]
    if not prompts or not all(isinstance(item, str) or _are_ids(item) for item in prompts):
        raise _bad("prompt", "has to be a text, a list of token ids, or a list of these")
    for item in prompts:
        if isinstance(item, str):
            _text(item, "prompt")
    limit = _integer(body, "max_tokens", 16, 1)
    return Completion(_options(body, limit, top is not None, top or 0), prompts)


def _options(body: Mapping[str, Any], limit: int | None, logprobs: bool, top: int) -> Options:
    stream = _boolean(body, "stream")
    extra = body.get("stream_options") or {}
    if not isinstance(extra, dict) or not extra.keys() <= {"include_usage", "include_obfuscation"}:
        raise _bad("stream_options", 'has to be of the form {"include_usage": true}')
    if extra and not stream:
        raise _bad("stream_options", "needs `stream` to be true")
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise _bad("stop", f"has to be a text, or a list of at most {MAX_STOPS}")
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise _bad("stop", "holds something that is no text, or an empty one")
    model = body.get("model")
    if not isinstance(model, str):
        raise _bad("model", "is missing; GET /v1/models says which there is")
    return Options(
        model=model,
        stream=stream,
        include_usage=_boolean(extra, "include_usage"),
        n=_integer(body, "n", 1, 1, MAX_CHOICES) or 1,
        stops=tuple(stops),
        seed=_integer(body, "seed", None, -(2**63), 2**63 - 1),
        temperature=_number(body, "temperature", 1.0, 0.0, 100.0),
        top_p=_number(body, "top_p", 1.0, 1e-6, 1.0),
        top_k=max(_integer(body, "top_k", 0, -1, 2**31 - 1) or 0, 0),  # -1 is all, as in vLLM
        max_tokens=limit,
        logprobs=logprobs,
        top_logprobs=top,
    )


def _fields(body: Any, known: set[str]) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ApiError(400, "The body of the request has to be a JSON object.")
    for name, value in body.items():
        if name in known or name in _IGNORED or value is None:
            continue
        if name not in _ONLY:
            raise _bad(name, "is not known to this server")
        supported = _ONLY[name]
        if value != supported or isinstance(value, bool) != isinstance(supported, bool):
            # The types are compared too, since 0 == False.
            raise _bad(name, f"is {_show(value)}; this server knows {_show(supported)} only")
    return body


def _message(message: Any, where: str) -> dict[str, Any]:
    """A message as chat templates take it: plain text, arguments of calls as objects."""
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise _bad(where, f"needs a role, one of {', '.join(_ROLES)}")
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content")
    calls = message.get("tool_calls") or []
    if isinstance(content, list):
        if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            raise _bad(f"{where}.content", "may hold parts of text only")
        content = "".join(part["text"] for part in content)
    if content is None and role == "assistant":
        content = ""
    if not isinstance(content, str):
        raise _bad(f"{where}.content", "has to be a text, or a list of parts of text")
    result: dict[str, Any] = {"role": role, "content": _text(content, f"{where}.content")}
    if calls:
        if role != "assistant" or not isinstance(calls, list):
            raise _bad(f"{where}.tool_calls", "has to be a list, in a message of the assistant")
        result["tool_calls"] = [_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(calls)]
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            result[name] = _text(message[name], f"{where}.{name}")
    return result


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _bad(where, 'has to be {"function": {"name": ..., "arguments": ...}}')
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"{where}.function.arguments")
    if not isinstance(arguments, dict):
        raise _bad(f"{where}.function.arguments", "has to be the JSON text of an object")
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def parse_json(text: str | bytes, where: str) -> Any:
    """JSON without numbers that JSON does not have.

    Raises:
        ApiError: 400, it is none.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _bad(where, f"is no valid JSON: {error}") from error


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return (
        isinstance(function, dict)
        and tool.get("type", "function") == "function"
        and isinstance(function.get("name"), str)
    )


def _are_ids(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and len(prompt) > 0
        and all(isinstance(token, int) and not isinstance(token, bool) for token in prompt)
    )


def _text(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _bad(where, "holds half of a surrogate pair, which is no character") from error
    return text


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False) or isinstance(value, int) and not isinstance(value, bool):
        raise _bad(name, f"is {_show(value)}; it has to be true or false")
    return bool(value)


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _bad(name, f"is {_show(value)}; it has to be a number from {low:g} to {high:g}")
    return float(value)


def _integer(
    body: Mapping[str, Any], name: str, default: Any, low: int, high: float = math.inf
) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        upper = f" to {high}" if high < math.inf else " on"
        raise _bad(name, f"is {_show(value)}; it has to be an integer from {low}{upper}")
    return value


def _bad(param: str, problem: str) -> ApiError:
    return ApiError(400, f"`{param}` {problem}.", param=param)


def _show(value: Any) -> str:
    return repr(value)[:80]
