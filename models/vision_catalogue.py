"""Recommended teachers and students, and how well a network bears static int8."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn

from distilledge.models.base import Value
from distilledge.models.surgery import squeeze_types
from distilledge.models.vision_names import VARIANTS, build, config

Role = Literal["teacher", "student"]
Friendliness = Literal["good", "fair", "poor"]


class ModelCard(Value):
    """One recommended model, with 1000 classes at its default size."""

    name: str
    role: Role
    size: int
    """Pixels of each side."""
    parameters: int
    macs: int
    """Multiply-accumulates of one picture."""
    hub_weights: bool
    """Whether ``weights: hub`` finds any."""
    license: str
    """Of the hub weights, as timm states it; empty without them."""
    int8: Friendliness
    int8_reason: str


class Entry(NamedTuple):
    name: str
    role: Role
    size: int
    parameters: int
    macs: int


CATALOGUE: tuple[Entry, ...] = (
    Entry("convnext_base.clip_laion2b_augreg_ft_in1k", "teacher", 256, 88_591_464, 20_054_843_392),
    Entry("vit_base_patch16_clip_224.openai", "teacher", 224, 86_568_424, 17_563_828_224),
    Entry("swin_tiny_patch4_window7_224", "teacher", 224, 28_288_354, 4_490_566_656),
    Entry("convnext_tiny", "teacher", 224, 28_589_128, 4_455_531_264),
    Entry("tf_efficientnetv2_s", "teacher", 300, 21_458_488, 5_307_561_248),
    Entry("efficientnet_b4", "teacher", 320, 19_341_616, 3_063_687_008),
    Entry("resnet101", "teacher", 224, 44_549_160, 7_801_405_440),
    Entry("resnet50", "teacher", 224, 25_557_032, 4_089_184_256),
    Entry("deit_small_patch16_224", "teacher", 224, 22_050_664, 4_598_882_304),
    Entry("deit_tiny_patch16_224", "teacher", 224, 5_717_416, 1_253_683_200),
    Entry("tf_efficientnet_lite4", "student", 380, 13_006_568, 3_943_564_112),
    Entry("tf_efficientnet_lite3", "student", 300, 8_197_096, 1_607_554_544),
    Entry("tf_efficientnet_lite2", "student", 260, 6_092_072, 859_736_272),
    Entry("tf_efficientnet_lite1", "student", 240, 5_416_680, 600_185_232),
    Entry("tf_efficientnet_lite0", "student", 224, 4_652_008, 385_187_552),
    Entry("resnet18", "student", 224, 11_689_512, 1_814_073_344),
    Entry("mobilenetv4_conv_medium", "student", 256, 9_715_512, 1_080_244_224),
    Entry("mobilenetv4_conv_small", "student", 224, 3_774_024, 186_005_568),
    Entry("mobilenetv4_conv_small_050", "student", 224, 2_238_952, 64_741_408),
    Entry("mobilenetv2_100", "student", 224, 3_504_872, 300_774_272),
    Entry("mobilenetv2_100_same", "student", 224, 3_504_872, 300_774_272),
    Entry("mobilenetv2_050", "student", 224, 1_968_680, 97_131_840),
    Entry("mobilenetv1_050", "student", 160, 1_331_592, 76_524_800),
    Entry("mobilenetv1_025", "student", 128, 470_072, 13_570_048),
    Entry("efficientnet_b0", "student", 224, 5_288_548, 385_814_752),
    Entry("tf_efficientnetv2_b0", "student", 192, 7_139_704, 528_186_752),
    Entry("mobilenetv3_large_100", "student", 224, 5_483_032, 216_589_760),
    Entry("mobilenetv3_small_100", "student", 224, 2_542_856, 56_510_400),
)
"""Stored, because building them all takes seconds; a test counts each again with ``profile``."""


def int8_friendliness(model: nn.Module) -> tuple[Friendliness, str]:
    """How static int8 (``w8a8``) is likely to go in all three runtimes, judged by the layers, and why.

    Measured with random weights: ReLU networks gain 2 to 3 times everywhere; hard-swish falls out of fast paths; SiLU
    with squeeze-excite gains nothing in ONNX Runtime; LayerNorm networks are slower or wrong in LiteRT.
    """
    squeeze = _has(model, squeeze_types())
    if _has(model, (nn.LayerNorm, nn.MultiheadAttention)):
        return "poor", "LayerNorm or attention: static int8 is slower or wrong in LiteRT; prefer w8dyn"
    if _has(model, (nn.SiLU,)):
        return ("poor", "SiLU with squeeze-excite: loses accuracy, gains little") if squeeze else ("fair", "SiLU")
    if _has(model, (nn.Hardswish,)):
        return "fair", "hard-swish: int8 may be slower than float in ONNX Runtime and LiteRT"
    if squeeze:
        return "fair", "squeeze-excite: its gates need a wide activation range"
    if _has(model, _smooth_types()):
        return "fair", "smooth activations: asymmetric ranges, and not fused into convolutions"
    return "good", "convolutions with ReLU"


def _has(model: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
    return any(isinstance(m, types) for m in model.modules())


def _smooth_types() -> tuple[type[nn.Module], ...]:
    from timm.layers.activations import GELU, GELUTanh, HardMish, HardSwish, Mish, QuickGELU, Swish

    return nn.GELU, nn.Mish, nn.ELU, nn.PReLU, GELU, GELUTanh, HardMish, HardSwish, Mish, QuickGELU, Swish


def catalogue() -> tuple[ModelCard, ...]:
    """Cards of all recommended models, teachers first, large to small in each int8 family. Asks no network."""
    return tuple(_card(entry) for entry in CATALOGUE)


def _card(entry: Entry) -> ModelCard:
    import torch

    with torch.device("meta"):
        friendliness, reason = int8_friendliness(build(entry.name, classes=1000, size=entry.size))
    cfg = None if entry.name in VARIANTS else config(entry.name)
    hub = cfg is not None and bool(cfg.has_weights)
    return ModelCard(
        **entry._asdict(),
        hub_weights=hub,
        license=(cfg.license or "unstated") if cfg is not None and hub else "",
        int8=friendliness,
        int8_reason=reason,
    )
