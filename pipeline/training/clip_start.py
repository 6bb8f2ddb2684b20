"""A CLIP teacher as training starts from it: the image tower, under a head made of the class names' prompts."""

from __future__ import annotations

import logging

import numpy as np

from distilledge.models import vision
from distilledge.models.clip_net import ClipNet
from distilledge.models.clip_prompts import hub_name, prompts_of
from distilledge.models.clip_weights import (
    Clip,
    architecture_of,
    image_classifier,
    published_input,
    read_clip,
    text_embeddings,
    text_length,
)
from distilledge.models.errors import UsageError
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.recipe import Teacher
from distilledge.pipeline.training import text_tokenizer
from distilledge.pipeline.training.stage import Stage

log = logging.getLogger("distilledge.training")


def new_clip(stage: Stage) -> ClipNet:
    """Raises ``UsageError`` for classes that are not there and another input, ``RejectedError`` for unfit files."""
    part = stage.part
    assert isinstance(part, Teacher)
    unknown = sorted(set(part.prompts.names) - set(stage.splits.classes))
    if unknown:
        raise UsageError(
            "E2550",
            f"teacher.prompts.names: no class {unknown[0]!r}",
            "choose from " + ", ".join(stage.splits.classes[:10]),
        )
    place = hub_name(part.model) if part.weights == "hub" else expand(part.weights)
    clip = read_clip(place, trust_pickle=part.trust_pickle)
    _check_input(clip, part)
    prompts = prompts_of(stage.splits.classes, part.prompts.listed, part.prompts.names)
    architecture = architecture_of(clip, prompts)
    if stage.from_scratch:
        return ClipNet(architecture)
    ids = encoded(clip, [text for texts in prompts.values() for text in texts])
    embeddings = text_embeddings(clip, ids)
    log.info(clip.note)
    net = image_classifier(clip, architecture, embeddings.reshape(len(prompts), -1, embeddings.shape[1]))
    return net.train()


def encoded(clip: Clip, prompts: list[str]) -> list[list[int]]:
    """Ids by the tokenizer that lies beside the weights; what is too long is cut, the end kept."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text_tokenizer.of_model(str(clip.directory), "hub"))
    tokenizer.enable_truncation(text_length(clip))
    return [found.ids for found in tokenizer.encode_batch(prompts)]


def _check_input(clip: Clip, part: Teacher) -> None:
    """The recipe's input must be what the tower was trained for."""
    side = int(clip.model.config.vision_config.image_size)
    if part.input.size != side:
        what = f"this CLIP takes pictures of {side} pixels, not {part.input.size}"
        raise UsageError("E2551", what, f"set teacher.input.size to {side}")
    usual = vision.input_defaults(part.model)
    ours = {"mean": part.input.mean or usual.mean, "std": part.input.std or usual.std}
    for name, theirs in published_input(clip.directory).items():
        if theirs is not None and not np.allclose(ours[name], theirs, atol=1e-4):
            what = f"this CLIP was trained with {name} {theirs}, not {list(ours[name])}"
            raise UsageError("E2552", what, f"set teacher.input.{name}")
