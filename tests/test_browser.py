"""Models in a real headless Chromium: answers as here, what the page can and cannot know, and every way to lose it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_boards import free_port
from made_pages import SIZE, exported, opened, runtimes, settled
from PIL import Image
from test_measure import text_candidate

from distilledge.models.errors import DeviceError, DistilledgeError, IntegrityError, RejectedError
from distilledge.targets.devices.base import WorkerHandle
from distilledge.targets.devices.browser import BrowserDevice
from distilledge.targets.devices.browser_program import Browser, command_of, processes_with
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.measure import Candidate, measure, score
from distilledge.targets.samples import Samples, pictures

pytestmark = pytest.mark.board
MAX_DIFFERENCE = 1e-4
RUNTIMES = ("onnx", "tflite")


@pytest.fixture(scope="module", autouse=True)
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtimes(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def students(web: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Candidate]:
    return {runtime: exported(runtime, tmp_path_factory.mktemp(runtime)) for runtime in RUNTIMES}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(6):
        coarse = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8).repeat(8, 0).repeat(9, 1)
        Image.fromarray(coarse).save(folder / f"{number}.png")
    return pictures(sorted(folder.iterdir()))


@pytest.fixture(scope="module")
def device(web: Path) -> Any:
    with opened() as made:
        yield made


def load(worker: WorkerHandle, one: Candidate, device: BrowserDevice, **fields: Any) -> dict[str, Any]:
    files = device.push([Path(one.directory) / name for name in one.exported.files])
    request = {"op": "load", "files": list(files), "sha256": list(one.exported.sha256), "threads": 1}
    return worker.request({**request, "runtime": one.exported.runtime, **fields}, 60)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_answers_are_those_of_this_machine(
    device: BrowserDevice, students: dict[str, Candidate], shown: Samples, tmp_path: Path, runtime: str
) -> None:
    found = score(students[runtime], device, inputs=shown, out=tmp_path)
    there = np.load(tmp_path / found.logits)
    score(students[runtime], LocalDevice(), inputs=shown, out=tmp_path)
    here = np.load(tmp_path / found.logits)
    assert there.shape == here.shape == (6, 7)
    assert np.ptp(here, 0).min() > 1e-3, "the pictures differ to the model"
    assert np.abs(there - here).max() <= MAX_DIFFERENCE


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_two_models_are_timed_in_turns_and_what_a_page_cannot_know_is_absent(
    device: BrowserDevice, students: dict[str, Candidate], shown: Samples, runtime: str
) -> None:
    group = [students[runtime], students[runtime].model_copy(update={"role": "teacher", "name": "teacher"})]
    settings: dict[str, Any] = {"samples": 40, "min_seconds": 0, "launches": 2, "warmup": 3, "quick": True}
    for item in measure(group, device, threads=2, end_to_end=4, inputs=shown, **settings):
        assert [len(one.latency_ns) >= 20 for one in item.launches] == [True, True]
        assert all(min(one.latency_ns) > 0 and one.load_ns > 0 for one in item.launches)
        assert {one.end_to_end_ns for one in item.launches} == {()}
        unknown = {(o.cpu_ns, o.waited_ns, o.peak_rss_bytes, o.involuntary_switches) for o in item.launches}
        assert unknown == {(None,) * 4}
        assert item.threads == min(2, os.cpu_count() or 1)
        assert item.runtime_version.endswith(" wasm")
        assert item.device["preprocessing"] == "host"
        assert item.device["page"]["cross_origin_isolated"] is True
        assert {"simd", "threads"} <= set(item.device["cpu_flags"])
        assert 0 < item.device["page"]["clock_step_ms"] < 0.1


def test_texts(device: BrowserDevice, tmp_path: Path) -> None:
    rows = Samples(tuple({"text": text} for text in ("lost card", "card", "card card card")), text=True)
    student = text_candidate("student", tmp_path)
    (tmp_path / "out").mkdir()
    found = score(student, device, inputs=rows, out=tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / found.logits)[:, 0], [5, 3, 9])


def test_a_damaged_file_is_refused_in_the_page(device: BrowserDevice, students: dict[str, Candidate]) -> None:
    one = students["onnx"]
    with device.start() as worker, pytest.raises(IntegrityError, match="expected sha256 0000"):
        load(worker, one, device, sha256=["0" * 64])


def test_what_the_runtime_refuses_and_what_there_is_not(
    device: BrowserDevice, students: dict[str, Candidate], tmp_path: Path
) -> None:
    with device.start() as worker:
        with pytest.raises(DeviceError, match="no openvino for browsers"):
            load(worker, students["onnx"], device, runtime="openvino")
        with pytest.raises(RejectedError, match="runtime failed in load"):
            load(worker, students["onnx"], device, runtime="tflite")
    with device.start() as worker:  # the page lives on
        assert load(worker, students["onnx"], device)["input_shape"] == [1, SIZE, SIZE, 3]


def endless(
    worker: WorkerHandle, device: BrowserDevice, one: Candidate, strike: Callable[[], None], seconds: float = 60
) -> DistilledgeError:
    """What a block that would take for ever ends with; ``strike`` is called while it runs."""
    load(worker, one, device)
    path = device.scratch("rows.npy")
    np.save(path, np.zeros((2, SIZE, SIZE, 3), np.uint8))
    worker.request({"op": "inputs", "path": path}, 60)
    threading.Timer(0.5, strike).start()
    with pytest.raises(DistilledgeError) as ended:
        worker.request({"op": "block", "n": 10_000_000, "lead": 0}, seconds)
    return ended.value


def renderers(device: BrowserDevice) -> list[int]:
    assert device._browser is not None
    found = processes_with(device._browser._profile) + processes_with("--type=renderer")
    group = {pid for pid in found if os.getpgid(pid) == device._browser.pid}
    return [pid for pid in group if b"--type=renderer" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def whole_browser(device: BrowserDevice) -> list[int]:
    assert device._browser is not None
    return processes_with(f"--user-data-dir={device._browser._profile}")


LOSSES = {
    "the tab crashes": (renderers, "it was not heard for 3 s"),
    "the browser is killed": (whole_browser, "the browser was killed by SIGKILL"),
}


@pytest.mark.parametrize("how", LOSSES)
def test_a_lost_page_is_an_explained_error_and_the_next_one_works(students: dict[str, Candidate], how: str) -> None:
    victims, reason = LOSSES[how]
    with opened() as device:
        with device.start() as worker:

            def strike() -> None:
                for pid in victims(device):
                    os.kill(pid, signal.SIGKILL)

            error = endless(worker, device, students["onnx"], strike)
        assert (error.code, error.exit_code) == ("E6100", 6)
        assert reason in error.what
        assert error.hint
        with device.start() as worker:
            assert load(worker, students["onnx"], device)["threads"] == 1


def test_a_closed_tab_is_told_at_once(students: dict[str, Candidate]) -> None:
    port = free_port()
    command = " ".join([*command_of(""), f"--remote-debugging-port={port}"])
    with opened(command=command) as device, device.start() as worker:

        def close_tab() -> None:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                tab = next(t["id"] for t in json.load(answer) if t["type"] == "page")
            urllib.request.urlopen(f"http://127.0.0.1:{port}/json/close/{tab}").close()

        error = endless(worker, device, students["onnx"], close_tab)
    assert error.code == "E6100"
    assert "it was closed, reloaded or left" in error.what or "the browser ended" in error.what  # with its last tab


def test_a_block_without_an_answer_ends_in_time(students: dict[str, Candidate], device: BrowserDevice) -> None:
    with device.start() as worker:
        error = endless(worker, device, students["onnx"], lambda: None, seconds=1)
        assert (error.code, error.exit_code) == ("E9023", 9)
        with pytest.raises(DeviceError, match="the worker is closed"):
            worker.request({"op": "block", "n": 1, "lead": 0}, 1)


def test_a_browser_does_not_outlive_us(tmp_path: Path) -> None:
    """SIGKILL gives no chance to clean up."""
    program = """
        import os, signal
        from distilledge.targets.devices.browser import BrowserDevice
        device = BrowserDevice("page")
        device.facts()
        print(device._browser._profile, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=90)
    profile = done.stdout.strip()
    assert profile, done.stderr
    assert settled(profile) == []


