"""The student, taught by the teacher's answers to the same views; and the control, which is not."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from torch import nn

from distilledge.models.features import match_stages
from distilledge.models.losses import LOSSES
from distilledge.models.losses_total import DistillationLoss, Term
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Checkpoint, Sample, Splits, read_samples
from distilledge.pipeline.training import many
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.objective import Guide, Objective
from distilledge.pipeline.training.stage import Stage, class_weights, new_model, run_stage
from distilledge.pipeline.training.views import ToInput
from distilledge.targets.ondevice.preprocess import BadPicture, InputSpec, decode

log = logging.getLogger("distilledge.training")


def distill(
    recipe: Recipe,
    splits: Splits,
    data_dir: Path,
    teacher: Checkpoint | None,
    teacher_dir: Path | None,
    out: Path,
    partial: Path,
    report: Report,
) -> Checkpoint:
    """Train the recipe's student. Without a teacher it is the control: same start, epochs, seeds, views; labels alone.

    Pictures without labels (of the data, and of ``distill.unlabelled``) are added where there is a teacher.
    """
    processes = many.process_count(recipe.student.training)
    if processes > 1:
        job = many.Job(
            stage="student",
            recipe=recipe,
            splits=splits,
            data_dir=data_dir,
            teacher=teacher,
            teacher_dir=teacher_dir,
            out=out,
            partial=partial,
        )
        return many.launch(job, processes, report)
    stage = Stage("student" if teacher else "control", recipe, splits, data_dir, out, partial, report)
    view_size = max(recipe.teacher.input.size, recipe.student.input.size)
    samples = stage.train_samples
    weights = class_weights(stage, samples)
    student = new_model(stage)
    if teacher is None or teacher_dir is None:
        loss = DistillationLoss(label_smoothing=stage.settings.label_smoothing, class_weights=weights)
        return run_stage(stage, Objective(student, ToInput(stage.spec), loss), samples, view_size)
    model = checkpoints.load(teacher, teacher_dir)
    loss = _loss(stage, weights, student, model)
    to_teacher = ToInput(InputSpec.from_dict(teacher.input_spec))
    guide = Guide(model, to_teacher, loss, precision=recipe.teacher.training.precision)
    return run_stage(
        stage, Objective(student, ToInput(stage.spec), loss, guide), samples + _unlabelled(stage), view_size
    )


def _loss(stage: Stage, weights: list[float] | None, student: nn.Module, teacher: nn.Module) -> DistillationLoss:
    terms = [Term(t.name, t.weight, t.arguments) for t in stage.recipe.distill.losses]
    features = any(t.name in LOSSES and LOSSES[t.name].needs == "features" for t in terms)
    return DistillationLoss(
        terms,
        hard_weight=stage.recipe.distill.hard_weight,
        label_smoothing=stage.settings.label_smoothing,
        class_weights=weights,
        pairs=match_stages(student, teacher) if features else (),
    )


def _unlabelled(stage: Stage) -> list[Sample]:
    """Pictures without labels, by absolute path; without unreadable ones and those of validation and test."""
    samples = read_samples(stage.data_dir, "unlabelled")
    if stage.recipe.distill.unlabelled is None:
        return samples
    from distilledge.pipeline.data.formats import list_unlabelled

    listing = list_unlabelled(stage.recipe.distill.unlabelled)
    judged = {s.sha256 for s in read_samples(stage.data_dir) if s.split in ("validation", "test")}
    found = [s for row in listing.rows if (s := _sample(listing.root / row.path, stage.spec))]
    kept = [s for s in found if s.sha256 not in judged]
    if len(kept) < len(listing.rows):
        log.warning(
            "%s: %d of %d pictures left out: %d unreadable, %d also in the validation or test split",
            stage.recipe.distill.unlabelled,
            len(listing.rows) - len(kept),
            len(listing.rows),
            len(listing.rows) - len(found),
            len(found) - len(kept),
        )
    return samples + kept


def _sample(path: Path, spec: InputSpec) -> Sample | None:
    try:
        data = path.read_bytes()
        decode(data, spec)
    except (OSError, BadPicture):
        return None
    digest = hashlib.sha256(data).hexdigest()
    return Sample(path=str(path), label=-1, group="", split="unlabelled", sha256=digest, calibration=False)
