"""Training: it learns, repeats itself bit by bit, goes on after a kill, and stops with a reason."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from launched import TRAINING, forked
from PIL import Image

from distilledge.models import vision
from distilledge.models.errors import IntegrityError, MissingPackageError, RejectedError, ResourceError, UsageError
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.interrupt import Interrupted
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Checkpoint, Sample, Splits
from distilledge.pipeline.training import many
from distilledge.pipeline.training.distill import distill
from distilledge.pipeline.training.events import ProgressEvent, silent
from distilledge.pipeline.training.learner import Learner
from distilledge.pipeline.training.teacher import finetune

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CLASSES = ("flat", "rows", "columns")
SPLITS = {"train": 36, "validation": 12}


def picture(label: int, index: int) -> Image.Image:
    """44 x 40 pixels: even, horizontal or vertical stripes, with noise."""
    random = np.random.default_rng((label, index))
    base = np.full((40, 44, 3), 120.0)
    if label == 1:
        base[random.integers(4) :: 8] += 90
    if label == 2:
        base[:, random.integers(4) :: 8] += 90
    return Image.fromarray((base + random.normal(0, 8, base.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data stage's directory, store-like: its parent takes the picture caches."""
    directory = tmp_path_factory.mktemp("store") / "data-0"
    (directory / "images").mkdir(parents=True)
    rows = []
    for index, split in enumerate(s for s, count in SPLITS.items() for _ in range(count)):
        path, label = f"images/{index:03d}.png", index % 3
        picture(label, index).save(directory / path)
        digest = hashlib.sha256((directory / path).read_bytes()).hexdigest()
        rows.append(Sample(path, label, "", split, digest, False))
    lines = "".join(json.dumps(row._asdict()) + "\n" for row in rows)
    (directory / "samples.jsonl").write_text(lines, encoding="utf-8")
    return directory


SPLITS_VALUE = Splits(
    root=".", classes=CLASSES, counts={}, data_hash="d", calibration_hash="c", calibration=0, synthetic=True
)
SMALL = {"epochs": 2, "batch_size": 8, "lr": 3e-3, "warmup_epochs": 0.5}


def recipe(*, student: dict | None = None, teacher: dict | None = None, **rest: object) -> Recipe:
    """A tiny transformer and a tiny network at 32 pixels; ``student`` and ``teacher`` change their training."""
    parts = {
        name: {"model": model, "input": {"size": 32}, "training": {**SMALL, **(changes or {})}}
        for name, model, changes in (
            ("teacher", "test_vit", teacher),
            ("student", "test_efficientnet", student),
        )
    }
    return Recipe.model_validate({"name": "t", **parts, **rest})


def folders(tmp_path: Path, name: str = "a") -> tuple[Path, Path]:
    out, partial = tmp_path / f"{name}-out", tmp_path / f"{name}-partial"
    out.mkdir(exist_ok=True)
    partial.mkdir(exist_ok=True)
    return out, partial


def control(data: Path, tmp_path: Path, made: Recipe, name: str = "a", report: object = silent) -> Checkpoint:
    out, partial = folders(tmp_path, name)
    return distill(made, SPLITS_VALUE, data, None, out, partial=partial, report=report)


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / "model.safetensors")


@pytest.fixture(scope="session")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    tmp_path = tmp_path_factory.mktemp("teacher")
    out, partial = folders(tmp_path)
    return finetune(recipe(teacher={"epochs": 6, "ema": 0.8}), SPLITS_VALUE, data, out, partial, silent), out


# --- it learns


def test_teacher_learns_and_is_read_back(teacher: tuple[Checkpoint, Path], data: Path) -> None:
    found, out = teacher
    curve = rows(out)
    assert [row["epoch"] for row in curve] == [1, 2, 3, 4, 5, 6]
    assert set(curve[0]) == {
        "epoch",
        "train_loss",
        "lr",
        "accuracy",
        "balanced_accuracy",
        "loss",
        "seconds",
        "samples_per_second",
    }
    assert curve[-1]["train_loss"] < 0.6 * curve[0]["train_loss"]
    assert found.validation["accuracy"] == max(row["accuracy"] for row in curve) > 0.8
    model = checkpoints.load(found, out)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == found.parameters


