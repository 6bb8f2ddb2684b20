"""Quantization-aware distillation: the trained student learns on in fake int8, its ranges with its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distilledge.models.errors import RejectedError
from distilledge.models.fake_quantised import FakeQuantised
from distilledge.models.losses import LOSSES
from distilledge.models.losses_total import DistillationLoss, Term
from distilledge.models.transfer import Tuning
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.compress.retrained import Retrained
from distilledge.pipeline.inputs import normalise
from distilledge.pipeline.recipe import Recipe, Training
from distilledge.pipeline.recipe_compress import Qat
from distilledge.pipeline.record import Checkpoint, Splits, read_samples
from distilledge.pipeline.training.environment import resolve_precision
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.loop import Plan, Trained, curves, train
from distilledge.pipeline.training.objective import Guide, Objective, feature_tap
from distilledge.pipeline.training.picture_stage import class_weights, make_feed
from distilledge.pipeline.training.stage import Stage, Taught
from distilledge.pipeline.training.views import ToInput
from distilledge.targets.base import Inputs
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ranges import mse, observe

EXAMPLES = 2
STOPPED = ("E3655", "E3602", "E3605", "E3650", "E3651", "E3652")
"""What ends this training and not the run: its rung makes no file, and the ledger says why."""
RANGES_LR = 10.0
"""Learning rate of the ranges, which are factors, over that of the weights."""


def tune(
    recipe: Recipe,
    splits: Splits,
    data_dir: Path,
    student: Taught,
    teacher: Taught | None,
    *,
    calibration: Sequence[Inputs],
    out: Path,
    partial: Path,
    report: Report,
) -> Retrained:
    """Train ``student`` on. ``calibration``: pictures, uint8 (H, W, 3) each.

    A training that collapses or diverges, or a network that cannot be traced, is a result that says so.
    """
    settings = recipe.compress.qat or Qat()
    part = recipe.student.model_copy(update={"training": training(recipe.student.training, settings)})
    stage = Stage("student", recipe.model_copy(update={"student": part}), splits, data_dir, out, partial, report)
    checkpoint, directory = student
    model = checkpoints.load(checkpoint, directory)
    spec = InputSpec.from_dict(checkpoint.input_spec)
    try:
        network = started(model, calibration, spec)
        trained = _train(stage, settings, network, spec, student if settings.teacher == "student" else teacher)
    except RejectedError as error:
        if error.code not in STOPPED:
            raise
        (out / "curves.jsonl").write_text(_rows_so_far(partial), encoding="utf-8")
        return Retrained(checkpoint=None, stopped=error.what)
    (out / "curves.jsonl").write_text(curves(trained.rows), encoding="utf-8")
    network.load_state_dict(trained.state)
    model.load_state_dict(network.latent(), strict=False)
    digest = checkpoints.save_weights(model.state_dict(), out)
    return Retrained(checkpoint=_described(checkpoint, trained, digest), ranges=network.on_grid())


def training(own: Training, settings: Qat) -> Training:
    """The student's own training, shortened: from trained weights, without an average, the last epoch kept."""
    changed: dict[str, Any] = {"epochs": settings.epochs, "lr": settings.lr, "warmup_epochs": min(0.5, settings.epochs)}
    changed |= {"ema": None, "early_stopping": None, "select": "last", "layer_decay": 1.0, "freeze_backbone": False}
    return own.model_copy(update=changed | {"precision": "fp32", "compile": False, "tracker": "none"})


def started(model: nn.Module, calibration: Sequence[Inputs], spec: InputSpec) -> FakeQuantised:
    """In fake int8, with the ranges of least squared error on the calibration pictures."""
    network = FakeQuantised(model, normalise(np.stack(calibration[:EXAMPLES]), spec))

    def tensors(rows: Inputs) -> dict[str, Any]:
        return {name: value.numpy() for name, value in network.taps(normalise(rows, spec)).items()}

    network.start({name: mse(seen) for name, seen in observe(tensors, [row[None] for row in calibration]).items()})
    return network


def rebuilt(found: Retrained, directory: Path) -> tuple[nn.Module, FakeQuantised]:
    """The float network that was trained in fake int8, and the same in fake int8 with its ranges, in eval mode."""
    assert found.checkpoint is not None
    model = checkpoints.load(found.checkpoint, directory)
    spec = InputSpec.from_dict(found.checkpoint.input_spec)
    network = FakeQuantised(model, torch.randn(EXAMPLES, 3, spec.height, spec.width))
    network.start(found.ranges)
    return model, network.eval()


