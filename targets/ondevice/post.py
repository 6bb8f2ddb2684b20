"""Receives and gives files on a device. The program itself is sent: only Python (3.8 or later) must be there.

One JSON object per line on stdin and stdout, as ``worker.py``; whoever speaks to it holds the device: its folder is
locked while it runs. It ends at the end of stdin and after ``watch`` seconds without a line. What is not whole is
never seen under its name: files are written as ``NAME.part``, compared with their sha256, then renamed.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import threading
import time

PART = ".part"
PIECE = 1 << 20
KINDS = {errno.ENOSPC: "space", errno.EDQUOT: "space", errno.EROFS: "read-only", errno.EACCES: "read-only"}
MARGIN = 4 << 20
"""Bytes that must stay free."""


class Refused(Exception):  # noqa: N818
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Post:
    """The folder of one user on this device, and the lock on it."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(os.path.expanduser(folder))
        self.lock = None  # type: object
        self.scratch = os.path.join(self.folder, "scratch")

    def hello(self, request: dict) -> dict:  # type: ignore[type-arg]
        """Take the folder; ``owner`` says to others who holds it."""
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise Refused(KINDS.get(error.errno or 0, "read-only"), str(error)) from None
        lock = open(os.path.join(self.folder, "lock"), "a+")  # noqa: SIM115 (held until the end)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            lock.seek(0)
            raise Refused("busy", lock.read().strip()) from None
        lock.truncate(0)
        lock.write(request["owner"])
        lock.flush()
        self.lock = lock
        self.clean_parts()
        shutil.rmtree(self.scratch, ignore_errors=True)
        os.makedirs(self.scratch)
        return {"folder": self.folder, "scratch": self.scratch, "free": self.free()}

    def missing(self, request: dict) -> dict:  # type: ignore[type-arg]
        """Indices of ``files`` ([path, sha256, size]) that are not there; refused if they cannot fit."""
        absent = [i for i, (path, sha256, _) in enumerate(request["files"]) if digest(self.place(path)) != sha256]
        need, free = sum(request["files"][i][2] for i in absent), self.free()
        if absent and need + MARGIN > free:
            raise Refused("space", f"{need} bytes are to be sent, {free} are free in {self.folder}")
        return {"missing": absent}

    def put(self, request: dict) -> dict:  # type: ignore[type-arg]
        """Pieces of files: ``path``, ``data`` (base64), ``first``, and ``sha256`` with the last piece."""
        for piece in request["pieces"]:
            path = self.place(piece["path"])
            if piece["first"]:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path + PART, "wb" if piece["first"] else "ab") as file:
                file.write(base64.b64decode(piece["data"]))
                file.flush()
                if "sha256" in piece:
                    os.fsync(file.fileno())
            if "sha256" in piece:
                found = digest(path + PART)
                if found != piece["sha256"]:
                    os.remove(path + PART)
                    raise Refused("damaged", f"{path} arrived with sha256 {found}")
                os.replace(path + PART, path)
        return {}

    def get(self, request: dict) -> dict:  # type: ignore[type-arg]
        """A piece of a file from ``offset``, its whole size, and with the first piece its sha256."""
        path = self.place(request["path"])
        with open(path, "rb") as file:
            file.seek(request["offset"])
            data = file.read(PIECE)
        found = {"data": base64.b64encode(data).decode(), "size": os.path.getsize(path)}
        return found if request["offset"] else {"sha256": digest(path), **found}

    def clean(self, _request: dict) -> dict:  # type: ignore[type-arg]
        """Remove all that was ever sent."""
        before = self.free()
        shutil.rmtree(os.path.join(self.folder, "files"), ignore_errors=True)
        return {"freed": max(0, self.free() - before)}

    def place(self, path: str) -> str:
        """Inside of the folder, whatever the path says."""
        found = os.path.normpath(os.path.join(self.folder, path))
        if not found.startswith(self.folder + os.sep):
            raise Refused("path", f"{path} is outside of {self.folder}")
        return found

    def free(self) -> int:
        stat = os.statvfs(self.folder)
        return stat.f_bavail * stat.f_frsize

    def clean_parts(self) -> None:
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name.endswith(PART):
                    os.remove(os.path.join(folder, name))

    def leave(self) -> None:
        """Nothing half-written stays."""
        if self.lock is not None:
            self.clean_parts()
            shutil.rmtree(self.scratch, ignore_errors=True)


def digest(path: str) -> str:
    """sha256 of a file; empty where there is none."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while True:
                piece = file.read(PIECE)
                if not piece:
                    return found.hexdigest()
                found.update(piece)
    except (FileNotFoundError, NotADirectoryError):
        return ""


def answer(post: Post, request: dict) -> dict:  # type: ignore[type-arg]
    head = {"id": request.get("id"), "op": request.get("op")}
    operations = {"hello": post.hello, "missing": post.missing, "put": post.put, "get": post.get, "clean": post.clean}
    try:
        return {**head, "ok": True, **operations[request["op"]](request)}
    except Refused as error:
        kind, text = error.kind, str(error)
    except OSError as error:
        kind, text = KINDS.get(error.errno or 0, "runtime"), str(error)
    return {**head, "ok": False, "kind": kind, "text": text}


def watch_lines(last: list, post: Post, seconds: float) -> None:  # type: ignore[type-arg]
    """End the process when nobody speaks any more."""
    while True:
        time.sleep(min(1.0, seconds / 4))
        if time.monotonic() - last[0] > seconds:
            post.leave()
            os._exit(0)


def main(folder: str, seconds: float) -> None:
    post, last = Post(folder), [time.monotonic()]
    threading.Thread(target=watch_lines, args=(last, post, seconds), daemon=True).start()
    print(json.dumps({"ready": 1, "pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "close":
            break
        if request["op"] != "beat":
            last[0] = float("inf")  # nobody is heard while an answer is made
            print(json.dumps(answer(post, request)), flush=True)
        last[0] = time.monotonic()
    post.leave()
    print(json.dumps({"end": "close"}), flush=True)
