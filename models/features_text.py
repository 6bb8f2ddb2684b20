"""Inner states of text models: which layers are compared, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distilledge.models.errors import UsageError
from distilledge.models.features import Layer, LayerPair, Outputs
from distilledge.models.losses_total import DistillationLoss
from distilledge.models.text_names import layers_of
from distilledge.models.text_net import MASKED, TextNet


def layers(net: TextNet) -> tuple[Layer, ...]:
    """All layers, shallow to deep."""
    width, heads = int(net.config.hidden_size), int(net.config.num_attention_heads)
    first = net.word_embeddings.embedding_dim if net.model_type == "electra" else width
    return tuple(Layer(i, width, heads, first, net.layout.causal) for i in range(int(net.config.num_hidden_layers)))


def match_layers(student: TextNet, teacher: TextNet) -> tuple[LayerPair, ...]:
    """Every layer i of the student's S with the teacher's (i + 1) T / S - 1, rounded down (Jiao et al. 2020)."""
    ours, theirs = layers(student), layers(teacher)
    places = [max(0, (i + 1) * len(theirs) // len(ours) - 1) for i in range(len(ours))]
    return tuple(LayerPair(layer, theirs[place]) for layer, place in zip(ours, places, strict=True))


class TextTap:
    """Records the states of some layers at each forward pass inside a ``with`` block, as ``FeatureTap`` does maps.

    Scores are those of the projected queries and keys: without rotary and relative positions, which come later.
    """

    def __init__(
        self,
        net: TextNet,
        indices: Sequence[int] = (),
        *,
        hidden: bool = False,
        scores: bool = False,
        values: bool = False,
        embeddings: bool = False,
    ) -> None:
        found = layers_of(net.backbone, net.model_type)
        unknown = [i for i in indices if not 0 <= i < len(found)]
        if unknown:
            raise UsageError("E2422", f"the model has no layer {unknown[0]}", f"give one of 0 to {len(found) - 1}")
        self._net, self._indices = net, tuple(indices)
        self._hidden, self._scores, self._values, self._embeddings = hidden, scores, values, embeddings
        self._seen: dict[tuple[str, int], Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> TextTap:
        net, parts = self._net, self._net.layout
        self._listen(net.real, "real", 0)
        if self._embeddings:
            self._listen(net.backbone.get_submodule(parts.embeddings), "embeddings", 0)
        found = layers_of(net.backbone, net.model_type)
        names = {"fused": parts.fused, "query": parts.query, "key": parts.key, "value": parts.value}
        for i in dict.fromkeys(self._indices):
            if self._hidden:
                self._listen(found[i], "hidden", i)
            for kind, name in names.items():
                if name and (self._values if kind == "value" else self._scores or (kind == "fused" and self._values)):
                    self._listen(found[i].get_submodule(name), kind, i)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def outputs(self, logits: Tensor) -> Outputs:
        """What the last forward pass left, with its logits; recorded tensors are let go of."""
        with torch.autocast(logits.device.type, enabled=False):
            found = Outputs(
                logits,
                hidden=self._of_layers(self._hidden, lambda i: self._seen["hidden", i]),
                scores=self._of_layers(self._scores, self._score),
                values=self._of_layers(self._values, lambda i: self._heads("value", i)),
                embeddings=(self._seen["embeddings", 0],) if self._embeddings else (),
                real=self._seen["real", 0],
            )
        self._seen.clear()
        return found

    def _of_layers(self, wanted: bool, read: Callable[[int], Tensor]) -> tuple[Tensor, ...]:
        return tuple(read(i) for i in self._indices) if wanted else ()

    def _score(self, index: int) -> Tensor:
        """(N, H, L, L): QK^T / sqrt(d); what a causal model does not look at has the masked score."""
        query, key = self._heads("query", index).float(), self._heads("key", index).float()
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # grouped queries share keys
        scores = query @ key.transpose(2, 3)
        if self._net.layout.scaled:
            scores = scores / query.shape[3] ** 0.5
        if self._net.layout.causal:
            ahead = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(ahead, MASKED)
        return scores

    def _heads(self, kind: str, index: int) -> Tensor:
        """(N, H, L, d) of a linear module's output (N, L, H*d)."""
        if ("fused", index) in self._seen:
            parts = self._seen["fused", index].chunk(3, dim=-1)
            states = parts[("query", "key", "value").index(kind)]
        else:
            states = self._seen[kind, index]
        return states.reshape(*states.shape[:2], -1, self._head_width).transpose(1, 2)

    @property
    def _head_width(self) -> int:
        config = self._net.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    def _listen(self, module: nn.Module, kind: str, index: int) -> None:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._seen[kind, index] = output[0] if isinstance(output, tuple) else output

        self._handles.append(module.register_forward_hook(record))


def text_tap(net: TextNet, loss: DistillationLoss, side: str) -> TextTap:
    """The tap of a text model for what ``loss`` looks at: ``side`` is student or teacher."""
    return TextTap(
        net,
        [getattr(pair, side).number for pair in loss.pairs],
        hidden=loss.needs("hidden"),
        scores=loss.needs("scores"),
        values=loss.needs("values"),
        embeddings=loss.needs("embeddings"),
    )
