"""Image architectures by name: any timm classification model, and our own variants. No weights are read here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from distilledge.models.base import Value
from distilledge.models.clip_prompts import is_clip
from distilledge.models.errors import UsageError

Triple = tuple[float, float, float]


class InputDefaults(Value):
    """How the published weights of a model want their pictures."""

    mean: Triple
    """Of RGB in 0..1."""
    std: Triple
    size: int
    """Pixels of each side."""
    interpolation: str
    crop: float
    """Share of the resized picture's side that the centre crop keeps."""


HEAD_STD = 0.01
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


CLIP_DEFAULTS = InputDefaults(
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    size=224,
    interpolation="bicubic",
    crop=1.0,
)
Rates = dict[str, float]
"""timm's ``drop_rate`` (before the head) and ``drop_path_rate`` (stochastic depth), where they are not the model's own.
"""


class Variant(Value):
    """An architecture that timm has the parts of, but no name for."""

    build: Callable[[int, Rates], nn.Module]
    """Number of classes, dropout -> model with random weights."""
    defaults: InputDefaults
    near: str
    """The timm model it is derived from."""


def _mobilenet_v1(multiplier: float) -> Callable[[int, Rates], nn.Module]:
    def build(classes: int, rates: Rates) -> nn.Module:
        from timm.models.efficientnet import _gen_mobilenet_v1  # the only place timm has the multiplier

        model: nn.Module = _gen_mobilenet_v1(
            "mobilenetv1_100", channel_multiplier=multiplier, pad_type="same", num_classes=classes, **rates
        )
        return model

    return build


def _mobilenet_v2_same(classes: int, rates: Rates) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("mobilenetv2_100", pad_type="same", num_classes=classes, **rates)
    return model


def _tf_defaults(size: int) -> InputDefaults:
    return InputDefaults(mean=HALF, std=HALF, size=size, interpolation="bilinear", crop=0.875)


VARIANTS: dict[str, Variant] = {
    "mobilenetv1_025": Variant(build=_mobilenet_v1(0.25), defaults=_tf_defaults(128), near="mobilenetv1_100"),
    "mobilenetv1_050": Variant(build=_mobilenet_v1(0.5), defaults=_tf_defaults(160), near="mobilenetv1_100"),
    "mobilenetv2_100_same": Variant(build=_mobilenet_v2_same, defaults=_tf_defaults(224), near="mobilenetv2_100"),
}
"""``same`` is TensorFlow's padding, which weights trained there expect."""


def check_name(name: str) -> None:
    """Raise ``UsageError`` with the nearest names if there is no such model. Creates nothing, asks no network."""
    import timm

    if name in VARIANTS:
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = [*VARIANTS, *timm.list_models()]
        raise UsageError("E2401", f"unknown model {name!r}", _nearest(architecture, known))
    tagged: list[str] = timm.list_pretrained(architecture + ".*") if tag else []
    if tag and name not in tagged:
        raise UsageError("E2402", f"unknown weights tag {tag!r} of {architecture}", _nearest(name, tagged))


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or known[:5]
    return "did you mean " + ", ".join(near) + "? `distilledge models` lists recommended ones"


def config(name: str) -> Any:
    """timm's ``PretrainedCfg`` of a checked name; None for our variants and models without one."""
    import timm

    return None if name in VARIANTS else timm.models.get_pretrained_cfg(name, allow_unregistered=True)


def input_defaults(name: str) -> InputDefaults:
    """The input the published weights were trained for; ImageNet's where timm does not say.

    Models known from TensorFlow (``tf_*_lite*`` and our variants) use mean and std 0.5, CLIP's its own.
    """
    if is_clip(name):
        return CLIP_DEFAULTS
    check_name(name)
    if name in VARIANTS:
        return VARIANTS[name].defaults
    cfg = config(name)
    if cfg is None:
        return InputDefaults(mean=IMAGENET_MEAN, std=IMAGENET_STD, size=224, interpolation="bicubic", crop=0.875)
    return InputDefaults(
        mean=cfg.mean, std=cfg.std, size=cfg.input_size[-1], interpolation=cfg.interpolation, crop=cfg.crop_pct
    )


def build(name: str, *, classes: int, size: int, pretrained: bool = False, rates: Rates | None = None) -> nn.Module:
    """The architecture, for pictures of ``size`` pixels; weights random, or from the hub if ``pretrained``.

    Transformers with a fixed grid get ``size`` as ``img_size``: their position embedding is resampled when weights
    are loaded. Raises ``UsageError`` for a size or ``rates`` that the model cannot take.
    """
    import timm

    check_name(name)
    if name in VARIANTS:
        return with_new_head(VARIANTS[name].build(classes, rates or {}))
    options: dict[str, Any] = {**_grid_size(name, size), **(rates or {})}
    try:
        model: nn.Module = timm.create_model(name, num_classes=classes, pretrained=pretrained, **options)
    except TypeError as error:
        if not any(rate in str(error) for rate in rates or {}):
            raise
        raise UsageError("E2580", f"{name} has no such dropout: {error}", "leave training.drop_path out") from error
    cfg = config(name) if pretrained else None
    return model if cfg is not None and cfg.num_classes == classes else with_new_head(model)


def _grid_size(name: str, size: int) -> dict[str, int]:
    """``img_size`` for transformers; their pictures must divide into patches and windows: tried on the meta device."""
    import timm
    import torch

    cfg = config(name)
    if cfg is None or not cfg.fixed_input_size:
        return {}
    usual = f"set its input.size to {cfg.input_size[-1]}"
    try:
        with torch.device("meta"), torch.no_grad():
            model = timm.create_model(name, img_size=size).eval()
            model(torch.empty(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise UsageError("E2403", f"{name} cannot take pictures of {size} pixels: {error}", usual) from error
    patch = model.feature_info[-1]["reduction"]
    if size % patch:
        raise UsageError("E2403", f"{name} needs a size that is a multiple of {patch}, not {size}", usual)
    return {"img_size": size}


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Module names of the classifier, as timm records them; a distilled DeiT has two."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    names: str | tuple[str, ...] = cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def reset_head(model: nn.Module, classes: int) -> None:
    """Replace the classifier in place with a freshly initialised one for ``classes`` classes."""
    reset: Any = model.reset_classifier
    reset(classes)
    with_new_head(model)


def with_new_head(model: nn.Module) -> nn.Module:
    """The model, its classifier set to small weights and no bias, so that the first loss is about ln(classes).

    timm draws EfficientNet's from +-1/sqrt(classes), several times wider: the first epochs go into undoing that.
    """
    for name in head_names(model):
        head = model.get_submodule(name)
        if isinstance(head, nn.Linear | nn.Conv2d):
            nn.init.normal_(head.weight, std=HEAD_STD)
            if head.bias is not None:
                nn.init.zeros_(head.bias)
    return model
