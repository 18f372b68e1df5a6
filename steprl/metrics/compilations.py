"""How much was compiled."""

from collections import Counter
from typing import Any, Self

import jax

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Counts what XLA compiles while the context is open.

        with CompilationCounter() as counter:
            train(...)
        assert counter.count <= 6, counter.names

    A program that comes from the persistent cache counts too, so the number does not depend on
    what ran before on this machine. Operations outside `jit` compile as well, once a shape.
    """

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """Number of compilations so far."""
        return self.names.total()

    def _listen(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == _COMPILE_EVENT:
            self.names[str(kwargs.get("fun_name", "unknown"))] += 1
            self.seconds += duration_secs

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *exc: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
