"""The store: canonical JSON, fingerprints, entries that are complete or absent, reasons, locks of one process."""

from __future__ import annotations

import copy
import errno
import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilledge.models.base import Value
from distilledge.models.errors import LockedError, RejectedError, ResourceError, UsageError
from distilledge.pipeline import failpoints
from distilledge.pipeline.disk import kernel_lock
from distilledge.pipeline.failpoints import FAILPOINTS, STAGES, FailpointError, failpoint
from distilledge.pipeline.manifest import FileRecord, Manifest
from distilledge.pipeline.store import Store, atomic_write, canonical_json, explain, fingerprint, run_lock

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(), x, max_size=4), max_leaves=12
)
INPUTS = st.dictionaries(st.text(), JSON, max_size=5)


class Result(Value):
    score: float
    shape: tuple[int, ...] = ()
    free: dict[str, Any] = {}


def build(out: Path, _partial: Path) -> Result:
    (out / "deep").mkdir()
    (out / "deep" / "weights.bin").write_bytes(bytes(range(256)) * 8)
    return Result(score=0.5, shape=(1, 2), free={"mean": (0.1, 0.2)})


def never(_out: Path, _partial: Path) -> Result:
    raise AssertionError("built although it is in the store")


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, item in items for leaf in leaves(item, (*path, key))] or [path]


@given(INPUTS, st.randoms(use_true_random=False))
def test_canonical_json_does_not_depend_on_the_order_of_keys(inputs: dict[str, Any], rng: random.Random) -> None:
    text = canonical_json(shuffled(inputs, rng))
    assert text == canonical_json(inputs)
    assert json.loads(text) == inputs


@given(INPUTS.filter(bool), st.data())
def test_the_fingerprint_changes_iff_an_input_changes(inputs: dict[str, Any], data: st.DataObject) -> None:
    key = fingerprint("student", 1, inputs)
    assert fingerprint("student", 1, copy.deepcopy(inputs)) == key
    path = data.draw(st.sampled_from(leaves(inputs)))
    changed = copy.deepcopy(inputs)
    place = changed
    for part in path[:-1]:
        place = place[part]
    old = place[path[-1]]
    place[path[-1]] = data.draw(
        JSON.filter(lambda new: json.dumps(new, sort_keys=True) != json.dumps(old, sort_keys=True))
    )
    assert fingerprint("student", 1, changed) != key
    assert fingerprint("teacher", 1, inputs) != key
    assert fingerprint("student", 2, inputs) != key


RECORDS = st.builds(FileRecord, size=st.integers(0), sha256=st.text(), mode=st.integers(0, 0o777))
MANIFESTS = st.builds(
    Manifest,
    stage=st.text(),
    fingerprint=st.text(),
    inputs=INPUTS,
    files=st.dictionaries(st.text(), RECORDS, max_size=3),
    created=st.text(),
    seconds=st.floats(0, allow_infinity=False),
)


