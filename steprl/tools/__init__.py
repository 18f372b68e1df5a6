"""Tools: plain Python functions that a model may call, by schema, by text, within limits.

A typed, documented function becomes a `Tool`; the calls of a text are read by `parse_tool_calls`, made
by `call_tools`, and answered by `render_tool_response`. `read_reply` reads answers and thoughts too.
Nothing that a model writes raises: what was wrong is said in the answer.
"""

from steprl.tools.arguments import check_arguments
from steprl.tools.call import call_tools
from steprl.tools.call_objects import CallError, ToolCall, check_call
from steprl.tools.hermes import (
    describe_tools,
    instruct_tools,
    render_tool_call,
    render_tool_response,
)
from steprl.tools.outcome import STATUSES, Outcome
from steprl.tools.replies import Reply, last_answer, parse_tool_calls, read_reply
from steprl.tools.schema import Tool, make_tool, make_tools, tool_schema

__all__ = [
    "STATUSES",
    "CallError",
    "Outcome",
    "Reply",
    "Tool",
    "ToolCall",
    "call_tools",
    "check_arguments",
    "check_call",
    "describe_tools",
    "instruct_tools",
    "last_answer",
    "make_tool",
    "make_tools",
    "parse_tool_calls",
    "read_reply",
    "render_tool_call",
    "render_tool_response",
    "tool_schema",
]
