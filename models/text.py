"""Text models: networks by architecture, with weights; the public surface of the ``text_*`` modules beside it."""

from __future__ import annotations

from typing import Any

from distilledge.models.text_language import mask_tokens, next_tokens
from distilledge.models.text_names import LAYOUTS
from distilledge.models.text_net import Pooling, TextNet

__all__ = ["LAYOUTS", "Pooling", "TextNet", "create", "mask_tokens", "next_tokens"]


def create(architecture: dict[str, Any]) -> TextNet:
    """The network of ``architecture`` (see ``TextNet``) with random weights, in train mode."""
    return TextNet(architecture).train()