@given(MANIFESTS)
def test_a_manifest_survives_writing_and_reading(manifest: Manifest) -> None:
    assert Manifest.model_validate_json(canonical_json(manifest)) == manifest


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1: "a"}, b"bytes", {"a": object()}, "\ud800"])
def test_canonical_json_refuses_what_json_does_not_know(bad: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical_json(bad)


def test_canonical_json_is_compact_sorted_utf8() -> None:
    assert canonical_json({"b": [1, 2.5, None], "ä": True, "a": "é"}) == '{"a":"é","b":[1,2.5,null],"ä":true}'.encode()


def test_the_second_time_nothing_is_built_and_the_value_is_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = store.once("student", 1, {"lr": 1e-3}, Result, build)
    second = store.once("student", 1, {"lr": 1e-3}, Result, never)
    assert (first.cached, second.cached) == (False, True)
    assert first.value == second.value
    assert first.path == second.path == store.root / f"student-{first.fingerprint[:16]}"
    assert second.seconds == first.seconds >= 0
    assert store.probe("student", first.fingerprint)
    assert not store.probe("student", "0" * 64)
    assert not list(store.root.glob(".tmp-*")) + list(store.root.glob(".partial-*"))


def test_another_entry_with_the_same_first_digits_is_not_taken_for_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = store.once("student", 1, {}, Result, build).fingerprint
    assert store.lookup("student", key[:16] + "0" * 48, Result) is None


def test_a_failed_build_leaves_its_partial_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fails(out: Path, partial: Path) -> Result:
        (out / "half").write_text("x")
        (partial / "step").write_text("3")
        raise RejectedError("E3999", "a picture", "remove it")

    def resumes(out: Path, partial: Path) -> Result:
        assert (partial / "step").read_text() == "3"
        return build(out, partial)

    with pytest.raises(RejectedError):
        store.once("student", 1, {}, Result, fails)
    key = store.fingerprint("student", 1, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", f".partial-student-{key[:16]}"]
    assert not store.once("student", 1, {}, Result, resumes).cached
    assert not list(tmp_path.glob(".partial-*"))


def test_leftovers_of_dead_runs_are_swept_and_what_others_need_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    done = store.once("teacher", 1, {}, Result, build)
    dead = tmp_path / ".tmp-gate-0123456789abcdef-1-aa"
    finished = tmp_path / f".partial-{done.path.name}"
    living = tmp_path / ".tmp-data-0123456789abcdef-2-bb"
    resumable = tmp_path / ".partial-student-0123456789abcdef"
    for path in (dead, finished, living, resumable):
        path.mkdir()
        (path / "file").write_text("x")
    with kernel_lock(tmp_path / ".locks" / "data-0123456789abcdef.lock", "data"):
        store.once("student", 1, {}, Result, build)
        assert [p.exists() for p in (dead, finished, living, resumable)] == [False, True, True, True]
        store.once("teacher", 1, {}, Result, never)
    assert [p.exists() for p in (finished, living, resumable)] == [False, True, True]


def test_rebuilding_a_damaged_entry_resumes_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.once("teacher", 1, {}, Result, build)
    (entry.path / "value.json").unlink()
    partial = store.partial("teacher", entry.fingerprint)
    partial.mkdir()
    (partial / "step").write_text("3")
    store.once("student", 1, {}, Result, build)

    def resumes(out: Path, partial: Path) -> Result:
        assert (partial / "step").read_text() == "3"
        return build(out, partial)

    assert not store.once("teacher", 1, {}, Result, resumes).cached
    assert not partial.exists()


def test_a_stage_may_not_leave_links(tmp_path: Path) -> None:
    def links(out: Path, _partial: Path) -> Result:
        (out / "link").symlink_to("/etc/hostname")
        return Result(score=1)

    with pytest.raises(ValueError, match="not a file"):
        Store(tmp_path).once("data", 1, {}, Result, links)
    assert not list(tmp_path.glob("data-*"))


def test_reasons(tmp_path: Path) -> None:
    store = Store(tmp_path)
    inputs = {"student": {"training": {"epochs": 4, "lr": 0.1}}, "data_hash": "a" * 64}
    assert store.reason("student", 1, inputs) == "never built"
    entry = store.once("student", 1, inputs, Result, build)
    assert store.reason("student", 1, inputs) == "cached"
    assert store.reason("student", 2, inputs) == "code of stage student changed"
    longer = {**inputs, "student": {"training": {"epochs": 6, "lr": 0.1}}}
    assert store.reason("student", 1, longer) == "student.training.epochs 4 -> 6"
    assert store.reason("student", 1, {**inputs, "data_hash": "b" * 64}) == "data hash changed"
    (entry.path / "deep" / "weights.bin").write_bytes(b"")
    assert store.reason("student", 1, inputs) == "artefact damaged: deep/weights.bin: 0 bytes instead of 2048"


def test_explain_names_the_places_and_counts_the_rest() -> None:
    before = {"a": 1, "b": [1, 2], "c": "x", "d": None, "gone": 1}
    now = {"a": True, "b": [1, 3], "c": "y", "d": {}, "new": 1}
    assert explain("s", now, before) == 'a 1 -> true; b.1 2 -> 3; c "x" -> "y"; and 3 more'
    assert explain("s", before, None) == "never built"


def test_nearest_takes_the_entry_with_the_fewest_differences(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for inputs in ({"a": 1, "b": 2}, {"a": 1, "b": 1}, {"a": 2, "b": 2}):
        store.once("student", 1, inputs, Result, build)
    assert store.nearest("student", {"a": 1, "b": 3}) in ({"a": 1, "b": 2}, {"a": 1, "b": 1})
    assert store.reason("student", 1, {"a": 1, "b": 3}).startswith("b ")


def test_a_value_that_no_longer_fits_is_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Wider(Value):
        score: float
        needed: int

    store = Store(tmp_path)
    store.once("student", 1, {}, Result, build)
    with caplog.at_level(logging.WARNING):
        again = store.once("student", 1, {}, Wider, lambda _out, _partial: Wider(score=1, needed=2))
    assert not again.cached
    assert "does not fit Wider" in caplog.text


def test_a_library_that_hides_a_full_disk_in_its_own_error_is_understood(tmp_path: Path) -> None:
    def fails(out: Path, _partial: Path) -> Result:
        (out / "weights.bin").write_bytes(b"x" * 1000)
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(ResourceError) as caught:
        Store(tmp_path).once("student", 1, {}, Result, fails)
    assert caught.value.exit_code == 9
    assert "stage student" in caught.value.what
    assert "needs more than 1,000 bytes" in caught.value.what
    assert "bytes free" in caught.value.what
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.ENOENT, "no such file"), KeyboardInterrupt()])
def test_other_failures_pass_unchanged(tmp_path: Path, error: BaseException) -> None:
    def fails(_out: Path, _partial: Path) -> Result:
        raise error

    with pytest.raises(type(error)) as caught:
        Store(tmp_path).once("student", 1, {}, Result, fails)
    assert caught.value is error
    assert not list(tmp_path.glob(".tmp-*"))


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    atomic_write(path, "old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_second_run_in_a_directory_is_told_who_holds_it(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "demo"
    with run_lock(directory), pytest.raises(LockedError) as caught, run_lock(directory):
        raise AssertionError("locked twice")
    assert caught.value.exit_code == 8
    assert "pid " in caught.value.what
    with run_lock(directory):
        pass


def test_run_lock_sweeps_what_a_killed_write_left(tmp_path: Path) -> None:
    (tmp_path / ".tmp-run.json-1-aa").write_text("half")
    with run_lock(tmp_path):
        assert not list(tmp_path.glob(".tmp-*"))


def test_failpoints_are_the_stages_and_refuse_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {f"{s}.start" for s in STAGES} | {f"{s}.built" for s in STAGES} < set(FAILPOINTS)
    failpoint("data.start")
    for wrong in ("data.begin:kill", "data.start:explode", "data.start:sleep:long", "data.start@x:raise", "data.start"):
        monkeypatch.setenv("DISTILLEDGE_FAILPOINT", wrong)
        with pytest.raises(UsageError, match="E2001"):
            failpoint("data.start")


def test_a_failpoint_can_wait_for_its_nth_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_hits", failpoints.Counter())
    monkeypatch.setenv("DISTILLEDGE_FAILPOINT", "gate.start:sleep:0,train.step@3:raise")
    failpoint("gate.start")
    failpoint("train.step")
    failpoint("train.step")
    with pytest.raises(FailpointError):
        failpoint("train.step")
    failpoint("train.step")
