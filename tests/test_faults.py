"""Faults of ROBUSTNESS section 2 against real store entries: F1, F2, F4, F5, F13 and F14."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import store_chain

from distilledge.models.errors import LockedError, ResourceError
from distilledge.pipeline import disk, manifest
from distilledge.pipeline.failpoints import COMMIT_POINTS, STAGES
from distilledge.pipeline.store import Store, run_lock

SCRIPT = store_chain.__file__
THREE = ("data", "teacher", "student")
COMMIT_CALLS = ("write", "fsync", "mkdir", "rename", "unlink", "unlinkat", "rmdir")


def start(
    root: Path, *, failpoint: str = "", stages: tuple[str, ...] = THREE, prefix: tuple[str, ...] = ()
) -> list[str]:
    """The command line of a chain in a process of its own."""
    variables = [f"DISTILLEDGE_FAILPOINT={failpoint}", f"CHAIN_STAGES={','.join(stages)}", "PYTHONDONTWRITEBYTECODE=1"]
    return ["env", *variables, *prefix, sys.executable, SCRIPT, str(root)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def leftovers(root: Path) -> list[str]:
    return [p.name for p in root.iterdir() if p.name.startswith((".tmp-", ".partial-"))]


def check_and_finish(root: Path, reference: dict[str, str], stages: tuple[str, ...] = THREE) -> None:
    """After a fault every entry is absent or verifies; the repeated chain ends with the same bytes and no leftovers."""
    store = Store(root)
    for stage in stages:
        entries = list(root.glob(f"{stage}-*"))
        assert len(entries) <= 1
        for entry in entries:
            found = manifest.read_manifest(entry, stage, None)
            assert isinstance(found, manifest.Manifest), found
            assert store.damage(stage, found.fingerprint) is None
    assert store_chain.chain(root, stages=stages) == reference
    assert not leftovers(root)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed chain of three stages leaves."""
    return store_chain.chain(tmp_path_factory.mktemp("reference") / "store", stages=THREE)


