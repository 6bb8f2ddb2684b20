"""Text models: networks by architecture, with weights; the public surface of the ``text_*`` modules beside it."""

from __future__ import annotations

from typing import Any

from distilledge.models.text_build import from_config, narrow_embeddings, student_of, trim, with_task
from distilledge.models.text_language import mask_tokens, next_tokens
from distilledge.models.text_names import LAYOUTS
from distilledge.models.text_net import Pooling, TextNet
from distilledge.models.text_slice import narrowed
from distilledge.models.text_training import parameter_groups, profile, set_dropout, train_mode
from distilledge.models.text_weights import directory_of, from_pretrained, read_config

__all__ = [
    "LAYOUTS",
    "Pooling",
    "TextNet",
    "create",
    "directory_of",
    "from_config",
    "from_pretrained",
    "mask_tokens",
    "narrow_embeddings",
    "narrowed",
    "next_tokens",
    "parameter_groups",
    "profile",
    "read_config",
    "set_dropout",
    "student_of",
    "train_mode",
    "trim",
    "with_task",
]


def create(architecture: dict[str, Any]) -> TextNet:
    """The network of ``architecture`` (see ``TextNet``) with random weights, in train mode."""
    return TextNet(architecture).train()
