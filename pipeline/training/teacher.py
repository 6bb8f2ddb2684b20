"""The teacher: a large model fine-tuned on the data."""

from __future__ import annotations

from pathlib import Path

from distilledge.models.errors import UsageError
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_strategy import ADAPTING
from distilledge.pipeline.record import Checkpoint, Splits
from distilledge.pipeline.training import many
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.picture_pretrain import start_from
from distilledge.pipeline.training.picture_stage import class_weights, describe, input_spec, make_feed, new_model
from distilledge.pipeline.training.stage import Stage, Taught
from distilledge.pipeline.training.strategies import Subject, teach
from distilledge.pipeline.training.tasks import check_processes, make_loss
from distilledge.pipeline.training.views import ToInput
from distilledge.pipeline.transfer import last_epoch


def finetune(
    recipe: Recipe,
    splits: Splits,
    data_dir: Path,
    out: Path,
    partial: Path,
    report: Report,
    *,
    pretrained: Taught | None = None,
    from_scratch: bool = False,
) -> Checkpoint:
    """Train the recipe's teacher; see ``loop.train`` for what is raised. ``pretrained``: trained before.

    ``from_scratch``: the same network with random weights.
    """
    recipe = last_epoch(recipe)
    processes = many.process_count(recipe.teacher.training)
    check_processes(recipe, processes)
    if processes > 1 and recipe.teacher.strategy.name in ADAPTING:
        what = f"strategy {recipe.teacher.strategy.name} trains in one process"
        raise UsageError("E2533", what, "export CUDA_VISIBLE_DEVICES=0")
    if processes > 1 and recipe.teacher.strategy.name == "progressive":
        raise UsageError("E2471", "strategy progressive trains in one process", "export CUDA_VISIBLE_DEVICES=0")
    if processes > 1 and recipe.teacher.strategy.name not in ("feature-extraction", "zero-shot"):
        job = many.Job(
            stage="teacher",
            recipe=recipe,
            splits=splits,
            data_dir=data_dir,
            pretrained=pretrained,
            from_scratch=from_scratch,
            out=out,
            partial=partial,
        )
        return many.launch(job, processes, report)
    stage = Stage("teacher", recipe, splits, data_dir, out, partial, report, from_scratch=from_scratch)
    if recipe.is_text:
        from distilledge.pipeline.training.text_stage import train_teacher

        return train_teacher(stage, pretrained)
    return _on_pictures(stage, pretrained)


def _on_pictures(stage: Stage, pretrained: Taught | None) -> Checkpoint:
    samples = stage.train_samples
    model, spec = new_model(stage), input_spec(stage)
    start_from(model, None if stage.from_scratch else pretrained)
    loss = make_loss(stage, model, samples, class_weights(stage, samples))
    feed = make_feed(stage, samples, spec.height)
    made = describe(stage, model, spec.height, len(samples))
    return teach(Subject(stage, model, ToInput(spec), feed), loss, made)
