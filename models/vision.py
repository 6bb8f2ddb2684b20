"""Image models by name, with weights; the public surface of the ``vision_*`` modules beside it."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.vision_catalogue import ModelCard, catalogue, int8_friendliness
from distilledge.models.vision_names import (
    VARIANTS,
    InputDefaults,
    Rates,
    build,
    check_name,
    config,
    head_names,
    input_defaults,
    reset_head,
)
from distilledge.models.vision_training import Profile, parameter_groups, profile, train_mode
from distilledge.models.vision_weights import Loaded, load_weights
from distilledge.models.weights import read_weights

__all__ = [
    "VARIANTS",
    "InputDefaults",
    "Loaded",
    "ModelCard",
    "Profile",
    "catalogue",
    "check_name",
    "create",
    "head_names",
    "input_defaults",
    "int8_friendliness",
    "load_weights",
    "parameter_groups",
    "profile",
    "read_weights",
    "reset_head",
    "train_mode",
]

log = logging.getLogger(__name__)


def create(
    name: str,
    *,
    classes: int,
    size: int,
    weights: str = "none",
    trust_pickle: bool = False,
    rates: Rates | None = None,
) -> nn.Module:
    """A model for RGB pictures (B, 3, size, size) -> logits (B, classes), in train mode.

    ``weights``: ``none``, ``hub`` (timm's pretrained, from the local Hugging Face cache if there), or a file.
    ``rates``: dropout that is not the model's own.
    Where the weights' head has other classes or is absent, a new head is initialised and that is logged.
    Raises ``UsageError`` for an unknown name or an impossible size, ``RejectedError`` for bad or missing weights.
    """
    if weights == "hub":
        return _from_hub(name, classes, size, rates)
    model = build(name, classes=classes, size=size, rates=rates)
    if weights != "none":
        log.info(load_weights(model, Path(weights), trust_pickle=trust_pickle).note)
    return model


def _from_hub(name: str, classes: int, size: int, rates: Rates | None) -> nn.Module:
    from httpx import HTTPError  # what huggingface_hub lets through when there is no network
    from huggingface_hub.errors import EntryNotFoundError

    check_name(name)
    cfg = config(name)
    if cfg is None or not cfg.has_weights:
        raise UsageError("E2404", f"the hub has no weights for {name}", "give a .safetensors file, or `weights: none`")
    where = cfg.hf_hub_id or cfg.url
    try:
        return build(name, classes=classes, size=size, pretrained=True, rates=rates)
    except (HTTPError, EntryNotFoundError, OSError, RuntimeError) as error:
        raise RejectedError(
            "E3409",
            f"cannot get model.safetensors of {where}, the hub weights of {name}: {str(error).partition(chr(10))[0]}",
            f"with a network, run `hf download {where} model.safetensors`, or give the file as `weights:`",
        ) from error