@dataclass(frozen=True)
class RangeTuning(Tuning):
    """All weights, and the ends of the ranges at ten times their learning rate; statistics frozen late."""

    learnt: bool = True
    frozen_from: int = 0
    """Epoch from which batch normalisation keeps its statistics."""

    def parameter_groups(self, model: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """See ``Tuning``."""
        assert isinstance(model, FakeQuantised)
        ends = model.range_parameters()
        for parameter in ends:
            parameter.requires_grad_(self.learnt)
        spared = {id(p) for one in model.ranges.values() for p in one.parameters()}
        weights = [p for p in model.parameters() if id(p) not in spared]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in weights if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
            {"params": [p for p in weights if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
        ]
        return groups + ([{"params": ends, "lr": lr * RANGES_LR, "weight_decay": 0.0}] if self.learnt else [])

    def begin_epoch(self, model: nn.Module, epoch: int, values: Sequence[float]) -> None:  # noqa: ARG002
        """See ``Tuning``."""
        assert isinstance(model, FakeQuantised)
        model.freeze_norms(frozen=epoch >= self.frozen_from)


def _train(stage: Stage, settings: Qat, network: FakeQuantised, spec: InputSpec, taught_by: Taught | None) -> Trained:
    recipe, samples = stage.recipe, stage.train_samples
    if taught_by is not None and settings.teacher != "none":
        samples = samples + read_samples(stage.data_dir, "unlabelled")
    feed = make_feed(stage, samples, max(recipe.teacher.input.size, recipe.student.input.size))
    weights = class_weights(stage, stage.train_samples)
    objective = _objective(stage, network, ToInput(spec), weights, None if settings.teacher == "none" else taught_by)
    objective.tuning = RangeTuning(
        (), learnt=settings.ranges == "learnt", frozen_from=round(settings.freeze_bn * settings.epochs)
    )
    plan = Plan("qat", stage.settings, recipe.seed, recipe.metric, _identity(stage, settings))
    return train(objective, replace(feed, watch=True), plan, partial=stage.partial, report=stage.report)


def _objective(
    stage: Stage, network: nn.Module, to_input: ToInput, weights: list[float] | None, taught_by: Taught | None
) -> Objective:
    smoothing = stage.settings.label_smoothing
    if taught_by is None:
        return Objective(network, to_input, DistillationLoss(label_smoothing=smoothing, class_weights=weights))
    chosen = [t for t in stage.recipe.distill.losses if LOSSES[t.name].needs == "logits"]
    terms = [Term(t.name, t.weight, t.arguments) for t in chosen] or [Term("kl", 1.0, {"temperature": 2.0})]
    loss = DistillationLoss(
        terms, hard_weight=stage.recipe.distill.hard_weight, label_smoothing=smoothing, class_weights=weights
    )
    checkpoint, directory = taught_by
    model = checkpoints.load(checkpoint, directory)
    precision = resolve_precision(stage.recipe.teacher.training) if checkpoint.role == "teacher" else "fp32"
    own = ToInput(InputSpec.from_dict(checkpoint.input_spec))
    return Objective(
        network, to_input, loss, Guide(model, own, feature_tap(model, loss, "teacher"), precision=precision)
    )


def _identity(stage: Stage, settings: Qat) -> str:
    """Of a saved state; the folder it lies in is named by everything else."""
    parts = {"qat": settings.model_dump(mode="json"), "seed": stage.recipe.seed, "data": stage.splits.data_hash}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _rows_so_far(partial: Path) -> str:
    path = partial / "curves.jsonl"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _described(student: Checkpoint, trained: Trained, digest: str) -> Checkpoint:
    kept = trained.rows[trained.best_epoch]
    return student.model_copy(
        update={
            "weights_sha256": digest,
            "validation": {name: value for name, value in kept.items() if name in trained.metrics},
            "best_epoch": trained.best_epoch + 1,
            "epochs": len(trained.rows),
            "seconds": trained.seconds,
            "samples_per_second": trained.samples_per_second,
            "precision": "fp32",
            "skipped_steps": trained.skipped_steps,
        }
    )
