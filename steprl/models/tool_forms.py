"""In which form a chat template asks for tool calls: a call is written by the template, and read."""

import os.path
from typing import Any

from steprl.models.chat import ChatFormat, chat_format
from steprl.tools.replies import parse_tool_calls

HERMES, JSON, NONE = "hermes", "json", ""
"""`<tool_call>` blocks; objects without tags as Llama 3 writes them; the template shows no tools."""

_WORD = "4d1f0a77"  # an argument that occurs in no template
_PROBE = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Nothing.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "Any."}},
            "required": ["word"],
        },
    },
}
_ASKED = {"role": "user", "content": "Hello."}
_RESULT = {"role": "tool", "name": "probe", "tool_call_id": "call00001", "content": "nothing"}


def tool_form(tokenizer: Any, **variables: Any) -> str:
    """The form in which a model is asked for tool calls: `HERMES`, `JSON`, or `NONE`.

    Raises:
        ValueError: there is no chat template, or it asks for calls in a form that is not read; says
            which forms are.
    """
    chat = chat_format(tokenizer, **variables)
    if not chat.shows_tools:
        return NONE
    written = _written_call(chat)
    for form, bare in ((HERMES, False), (JSON, True)):
        calls, errors = parse_tool_calls(written, bare=bare)
        if not errors and [(c.name, c.arguments) for c in calls] == [("probe", {"word": _WORD})]:
            return form
    name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
    shown = f"writes a call as {written[:120]!r}" if written else "writes no calls"
    raise ValueError(
        f"tools: the chat template of {name} {shown}, which is not read; forms that are read are "
        '<tool_call>{"name": ..., "arguments": {...}}</tool_call> (Hermes, Qwen) and '
        '{"name": ..., "parameters": {...}} (Llama 3): take a model with one of these, or set another '
        "chat_template in its tokenizer"
    )


def _written_call(chat: ChatFormat) -> str:
    """A reply with one call, as the template writes it; "" where it does not."""
    head = chat.render([_ASKED], tools=[_PROBE])
    for arguments in ({"word": _WORD}, f'{{"word": "{_WORD}"}}'):
        call = {"name": "probe", "arguments": arguments}
        calls = [{"id": "call00001", "type": "function", "function": call}]
        reply = {"role": "assistant", "content": "", "tool_calls": calls}
        for behind in ([], [_RESULT]):  # some want every call to have its result
            try:
                text = chat.render([_ASKED, reply, *behind], prompt=False, tools=[_PROBE])
            except ValueError:
                continue
            if _WORD in text:
                text = text[len(os.path.commonprefix([head, text])) :]
                end = text.find(chat.stop, text.index(_WORD))
                return text if end < 0 else text[:end]
    return ""
