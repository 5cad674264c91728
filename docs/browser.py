"""A headless Chromium with one page, told what to do by its DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import sys
import time
from contextlib import contextmanager
from fcntl import F_DUPFD_CLOEXEC, fcntl
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    f"none of {', '.join(NAMES)}: install one, such as by: apt-get install chromium"
)
PHONE = 390
"""Pixels of a width that is a phone's."""
HIGHEST = 1600
"""Pixels of a page that are shown."""
LOAD_SECONDS = 30.0
"""How long a loaded page may go on asking."""
MOST_SECONDS = 300.0
"""How long a page may load at all."""
REST_SECONDS = 1.5
"""How long the scripts of a page draw once it asks for nothing any more."""


class Browser:
    """requests: the address of everything that pages have asked for."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._count, self._unread = 0, b""
        self._page = dict[str, str]()
        self.requests = list[str]()
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        attached = self.do("Target.attachToTarget", targetId=target, flatten=True)
        self._page = {"sessionId": attached["sessionId"]}
        self.do("Page.enable")
        self.do("Emulation.setScrollbarsHidden", hidden=True)
        self.do("Network.enable")
        self.do("Page.setLifecycleEventsEnabled", enabled=True)

    def open(self, url: str, width: int, *, dark: bool = False) -> None:
        """Show a page as a device of this width does, and wait until it has settled."""
        size = {"width": width, "height": HIGHEST, "deviceScaleFactor": 1}
        self.do("Emulation.setDeviceMetricsOverride", **size, mobile=width <= PHONE)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        # An address that differs in its part after # alone is not loaded.
        self.do("Page.navigate", url="about:blank")
        loader = self.do("Page.navigate", url=url)["loaderId"]
        states = set[str]()
        start = time.monotonic()
        while "networkIdle" not in states:
            seconds = time.monotonic() - start
            if seconds > MOST_SECONDS:
                raise RuntimeError(f"not loaded within {MOST_SECONDS:g} s: {url}")
            if seconds > LOAD_SECONDS and "load" in states:
                break  # it goes on asking
            event = self._next(1.0).get("params", {})
            if event.get("loaderId") == loader:
                states.add(event.get("name", ""))
        time.sleep(REST_SECONDS)

    def picture(self) -> bytes:
        """Return what is shown, as PNG; of a short page without the empty rest."""
        width = self.do("Page.getLayoutMetrics")["cssVisualViewport"]["clientWidth"]
        expression = (
            "Math.ceil(document.documentElement.getBoundingClientRect().height)"
        )
        found = self.do("Runtime.evaluate", expression=expression)["result"]["value"]
        height = min(found, HIGHEST)
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.do("Page.captureScreenshot", clip=clip)
        return base64.b64decode(shot["data"])

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol: https://chromedevtools.github.io/devtools-protocol."""
        self._count += 1
        message = {
            "id": self._count,
            "method": method,
            "params": parameters,
            **self._page,
        }
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while (answer := self._next(LOAD_SECONDS)).get("id") != self._count:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict[str, Any](answer["result"])

    def _next(self, seconds: float) -> dict[str, Any]:
        """Return the next message, {} if none comes; note the request that it tells of."""
        while b"\0" not in self._unread:
            if not select.select([self._receive], [], [], seconds)[0]:
                return {}
            read = os.read(self._receive, 1 << 16)
            if not read:
                raise RuntimeError("Chromium has ended")
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\0")
        message = dict[str, Any](json.loads(line))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


@contextmanager
def browser(*more_options: str) -> Iterator[Browser]:
    """Start Chromium in a profile of its own; end it after. SystemExit: there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None) or sys.exit(MISSING)
    options = ["--headless", "--remote-debugging-pipe", *more_options]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    told, telling = _pipe()
    hearing, said = _pipe()
    files = [
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, told, 3),  # Chromium reads from 3 and writes to 4
        (os.POSIX_SPAWN_DUP2, said, 4),
    ]
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *options, f"--user-data-dir={profile}"]
        process = os.posix_spawn(program, command, os.environ, file_actions=files)
        os.close(told)
        os.close(said)
        try:
            yield Browser(telling, hearing)
        finally:
            os.close(telling)  # ends it
            os.waitpid(process, 0)
            os.close(hearing)


def _pipe() -> tuple[int, int]:
    """Return both ends of a pipe, neither of them 3 or 4, and neither known to a child."""
    low = os.pipe()
    ends = fcntl(low[0], F_DUPFD_CLOEXEC, 5), fcntl(low[1], F_DUPFD_CLOEXEC, 5)
    for end in low:
        os.close(end)
    return ends