def test_weights_that_changed_are_refused(teacher: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    found, out = teacher
    raw = bytearray((out / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(IntegrityError, match="E7602"):
        checkpoints.load(found, tmp_path)
    with pytest.raises(IntegrityError, match="E7601"):
        checkpoints.load(found, tmp_path / "nowhere")


def test_student_is_taught_and_control_is_not(teacher: tuple[Checkpoint, Path], data: Path, tmp_path: Path) -> None:
    made = recipe(distill={"hard_weight": 0.0})
    out, partial = folders(tmp_path)
    student = distill(made, SPLITS_VALUE, data, teacher, out, partial=partial, report=silent)
    alone = control(data, tmp_path, made, "b")
    assert (student.role, alone.role) == ("student", "control")
    assert student.weights_sha256 != alone.weights_sha256
    assert student.epochs == alone.epochs == 2


@pytest.mark.parametrize("loss", ["kl", "dkd", "dist", "kl_standardised", "hint", "attention", "relational"])
def test_every_loss_trains(loss: str, teacher: tuple[Checkpoint, Path], data: Path, tmp_path: Path) -> None:
    made = recipe(student={"epochs": 1}, distill={"losses": [{"name": loss}]})
    out, partial = folders(tmp_path)
    found = distill(made, SPLITS_VALUE, data, teacher, out, partial=partial, report=silent)
    assert np.isfinite(rows(out)[0]["train_loss"])
    assert set(weights(out)) == set(checkpoints.load(found, out).state_dict())  # no projection is kept


def test_unknown_loss_is_refused(teacher: tuple[Checkpoint, Path], data: Path, tmp_path: Path) -> None:
    out, partial = folders(tmp_path)
    with pytest.raises(UsageError, match="klx"):
        distill(
            recipe(distill={"losses": [{"name": "klx"}]}),
            SPLITS_VALUE,
            data,
            teacher,
            out,
            partial=partial,
            report=silent,
        )


def test_pictures_without_labels_teach(teacher: tuple[Checkpoint, Path], data: Path, tmp_path: Path) -> None:
    """They add steps to the student, not to the control."""
    more = Path(shutil.copytree(data, tmp_path / "more"))
    with (more / "samples.jsonl").open("a") as lines:
        for index in range(10):
            path = tmp_path / f"{index}.png"
            picture(index % 3, 500 + index).save(path)
            sample = Sample(str(path), -1, "", "unlabelled", f"{index}", calibration=False)
            lines.write(json.dumps(sample._asdict()) + "\n")
    made = recipe(student={"epochs": 1, "sampling": "balanced"})
    for given, steps in ((teacher, 6), (None, 5)):  # ceil((36 + 10) / 8) and ceil(36 / 8)
        events: list[ProgressEvent] = []
        out, partial = folders(tmp_path, str(steps))
        distill(made, SPLITS_VALUE, more, given, out, partial=partial, report=events.append)
        assert events[-1].steps == steps


# --- the same bits again


def test_neither_workers_nor_cache_change_anything(data: Path, tmp_path: Path) -> None:
    augmented = {"augment": {"mixup": 0.2, "cutmix": 1.0, "randaugment": {"operations": 1}}, "epochs": 1}
    found = [
        control(data, tmp_path, recipe(student=augmented, data={"workers": n, "cache": cache}), f"{n}{cache}")
        for n, cache in ((0, True), (2, True), (0, False))
    ]
    assert len({value.weights_sha256 for value in found}) == 1


KILLED = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from distilledge.pipeline.recipe import Recipe
    from distilledge.pipeline.record import Splits
    from distilledge.pipeline.training.distill import distill
    import torch

    torch.set_num_threads(1)
    recipe, splits, data, out, partial = sys.argv[1:6]
    distill(
        Recipe.model_validate_json(recipe), Splits.model_validate_json(splits), Path(data), None, Path(out),
        partial=Path(partial), report=lambda event: print(f"{event.epoch}.{event.step}", flush=True),
    )
    """
)


def given(made: Recipe, data: Path, out: Path, partial: Path) -> list[str]:
    return [made.model_dump_json(by_alias=True), SPLITS_VALUE.model_dump_json(), str(data), str(out), str(partial)]


def finish(made: Recipe, data: Path, out: Path, partial: Path, failpoint: str = "") -> tuple[int, list[str]]:
    arguments = given(made, data, out, partial)
    done = forked(KILLED, *arguments, cwd=out, imports=TRAINING, DISTILLEDGE_FAILPOINT=failpoint)
    return done.returncode, done.stdout.split()


RESUMED = {"checkpoint_every": 2, "ema": 0.9, "augment": {"mixup": 0.2}, "epochs": 3}


@pytest.mark.parametrize(
    ("workers", "points"), [(0, ("train.step@3", "train.checkpoint@3", "train.step@5")), (2, ("train.step@8",))]
)
def test_killed_and_resumed_gives_the_same_bits(
    workers: int, points: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    """F3: kill -9 in the first epoch, between epochs and in the last, in one training; dropout is on.

    With processes that load pictures, which take seconds to begin, in the middle of the second epoch only.
    """
    made = recipe(student=RESUMED, data={"workers": workers})
    out, partial = folders(tmp_path, "whole")
    distill(made, SPLITS_VALUE, data, None, out, partial=partial, report=silent)  # here, under another hash seed
    again, kept = folders(tmp_path, "killed")
    seen = []
    for point in points:
        code, steps = finish(made, data, again, kept, f"{point}:kill")
        assert code == -signal.SIGKILL
        seen.append(steps)
    code, steps = finish(made, data, again, kept)
    assert code == 0
    assert seen[0][0] == "1.1"
    assert "1.1" not in [*itertools.chain(*seen[1:]), *steps]  # it went on, it did not start again
    assert weights(again).keys() == weights(out).keys()
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_damaged_or_foreign_state_is_not_used(data: Path, tmp_path: Path) -> None:
    made = recipe(student={"epochs": 1})
    whole = control(data, tmp_path, made)
    _, partial = folders(tmp_path)
    events: list[ProgressEvent] = []
    control(data, tmp_path, made, "a", events.append)
    assert events == []  # the state says that it is finished
    state = next(partial.glob("state-*.pt"))
    raw = bytearray(state.read_bytes())
    raw[len(raw) // 2] ^= 1
    state.write_bytes(raw)
    assert control(data, tmp_path, made, "a", events.append).weights_sha256 == whole.weights_sha256
    assert len(events) == 5
    control(data, tmp_path, recipe(student={"epochs": 1, "lr": 1e-3}), "a", events.append)
    assert len(events) == 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_saves_and_stops(number: int, code: int, data: Path, tmp_path: Path) -> None:
    """F15, in this process: the handlers are ours for the length of the training only."""

    def interrupt(event: ProgressEvent) -> None:
        if (event.epoch, event.step) == (1, 2):
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    made = recipe(student={"epochs": 2})
    with pytest.raises(Interrupted) as stopped:
        control(data, tmp_path, made, "a", interrupt)
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before
    events: list[ProgressEvent] = []
    resumed = control(data, tmp_path, made, "a", events.append)
    assert (events[0].epoch, events[0].step) == (1, 3)
    assert resumed.weights_sha256 == control(data, tmp_path, made, "b").weights_sha256


def test_two_signals_end_at_once(data: Path, tmp_path: Path) -> None:
    made = recipe(student={"epochs": 1})
    command = [sys.executable, "-c", KILLED, *given(made, data, *folders(tmp_path))]
    environment = {**os.environ, "DISTILLEDGE_FAILPOINT": "train.step@2:sleep:60"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the first step is done: the second sleeps
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) in (130, 143)


# --- it stops with a reason


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """An infinite weight for the length of these steps: a real overflow, forward and backward."""
    inner = Learner._accumulate
    counted = iter(range(1_000_000))

    def accumulate(self: Learner, batch: object, seed: int) -> float:
        bias = next(self.objective.model.parameters())
        kept = bias.detach().clone()
        if next(counted) in steps:
            bias.data.fill_(torch.inf)
        loss = inner(self, batch, seed)  # type: ignore[arg-type]
        bias.data.copy_(kept)
        return loss

    monkeypatch.setattr(Learner, "_accumulate", accumulate)


def test_a_loss_that_is_not_finite_stops(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F11: named by epoch, step and pictures; the last good state stays."""
    poison(monkeypatch, {6})
    _, partial = folders(tmp_path)
    with pytest.raises(RejectedError, match=r"E3605.*control.*epoch 2, step 2: images/") as stopped:
        control(data, tmp_path, recipe())
    assert stopped.value.exit_code == 3
    batch = json.loads((partial / "bad_batch.json").read_text())
    assert (batch["epoch"], batch["step"], len(batch["pictures"])) == (2, 2, 8)
    saved = torch.load(next(partial.glob("state-*.pt")), weights_only=True)
    assert saved["position"]["epoch"] == 1
    assert all(torch.isfinite(t).all() for t in saved["learner"]["objective"].values())


def test_a_loss_that_is_not_finite_is_skipped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics of BatchNorm, which the bad forward pass touched, are put back too."""
    poison(monkeypatch, {1, 6})
    found = control(data, tmp_path, recipe(student={"on_nan": "skip"}))
    assert found.skipped_steps == 2
    assert all(torch.isfinite(t).all() for t in weights(folders(tmp_path)[0]).values())


def test_skipping_everything_is_no_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(100)))
    with pytest.raises(RejectedError, match="E3605"):
        control(data, tmp_path, recipe(student={"on_nan": "skip", "epochs": 4}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("changes", "words"), [({"device": "cuda"}, "sees 0 GPUs"), ({"precision": "fp16"}, "needs a GPU")]
)
def test_what_needs_a_gpu_says_so(changes: dict, words: str, data: Path, tmp_path: Path) -> None:
    """B28."""
    with pytest.raises(MissingPackageError, match=words) as refused:
        control(data, tmp_path, recipe(student=changes))
    assert refused.value.exit_code == 4
    assert refused.value.hint


def starve(monkeypatch: pytest.MonkeyPatch, fits: int) -> list[int]:
    """The allocator gives up above ``fits`` pictures at a time; returns the sizes that were tried."""
    tried: list[int] = []
    inner = Learner._piece

    def piece(self: Learner, batch: object, share: float) -> torch.Tensor:
        tried.append(len(batch.inputs))  # type: ignore[attr-defined]
        if tried[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(self, batch, share)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "_piece", piece)
    return tried


def test_out_of_memory_halves_the_batch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F10."""
    tried = starve(monkeypatch, 2)
    control(data, tmp_path, recipe(student={"auto_batch": True, "epochs": 1}))
    assert tried == [8, 4, *[2] * 20]


def test_out_of_memory_names_a_size_that_fits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starve(monkeypatch, 4)
    with pytest.raises(ResourceError, match=r"E9602.*8 samples at a time") as stopped:
        control(data, tmp_path, recipe())
    assert "batch_size: 4" in stopped.value.hint


def test_a_killed_loader_process_is_named(data: Path, tmp_path: Path) -> None:
    """F12; and the training goes on afterwards."""
    import multiprocessing

    def kill_a_worker(event: ProgressEvent) -> None:
        if event.step == 2:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    # Nine batches, of which at most seven are asked for when it is killed: all five of the usual ones may lie there.
    made = recipe(student={"epochs": 2, "checkpoint_every": 1, "batch_size": 4}, data={"workers": 2})
    with pytest.raises(ResourceError, match=r"E9603.*DataLoader worker.*images/"):
        control(data, tmp_path, made, "a", kill_a_worker)
    assert control(data, tmp_path, made).epochs == 2


def test_a_picture_lost_since_the_audit_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "store" / "data-1"
    directory.mkdir(parents=True)
    samples = [Sample(f"{i}.png", i % 3, "", split, "", False) for i, split in enumerate(("train", "validation"))]
    (directory / "samples.jsonl").write_text("".join(json.dumps(s._asdict()) + "\n" for s in samples))
    for workers, cache in ((0, False), (2, False), (2, True)):
        with pytest.raises(RejectedError, match=r"E3601.*: .*png: no such file"):
            control(directory, tmp_path, recipe(data={"workers": workers, "cache": cache}))


# --- options do what they say


def test_a_frozen_backbone_does_not_move(data: Path, tmp_path: Path) -> None:
    made = recipe(student={"freeze_backbone": True, "epochs": 1})
    control(data, tmp_path, made)
    moved = weights(folders(tmp_path)[0])
    made_two = recipe(student={"freeze_backbone": True, "epochs": 1, "lr": 1e-2})
    control(data, tmp_path, made_two, "b")
    other = weights(folders(tmp_path, "b")[0])
    heads = {
        n for n in moved if n.startswith(vision.head_names(vision.create("test_efficientnet", classes=3, size=32)))
    }
    assert heads
    assert {n for n in moved if not torch.equal(moved[n], other[n])} == heads


def test_early_stopping_stops(data: Path, tmp_path: Path) -> None:
    found = control(data, tmp_path, recipe(student={"epochs": 9, "early_stopping": 1, "lr": 1e-9}))
    assert found.epochs == 2


def test_best_and_last_differ(data: Path, tmp_path: Path) -> None:
    changes = {"epochs": 3, "lr": 0.05, "warmup_epochs": 0}
    best = control(data, tmp_path, recipe(student=changes))
    last = control(data, tmp_path, recipe(student={**changes, "select": "last"}), "b")
    assert last.best_epoch == 3
    assert best.validation["accuracy"] >= last.validation["accuracy"]


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9},
        {"class_weights": "balanced", "label_smoothing": 0.1},
        {"sampling": "balanced"},
        {"optimizer": "sgd", "lr": 0.01},
        {"layer_decay": 0.7},
        {"precision": "bf16"},
        {"channels_last": False},
        {"max_grad_norm": None},
        {"accumulate": 2},
        {"augment": {"mixup": 0.4, "cutmix": 1.0, "vertical_flip": 0.5, "randaugment": {}}},
        {"augment": {"crop_scale": [1, 1], "horizontal_flip": 0}},
    ],
    ids=",".join,
)
def test_every_option_trains(changes: dict, data: Path, tmp_path: Path) -> None:
    found = control(data, tmp_path, recipe(student=changes))
    assert np.isfinite([row["train_loss"] for row in rows(folders(tmp_path)[0])]).all()
    assert found.epochs == 2