@pytest.mark.parametrize("https", [False, True])
def test_another_device_needs_https_for_threads(students: dict[str, Candidate], https: bool) -> None:
    """An address that is not loopback is what a phone opens: another Chromium by hand."""
    from distilledge.targets.devices.browser import own_address

    host = own_address()
    if host.startswith("127."):
        pytest.skip("this machine is in no network")
    with opened(open="manual", listen=host, port=free_port(), https=https, wait_s=30) as device:
        phone = Browser([*command_of(""), "--ignore-certificate-errors"], device.address)
        try:
            page = device.facts()["page"]
            assert (page["secure_context"], page["cross_origin_isolated"]) == (https, https)
            with device.start() as worker:
                loaded = load(worker, students["onnx"], device, threads=2)
                assert loaded["threads"] == (min(2, page["hardware_concurrency"]) if https else 1)
            with device.start() as worker:
                assert load(worker, students["tflite"], device, threads=2)["threads"] == loaded["threads"]
            with device.start() as worker, pytest.raises(IntegrityError):
                load(worker, students["onnx"], device, sha256=["0" * 64])
        finally:
            phone.close()


SOFTWARE = "--enable-unsafe-webgpu --use-webgpu-adapter=swiftshader"


def test_a_gpu_must_be_there_and_a_software_one_is_called_so(students: dict[str, Candidate], shown: Samples) -> None:
    command = " ".join(command_of(""))
    with (
        opened(accelerator="webgpu", command=f"{command} --disable-gpu") as device,
        pytest.raises(DeviceError, match="no WebGPU adapter"),
    ):
        device.start()
    with opened(accelerator="webgpu", command=f"{command} {SOFTWARE}") as device:
        if not device._joined().link.card["webgpu"]:
            pytest.skip("this Chromium has no software adapter")
        one, few = students["onnx"], Samples(shown.rows[:1])
        settings: dict[str, Any] = {"samples": 1, "min_seconds": 0, "launches": 1, "warmup": 0, "quick": True}
        (item,) = measure([one], device, threads=1, end_to_end=0, inputs=few, **settings)
        assert "SOFTWARE_GPU" in item.flags
        assert item.runtime_version.endswith(" webgpu")
