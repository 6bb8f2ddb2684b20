"""Training on texts: every task learns, repeats itself bit by bit, goes on after a kill, and refuses with a reason."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import textwrap
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from launched import TEXTS, forked
from torch import Tensor, nn

from distilledge.models import text
from distilledge.models.errors import IntegrityError, RejectedError, UsageError
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline import failpoints
from distilledge.pipeline.data.text_prepare import prepare_texts
from distilledge.pipeline.interrupt import Interrupted
from distilledge.pipeline.outcomes import validation_metrics
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Splits, read_texts
from distilledge.pipeline.training import many, text_stage, text_start
from distilledge.pipeline.training.distill import distill
from distilledge.pipeline.training.environment import prepare_accelerator
from distilledge.pipeline.training.events import ProgressEvent, silent
from distilledge.pipeline.training.learner import Learner
from distilledge.pipeline.training.pretrain import pretrain
from distilledge.pipeline.training.stage import Stage, Taught
from distilledge.pipeline.training.teacher import finetune
from distilledge.pipeline.training.text_feed import encode, predict

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = ("text-classification", "multi-label-classification", "token-classification", "question-answering")
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SMALLER = TINY | {"hidden_size": 16, "num_hidden_layers": 1}
PLAIN = {"epochs": 2, "batch_size": 16, "lr": 5e-3, "warmup_epochs": 0.5}
LORA = {"rank": 4, "alpha": 8.0}


class Texts(NamedTuple):
    splits: Splits
    directory: Path
    teacher: Taught


def recipe(task: str = TASKS[0], *, teacher: dict | None = None, student: dict | None = None, **rest: Any) -> Recipe:
    """A tiny BERT and a smaller one that shares its tokenizer; ``teacher`` and ``student`` change them."""
    longest = 64 if task == "question-answering" else 32
    own = {"tokenizer": "train", "vocabulary": 250, "max_length": longest, "config": TINY}
    shared = {"tokenizer": "teacher", "max_length": longest, "config": SMALLER}
    parts = {}
    for name, fields, changes in (("teacher", own, teacher or {}), ("student", shared, student or {})):
        changed = {"model": "bert", **{k: v for k, v in changes.items() if k not in ("text", "training")}}
        own_sizes = {"config": {}} if changed["model"] == "teacher" else {}
        changed["text"] = {**fields, **own_sizes, **changes.get("text", {})}
        changed["training"] = {**PLAIN, **changes.get("training", {})}
        parts[name] = changed
    data = {"tickets": {"count": 90, "difficulty": 0.0}, "calibration": 8}
    return Recipe.model_validate({"name": "t", "task": task, "data": data, **parts, **rest})


def folders(tmp_path: Path, name: str = "a") -> tuple[Path, Path]:
    out, partial = tmp_path / f"{name}-out", tmp_path / f"{name}-partial"
    out.mkdir(exist_ok=True)
    partial.mkdir(exist_ok=True)
    return out, partial


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Texts of a task with a teacher that has learned them a little; made once."""

    @cache
    def of(task: str) -> Texts:
        folder = tmp_path_factory.mktemp("texts")
        data = folder / "data-0"
        data.mkdir()
        given = recipe(task, teacher={"training": {"epochs": 5, "select": "last"}})
        splits = prepare_texts(given.data, task=given.task, seed=0, out=data)
        out, partial = folders(folder)
        return Texts(splits, data, (finetune(given, splits, data, out, partial, silent), out))

    return of


@pytest.fixture
def tickets(made: Any) -> Texts:
    found: Texts = made(TASKS[0])
    return found


def teach(texts: Texts, given: Recipe, tmp_path: Path, name: str = "a", **rest: Any) -> Taught:
    out, partial = folders(tmp_path, name)
    rest = {"parent": texts.teacher, "report": silent, **rest}
    taught_by = rest.pop("taught_by", texts.teacher)
    return distill(given, texts.splits, texts.directory, taught_by, out, partial=partial, **rest), out


def language(
    texts: Texts, given: Recipe, tmp_path: Path, role: str = "teacher", name: str = "l", **rest: Any
) -> Taught:
    out, partial = folders(tmp_path, name)
    rest = {"report": silent, **rest}
    taught_by = rest.pop("taught_by", None)
    found = pretrain(given, texts.splits, texts.directory, role, taught_by, out, partial=partial, **rest)
    return found, out


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(out / "model.safetensors")


def stage(texts: Texts, given: Recipe, tmp_path: Path, role: str = "student", **rest: Any) -> Stage:
    out, partial = folders(tmp_path, f"stage-{role}")
    return Stage(role, given, texts.splits, texts.directory, out, partial, silent, **rest)  # type: ignore[arg-type]


