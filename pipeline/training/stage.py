"""One trained model from a recipe's part: the loop run on its feed, the result written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distilledge.models.vision_training import Profile
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.recipe import Pretraining, Recipe, Student, Teacher, Training
from distilledge.pipeline.recipe_multitask import multitask_inputs
from distilledge.pipeline.record import Checkpoint, Role, Sample, Splits, read_samples
from distilledge.pipeline.reshape import RESHAPE, surgery_inputs
from distilledge.pipeline.training.environment import resolve_precision
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.feed import Feed
from distilledge.pipeline.training.loop import Plan, Trained, curves, train
from distilledge.pipeline.training.objective import Objective
from distilledge.pipeline.transfer import TRANSFER, strategy_inputs, training_inputs

Taught = tuple[Checkpoint, Path]
"""A trained model and its directory."""


TRAINER: ContextVar[Callable[..., Trained]] = ContextVar("trainer", default=train)
"""What is done with an objective and its feed: ``loop.train``, but where ``lr_find`` tries learning rates on them."""


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
    pretraining: bool = False
    """Whether this is the language model before the task."""
    from_scratch: bool = False
    """Whether the network starts from random weights, whatever the recipe names."""

    @property
    def name(self) -> str:
        if self.from_scratch:
            return "scratch"
        return f"pretrain-{self.role}" if self.pretraining else self.role

    @property
    def part(self) -> Teacher | Student:
        return self.recipe.teacher if self.role == "teacher" else self.recipe.student

    @property
    def settings(self) -> Training:
        return self.language.training if self.pretraining else self.part.training

    @property
    def language(self) -> Pretraining:
        return self.part.pretraining or Pretraining()

    @property
    def train_samples(self) -> list[Sample]:
        return read_samples(self.data_dir, "train")


@dataclass(frozen=True)
class Made:
    """What a checkpoint says of its model beside the training."""

    input_spec: dict[str, Any]
    profile: Callable[[], Profile]
    architecture: dict[str, Any]
    """Of a text model; empty for pictures."""
    identity: Mapping[str, object]
    """What else the training depends on: a saved state with another is not gone on from."""
    finished: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    """The kept state as it is saved: adapters are merged here."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the report, which ``finished`` adds to."""


def run_stage(stage: Stage, objective: Objective, feed: Feed, made: Made, *, save_seconds: float = 0.0) -> Checkpoint:
    """Train, write ``model.safetensors`` and ``curves.jsonl`` into ``stage.out``. ``save_seconds``: see ``Plan``."""
    plan = Plan(
        stage=stage.name,
        settings=stage.settings,
        seed=stage.recipe.seed,
        metric="accuracy" if stage.pretraining else stage.recipe.metric,
        identity=_identity(stage, made),
        save_seconds=save_seconds,
    )
    return write(stage, made, TRAINER.get()(objective, feed, plan, partial=stage.partial, report=stage.report))


def _identity(stage: Stage, made: Made) -> str:
    parts = {
        "part": training_inputs(stage.part.model_dump(mode="json", exclude=TRANSFER | RESHAPE))
        | strategy_inputs(stage.part)
        | surgery_inputs(stage.part),
        "seed": stage.recipe.seed,
        "data": stage.splits.data_hash,
        "distill": stage.recipe.distill.model_dump(mode="json") if stage.role == "student" else None,
        **made.identity,
        **({"from_scratch": True} if stage.from_scratch else {}),
        **multitask_inputs(stage.recipe),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write(stage: Stage, made: Made, trained: Trained) -> Checkpoint:
    """Of a trained model: its files, and what is recorded of it."""
    digest = checkpoints.save_weights(made.finished(trained.state), stage.out)
    (stage.out / "curves.jsonl").write_text(curves(trained.rows), encoding="utf-8")
    size = made.profile()
    kept = trained.rows[trained.best_epoch]
    return Checkpoint(
        role=stage.role,
        model=stage.part.model,
        classes=stage.splits.classes,
        heads=stage.splits.heads,
        input_spec=made.input_spec,
        architecture=made.architecture,
        task=stage.recipe.task,
        weights_sha256=digest,
        parameters=size.parameters,
        macs=size.macs,
        validation={name: value for name, value in kept.items() if name in trained.metrics},
        best_epoch=trained.best_epoch + 1,
        epochs=len(trained.rows),
        seconds=trained.seconds,
        samples_per_second=trained.samples_per_second,
        precision=resolve_precision(stage.settings),
        skipped_steps=trained.skipped_steps,
        notes=tuple(made.notes),
    )


def frozen(model: nn.Module) -> nn.Module:
    """In eval mode, without gradients."""
    return model.eval().requires_grad_(False)
