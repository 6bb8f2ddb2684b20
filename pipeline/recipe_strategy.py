"""How the teacher is made of pretrained weights: the strategies' names in a recipe, and what each takes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from distilledge.models.base import Value
from distilledge.models.errors import UsageError
from distilledge.pipeline.recipe_data import Count, NotNegative, Positive
from distilledge.pipeline.recipe_training import Lora


class Strategy(Value):
    name: str = "fine-tune"
    """A key of ``STRATEGIES``: fine-tune, discriminative, feature-extraction, progressive, l2-sp, ewc, lora, qlora
    or zero-shot; with ``data.target`` dann, coral, mmd or (of pictures) adabn."""
    arguments: dict[str, float | int | bool | str] = {}
    """What the strategy takes; see docs/transfer.md."""


def named(value: Any) -> Any:
    """A bare name stands for the strategy without arguments."""
    return {"name": value} if isinstance(value, str) else value


Chosen = Annotated[Strategy, BeforeValidator(named, json_schema_input_type=str | Strategy)]


class OfSource(Value):
    source: str = ""
    """What the weights were trained on: a folder or manifest of pictures, or a file of texts. Where it has labels (of
    texts: always), the report says how much of it the teacher still knows. ``$NAME`` is expanded."""


class FineTune(OfSource):
    layers: Count | None = None
    """Layer groups below the head that are trained, from the top; None: all."""


class Discriminative(OfSource):
    decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Learning rate of a layer group over that of the group above it (Howard & Ruder 2018, section 3.2)."""


class FeatureExtraction(Value):
    head: Literal["linear", "knn", "prototypes", "tip-adapter"] = "linear"
    k: Count = 20
    """Neighbours that vote, of knn."""
    temperature: Positive = 0.07
    """A neighbour's vote is exp(cosine / temperature) (Wu et al. 2018); prototypes' logits are cosine / temperature."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """Of prototypes; euclidean: minus its square is the logit (Snell et al. 2017)."""
    alpha: NotNegative = 1.0
    """Weight of tip-adapter's cache (Zhang et al. 2022, eq. 6)."""
    beta: Positive = 5.5
    """How fast its votes fade with the distance (eq. 5)."""
    base: Literal["auto", "head", "prototypes"] = "auto"
    """What the cache is added to: the weights' ``head``, or ``prototypes``; ``auto``: the head of CLIP, else these."""
    tuned: bool = False
    """Train the keys of the cache: Tip-Adapter-F."""
    search: bool = False
    """Take alpha and beta that do best on the validation split, out of a grid, before any tuning."""


class Progressive(OfSource):
    by: Literal["epoch", "plateau"] = "epoch"
    epochs: Count = 1
    """Epochs before the next group is thawed; with plateau, epochs without a better validation metric."""


class L2SP(OfSource):
    alpha: NotNegative = 0.1
    """Pull of the pretrained weights (Li et al. 2018, eq. 3)."""
    beta: NotNegative = 0.01
    """Pull of the head to zero."""


class EWC(OfSource):
    strength: Positive = 400.0
    """Lambda of Kirkpatrick et al. 2017, eq. 3."""
    fisher: Literal["source", "target"] = "source"
    """What the Fisher information is taken of: ``source``, pictures the weights were trained on; ``target``, the train
    split, which says what moves the old answers on the new pictures: not the same, and no memory of the source."""
    samples: Count = 200


class LoraAdapters(Lora, OfSource):
    pass


class Dann(Value):
    weight: Positive = 1.0
    """Times the schedule of the reversed gradient, which goes from 0 to 1 (Ganin et al. 2016, section 5.2.2)."""
    gamma: Positive = 10.0
    """How soon it is there."""
    hidden: Count = 256
    """Width of the domain classifier's two layers."""


class Coral(Value):
    weight: Positive = 100.0
    """Of the distance of covariances (Sun & Saenko 2016, eq. 4). Large, because their distance over 4 d^2 is small."""


class Mmd(Value):
    weight: Positive = 1.0
    """Of the squared maximum mean discrepancy."""
    kernels: Count = 5
    """Gaussians, each twice as wide as the one before it (Long et al. 2015)."""


class AdaBn(Value):
    samples: Annotated[int, Field(ge=2)] = 256
    """Target pictures that the statistics are taken of, at most."""


ADAPTING = ("dann", "coral", "mmd", "adabn")
"""Strategies that need ``data.target``."""


class Qlora(Lora):
    """Adapters on a base of 4-bit numbers (Dettmers et al. 2023)."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    """Quantise the scales of the blocks too."""
    compute: Literal["fp32", "bf16"] = "fp32"
    """In which products with the base are computed."""
    adapters: Literal["all", "attention"] = "all"
    """On every linear layer of the blocks, as the paper does, or where lora has them."""


class ZeroShot(Value):
    """Nothing is trained; see ``Prompts``."""


ARGUMENTS: dict[str, type[Value]] = {
    "fine-tune": FineTune,
    "discriminative": Discriminative,
    "feature-extraction": FeatureExtraction,
    "progressive": Progressive,
    "l2-sp": L2SP,
    "ewc": EWC,
    "lora": LoraAdapters,
    "dann": Dann,
    "coral": Coral,
    "mmd": Mmd,
    "adabn": AdaBn,
    "qlora": Qlora,
    "zero-shot": ZeroShot,
}
"""Of each strategy; ``training.strategies.STRATEGIES`` has the same keys."""


def arguments(strategy: Strategy) -> Value:
    """The checked arguments. Raises ``UsageError`` for an unknown strategy or argument, naming near ones."""
    from distilledge.pipeline.recipe_paths import near

    known = ARGUMENTS.get(strategy.name)
    if known is None:
        best = near(strategy.name, list(ARGUMENTS))
        hint = f"did you mean `{best}`?" if best else "choose from " + ", ".join(ARGUMENTS)
        raise UsageError("E2460", f"unknown strategy {strategy.name!r}", hint)
    try:
        return known.model_validate(strategy.arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, fields = ".".join(map(str, first["loc"])), list(known.model_fields)
        if first["type"] == "extra_forbidden":
            best = near(name, fields)
            hint = f"did you mean `{best}`?" if best else "it takes " + ", ".join(fields)
            raise UsageError("E2461", f"strategy {strategy.name} has no argument {name!r}", hint) from error
        what = f"strategy {strategy.name}: {name} is {first['input']!r}: {first['msg']}"
        raise UsageError("E2461", what, "see docs/transfer.md") from error


def is_default(strategy: Strategy) -> bool:
    """Whether it is fine-tuning of all layers, as without a strategy."""
    return strategy.name == "fine-tune" and not strategy.arguments
