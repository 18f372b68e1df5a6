"""What became of a call: a value that is kept in the record of the step."""

import dataclasses
import json
from typing import Any

STATUSES = (
    "ok",
    # Not called, because of what was written:
    "bad_json",
    "unclosed",
    "unopened",
    "bad_form",
    "unknown_tool",
    "bad_arguments",
    "too_many",
    # Called, and failed:
    "exception",
    "time_limit",
    "crashed",
    "not_started",
)
"""How a call may end; all but the first are failures, the last three only of tools that may hang."""

TEXT_LIMIT = 8000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One call and its answer; hashable, and equal to another whatever time they took.

    Attributes:
        name: the tool that was asked for, "" where none could be read.
        arguments: JSON text of the arguments.
        status: one of `STATUSES`.
        text: what the model is shown: the result, or what went wrong.
        seconds: time of the call itself, without the start of a process.
    """

    name: str
    arguments: str
    status: str
    text: str
    seconds: float = dataclasses.field(default=0.0, compare=False)

    @property
    def ok(self) -> bool:
        """The tool was called and gave a result."""
        return self.status == "ok"

    def record(self) -> dict[str, Any]:
        """For JSON, the arguments as an object."""
        return {**dataclasses.asdict(self), "arguments": json.loads(self.arguments)}


def as_text(result: Any) -> str:
    """A tool's result as the model reads it: strings as they are, the rest as JSON where possible."""
    if isinstance(result, str):
        return result
    if result is None:
        return "(no result)"
    try:
        return json.dumps(result, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError):  # keys that are no strings, a list that holds itself
        return str(result)


def cut(text: str, limit: int) -> str:
    """The text in valid unicode, and its beginning with a note if it is too long."""
    size = len(text)
    if size > limit:
        text = f"{text[:limit]}\n[cut: the first {limit} of {size} characters]"
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):  # arrays and their scalars
        return value.tolist()
    if isinstance(value, set | frozenset):
        return list(value)
    return str(value)
