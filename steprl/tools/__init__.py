"""Tools: plain Python functions that a model may call, by schema, by text, within limits.

A typed, documented function becomes a `Tool`; the calls of a text are read by `parse_tool_calls`, made
by `call_tools`, and answered by `render_tool_response`. Nothing that a model writes raises: what was
wrong is said in the answer.
"""

from steprl.tools.arguments import check_arguments
from steprl.tools.call import call_tools
from steprl.tools.hermes import (
    CallError,
    ToolCall,
    check_call,
    describe_tools,
    parse_tool_calls,
    render_tool_call,
    render_tool_response,
)
from steprl.tools.outcome import STATUSES, Outcome
from steprl.tools.schema import Tool, make_tool, make_tools, tool_schema

__all__ = [
    "STATUSES",
    "CallError",
    "Outcome",
    "Tool",
    "ToolCall",
    "call_tools",
    "check_arguments",
    "check_call",
    "describe_tools",
    "make_tool",
    "make_tools",
    "parse_tool_calls",
    "render_tool_call",
    "render_tool_response",
    "tool_schema",
]
