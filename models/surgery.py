"""Student surgery: parts that static int8 bears badly replaced by parts that it bears well, weights kept.

A smooth activation (SiLU, GELU, hard-swish) needs a wide asymmetric range, is not fused into the convolution before it,
and falls out of fast int8 kernels; a squeeze-excite block adds two layers, a gate and a product of two activations. The
network is another function afterwards and has to be trained again: by distillation, from the weights it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch import nn

from distilledge.models.base import Activation, Surgery
from distilledge.models.errors import UsageError

GATE_INNER = nn.ReLU
"""Between the two layers of a squeeze-excite block that is made int8-friendly."""


def activation_types(kept: Activation | None = None) -> tuple[type[nn.Module], ...]:
    """Smooth activations of torch and timm; without hard-swish where that is what is wanted."""
    from timm.layers import activations as timm

    smooth = (nn.SiLU, nn.GELU, nn.Mish, timm.Swish, timm.Mish, timm.HardMish, timm.GELU, timm.GELUTanh, timm.QuickGELU)
    hard = (nn.Hardswish, timm.HardSwish)
    return smooth if kept == "hard-swish" else (*smooth, *hard)


def sigmoid_types() -> tuple[type[nn.Module], ...]:
    from timm.layers.activations import Sigmoid

    return nn.Sigmoid, Sigmoid


def squeeze_types() -> tuple[type[nn.Module], ...]:
    """timm's blocks that weigh the channels of a tensor by what they see of it: (N, C, H, W) -> the same shape."""
    from timm.layers import CecaModule, EcaModule, EffectiveSEModule, SEModule
    from timm.models._efficientnet_blocks import SqueezeExcite as Block

    return Block, SEModule, EffectiveSEModule, EcaModule, CecaModule


MADE: dict[Activation, type[nn.Module]] = {"relu6": nn.ReLU6, "hard-swish": nn.Hardswish, "relu": nn.ReLU}


def operated(model: nn.Module, surgery: Surgery) -> nn.Module:
    """``model`` itself, changed in place; every parameter that is left keeps its value.

    Raises ``UsageError`` where there is nothing to replace: such a recipe would train the same network twice.
    """
    found = counts(model)
    if surgery.squeeze_excite == "drop":
        _replace(model, squeeze_types(), lambda _: nn.Identity())
    elif surgery.squeeze_excite == "hard-sigmoid":
        for block in [m for m in model.modules() if isinstance(m, squeeze_types())]:
            _replace(block, sigmoid_types(), lambda _: nn.Hardsigmoid())
            _replace(block, activation_types(), lambda _: GATE_INNER(inplace=True))
    if surgery.activation is not None:
        made = MADE[surgery.activation]
        _replace(model, activation_types(surgery.activation), lambda _: made(inplace=True))
    if counts(model) == found:
        what = "student.surgery changes nothing: the network has no such parts"
        raise UsageError("E2670", what, "leave student.surgery out, or choose a student with SiLU or squeeze-excite")
    return model


def _replace(model: nn.Module, types: tuple[type[nn.Module], ...], made: Callable[[nn.Module], nn.Module]) -> None:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and isinstance(module, types):
            own = made(module)
            own.train(module.training)
            model.set_submodule(name, own)


def counts(model: nn.Module) -> dict[str, int]:
    """How many parts there are of each kind that surgery takes out or puts in."""
    kinds: dict[str, tuple[type[nn.Module], ...]] = {
        "smooth": activation_types("hard-swish"),
        "hard-swish": (nn.Hardswish, *set(activation_types()) - set(activation_types("hard-swish"))),
        "sigmoid": sigmoid_types(),
        "hard-sigmoid": (nn.Hardsigmoid,),
        "squeeze-excite": squeeze_types(),
        "relu": (nn.ReLU, nn.ReLU6),
    }
    seen = Counter(kind for m in model.modules() for kind, types in kinds.items() if isinstance(m, types))
    return {kind: seen[kind] for kind in kinds}


def variants(model: nn.Module) -> tuple[Surgery, ...]:
    """What is worth trying on a network, the mildest first: nothing where static int8 bears it as it is."""
    found = counts(model)
    smooth, blocks = found["smooth"] + found["hard-swish"], found["squeeze-excite"]
    mild = Surgery(
        activation="hard-swish" if found["smooth"] else None, squeeze_excite="hard-sigmoid" if blocks else None
    )
    plain = Surgery(activation="relu6" if smooth else None, squeeze_excite="drop" if blocks else None)
    asked = [mild] if found["smooth"] or found["sigmoid"] else []
    return tuple(dict.fromkeys([*asked, plain])) if smooth or blocks else ()