def judged(trained: Taught, texts: Texts) -> dict[str, float]:
    """Validation anew, of the model as it is read back."""
    checkpoint, out = trained
    model, encoder = checkpoints.load(checkpoint, out), checkpoints.encoder(checkpoint, out)
    held = encode(read_texts(texts.directory, "validation"), encoder, checkpoint.task, len(checkpoint.classes))
    accelerator = prepare_accelerator(recipe().teacher.training, out)
    logits = predict(model, nn.Identity(), held.ids, encoder.spec.pad_id, accelerator, lambda: None)
    return validation_metrics(checkpoint.task, logits, held.targets, checkpoint.classes)


# --- it learns


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_teaches_its_student(task: str, made: Any, tmp_path: Path) -> None:
    texts: Texts = made(task)
    student = teach(texts, recipe(task, student={"training": {"epochs": 3, "select": "last"}}), tmp_path)
    for role, (found, out) in (("teacher", texts.teacher), ("student", student)):
        curve = rows(out)
        assert np.isfinite([row["train_loss"] for row in curve]).all()
        assert curve[-1]["train_loss"] < 0.95 * curve[0]["train_loss"], role
        assert (found.role, found.task, found.classes) == (role, task, texts.splits.classes)
        json.dumps(found.architecture)
        assert found.architecture["config"]["model_type"] == "bert"
        assert found.input_spec["kind"] == "text"
        assert found.input_spec["tokenizer_sha256"] == hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()
        again = judged((found, out), texts)
        assert again == pytest.approx(found.validation, abs=1e-5), "the file is not the model that was validated"
    assert student[0].parameters < texts.teacher[0].parameters
    assert (student[1] / "tokenizer.json").read_bytes() == (texts.teacher[1] / "tokenizer.json").read_bytes()


def test_another_tokenizer_is_refused(tickets: Texts, tmp_path: Path) -> None:
    found, out = tickets.teacher
    other = (out / "tokenizer.json").read_text().replace("[MASK]", "[MASC]")
    (tmp_path / "tokenizer.json").write_text(other)
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(IntegrityError, match="E7603") as refused:
            checkpoints.encoder(found, place)
        assert refused.value.exit_code == 7


def test_a_text_task_without_validation_is_refused(tickets: Texts, tmp_path: Path) -> None:
    few = tmp_path / "data"
    shutil.copytree(tickets.directory, few)
    lines = (few / "samples.jsonl").read_text().replace('"validation"', '"test"')
    (few / "samples.jsonl").write_text(lines)
    with pytest.raises(RejectedError, match="E3603"):
        teach(tickets._replace(directory=few), recipe(), tmp_path)


# --- the same bits again


AUGMENTED = {"augment_text": {"copies": 1, "replace": 0.3, "mask": 0.2}, "losses": [{"name": "kl"}, {"name": "hidden"}]}
EVERY_TWO = {"training": {"checkpoint_every": 2, "epochs": 2}}
LANGUAGE = {"training": {"epochs": 2, "batch_size": 16, "lr": 3e-3, "checkpoint_every": 2, "select": "last"}}
STAGES = ("teacher", "pretraining", "student")


