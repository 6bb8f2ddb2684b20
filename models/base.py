"""The vocabulary of the models layer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Activation = Literal["relu6", "hard-swish", "relu"]
SqueezeExcite = Literal["drop", "hard-sigmoid"]


class Value(BaseModel):
    """A frozen record: a part of a recipe or a result. Unknown keys, inf and NaN are refused; JSON in and out."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class Surgery(Value):
    """What is cut out of a student before it is trained, and what is put in its place (``models.surgery``)."""

    activation: Activation | None = None
    """Instead of every SiLU, GELU, Mish and hard-swish; ``hard-swish`` leaves hard-swish as it is. Default: none."""
    squeeze_excite: SqueezeExcite | None = None
    """``drop``: the blocks go, with their weights. ``hard-sigmoid``: their gate becomes a hard sigmoid, their inner
    activation a ReLU. Default: as they are."""
