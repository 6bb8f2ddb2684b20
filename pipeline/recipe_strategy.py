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
    """A key of ``STRATEGIES``: fine-tune, discriminative, feature-extraction, progressive, l2-sp, ewc or lora."""
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
    head: Literal["linear", "knn"] = "linear"
    k: Count = 20
    """Neighbours that vote, of knn."""
    temperature: Positive = 0.07
    """A neighbour's vote is exp(cosine / temperature) (Wu et al. 2018)."""


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


ARGUMENTS: dict[str, type[Value]] = {
    "fine-tune": FineTune,
    "discriminative": Discriminative,
    "feature-extraction": FeatureExtraction,
    "progressive": Progressive,
    "l2-sp": L2SP,
    "ewc": EWC,
    "lora": LoraAdapters,
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
