"""The Hermes format, written: `<tool_call>` blocks, `<tool_response>` blocks, and how to call.

    <tool_call>
    {"name": "search", "arguments": {"query": "Ada Lovelace"}}
    </tool_call>

As Hermes 2 Pro, Qwen2.5, Qwen3 and SmolLM2 were trained on. `steprl.tools.replies` reads it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from steprl.tools.outcome import Outcome
from steprl.tools.schema import Tool

# What a tool returns must not end its block, nor open a turn of the chat.
_ACTIVE = re.compile(r"<(?=\|[^|<>\s]{1,64}\|>|/?tool_(?:call|response)>)")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Of this format; some tokenizers have a token for each."""
_INSTRUCTION = """You may call tools. Their schemas are:
{tools}
For each call write one JSON object with name and arguments between tool_call tags:
<tool_call>
{{"name": "name of the tool", "arguments": {{"argument": "value"}}}}
</tool_call>"""


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
    `<`: so a web page can neither end its block nor speak as somebody else. Control tokens of other
    forms are kept out where the text is tokenised, see `steprl.models.plain_text`.

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


def instruct_tools(tools: Mapping[str, Tool] | Iterable[dict[str, Any]]) -> str:
    """The schemas, and how to call: all that a model has to be told where its template says nothing."""
    return _INSTRUCTION.format(tools=describe_tools(tools))
