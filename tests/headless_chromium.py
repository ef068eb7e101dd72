"""Chromium without a window, spoken to over a pipe (DevTools protocol): pages are loaded, keys pressed, pictures taken."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--hide-scrollbars", "--disable-dev-shm-usage", "--remote-debugging-pipe",
]  # fmt: skip


class Browser:
    """One page. What it complained about is kept in `complaints`, what it asked for in `requests`."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = os.fdopen(to, "wb"), os.fdopen(back, "rb")
        self._number, self._session = 0, ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.say("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.say("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.say(f"{domain}.enable")

    def say(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        self._to.write(json.dumps(asked | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        self._to.flush()
        while True:
            told = json.loads(self._message())
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            self._note(told)

    def _message(self) -> bytes:
        read = bytearray()
        while (byte := self._back.read(1)) != b"\0":
            assert byte, "chromium ended"
            read += byte
        return bytes(read)

    def _note(self, told: dict[str, Any]) -> None:
        parameters = told.get("params", {})
        match told.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(parameters["exceptionDetails"])[:500])
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(parameters["args"])[:500])
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])

    def open(self, url: str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        self.say("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.say("Emulation.setEmulatedMedia", features=[scheme])
        self.say("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        return self.say("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def until(self, expression: str, seconds: float = 30.0) -> Any:
        """Wait until an expression is true; its value."""
        end = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText"), self.complaints)
            time.sleep(0.02)
        return found

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.say("Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 else "")

    def picture(self) -> bytes:
        """The window as a PNG file."""
        return base64.b64decode(self.say("Page.captureScreenshot", format="png")["data"])


@contextmanager
def chromium() -> Iterator[Browser]:
    """A fresh browser, ended with the block; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("chromium is not installed; run: apt-get install chromium")
    (theirs, to), (back, theirs_too) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

        def connect() -> None:  # the protocol's pipes are the file descriptors 3 and 4
            first, second = os.dup(theirs), os.dup(theirs_too)
            os.dup2(first, 3), os.dup2(second, 4)

        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=connect,
        )  # fmt: skip
        os.close(theirs), os.close(theirs_too)
        try:
            browser = Browser(to, back)
            yield browser
            browser.say("Browser.close")
        finally:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            browser._to.close(), browser._back.close()
