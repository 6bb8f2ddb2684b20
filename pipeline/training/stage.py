"""One trained model from a recipe's part: pictures found and cached, the loop run, the result written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distilledge.models import vision
from distilledge.models.errors import RejectedError
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.recipe import Recipe, Student, Teacher, Training
from distilledge.pipeline.record import Checkpoint, Role, Sample, Splits, data_root, read_samples
from distilledge.pipeline.training.counters import Purpose, torch_seed
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.loop import Feed, Plan, Trained, curves, train
from distilledge.pipeline.training.objective import Objective, balanced_weights
from distilledge.pipeline.training.pictures import FromFiles, Pictures, cache_key, cached
from distilledge.pipeline.training.views import ViewRule, Views
from distilledge.targets.ondevice.preprocess import InputSpec


@dataclass(frozen=True)
class Stage:
    """The surroundings of one training. ``out`` receives the result, ``partial`` what a killed one goes on from."""

    role: Role
    recipe: Recipe
    splits: Splits
    data_dir: Path
    out: Path
    partial: Path
    report: Report

    @property
    def part(self) -> Teacher | Student:
        return self.recipe.teacher if self.role == "teacher" else self.recipe.student

    @property
    def settings(self) -> Training:
        return self.part.training

    @property
    def spec(self) -> InputSpec:
        """The model's own input."""
        return checkpoints.input_spec(self.part.input, self.recipe.data, vision.input_defaults(self.part.model))

    @property
    def train_samples(self) -> list[Sample]:
        return read_samples(self.data_dir, "train")


def new_model(stage: Stage) -> nn.Module:
    """The model with the weights it starts from. Draws depend on the seed alone: student and control start equal."""
    part = stage.part
    before = torch.get_rng_state()
    torch.manual_seed(torch_seed(Purpose.WEIGHTS, stage.recipe.seed))
    weights = part.weights if part.weights in ("hub", "none") else expand(part.weights)
    model = vision.create(
        part.model,
        classes=len(stage.splits.classes),
        weights=weights,
        size=part.input.size,
        trust_pickle=part.trust_pickle,
    )
    torch.set_rng_state(before)
    return model


def class_weights(stage: Stage, samples: Sequence[Sample]) -> list[float] | None:
    if stage.settings.class_weights == "none":
        return None
    return balanced_weights(torch.tensor([s.label for s in samples]), len(stage.splits.classes))


def make_feed(stage: Stage, samples: list[Sample], view_size: int) -> Feed:
    """``samples``: those learned from. Raises ``RejectedError`` where there is nothing to validate on."""
    validation = read_samples(stage.data_dir, "validation")
    if not validation:
        raise RejectedError("E3603", "no validation pictures", "set `data.splits.validation` above 0")
    view_spec = replace(stage.spec, height=view_size, width=view_size)
    rule = ViewRule(view_spec, stage.settings.augment, stage.recipe.seed)
    return Feed(
        views=Views(_pictures(stage, samples, view_spec, fitted=False), rule),
        labels=np.array([s.label for s in samples], np.int64),
        names=tuple(s.path for s in samples),
        validation=_pictures(stage, validation, stage.spec, fitted=True),
        validation_labels=np.array([s.label for s in validation], np.int64),
        classes=len(stage.splits.classes),
        workers=stage.recipe.data.workers,
    )


def _pictures(stage: Stage, samples: list[Sample], spec: InputSpec, *, fitted: bool) -> Pictures:
    files = FromFiles(samples, data_root(stage.splits, stage.data_dir), spec, fitted=fitted)
    if not stage.recipe.data.cache:
        return files
    key = cache_key(samples, spec, fitted=fitted)
    return cached(files, key, stage.data_dir.parent / ".pictures", workers=stage.recipe.data.workers)


def run_stage(stage: Stage, objective: Objective, samples: list[Sample], view_size: int) -> Checkpoint:
    """Train, write ``model.safetensors`` and ``curves.jsonl`` into ``stage.out``."""
    feed = make_feed(stage, samples, view_size)
    plan = Plan(
        stage=stage.role,
        settings=stage.settings,
        seed=stage.recipe.seed,
        metric=stage.recipe.metric,
        identity=_identity(stage, view_size, len(samples)),
    )
    return _write(stage, objective.model, train(objective, feed, plan, partial=stage.partial, report=stage.report))


def _identity(stage: Stage, view_size: int, pictures: int) -> str:
    parts = {
        "part": stage.part.model_dump(mode="json"),
        "seed": stage.recipe.seed,
        "data": stage.splits.data_hash,
        "view_size": view_size,
        "pictures": pictures,
        "distill": stage.recipe.distill.model_dump(mode="json") if stage.role == "student" else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(stage: Stage, model: nn.Module, trained: Trained) -> Checkpoint:
    digest = checkpoints.save_weights(trained.state, stage.out)
    (stage.out / "curves.jsonl").write_text(curves(trained.rows), encoding="utf-8")
    size = vision.profile(model, stage.spec.height)
    kept = trained.rows[trained.best_epoch]
    return Checkpoint(
        role=stage.role,
        model=stage.part.model,
        classes=stage.splits.classes,
        input_spec=stage.spec.to_dict(),
        weights_sha256=digest,
        parameters=size.parameters,
        macs=size.macs,
        validation={name: kept[name] for name in ("accuracy", "balanced_accuracy", "loss")},
        best_epoch=trained.best_epoch + 1,
        epochs=len(trained.rows),
        seconds=trained.seconds,
        samples_per_second=trained.samples_per_second,
        precision=stage.settings.precision,
        skipped_steps=trained.skipped_steps,
    )
