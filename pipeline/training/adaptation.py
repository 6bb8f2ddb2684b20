"""A teacher brought to an unlabelled target, and a student that runs there: feeds, and BatchNorm's statistics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distilledge.models.domains import adapt_batch_norm, batch_norms, check_batch_norm
from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.text_net import TextNet
from distilledge.models.transfer import head_module
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.record import Sample, data_root, read_samples
from distilledge.pipeline.training.counters import Purpose, generator
from distilledge.pipeline.training.domain_feed import DomainFeed, Joined
from distilledge.pipeline.training.environment import prepare_accelerator, repeatable
from distilledge.pipeline.training.feed import Feed
from distilledge.pipeline.training.picture_feed import PictureFeed
from distilledge.pipeline.training.picture_stage import input_spec, pictures_of
from distilledge.pipeline.training.pictures import FromFiles, readable
from distilledge.pipeline.training.stage import Made, Stage, Taught
from distilledge.pipeline.training.views import ToInput, Views, fitted_loader
from distilledge.targets.ondevice.preprocess import InputSpec

log = logging.getLogger("distilledge.training")

BATCH = 64
SEEN = 256
"""Target pictures that BatchNorm's statistics of a student are taken of, at most."""
TARGET_DRAW, DOMAINS = 30, 31
"""Counters of ``Purpose.WEIGHTS``: which target pictures, and the weights of a domain classifier."""

Finished = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def domain_feed(stage: Stage, feed: Feed, strategy: str) -> DomainFeed:
    """``feed`` with the target's pictures beside the source's. Raises ``RejectedError`` without a target."""
    if not isinstance(feed, PictureFeed):
        raise UsageError("E2531", f"strategy {strategy} is of pictures", "use lora, or teacher.pretraining on texts")
    target = target_samples(stage)
    rule = feed.views.rule
    pictures = Joined(feed.views.pictures, pictures_of(stage, target, rule.spec, fitted=False))
    return DomainFeed(feed, Views(pictures, rule), tuple(s.path for s in target))


def target_samples(stage: Stage) -> list[Sample]:
    found = read_samples(stage.data_dir, "target")
    if not found:
        raise RejectedError("E3534", "the data has no pictures of a target", "set data.target.path")
    return found


def head_width(model: nn.Module) -> int:
    """Columns of the head's input. Raises ``UsageError`` for a head that is neither linear nor a 1x1 convolution."""
    if isinstance(model, TextNet):
        return int(model.config.hidden_size)
    head = model.get_submodule(head_module(model))
    if isinstance(head, nn.Linear):
        return head.in_features
    if isinstance(head, nn.Conv2d):
        return head.in_channels
    raise UsageError("E2532", f"a head of a kind that is not known: {type(head).__name__}", "choose another model")


def with_target_statistics(stage: Stage, model: nn.Module, samples: int) -> Finished:
    """A kept state -> the same with BatchNorm's statistics of the target's pictures."""
    check_batch_norm(model)

    def finished(state: dict[str, Tensor]) -> dict[str, Tensor]:
        model.load_state_dict(state)
        layers = adapt(stage, model, _drawn(stage, samples))
        log.info("%s: statistics of %d BatchNorm layers are the target's", stage.name, layers)
        return model.state_dict()

    return finished


def adapt(stage: Stage, model: nn.Module, samples: list[Sample]) -> int:
    """Give ``model`` BatchNorm statistics of ``samples``, prepared as on the device; returns how many layers."""
    spec = input_spec(stage)
    arrays = _arrays(samples, data_root(stage.splits, stage.data_dir), spec)
    device = prepare_accelerator(stage.settings, stage.partial).device
    to_input = ToInput(spec)

    def batches() -> Iterator[Tensor]:
        for part in arrays:
            yield to_input(part).to(device)

    with repeatable(device):
        return adapt_batch_norm(model.to(device), batches)


def where_it_runs(stage: Stage, made: Made, student: nn.Module, taught_by: Taught) -> Made:
    """``made``, by which a student keeps those BatchNorm statistics that suit the target.

    They are those of training, a mixture of both domains, or the target's own; the ones with which the student agrees
    more often with its teacher on target pictures, for which no label is needed. Nothing where it has no BatchNorm.
    """
    if not batch_norms(student):
        return made

    def finished(state: dict[str, Tensor]) -> dict[str, Tensor]:
        samples = _drawn(stage, SEEN)
        asked = _answers(stage, checkpoints.load(*taught_by), InputSpec.from_dict(taught_by[0].input_spec), samples)
        student.load_state_dict(state)
        own = _share(asked, _answers(stage, student, input_spec(stage), samples))
        adapt(stage, student, samples)
        new = _share(asked, _answers(stage, student, input_spec(stage), samples))
        word = "the target's" if new > own else "those of training"
        made.notes.append(
            f"BatchNorm statistics are {word}: agreement with the teacher on {len(samples)} target pictures "
            f"{100 * new:.1f} % with the target's, {100 * own:.1f} % with those of training"
        )
        return student.cpu().state_dict() if new > own else state

    return replace(made, finished=finished)


def _share(one: Tensor, other: Tensor) -> float:
    return float((one == other).float().mean())


@torch.no_grad()
def _answers(stage: Stage, model: nn.Module, spec: InputSpec, samples: list[Sample]) -> Tensor:
    """The class that the model gives each sample."""
    device = prepare_accelerator(stage.settings, stage.partial).device
    model, to_input = model.to(device).eval(), ToInput(spec)
    arrays = _arrays(samples, data_root(stage.splits, stage.data_dir), spec)
    with repeatable(device):
        return torch.cat([model(to_input(part).to(device)).argmax(1).cpu() for part in arrays])


def _drawn(stage: Stage, most: int) -> list[Sample]:
    """Target pictures, drawn by the seed."""
    found = target_samples(stage)
    order = generator(Purpose.WEIGHTS, stage.recipe.seed, TARGET_DRAW).permutation(len(found))
    return [found[i] for i in np.sort(order[:most])]


def _arrays(samples: list[Sample], root: Path, spec: InputSpec) -> list[Tensor]:
    """uint8 (N, 3, height, width) in batches."""
    files = FromFiles(samples, root, spec, fitted=True)
    with readable():
        return [loaded.inputs for loaded in fitted_loader(files, range(len(files)), BATCH, workers=0)]
