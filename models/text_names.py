"""Text architectures: where the parts of each transformers model lie. No weights are read here."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from torch import nn

from distilledge.models.errors import UsageError


class Layout(NamedTuple):
    """Module names inside of a backbone; ``query`` to ``fused`` are relative to a layer."""

    layers: str
    """The list of layers."""
    embeddings: str
    """The module whose output enters the first layer."""
    query: str = ""
    key: str = ""
    value: str = ""
    fused: str = ""
    """One linear module that gives query, key and value side by side, instead of the three."""
    prefix: str = ""
    """Of the backbone's tensors in a published file."""
    intermediate: str = "intermediate_size"
    """What the configuration calls the width inside of a feed-forward block."""
    causal: bool = False
    positions: bool = True
    """Takes ``position_ids``."""
    token_types: bool = False
    """Takes ``token_type_ids``."""
    scaled: bool = True
    """Attention scores are divided by the root of the head's width (T5 leaves that to its weights)."""


BERT = Layout(
    "encoder.layer",
    "embeddings",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    prefix="bert.",
    token_types=True,
)
ROBERTA = BERT._replace(prefix="roberta.")
T5 = Layout(
    "block",
    "embed_tokens",
    query="layer.0.SelfAttention.q",
    key="layer.0.SelfAttention.k",
    value="layer.0.SelfAttention.v",
    prefix="encoder.",
    intermediate="d_ff",
    positions=False,
    scaled=False,
)
LLAMA = Layout(
    "layers",
    "embed_tokens",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    prefix="model.",
    causal=True,
)
LAYOUTS: dict[str, Layout] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": BERT._replace(prefix="electra."),
    "distilbert": Layout(
        "transformer.layer",
        "embeddings",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        prefix="distilbert.",
        intermediate="hidden_dim",
    ),
    "deberta-v2": BERT._replace(
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        prefix="deberta.",
    ),
    "modernbert": Layout("layers", "embeddings", fused="attn.Wqkv", prefix="model."),
    "gpt2": Layout("h", "drop", fused="attn.c_attn", prefix="transformer.", intermediate="n_inner", causal=True),
    "t5": T5,
    "mt5": T5,
    "llama": LLAMA,
    "qwen2": LLAMA,
}
UNLISTED = {
    "deberta-v2": ("position_buckets", "share_att_key", "norm_rel_ebd", "conv_kernel_size", "conv_act", "conv_groups"),
    "modernbert": ("global_attn_every_n_layers",),
}
"""Settings that transformers reads, but does not have in its configuration by default."""
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")
"""Their first position is numbered pad_token_id + 1."""
LEARNED_POSITIONS = (*OFFSET_POSITIONS, "bert", "electra", "distilbert", "deberta-v2", "gpt2")
"""They have a table of positions, and take no text that is longer."""


def layout(model_type: str) -> Layout:
    """Raises ``UsageError`` for an architecture that we do not know."""
    if model_type not in LAYOUTS:
        near = difflib.get_close_matches(model_type, LAYOUTS, n=3) or list(LAYOUTS)
        raise UsageError("E2431", f"unknown text architecture {model_type!r}", "choose from " + ", ".join(near))
    return LAYOUTS[model_type]


def layers_of(backbone: nn.Module, model_type: str) -> list[nn.Module]:
    found: Any = backbone.get_submodule(layout(model_type).layers)
    return list(found)


def first_position(config: dict[str, Any]) -> int:
    """The number of a text's first position."""
    return int(config["pad_token_id"]) + 1 if config["model_type"] in OFFSET_POSITIONS else 0
