"""What a training on pictures is made of: the model with its start, its feed, its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from distilledge.models import vision
from distilledge.models.clip_net import ClipNet
from distilledge.models.clip_prompts import is_clip
from distilledge.models.errors import RejectedError
from distilledge.models.surgery import operated
from distilledge.models.vision_names import Rates
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.recipe import Student
from distilledge.pipeline.record import Sample, data_root, read_samples
from distilledge.pipeline.reshape import architecture
from distilledge.pipeline.training.counters import Purpose, torch_seed
from distilledge.pipeline.training.objective import balanced_weights
from distilledge.pipeline.training.picture_feed import PictureFeed
from distilledge.pipeline.training.pictures import FromFiles, Pictures, cache_key, cached
from distilledge.pipeline.training.stage import Made, Stage
from distilledge.pipeline.training.tasks import with_tasks
from distilledge.pipeline.training.views import ViewRule, Views
from distilledge.targets.ondevice.preprocess import InputSpec


def input_spec(stage: Stage) -> InputSpec:
    """The model's own input."""
    return checkpoints.input_spec(stage.part.input, stage.recipe.data, vision.input_defaults(stage.part.model))


def new_model(stage: Stage) -> nn.Module:
    """The model with the weights it starts from. Draws depend on the seed alone: student and control start equal."""
    part = stage.part
    before = torch.get_rng_state()
    torch.manual_seed(torch_seed(Purpose.WEIGHTS, stage.recipe.seed))
    if is_clip(part.model):
        from distilledge.pipeline.training.clip_start import new_clip

        net = new_clip(stage)
        torch.set_rng_state(before)
        return net
    weights = part.weights if part.weights in ("hub", "none") else expand(part.weights)
    weights = "none" if stage.from_scratch else weights
    model = vision.create(
        part.model,
        classes=len(stage.splits.classes),
        weights=weights,
        size=part.input.size,
        trust_pickle=part.trust_pickle,
        rates=_rates(stage),
    )
    if isinstance(part, Student) and part.surgery is not None:
        operated(model, part.surgery)
    torch.set_rng_state(before)
    return model


def _rates(stage: Stage) -> Rates:
    """By timm's names, of what the recipe sets."""
    given = {"drop_rate": stage.settings.dropout, "drop_path_rate": stage.settings.drop_path}
    return {name: rate for name, rate in given.items() if rate is not None}


def class_weights(stage: Stage, samples: Sequence[Sample]) -> list[float] | None:
    if stage.settings.class_weights == "none":
        return None
    return balanced_weights(torch.tensor([s.label for s in samples]), len(stage.splits.classes))


def describe(stage: Stage, model: nn.Module, view_size: int, pictures: int) -> Made:
    """``pictures``: how many are learned from."""
    spec = input_spec(stage)
    return Made(
        input_spec=spec.to_dict(),
        profile=lambda: vision.profile(model, spec.height),
        architecture={"clip": model.architecture} if isinstance(model, ClipNet) else architecture(stage.part),
        identity={"view_size": view_size, "pictures": pictures},
    )


def make_feed(stage: Stage, samples: list[Sample], view_size: int) -> PictureFeed:
    """``samples``: those learned from. Raises ``RejectedError`` where there is nothing to validate on."""
    validation = read_samples(stage.data_dir, "validation")
    if not validation:
        raise RejectedError("E3603", "no validation pictures", "set `data.splits.validation` above 0")
    spec = input_spec(stage)
    view_spec = replace(spec, height=view_size, width=view_size)
    rule = ViewRule(view_spec, stage.settings.augment, stage.recipe.seed)
    feed = PictureFeed(
        views=Views(pictures_of(stage, samples, view_spec, fitted=False), rule),
        labels=np.array([s.label for s in samples], np.int64),
        names=tuple(s.path for s in samples),
        validation=pictures_of(stage, validation, spec, fitted=True),
        validation_labels=np.array([s.label for s in validation], np.int64),
        classes=len(stage.splits.classes),
        workers=stage.recipe.data.workers,
        augment=stage.settings.augment,
        seed=stage.recipe.seed,
    )
    return with_tasks(stage, feed, samples, validation)


def pictures_of(stage: Stage, samples: list[Sample], spec: InputSpec, *, fitted: bool) -> Pictures:
    files = FromFiles(samples, data_root(stage.splits, stage.data_dir), spec, fitted=fitted)
    if not stage.recipe.data.cache:
        return files
    key = cache_key(samples, spec, fitted=fitted)
    return cached(files, key, stage.data_dir.parent / ".pictures", workers=stage.recipe.data.workers)
