"""Recommended text teachers and students, with their size as this project builds them: without pooler and old head."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch

from distilledge.models.base import Value
from distilledge.models.text_build import from_config
from distilledge.models.text_training import profile

TOKENS = 64
"""Length of the text whose multiply-accumulates are counted."""


class TextCard(Value):
    """One recommended model under a head of two classes."""

    name: str
    """Hub name, or for networks built from scratch the architecture."""
    role: Literal["teacher", "student"]
    layers: int
    width: int
    parameters: int
    macs: int
    """Multiply-accumulates of one text of ``TOKENS`` tokens."""
    license: str
    """Of the hub weights; empty without them."""


class Entry(NamedTuple):
    name: str
    role: Literal["teacher", "student"]
    kind: str
    vocabulary: int
    config: dict[str, int | float | str | bool]
    license: str = ""


def size(layers: int, width: int, heads: int) -> dict[str, int | float | str | bool]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
    }


CATALOGUE: tuple[Entry, ...] = (
    Entry("bert-large-uncased", "teacher", "bert", 30522, size(24, 1024, 16), "apache-2.0"),
    Entry("FacebookAI/roberta-base", "teacher", "roberta", 50265, size(12, 768, 12), "mit"),
    Entry("bert-base-uncased", "teacher", "bert", 30522, size(12, 768, 12), "apache-2.0"),
    Entry("microsoft/MiniLM-L12-H384-uncased", "teacher", "bert", 30522, size(12, 384, 12), "mit"),
    Entry("sentence-transformers/all-MiniLM-L6-v2", "teacher", "bert", 30522, size(6, 384, 12), "apache-2.0"),
    Entry("distilbert-base-uncased", "student", "distilbert", 30522, {}, "apache-2.0"),
    Entry("bert (4 x 312, as TinyBERT)", "student", "bert", 30522, size(4, 312, 12)),
    Entry("bert (2 x 192)", "student", "bert", 30522, size(2, 192, 4)),
    Entry("bert (2 x 128)", "student", "bert", 30522, size(2, 128, 2)),
)


def catalogue() -> tuple[TextCard, ...]:
    """Counted on the meta device: nothing is fetched and no memory is taken."""
    return tuple(_card(entry) for entry in CATALOGUE)


def _card(entry: Entry) -> TextCard:
    fields: dict[str, Any] = dict(entry.config)
    if entry.kind == "roberta":
        fields["max_position_embeddings"] = 514
    with torch.device("meta"):
        net = from_config(
            entry.kind,
            fields,
            task="text-classification",
            classes=2,
            vocabulary_size=entry.vocabulary,
            max_length=512,
            pad_id=0,
        )
    found = profile(net, TOKENS)
    return TextCard(
        name=entry.name,
        role=entry.role,
        layers=int(net.config.num_hidden_layers),
        width=int(net.config.hidden_size),
        parameters=found.parameters,
        macs=found.macs,
        license=entry.license,
    )
