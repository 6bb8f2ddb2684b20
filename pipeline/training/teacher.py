"""The teacher: a large model fine-tuned on the data."""

from __future__ import annotations

from pathlib import Path

from distilledge.models.losses_total import DistillationLoss
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Checkpoint, Splits
from distilledge.pipeline.training import many
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.objective import Objective
from distilledge.pipeline.training.stage import Stage, class_weights, new_model, run_stage
from distilledge.pipeline.training.views import ToInput


def finetune(recipe: Recipe, splits: Splits, data_dir: Path, out: Path, partial: Path, report: Report) -> Checkpoint:
    """Train the recipe's teacher; see ``loop.train`` for what is raised."""
    processes = many.process_count(recipe.teacher.training)
    if processes > 1:
        job = many.Job(
            stage="teacher",
            recipe=recipe,
            splits=splits,
            data_dir=data_dir,
            taught_by=None,
            out=out,
            partial=partial,
        )
        return many.launch(job, processes, report)
    stage = Stage("teacher", recipe, splits, data_dir, out, partial, report)
    samples = stage.train_samples
    loss = DistillationLoss(label_smoothing=stage.settings.label_smoothing, class_weights=class_weights(stage, samples))
    return run_stage(stage, Objective(new_model(stage), ToInput(stage.spec), loss), samples, stage.spec.height)
