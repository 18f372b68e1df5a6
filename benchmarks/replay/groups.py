"""Not written yet."""

from collections.abc import Callable

from replay.cases import Case, Deviations, Results

REASONS: dict[str, str] = {}
FAMILIES: dict[str, Callable[[Case], tuple[Results, Deviations]]] = {}
