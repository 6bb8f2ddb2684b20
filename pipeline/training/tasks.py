"""Several tasks in a training on pictures: their loss, their targets, and how they are validated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distilledge.models import metrics
from distilledge.models.errors import UsageError
from distilledge.models.features import StagePair
from distilledge.models.heads import Heads, spans
from distilledge.models.losses import one_hot
from distilledge.models.losses_heads import MultiTaskLoss
from distilledge.models.losses_total import DistillationLoss, Term
from distilledge.models.transfer import layer_groups
from distilledge.models.weightings import WEIGHTINGS, Weighting
from distilledge.pipeline.data.labels import Labels, read_labels
from distilledge.pipeline.recipe import Recipe, Training
from distilledge.pipeline.record import Sample
from distilledge.pipeline.training.evaluate import FloatArray, finite, validate
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.objective import balanced_weights
from distilledge.pipeline.training.picture_feed import PictureFeed
from distilledge.pipeline.training.stage import Stage


@dataclass(frozen=True, kw_only=True)
class TaskFeed(PictureFeed):
    """Pictures with a label of each task; sampling goes by the primary one. See ``Feed``."""

    heads: Heads
    task_labels: Labels
    validation_task_labels: Labels

    def targets(self, loaded: Loaded) -> Tensor:
        """(N, sum of classes): for each task its class, or zeros."""
        labels = torch.from_numpy(self.task_labels)[loaded.indices]
        return torch.cat([one_hot(labels[:, i], len(head.classes)) for i, head in enumerate(self.heads)], 1)

    def validate(
        self, model: nn.Module, to_input: nn.Module, accelerator: Accelerator, poll: Callable[[], None]
    ) -> dict[str, float]:
        return validate(
            model,
            to_input,
            self.validation,
            self.validation_task_labels,
            accelerator=accelerator,
            workers=self.workers,
            poll=poll,
            scored=lambda logits, labels: score_tasks(logits, labels, self.heads),
        )


def with_tasks(stage: Stage, feed: PictureFeed, samples: Sequence[Sample], validation: Sequence[Sample]) -> PictureFeed:
    """The feed as it is, or with the labels of several tasks."""
    if not stage.splits.heads:
        return feed
    return TaskFeed(
        **{field.name: getattr(feed, field.name) for field in fields(PictureFeed)},
        heads=stage.splits.heads,
        task_labels=read_labels(stage.data_dir, samples),
        validation_task_labels=read_labels(stage.data_dir, validation),
    )


def score_tasks(logits: FloatArray, labels: Labels, heads: Heads) -> dict[str, float]:
    """``accuracy``, ``balanced_accuracy`` (means over the tasks) and ``loss`` (their sum), then each task's own.

    Samples without a label of a task are left out there. Raises ``RejectedError`` where a loss is not finite.
    """
    own: dict[str, float] = {}
    for number, (head, columns) in enumerate(zip(heads, spans(heads), strict=True)):
        known = labels[:, number] >= 0
        z, truth = logits[known][:, columns], labels[known, number]
        predicted = metrics.top1(z)
        own[f"accuracy.{head.name}"] = metrics.accuracy(predicted, truth)
        own[f"balanced_accuracy.{head.name}"] = metrics.balanced_accuracy(predicted, truth, len(head.classes))
        own[f"loss.{head.name}"] = metrics.negative_log_likelihood(z, truth)
    joint = {name: [own[f"{name}.{head.name}"] for head in heads] for name in ("accuracy", "balanced_accuracy", "loss")}
    means = {name: float(np.mean(joint[name])) for name in ("accuracy", "balanced_accuracy")}
    return finite({**means, "loss": float(np.sum(joint["loss"])), **own})


def make_loss(
    stage: Stage,
    model: nn.Module,
    samples: Sequence[Sample],
    weights: Sequence[float] | None,
    terms: Sequence[Term] = (),
    *,
    hard_weight: float = 1.0,
    pairs: Sequence[StagePair] = (),
) -> DistillationLoss:
    """Of one task, with its ``class_weights``; or of all the data's tasks, weighed as the recipe says."""
    smoothing, heads = stage.settings.label_smoothing, stage.splits.heads
    if not heads:
        return DistillationLoss(
            terms, hard_weight=hard_weight, label_smoothing=smoothing, class_weights=weights, pairs=pairs
        )
    weighting = make_weighting(stage.recipe, heads)
    return MultiTaskLoss(
        heads,
        weighting,
        terms,
        hard_weight=hard_weight,
        label_smoothing=smoothing,
        class_weights=task_class_weights(stage.settings, read_labels(stage.data_dir, samples), heads),
        pairs=pairs,
        shared=last_shared(model) if weighting.watches_gradients else None,
    )


def make_weighting(recipe: Recipe, heads: Heads) -> Weighting:
    chosen = recipe.multitask
    given = [chosen.weights.get(head.name, 1.0) for head in heads]
    made = WEIGHTINGS[chosen.weighting]
    return made(given, alpha=chosen.alpha, rate=chosen.rate)


def task_class_weights(settings: Training, labels: Labels, heads: Heads) -> list[list[float] | None]:
    if settings.class_weights == "none":
        return [None] * len(heads)
    return [balanced_weights(torch.from_numpy(labels[:, i]), len(head.classes)) for i, head in enumerate(heads)]


def last_shared(model: nn.Module) -> nn.Parameter:
    """The weight of the last layer below the heads that has a matrix or a kernel: GradNorm's W."""
    below = {name for names in layer_groups(model)[:-1] for name in names}
    return [p for name, p in model.named_parameters() if name in below and p.ndim >= 2][-1]


def check_processes(recipe: Recipe, processes: int) -> None:
    """GradNorm's weights would differ from process to process. Raises ``UsageError``."""
    if processes > 1 and recipe.multitask.weighting == "gradnorm":
        raise UsageError("E2504", "gradnorm trains in one process", "export CUDA_VISIBLE_DEVICES=0")
