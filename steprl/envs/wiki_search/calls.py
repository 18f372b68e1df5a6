"""The tool calls of a reply: which searches to make, and the errors of the others."""

from typing import Any

from steprl.tools import CallError, ToolCall, make_tools, parse_tool_calls


def search(query: str) -> str:
    """Find passages of Wikipedia by their words.

    Args:
        query: what to look for, such as the name of a person, a place, a work or an event.
    """
    # Which passages are new depends on the episode: `WikiSearch.step` makes the search.
    raise NotImplementedError(f"search({query!r}) is made by WikiSearch.step")


TOOLS = make_tools([search])
SEARCH_TOOL: dict[str, Any] = TOOLS["search"].schema


def read_calls(reply: str, limit: int) -> list[ToolCall | CallError]:
    """The calls of a reply in its order, those that cannot be made as errors; none: it is final.

    Args:
        reply: what the model wrote.
        limit: searches that are made; further ones become errors.
    """
    calls, errors = parse_tool_calls(reply, TOOLS)
    parsed: list[ToolCall | CallError] = [*calls, *errors]
    checked: list[ToolCall | CallError] = []
    searches = 0
    for call in sorted(parsed, key=lambda call: call.place):
        if isinstance(call, ToolCall):
            query = " ".join(call.arguments["query"].split())
            if not query:
                call = CallError(
                    call.place,
                    "bad_arguments",
                    "`search` was not called: `query` is empty.",
                    "search",
                )
            elif searches == limit:
                text = f"Not called: at most {limit} searches are made of one reply."
                call = CallError(call.place, "too_many", text, "search")
            else:
                searches += 1
                call = call._replace(arguments={"query": query})
        checked.append(call)
    return checked
