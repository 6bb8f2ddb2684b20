"""The whole chain in a process of its own: what it leaves, that a second run redoes nothing, that it survives kills."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launched import distilledge

from distilledge.pipeline.failpoints import STAGES
from distilledge.pipeline.result_file import read_result

pytestmark = pytest.mark.slow

RECIPE = """
schema: 1
name: tiny
data:
  path: synthetic
  synthetic: {per_class: 24, size: 40, difficulty: 0.2}
  calibration: 24
teacher:
  model: mobilenetv1_050
  input: {size: 32}
  training: {epochs: 2, batch_size: 16, lr: 2e-3}
student:
  model: mobilenetv1_025
  input: {size: 32}
  training: {epochs: 2, batch_size: 16, lr: 2e-3}
export:
  targets: [{runtime: onnx, precisions: [fp32, w8a8]}]
verify: {samples: 8, min_agreement_int8: 0.0, min_cosine_int8: 0.5}
measure: {quick: true, end_to_end: 4, warmup: 2}
gate: {on_fail: report}
"""


def manifests(work: Path) -> dict[str, dict[str, object]]:
    """Entry name -> its files' hashes."""
    return {p.parent.name: json.loads(p.read_text())["files"] for p in sorted(work.glob("store/*/manifest.json"))}


def trained(work: Path) -> dict[str, str]:
    """What must be the same to the bit in any run: weights and data, by stage."""
    found = {}
    for name, files in manifests(work).items():
        stage = name.rsplit("-", 1)[0]
        for path, facts in files.items():
            if path.endswith((".safetensors", "samples.jsonl", ".onnx", ".npy")):
                found[f"{stage}/{path}"] = str(facts["sha256"])  # type: ignore[index]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(RECIPE)
    done = distilledge("run", "tiny.yaml", "--json", cwd=folder, python=())
    assert done.returncode == 0, done.stderr
    return folder / "distilledge-work"


def test_it_leaves_a_report_with_the_teacher_first(undisturbed: Path) -> None:
    run = undisturbed / "runs" / "tiny"
    for name in ("report.html", "report.json", "report.md", "benchmarks.csv", "run.json"):
        assert (run / name).stat().st_size > 500, name
    lines = (run / "benchmarks.csv").read_text().splitlines()
    assert "teacher" in lines[1]
    assert sum("student" in line for line in lines) >= 2
    assert "control" in trained(undisturbed).__str__()


def test_it_leaves_a_result_that_can_be_compared(undisturbed: Path) -> None:
    runs = undisturbed / "runs" / "tiny"
    found = read_result(runs)
    assert [item.name for item in found.items][:2] == ["teacher onnx fp32", "student onnx fp32"]
    for item in found.items:
        assert item.accuracy is not None
        assert item.timing is not None
        assert sum(len(launch.latency_ns) for launch in item.timing.launches) >= 256
        assert item.accuracy.value == sum(c[0] for c in item.accuracy.counts) / len(item.accuracy.labels)
    compared = distilledge("compare", str(runs), str(runs), "--allow-flagged", "--json", cwd=undisturbed)
    said = json.loads(compared.stdout)
    assert compared.returncode in (0, 10), compared.stderr  # inconclusive where other load was on the machine
    drops = [c for i in said["items"] for c in i["checks"] if c["what"] == "drop (points)"]
    assert [c["value"] for c in drops] == [0.0, 0.0]


def test_a_second_run_redoes_nothing(undisturbed: Path) -> None:
    before = manifests(undisturbed)
    times = {p: p.stat().st_mtime_ns for p in undisturbed.glob("store/*/manifest.json")}
    again = distilledge("run", "tiny.yaml", "--json", cwd=undisturbed.parent, python=("-X", "importtime"))
    assert again.returncode == 0, again.stderr
    assert "distilledge.pipeline.run" in again.stderr
    assert not re.search(r"\| +(timm|onnxruntime)$", again.stderr, re.MULTILINE), "what nothing needs was loaded"
    assert manifests(undisturbed) == before
    assert {p: p.stat().st_mtime_ns for p in undisturbed.glob("store/*/manifest.json")} == times
    record = json.loads((undisturbed / "runs" / "tiny" / "run.json").read_text())
    assert all(stage["cached"] for stage in record["stages"])


def test_plan_names_what_would_run_and_why(undisturbed: Path) -> None:
    asked = distilledge("plan", "tiny.yaml", "--json", "--set", "student.training.epochs=3", cwd=undisturbed.parent)
    assert asked.returncode == 0, asked.stderr
    rows = {row["stage"]: row for row in json.loads(asked.stdout)}
    assert rows["teacher"]["cached"]
    assert not rows["student"]["cached"]
    assert "epochs 2 -> 3" in rows["student"]["reason"]


