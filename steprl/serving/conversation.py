"""Messages with tools as tokens, whether the chat template knows about tools or not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from steprl.models.chat import chat_format
from steprl.models.tool_forms import HERMES, JSON, tool_form
from steprl.tools import Outcome, instruct_tools, render_tool_call, render_tool_response


class MessageFormat(NamedTuple):
    """The functions of a chat model's tokenizer.

    encode(messages, tools) -> ids, with the generation prompt
    decode(ids) -> text of a reply, without its stop token
    reasoning: whether the template reads the `reasoning_content` of messages
    """

    encode: Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], list[int]]
    decode: Callable[[Sequence[int]], str]
    stop_ids: tuple[int, ...]
    bare: bool = False  # calls are written without tags, as Llama 3 does
    opened: str = ""  # see `ChatFormat`
    reasoning: bool = False


def message_format(tokenizer: Any) -> MessageFormat:
    """How a tokenizer writes conversations.

    Where its chat template shows no tools, they are described in the system message, and calls and
    their results are written into the texts in the Hermes format.

    Raises:
        ValueError: it has no chat template. `encode` raises it for tools whose calls the template
            writes in a form that is not read.
    """
    plain = chat_format(tokenizer)
    problem = ""
    try:
        form = tool_form(tokenizer)
    except ValueError as error:
        form, problem = HERMES, str(error)

    def encode(
        messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        if tools and problem:
            raise ValueError(problem)
        if not form:
            return plain.begin(as_text(messages, tools))
        return (chat_format(tokenizer, tools) if tools else plain).begin(messages)

    reasoning = "reasoning_content" in str(tokenizer.chat_template)
    return MessageFormat(
        encode, plain.decode, plain.stop_ids, form == JSON, plain.opened, reasoning
    )


def as_text(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Messages of system, user and assistant alone; results of one turn's calls are one message.

    Example:
        >>> as_text([{"role": "tool", "content": "3"}], [])
        [{'role': 'user', 'content': '<tool_response>\\n3\\n</tool_response>'}]
    """
    written: list[dict[str, Any]] = []
    last = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            content = render_tool_response([Outcome("", "{}", "ok", content)])
            if last == "tool":
                written[-1]["content"] += f"\n{content}"
            else:
                written.append({"role": "user", "content": content})
        else:
            blocks = [
                render_tool_call(call["function"]["name"], call["function"]["arguments"])
                for call in message.get("tool_calls", ())
            ]
            text = "\n".join([content, *blocks] if content else blocks)
            kept = {
                name: message[name] for name in ("name", "reasoning_content") if name in message
            }
            written.append({"role": role, "content": text, **kept})
        last = role
    if tools:
        instruction = instruct_tools(dict(tool) for tool in tools)
        if written and written[0]["role"] == "system":
            written[0]["content"] += f"\n\n{instruction}"
        else:
            written.insert(0, {"role": "system", "content": instruction})
    return written