def train_stage(kind: str, texts: Texts, tmp_path: Path, name: str, report: Any = silent) -> Path:
    """One of the three trainings, resumable; returns where its weights lie."""
    out, partial = folders(tmp_path, name)
    given = recipe(
        teacher={**EVERY_TWO, "pretraining": LANGUAGE, "text": {"config": TINY | {"hidden_dropout_prob": 0.1}}},
        student=EVERY_TWO,
        distill=AUGMENTED,
    )
    if kind == "teacher":
        finetune(given, texts.splits, texts.directory, out, partial, report)
    elif kind == "pretraining":
        pretrain(given, texts.splits, texts.directory, "teacher", None, out, partial=partial, report=report)
    else:
        model = language(texts, given, tmp_path, name="language")
        teach(texts, given, tmp_path, name, language=model, report=report)
    return out / "model.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_broken_off_and_resumed_gives_the_same_bits(
    kind: str, tickets: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first epoch behind a saved state, and in the last; dropout is on, and random numbers lie elsewhere."""
    whole = train_stage(kind, tickets, tmp_path, "whole")
    for number, hit in enumerate((3, 4)):
        failpoints._hits.clear()
        torch.manual_seed(number)
        monkeypatch.setenv(failpoints.VARIABLE, f"train.step@{hit}:raise")
        with pytest.raises(failpoints.FailpointError):
            train_stage(kind, tickets, tmp_path, "broken")
    monkeypatch.delenv(failpoints.VARIABLE)
    events: list[ProgressEvent] = []
    again = train_stage(kind, tickets, tmp_path, "broken", events.append)
    assert (events[0].epoch, events[0].step) != (1, 1), "it started again"
    assert again.read_bytes() == whole.read_bytes()


KILLED = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import torch
    from distilledge.pipeline.recipe import Recipe
    from distilledge.pipeline.record import Splits
    from distilledge.pipeline.training.teacher import finetune

    torch.set_num_threads(1)
    recipe, splits, data, out, partial = sys.argv[1:6]
    finetune(
        Recipe.model_validate_json(recipe), Splits.model_validate_json(splits), Path(data), Path(out), Path(partial),
        lambda event: print(f"{event.epoch}.{event.step}", flush=True),
    )
    """
)


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bits(tickets: Texts, tmp_path: Path) -> None:
    """A real kill -9, in processes of their own."""
    given = recipe(teacher=EVERY_TWO)

    def run(name: str, failpoint: str = "") -> tuple[int, list[str]]:
        out, partial = folders(tmp_path, name)
        fields = [given.model_dump_json(by_alias=True), tickets.splits.model_dump_json(), tickets.directory]
        arguments = map(str, (*fields, out, partial))
        done = forked(KILLED, *arguments, cwd=tmp_path, imports=TEXTS, DISTILLEDGE_FAILPOINT=failpoint)
        return done.returncode, done.stdout.split()

    whole, partial = folders(tmp_path, "whole")  # here, under another hash seed
    finetune(given, tickets.splits, tickets.directory, whole, partial, silent)
    assert run("killed", "train.step@3:kill")[0] == -signal.SIGKILL
    code, steps = run("killed")
    assert code == 0
    assert "1.1" not in steps
    states = [(folders(tmp_path, n)[0] / "model.safetensors").read_bytes() for n in ("whole", "killed")]
    assert states[0] == states[1]


def test_one_signal_saves_and_stops(tickets: Texts, tmp_path: Path) -> None:
    def interrupt(event: ProgressEvent) -> None:
        if (event.epoch, event.step) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        teach(tickets, recipe(), tmp_path, report=interrupt)
    assert stopped.value.exit_code == 143
    events: list[ProgressEvent] = []
    resumed, _ = teach(tickets, recipe(), tmp_path, report=events.append)
    assert (events[0].epoch, events[0].step) == (1, 3)
    assert resumed.weights_sha256 == teach(tickets, recipe(), tmp_path, "b")[0].weights_sha256


@pytest.mark.parametrize("part", ["network", "adapters", "projections"])
def test_every_start_is_drawn_from_the_seed(part: str, tickets: Texts, tmp_path: Path) -> None:
    """Whatever was drawn before: student and control start equal, and a teacher from the store changes nothing."""
    lora = {"text": {"lora": LORA}} if part == "adapters" else {}
    given = recipe(student=lora, distill={"losses": [{"name": "hidden"}]})
    found = []
    for role in ("student", "control"):
        torch.manual_seed(len(found) + 5)
        here = stage(tickets, given, tmp_path, role)
        started = text_start.start(here, given.task, parent=tickets.teacher, pretrained=None)
        model, _ = text_stage.adapted(here, started)
        state = model.state_dict()
        if part == "projections":
            losses = given.distill.losses
            guided = text_stage.taught(here, model, text_start.loaded(tickets.teacher), losses, None)
            state = guided.loss.state_dict()
        found.append(state)
    assert len(found[0]) > 0
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    if part == "adapters":
        assert any("lora_A" in name and value.abs().sum() > 0 for name, value in found[0].items())


