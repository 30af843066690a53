"""A headless Chromium for pictures of pages: driven over a pipe, with no network, profile or window of its own.

It speaks the browser's own protocol (Chrome DevTools) over two file descriptors, so that nothing has to listen
on a port. POSIX only. Sizes are CSS pixels.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocessing.errors import BrowserError
from preprocessing.runtime.files import write_bytes

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
PLAIN_FLAGS = ("--disable-gpu",)
# WebGL2 drawn by the processor: slow, and the same everywhere.
WEBGL_FLAGS = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
# The browser reads from descriptor 3 and writes to 4; this child puts them there and becomes the browser.
LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Screen:
    """What the page is shown on. scale: device pixels a CSS pixel; dark: what the reader's system prefers."""

    width: int = 1280
    height: int = 900
    scale: float = 1.0
    dark: bool = False
    phone: bool = False


@dataclass
class Page:
    """An open page. errors: what its console complained of; requests: addresses it asked for."""

    pipe: _Pipe
    session: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise; BrowserError if it throws."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"The page threw {_complaint(answer['exceptionDetails'])}.")
        return answer["result"].get("value")

    def wait_for(self, condition: str, seconds: float = PATIENCE_S) -> None:
        """Until a JavaScript condition holds; BrowserError, with the page's complaints, if it never does."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise BrowserError(
                    f"A page was to reach '{condition}' within {seconds:.0f} s and did not; its console says: "
                    f"{'; '.join(self.errors) or 'nothing'}."
                )
            time.sleep(0.05)

    def key(self, name: str) -> None:
        """Press and release a key, by its DOM name: "n", "ArrowDown"."""
        text = {"text": name} if len(name) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name)

    def picture(self, *, whole: bool = False) -> bytes:
        """What is on the screen, or the whole page, as PNG."""
        size: Mapping[str, Any] = {"captureBeyondViewport": whole}
        if whole:
            content = self.call("Page.getLayoutMetrics")["cssContentSize"]
            size = {**size, "clip": {**content, "x": 0, "y": 0, "scale": 1}}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **size)["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; events that come meanwhile are noted."""
        return self.pipe.call(method, parameters, self.session, self._note)

    def _note(self, event: Mapping[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(_complaint(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}".strip())
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])


def find_browser() -> Path | None:
    """Chromium or Chrome on this machine's path; None without."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    return Path(found) if found else None


@contextmanager
def open_page(address: str, screen: Screen | None = None, *, webgl: bool = False) -> Iterator[Page]:
    """A page in a browser of its own, loaded; both are gone afterwards. BrowserError without a browser."""
    browser = find_browser()
    if browser is None:
        raise BrowserError(
            f"Pictures of pages need a browser, and none of {', '.join(NAMES)} is on the path: install Chromium "
            "(Debian and Ubuntu: the package chromium)."
        )
    with tempfile.TemporaryDirectory(prefix="iris-browser-", ignore_cleanup_errors=True) as profile:
        pipe = _Pipe.start(browser, Path(profile), webgl)
        try:
            yield _load(pipe, address, screen or Screen())
        finally:
            pipe.stop()


def picture_page(
    page: Path, out: Path, screen: Screen | None = None, *, part: str = "", whole: bool = False
) -> None:
    """An HTML file as a PNG picture: its first screen, the one that begins with the element `part`, or all of it."""
    with open_page(page.resolve().as_uri(), screen) as shown:
        if part and not shown.evaluate(f"document.getElementById({json.dumps(part)}) !== null"):
            raise BrowserError(f"The page {page} has no part '{part}': name one that its contents link to.")
        if part:
            shown.evaluate(
                f"document.getElementById({json.dumps(part)}).scrollIntoView({{behavior: 'instant'}})"
            )
        write_bytes(out, shown.picture(whole=whole))


def _load(pipe: _Pipe, address: str, screen: Screen) -> Page:
    target = pipe.call("Target.createTarget", {"url": "about:blank"})["targetId"]
    session = pipe.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
    page = Page(pipe, session)
    for domain in ("Page", "Runtime", "Log", "Network"):
        page.call(f"{domain}.enable")
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=screen.width,
        height=screen.height,
        deviceScaleFactor=screen.scale,
        mobile=screen.phone,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if screen.dark else "light"}
    page.call("Emulation.setEmulatedMedia", features=[scheme])
    answer = page.call("Page.navigate", url=address)
    if "errorText" in answer:
        raise BrowserError(f"The browser cannot open {address} ({answer['errorText']}): check the address.")
    page.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")
    return page


def _complaint(details: Mapping[str, Any]) -> str:
    thrown = details.get("exception", {})
    return str(thrown.get("description") or thrown.get("value") or details.get("text"))


class _Pipe:
    """The two descriptors and the process at their other end; messages end with a zero byte."""

    def __init__(self, process: subprocess.Popen[bytes], reading: int, writing: int) -> None:
        self._process, self._reading, self._writing = process, reading, writing
        self._waiting = b""
        self._number = 0

    @classmethod
    def start(cls, browser: Path, profile: Path, webgl: bool) -> _Pipe:
        to_browser, writing = os.pipe()
        reading, from_browser = os.pipe()
        # Numbers far from 3 and 4, lest the launcher overwrite one of them with the other.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_browser, from_browser)]
        os.close(to_browser)
        os.close(from_browser)
        flags = [*FLAGS, *(WEBGL_FLAGS if webgl else PLAIN_FLAGS), f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *map(str, ends), str(browser), *flags, "about:blank"],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in ends:
            os.close(end)
        return cls(process, reading, writing)

    def call(
        self, method: str, parameters: Mapping[str, Any], session: str = "", note: Any = None
    ) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        try:
            _write_all(self._writing, json.dumps(message).encode() + b"\0")
        except OSError:
            raise BrowserError(
                f"The browser went away before {method}: try again, or another browser."
            ) from None
        end = time.monotonic() + PATIENCE_S
        while True:
            answer = self._next(method, end)
            if answer.get("id") != number:
                if note is not None:
                    note(answer)
            elif "error" in answer:
                raise BrowserError(f"The browser refused {method}: {answer['error'].get('message')}.")
            else:
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self, method: str, end: float) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._reading, 1 << 16) if ready else b""
            if not part:
                why = "gave no answer" if not ready else "ended"
                raise BrowserError(
                    f"The browser {why} while asked for {method}: try again, or another browser."
                )
            self._waiting += part
        message, _, self._waiting = self._waiting.partition(b"\0")
        content: dict[str, Any] = json.loads(message)
        return content

    def stop(self) -> None:
        with suppress(OSError):
            _write_all(self._writing, b'{"id": 0, "method": "Browser.close"}\0')
        os.close(self._writing)
        os.close(self._reading)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