def test_accumulation_is_one_large_batch(data: Path, tmp_path: Path) -> None:
    """The gradient of 2 x 6 pictures is that of 12, for a model without batch statistics."""
    made = [
        recipe(student={"batch_size": size, "accumulate": n, "epochs": 1, "max_grad_norm": None}).model_dump(
            by_alias=True
        )
        for size, n in ((12, 1), (6, 2))
    ]
    found = []
    for name, fields in zip("ab", made, strict=True):
        fields["student"]["model"] = "test_vit"
        control(data, tmp_path, Recipe.model_validate(fields), name)
        found.append(weights(folders(tmp_path, name)[0]))
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-3, atol=2e-4)


def test_compiled_training_runs(data: Path, tmp_path: Path) -> None:
    fields = recipe(student={"compile": True, "epochs": 1}).model_dump(by_alias=True)
    fields["student"]["model"] = "test_vit"
    found = control(data, tmp_path, Recipe.model_validate(fields))
    assert set(weights(folders(tmp_path)[0])) == set(checkpoints.load(found, folders(tmp_path)[0]).state_dict())


# --- many processes


def test_two_processes_train_what_one_does(
    teacher: tuple[Checkpoint, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over gloo on the CPU; a GPU would be another backend of the same code."""
    made = recipe(student={"epochs": 1, "max_grad_norm": None, "ema": 0.9}).model_dump(by_alias=True)
    made["student"]["model"] = "test_vit"
    one, two = (folders(tmp_path, name) for name in "ab")
    distill(Recipe.model_validate(made), SPLITS_VALUE, data, teacher, one[0], partial=one[1], report=silent)
    monkeypatch.setattr(many, "process_count", lambda settings: 1 if "LOCAL_RANK" in os.environ else 2)
    events: list[ProgressEvent] = []
    found = distill(
        Recipe.model_validate(made), SPLITS_VALUE, data, teacher, two[0], partial=two[1], report=events.append
    )
    assert [event.step for event in events] == [1, 2, 3, 4, 5]
    checkpoints.load(found, two[0])
    for key, value in weights(one[0]).items():
        torch.testing.assert_close(value, weights(two[0])[key], rtol=1e-3, atol=5e-4)


def test_a_refusal_in_a_process_is_the_parent_s(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "process_count", lambda settings: 2)
    with pytest.raises(MissingPackageError, match="fp16 needs a GPU"):
        control(data, tmp_path, recipe(student={"precision": "fp16", "device": "cpu"}))
