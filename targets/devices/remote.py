"""A device that is not this machine: what a worker needs is sent to it, nothing is installed there.

How its shell is reached is a ``Link``: ssh or adb. Connecting and sending are tried again a few times; measuring never
is.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import logging
import os
import platform
import shlex
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from distilledge.models.errors import DeviceError, DistilledgeError
from distilledge.targets import ondevice
from distilledge.targets.devices.base import Message
from distilledge.targets.devices.endings import LostError
from distilledge.targets.devices.process import End, WorkerProcess

log = logging.getLogger("distilledge.devices")

WATCH_SECONDS = 15.0
"""A program on the device ends so long after the last beat, and the link here as long after the last sign of it."""
TRIES, PAUSE_SECONDS = 3, 2.0
ANSWER_SECONDS = 120.0
PIECE_BYTES = 512 << 10
"""Sent in one request, before base64."""
SENT = (
    "worker.py",
    "listen.py",
    "rows.py",
    "session.py",
    "runtimes.py",
    "units.py",
    "feeds.py",
    "ports.py",
    "files.py",
    "preprocess.py",
    "text.py",
    "facts.py",
    "layers.py",
    "placement.py",
    "placement_tflite.py",
    "litert_profile.py",
    "scenario.py",
    "energy.py",
)
"""Of ``ondevice``: what a worker is made of."""


class Link(Protocol):
    """The way to a device: a client program that runs a line of the device's shell and passes on what it prints."""

    @property
    def alive(self) -> Callable[[], bool] | None:
        """Asks whether the device answers; None where the client finds that out itself and ends."""

    def command(self, line: str) -> list[str]:
        """A command of this machine; its standard input and output are those of ``line`` on the device."""

    def reach(self) -> None:
        """What must be done before the first command. Raises ``DistilledgeError``."""

    def explain(self, end: End) -> DistilledgeError:
        """What the end of a command means, that nobody asked for."""

    def close(self) -> None: ...


