"""Several tasks on one network: the columns of its logits by task, and the network with an output for each.

While it is trained, verified and scored, the network has one head as wide as all tasks together; a record says which
columns are whose. One linear layer of all columns is the same function as a layer for each task. A file that leaves has
a layer and a named output for each task, so that int8 has ranges for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor, nn

from distilledge.models.base import Value
from distilledge.models.vision_names import head_names

INPUT_NAMES = ("image", "ids", "logits")
"""Names of tensors in a file that no task may have."""


class Head(Value):
    """One task of a network with several. The first of a network is its primary one: splits are stratified by it."""

    name: str
    classes: tuple[str, ...]


Heads = tuple[Head, ...]
"""Empty: a network of one task."""


def spans(heads: Sequence[Head]) -> tuple[slice, ...]:
    """The columns of each head in the joined logits (N, sum of classes)."""
    ends = list(accumulate(len(head.classes) for head in heads))
    return tuple(slice(end - len(head.classes), end) for head, end in zip(heads, ends, strict=True))


def joined(heads: Sequence[Head]) -> tuple[str, ...]:
    """A name for each column, such as ``texture: cast``."""
    return tuple(f"{head.name}: {name}" for head in heads for name in head.classes)


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
