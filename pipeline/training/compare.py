"""Whether transfer helped: the teacher and the same model from scratch, on the same test samples."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from distilledge.models.metrics import top1
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline import stats
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Sample, TextRow, Transfer
from distilledge.pipeline.stats import Bools, Estimate
from distilledge.pipeline.training import evaluate, text_feed
from distilledge.pipeline.training.environment import prepare_accelerator, repeatable
from distilledge.pipeline.training.pictures import FromFiles, readable
from distilledge.pipeline.training.stage import Taught
from distilledge.pipeline.training.views import ToInput
from distilledge.targets.ondevice.preprocess import InputSpec

Tested = tuple[list[Sample], Path, list[TextRow]]
"""Samples, where their pictures lie, and their texts."""


def compare(recipe: Recipe, teacher: Taught, scratch: Taught, tested: Tested, partial: Path) -> Transfer:
    """In torch, with the device's preprocessing. Unlabelled samples are left out; metrics of counts become accuracy."""
    metric: Literal["accuracy", "balanced_accuracy"] = (
        "balanced_accuracy" if recipe.metric == "balanced_accuracy" else "accuracy"
    )
    samples = [s for s in tested[0] if s.label >= 0]
    texts = [row for s, row in zip(tested[0], tested[2], strict=True) if s.label >= 0] if tested[2] else []
    labels = np.array([s.label for s in samples], np.int64)
    groups = [s.group for s in samples] if any(s.group for s in samples) else None
    right = [_answers(recipe, t, (samples, tested[1], texts), partial) == labels for t in (teacher, scratch)]
    return judged(right[0], right[1], labels, metric=metric, groups=groups, seed=recipe.seed)


def judged(
    teacher: Bools,
    scratch: Bools,
    labels: stats.Ints,
    *,
    metric: Literal["accuracy", "balanced_accuracy"],
    groups: list[str] | None = None,
    seed: int = 0,
) -> Transfer:
    """From which samples each model has right."""
    gain = stats.paired_drop(teacher, scratch, labels, metric=metric, groups=groups, seed=seed)
    return Transfer(
        metric=metric,
        samples=len(labels),
        teacher=stats.metric_interval(teacher, labels, metric=metric, groups=groups),
        scratch=stats.metric_interval(scratch, labels, metric=metric, groups=groups),
        gain=gain,
        p_value=stats.mcnemar(teacher, scratch),
        outcome=_outcome(gain),
    )


def _outcome(gain: Estimate) -> Literal["helped", "hurt", "undecided"]:
    if gain.low is not None and gain.low > 0:
        return "helped"
    return "hurt" if gain.high is not None and gain.high < 0 else "undecided"


def _answers(recipe: Recipe, trained: Taught, tested: Tested, partial: Path) -> stats.Ints:
    """The class that the model gives each sample."""
    samples, root, texts = tested
    accelerator = prepare_accelerator(recipe.teacher.training, partial)
    model = checkpoints.load(*trained).to(accelerator.device)
    with repeatable(accelerator.device), readable():
        if texts:
            encoder = checkpoints.encoder(*trained)
            ids = [encoder.encode(text_feed.plain(row)) for row in texts]
            rows = text_feed.predict(model, nn.Identity(), ids, encoder.spec.pad_id, accelerator, lambda: None)
            return top1(np.stack(rows))
        spec = InputSpec.from_dict(trained[0].input_spec)
        files = FromFiles(samples, root, spec, fitted=True)
        logits = evaluate.predict(
            model,
            ToInput(spec).to(accelerator.device),
            files,
            range(len(files)),
            accelerator=accelerator,
            workers=recipe.data.workers,
            poll=lambda: None,
        )
    return top1(logits.numpy())