@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_f2_killed_at_a_commit_point(tmp_path: Path, reference: dict[str, str], point: str) -> None:
    root = tmp_path / "store"
    done = run(start(root, failpoint=f"{point}@2:kill"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = 2 if point == "commit.done" else 1
    assert len([p for p in root.iterdir() if not p.name.startswith(".")]) == finished
    check_and_finish(root, reference)
    assert store_chain.built(root).count("data") == 1
    assert store_chain.built(root).count("teacher") == (1 if point == "commit.done" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("point", [f"{stage}.{when}" for stage in STAGES for when in ("start", "built")])
def test_f1_killed_at_a_stage_boundary(tmp_path: Path, point: str) -> None:
    root, stage = tmp_path / "store", point.partition(".")[0]
    done = run(start(root, failpoint=f"{point}:kill", stages=STAGES))
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = STAGES.index(stage) + (1 if point.endswith("built") else 0)
    if finished:
        assert store_chain.built(root) == list(STAGES[:finished])
    undisturbed = store_chain.chain(tmp_path / "undisturbed")
    assert store_chain.chain(root) == undisturbed
    assert store_chain.built(root) == list(STAGES)  # nothing that was finished is built again


@pytest.fixture(scope="session")
def strace() -> str:
    tool = shutil.which("strace")
    if tool is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run([tool, "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("ptrace is not permitted here")
    return tool


def traced(tool: str, call: str, what: str) -> tuple[str, ...]:
    """Without --seccomp-bpf, under which strace injects errors but no signals."""
    return (tool, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{what}")


@pytest.mark.slow
@pytest.mark.parametrize("call", COMMIT_CALLS)
def test_f2_killed_at_every_system_call_of_a_commit(
    tmp_path: Path, reference: dict[str, str], strace: str, call: str
) -> None:
    """The last of three entries is a damaged one, so that its replacement is swept too."""
    base = tmp_path / "base"
    store_chain.chain(base, stages=THREE)
    next(base.glob("student-*/deep/weights.bin")).write_bytes(b"damaged")
    shutil.rmtree(next(base.glob("teacher-*")))
    kills = 0
    for number in range(1, 200):
        root = tmp_path / str(number)
        shutil.copytree(base, root, symlinks=True)
        done = run(start(root, prefix=traced(strace, call, f"signal=KILL:when={number}")))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        damaged = [p for p in root.glob("student-*/deep/weights.bin") if p.read_bytes() == b"damaged"]
        if damaged:
            shutil.rmtree(damaged[0].parents[1])  # the old entry, still in its place; the others must verify
        check_and_finish(root, reference)
        shutil.rmtree(root)
    else:
        pytest.fail("never ran to its end")
    assert kills >= 2, f"{call} was hit {kills} times only"


@pytest.mark.slow
@pytest.mark.parametrize(("call", "number"), [("fsync", 1), ("fsync", 4), ("fsync", 12), ("write", 12), ("rename", 2)])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_f4_failing_disk(
    tmp_path: Path, reference: dict[str, str], strace: str, call: str, number: int, error: str
) -> None:
    root = tmp_path / "store"
    done = run(start(root, prefix=traced(strace, call, f"error={error}:when={number}")))
    assert done.returncode == 9, done.stderr
    assert "error[E9001]" in done.stderr
    assert not [name for name in leftovers(root) if name.startswith(".tmp-")]
    check_and_finish(root, reference)


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_f4_a_write_beyond_the_limit(tmp_path: Path, reference: dict[str, str]) -> None:
    root = tmp_path / "store"
    limit = store_chain.SIZE // 2
    done = run(start(root, prefix=(sys.executable, "-c", LIMITED, str(limit))))
    assert done.returncode == 9, done.stderr
    assert "stage data" in done.stderr
    assert f"needs more than {limit:,} bytes" in done.stderr
    assert "finished stages are kept" in done.stderr
    check_and_finish(root, reference)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid():
        pytest.skip("mounting a small tmpfs needs root")
    if subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_f4_full_disk_in_every_stage(small_disk: Path, tmp_path: Path) -> None:
    undisturbed = store_chain.chain(tmp_path / "undisturbed")
    for number, stage in enumerate(STAGES):
        root = small_disk / stage
        with pytest.raises(ResourceError) as caught:
            store_chain.chain(root, big=stage, size=4_000_000)
        assert caught.value.exit_code == 9
        assert "No space left on device" in caught.value.what
        assert f"stage {stage}" in caught.value.what
        assert "needs more than" in caught.value.what
        assert len([p for p in root.iterdir() if not p.name.startswith(".")]) == number
        assert store_chain.chain(root) == undisturbed
        assert store_chain.built(root) == [*STAGES[: number + 1], *STAGES[number:]]
        shutil.rmtree(root)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def relink(path: Path) -> None:
    copied = path.with_name("elsewhere")
    path.rename(copied)
    path.symlink_to(copied)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "first bit of the weights": lambda e: flip(e / "deep" / "weights.bin", 0),
    "last bit of the weights": lambda e: flip(e / "deep" / "weights.bin", -1),
    "bit of the value": lambda e: flip(e / "value.json", 20),
    "bit of the manifest": lambda e: flip(e / "manifest.json", 0),
    "truncated": lambda e: os.truncate(e / "deep" / "weights.bin", 100),
    "emptied manifest": lambda e: os.truncate(e / "manifest.json", 0),
    "deleted": lambda e: (e / "curves.jsonl").unlink(),
    "deleted directory": lambda e: shutil.rmtree(e / "deep"),
    "deleted manifest": lambda e: (e / "manifest.json").unlink(),
    "mode changed": lambda e: (e / "deep" / "weights.bin").chmod(0o600),
    "unreadable": lambda e: (e / "deep" / "weights.bin").chmod(0),
    "became a link": lambda e: relink(e / "deep" / "weights.bin"),
    "became a file": lambda e: (shutil.rmtree(e), e.write_text("x"))[0],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_f5_a_damaged_artefact_is_rebuilt_with_a_warning(
    tmp_path: Path, reference: dict[str, str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    root = tmp_path / "store"
    store_chain.chain(root, stages=THREE)
    DAMAGE[damage](next(root.glob("teacher-*")))
    with caplog.at_level(logging.WARNING):
        assert store_chain.chain(root, stages=THREE) == reference
    assert len(caplog.records) == 1
    assert "is damaged and will be rebuilt" in caplog.text
    assert store_chain.built(root) == [*THREE, "teacher"]
    assert not leftovers(root)
    check_and_finish(root, reference)


def test_f5_the_damaged_entry_stays_until_its_successor_is_complete(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store_chain.chain(root, stages=THREE)
    entry = next(root.glob("student-*"))
    flip(entry / "deep" / "weights.bin", 0)
    done = run(start(root, failpoint="commit.rename:kill"))
    assert done.returncode == -signal.SIGKILL
    assert (entry / "manifest.json").is_file()


def test_f5_extra_files_are_ignored(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store_chain.chain(root, stages=THREE)
    (next(root.glob("student-*")) / ".DS_Store").write_text("x")
    store_chain.chain(root, stages=THREE)
    assert store_chain.built(root) == list(THREE)


@pytest.mark.parametrize("shift", [timedelta(days=-1), timedelta(days=366)])
def test_f13_clock_and_file_times_decide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: timedelta
) -> None:
    root = tmp_path / "store"
    store_chain.chain(root, stages=THREE)

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.now(UTC) + shift

    monkeypatch.setattr(manifest, "datetime", Shifted)
    monkeypatch.setattr(disk, "datetime", Shifted)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, (number * 1000, number * 1000), follow_symlinks=False)
    store_chain.chain(root, stages=(*THREE, "control"))
    assert store_chain.built(root) == [*THREE, "control"]
    entry = next(root.glob("control-*"))
    found = manifest.read_manifest(entry, "control", None)
    assert isinstance(found, manifest.Manifest)
    assert found.seconds >= 0


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that holds the lock of the first stage's entry."""
    command = start(tmp_path / "store", failpoint="commit.write:sleep:60")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while not list((tmp_path / "store").glob(".tmp-*/deep")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
        process.kill()


def test_f14_two_runs_and_a_killed_first(
    tmp_path: Path, reference: dict[str, str], holder: subprocess.Popen[bytes]
) -> None:
    root = tmp_path / "store"
    second = run(start(root))
    assert second.returncode == 8, second.stderr
    assert "error[E8001]" in second.stderr
    assert f"pid {holder.pid} on {os.uname().nodename}, started 20" in second.stderr
    with pytest.raises(LockedError, match=f"pid {holder.pid}"):
        store_chain.chain(root, stages=THREE)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    check_and_finish(root, reference)


FORKING = """
import os, sys, time
from pathlib import Path
from distilledge.pipeline.store import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def test_f14_a_worker_that_outlives_its_killed_run_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(LockedError, match=f"pid {process.pid} "), run_lock(tmp_path):
                pytest.fail("locked twice")
            process.send_signal(signal.SIGKILL)
            process.wait()
            with run_lock(tmp_path):
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)
