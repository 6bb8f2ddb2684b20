"""A browser as a device: a page that it opens from here measures in WebAssembly, or WebGPU, what it is sent.

A browser of this machine is started and ended by us; any other one, as on a phone, opens the address that is told.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from distilledge.models.errors import DeviceError
from distilledge.targets.devices.base import Message, stay
from distilledge.targets.devices.browser_link import Link
from distilledge.targets.devices.browser_program import Browser, command_of
from distilledge.targets.devices.browser_server import PageServer
from distilledge.targets.devices.browser_tls import context
from distilledge.targets.devices.browser_worker import RUNTIMES, BrowserWorker, Place, no_adapter
from distilledge.targets.ondevice import facts
from distilledge.targets.web_files import files, versions

log = logging.getLogger("distilledge.devices")

LOOPBACK, EVERYWHERE = "127.0.0.1", ("0.0.0.0", "::", "")  # noqa: S104 (asked for by `listen`)
PORT = 8765
"""Where a page is opened by hand, so that its address stays from one part of a run to the next."""
WATCH_SECONDS = 15.0
START_SECONDS, MANUAL_SECONDS = 60.0, 600.0
TOKENS: dict[str, str] = {}
"""Device -> what must stand in its addresses; kept while this process lives, for pages that join again."""
OF_THIS_MACHINE = ("cpu_model", "memory_bytes", "kernel", "governor", "virtual")


class BrowserDevice:
    """``command``: words of a browser, or the name of one; default: the first on PATH. ``{url}`` and ``{profile}`` are
    filled in. ``open``: ``here``, by that command, or ``manual``, by somebody. ``certificate``, ``key``: PEM files for
    https; default: made for this run. ``wait_s``: for the page. Raises ``MissingPackageError`` for what is not here.
    """

    def __init__(  # noqa: PLR0913 (an entry's fields, all by keyword)
        self,
        name: str,
        *,
        command: str = "",
        open: Literal["here", "manual"] = "here",
        listen: str = LOOPBACK,
        port: int = 0,
        https: bool = False,
        certificate: str = "",
        key: str = "",
        accelerator: Literal["wasm", "webgpu"] = "wasm",
        wait_s: float | None = None,
        watch_s: float = WATCH_SECONDS,
    ) -> None:
        self._runtimes = files()
        self._manual = open == "manual"
        self._command = [] if self._manual else command_of(command)
        self.name, self._listen, self._port = name, listen, port or (PORT if self._manual else 0)
        self._tls = (certificate, key) if https or certificate else None
        self._accelerator, self._watch = accelerator, watch_s
        self._wait = wait_s or (MANUAL_SECONDS if self._manual else START_SECONDS)
        self._server: PageServer | None = None
        self._browser: Browser | None = None
        self._folder: Path | None = None

    @property
    def address(self) -> str:
        """That the page is opened at."""
        listen = self._listen
        return self._open_server().address(own_address() if listen in EVERYWHERE else listen)

    def push(self, files: Sequence[Path]) -> tuple[str, ...]:
        """Files stay where they are until a page fetches them."""
        return stay(files)

    def pull(self, path: str, to: Path) -> None:
        shutil.copyfile(path, to)

    def scratch(self, name: str) -> str:
        return str(self._own_folder() / name)

    def start(self) -> BrowserWorker:
        server = self._joined()
        place = Place(self.name, server.link, server, self._own_folder(), self._accelerator, self._facts, self._gone)
        return BrowserWorker(place)

    def facts(self) -> Message:
        self._joined()
        card: Message = self._facts()["card"]
        return card

    def clean(self) -> int:
        return 0  # a page keeps nothing

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._end_browser()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._server = self._folder = None

    def _joined(self) -> PageServer:
        """A page that lives: the one that is there, or a new one."""
        server = self._open_server()
        if server.link.alive() and not self._gone():
            return server
        self._end_browser()
        if self._manual:
            log.warning("open this address on %s, and leave the page in front: %s", self.name, self.address)
        else:
            server.link.drop()
            self._browser = Browser(self._command, self.address)
        if not server.link.wait(self._wait, self._still_coming):
            what = f"no page of {self.name} was opened within {self._wait:.0f} s"
            raise DeviceError("E6104", what, "can that browser reach this machine? see docs/browser.md")
        if self._accelerator == "webgpu" and not server.link.card.get("webgpu"):
            raise no_adapter(self.name)
        return server

    def _still_coming(self) -> None:
        if why := self._gone():
            raise DeviceError("E6105", f"{self.name}: {why} before its page was there", "try the command by hand")

    def _gone(self) -> str:
        return self._browser.ended() if self._browser is not None else ""

    def _open_server(self) -> PageServer:
        if self._server is None:
            token = TOKENS.setdefault(self.name, secrets.token_urlsafe(24))
            host = own_address() if self._listen in EVERYWHERE else self._listen
            tls = context(*self._tls, host) if self._tls else None
            link = Link(self._watch)
            self._server = PageServer(link, self._runtimes, token, listen=self._listen, port=self._port, tls=tls)
        return self._server

    def _end_browser(self) -> None:
        if self._browser is not None:
            self._browser.close()
            self._browser = None

    def _own_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="distilledge-browser-"))
        return self._folder

    def _facts(self) -> Message:
        """Card and counters; of this machine's own browser also what only this machine can tell."""
        page = self._open_server().link.card
        card = card_of(page)
        if self._manual:
            return {"card": card, "counters": {}}
        here = facts.device_card()
        return {"card": {**card, **{name: here[name] for name in OF_THIS_MACHINE}}, "counters": facts.counters()}


def card_of(page: Message) -> Message:
    """The device card (``ondevice.facts.device_card``) of what a page says of itself; unknown is None."""
    memory, brand = page.get("device_memory_gib"), page.get("browser") or {}
    browser = " ".join(map(str, brand.values())) if isinstance(brand, dict) else ""
    words = [page.get("model"), browser or page.get("user_agent"), f"on {page.get('platform')}"]
    return {
        "board": " ".join(str(word) for word in words if word),
        "cpu_model": page.get("architecture"),
        "machine": "wasm32",
        "cpu_flags": page.get("wasm"),
        "cpu_count": page.get("hardware_concurrency"),
        "memory_bytes": int(memory * (1 << 30)) if isinstance(memory, int | float) else None,
        "kernel": page.get("platform_version"),
        "governor": None,
        "python": "",
        "virtual": None,
        "emulated": False,
        "packages": {name: versions()[name] for name in RUNTIMES.values()},
        "preprocessing": "host",
        "page": page,
    }


def own_address() -> str:
    """Of this machine in its network; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address of documentation (RFC 5737)
        except OSError:
            return LOOPBACK
        return str(probe.getsockname()[0])
