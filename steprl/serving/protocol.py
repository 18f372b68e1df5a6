"""Requests in OpenAI's form, read strictly: what is not supported is refused by name, never skipped."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from steprl.serving.fields import (
    ApiError,
    array,
    bad,
    boolean,
    check_values,
    integer,
    number,
    parse_json,
    show,
)
from steprl.serving.generation import MAX_TOP_LOGPROBS
from steprl.serving.messages import read_message, read_tools

__all__ = [
    "ApiError",
    "Chat",
    "Completion",
    "Options",
    "parse_json",
    "read_chat",
    "read_completion",
]

MAX_CHOICES, MAX_PROMPTS, MAX_STOPS, MAX_STOP_CHARACTERS = 128, 128, 16, 1000
_COLD = 1e-6  # a lower temperature is 0: what it divides would be out of range in the end
# What clients send along and what changes no reply, with its type.
_IGNORED: dict[str, type] = {
    "metadata": dict,
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "return_token_ids": bool,
    "safety_identifier": str,
    "service_tier": str,
    "store": bool,
    "user": str,
}
_TYPES = {dict: "an object", str: "a text", bool: "true or false"}
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
        raise bad("max_tokens", "and `max_completion_tokens` say the same: give one of them")
    limit = "max_tokens" if body.get("max_tokens") is not None else "max_completion_tokens"
    top = integer(body, "top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
    logprobs = boolean(body, "logprobs")
    if top and not logprobs:
        raise bad("top_logprobs", "needs `logprobs` to be true")
    messages = array(body, "messages")
    if not messages:
        raise bad("messages", "has to be a list of at least one message")
    tools = read_tools(body)
    choice = body.get("tool_choice")
    if choice is None:
        choice = "auto" if tools else "none"
    if choice not in ("none", "auto"):
        raise bad("tool_choice", f"is {show(choice)}; this server knows 'none' and 'auto'")
    return Chat(
        _options(body, integer(body, limit, None, 1), logprobs, top),
        [read_message(message, f"messages[{i}]") for i, message in enumerate(messages)],
        tools if choice == "auto" else [],
    )


def read_completion(body: Any) -> Completion:
    """A checked completion request.

    Raises:
        ApiError: 400, and which field is wrong.
    """
    body = _fields(body, _COMPLETION)
    top = integer(body, "logprobs", None, 0, MAX_TOP_LOGPROBS)
    prompt = body.get("prompt")
    prompts = prompt if isinstance(prompt, list) and not _are_ids(prompt) else [prompt]
    if not prompts or not all(isinstance(item, str) or _are_ids(item) for item in prompts):
        raise bad("prompt", "has to be a text, a list of token ids, or a list of these")
    if len(prompts) > MAX_PROMPTS:
        raise bad("prompt", f"has {len(prompts)} prompts; a request may have {MAX_PROMPTS}")
    limit = integer(body, "max_tokens", 16, 1)
    return Completion(_options(body, limit, top is not None, top or 0), prompts)


def _options(body: Mapping[str, Any], limit: int | None, logprobs: bool, top: int) -> Options:
    stream = boolean(body, "stream")
    extra = body.get("stream_options")
    extra = {} if extra is None else extra
    if not isinstance(extra, dict) or not extra.keys() <= {"include_usage", "include_obfuscation"}:
        raise bad("stream_options", 'has to be of the form {"include_usage": true}')
    if extra and not stream:
        raise bad("stream_options", "needs `stream` to be true")
    stops = body.get("stop")
    stops = [] if stops is None else [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise bad("stop", f"has to be a text, or a list of at most {MAX_STOPS}")
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise bad("stop", "holds something that is no text, or an empty one")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise bad("stop", f"holds a text of more than {MAX_STOP_CHARACTERS} characters")
    model = body.get("model")
    if not isinstance(model, str):
        raise bad("model", "is missing; GET /v1/models says which there is")
    temperature = number(body, "temperature", 1.0, 0.0, 100.0)
    return Options(
        model=model,
        stream=stream,
        include_usage=_include_usage(extra),
        n=integer(body, "n", 1, 1, MAX_CHOICES) or 1,
        stops=tuple(stops),
        seed=integer(body, "seed", None, -(2**63), 2**63 - 1),
        temperature=temperature if temperature >= _COLD else 0.0,
        top_p=number(body, "top_p", 1.0, 1e-6, 1.0),
        top_k=max(integer(body, "top_k", 0, -1, 2**31 - 1) or 0, 0),  # -1 is all, as in vLLM
        max_tokens=limit,
        logprobs=logprobs,
        top_logprobs=top,
    )


def _fields(body: Any, known: set[str]) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ApiError(400, "The body of the request has to be a JSON object.")
    check_values(body, "body")
    for name, value in body.items():
        if name in known or value is None:
            continue
        if kind := _IGNORED.get(name):
            if not isinstance(value, kind):
                raise bad(name, f"is {show(value)}; it has to be {_TYPES[kind]}")
            continue
        if name not in _ONLY:
            raise bad(name, "is not known to this server")
        supported = _ONLY[name]
        if value != supported or isinstance(value, bool) != isinstance(supported, bool):
            # The types are compared too, since 0 == False.
            raise bad(name, f"is {show(value)}; this server knows {show(supported)} only")
    return body


def _include_usage(extra: Mapping[str, Any]) -> bool:
    """The one option of a stream that does something; the other is checked."""
    found = {}
    for name in ("include_usage", "include_obfuscation"):
        value = extra.get(name)
        if value is not None and not isinstance(value, bool):
            raise bad(f"stream_options.{name}", f"is {show(value)}; it has to be true or false")
        found[name] = bool(value)
    return found["include_usage"]


def _are_ids(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and len(prompt) > 0
        and all(isinstance(token, int) and not isinstance(token, bool) for token in prompt)
    )
