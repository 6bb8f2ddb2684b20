"""Structured pruning: whole channels are cut, so that every runtime is faster without sparse kernels.

Which channels belong together (a residual's two sides, a depthwise convolution and what feeds it, the layers of
squeeze-excite) is found by torch-pruning (Fang et al. 2023, DepGraph, arXiv 2301.12900). A pruned network is recorded
as the channel counts of its layers: it is built again from those without torch-pruning.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distilledge.models.errors import UsageError
from distilledge.models.vision_names import head_names

Importance = Literal["magnitude", "bn-scale"]
Channels = dict[str, tuple[int, ...]]
"""Module name -> (in, out, groups) of a convolution, (in, out) of a linear layer, (features,) of a normalisation."""

SAFE = 1e-3
"""Of a channel: torch-pruning rounds the product of a ratio and a count down."""
MOST, STEPS = 0.95, 7
"""Largest share of the channels that is tried, and halvings of the interval up to it: to 0.7 % of the channels."""


def channels(model: nn.Module) -> Channels:
    """Of every layer that has channels."""
    found: Channels = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = (module.in_channels, module.out_channels, module.groups)
        elif isinstance(module, nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, nn.BatchNorm2d):
            found[name] = (module.num_features,)
    return found


def resized(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
    """``model`` itself with the channel counts of ``record`` (``channels`` of a pruned one); its weights are undefined.

    Raises ``UsageError`` for a record of another network.
    """
    layers = dict(model.named_modules())
    for name, sizes in record.items():
        module = layers.get(name)
        if isinstance(module, nn.Conv2d) and len(sizes) == 3:
            module.in_channels, module.out_channels, module.groups = sizes
            _resize(module, (sizes[1], sizes[0] // sizes[2], *module.kernel_size), sizes[1])
        elif isinstance(module, nn.Linear) and len(sizes) == 2:
            module.in_features, module.out_features = sizes
            _resize(module, (sizes[1], sizes[0]), sizes[1])
        elif isinstance(module, nn.BatchNorm2d) and len(sizes) == 1:
            module.num_features = sizes[0]
            _resize(module, tuple(sizes), sizes[0])
            for buffer in ("running_mean", "running_var"):
                module.register_buffer(buffer, torch.ones(sizes[0]))
        else:
            what = f"the recorded channels are of another network: {name} {tuple(sizes)}"
            raise UsageError("E2671", what, "run again: the stage is rebuilt")
    return model


def _resize(module: nn.Module, weight: tuple[int, ...], bias: int) -> None:
    for name, shape in (("weight", weight), ("bias", (bias,))):
        if getattr(module, name) is not None and tuple(getattr(module, name).shape) != shape:
            setattr(module, name, nn.Parameter(torch.zeros(shape)))


@torch.no_grad()
def restated(model: nn.Module, size: int) -> nn.Module:
    """``model`` itself; the channels of its stages, as timm lists them in ``feature_info``, are those it now has."""
    entries = {str(entry["module"]): entry for entry in getattr(model, "feature_info", [])}

    def seen(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: entries[name].update(num_chs=output.shape[1])

    hooks = [model.get_submodule(name).register_forward_hook(seen(name)) for name in entries]
    training = model.training
    model.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return model.train(training)


def changed(original: nn.Module, pruned: nn.Module) -> Channels:
    """What a record needs to hold."""
    before = channels(original)
    return {name: sizes for name, sizes in channels(pruned).items() if before[name] != sizes}


def widest(
    model: nn.Module, example: Tensor, fits: Callable[[nn.Module], bool], *, by: Importance, multiple: int
) -> nn.Module:
    """The least pruned copy that ``fits``, by halving the interval of the share of channels cut from every layer.

    ``example``: (1, 3, H, W). Channel counts stay multiples of ``multiple``; the head's classes stay. ``fits`` is taken
    to be true for all that are pruned more. Raises ``UsageError`` where the most pruned one does not fit.
    """
    low, high = 0.0, MOST
    tried: dict[str, bool] = {}

    def tell(candidate: nn.Module) -> bool:
        key = str(sorted(channels(candidate).items()))
        if key not in tried:
            tried[key] = fits(candidate)
        return tried[key]

    best = cut(model, example, high, by=by, multiple=multiple)
    if not tell(best):
        what = f"pruning cannot go so far: with {MOST:.0%} of the channels cut the network is still above the limit"
        raise UsageError("E2672", what, "raise student.prune.macs or latency, or choose a smaller student.model")
    for _ in range(STEPS):
        middle = (low + high) / 2
        candidate = cut(model, example, middle, by=by, multiple=multiple)
        if tell(candidate):
            best, high = candidate, middle
        else:
            low = middle
    return best


def kept(count: int, share: float, multiple: int) -> int:
    """Channels left of ``count``: a multiple, rounded down, never none; fewer than one multiple stay as they are."""
    return min(count, max(multiple, int(count * (1 - share)) // multiple * multiple))


def cut(model: nn.Module, example: Tensor, share: float, *, by: Importance, multiple: int) -> nn.Module:
    """A copy without the least important ``share`` of the channels of every layer; ``multiple`` of them at a time.

    ``magnitude``: L2 norm of all weights that hang on a channel (Li et al. 2017, arXiv 1608.08710); ``bn-scale``: the
    scale of its normalisation (Liu et al. 2017, arXiv 1708.06519). Raises ``ModuleNotFoundError`` where torch-pruning
    is not installed.
    """
    with warnings.catch_warnings(action="ignore"):  # of torch-pruning's own deprecated calls
        import torch_pruning

        own = copy.deepcopy(model).eval().requires_grad_(True)
        kinds = torch_pruning.importance
        importance = kinds.GroupMagnitudeImportance(p=2) if by == "magnitude" else kinds.BNScaleImportance()
        pruner = torch_pruning.pruner.BasePruner(
            own,
            example,
            importance=importance,
            pruning_ratio=share,
            pruning_ratio_dict={
                module: 1 - (kept(sizes[1], share, multiple) + SAFE) / sizes[1]
                for module, sizes in ((own.get_submodule(name), sizes) for name, sizes in channels(own).items())
                if len(sizes) > 1
            },
            ignored_layers=[own.get_submodule(name) for name in head_names(own)],
        )
        pruner.step()
    for parameter in own.parameters():
        parameter.grad = None
    return own.train(model.training)
