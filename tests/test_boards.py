"""A real ssh board with the faults of links and boards: explained, exit 6, nothing left, the next run succeeds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_boards import Board, needs, started
from PIL import Image
from test_worker import SPEC, load_request, tiny_onnx

from distilledge.models.errors import DeviceError, DistilledgeError
from distilledge.pipeline.result_file import read_result
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.devices.ssh import SshDevice

pytestmark = pytest.mark.board
PACKAGES = "numpy pillow onnxruntime"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """With a runtime, behind a link that can fail."""
    needs("sshd", "ssh", "unshare")
    with started(tmp_path_factory.mktemp("board"), "ssh", "--packages", PACKAGES, "--link", "--rate 0") as made:
        yield made


@pytest.fixture
def device(board: Board) -> Iterator[SshDevice]:
    made = board.device()
    yield made
    made.close()
    mended(board)


def mended(board: Board) -> None:
    board.fault("thaw")
    for command in (("accept",), ("resume",), ("cut-after", "0"), ("stall-after", "0")):
        board.fault("link", *command)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_onnx(tmp_path / "model.onnx")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two folders with equal names in them."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / folder / f"{i}.png" for folder in "ab" for i in range(3)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return paths


def scored(device: Any, model: Path, pictures: list[Path], out: Path) -> np.ndarray[Any, Any]:
    with device.start() as worker:
        (there,) = device.push([model])
        worker.request({**load_request(model), "files": [there]}, 60)
        written = device.scratch("logits.npy")
        request = {"op": "score", "files": list(device.push(pictures)), "spec": SPEC, "out": written}
        worker.request(request, 60)
    device.pull(written, out)
    return np.asarray(np.load(out))


def sound(board: Board, model: Path, pictures: list[Path], out: Path) -> None:
    """The next run, from the start."""
    again = board.device()
    try:
        assert scored(again, model, pictures, out).shape == (6, 3)
    finally:
        again.close()
    assert board.programs(within=10) == ""


def test_a_board_answers_as_this_machine(
    board: Board, device: SshDevice, model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    there = scored(device, model, pictures, tmp_path / "there.npy")
    np.testing.assert_allclose(there, scored(LocalDevice(), model, pictures, tmp_path / "here.npy"), atol=1e-5)
    assert device.facts()["packages"]["onnxruntime"]
    before = board.files
    first = device.push(pictures)
    assert len(set(first)) == len(pictures)
    assert device.push(pictures) == first
    assert sorted(board.files) == sorted(before)
    assert device.clean() >= 0
    device.close()
    assert [p.name for p in board.files] == ["lock"]
    assert board.programs(within=10) == ""


def test_one_run_at_a_time(board: Board, device: SshDevice, model: Path) -> None:
    device.push([model])
    second = board.device(watch_s=0.5)
    with pytest.raises(DeviceError, match="the device is in use") as refused:
        second.push([model])
    second.close()
    assert (refused.value.code, refused.value.exit_code) == ("E6023", 6)


def test_a_fleet_measures_where_it_can(board: Board, device: SshDevice, model: Path, tmp_path: Path) -> None:
    """One device that cannot be reached stops no other, and decides the exit code."""
    options = [f"UserKnownHostsFile={board.directory}/known_hosts", f"IdentityFile={board.key}"]
    entry = {"kind": "ssh", "host": f"{board.fields['BOARD_USER']}@127.0.0.1", "port": board.port, "options": options}
    named = {"line3": {**entry, "python": board.fields["BOARD_PYTHON"]}, "dead": {**entry, "port": 1}}
    (tmp_path / "devices.yaml").write_text(json.dumps({"schema": 1, "devices": named}))
    devices = [a for name in ("local", "line3", "dead") for a in ("--device", name)]
    command = [sys.executable, "-m", "distilledge.pipeline.cli", "benchmark", str(model), "--quick", *devices]
    done = subprocess.run(
        [*command, "--out", "all.json"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 6, done.stderr
    found = read_result(tmp_path / "all.json")
    assert [(i.device, i.name) for i in found.items] == [("local", model.name), ("line3", model.name)]
    assert found.failed["dead"].exit_code == 6
    assert len({i.input.sha256 for i in found.items if i.input}) == 1
    assert {"line3: sending", "line3: done", "local: done"} <= set(done.stderr.splitlines())


def killed_by(number: int, board: Board) -> None:
    """As the kernel does: the worker dies, not the shell that waits for it."""
    lines = [line.split() for line in board.fault("programs").splitlines()]
    worker = next(
        words[0]
        for words in lines
        if words[1].startswith(board.fields["BOARD_PYTHON"]) and any(w.endswith("/worker.py") for w in words)
    )
    os.kill(int(worker), number)


FAULTS: dict[str, tuple[Callable[[Board], object], str]] = {
    "sessions are killed": (lambda board: board.fault("kill-sessions"), "E6030"),
    "the link is cut": (lambda board: board.fault("link", "cut"), "E6030"),
    "the link goes silent": (lambda board: board.fault("link", "stall"), "E6030"),
    "the board hangs": (lambda board: board.fault("freeze"), "E6030"),
    "all programs are killed": (lambda board: board.fault("kill-programs"), "E6030"),
    "memory ends": (partial(killed_by, signal.SIGKILL), "E6041"),
    "the CPU lacks an instruction": (partial(killed_by, signal.SIGILL), "E6040"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_while_measuring(
    fault: str, board: Board, device: SshDevice, pictures: list[Path], model: Path, tmp_path: Path
) -> None:
    """The measurement is never tried again; nothing goes on there."""
    slow = tiny_onnx(tmp_path / "slow.onnx", loops=4)
    cause, code = FAULTS[fault]
    array = tmp_path / "rows.npy"
    np.save(array, np.zeros((1, 16, 16, 3), np.uint8))
    with device.start() as worker:
        there, rows = device.push([slow])[0], device.push([array])[0]
        worker.request({**load_request(slow), "files": [there]}, 60)
        worker.request({"op": "inputs", "path": rows}, 60)
        timer = threading.Timer(0.5, cause, (board,))
        timer.start()
        began = time.monotonic()
        with pytest.raises(DeviceError) as refused:
            worker.request({"op": "block", "n": 100_000}, 600)
        timer.join()
    assert time.monotonic() - began < 30
    assert (refused.value.code, refused.value.exit_code) == (code, 6)
    assert refused.value.hint
    board.fault("thaw")
    device.close()
    assert board.programs(within=20) == ""
    mended(board)
    sound(board, model, pictures, tmp_path / "again.npy")


def test_an_upload_that_is_cut_is_tried_again(board: Board, device: SshDevice, tmp_path: Path) -> None:
    """The link dies in every connection after five megabytes; what arrived whole is not sent again."""
    files = uploads(tmp_path, 6)
    device.scratch("x")
    board.fault("link", "cut-after", "5000000")
    there = device.push(files)
    board.fault("link", "cut-after", "0")
    came_back(device, files, there, tmp_path / "back.bin")
    assert not any(p.name.endswith(".part") for p in board.files)


def test_an_upload_that_stalls_goes_on_when_the_link_does(board: Board, device: SshDevice, tmp_path: Path) -> None:
    files = uploads(tmp_path, 3)
    device.scratch("x")
    board.fault("link", "stall-after", "2000000")
    timer = threading.Timer(1.0, mended, (board,))
    timer.start()
    there = device.push(files)
    timer.join()
    came_back(device, files, there, tmp_path / "back.bin")


def uploads(folder: Path, count: int) -> list[Path]:
    """Of a megabyte each."""
    files = [folder / f"{number}.bin" for number in range(count)]
    for number, path in enumerate(files):
        path.write_bytes(np.random.default_rng(number).bytes(1_000_000))
    return files


def came_back(device: SshDevice, files: list[Path], there: tuple[str, ...], out: Path) -> None:
    for path, place in zip(files, there, strict=True):
        device.pull(place, out)
        assert out.read_bytes() == path.read_bytes()


def test_a_board_that_refuses_is_named(board: Board) -> None:
    board.fault("link", "refuse")
    device = board.device()
    try:
        with pytest.raises(DeviceError, match="cannot be reached") as refused:
            device.facts()
        assert (refused.value.code, refused.value.exit_code) == ("E6036", 6)
    finally:
        device.close()
        mended(board)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown host": ({"options": ("UserKnownHostsFile=/dev/null",)}, "E6032"),
    "no such name": ({"host": "edge@no-such-board.invalid"}, "E6034"),
    "an unknown option": ({"options": ("NoSuchOption=1",)}, "E6035"),
    "no Python of that name": ({"python": "python9"}, "E6037"),
    "a Python without packages": ({"python": "/usr/bin/python3"}, "E6038"),
    "a folder that cannot be written": ({"folder": "/proc/distilledge"}, "E6025"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_entry_is_explained(case: str, board: Board) -> None:
    changes, code = WRONG[case]
    host = changes.pop("host", None) if "host" in changes else None
    device = board.device(**changes) if host is None else SshDevice("board", host, watch_s=3)
    try:
        with pytest.raises(DistilledgeError) as refused:
            device.start()
    finally:
        device.close()
    assert (refused.value.code, refused.value.exit_code) == (code, 6), refused.value
    assert refused.value.hint
    assert board.programs(within=10) == ""


def test_a_key_that_is_not_ours(board: Board, tmp_path: Path) -> None:
    known = f"UserKnownHostsFile={board.directory}/known_hosts"
    device = board.device(options=(known, f"IdentityFile={tmp_path}/none", "IdentitiesOnly=yes", "IdentityAgent=none"))
    with pytest.raises(DeviceError, match="does not let us in") as refused:
        device.facts()
    device.close()
    assert refused.value.code == "E6033"


def test_a_host_key_that_changed(board: Board, tmp_path: Path) -> None:
    kind, other = (board.key.with_suffix(".pub")).read_text().split()[:2]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{board.port} {kind} {other}\n")
    only = (f"UserKnownHostsFile={tmp_path}/known", f"IdentityFile={board.key}", "HostKeyAlgorithms=ssh-ed25519")
    device = board.device(options=only)
    with pytest.raises(DeviceError, match="changed") as refused:
        device.facts()
    device.close()
    assert refused.value.code == "E6031"


def test_a_full_disk(board: Board, device: SshDevice, model: Path, pictures: list[Path], tmp_path: Path) -> None:
    device.scratch("x")
    board.fault("fill", "2000000")
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(6_000_000))
    try:
        with pytest.raises(DeviceError, match="no space left") as refused:
            device.push([big])
    finally:
        board.fault("unfill")
    assert refused.value.code == "E6024"
    assert not any(p.name.endswith(".part") for p in board.files)
    device.close()
    sound(board, model, pictures, tmp_path / "again.npy")


@pytest.mark.parametrize(
    ("options", "code"), [(("--no-python",), "E6037"), (("--read-only-home",), "E6025"), (("--no-sftp",), "")]
)
def test_boards_that_lack_something(options: tuple[str, ...], code: str, tmp_path: Path) -> None:
    """Nothing here needs sftp."""
    needs("sshd", "ssh", "unshare")
    (tmp_path / "file").write_bytes(b"x")
    with started(tmp_path, "ssh", *options) as other:
        device = other.device()
        try:
            if not code:
                assert device.push([tmp_path / "file"])[0].endswith("/file")
                return
            with pytest.raises(DeviceError) as refused:
                device.push([tmp_path / "file"])
        finally:
            device.close()
    assert (refused.value.code, refused.value.exit_code) == (code, 6)
