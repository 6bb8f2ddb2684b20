"""How a pretrained model is changed: its layers from bottom to head, which of them are trained when, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from distilledge.models.errors import UsageError
from distilledge.models.text_net import TextNet
from distilledge.models.text_training import HEAD, depth
from distilledge.models.vision_names import head_names

Groups = tuple[tuple[str, ...], ...]
"""Names of parameters, of the lowest layers first, of the head last."""


def layer_groups(model: nn.Module) -> Groups:
    """Stages of a convolutional network, blocks of a transformer; embeddings or the stem below, the head above.

    A norm or projection between the last block and the head belongs to that block. By timm's coarse ``group_matcher``;
    raises ``UsageError`` for a model that has none, or no head of its own.
    """
    found: dict[int, list[str]] = {}
    if isinstance(model, TextNet):
        for name, _ in model.named_parameters():
            found.setdefault(depth(model, name), []).append(name)
        return tuple(tuple(found[key]) for key in sorted(found))
    from timm.models._manipulate import group_parameters

    matcher: Any = getattr(model, "group_matcher", None)
    heads = tuple(f"{name}." for name in head_names(model))
    if matcher is None or not heads:
        raise UsageError("E2462", "the model does not say which layers lie above which", "use strategy: fine-tune")
    grouped: dict[int, list[str]] = group_parameters(model, matcher(coarse=True))
    *below, last = (grouped[key] for key in sorted(grouped))
    head = [name for name, _ in model.named_parameters() if name.startswith(heads)]
    body = [[name for name in names if name not in head] for names in below]
    body[-1] += [name for name in last if name not in head]
    return (*(tuple(names) for names in body if names), tuple(head))


def head_module(model: nn.Module) -> str:
    """The name of the one module that gives the logits. Raises ``UsageError`` for a model with two."""
    if isinstance(model, TextNet):
        return HEAD.rstrip(".")
    names = head_names(model)
    if len(names) != 1:
        raise UsageError("E2463", f"the model has {len(names)} heads", "choose a teacher with one, or another strategy")
    return names[0]


Opened = Callable[[int, Sequence[float], int], int]
"""(epoch from 0, the metric of each epoch before it, groups) -> groups that are trained, from the top."""


def by_epoch(every: int) -> Opened:
    """The head alone, then one group more each ``every`` epochs (gradual unfreezing, Howard & Ruder 2018, 3.3)."""
    return lambda epoch, _values, groups: min(groups, 1 + epoch // every)


def by_plateau(patience: int) -> Opened:
    """One group more each time the metric has not risen for ``patience`` epochs: a function of the curve alone."""

    def opened(_epoch: int, values: Sequence[float], groups: int) -> int:
        count, best, waited = 1, float("-inf"), 0
        for value in values:
            waited = 0 if value > best else waited + 1
            best = max(best, value)
            if waited == patience:
                count, waited = count + 1, 0
        return min(groups, count)

    return opened


@dataclass(frozen=True)
class Tuning:
    """Which parameters are trained, when, and at which learning rate. ``groups``: see ``layer_groups``."""

    groups: Groups
    top: int | None = None
    """Groups that are ever trained, from the head down; None: all."""
    decay: float = 1.0
    """Learning rate of a group over that of the group above it."""
    opened: Opened | None = None
    """None: all of them from the start."""
    decays_weights: bool = True
    shares: Mapping[str, float] | None = None
    """Share of the learning rate of each parameter, in place of ``decay``: of layers finer than groups."""

    @property
    def trained(self) -> Groups:
        return self.groups if self.top is None else self.groups[-self.top :]

    def parameter_groups(self, model: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups ``{"params", "lr", "weight_decay"}`` in a stable order, of all that is ever trained.

        Biases, 1-D parameters and what timm's ``no_weight_decay()`` names get no weight decay.
        """
        undecayed: Any = getattr(model, "no_weight_decay", set)
        spared = undecayed()
        named = dict(model.named_parameters())
        self.thaw(model, len(self.trained))
        made: dict[tuple[int, float, bool], list[Tensor]] = {}
        for above, names in enumerate(reversed(self.trained)):
            for name in names:
                plain = named[name].ndim < 2 or name.endswith("bias") or name in spared
                share = self.decay**above if self.shares is None else self.shares[name]
                made.setdefault((above, share, self.decays_weights and not plain), []).append(named[name])
        return [
            {"params": params, "lr": lr * share, "weight_decay": weight_decay if decayed else 0.0}
            for (_, share, decayed), params in made.items()
        ]

    def begin_epoch(self, model: nn.Module, epoch: int, values: Sequence[float]) -> None:
        """Thaw what is trained in this epoch; ``values``: the metric of each epoch before it."""
        count = len(self.trained)
        self.thaw(model, count if self.opened is None else self.opened(epoch, values, count))

    def thaw(self, model: nn.Module, count: int) -> None:
        """Train the top ``count`` groups alone: others get no gradient, and their modules are in eval mode.

        So BatchNorm of a frozen group uses and keeps its statistics, and its dropout is off. A module without
        parameters of its own, such as dropout, is in the mode of the module around it.
        """
        chosen = {name for names in self.groups[-count:] for name in names}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        _set_modes(model, inherited=True)


def _set_modes(module: nn.Module, *, inherited: bool) -> None:
    parameters = list(module.parameters())
    module.training = any(p.requires_grad for p in parameters) if parameters else inherited
    for child in module.children():
        _set_modes(child, inherited=module.training)
