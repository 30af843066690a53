"""The viewer's page: served to this machine alone, or written as one file that needs no server.

The server listens on 127.0.0.1, answers to that name alone, and knows cases by number: no address leads to any
other file.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from iris_pipeline.pages.environment import page_environment
from iris_pipeline.pages.view import (
    LAYERS,
    Gallery,
    case_centre,
    gallery_content,
    layer_bytes,
    viewer_licence,
    viewer_script,
)
from preprocessing.errors import BrowserError, IrisError
from preprocessing.runtime.files import write_text
from preprocessing.runtime.progress import Bar

HOST = "127.0.0.1"
PAGE = "view.html"
LARGEST_PAGE_BYTES = 200_000_000
_ASKED = re.compile(r"/case/([0-9]{1,6})/(image\.nii|truth\.nii|prediction\.nii|centre\.json)")
# The page may run its own script and NiiVue's, whose decoders are WebAssembly in workers; nothing from elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' blob:; style-src 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' data: blob:; worker-src blob: data:; font-src data:"
)


def make_server(gallery: Gallery, port: int = 0) -> ThreadingHTTPServer:
    """A server of the gallery on 127.0.0.1, bound and not yet running; port 0 is a free one.

    BrowserError where the port is taken, or the viewer is not installed.
    """
    script = viewer_script().read_bytes()
    page = _page(gallery, {}, "").encode()
    fixed = {
        "/": ("text/html; charset=utf-8", page),
        "/viewer.js": ("text/javascript; charset=utf-8", script),
    }
    handler = type("Handler", (_Handler,), {"shown": gallery, "fixed": fixed})
    try:
        return ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise BrowserError(
            f"The viewer cannot listen on port {port} ({error.strerror}): choose another --port, or leave it out."
        ) from None


def address_of(server: ThreadingHTTPServer) -> str:
    """What to open in the browser."""
    return f"http://{HOST}:{server.server_port}/"


def write_page(gallery: Gallery, out: Path, cases: Sequence[str] | None = None, progress: bool = True) -> int:
    """One HTML file with the viewer and the cases inside; returns its bytes. BrowserError above 200 MB.

    cases: only these, by default the worst, the median and the best (the first three without scores).
    """
    numbers = [number for number, case in enumerate(gallery.cases) if cases is None or case.id in cases]
    if cases is None and len(numbers) > 3:
        scored = [number for number in numbers if gallery.cases[number].mean is not None] or numbers[:3]
        numbers = sorted({scored[0], scored[len(scored) // 2], scored[-1]})
    kept = Gallery(**{**gallery.__dict__, "cases": tuple(gallery.cases[number] for number in numbers)})
    held: dict[str, Any] = {}
    bar = Bar(range(len(kept.cases)), desc="packing", unit="case", disable=not progress, dynamic_ncols=True)
    for number in bar:
        held[f"{number}/centre"] = case_centre(kept, number)
        for layer in LAYERS:
            if layer != "truth" or kept.cases[number].truth is not None:
                packed = gzip.compress(layer_bytes(kept, number, layer), 6, mtime=0)
                held[f"{number}/{layer}"] = base64.b64encode(packed).decode("ascii")
    script = base64.b64encode(gzip.compress(viewer_script().read_bytes(), 9, mtime=0)).decode("ascii")
    html = _page(kept, held, script)
    size = len(html.encode())
    if size > LARGEST_PAGE_BYTES:
        raise BrowserError(
            f"A page of cases holds at most {LARGEST_PAGE_BYTES / 1e6:.0f} MB, and these make {size / 1e6:.0f} MB: "
            "name fewer with --cases, or leave --html out."
        )
    write_text(out, html)
    return size


def _page(gallery: Gallery, held: dict[str, Any], script: str) -> str:
    return (
        page_environment()
        .get_template(PAGE)
        .render(
            title=gallery.title or "Predictions",
            content=_for_script(gallery_content(gallery)),
            held=_for_script(held),
            script=script,
            licence=viewer_licence().replace("--", "- -") if script else "",
        )
    )


def _for_script(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(content, ensure_ascii=True).replace("<", "\\u003c").replace("&", "\\u0026")


class _Handler(BaseHTTPRequestHandler):
    """GET of the page, the viewer, and the layers of the listed cases by number; all else is 404."""

    shown: Gallery
    fixed: dict[str, tuple[str, bytes]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").removesuffix(f":{self.connection.getsockname()[1]}")
        # Another name that leads here would be some other page's trick to read what is served.
        if host not in (HOST, "localhost"):
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"This server answers to 127.0.0.1 only.\n")
            return
        if self.path in self.fixed:
            self._answer(HTTPStatus.OK, *self.fixed[self.path])
            return
        asked = _ASKED.fullmatch(self.path)
        number = int(asked.group(1)) if asked else -1
        if asked is None or number >= len(self.shown.cases):
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"Only the listed cases are here.\n")
            return
        try:
            layer = next((name for name in LAYERS if asked.group(2) == f"{name}.nii"), None)
            if layer is not None:
                content, kind = layer_bytes(self.shown, number, layer), "application/octet-stream"
            else:
                content, kind = json.dumps(case_centre(self.shown, number)).encode(), "application/json"
            self._answer(HTTPStatus.OK, kind, content)
        except (IrisError, OSError) as error:
            self._answer(HTTPStatus.UNPROCESSABLE_ENTITY, "text/plain; charset=utf-8", f"{error}\n".encode())

    def _answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _POLICY)
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):  # the reader went on to another case
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the command."""
