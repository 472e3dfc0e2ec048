"""A headless Chromium, driven by the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_missing import missing

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
    # whatever else it might want to know of the world
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
DEADLINE = 30.0

# Popen passes descriptors on under their own numbers only, and either may be one of these two.
LAUNCH = """
import os, sys
from fcntl import F_DUPFD, fcntl
theirs = [fcntl(int(number), F_DUPFD, 10) for number in sys.argv[1:3]]
for number, descriptor in enumerate(theirs, start=3):
    os.dup2(descriptor, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """A browser process; it reads commands from its descriptor 3 and answers on 4."""

    def __init__(self, program: str, folder: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [program, *FLAGS, f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), *command],
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._received = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if session:
            command["sessionId"] = session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE
        while True:
            message = self._read(deadline)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def pump(self, seconds: float) -> None:
        """Take in what happens within *seconds*."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            while True:
                self._read(deadline)

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._in], [], [], left)[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self._in, 1 << 16)
            assert data, "Chromium has ended"
            self._received += data
        raw, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        if "method" in message:
            self.events.append(message)
        return message

    def close(self) -> None:
        """End it with all of its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._in)
        os.close(self._out)


class Tab:
    """One page of the browser."""

    def __init__(self, browser: Chromium) -> None:
        self._browser = browser
        browser.events.clear()
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol."""
        return self._browser.call(method, self._session, **params)

    def events(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of the events of this tab so far."""
        return [
            event["params"]
            for event in self._browser.events
            if event["method"] == method and event.get("sessionId") == self._session
        ]

    def open(self, url: str, *, width: int = 1280, scheme: str = "light") -> None:
        """Load *url* in a window of that width, for a user who prefers that colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=url)
        self.wait_for(lambda: self.events("Page.loadEventFired"))

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript *expression* in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Return once *condition* is true."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.evaluate("document.body.innerText")
            self._browser.pump(0.05)

    def text(self) -> str:
        """Return what can be read on the page, on one line."""
        return " ".join(self.evaluate("document.body.innerText").split())

    def requests(self) -> list[str]:
        """Return the URLs that have been asked for."""
        return [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]

    def complaints(self) -> list[Any]:
        """Return what the console shows as errors and warnings, and uncaught exceptions."""
        logged = [event["entry"]["text"] for event in self.events("Log.entryAdded")]
        called = [event["args"] for event in self.events("Runtime.consoleAPICalled")]
        thrown = [event["exceptionDetails"] for event in self.events("Runtime.exceptionThrown")]
        return logged + called + thrown

    def screenshot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser that all tests share."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        missing(f"no Chromium on this machine; looked for: {', '.join(NAMES)}")
    browser = Chromium(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def tab(chromium: Chromium) -> Tab:
    """A page of its own."""
    return Tab(chromium)
