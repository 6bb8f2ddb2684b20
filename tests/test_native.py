"""Timing without Python: what the runtimes' programs print becomes a record; a phone's shell is all that is needed.

The texts are those of the real programs' sources. The program that is run is a small one of ours, compiled here: it
does real work and speaks as they do. None of the real ones can be had from a package registry, but OpenVINO's.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_phones import Phone, adb_server, started
from typer.testing import CliRunner

from distilledge.models.errors import DeviceError, DistilledgeError, UsageError
from distilledge.pipeline import cli, inventory
from distilledge.targets.devices import adb, remote
from distilledge.targets.devices.adb import AdbDevice
from distilledge.targets.devices.native import NativeTiming, Settings, run_script
from distilledge.targets.devices.native_tools import PROGRAMS, Job

JOB = Job("m", threads=1, runs=5, warmup=1, result="r")
TFLITE = """\
INFO: STARTING!
INFO: Graph: [m.tflite]
INFO: Loaded model m.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 16.9008
INFO: Initialized session in 12.75ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=37 first=14744 curr=15520 min=13164 max=18295 avg=13764.3 std=967 p5=13170 median=13600 p95=17000

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=74 first=14850 curr=13315 min=13105 max=15765 avg=13520.2 std=470 p5=13120 median=13400 p95=15000

