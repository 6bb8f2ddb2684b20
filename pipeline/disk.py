"""Writes after which a kill or a full disk leaves the old file or the new one; kernel locks that name their holder."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from distilledge.models.errors import DistilledgeError, LockedError, ResourceError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
HINT = "free space there and repeat the command; finished stages are kept"
FULL = 65_536
"""Bytes; with less free space, a write that failed for an unstated reason failed for lack of space."""


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace ``path`` in one rename, durably: after a kill it holds the old content or the new.

    Raises ``ResourceError`` (exit 9) when the disk is full or failing; the old file is then as it was.
    """
    temporary = path.with_name(f".tmp-{path.name[:100]}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with disk_errors(str(path), temporary):
            with temporary.open("xb") as file:
                file.write(data.encode("utf-8") if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Every file below ``root`` and every directory, the innermost first."""
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            descriptor = os.open(os.path.join(directory, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(Path(directory))


class disk_errors:  # noqa: N801 - read as ``with disk_errors(...)``
    """Inside, a failure of the disk becomes ``ResourceError`` (exit 9): bytes needed against bytes free.

    ``written`` is the file or directory being written. Libraries that write by themselves report a full disk as an
    exception of their own, so messages, causes and the free space are looked at too; everything else passes unchanged.
    """

    def __init__(self, what: str, written: Path) -> None:
        self.what, self.written = what, written

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, DistilledgeError):
            return
        number = _disk_errno(error, self.written)
        if number is not None:
            raise ResourceError("E9001", self._what(number, error), HINT) from error

    def _what(self, number: int, error: Exception) -> str:
        name = getattr(error, "filename", None)
        needed, free = _size(self.written), _free(self.written)
        return (
            f"{os.strerror(number)}: {self.what}{f', file {name}' if name else ''}: needs more than {needed:,} bytes, "
            f"{free:,} bytes free in {_existing(self.written.parent)}"
        )


def _disk_errno(error: BaseException | None, written: Path) -> int | None:
    """The errno of a failing disk behind an exception, through its causes; None if the disk is not to blame."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return error.errno
        for number in DISK_ERRORS:
            if os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return errno.ENOSPC if _free(written) < FULL else None


def _existing(path: Path) -> Path:
    return next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(p.lstat().st_size for p in files if p.is_file())


@contextmanager
def kernel_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the kernel's lock on ``path``; it ends with the process, so nothing is ever to be unlocked by hand.

    Raises ``LockedError`` (exit 8) naming pid, host and start of the process that holds it, after a second: another
    run's sweep holds a lock for a moment.
    """
    holder = path.with_suffix(".holder")
    lock = FileLock(path, timeout=1.0)
    try:
        lock.acquire()
    except Timeout:
        raise LockedError(
            "E8001", f"{what} is in use by another run: {_who(holder)}", "wait for it to end, or stop it, and repeat"
        ) from None
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        with disk_errors(what, holder):
            holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        who = json.loads(holder.read_bytes())
        return f"pid {who['pid']} on {who['host']}, started {who['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said which"


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """One run in a directory at a time; the directory is made if needed. Raises ``LockedError`` (exit 8)."""
    with disk_errors(f"the lock of {directory}", directory / ".lock"):
        directory.mkdir(parents=True, exist_ok=True)
    with kernel_lock(directory / ".lock", f"run directory {directory}"):
        for path in directory.glob(".tmp-*"):  # of runs that were killed
            path.unlink()
        yield
