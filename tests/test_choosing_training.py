"""What is left of a source after small trainings, EWC of texts, and the check of transfer for every task of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_choosing import pictures
from test_text_training import folders, language, recipe, weights

from distilledge.models.transfer import layer_groups
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.data.prepare import prepare
from distilledge.pipeline.data.text_prepare import prepare_texts
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_strategy import EWC
from distilledge.pipeline.record import Checkpoint, read_texts
from distilledge.pipeline.training.compare import compare
from distilledge.pipeline.training.events import silent
from distilledge.pipeline.training.source_text import Language, language_model, source_fisher
from distilledge.pipeline.training.stage import Stage
from distilledge.pipeline.training.teacher import finetune
from distilledge.pipeline.training.text_start import start

pytestmark = pytest.mark.slow


# --- pictures ---------------------------------------------------------------------------------------------------------


def taught(place: Path, data: Path, **teacher: Any) -> tuple[Checkpoint, Path]:
    """A teacher of a folder of pictures, beside its record, as the store keeps it."""
    prepared, out, partial = (place / name for name in ("store/data", "out", "partial"))
    for made in (prepared, out, partial):
        made.mkdir(parents=True)
    given = {"model": "test_vit", "input": {"size": 32}, **teacher}
    given["training"] = {"batch_size": 8, "device": "cpu", "warmup_epochs": 0, **teacher["training"]}
    own = Recipe.model_validate(
        {"name": "t", "data": {"path": str(data), "workers": 0, "calibration": 8, "min_size": 8}, "teacher": given}
    )
    splits = prepare(own.data, bit_depth=8, seed=0, out=prepared, failed=partial)
    found = finetune(own, splits, prepared, out, partial, silent)
    (out / "value.json").write_text(found.model_dump_json())
    return found, out


def test_what_is_left_of_a_source_of_pictures(tmp_path: Path) -> None:
    source = pictures(tmp_path / "source", {"dark": 16, "middle": 16, "light": 16})
    target = pictures(tmp_path / "target", {"light": 16, "dark": 16}, seed=1)
    _, known = taught(tmp_path / "a", source, training={"epochs": 6, "lr": 3e-3, "select": "last"})

    def after(name: str, strategy: str, **training: Any) -> Any:
        arguments = {"source": str(source), **({"samples": 8} if strategy == "ewc" else {})}
        chosen = {"name": strategy, "arguments": arguments}
        weights = str(known / "model.safetensors")
        made, _ = taught(tmp_path / name, target, weights=weights, strategy=chosen, training={"epochs": 2, **training})
        assert made.source is not None
        return made.source

    still = after("still", "fine-tune", lr=1e-12, batch_norm="frozen")
    assert still.samples == 48
    assert still.before.value > 0.5
    assert still.after == still.before
    assert still.lost.value == 0
    moved = after("moved", "fine-tune", lr=0.1)
    assert moved.before == still.before
    assert moved.lost.value > 10
    assert after("ewc", "ewc", lr=1e-12, batch_norm="frozen").samples == 40  # eight went into the Fisher information


# --- texts ------------------------------------------------------------------------------------------------------------


def test_ewc_of_texts_holds_what_its_language_model_needs(tmp_path: Path) -> None:
    before = {"training": {"epochs": 3, "lr": 3e-3, "batch_size": 16}}
    given = recipe(teacher={"pretraining": before})
    data = tmp_path / "data-0"
    data.mkdir()
    splits = prepare_texts(given.data, task=given.task, seed=0, out=data)
    texts = type("Made", (), {"splits": splits, "directory": data})
    pretrained = language(texts, given, tmp_path)  # type: ignore[arg-type]
    lines = [row.text for _, row in read_texts(data, "train")]
    (tmp_path / "source.txt").write_text("\n".join(str(line) for line in lines))

    def drift(strength: float) -> tuple[float, Checkpoint]:
        """The new weights' distance from the old ones, each squared step weighed by its Fisher information."""
        own = given.model_dump(mode="json", by_alias=True)
        arguments = {"source": str(tmp_path / "source.txt"), "samples": 12, "strength": strength}
        own["teacher"]["strategy"] = {"name": "ewc", "arguments": arguments}
        out, partial = folders(tmp_path, f"s{strength}")
        made = finetune(Recipe.model_validate(own), splits, data, out, partial, silent, pretrained=pretrained)
        was, now = weights(pretrained[1]), weights(out)
        return sum(float((f * (now[n] - was[n]).square()).sum()) for n, f in fisher.items()), made

    stage = Stage("teacher", given, splits, data, *folders(tmp_path, "f"), silent)
    begun = Language(start(stage, given.task, parent=None, pretrained=pretrained), pretrained)
    below = [name for names in layer_groups(begun.started.net)[:-1] for name in names]
    fisher = source_fisher(stage, begun, EWC(source=str(tmp_path / "source.txt"), samples=12), below)
    assert all(float(f.min()) >= 0 for f in fisher.values())
    assert sum(float(f.sum()) for f in fisher.values()) > 0
    (far, loose), (near, tight) = drift(1e-6), drift(1e6)
    assert near < 0.3 * far
    for made in (loose, tight):
        assert made.source is not None
        assert made.source.what == "token accuracy"
        assert made.source.samples > 20
    assert loose.source is not None
    assert tight.source is not None
    assert loose.source.before == tight.source.before
    assert tight.source.lost.value <= loose.source.lost.value


def test_the_language_model_of_a_teacher_has_its_backbone_by_the_same_names(tmp_path: Path) -> None:
    before = {"training": {"epochs": 1, "batch_size": 16}}
    given = recipe(teacher={"pretraining": before})
    data = tmp_path / "data-0"
    data.mkdir()
    splits = prepare_texts(given.data, task=given.task, seed=0, out=data)
    texts = type("Made", (), {"splits": splits, "directory": data})
    pretrained = language(texts, given, tmp_path)  # type: ignore[arg-type]
    out, partial = folders(tmp_path, "s")
    stage = Stage("teacher", given, splits, data, out, partial, silent)
    started = start(stage, given.task, parent=None, pretrained=pretrained)
    net = language_model(stage, Language(started, pretrained))
    theirs = dict(net.named_parameters())
    for names in layer_groups(started.net)[:-1]:
        assert all(torch.equal(theirs[name], dict(started.net.named_parameters())[name]) for name in names)


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("token-classification", "entity_f1"),
        ("question-answering", "exact_match"),
        ("multi-label-classification", "micro_f1"),
        ("text-classification", "macro_f1"),
    ],
)
def test_the_check_of_transfer_is_by_the_metric_of_each_task(task: str, metric: str, tmp_path: Path) -> None:
    """The teacher's value is what its training found on the same texts; against itself nothing is gained."""
    given = recipe(task, teacher={"training": {"epochs": 3}}, metric=metric)
    data = tmp_path / "data-0"
    data.mkdir()
    splits = prepare_texts(given.data, task=given.task, seed=0, out=data)
    out, partial = folders(tmp_path)
    made = finetune(given, splits, data, out, partial, silent)
    pairs = read_texts(data, "validation")
    tested = ([s for s, _ in pairs], data, [row for _, row in pairs])
    found = compare(given, (made, out), (made, out), tested, partial)
    assert found.metric == metric
    assert found.samples == len(pairs)
    assert found.gain.value == 0
    assert found.p_value == 1
    assert found.outcome == "undecided"
    if task != "question-answering":  # there the training compares places, the metric words
        assert found.teacher.value == pytest.approx(made.validation[metric])
    assert json.loads(found.model_dump_json())["metric"] == metric
    assert checkpoints.load(made, out) is not None
