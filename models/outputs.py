"""A network of several tasks with an output for each, as it is exported."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from distilledge.models.heads import Head, spans
from distilledge.models.vision_names import head_names


class Apart(nn.Module):
    """A linear layer cut into one for each head; gives them in order, each (N, classes)."""

    def __init__(self, layer: nn.Linear, heads: Sequence[Head]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for span in spans(heads):
            part = nn.Linear(layer.in_features, span.stop - span.start, bias=layer.bias is not None)
            part.weight.data.copy_(layer.weight.data[span])
            if layer.bias is not None:
                part.bias.data.copy_(layer.bias.data[span])
            self.layers.append(part)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(features) for layer in self.layers)


class Sliced(nn.Module):
    """A network whose head cannot be cut (two that are averaged, a convolution): its logits are cut instead."""

    def __init__(self, model: nn.Module, heads: Sequence[Head]) -> None:
        super().__init__()
        self.model, self.spans = model, spans(heads)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        logits: Tensor = self.model(pictures)
        return tuple(logits[:, span] for span in self.spans)


def with_outputs(model: nn.Module, heads: Sequence[Head]) -> nn.Module:
    """The network, changed in place, with a tuple of logits (N, classes), one for each head, in order."""
    names = head_names(model)
    layer = model.get_submodule(names[0]) if len(names) == 1 else None
    if not isinstance(layer, nn.Linear):
        return Sliced(model, heads)
    model.set_submodule(names[0], Apart(layer, heads))
    return model
