"""One Java process with many simulators in it, for environments that are written in Java or Scala."""

import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Jvm:
    """A Java process, started when the first simulator is made and ended with the last.

    Simulators of one process share what their classes hold in common, so calls are made one at a time,
    under `lock`. A process of 100 MB or more for each simulator is what this saves.

    Args:
        package: the Python package that the jar lies in.
        jar: the name of its file.
        interface: the full name of the Java class that a simulator is.
        memory_mb: heap of the process at most.
        options: further options of `java`.

    Raises:
        ImportError: the package or py4j is not installed.
        RuntimeError: there is no `java`, or it did not start.
    """

    def __init__(
        self, package: str, jar: str, interface: str, memory_mb: int, options: tuple[str, ...] = ()
    ):
        self._arguments = (package, jar, interface, memory_mb, options)
        self._gateway: Any = None
        self._simulators = 0
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return Jvm, self._arguments  # another process starts its own

    @contextlib.contextmanager
    def simulator(self) -> Iterator[Any]:
        """A new simulator, for as long as the body runs; all calls to it have to hold `lock`."""
        with self.lock:
            if self._gateway is None or self._gateway.java_process.poll() is not None:
                self._gateway, self._simulators = self._start(), 0
            gateway = self._gateway
            java_class = gateway.jvm
            for name in self._arguments[2].split("."):
                java_class = getattr(java_class, name)
            simulator = java_class()
            self._simulators += 1
        try:
            yield simulator
        finally:
            with self.lock:
                if gateway is self._gateway:  # else its process ended before it
                    self._simulators -= 1
                    with contextlib.suppress(Exception):
                        gateway.detach(simulator)
                    if not self._simulators:
                        self._gateway = None
                        _stop(gateway)

    def _start(self) -> Any:
        package, jar, _, memory_mb, options = self._arguments
        folder = package_folder(package)
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        try:
            port, process = launch_gateway(
                classpath=str(folder / jar),
                cwd=str(folder),
                # The collector of several threads takes three times the memory.
                javaopts=[f"-Xmx{memory_mb}m", "-XX:+UseSerialGC", *options],
                die_on_exit=True,
                return_proc=True,
            )
        except Exception as error:
            raise RuntimeError(
                f"{package} needs Java, which did not start ({type(error).__name__}: {error}): install a "
                "JRE of version 17 or later, so that `java` is found"
            ) from error
        parameters = GatewayParameters(port=port)
        return JavaGateway(gateway_parameters=parameters, java_process=process)


def package_folder(package: str) -> Path:
    """Where a package is installed; ImportError says how to install it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        extra = package.replace("_", "-")
        raise ImportError(f"{package} is not installed: pip install 'steprl[{extra}]'")
    return Path(spec.origin).parent


def java_text(text: str) -> str:
    """Text that can be sent to Java: a lone surrogate has no UTF-8, and becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _stop(gateway: Any) -> None:
    process = gateway.java_process
    with contextlib.suppress(Exception):
        gateway.shutdown()
    with contextlib.suppress(OSError, ValueError):
        process.stdin.close()  # it ends when its input does
    try:
        process.wait(timeout=5)
    except Exception:
        process.kill()
        process.wait()
