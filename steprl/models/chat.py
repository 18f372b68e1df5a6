"""Conversations as tokens: what stands before a reply, and between two of them, by the chat template.

A reply is kept as sampled. So a context is never rendered twice: it begins with `begin(messages)`,
then the ids of the reply with its stop token, then `extend(new messages)`, and so on.

Only the template writes control tokens. In messages and tools their names are text (`plain_text`), but
for tags such as `<think>` in what the assistant said.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from steprl.models.generation import end_ids
from steprl.models.plain_text import PlainText, plain_text, shield_all, unshield
from steprl.tools.replies import THOUGHTS

Message = Mapping[str, Any]
"""`{"role": ..., "content": ...}`, and `tool_calls` as the template knows them."""

_SYSTEM = {"role": "system", "content": "Be brief."}
_USER = {"role": "user", "content": "Hello."}
_MARK = "9f3b7c1e"  # a reply that occurs in no template
_PROBE = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Nothing.",
        "parameters": {"type": "object", "properties": {}},
    },
}
_OPENED = re.compile(rf"<(?:{'|'.join(THOUGHTS)})>\s*\Z")


class ChatFormat(NamedTuple):
    """The functions of one chat template.

    begin(messages) -> ids of the conversation and the generation prompt behind it
    extend(messages) -> ids between the stop token of a reply and the next generation prompt
    decode(ids) -> text of a reply: one trailing stop token is dropped, any other token stays to be seen
    render(messages, prompt=True, tools=None) -> text, with the generation prompt or without
    encode(text) -> ids; the names of special tokens become these tokens, and none is added
    stop: text of the first of `stop_ids`
    write(messages, prompt=True, tools=None) -> as `render`, for `encode`: with the marks of `plain_text`
    plain: how text is kept from becoming control tokens
    shows_tools: whether the template shows tools to the model
    opened: what the generation prompt has begun and the reply goes on with, such as "<think>\\n", or ""
    """

    begin: Callable[[Sequence[Message]], list[int]]
    extend: Callable[[Sequence[Message]], list[int]]
    stop_ids: tuple[int, ...]  # the first is the one that the template writes behind a reply
    decode: Callable[[Iterable[int]], str]
    render: Callable[..., str]
    encode: Callable[[str], list[int]]
    stop: str
    write: Callable[..., str]
    plain: PlainText
    shows_tools: bool
    opened: str


def chat_format(
    tokenizer: Any,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    tags: Sequence[str] = (),
    **variables: Any,
) -> ChatFormat:
    """The chat template of a tokenizer, exact about tokens.

    Args:
        tokenizer: of `transformers`, with a chat template.
        tools: schemas that the template shows to the model, such as `Tool.schema`.
        tags: names of tokens that messages may hold, such as "<tool_response>"; none of special tokens.
        **variables: what else the template reads, such as `enable_thinking=False` (Qwen3) or
            `date_string="26 Jul 2024"` (Llama 3, which otherwise may write the date of today).

    Returns:
        The functions. A reply that its length cut off has no stop token: put `stop_ids[0]` before
        what `extend` gives.

    Raises:
        ValueError: there is no chat template, it shows no tools, or it writes no special token behind
            a reply. The functions raise it for messages that the template refuses, and `extend` where
            new messages change what was written before them: then only `begin` with the whole
            conversation gives what the template wants.

    Note:
        What a template adds is part of the context. That of SmolLM2 and of Qwen2.5 begins with a system
        message of its own where the first message is none of the system; give one to replace it. That
        of Qwen3 drops the thoughts of earlier replies, which `extend` keeps, as they were sampled.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        origin = f" of {tokenizer.name_or_path}" if tokenizer.name_or_path else ""
        raise ValueError(
            f"tokenizer{origin}: it has no chat template, so it is none of a chat model; take one of an "
            "instruction-tuned model, or set `tokenizer.chat_template`"
        )

    plain = plain_text(tokenizer)

    def write(
        messages: Sequence[Message],
        prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = tools,
    ) -> str:
        if tools and not shows_tools():
            raise ValueError(
                "tools: the chat template does not show them to the model; describe them in the "
                "system message, see `steprl.tools.describe_tools`"
            )
        shielded = [_shielded(message, plain, tags) for message in messages]
        shown = shield_all(tools, plain.shield) if tools else None
        return _render_template(tokenizer, shielded, prompt, shown, variables)

    def render(*arguments: Any, **options: Any) -> str:
        return unshield(write(*arguments, **options))

    @functools.cache
    def shows_tools() -> bool:
        try:
            with_tools = _render_template(tokenizer, [_USER], True, [_PROBE], variables)
        except ValueError:
            return False
        return with_tools != _render_template(tokenizer, [_USER], True, None, variables)

    @functools.cache
    def takes_system() -> bool:
        try:
            return bool(render([_SYSTEM, _USER]))
        except ValueError:
            return False

    encode = plain.encode

    def begin(messages: Sequence[Message]) -> list[int]:
        return encode(write(messages))

    def extend(messages: Sequence[Message]) -> list[int]:
        if not messages:
            raise ValueError("messages: there is none to reply to")
        text, problem = _continuation(write, stop, [_USER], messages)
        if not problem and takes_system():
            if _continuation(write, stop, [_SYSTEM, _USER], messages) != (text, ""):
                problem = "they are written differently behind a system message"
        if problem:
            raise ValueError(
                f"messages: with this chat template {problem}, so a context cannot be extended; "
                "rebuild it each step: `begin` with the whole conversation"
            )
        return encode(text)

    def decode(ids: Iterable[int]) -> str:
        token_ids = [int(token_id) for token_id in ids]
        if token_ids and token_ids[-1] in stop_ids:
            token_ids.pop()
        return tokenizer.decode(
            token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    render([_USER])  # complains about the tools, if there is something to complain about
    tail = render([_USER, _reply(_MARK)], prompt=False).partition(_MARK)[2]
    added = tokenizer.added_tokens_decoder
    stop_id = next((token_id for token_id in encode(tail) if token_id in added), None)
    if stop_id is None:
        raise ValueError(
            f"tokenizer: its chat template writes {tail!r} behind a reply, which holds no special "
            "token, so nothing would end the reply of a model"
        )
    stop = added[stop_id].content
    stop_ids = tuple(dict.fromkeys((stop_id, *end_ids(tokenizer))))
    opened = _OPENED.search(render([_USER]))
    return ChatFormat(
        begin, extend, stop_ids, decode, render, encode, stop, write, plain, shows_tools(),
        opened.group() if opened else "",
    )  # fmt: skip


def _shielded(message: Message, plain: PlainText, tags: Sequence[str]) -> dict[str, Any]:
    """A message whose texts are no control tokens, but for tags in what the assistant said."""

    def shield(text: str) -> str:
        return plain.shield(text, plain.tags.intersection(tags))

    shielded = {name: shield_all(value, shield) for name, value in message.items()}
    if message.get("role") == "assistant":
        for name in ("content", "reasoning_content"):
            if name in message:
                said = shield_all(message[name], lambda text: plain.shield(text, plain.tags))
                shielded[name] = said
    return shielded


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a reply: first the one that the chat template writes, where there is one."""
    if getattr(tokenizer, "chat_template", None) is None:
        return end_ids(tokenizer)
    try:
        return chat_format(tokenizer).stop_ids
    except ValueError:  # a template without an end
        return end_ids(tokenizer)


def _render_template(
    tokenizer: Any, messages: Sequence[Message], prompt: bool, tools: Any, variables: dict[str, Any]
) -> str:
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=list(tools) if tools else None,
            add_generation_prompt=prompt,
            tokenize=False,
            **variables,
        )
    except ImportError:
        raise
    except Exception as error:  # templates are programs, and fail as programs do
        raise ValueError(f"messages: the chat template refuses them: {error}") from error


def _continuation(
    render: Callable[..., str], stop: str, first: list[Message], messages: Sequence[Message]
) -> tuple[str, str]:
    """What is written behind a reply and its stop token, and why that is of no use ("" if it is)."""
    head = render(first)
    before, mark, behind = render([*first, _reply(_MARK), *messages]).partition(_MARK)
    if not mark:
        return "", "the reply before them is not written as it was"
    # What a generation prompt opens, as for thoughts, may be missing where the reply is history.
    if not (head.startswith(before) or before.startswith(head)):
        return "", "what stands before the reply changes with them"
    if not behind.startswith(stop):
        return "", f"the reply before them does not end with {stop}"
    return behind.removeprefix(stop), ""


def set_variables(tokenizer: Any, variables: Mapping[str, Any]) -> None:
    """Writes variables into the chat template of a tokenizer, where they are saved with it.

    Example:
        >>> set_variables(tokenizer, {"enable_thinking": False})  # doctest: +SKIP

    Raises:
        ValueError: there is no chat template, or a variable is no JSON value with a plain name.
    """
    if not isinstance(getattr(tokenizer, "chat_template", None), str):
        raise ValueError("variables: the tokenizer has no chat template that could read them")
    for name, value in variables.items():
        if not name.isidentifier() or not isinstance(value, bool | int | float | str):
            raise ValueError(
                f"variables: {name}={value!r}; a name with a number, text, true or false"
            )
        tokenizer.chat_template = (
            f"{{%- set {name} = {json.dumps(value)} %}}{tokenizer.chat_template}"
        )


def _reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
