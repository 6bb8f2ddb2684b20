"""CLIP's image tower under a linear head (Radford et al. 2021): of class names it is a classifier without training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)
"""What an image tower is made of, as transformers' CLIPVisionConfig calls it."""


class ClipNet(nn.Module):
    """RGB pictures (N, 3, S, S) -> logits (N, C): a linear head on embeddings (N, D) of unit length.

    ``architecture`` is JSON: vision (``FIELDS``), projection (D), classes (C); prompts, by class, are a record. What
    timm says of its models is said of this one: stages, the layers' order, the head.
    """

    num_prefix_tokens = 1

    def __init__(self, architecture: dict[str, Any]) -> None:
        from transformers import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPVisionModel

        super().__init__()
        self.architecture = copy.deepcopy(architecture)
        config = CLIPVisionConfig(**architecture["vision"])
        self.tower: Any = CLIPVisionModel(config).vision_model
        self.projection = nn.Linear(config.hidden_size, architecture["projection"], bias=False)
        self.head: nn.Module = nn.Linear(architecture["projection"], architecture["classes"], bias=False)
        self.pretrained_cfg = {"classifier": "head"}
        names = [f"tower.encoder.layers.{i}" for i in range(config.num_hidden_layers)]
        self.feature_info = [
            {"module": n, "num_chs": config.hidden_size, "reduction": config.patch_size} for n in names
        ]

    def embed(self, pictures: Tensor) -> Tensor:
        """(N, D), of unit length."""
        hidden = self.tower.pre_layrnorm(self.tower.embeddings(pictures))
        for layer in self.tower.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
        return functional.normalize(self.projection(self.tower.post_layernorm(hidden[:, 0])), dim=1)

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(pictures))
        return logits

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002 (timm's signature)
        return {
            "stem": r"^tower\.(?:embeddings|pre_layrnorm)",
            "blocks": [
                (r"^tower\.encoder\.layers\.(\d+)", None),
                (r"^tower\.post_layernorm|^projection", (99999,)),
            ],
        }

    def no_weight_decay(self) -> set[str]:
        return {"tower.embeddings.class_embedding", "tower.embeddings.position_embedding.weight"}


@torch.no_grad()
def ensembled(embeddings: Tensor) -> Tensor:
    """Text embeddings (C, T, D) of T prompts of each class -> (C, D) of unit length.

    Each is brought to unit length, then their mean is (Radford et al. 2021, section 3.1.4).
    """
    return functional.normalize(functional.normalize(embeddings, dim=2).mean(1), dim=1)
