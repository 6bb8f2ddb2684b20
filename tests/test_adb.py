"""The real adb client against a stand-in for a phone: each fault is explained, nothing stays, the next run succeeds."""

from __future__ import annotations

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
from made_boards import free_port
from made_phones import Phone, adb_server, started
from PIL import Image
from test_boards import came_back, scored, uploads
from test_worker import load_request, tiny_onnx

from distilledge.models.errors import DeviceError, DistilledgeError
from distilledge.targets.devices import adb, remote
from distilledge.targets.devices.adb import AdbDevice
from distilledge.targets.devices.local import LocalDevice

pytestmark = pytest.mark.board


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with adb_server(tmp_path_factory.mktemp("home")):
        yield


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(adb, "SETTLE_SECONDS", 1.0)


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    with started(tmp_path_factory.mktemp("phone") / "p") as made:
        yield made


@pytest.fixture
def device(phone: Phone) -> Iterator[AdbDevice]:
    made = phone.device()
    yield made
    made.close()
    mended(phone)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_onnx(tmp_path / "model.onnx")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return paths


def mended(phone: Phone) -> None:
    phone.fault("thaw")
    phone.fault("cut-after 0")


def sound(phone: Phone, model: Path, pictures: list[Path], out: Path) -> None:
    """The next run, from the start."""
    again = phone.device()
    try:
        assert scored(again, model, pictures, out).shape == (6, 3)
    finally:
        again.close()
    assert phone.programs(within=10) == {}
    assert not any(p.name.endswith(".part") for p in phone.files)


def test_a_phone_answers_as_this_machine(
    phone: Phone,
    device: AdbDevice,
    model: Path,
    pictures: list[Path],
    tmp_path: Path,
) -> None:
    there = scored(device, model, pictures, tmp_path / "there.npy")
    np.testing.assert_allclose(there, scored(LocalDevice(), model, pictures, tmp_path / "here.npy"), atol=1e-5)
    assert device.facts()["packages"]["onnxruntime"]
    before = phone.files
    first = device.push(pictures)
    assert len(set(first)) == len(pictures)
    assert device.push(pictures) == first
    assert sorted(phone.files) == sorted(before)
    second = phone.device(watch_s=0.5)
    with pytest.raises(DeviceError, match="the device is in use") as refused:
        second.push([model])
    second.close()
    assert (refused.value.code, refused.value.exit_code) == ("E6023", 6)
    device.clean()
    device.close()
    assert [p.name for p in phone.files] == ["lock"]
    assert phone.programs(within=10) == {}


def killed_by(number: int, phone: Phone) -> None:
    for pid, line in phone.programs().items():
        if line.startswith(sys.executable) and "worker.py" in line:
            os.kill(pid, number)