class Shell:
    """Runs lines on a device; a last line reports how each went, since exit codes of clients mean too many things."""

    def __init__(self, name: str, link: Link, watch_s: float) -> None:
        self._name, self.link, self._watch = name, link, watch_s

    def run(self, line: str) -> WorkerProcess:
        """A program that speaks as ``ondevice/worker.py``."""
        whole = self.link.command(f'{line}; echo "{{\\"exit\\": $?}}"')
        return WorkerProcess(whole, self.link.explain, beats=True, alive=self.link.alive, silence_s=self._watch / 3)

    def once(self, line: str) -> str:
        """What it printed. Raises ``DistilledgeError`` if it failed."""
        whole = self.link.command(f'{line}; code=$?; echo; echo "{{\\"exit\\": $code}}"')
        try:
            found = subprocess.run(
                whole, capture_output=True, text=True, timeout=ANSWER_SECONDS, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            what = f"{self._name} gave no answer for {ANSWER_SECONDS:.0f} s"
            raise DeviceError("E6042", what, "restart it, or look at its load") from None
        body, _, last = found.stdout.rstrip("\n").rpartition("\n")
        reported = json.loads(last).get("exit") if last.startswith('{"exit"') else None
        if reported != 0:
            raise self.link.explain(End(found.returncode, reported, "looking at it", found.stderr))
        return body


class RemoteDevice:
    """``folder``: on the device, relative to its home or absolute. ``python``: may be words, such as ``su 0 python3``.

    Methods raise ``DeviceError`` (exit 6) that says what is wrong with the device or the way to it.
    """

    def __init__(self, name: str, link: Link, *, python: str, folder: str, watch_s: float) -> None:
        self.name, self._python, self._home, self._watch = name, python, folder, watch_s
        self._shell = Shell(name, link, watch_s)
        self._post: WorkerProcess | None = None
        self._folder = self._scratch = ""
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._worker = ""

    def push(self, files: Sequence[Path]) -> tuple[str, ...]:
        """Sent are those that are not there; a set that is pushed together lies together, under its own names."""
        named = self._named(files)
        for left in reversed(range(TRIES)):
            try:
                self._send(named)
                break
            except LostError:
                connected = self._post is not None
                self._drop()
                if not left or not connected:  # connecting has its own tries
                    raise
                time.sleep(PAUSE_SECONDS)
        return tuple(f"{self._folder}/{place}" for place, _, _ in named)

    def pull(self, path: str, to: Path) -> None:
        partial, offset, digest = to.with_name(f"{to.name}.part"), 0, hashlib.sha256()
        expected, size = "", 1
        with partial.open("wb") as file:
            while offset < size:
                piece = self._office().request({"op": "get", "path": path, "offset": offset}, ANSWER_SECONDS)
                data = base64.b64decode(piece["data"])
                expected, size = piece.get("sha256", expected), piece["size"]
                digest.update(data)
                file.write(data)
                offset += len(data)
                if not data:
                    break
        if digest.hexdigest() != expected:
            partial.unlink()
            raise DeviceError("E6029", f"{path} of {self.name} changed while it was fetched", "run it again")
        partial.replace(to)

    def scratch(self, name: str) -> str:
        self._office()
        return f"{self._scratch}/{name}"

    def start(self) -> WorkerProcess:
        program = shlex.quote(f"{self._worker_folder()}/worker.py")
        return self._shell.run(f"{self._python} {program} --silence 300 --watch {self._watch:g}")

    def facts(self) -> Message:
        """Needs no package on the device."""
        program = shlex.quote(f"{self._worker_folder()}/facts.py")
        card: Message = json.loads(self._shell.once(f"{self._python} {program}"))["card"]
        return card

    def clean(self) -> int:
        self._worker = ""
        return int(self._office().request({"op": "clean"}, ANSWER_SECONDS)["freed"])

    def close(self) -> None:
        self._drop()
        self._shell.link.close()

    def _office(self) -> WorkerProcess:
        """The program that takes files and holds the device for us."""
        if self._post is None:
            self._post = self._connected()
        return self._post

    def _connected(self) -> WorkerProcess:
        owner = f"{getpass.getuser()} on {platform.node()}, process {os.getpid()}, since {time.strftime('%H:%M:%S')}"
        until = time.monotonic() + 2 * self._watch
        tries = 0
        while True:
            try:
                self._shell.link.reach()
                post = self._shell.run(f"umask 077; {self._python} -c {shlex.quote(boot(self._home, self._watch))}")
                try:
                    found = post.request({"op": "hello", "owner": owner}, ANSWER_SECONDS)
                except DistilledgeError:
                    post.close()
                    raise
                self._folder, self._scratch = found["folder"], found["scratch"]
                return post
            except LostError as error:
                tries += 1
                if not error.again or tries == TRIES:
                    raise
                log.info("%s does not answer, trying again: %s", self.name, error.what)
            except DeviceError as error:  # an earlier run of ours that was cut off lets go when it hears nothing more
                if error.code != "E6023" or time.monotonic() > until:
                    raise
            time.sleep(PAUSE_SECONDS)

    def _drop(self) -> None:
        if self._post is not None:
            self._post.close()
            self._post = None

    def _named(self, files: Sequence[Path]) -> list[tuple[str, Path, str]]:
        """Place below the folder, file, sha256. Equal names get a folder each, in order."""
        hashes = [self._hash(path) for path in files]
        whole = "".join(f"{p.name} {h}\n" for p, h in zip(files, hashes, strict=True))
        group = hashlib.sha256(whole.encode()).hexdigest()[:24]
        seen: dict[str, dict[str, int]] = {}
        named = []
        for path, digest in zip(files, hashes, strict=True):
            same = seen.setdefault(path.name, {})
            number = same.setdefault(digest, len(same))
            named.append((f"files/{group}/{number}/{path.name}", path, digest))
        return named

    def _hash(self, path: Path) -> str:
        if not path.is_file():
            raise DeviceError("E6022", f"no such file: {path}", "run the stage that makes it again")
        stat = path.stat()
        key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
        if key not in self._hashes:
            with path.open("rb") as file:
                self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[key]

    def _send(self, named: Sequence[tuple[str, Path, str]]) -> None:
        unique = list({place: (place, path, digest) for place, path, digest in named}.values())
        listed = [[place, digest, path.stat().st_size] for place, path, digest in unique]
        absent = self._office().request({"op": "missing", "files": listed}, ANSWER_SECONDS + len(listed))["missing"]
        for batch in batches([unique[i] for i in absent]):
            self._office().request({"op": "put", "pieces": batch}, ANSWER_SECONDS)

    def _worker_folder(self) -> str:
        if not self._worker:
            folder = Path(ondevice.__path__[0])
            self._worker = self.push([folder / name for name in SENT])[0].rpartition("/")[0]
        self._office()
        return self._worker


def batches(files: Sequence[tuple[str, Path, str]]) -> Iterator[list[dict[str, Any]]]:
    """Pieces of at most ``PIECE_BYTES``, several small files in one request."""
    batch: list[dict[str, Any]] = []
    size = 0
    for piece, length in (found for file in files for found in pieces(*file)):
        batch.append(piece)
        size += length
        if size >= PIECE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def pieces(place: str, path: Path, digest: str) -> Iterator[tuple[dict[str, Any], int]]:
    """At least one, of each its bytes; the last knows the sha256."""
    with path.open("rb") as file:
        first = True
        while True:
            data = file.read(PIECE_BYTES)
            last = len(data) < PIECE_BYTES
            ending = {"sha256": digest} if last else {}
            yield {"path": place, "data": base64.b64encode(data).decode(), "first": first, **ending}, len(data)
            first = False
            if last:
                return


def boot(folder: str, watch_s: float) -> str:
    """A Python program that needs no file on the device: ``ondevice/post.py`` itself."""
    source = (Path(ondevice.__path__[0]) / "post.py").read_bytes()
    packed = base64.b64encode(zlib.compress(source, 9)).decode()
    names = f"exec(compile(zlib.decompress(base64.b64decode('{packed}')),'post.py','exec'))"
    return f"import base64,zlib;{names};main({folder!r},{watch_s!r})"
