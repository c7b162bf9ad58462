"""Control a headless Chromium over two pipes with the DevTools protocol: needs no driver, no network and no extra package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
PATIENCE = 60.0
"""Seconds to wait for an answer; an old machine needs ten to start a browser."""

FLAGS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
    "--disable-background-networking", "--no-first-run", "--hide-scrollbars", "--force-device-scale-factor=1",
)  # fmt: skip


def find_chromium() -> str | None:
    """Find a Chromium or Chrome on the path, or one installed by Playwright."""
    kept = sorted(Path.home().glob(".cache/ms-playwright/chromium*/*/*"))
    found = [shutil.which(name) for name in NAMES] + [str(path) for path in kept if path.name in NAMES and os.access(path, os.X_OK)]
    return next((name for name in found if name), None)


@dataclass
class Tab:
    """A page in the browser.

    Attributes:
        read: descriptor for the browser's messages.
        write: descriptor for commands.
        session: DevTools session of the tab, or None for the browser itself.
        complaints: errors and warnings on the console, and uncaught exceptions.
    """

    read: int
    write: int
    session: str | None = None
    complaints: list[str] = field(default_factory=list)
    _buffer: bytes = b""
    _count: int = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self._note(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        """Load a file and wait until loading is complete."""
        self.visit(path.absolute().as_uri())

    def visit(self, url: str) -> None:
        """Load a page and wait until loading is complete."""
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE
        while self.run("document.readyState + location.href") != f"complete{url}":
            assert time.monotonic() < deadline, f"{url} has not loaded after {PATIENCE:g} s"

    def run(self, expression: str) -> Any:
        """Evaluate a JavaScript expression, which the page's security policy does not restrict."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def show(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window in CSS pixels and the user's preferred colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> Path:
        """Write the whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.read], [], [], PATIENCE)
            assert ready, f"the browser has sent nothing for {PATIENCE:g} s"
            piece = os.read(self.read, 1 << 16)
            assert piece, "the browser has closed the pipe"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        if method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.complaints.append(str(params["entry"]))
        if method == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"):
            self.complaints.append(str(params["args"]))


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Tab]:
    """Start a browser with one tab. The browser reads commands from its descriptor 3 and writes answers to its descriptor 4."""
    (its_input, our_output), (our_input, its_output) = (_pipe(), _pipe())
    quiet = os.open(os.devnull, os.O_RDWR)
    places = [(os.POSIX_SPAWN_DUP2, its_input, 3), (os.POSIX_SPAWN_DUP2, its_output, 4)]
    silence = [(os.POSIX_SPAWN_DUP2, quiet, stream) for stream in (1, 2)]
    arguments = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = os.posix_spawn(program, arguments, os.environ, file_actions=[*places, *silence])
    for descriptor in (its_input, its_output, quiet):
        os.close(descriptor)
    try:
        tab = Tab(our_input, our_output)
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        yield tab
    finally:
        for descriptor in (our_input, our_output):
            os.close(descriptor)
        _end(process)


def _pipe() -> tuple[int, int]:
    """Return the read and write ends of a pipe, numbered above the descriptors that the browser uses."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _end(process: int) -> None:
    """Wait for the browser to exit after its pipe has closed, and kill it if it does not."""
    for _ in range(50):
        if os.waitpid(process, os.WNOHANG)[0]:
            return
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
