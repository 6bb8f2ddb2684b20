"""The server that a page is loaded from and speaks to: loopback unless asked, a token in each address, no other paths.

Headers after DEVICES: without COOP and COEP a page is not isolated, and a runtime falls back to one thread in silence.
"""

from __future__ import annotations

import hmac
import json
import shutil
import ssl
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distilledge.models.errors import DeviceError
from distilledge.targets import web
from distilledge.targets.devices.browser_link import Link

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self'; "
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}
OTHER_TYPE = "application/octet-stream"
PAGES = ("index.html", "page.js", "card.js", "worker.js", "sha256.js")
BARE, RELATIVE = b'"@litertjs/wasm-utils"', b'"../../wasm-utils/dist/index.js"'
"""LiteRT.js imports this by name, which a worker cannot: import maps are of pages."""
MOST_BODY = 256 << 20
PIECE = 1 << 20


class Answers(BaseHTTPRequestHandler):
    """One connection. Only names of ``PageServer.files`` are served: no path of the disk is ever made of a request."""

    protocol_version = "HTTP/1.1"
    timeout = 120
    server: PageServer

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):  # here, in this connection's own thread
            self.request.settimeout(self.timeout)
            self.request.do_handshake()
        super().setup()

    def do_GET(self) -> None:
        name = self._name()
        path = self.server.files.get(name or "index.html") if name is not None else None
        if name is None:
            self._json(403, {"error": "no such token"})
        elif path is None:
            self._json(404, {"error": "no such file"})
        else:
            self._file(path)

    def do_POST(self) -> None:
        name, length = self._name(), int(self.headers.get("Content-Length") or 0)
        if length > MOST_BODY:
            self.close_connection = True
            self._json(413, {"error": "too long"})
            return
        body = self.rfile.read(length)
        if name is None:
            self._json(403, {"error": "no such token"})
            return
        try:
            self._json(*self._said(name, json.loads(body)))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._json(400, {"error": "not understood"})

    def _said(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        link, gone = self.server.link, (410, {"error": "this page is no longer known"})
        if name == "join":
            page = link.join(dict(body["card"]))
            taken = (409, {"error": "another page is measuring, or the run is over"})
            return taken if page is None else (200, {"page": page, "watch_s": link.watch_s})
        if name == "poll":
            messages = link.poll(int(body["page"]))
            return gone if messages is None else (200, {"messages": messages})
        if name == "answer":
            known = link.answered(int(body["page"]), int(body["worker"]), dict(body["message"]))
            return (200, {}) if known else gone
        if name == "bye":
            link.leave(int(body["page"]))
            return 200, {}
        return 404, {"error": "no such thing"}

    def _name(self) -> str | None:
        """What comes behind the token; None where the token is not ours."""
        token, _, name = urlsplit(self.path).path.lstrip("/").partition("/")
        return name if hmac.compare_digest(token.encode(), self.server.token.encode()) else None

    def _file(self, path: Path) -> None:
        rewritten = path.read_bytes().replace(BARE, RELATIVE) if path.suffix == ".js" else None
        size = path.stat().st_size if rewritten is None else len(rewritten)
        self._head(200, TYPES.get(path.suffix, OTHER_TYPE), size)
        if rewritten is not None:
            self.wfile.write(rewritten)
            return
        with path.open("rb") as file:
            shutil.copyfileobj(file, self.wfile, PIECE)

    def _json(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self._head(status, "application/json", len(body))
        self.wfile.write(body)

    def _head(self, status: int, kind: str, size: int) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What the base class refuses, such as a method, has our headers too."""
        self.close_connection = True
        self._json(code, {"error": message or "refused"})

    def version_string(self) -> str:
        return "distilledge"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the addresses hold the token."""


class PageServer(ThreadingHTTPServer):
    """Serves in a thread of its own until ``close``. ``files``: name behind the token -> file, added to as it runs."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        link: Link,
        runtimes: Mapping[str, Path],
        token: str,
        *,
        listen: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        folder = Path(web.__path__[0])
        self.link, self.token = link, token
        self.files = {name: folder / name for name in PAGES}
        self.files |= {f"web/{name}": path for name, path in runtimes.items()}
        try:
            super().__init__((listen, port), Answers)
        except OSError as error:
            what = f"cannot listen on {listen}, port {port}: {error.strerror or error}"
            raise DeviceError("E6101", what, "is another run using it? else set `listen` and `port`") from None
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._scheme = "https" if tls else "http"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def add(self, path: Path, key: str) -> str:
        """The address of a file, relative to the page."""
        self.files[f"files/{key}"] = path
        return f"files/{key}"

    def remove(self, key: str) -> None:
        del self.files[f"files/{key}"]

    def address(self, host: str) -> str:
        return f"{self._scheme}://{host}:{self.server_address[1]}/{self.token}/"

    def close(self) -> None:
        self.link.close()
        self.shutdown()
        self.server_close()
        self._thread.join(5)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is told of by the link; the rest is a bug of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
