"""What doctor says of environments that are as they should be, and of broken ones made for the purpose."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distilledge.pipeline import doctor, packages
from distilledge.pipeline.machine import free_disk_bytes, int8_instructions, memory_bytes
from distilledge.targets import trial
from distilledge.targets.telemetry import SWITCHES


def install(folder: Path, name: str, version: str, *requires: str, built: str = "") -> None:
    """A package with metadata, as pip leaves it; ``built`` is the version with its build tag in version.py."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    if built:
        (folder / name / "version.py").write_text(f"__version__ = '{built}'\ndebug = False\n")


def test_healthy_environment_has_no_failure_and_is_quick() -> None:
    start = time.perf_counter()
    report = doctor.examine()
    assert time.perf_counter() - start < 2
    assert report.problem() is None
    names = {row.name for row in report.rows()}
    assert {"python", "torch", "runtime onnx", "runtime openvino", "runtime tflite", "CPU", "GPU", "disk"} <= names
    assert all(row.hint for row in report.rows() if row.state != "ok")


def test_doctor_does_not_import_what_it_examines() -> None:
    code = (
        "import sys; from distilledge.pipeline.doctor import examine; examine();"
        "print([m for m in ('torch', 'openvino', 'onnxruntime', 'nncf', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_dependency_has_a_known_good_version() -> None:
    assert [d.name for d in packages.dependencies() if not d.known_good] == []


def test_dependencies_are_missing_old_or_fine(tmp_path: Path) -> None:
    needs = ("numpy>=2.0", "onnx>=1.21", "torch<2.15,>=2.13", "pytest>=8 ; extra == 'test'")
    install(tmp_path, "distilledge", "0.1.0", *needs)
    install(tmp_path, "numpy", packages.known_good()["numpy"])
    install(tmp_path, "onnx", "1.20.1")
    found = {d.name: d.fit for d in packages.dependencies([str(tmp_path)])}
    assert found == {"numpy": "known good", "onnx": "too old or too new", "torch": "missing"}


def test_environment_without_us_is_refused(tmp_path: Path) -> None:
    with pytest.raises(packages.MissingPackageError) as error:
        packages.dependencies([str(tmp_path)])
    assert (error.value.code, error.value.exit_code) == ("E4501", 4)


@pytest.mark.parametrize(
    ("torch", "vision", "doubt"),
    [
        ("2.14.1+cu130", "0.29.2+cu132", ""),
        ("2.14.1", "0.29.2", ""),
        ("2.13.0+cpu", "0.28.0+cu130", "one is built for cpu, the other for cuda"),
        ("2.14.1+rocm7.0", "0.29.2+cu130", "one is built for rocm, the other for cuda"),
        ("2.13.0+cu130", "0.29.2+cu132", "torch 2.13.0 goes with torchvision 0.28"),
    ],
)
def test_torch_pair_is_judged_from_metadata(tmp_path: Path, torch: str, vision: str, doubt: str) -> None:
    """The registry's torchvision carries its build tag in version.py only."""
    install(tmp_path, "torch", torch, built=torch)
    install(tmp_path, "torchvision", vision.partition("+")[0], built=vision)
    assert packages.torch_pair([str(tmp_path)]) == (torch, vision, doubt)


def test_mismatched_builds_are_explained_with_exit_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B31, with packages that fail as the real ones do (seen with torch 2.13.0+cpu and torchvision 0.28.0+cu130)."""
    install(tmp_path, "torch", "2.13.0+cpu", built="2.13.0+cpu")
    install(tmp_path, "torchvision", "0.28.0", built="0.28.0+cu130")
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({trial.NMS!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = next(f for f in doctor.examine().rows() if f.name == "torch and torchvision")
    assert finding.state == "fail"
    assert "2.13.0+cpu" in finding.detail
    assert "0.28.0+cu130" in finding.detail
    assert "torchvision::nms does not exist" in finding.detail
    assert finding.hint == "pip install --force-reinstall --no-deps torch==2.13.0 torchvision==0.28.0"


def test_explain_knows_one_error_only() -> None:
    known = doctor.explain(RuntimeError(trial.NMS))
    assert known is not None
    assert (known.code, known.exit_code) == ("E4503", 4)
    assert doctor.explain(RuntimeError("operator torchvision::roi_align has a bug")) is None


def test_failure_of_a_report_is_exit_4() -> None:
    rows = (
        doctor.Finding(name="disk", state="warn", detail="little", hint="h"),
        doctor.Finding(name="onnx", state="fail", detail="missing", hint="pip install onnx"),
    )
    report = doctor.DoctorReport(findings=rows)
    assert [r.state for r in report.rows()] == ["fail", "warn"]
    problem = report.problem()
    assert problem is not None
    assert str(problem) == "error[E4502] onnx: missing\nhint: pip install onnx"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino", "tflite"])
def test_tiny_model_runs_in_each_runtime(name: str) -> None:
    outcome = trial.attempt(name)
    assert outcome.works, outcome.detail
    assert "runs" in outcome.detail


@pytest.mark.slow
def test_deep_examination_imports_torchvision_and_runs_everything() -> None:
    details = {f.name: (f.state, f.detail) for f in doctor.examine(deep=True).rows()}
    state, detail = details["torch and torchvision"]
    assert state == "ok"
    assert f"torch {importlib.metadata.version('torch')}" in detail
    assert all(details[f"runtime {name}"] == ("ok", details[f"runtime {name}"][1]) for name in doctor.RUNTIMES)


def test_trial_that_dies_or_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial.attempt("no-such-runtime").detail == "KeyError: 'no-such-runtime'"
    assert trial.attempt("onnx", seconds=0.01) == (False, "no answer in 0 s")
    child = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 4)"], check=False)
    assert trial._reason(child.returncode, "") == "killed by SIGILL: built for a newer CPU than this one"


def test_telemetry_left_on_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def telemetry() -> doctor.Finding:
        return next(f for f in doctor.examine().rows() if f.name == "telemetry")

    assert telemetry().state == "ok"
    monkeypatch.delenv(next(iter(SWITCHES)))
    assert telemetry().state == "warn"


def test_openvino_and_nncf_send_nothing_after_switch_off() -> None:
    """Both fall back to their stubs; the package that sends is never loaded."""
    code = (
        "from distilledge.targets.telemetry import switch_off; switch_off(); import openvino, sys;"
        "print(sys.modules['openvino_telemetry'], openvino.tools.ovc.telemetry.__class__.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "openvino.tools.ovc.telemetry_stub"]


def test_the_worker_on_the_device_sends_nothing_either(tmp_path: Path) -> None:
    """A worker is a process of its own: it must block the package itself before it imports openvino."""
    (tmp_path / "x.onnx").write_bytes(trial._onnx_model())
    code = (
        "import sys; from distilledge.targets.ondevice.session import open_session\n"
        f"try: open_session({str(tmp_path / 'x.onnx')!r}, 'openvino', 1)\n"
        "except ValueError as error: print(error, file=sys.stderr)  # it takes float pictures\n"
        "print('openvino' in sys.modules, sys.modules.get('openvino_telemetry'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "None"], done.stderr


def test_int8_instructions_of_this_cpu_come_fastest_first() -> None:
    assert int8_instructions(["avx2", "fma", "amx_int8"]) == ("amx_int8", "avx2")
    assert int8_instructions(["asimd", "asimddp"]) == ("asimddp",)
    assert int8_instructions([]) == ()


def test_memory_obeys_a_containers_limit(tmp_path: Path) -> None:
    (tmp_path / "limit").write_text("1048576\n")
    assert memory_bytes(tmp_path / "limit") == (1048576, 1048576)
    (tmp_path / "limit").write_text("max\n")
    total, free = memory_bytes(tmp_path / "limit")
    assert total >= free > 1048576


def test_disk_of_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert free_disk_bytes(tmp_path / "a" / "b") > 0
