"""The student, taught by the teacher's answers to the same views; and the control, which is not."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from distilledge.models.features import match_stages
from distilledge.models.losses import LOSSES
from distilledge.models.losses_total import DistillationLoss, Term
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Checkpoint, Splits, read_samples
from distilledge.pipeline.training import many
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.objective import Guide, Objective
from distilledge.pipeline.training.stage import Stage, class_weights, new_model, run_stage
from distilledge.pipeline.training.views import ToInput
from distilledge.targets.ondevice.preprocess import InputSpec


def distill(
    recipe: Recipe,
    splits: Splits,
    data_dir: Path,
    taught_by: tuple[Checkpoint, Path] | None,
    out: Path,
    *,
    partial: Path,
    report: Report,
) -> Checkpoint:
    """Train the recipe's student on the answers of ``taught_by``, the teacher and its directory.

    Without one it is the control: same start, epochs, seeds and views, labels alone. Pictures without labels are added
    where there is a teacher.
    """
    processes = many.process_count(recipe.student.training)
    if processes > 1:
        job = many.Job(
            stage="student",
            recipe=recipe,
            splits=splits,
            data_dir=data_dir,
            taught_by=taught_by,
            out=out,
            partial=partial,
        )
        return many.launch(job, processes, report)
    stage = Stage("student" if taught_by else "control", recipe, splits, data_dir, out, partial, report)
    view_size = max(recipe.teacher.input.size, recipe.student.input.size)
    samples = stage.train_samples
    weights = class_weights(stage, samples)
    student = new_model(stage)
    if taught_by is None:
        loss = DistillationLoss(label_smoothing=stage.settings.label_smoothing, class_weights=weights)
        return run_stage(stage, Objective(student, ToInput(stage.spec), loss), samples, view_size)
    teacher, directory = taught_by
    model = checkpoints.load(teacher, directory)
    loss = _loss(stage, weights, student, model)
    to_teacher = ToInput(InputSpec.from_dict(teacher.input_spec))
    guide = Guide(model, to_teacher, loss, precision=recipe.teacher.training.precision)
    objective = Objective(student, ToInput(stage.spec), loss, guide)
    return run_stage(stage, objective, samples + read_samples(stage.data_dir, "unlabelled"), view_size)


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
