"""The student, taught by the teacher's answers to the same views; and the control, which is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from distilledge.models.features import match_stages
from distilledge.models.losses import LOSSES
from distilledge.models.losses_total import DistillationLoss, Term
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Checkpoint, Splits, read_samples
from distilledge.pipeline.training import many
from distilledge.pipeline.training.adaptation import where_it_runs
from distilledge.pipeline.training.counters import PROJECTIONS, weights_drawn
from distilledge.pipeline.training.environment import resolve_precision
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.objective import Guide, Objective, feature_tap
from distilledge.pipeline.training.picture_pretrain import start_from
from distilledge.pipeline.training.picture_stage import class_weights, describe, input_spec, make_feed, new_model
from distilledge.pipeline.training.stage import Stage, Taught, run_stage
from distilledge.pipeline.training.tasks import check_processes, make_loss
from distilledge.pipeline.training.views import ToInput
from distilledge.targets.ondevice.preprocess import InputSpec


def distill(  # noqa: PLR0913 (what a stage is given, by name)
    recipe: Recipe,
    splits: Splits,
    data_dir: Path,
    taught_by: Taught | None,
    out: Path,
    *,
    partial: Path,
    report: Report,
    parent: Taught | None = None,
    pretrained: Taught | None = None,
    language: Taught | None = None,
    start: Taught | None = None,
) -> Checkpoint:
    """Train the recipe's student on the answers of ``taught_by``, the teacher and its directory.

    Without one it is the control: same start, epochs, seeds and views, labels alone. Samples without labels are added
    where there is a teacher. Text: ``parent`` is the teacher whose tokenizer or layers the student (and the control)
    starts from, ``pretrained`` what the student itself was trained on before, ``language`` the teacher's. Pictures:
    ``start`` is a network to go on from instead of a new one, such as a pruned student.
    """
    processes = many.process_count(recipe.student.training)
    check_processes(recipe, processes)
    if processes > 1:
        job = many.Job(
            stage="student",
            recipe=recipe,
            splits=splits,
            data_dir=data_dir,
            taught_by=taught_by,
            parent=parent,
            pretrained=pretrained,
            language=language,
            start=start,
            out=out,
            partial=partial,
        )
        return many.launch(job, processes, report)
    stage = Stage("student" if taught_by else "control", recipe, splits, data_dir, out, partial, report)
    if recipe.is_text:
        from distilledge.pipeline.training.text_stage import train_student

        return train_student(stage, taught_by, parent=parent, pretrained=pretrained, language=language)
    return _on_pictures(stage, taught_by, pretrained, start)


def _on_pictures(
    stage: Stage, taught_by: Taught | None, pretrained: Taught | None, start: Taught | None = None
) -> Checkpoint:
    view_size = max(stage.recipe.teacher.input.size, stage.recipe.student.input.size)
    samples = stage.train_samples
    weights = class_weights(stage, samples)
    student = start_from(new_model(stage), pretrained) if start is None else checkpoints.load(*start).train()
    to_input = ToInput(input_spec(stage))
    if taught_by is None:
        loss = make_loss(stage, student, samples, weights)
        objective = Objective(student, to_input, loss)
    else:
        objective = _taught(stage, student, to_input, weights, taught_by)
        samples = samples + read_samples(stage.data_dir, "unlabelled") + read_samples(stage.data_dir, "target")
    feed = make_feed(stage, samples, view_size)
    made = describe(stage, student, view_size, len(samples))
    if taught_by is not None and stage.recipe.data.target is not None:
        made = where_it_runs(stage, made, student, taught_by)
    if start is not None:
        begun = {"start": start[0].weights_sha256}
        made = replace(made, architecture=start[0].architecture, identity={**made.identity, **begun})
    return run_stage(stage, objective, feed, made)


def _taught(
    stage: Stage, student: nn.Module, to_input: ToInput, weights: list[float] | None, taught_by: Taught
) -> Objective:
    teacher, directory = taught_by
    model = checkpoints.load(teacher, directory)
    loss = _loss(stage, weights, student, model)
    guide = Guide(
        model,
        ToInput(InputSpec.from_dict(teacher.input_spec)),
        feature_tap(model, loss, "teacher"),
        precision=resolve_precision(stage.recipe.teacher.training),
    )
    return Objective(student, to_input, loss, guide)


def _loss(stage: Stage, weights: list[float] | None, student: nn.Module, teacher: nn.Module) -> DistillationLoss:
    terms = [Term(t.name, t.weight, t.arguments) for t in stage.recipe.distill.losses]
    features = any(t.name in LOSSES and LOSSES[t.name].needs == "features" for t in terms)
    pairs = match_stages(student, teacher) if features else ()
    with weights_drawn(stage.recipe.seed, PROJECTIONS):
        return make_loss(
            stage,
            student,
            stage.train_samples,
            weights,
            terms,
            hard_weight=stage.recipe.distill.hard_weight,
            pairs=pairs,
        )
