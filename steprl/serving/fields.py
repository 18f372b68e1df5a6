"""Values of a request, checked one by one: each refusal names the field and says what it has to be."""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

MAX_DEPTH = 100  # of lists and objects within each other
_Place = tuple["_Place | None", str | int]  # of a value: that of what holds it, and its name there


class ApiError(Exception):
    """A request that is answered with an error, in OpenAI's form."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 403: "permission_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kinds.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def bad(param: str, problem: str) -> ApiError:
    """The refusal of one field."""
    param = param if len(param) <= 200 else param[:200] + "..."
    return ApiError(400, f"`{param}` {problem}.", param=param)


def parse_json(text: str | bytes, where: str) -> Any:
    """JSON with finite numbers and distinct keys only.

    Raises:
        ApiError: 400, it is none.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    def number(digits: str) -> float:
        if math.isinf(value := float(digits)):
            raise ValueError(f"{digits[:20]} is out of range")
        return value

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    raise ValueError(f"the key {show(name)} is given twice")
                seen.add(name)
        return found

    try:
        return json.loads(
            text, parse_constant=constant, parse_float=number, object_pairs_hook=members
        )
    except (ValueError, RecursionError) as error:
        raise bad(where, f"is no valid JSON: {error}") from error


def check_values(value: Any, where: str) -> None:
    """Refuses what is read here and breaks something later, at any depth.

    That is half of a surrogate pair in a text or a key, which no tokenizer takes, and nesting that the
    programs of chat templates do not.

    Raises:
        ApiError: 400, with the path of the value; paths of a request's body begin at its fields.
    """
    waiting: list[tuple[Any, _Place | None, int]] = [(value, None, 0)]
    while waiting:
        value, place, depth = waiting.pop()
        if isinstance(value, str):
            if not _is_text(value):
                raise bad(
                    _path(place, where), "holds half of a surrogate pair, which is no character"
                )
            continue
        if not isinstance(value, list | dict):
            continue
        if depth == MAX_DEPTH and value:
            raise bad(_path(place, where), f"is nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            if not all(map(_is_text, value)):
                raise bad(_path(place, where), "has a key with half of a surrogate pair")
            parts: Any = value.items()
        else:
            parts = enumerate(value)
        waiting += [
            (part, (place, name), depth + 1)
            for name, part in parts
            if isinstance(part, str | list | dict)
        ]


def _path(place: "_Place | None", where: str) -> str:
    """As in `messages[0].content`."""
    names: list[str | int] = []
    while place is not None:
        place, name = place
        names.append(name)
    path = "" if where == "body" else where
    for name in reversed(names):
        path += f"[{name}]" if isinstance(name, int) else f".{name}"
    return path.removeprefix(".") or "body"


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def only_keys(value: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuses keys that would be dropped; null is as good as absent.

    Raises:
        ApiError: 400.
    """
    for name, item in value.items():
        if name not in known and item is not None:
            raise bad(f"{where}.{name}", "is not known to this server")


def array(body: Mapping[str, Any], name: str, where: str = "") -> list[Any]:
    """A list, empty where it is null or absent.

    Raises:
        ApiError: 400.
    """
    value = body.get(name)
    if value is not None and not isinstance(value, list):
        raise bad(f"{where}{name}", f"is {show(value)}; it has to be a list")
    return value or []


def boolean(body: Mapping[str, Any], name: str) -> bool:
    """True or false, which null and absent are, too.

    Raises:
        ApiError: 400.
    """
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(name, f"is {show(value)}; it has to be true or false")
    return bool(value)


def number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number within limits.

    Raises:
        ApiError: 400.
    """
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad(name, f"is {show(value)}; it has to be a number from {low:g} to {high:g}")
    return float(value)


def integer(
    body: Mapping[str, Any], name: str, default: Any, low: int, high: float = math.inf
) -> Any:
    """An integer within limits.

    Raises:
        ApiError: 400.
    """
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        upper = f" to {high}" if high < math.inf else " on"
        raise bad(name, f"is {show(value)}; it has to be an integer from {low}{upper}")
    return value


def show(value: Any) -> str:
    """A value as it is quoted in a refusal."""
    return repr(value)[:80]