def test_changed_data_is_noticed_by_its_hash(undisturbed: Path) -> None:
    asked = distilledge("plan", "tiny.yaml", "--json", "--set", "data.synthetic.seed=1", cwd=undisturbed.parent)
    rows = {row["stage"]: row for row in json.loads(asked.stdout)}
    assert not any(row["cached"] for row in rows.values())
    assert "data hash changed" in rows["data"]["reason"] or "seed 0 -> 1" in rows["data"]["reason"]


POINTS = [
    f"{stage}.{when}"
    for stage in STAGES
    if stage != "report"
    for when in (("start", "built") if stage in ("data", "export") else ("built",))
]
"""``built``: a stage's files lie there, uncommitted; at ``start`` there is nothing of it, whichever it is."""


def test_a_kill_at_any_stage_boundary_is_survived(undisturbed: Path, tmp_path: Path) -> None:
    """F1: one store, killed at each point in turn; the last run finishes with the artefacts of an undisturbed one."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    work = tmp_path / "distilledge-work"
    kept: dict[str, dict[str, object]] = {}
    for point in POINTS:
        killed = distilledge("run", "tiny.yaml", cwd=tmp_path, DISTILLEDGE_FAILPOINT=f"{point}:kill")
        assert killed.returncode == -9, f"{point}: {killed.stderr}"
        now = manifests(work)
        assert kept.items() <= now.items(), f"{point}: a finished stage was recomputed or lost"
        kept = now
    done = distilledge("run", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kept.items() <= manifests(work).items()
    assert trained(work) == trained(undisturbed)
    assert not list(work.glob("store/.tmp-*"))


def test_a_kill_inside_training_ends_with_the_same_weights(undisturbed: Path, tmp_path: Path) -> None:
    """F3 through the command line: killed at a step of the teacher and at one of the student."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    override = ("--set", "teacher.training.checkpoint_every=2", "--set", "student.training.checkpoint_every=2")
    for hit in ("train.step@3", "train.step@9"):
        killed = distilledge("distill", "tiny.yaml", *override, cwd=tmp_path, DISTILLEDGE_FAILPOINT=f"{hit}:kill")
        assert killed.returncode == -9, killed.stderr
    done = distilledge("distill", "tiny.yaml", *override, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = {k: v for k, v in trained(tmp_path / "distilledge-work").items() if k.endswith("model.safetensors")}
    assert len(weights) == 3
    assert weights.items() <= trained(undisturbed).items()


def test_the_network_is_never_needed(undisturbed: Path) -> None:
    """A run of generated data from scratch opens no internet socket (strace, where it is there and allowed)."""
    probe = subprocess.run(["strace", "-V"], capture_output=True)
    if probe.returncode:
        pytest.skip("strace is not installed")
    log = undisturbed / "connect.log"
    command = ["strace", "-f", "-e", "trace=connect", "-o", str(log), sys.executable, "-m", "distilledge.pipeline.cli"]
    done = subprocess.run(
        [*command, "run", "tiny.yaml", "--set", "name=offline"], cwd=undisturbed.parent, capture_output=True, text=True
    )
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("ptrace is not permitted")
    assert done.returncode == 0, done.stderr
    assert "AF_INET" not in log.read_text()


def test_real_pictures_from_data_to_report(shared: Path, tmp_path: Path) -> None:
    """End to end on real data: X-SDD with ImageNet weights, every runtime, shrunk by the recipe's smoke block.

    And by a twelfth of the teacher's pixels: at 224 px the pass over the pictures takes most of the time.
    """
    targets = ", ".join(f"{{runtime: {name}, precisions: [fp32, w8a8]}}" for name in ("onnx", "openvino", "tflite"))
    smaller = (
        f"export.targets=[{targets}]", "teacher.input.size=64", "student.input.size=64", "data.calibration=24",
        "measure.end_to_end=4", "measure.warmup=2",
    )  # fmt: skip
    command = ("run", "x-sdd-tiny", "--smoke", "--json", *(word for change in smaller for word in ("--set", change)))
    done = distilledge(*command, cwd=tmp_path, DISTILLEDGE_SHARED=str(shared))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    text = json.dumps(report)
    for runtime in ("onnx", "openvino", "tflite"):
        assert f"student {runtime} w8a8" in text
        assert f"teacher {runtime} fp32" in text
