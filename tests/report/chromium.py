"""A headless Chromium that reads pages from disk, spoken to through a pipe; no package is needed."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def find() -> str | None:
    """The program, or None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One page in a browser of its own, with a profile of its own.

    Args:
        profile: an empty folder.
        size: of the window.
        seconds: that any answer may take.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1400, 900), seconds: float = 60):
        program = find()
        if program is None:
            raise FileNotFoundError(f"none of {', '.join(NAMES)} is installed")
        self.seconds, self.number, self.buffer = seconds, 0, b""
        self.events: list[dict[str, Any]] = []
        to_read, self.to_write = os.pipe()
        self.to_read, to_write = os.pipe()
        # The browser reads from its descriptor 3 and writes to 4.
        wire = f'exec {program} "$@" 3<&{to_read} 4>&{to_write}'
        flags = (*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}")
        self.process = subprocess.Popen(
            ["bash", "-c", wire, "chromium", *flags, "about:blank"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    session: str | None = None

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One command of the protocol of developer tools, and what it returns."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": arguments}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + self.seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.to_read], [], [], max(0.0, end - time.monotonic()))
            more = os.read(self.to_read, 1 << 20) if ready else b""
            if not more:
                raise TimeoutError("the browser does not answer")
            self.buffer += more
        answer, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(answer)

    def open(self, file: Path, state: str = "") -> None:
        """Loads a file and waits until the page says that it is ready."""
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri() + (f"#{state}" if state else ""))
        self.wait(
            "(({state, error} = {}) => error || state === 'ready')(document.documentElement?.dataset)"
        )

    def wait(self, condition: str) -> None:
        """Until a condition in the page is true."""
        end = time.monotonic() + self.seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"never true in the page: {condition}")
            time.sleep(0.02)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as from the keyboard."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        down = {"type": "keyDown", "key": key} | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened, the page itself left out."""
        self.evaluate("0")  # what was sent before has arrived then
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
            and event["params"].get("type") != "Document"
        ]

    def complaints(self) -> list[str]:
        """Errors of the page, among them what its policy forbade."""
        self.evaluate("0")
        found = [
            e
            for e in self.events
            if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
        ]
        return [json.dumps(event["params"]) for event in found]

    def screenshot(self, file: Path, dark: bool = False) -> None:
        """A picture of the window."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """Ends the browser with all its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.to_read)
        os.close(self.to_write)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
