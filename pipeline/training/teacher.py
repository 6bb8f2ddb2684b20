"""The teacher: a large model fine-tuned on the data."""

from __future__ import annotations

from pathlib import Path

from distilledge.models.errors import UsageError
from distilledge.models.losses_total import DistillationLoss
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Checkpoint, Splits
from distilledge.pipeline.training import many
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.picture_stage import class_weights, describe, input_spec, make_feed, new_model
from distilledge.pipeline.training.stage import Stage, Taught
from distilledge.pipeline.training.strategies import Subject, teach
from distilledge.pipeline.training.views import ToInput


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
    """Train the recipe's teacher; see ``loop.train`` for what is raised. ``pretrained``: its language model (text).

    ``from_scratch``: the same network with random weights.
    """
    processes = many.process_count(recipe.teacher.training)
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
    return _on_pictures(stage)


def _on_pictures(stage: Stage) -> Checkpoint:
    samples = stage.train_samples
    loss = DistillationLoss(label_smoothing=stage.settings.label_smoothing, class_weights=class_weights(stage, samples))
    model, spec = new_model(stage), input_spec(stage)
    feed = make_feed(stage, samples, spec.height)
    made = describe(stage, model, spec.height, len(samples))
    return teach(Subject(stage, model, ToInput(spec), feed), loss, made)