INFO: Inference timings in us: Init: 12750, First inference: 14744, Warmup (avg): 13764.3, Inference (avg): 13520.2
"""
OLD_TFLITE = """\
Initialized session in 9.933ms
count=7 first=127425 curr=66709 min=66709 max=127425 avg=76605.9 std=20944
count=15 first=66753 curr=66800 min=66699 max=66838 avg=66767.6 std=39
Average inference timings in us: Warmup: 76605.9, Init: 9933, no stats: 66767.6
"""
ONNX = """\
Setting intra_op_num_threads to 1
Session creation time cost: 0.217932 s
First inference time cost: 196 ms
Total inference time cost: 0.49481 s
Total inference requests: 5
Avg CPU usage: 11 %
Peak working set size: 271122432 bytes
"""
OPENVINO = """\
[ INFO ] Read model took 5.50 ms
[ INFO ] Compile model took 59.72 ms
[ INFO ] First inference took 0.70 ms
[ INFO ] Execution Devices:['CPU']
[ INFO ] Count:            50 iterations
[ INFO ] Duration:         0.56 ms
[ INFO ] Latency:
[ INFO ]    Median:        3.98 us
[ INFO ]    Average:       4.29 us
[ INFO ]    Min:           3.89 us
[ INFO ]    Max:           1.61 ms
[ INFO ] Throughput:   89329.26 FPS
"""


def test_benchmark_model() -> None:
    figures = PROGRAMS["tflite"].read(TFLITE, "", JOB)
    assert (figures.load_ns, figures.first_inference_ns, figures.latency_ns) == (12_750_000, 14_744_000, ())
    said = figures.summary
    assert (said.count, said.mean_ns, said.min_ns, said.max_ns) == (74, 13_520_200, 13_105_000, 15_765_000)
    assert (said.median_ns, said.std_ns) == (13_400_000, 470_000)


def test_an_old_benchmark_model_says_less() -> None:
    figures = PROGRAMS["tflite"].read(OLD_TFLITE, "", JOB)
    assert (figures.load_ns, figures.first_inference_ns) == (9_933_000, None)
    assert (figures.summary.count, figures.summary.median_ns) == (15, None)


def test_benchmark_model_of_equal_samples() -> None:
    said = PROGRAMS["tflite"].read("count=3 curr=7(all same)\n", "", JOB).summary
    assert (said.count, said.mean_ns, said.min_ns, said.max_ns, said.std_ns) == (3, 7000, 7000, 7000, 0)


@pytest.mark.parametrize("columns", [5, 6])
def test_perf_test_keeps_every_sample(columns: int) -> None:
    """The first is the warm-up that was asked for."""
    between = "," if columns == 5 else ",0.0001,"
    rows = "".join(f"m{between}0.00{n},271122432,11,{n}\n" for n in range(1, 7)) + "\nMin Latency: 0.001 s\n"
    figures = PROGRAMS["onnx"].read(ONNX, rows, JOB)
    assert figures.latency_ns == (2_000_000, 3_000_000, 4_000_000, 5_000_000, 6_000_000)
    assert (figures.load_ns, figures.first_inference_ns) == (217_932_000, 196_000_000)
    assert (figures.summary.median_ns, figures.peak_rss_bytes) == (4_000_000, 271_122_432)


def test_benchmark_app_has_units() -> None:
    figures = PROGRAMS["openvino"].read(OPENVINO, "", JOB)
    assert (figures.load_ns, figures.first_inference_ns, figures.latency_ns) == (65_220_000, 700_000, ())
    said = figures.summary
    assert (said.count, said.median_ns, said.min_ns, said.max_ns) == (50, 3980, 3890, 1_610_000)


@pytest.mark.parametrize("runtime", PROGRAMS)
@pytest.mark.parametrize("printed", ["", "ERROR: failed to open m\n", "count=0\n"])
def test_what_says_nothing_is_no_result(runtime: str, printed: str) -> None:
    with pytest.raises(ValueError, match="no "):
        PROGRAMS[runtime].read(printed, "", JOB)


def test_the_program_ends_with_the_connection(tmp_path: Path) -> None:
    """Nobody ends it but the end of standard input."""
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho $$ >pid\nexec sleep 60\n")
    tool.chmod(0o755)
    script = run_script(str(tmp_path), str(tool), ["x"], str(tmp_path / "result"))
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == '{"ready": 1}\n'
        process.stdin.write("{}\n")
        process.stdin.flush()
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        os.kill(int((tmp_path / "pid").read_text()), 0)
        process.stdin.close()
        assert process.stdout.readline() == '{"id": 1, "ok": true, "code": 137}\n'
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# --- on a stand-in for a phone ---------------------------------------------------------------------------------------

WORK = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static double work(void) {  /* seconds of a matrix product */
    static volatile float a[64][64], b[64][64], c[64][64];
    double start = now();
    for (int i = 0; i < 64; i++) for (int j = 0; j < 64; j++) for (int k = 0; k < 64; k++) c[i][j] += a[i][k] * b[k][j];
    return now() - start;
}
int main(int n, char **v) {
    int runs = 1, warm = 0, csv = 0;
    for (int i = 1; i < n; i++) {
        if (!strncmp(v[i], "--num_runs=", 11)) runs = atoi(v[i] + 11);
        if (!strncmp(v[i], "--warmup_runs=", 14)) warm = atoi(v[i] + 14);
        if (!strcmp(v[i], "-r")) runs = atoi(v[i + 1]), csv = 1;
    }
    double first = work(), sum = 0, low = 1e9, high = 0;
    FILE *result = csv ? fopen(v[n - 1], "a") : NULL;
    for (int i = 0; i < warm; i++) work();
    for (int i = 0; i < runs; i++) {
        double s = work();
        sum += s; low = s < low ? s : low; high = s > high ? s : high;
        if (csv) fprintf(result, "work,%.9f,1000000,99,%d\n", s, i);
    }
    if (csv) {
        fclose(result);
        printf("Session creation time cost: 0.001 s\nFirst inference time cost: %.0f ms\n", first * 1e3);
        return 0;
    }
    fprintf(stderr, "INFO: count=1 curr=%.0f\n\n", first * 1e6);
    fprintf(stderr, "INFO: count=%d first=%.0f curr=%.0f min=%.0f max=%.0f avg=%g std=1\n\n", runs, first * 1e6,
            first * 1e6, low * 1e6, high * 1e6, sum / runs * 1e6);
    fprintf(stderr, "INFO: Inference timings in us: Init: 10, First inference: %.0f\n", first * 1e6);
    return 0;
}
"""
FEW = Settings(threads=1, runs=200, warmup=5, limit_s=60)


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    with (
        adb_server(tmp_path_factory.mktemp("home")),
        started(tmp_path_factory.mktemp("phone") / "p", "--uid", str(os.getuid()), root=Path("/")) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("not installed: cc")
    folder = tmp_path_factory.mktemp("program")
    (folder / "work.c").write_text(WORK)
    subprocess.run(["cc", "-O1", "-o", str(folder / "work"), str(folder / "work.c")], check=True)
    return folder / "work"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "any.tflite"
    path.write_bytes(b"not looked at by the program")
    return path


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(adb, "SETTLE_SECONDS", 1.0)


def timed(device: AdbDevice, runtime: str, model: Path, settings: Settings = FEW) -> NativeTiming:
    try:
        return device.time_file(runtime, [model], settings)
    finally:
        device.close()


@pytest.mark.board
@pytest.mark.parametrize("runtime", ["tflite", "onnx"])
def test_a_program_is_sent_once_and_timed(runtime: str, phone: Phone, program: Path, model: Path) -> None:
    device = phone.device(native={runtime: (str(program),)}, python="python9")
    made = timed(device, runtime, model)
    assert (made.name, made.program, made.figures.summary.count) == ("any.tflite", "work", 200)
    assert 1e3 < made.figures.summary.min_ns <= made.figures.summary.mean_ns <= made.figures.summary.max_ns < 1e9
    assert ("SUMMARY_ONLY" in made.flags) == (runtime == "tflite")
    assert len(made.figures.latency_ns) == (0 if runtime == "tflite" else 200)
    if made.figures.latency_ns:
        assert made.figures.summary.median_ns == statistics.median(made.figures.latency_ns)
    assert made.device["machine"] == os.uname().machine
    assert made.device["cpu_count"] >= 1
    assert NativeTiming.model_validate_json(made.model_dump_json()) == made
    before = {path: path.stat().st_mtime_ns for path in phone.files if path.name in ("work", "any.tflite")}
    timed(device, runtime, model)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert phone.programs(within=5) == {}


@pytest.mark.board
def test_the_real_program_of_openvino(phone: Phone, tmp_path: Path) -> None:
    """Its Python twin, which prints the same lines and is what a registry has."""
    found = shutil.which("benchmark_app", path=str(Path(os.sys.executable).parent))  # type: ignore[attr-defined]
    if found is None:
        pytest.skip("not installed: openvino's benchmark_app")
    import numpy as np
    import openvino as ov
    from openvino import opset13

    image = opset13.parameter([1, 16, 16, 3], np.uint8, name="image")
    mean = opset13.reduce_mean(opset13.convert(image, "f32"), np.array([1, 2]), False)
    ov.save_model(ov.Model([mean], [image], "mean"), str(tmp_path / "m.xml"))
    device = phone.device(native={"openvino": (found,)})
    try:
        made = device.time_file("openvino", [tmp_path / "m.xml", tmp_path / "m.bin"], FEW)
    finally:
        device.close()
    assert made.figures.summary.count == 200
    assert made.figures.load_ns is not None
    assert made.figures.summary.median_ns is not None
    assert 0 < made.figures.summary.min_ns <= made.figures.summary.median_ns <= made.figures.summary.max_ns


def shell(text: str) -> str:
    return f"#!/bin/sh\n{text}\n"


WRONG = {
    "a program of another machine": ("\x7fELF\x02\x01\x01" + "\0" * 100, "E6086"),
    "a program that fails": (shell("echo cannot open model; exit 3"), "E6084"),
    "a program that says something else": (shell("echo hello"), "E6085"),
    "an instruction that the CPU lacks": (shell("kill -ILL $$"), "E6040"),
    "no memory": (shell("kill -KILL $$"), "E6041"),
}


@pytest.mark.board
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_program_is_explained(case: str, phone: Phone, model: Path, tmp_path: Path) -> None:
    text, code = WRONG[case]
    wrong = tmp_path / "program"
    wrong.write_text(text)
    device = phone.device(native={"tflite": (str(wrong),)})
    with pytest.raises(DistilledgeError) as refused:
        timed(device, "tflite", model)
    assert (refused.value.code, refused.value.exit_code) == (code, 6), refused.value
    assert refused.value.hint
    assert phone.programs(within=5) == {}


FAULTS = {"drop": "E6078", "freeze": "E6077"}


@pytest.mark.board
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_while_timing(fault: str, phone: Phone, program: Path, model: Path) -> None:
    """The program ends with the connection, and the next timing succeeds."""
    device = phone.device(native={"tflite": (str(program),)})
    timer = threading.Timer(1.5, phone.fault, (fault,))
    timer.start()
    began = time.monotonic()
    with pytest.raises(DeviceError) as refused:
        timed(device, "tflite", model, FEW._replace(runs=1_000_000))
    timer.join()
    assert (refused.value.code, refused.value.exit_code) == (FAULTS[fault], 6), refused.value
    assert time.monotonic() - began < 30
    phone.fault("thaw")
    assert phone.programs(within=20) == {}
    assert timed(device, "tflite", model).figures.summary.count == 200


@pytest.mark.board
def test_a_push_that_is_cut_is_tried_again(phone: Phone, program: Path, tmp_path: Path) -> None:
    """Nothing is ever seen under its name that is not whole."""
    big = tmp_path / "big.tflite"
    big.write_bytes(os.urandom(3_000_000))
    device = phone.device(native={"tflite": (str(program),)})
    phone.fault("cut-after 2000000")
    with pytest.raises(DeviceError) as refused:
        timed(device, "tflite", big)
    assert refused.value.exit_code == 6
    assert not any(path.name == "big.tflite" for path in phone.files)
    phone.fault("cut-after 0")
    assert timed(device, "tflite", big).figures.summary.count == 200
    assert not any(path.name.endswith(".part") for path in phone.files)


@pytest.mark.board
def test_a_timing_and_a_worker_hold_the_phone_alike(phone: Phone, program: Path, model: Path) -> None:
    holder = phone.device()
    holder.scratch("x")
    with pytest.raises(DeviceError, match="the device is in use") as refused:
        timed(phone.device(native={"tflite": (str(program),)}), "tflite", model)
    holder.close()
    assert refused.value.code == "E6023"


@pytest.mark.board
def test_the_command(phone: Phone, program: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inventory.ENVIRONMENT, str(tmp_path / "devices.yaml"))
    entry = inventory.AdbEntry(serial=phone.serial, folder=str(phone.folder), native={"tflite": (str(program),)})
    inventory.add("phone", entry)
    assert inventory.load().devices["phone"] == entry
    run = CliRunner().invoke
    shown = run(cli.app, ["devices", "time", "phone", str(model), "--runs", "50"], catch_exceptions=False)
    assert "summary only" in shown.output
    as_json = run(cli.app, ["devices", "time", "phone", str(model), "--runs", "50", "--json"], catch_exceptions=False)
    assert NativeTiming.model_validate_json(as_json.output).figures.summary.count == 50
    told = run(cli.app, ["devices", "doctor", "phone", "--json"], catch_exceptions=False)
    assert '"python": "3.' in told.output
    bare = inventory.AdbEntry(**{**entry.model_dump(), "python": "python9"})
    inventory.add("bare", bare)
    told = run(cli.app, ["devices", "doctor", "bare"], catch_exceptions=False)
    assert told.exit_code == 0
    assert "work" in told.output
    assert "freed" in run(cli.app, ["devices", "clean", "bare"], catch_exceptions=False).output
    assert [path.name for path in phone.files] == ["lock"]
    mistakes: dict[str, Any] = {"any.onnx": DeviceError, "any.txt": UsageError}
    for name, kind in mistakes.items():
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(kind):
            run(cli.app, ["devices", "time", "phone", str(tmp_path / name)], catch_exceptions=False)
