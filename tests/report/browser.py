"""Headless Chromium as a reader of the page: what it draws, logs, prints, asks of the network.

It is told what to do over the DevTools protocol, on a pipe. So the page is the one that readers
get, with its own content security policy, and a window can be as narrow as a phone's.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.waiting import LIMIT_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
#: Requests that are the page itself.
OWN = ("file:", "data:", "about:")


def chromium() -> str | None:
    """Path of a Chromium, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in one browser.

    errors: what the page logged as an error or warning, what was thrown, what its security policy
    refused. requests: what it asked for beyond itself.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []

    def start(self) -> None:
        """Attach to a new page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                found: dict[str, Any] = answer["result"]
                return found

    def wait_for(self, event: str) -> None:
        """Read events until one of this name."""
        while self._next().get("method") != event:
            pass

    def _next(self) -> dict[str, Any]:
        limit = time.monotonic() + LIMIT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, limit - time.monotonic()))
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, "Chromium does not answer"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, what: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(str(what["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.errors.append(str(what["args"]))
        elif event == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.errors.append(what["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            url = what["request"]["url"]
            if not url.startswith(OWN):
                self.requests.append(url)

    def show(self, page: Path, *, width: int, height: int = 1200, dark: bool = False) -> None:
        """Load a page in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        self.wait_for("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The result of the body of an async function in the page."""
        found = self.call(
            "Runtime.evaluate",
            expression=f"(async () => {{ {script} }})()",
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, element: str) -> str:
        """An element as it is on the screen, as PNG in base 64.

        Args:
            element: a JavaScript expression. It is scrolled to first: a picture of a long page as a
                whole has a largest height.
        """
        box = self.run(
            f"const found = {element};"
            "found.scrollIntoView({block: 'start', behavior: 'instant'});"
            "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));"
            "const {x, y, width, height} = found.getBoundingClientRect();"
            "return {x: x + scrollX, y: y + scrollY, width, height};"
        )
        clip = box | {"scale": 1}
        return str(self.call("Page.captureScreenshot", format="png", clip=clip)["data"])

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(
            self.call("Page.printToPDF", printBackground=True, generateTaggedPDF=True)["data"]
        )


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in `folder`."""
    (to_read, from_us), (from_it, to_write) = os.pipe(), os.pipe()
    # The browser reads from 3 and writes to 4.
    ends = [os.dup(end) for end in (to_read, to_write)]
    profile = f"--user-data-dir={folder / 'profile'}"
    script = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}'
    process = subprocess.Popen(
        ["bash", "-c", script, str(chromium()), *FLAGS, profile],
        pass_fds=ends,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (*ends, to_read, to_write):
        os.close(end)
    try:
        reader = Browser(from_it, from_us)
        reader.start()
        yield reader
    finally:
        process.kill()
        process.wait()
        for end in (from_it, from_us):
            os.close(end)


def drive(page: Path, script: str, folder: Path, *, width: int = 1000, dark: bool = False) -> Any:
    """Run the body of an async function in the page; what it returns, with `errors`, `requests`."""
    with browser(folder) as reader:
        reader.show(page, width=width, dark=dark)
        result = reader.run(script)
        return {"result": result, "errors": reader.errors, "requests": reader.requests}
