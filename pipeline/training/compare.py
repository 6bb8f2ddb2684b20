"""Whether transfer helped: the teacher and the same model from scratch, on the same test samples."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from distilledge.models.metrics import top1
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline import stats, stats_counts
from distilledge.pipeline.outcomes import outcomes
from distilledge.pipeline.recipe import MetricName, Recipe
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
    """In torch, with the device's preprocessing, by the recipe's metric. Samples without labels are left out."""
    samples = [s for s in tested[0] if s.label >= 0]
    texts = [row for s, row in zip(tested[0], tested[2], strict=True) if s.label >= 0] if tested[2] else []
    labels = np.array([s.label for s in samples], np.int64)
    groups = [s.group for s in samples] if any(s.group for s in samples) else None
    if texts:
        first, second = (_counts(recipe, trained, texts, labels, partial) for trained in (teacher, scratch))
        return judged_counts(first, second, labels, metric=recipe.metric, groups=groups, seed=recipe.seed)
    right = [_classes(recipe, t, (samples, tested[1], texts), partial) == labels for t in (teacher, scratch)]
    by_class = recipe.metric == "balanced_accuracy"
    metric: stats.Metric = "balanced_accuracy" if by_class else "accuracy"
    return judged(right[0], right[1], labels, metric=metric, groups=groups, seed=recipe.seed)


def judged(
    teacher: Bools,
    scratch: Bools,
    labels: stats.Ints,
    *,
    metric: stats.Metric,
    groups: list[str] | None = None,
    seed: int = 0,
) -> Transfer:
    """From which samples each model has right."""
    first, second = (np.asarray(right, np.float64)[:, None] for right in (teacher, scratch))
    return judged_counts(first, second, labels, metric=metric, groups=groups, seed=seed)


def judged_counts(
    teacher: stats_counts.Floats,
    scratch: stats_counts.Floats,
    labels: stats.Ints,
    *,
    metric: MetricName,
    groups: list[str] | None = None,
    seed: int = 0,
) -> Transfer:
    """From the counts (N, k) of a metric that each model has on each sample."""
    gain = stats_counts.drop(teacher, scratch, labels, metric=metric, groups=groups, seed=seed)
    return Transfer(
        metric=metric,
        samples=len(labels),
        teacher=stats_counts.interval(teacher, labels, metric=metric, groups=groups, seed=seed),
        scratch=stats_counts.interval(scratch, labels, metric=metric, groups=groups, seed=seed),
        gain=gain,
        p_value=stats_counts.p_value(teacher, scratch, metric=metric, groups=groups, seed=seed),
        outcome=_outcome(gain),
    )


def _outcome(gain: Estimate) -> Literal["helped", "hurt", "undecided"]:
    if gain.low is not None and gain.low > 0:
        return "helped"
    return "hurt" if gain.high is not None and gain.high < 0 else "undecided"


def _counts(
    recipe: Recipe, trained: Taught, texts: list[TextRow], labels: stats.Ints, partial: Path
) -> stats_counts.Floats:
    """Of the recipe's metric, from the model's answers to each text."""
    accelerator = prepare_accelerator(recipe.teacher.training, partial)
    model, encoder = checkpoints.load(*trained).to(accelerator.device), checkpoints.encoder(*trained)
    with repeatable(accelerator.device):
        ids = [encoder.encode(text_feed.plain(row)) for row in texts]
        found = text_feed.predict(model, nn.Identity(), ids, encoder.spec.pad_id, accelerator, lambda: None)
    classes = trained[0].classes
    answered = outcomes(recipe.task, recipe.metric, _stacked(found), texts, encoder, classes, labels=labels.tolist())
    return answered.counts


def _stacked(rows: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """(N, C), or (N, L, K) with zeros behind the end of a text."""
    if rows[0].ndim == 1:
        return np.stack(rows)
    made = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), np.float32)
    for place, row in zip(made, rows, strict=True):
        place[: len(row)] = row
    return made


def _classes(recipe: Recipe, trained: Taught, tested: Tested, partial: Path) -> stats.Ints:
    """The class that the model gives each picture."""
    samples, root, _ = tested
    accelerator = prepare_accelerator(recipe.teacher.training, partial)
    model = checkpoints.load(*trained).to(accelerator.device)
    with repeatable(accelerator.device), readable():
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