@pytest.mark.slow
def test_two_processes_train_what_one_does(tickets: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over gloo on the CPU, dropout off: processes draw their own."""
    plain = {"epochs": 1, "max_grad_norm": None, "optimizer": "sgd", "lr": 0.05}
    still = SMALLER | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    given = recipe(student={"text": {"config": still}, "training": plain})
    teach(tickets, given, tmp_path, "a")
    monkeypatch.setattr(many, "process_count", lambda settings: 1 if "LOCAL_RANK" in os.environ else 2)
    found = teach(tickets, given, tmp_path, "b")
    checkpoints.load(*found)
    for key, value in weights(folders(tmp_path, "a")[0]).items():
        torch.testing.assert_close(value, weights(found[1])[key], rtol=1e-4, atol=1e-5)


# --- the teacher's side


@pytest.mark.parametrize("task", TASKS[:2])
def test_asked_once_is_asked_at_each_step(
    task: str, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: Texts = made(task)
    given = recipe(task)
    once = weights(teach(texts, given, tmp_path, "once")[1])
    asked: list[int] = []
    inner = text_stage.taught

    def counted(*arguments: Any, **named: Any) -> Any:
        guided = inner(*arguments, **named)
        guided.guide.model.register_forward_hook(lambda *_: asked.append(1))
        return guided

    monkeypatch.setattr(text_stage, "asked_once", lambda *_: False)
    monkeypatch.setattr(text_stage, "taught", counted)
    each = weights(teach(texts, given, tmp_path, "each")[1])
    assert len(asked) > 5
    for name, value in once.items():
        torch.testing.assert_close(value, each[name], rtol=0, atol=1e-6)


def test_the_teacher_matters(tickets: Texts, tmp_path: Path) -> None:
    student = teach(tickets, recipe(), tmp_path, "student")
    control = teach(tickets, recipe(), tmp_path, "control", taught_by=None)
    assert (student[0].role, control[0].role) == ("student", "control")
    assert student[0].weights_sha256 != control[0].weights_sha256


def test_a_student_with_its_own_tokenizer(tickets: Texts, tmp_path: Path) -> None:
    """It is given the same texts by its own tokens; the teacher by those of its own."""
    own = {"text": {"tokenizer": "train", "vocabulary": 120, "max_length": 40}}
    given = recipe(student=own, distill={"hard_weight": 0.0})
    found, out = teach(tickets, given, tmp_path)
    assert found.input_spec["tokenizer_sha256"] != tickets.teacher[0].input_spec["tokenizer_sha256"]
    here = stage(tickets, given, tmp_path)
    started = text_start.start(here, given.task, parent=None, pretrained=None)
    pairs = read_texts(tickets.directory, "train")
    feed = text_stage.make_feed(here, started, pairs, tickets.teacher)
    assert feed.guide_ids is not None
    theirs = checkpoints.encoder(*tickets.teacher)
    for (_, row), ids in zip(pairs, feed.guide_ids, strict=True):
        assert np.array_equal(ids, theirs.encode({"text": row.text}))
    assert rows(out)[-1]["train_loss"] < rows(out)[0]["train_loss"]


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("token-classification", {}, "token-classification: teacher and student must cut texts"),
        ("question-answering", {}, "question-answering: teacher and student must cut texts"),
        ("text-classification", {"losses": [{"name": "hidden"}]}, "hidden: teacher and student must cut texts"),
    ],
)
def test_tokens_are_compared_only_with_the_same(
    task: str, changes: dict, words: str, made: Any, tmp_path: Path
) -> None:
    own = {"text": {"tokenizer": "train", "vocabulary": 120}}
    with pytest.raises(UsageError, match=f"E2623.*{words}") as refused:
        teach(made(task), recipe(task, student=own, distill=changes), tmp_path)
    assert (refused.value.exit_code, "max_length" in refused.value.hint) == (2, True)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "copies without a common tokenizer": (
        "E2626",
        {"student": {"text": {"tokenizer": "train", "vocabulary": 120}}, "distill": {"augment_text": {}}},
    ),
    "copies cut otherwise": ("E2626", {"student": {"text": {"max_length": 20}}, "distill": {"augment_text": {}}}),
    "larger than its teacher": ("E2628", {"student": {"text": {"config": TINY | {"hidden_size": 64}}}}),
    "more positions than there are": ("E2434", {"student": {"model": "teacher", "text": {"max_length": 100}}}),
    "a layer that is not there": ("E2436", {"student": {"model": "teacher", "text": {"layers": [0, 7]}}}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_hint(case: str, tickets: Texts, tmp_path: Path) -> None:
    code, changes = REFUSED[case]
    with pytest.raises(UsageError, match=code) as refused:
        teach(tickets, recipe(**changes), tmp_path)
    assert (refused.value.code, refused.value.exit_code) == (code, 2)
    assert refused.value.hint


def test_a_control_has_no_teacher_to_take_a_tokenizer_from(tickets: Texts, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E2622") as refused:
        teach(tickets, recipe(), tmp_path, taught_by=None, parent=None)
    assert refused.value.hint


def test_texts_without_labels_teach(tickets: Texts, tmp_path: Path) -> None:
    """And changed copies of all of them; the control sees neither."""
    more = Path(shutil.copytree(tickets.directory, tmp_path / "more"))
    samples, lines = ((more / name).read_text().splitlines() for name in ("samples.jsonl", "texts.jsonl"))
    for number in range(10):
        fields = json.loads(samples[number])
        samples.append(json.dumps({**fields, "label": -1, "split": "unlabelled", "path": f"more.csv:{number}"}))
        lines.append(lines[number].replace("the", "a"))
    (more / "samples.jsonl").write_text("\n".join(samples) + "\n")
    (more / "texts.jsonl").write_text("\n".join(lines) + "\n")
    learned = len(read_texts(tickets.directory, "train"))
    once = {"training": {"epochs": 1, "batch_size": 8, "class_weights": "balanced", "sampling": "balanced"}}
    for name, given, count in (
        ("plain", {}, learned + 10),
        ("copies", {"augment_text": {"copies": 2}}, 3 * (learned + 10)),
        ("control", {}, learned),
    ):
        events: list[ProgressEvent] = []
        taught_by = None if name == "control" else tickets.teacher
        texts = tickets._replace(directory=more)
        teach(texts, recipe(student=once, distill=given), tmp_path, name, report=events.append, taught_by=taught_by)
        assert events[-1].steps == -(-count // 8), name


# --- what a student starts from


def test_trimmed_rows_are_special_tokens_and_the_most_frequent(tickets: Texts, tmp_path: Path) -> None:
    given = recipe(student={"model": "teacher", "text": {"layers": [1], "vocabulary": 60}})
    here = stage(tickets, given, tmp_path)
    started = text_start.start(here, given.task, parent=tickets.teacher, pretrained=None)
    kept = started.net.vocabulary
    assert kept is not None
    assert len(kept) == 60
    assert started.net.word_embeddings.weight.shape[0] == 60
    special = {started.special.pad, started.special.unknown, *started.special.others}
    assert special <= set(kept)
    counts = np.zeros(started.net.architecture["config"]["vocab_size"], np.int64)
    for _, row in read_texts(tickets.directory, "train"):
        np.add.at(counts, started.encoder.encode({"text": row.text}), 1)
    words = [i for i in kept if i not in special]
    others = [i for i in range(len(counts)) if i not in kept]
    assert min(counts[words]) >= max(counts[others])
    teacher = text_start.loaded(tickets.teacher)
    assert torch.equal(started.net.word_embeddings.weight, teacher.word_embeddings.weight[kept])
    assert torch.equal(
        started.net.state_dict()["backbone.encoder.layer.0.attention.self.query.weight"],
        teacher.state_dict()["backbone.encoder.layer.1.attention.self.query.weight"],
    )
    found, out = teach(tickets, given, tmp_path)
    assert found.architecture["vocabulary"] == kept
    assert judged((found, out), tickets) == pytest.approx(found.validation, abs=1e-5)


def test_the_teacher_s_head_is_kept_unless_it_would_see_another_state(tickets: Texts, tmp_path: Path) -> None:
    theirs = text_start.loaded(tickets.teacher)
    for pooling, same in (("auto", True), ("mean", True), ("first", False)):
        given = recipe(student={"model": "teacher", "text": {"pooling": pooling, "config": {}}})
        net = text_start.start(stage(tickets, given, tmp_path), given.task, parent=tickets.teacher, pretrained=None).net
        assert net.pooling == ("first" if pooling == "first" else "mean")
        assert torch.equal(net.state_dict()["head.1.weight"], theirs.state_dict()["head.1.weight"]) == same


def test_narrow_embeddings_are_the_teacher_s_principal_components(tickets: Texts, tmp_path: Path) -> None:
    teacher = text_start.loaded(tickets.teacher)
    given = recipe()
    started = text_start.start(stage(tickets, given, tmp_path), given.task, parent=tickets.teacher, pretrained=None)
    made = started.net.word_embeddings.weight.detach().numpy().astype(np.float64)
    wide = teacher.word_embeddings.weight.detach().numpy().astype(np.float64)
    left, sizes, _ = np.linalg.svd(wide - wide.mean(0), full_matrices=False)
    expected = left[:, :16] * sizes[:16]
    gram = [(x @ x.T) / np.square(x).sum() for x in (made, expected)]  # signs of axes do not count
    np.testing.assert_allclose(gram[0], gram[1], atol=1e-5)
    cosine = [
        unit @ unit.T for unit in (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (made, wide - wide.mean(0)))
    ]
    above = np.triu_indices(len(made), 1)
    assert np.corrcoef(cosine[0][above], cosine[1][above])[0, 1] > 0.4
    later = np.triu_indices(len(made) - 1, 1)
    plain = text.from_config(
        "bert", SMALLER, task=given.task, classes=3, vocabulary_size=len(wide), max_length=32, pad_id=0
    )
    other = plain.word_embeddings.weight.detach().numpy()[1:]  # the padding's is zero
    other = other / np.linalg.norm(other, axis=1, keepdims=True)
    assert abs(np.corrcoef((other @ other.T)[later], cosine[1][1:, 1:][later])[0, 1]) < 0.1
    assert made.std() == pytest.approx(0.02, rel=0.2)  # as large as BERT draws them


def test_wider_students_are_left_as_they_are(tickets: Texts) -> None:
    teacher = text_start.loaded(tickets.teacher)
    rows_of = len(teacher.word_embeddings.weight)
    wide = text.from_config(
        "bert", TINY | {"hidden_size": 64}, task="text-classification", classes=3, vocabulary_size=rows_of,
        max_length=32, pad_id=0,
    )  # fmt: skip
    before = wide.word_embeddings.weight.clone()
    text.narrow_embeddings(wide, teacher)
    assert torch.equal(wide.word_embeddings.weight, before)


# --- options


def test_balanced_classes(tickets: Texts, tmp_path: Path) -> None:
    labels = [s.label for s, _ in read_texts(tickets.directory, "train")]
    count = np.bincount(labels, minlength=len(tickets.splits.classes))
    given = recipe(student={"training": {"class_weights": "balanced", "sampling": "balanced", "batch_size": 8}})
    here = stage(tickets, given, tmp_path)
    found = text_stage.class_weights(here, [*labels, -1])
    np.testing.assert_allclose(found, len(labels) / (len(count) * count), rtol=1e-6)
    assert text_stage.class_weights(stage(tickets, recipe(), tmp_path), labels) is None
    started = text_start.start(here, given.task, parent=tickets.teacher, pretrained=None)
    feed = text_stage.make_feed(here, started, read_texts(tickets.directory, "train"))
    steps = feed.steps(here.settings, 0, prepare_accelerator(here.settings, here.partial))
    drawn = np.bincount(feed.labels[steps.order(0).ravel()[: len(labels)]], minlength=len(count))
    assert drawn.max() - drawn.min() <= 8
    assert np.isfinite(teach(tickets, given, tmp_path)[0].validation["loss"])


def lora_teacher(texts: Texts, tmp_path: Path, **training: Any) -> Taught:
    given = recipe(teacher={"text": {"lora": LORA}, "training": {"epochs": 2, "lr": 1e-2, **training}})
    out, partial = folders(tmp_path, f"lora{len(training)}")
    return finetune(given, texts.splits, texts.directory, out, partial, silent), out


def test_lora_changes_projections_and_head_alone(tickets: Texts, tmp_path: Path) -> None:
    """The file holds no adapter: it is read as any other, and does what was validated."""
    found, out = lora_teacher(tickets, tmp_path)
    given = recipe()
    start = text_start.start(stage(tickets, given, tmp_path, "teacher"), given.task, parent=None, pretrained=None)
    before, after = start.net.state_dict(), weights(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    kinds = {"query.weight", "key.weight", "value.weight", "head.1.weight", "head.1.bias"}
    assert changed
    assert all(name.endswith(tuple(kinds)) for name in changed), changed
    assert {kind for kind in kinds if any(name.endswith(kind) for name in changed)} == kinds
    assert judged((found, out), tickets) == pytest.approx(found.validation, abs=1e-4)
    assert found.parameters == tickets.teacher[0].parameters


def test_lora_repeats_itself_and_keeps_its_average(tickets: Texts, tmp_path: Path) -> None:
    first = lora_teacher(tickets, tmp_path, ema=0.8)
    torch.rand(7)
    (tmp_path / "again").mkdir()
    second = lora_teacher(tickets, tmp_path / "again", ema=0.8)
    assert first[0].weights_sha256 == second[0].weights_sha256


def test_a_student_with_adapters(tickets: Texts, tmp_path: Path) -> None:
    """``student.text.lora`` is not passed over in silence."""
    given = recipe(student={"model": "teacher", "text": {"lora": LORA}}, distill={"losses": [{"name": "hidden"}]})
    found, out = teach(tickets, given, tmp_path)
    theirs, own = weights(tickets.teacher[1]), weights(out)
    assert own.keys() <= theirs.keys()
    name = "backbone.encoder.layer.0.attention.output.dense.weight"
    assert torch.equal(own[name], theirs[name])
    assert judged((found, out), tickets) == pytest.approx(found.validation, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9},
        {"label_smoothing": 0.1},
        {"layer_decay": 0.7},
        {"accumulate": 2},
        {"freeze_backbone": True},
        {"on_nan": "skip"},
        {"precision": "auto"},
        {"optimizer": "sgd", "lr": 0.01},
    ],
    ids=",".join,
)
def test_every_option_trains(changes: dict, tickets: Texts, tmp_path: Path) -> None:
    found, out = teach(tickets, recipe(student={"training": {"epochs": 1, **changes}}), tmp_path)
    assert np.isfinite(rows(out)[0]["train_loss"])
    checkpoints.load(found, out)


@pytest.mark.parametrize(
    "loss", ["kl", "kl_standardised", "dkd", "dist", "hidden", "hidden_cosine", "embeddings", "attention_scores",
             "attention_relation", "value_relation"]
)  # fmt: skip
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.slow
def test_every_loss_trains_every_task(loss: str, task: str, made: Any, tmp_path: Path) -> None:
    given = recipe(task, student={"training": {"epochs": 1}}, distill={"losses": [{"name": loss}], "hard_weight": 0.1})
    found, out = teach(made(task), given, tmp_path)
    assert np.isfinite(rows(out)[0]["train_loss"])
    assert set(weights(out)) == set(checkpoints.load(found, out).state_dict()), "no projection is kept"


# --- language models


SENTENCES = ("the pump in hall two leaks oil", "the fan on line nine makes noise", "the belt at gate one came loose")


def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(SENTENCES * 50) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "objective"), [("bert", "mlm"), ("gpt2", "causal")])
def test_a_language_model_learns_its_corpus(kind: str, objective: str, tickets: Texts, tmp_path: Path) -> None:
    """``auto`` picks what the architecture is made for."""
    training = {"epochs": 20, "batch_size": 16, "lr": 5e-3, "select": "last"}
    before = {"corpus": str(corpus(tmp_path)), "training": training}
    given = recipe(teacher={"model": kind, "pretraining": before})
    found, out = language(tickets, given, tmp_path)
    curve = rows(out)
    task = "causal-language-modelling" if objective == "causal" else "masked-language-modelling"
    assert found.architecture["task"] == task
    assert curve[-1]["accuracy"] > max(0.6, curve[0]["accuracy"])
    assert curve[-1]["loss"] < 0.4 * curve[0]["loss"]
    tuned, partial = folders(tmp_path, "tuned")
    teacher = finetune(given, tickets.splits, tickets.directory, tuned, partial, silent, pretrained=(found, out))
    assert teacher.architecture["task"] == "text-classification"
    assert judged((teacher, tuned), tickets) == pytest.approx(teacher.validation, abs=1e-5)


def test_a_corpus_is_not_the_tested_texts(tickets: Texts, tmp_path: Path) -> None:
    from distilledge.pipeline.training.pretrain import corpus as texts_of

    given = recipe(teacher={"pretraining": {}})
    found = texts_of(stage(tickets, given, tmp_path, "teacher", pretraining=True))
    assert sorted(found) == sorted(str(row.text) for _, row in read_texts(tickets.directory, "train"))


def test_general_distillation_of_a_trimmed_student(tickets: Texts, tmp_path: Path) -> None:
    """kl over the words that both have, and the cosine of states; then the task."""
    before = {"training": {"epochs": 2, "batch_size": 16, "lr": 5e-3, "select": "last"}}
    losses = [{"name": "kl"}, {"name": "hidden_cosine"}]
    given = recipe(
        teacher={"pretraining": before},
        student={"pretraining": {**before, "losses": losses}, "text": {"vocabulary": 60, "tokenizer": "teacher"}},
    )
    theirs = language(tickets, given, tmp_path)
    ours = language(tickets, given, tmp_path, "student", "s", taught_by=theirs, parent=theirs)
    kept = ours[0].architecture["vocabulary"]
    assert len(kept) == 60
    assert rows(ours[1])[-1]["train_loss"] < rows(ours[1])[0]["train_loss"]
    assert weights(ours[1])["head.bias"].shape == (60,)
    alone = language(tickets, given, tmp_path, "student", "alone", parent=theirs)
    assert alone[0].weights_sha256 != ours[0].weights_sha256
    student, out = teach(tickets, given, tmp_path, pretrained=ours)
    assert student.architecture["vocabulary"] == kept
    assert np.isfinite(rows(out)[-1]["train_loss"])


def test_columns_of_a_trimmed_student_are_the_teacher_s_words() -> None:
    from distilledge.pipeline.training.pretrain import _columns

    made = text.from_config(
        "bert", SMALLER, task="masked-language-modelling", classes=2, vocabulary_size=30, max_length=8, pad_id=0
    )
    trimmed = text.trim(made, [0, 1, 2, 9, 17], 1)
    found = _columns(trimmed, made)
    assert found is not None
    assert found.tolist() == [0, 1, 2, 9, 17]
    assert _columns(made, made) is None
    again = text.trim(made, [0, 1, 9], 1)
    twice = _columns(again, trimmed)
    assert twice is not None
    assert twice.tolist() == [0, 1, 3]


def test_a_student_of_the_teacher_s_layers_is_pretrained_too(tickets: Texts, tmp_path: Path) -> None:
    """Also where the teacher has no language model: it gets a head of its own."""
    before = {"training": {"epochs": 1, "batch_size": 16}}
    given = recipe(student={"model": "teacher", "pretraining": before})
    found, out = language(tickets, given, tmp_path, "student", parent=tickets.teacher)
    assert found.architecture["task"] == "masked-language-modelling"
    student, _ = teach(tickets, given, tmp_path, pretrained=(found, out))
    assert student.architecture["task"] == "text-classification"


def test_a_student_sliced_out_of_the_teacher(tickets: Texts, tmp_path: Path) -> None:
    """Its states are those of the teacher along fewer directions; what the device gets is an ordinary network."""
    text_of = {"layers": [1], "config": {"hidden_size": 16}, "vocabulary": 60}
    given = recipe(student={"model": "teacher", "text": text_of})
    here = stage(tickets, given, tmp_path)
    first, again = (
        text_start.start(here, given.task, parent=tickets.teacher, pretrained=None).net.state_dict() for _ in range(2)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    found, out = teach(tickets, given, tmp_path)
    config = found.architecture["config"]
    assert (config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]) == (16, 1, 1)
    assert weights(out)["backbone.embeddings.word_embeddings.weight"].shape == (60, 16)
    assert judged((found, out), tickets) == pytest.approx(found.validation, abs=1e-4)


LANGUAGE_REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "another objective": ("E2624", {"objective": "causal", "losses": [{"name": "kl"}]}),
    "other tokens": ("E2623", {"losses": [{"name": "kl"}]}),
}


@pytest.mark.parametrize("case", LANGUAGE_REFUSED)
def test_language_models_that_cannot_be_compared(case: str, tickets: Texts, tmp_path: Path) -> None:
    code, fields = LANGUAGE_REFUSED[case]
    training = {"training": {"epochs": 1, "batch_size": 32}}
    own = {"text": {"tokenizer": "train", "vocabulary": 100}} if case == "other tokens" else {}
    given = recipe(teacher={"pretraining": training}, student={"pretraining": {**training, **fields}, **own})
    theirs = language(tickets, given, tmp_path)
    with pytest.raises(UsageError, match=code) as refused:
        language(tickets, given, tmp_path, "student", "s", taught_by=theirs, parent=theirs)
    assert refused.value.hint


def test_masking_needs_a_mask(tickets: Texts, tmp_path: Path) -> None:
    found = json.loads((tickets.teacher[1] / "tokenizer.json").read_text())
    found["added_tokens"] = [t for t in found["added_tokens"] if t["content"] != "[MASK]"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(found))
    given = recipe(teacher={"text": {"tokenizer": str(path)}, "pretraining": {}})
    with pytest.raises(UsageError, match="E2625") as refused:
        language(tickets, given, tmp_path)
    assert "causal" in refused.value.hint


@pytest.mark.parametrize(
    ("kind", "key"), [("teacher", "teacher"), ("pretraining", "teacher.pretraining"), ("student", "student")]
)
def test_a_loss_that_is_not_finite_names_texts_and_setting(
    kind: str, key: str, tickets: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Learner._accumulate

    def accumulate(self: Learner, batch: Any, seed: int) -> float:
        return inner(self, batch, seed) * (np.nan if armed else 1.0)

    armed: list[int] = []
    train_stage("student", tickets, tmp_path, "language made")
    armed.append(1)
    monkeypatch.setattr(Learner, "_accumulate", accumulate)
    with pytest.raises(RejectedError, match="E3605") as stopped:
        train_stage(kind, tickets, tmp_path, "stopped")
    where = r"text \d+ of the corpus" if kind == "pretraining" else r"tickets:\d+"
    assert re.search(where, stopped.value.what)
    assert f"lower {key}.training.lr" in stopped.value.hint


def test_every_refusal_has_its_own_number() -> None:
    """Codes of this folder are not given twice."""
    folder = Path(text_stage.__file__).parent
    seen: dict[str, set[str]] = {}
    for path in folder.glob("*.py"):
        for code in re.findall(r'"(E\d6\d\d)"', path.read_text()):
            seen.setdefault(code, set()).add(path.name)
    shared = {  # the same refusal, of the task and before it, of texts and of pictures
        "E2623": {"text_stage.py", "pretrain.py"},
        "E3603": {"text_stage.py", "picture_stage.py"},
    }
    assert {code: names for code, names in seen.items() if len(names) > 1} == shared