FAULTS: dict[str, tuple[Callable[[Phone], object], str]] = {
    "the phone hangs": (lambda phone: phone.fault("freeze"), "E6077"),
    "the connection breaks": (lambda phone: phone.fault("drop"), "E6078"),
    "memory ends": (partial(killed_by, signal.SIGKILL), "E6041"),
    "the CPU lacks an instruction": (partial(killed_by, signal.SIGILL), "E6040"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_while_measuring(
    fault: str,
    phone: Phone,
    device: AdbDevice,
    pictures: list[Path],
    model: Path,
    tmp_path: Path,
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
        timer = threading.Timer(0.5, cause, (phone,))
        timer.start()
        began = time.monotonic()
        with pytest.raises(DeviceError) as refused:
            worker.request({"op": "block", "n": 100_000}, 600)
        timer.join()
    assert time.monotonic() - began < 30
    assert (refused.value.code, refused.value.exit_code) == (code, 6), refused.value
    assert refused.value.hint
    device.close()
    assert phone.programs(within=20) == {}
    mended(phone)
    sound(phone, model, pictures, tmp_path / "again.npy")


def test_a_long_silence_of_a_busy_phone_is_no_fault(phone: Phone, device: AdbDevice, tmp_path: Path) -> None:
    """Its worker says nothing for longer than the watch lasts; the phone answers."""
    slow = tiny_onnx(tmp_path / "slow.onnx", loops=4)
    array = tmp_path / "rows.npy"
    np.save(array, np.zeros((1, 16, 16, 3), np.uint8))
    with device.start() as worker:
        there, rows = device.push([slow])[0], device.push([array])[0]
        worker.request({**load_request(slow), "files": [there]}, 60)
        worker.request({"op": "inputs", "path": rows}, 60)
        once = worker.request({"op": "block", "n": 20}, 60)["wall_ns"] / 20
        n = round(3e9 / once)
        assert len(worker.request({"op": "block", "n": n}, 600)["latency_ns"]) == n


def test_an_upload_that_is_cut_is_tried_again(phone: Phone, device: AdbDevice, tmp_path: Path) -> None:
    """The connection breaks after every five megabytes; what arrived whole is not sent again."""
    files = uploads(tmp_path, 6)
    device.scratch("x")
    phone.fault("cut-after 5000000")
    there = device.push(files)
    phone.fault("cut-after 0")
    came_back(device, files, there, tmp_path / "back.bin")  # type: ignore[arg-type]
    assert not any(p.name.endswith(".part") for p in phone.files)


def test_an_upload_to_a_phone_that_hangs(
    phone: Phone,
    device: AdbDevice,
    model: Path,
    pictures: list[Path],
    tmp_path: Path,
) -> None:
    """Writing to it blocks; that ends too."""
    files = uploads(tmp_path, 2)
    device.scratch("x")
    phone.fault("freeze")
    with pytest.raises(DeviceError) as refused:
        device.push(files)
    assert (refused.value.code, refused.value.exit_code) == ("E6077", 6)
    device.close()
    assert phone.programs(within=20) == {}
    mended(phone)
    sound(phone, model, pictures, tmp_path / "again.npy")


def test_a_phone_that_must_be_asked(tmp_path: Path) -> None:
    with started(tmp_path / "p", "--auth") as asking:
        device = asking.device()
        with pytest.raises(DeviceError, match="does not trust") as refused:
            device.facts()
        assert (refused.value.code, refused.value.exit_code) == ("E6071", 6)
        assert "accept" in refused.value.hint
        asking.fault("allow")
        assert device.facts()["python"]
        device.close()


def test_a_phone_that_does_not_wake_up(tmp_path: Path) -> None:
    subprocess.run(["adb", "disconnect"], check=True, capture_output=True, timeout=20)
    with started(tmp_path / "p") as sleeping:
        sleeping.fault("freeze")
        with subprocess.Popen(["adb", "connect", sleeping.serial], stdout=subprocess.DEVNULL):
            time.sleep(0.5)
            device = sleeping.device(serial="")
            with pytest.raises(DeviceError) as refused:
                device.facts()
            assert (refused.value.code, refused.value.exit_code) == ("E6072", 6), refused.value
            sleeping.fault("thaw")
        assert device.facts()["python"]
        device.close()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "not attached": ({"serial": "0123456789ABCDEF"}, "E6070"),
    "nobody listens": ({"serial": f"127.0.0.1:{free_port()}"}, "E6074"),
    "no Python of that name": ({"python": "python9"}, "E6037"),
    "a Python without packages": ({"python": "/usr/bin/python3"}, "E6038"),
    "a folder that cannot be written": ({"folder": "/proc/distilledge"}, "E6025"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_entry_is_explained(case: str, phone: Phone) -> None:
    changes, code = WRONG[case]
    device = phone.device(**changes)
    try:
        with pytest.raises(DistilledgeError) as refused:
            device.start()
    finally:
        device.close()
    assert (refused.value.code, refused.value.exit_code) == (code, 6), refused.value
    assert refused.value.hint
    assert phone.programs(within=10) == {}


def test_the_only_phone_and_one_of_several(phone: Phone, device: AdbDevice, tmp_path: Path) -> None:
    subprocess.run(["adb", "disconnect"], check=True, capture_output=True, timeout=20)
    device.facts()
    device.close()
    only = phone.device(serial="")
    assert only.facts()["python"]
    only.close()
    with started(tmp_path / "p") as other:
        second = other.device()
        second.facts()
        with pytest.raises(DeviceError, match="several devices") as refused:
            only.facts()
        second.close()
    assert refused.value.code == "E6073"


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk needs root: mount")
def test_a_full_disk(tmp_path: Path) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(6_000_000))
    (tmp_path / "small.bin").write_bytes(b"x")
    with started(tmp_path / "p", before=f"mount -t tmpfs -o size=8m tmpfs {tmp_path}/p/disk") as small:
        device = small.device()
        with pytest.raises(DeviceError, match="no space left") as refused:
            device.push([big])
        assert (refused.value.code, refused.value.exit_code) == ("E6024", 6)
        device.push([tmp_path / "small.bin"])
        device.close()
