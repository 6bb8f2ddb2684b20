"""Validation: the metrics of one model on pictures prepared as on the device."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from distilledge.models import metrics
from distilledge.models.errors import RejectedError
from distilledge.pipeline.training.counters import IntArray
from distilledge.pipeline.training.pictures import Pictures
from distilledge.pipeline.training.views import fitted_loader

BATCH = 64
FloatArray = npt.NDArray[np.float32]


def validate(
    model: nn.Module,
    to_input: nn.Module,
    pictures: Pictures,
    labels: IntArray,
    *,
    accelerator: Accelerator,
    workers: int,
    poll: Callable[[], None],
    scored: Callable[[FloatArray, IntArray], dict[str, float]] | None = None,
    watch: bool = False,
) -> dict[str, float]:
    """``accuracy``, ``balanced_accuracy`` (mean recall of the classes present), ``loss`` (cross-entropy, nats).

    Or what ``scored`` finds. Of all processes together, in the training's precision. Raises ``RejectedError`` where an
    output is not finite, or, with ``watch``, where all answers are one.
    """
    mine = range(accelerator.process_index, len(pictures), accelerator.num_processes)
    logits = predict(model, to_input, pictures, mine, accelerator=accelerator, workers=workers, poll=poll)
    if accelerator.num_processes > 1:
        parts = gather_object([(list(mine), logits)])
        order = torch.tensor([i for indices, _ in parts for i in indices])
        logits = torch.cat([part for _, part in parts])[order.argsort()]
    if watch:
        check_answers(logits.numpy(), labels)
    return (scored or score)(logits.numpy(), labels)


def check_answers(logits: FloatArray, labels: IntArray) -> None:
    """Raise ``RejectedError`` where pictures of several classes all get one answer: a collapse."""
    if len(np.unique(metrics.top1(logits))) < 2 <= len(np.unique(labels[labels >= 0])):
        what = f"collapsed: one answer to all {len(labels)} validation pictures"
        raise RejectedError("E3655", what, "lower compress.qat.lr")


def score(logits: FloatArray, labels: IntArray) -> dict[str, float]:
    predicted = metrics.top1(logits)
    found = {
        "accuracy": metrics.accuracy(predicted, labels),
        "balanced_accuracy": metrics.balanced_accuracy(predicted, labels, logits.shape[1]),
        "loss": metrics.negative_log_likelihood(logits, labels),
    }
    return finite(found)


def finite(found: dict[str, float]) -> dict[str, float]:
    """``found``, unless its loss is not finite: ``RejectedError``."""
    if not math.isfinite(found["loss"]):
        raise RejectedError("E3602", "the validation loss is not finite", "lower training.lr, or set `precision: fp32`")
    return found


@torch.inference_mode()
def predict(
    model: nn.Module,
    to_input: nn.Module,
    pictures: Pictures,
    indices: range,
    *,
    accelerator: Accelerator,
    workers: int,
    poll: Callable[[], None],
) -> Tensor:
    """float32 logits (len(indices), classes) on the CPU; ``poll`` is called for each batch and may raise."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    outputs = []
    for loaded in fitted_loader(pictures, indices, BATCH, workers=workers):
        poll()
        with accelerator.autocast():
            outputs.append(model(to_input(loaded.inputs.to(accelerator.device))).float().cpu())
    for module in was_training:
        module.training = True
    return torch.cat(outputs)
