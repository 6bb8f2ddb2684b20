"""What takes files on a device, as a real process: nothing damaged, nothing half-written, one owner at a time."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilledge.models.errors import DeviceError
from distilledge.targets.devices import remote
from distilledge.targets.devices.local import ended
from distilledge.targets.devices.process import WorkerProcess

LIMITED = (
    "import resource,signal;signal.signal(signal.SIGXFSZ,signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE,(4096,4096));"
)


def opened(folder: Path, *, watch_s: float = 30.0, before: str = "") -> WorkerProcess:
    """The program as it is sent, run by this machine's Python."""
    return WorkerProcess([sys.executable, "-c", before + remote.boot(str(folder), watch_s)], ended)


@pytest.fixture
def post(tmp_path: Path) -> Iterator[WorkerProcess]:
    with opened(tmp_path / "there") as process:
        process.request({"op": "hello", "owner": "a test"}, 10)
        yield process


def piece(path: str, data: bytes, *, first: bool = True, whole: bytes | None = None) -> dict[str, Any]:
    made = {"path": path, "data": base64.b64encode(data).decode(), "first": first}
    return made if whole is None else {**made, "sha256": hashlib.sha256(whole).hexdigest()}


def test_a_file_in_pieces_is_seen_when_it_is_whole(post: WorkerProcess, tmp_path: Path) -> None:
    there = tmp_path / "there" / "files" / "a"
    post.request({"op": "put", "pieces": [piece("files/a", b"one ")]}, 10)
    assert not there.exists()
    post.request({"op": "put", "pieces": [piece("files/a", b"two", first=False, whole=b"one two")]}, 10)
    assert there.read_bytes() == b"one two"
    assert list(there.parent.iterdir()) == [there]
    digest = hashlib.sha256(b"one two").hexdigest()
    files = [["files/a", digest, 7], ["files/a", "0" * 64, 7], ["files/b", digest, 7]]
    assert post.request({"op": "missing", "files": files}, 10)["missing"] == [1, 2]


def test_a_file_comes_back(post: WorkerProcess, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000  # more than one piece
    (tmp_path / "there" / "scratch" / "out").write_bytes(data)
    first = post.request({"op": "get", "path": "scratch/out", "offset": 0}, 10)
    start = base64.b64decode(first["data"])
    rest = post.request({"op": "get", "path": "scratch/out", "offset": len(start)}, 10)
    assert start + base64.b64decode(rest["data"]) == data
    assert first["sha256"] == hashlib.sha256(data).hexdigest()
    assert first["size"] == len(data) > len(start)


def test_a_damaged_file_is_refused_and_gone(post: WorkerProcess, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="damaged") as refused:
        post.request({"op": "put", "pieces": [piece("files/a", b"bytes", whole=b"others")]}, 10)
    assert (refused.value.code, refused.value.exit_code) == ("E6026", 6)
    assert list((tmp_path / "there" / "files").iterdir()) == []


def test_what_cannot_fit_is_refused_before_it_is_sent(post: WorkerProcess) -> None:
    with pytest.raises(DeviceError, match="no space left") as refused:
        post.request({"op": "missing", "files": [["files/a", "0" * 64, 1 << 60]]}, 10)
    assert refused.value.code == "E6024"


def test_a_write_beyond_the_limit_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes stands for a disk that fills while a file is written."""
    with opened(tmp_path / "there", before=LIMITED) as process:
        process.request({"op": "hello", "owner": "a test"}, 10)
        with pytest.raises(Exception, match="File too large"):
            process.request({"op": "put", "pieces": [piece("files/a", b"x" * 9000, whole=b"x" * 9000)]}, 10)
    assert [p.name for p in (tmp_path / "there").rglob("*") if p.is_file()] == ["lock"]


def test_nothing_is_written_outside_of_the_folder(post: WorkerProcess, tmp_path: Path) -> None:
    for path in ("../evil", "/evil", "files/../../evil"):
        with pytest.raises(Exception, match="outside of"):
            post.request({"op": "put", "pieces": [piece(path, b"x", whole=b"x")]}, 10)
    assert not (tmp_path / "evil").exists()


def test_one_owner_at_a_time(post: WorkerProcess, tmp_path: Path) -> None:
    with opened(tmp_path / "there") as second, pytest.raises(DeviceError, match="in use: a test") as refused:
        second.request({"op": "hello", "owner": "another"}, 10)
    assert refused.value.code == "E6023"
    post.close()
    with opened(tmp_path / "there") as third:
        assert third.request({"op": "hello", "owner": "another"}, 10)["folder"] == str(tmp_path / "there")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o500)
    with opened(tmp_path / "there" / "in") as process, pytest.raises(DeviceError, match="cannot be written"):
        process.request({"op": "hello", "owner": "a test"}, 10)


def test_it_ends_when_nobody_speaks_and_takes_half_written_files_along(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    command = [sys.executable, "-c", remote.boot(str(folder), 0.5)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    for request in ({"op": "hello", "owner": "x"}, {"op": "put", "pieces": [piece("files/a", b"half")]}):
        process.stdin.write(json.dumps({"id": 1, **request}) + "\n")
    process.stdin.flush()
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert [line.get("ok") for line in lines] == [None, True, True]
    began = time.monotonic()
    assert process.wait(20) == 0
    assert time.monotonic() - began < 10
    assert list((folder / "files").iterdir()) == []
    process.stdin.close()
    process.stdout.close()


def test_clean_removes_what_was_sent(post: WorkerProcess, tmp_path: Path) -> None:
    post.request({"op": "put", "pieces": [piece("files/a", b"x", whole=b"x")]}, 10)
    assert post.request({"op": "clean"}, 10)["freed"] >= 0
    assert not (tmp_path / "there" / "files").exists()


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 50))
def test_pieces_make_the_files_again(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], most: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    files = []
    for number, content in enumerate(contents):
        (folder / str(number)).write_bytes(content)
        files.append((f"files/{number}", folder / str(number), hashlib.sha256(content).hexdigest()))
    before, remote.PIECE_BYTES = remote.PIECE_BYTES, most
    try:
        sent = list(remote.batches(files))
    finally:
        remote.PIECE_BYTES = before
    made: dict[str, bytes] = {}
    for batch in sent:
        assert sum(len(base64.b64decode(p["data"])) for p in batch) < 2 * most
        for one in batch:
            data = base64.b64decode(one["data"])
            made[one["path"]] = data if one["first"] else made[one["path"]] + data
            if "sha256" in one:
                assert hashlib.sha256(made[one["path"]]).hexdigest() == one["sha256"]
    assert made == {f"files/{n}": content for n, content in enumerate(contents)}


def test_it_fits_a_command_line_and_needs_no_quoting_twice() -> None:
    command = shlex.quote(remote.boot('a folder\'s "name"', 15.0))
    assert len(command) < 16000
    assert shlex.split(command) == [remote.boot('a folder\'s "name"', 15.0)]
