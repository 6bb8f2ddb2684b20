"""Part of the recipe: how far int8 may be worked on until the budget holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distilledge.models.base import Activation, SqueezeExcite, Value
from distilledge.pipeline.recipe_data import Count, Fraction, Positive
from distilledge.targets.base import Precision

RungName = Literal["ptq", "calibration", "ranges", "equalise", "bias", "islands", "qat", "surgery", "w8a16", "w8"]


class Qat(Value):
    """Quantization-aware distillation: the student's training goes on in fake int8 (docs/int8.md)."""

    epochs: Count = 10
    lr: Positive = 1e-4
    """Peak learning rate, cosine to 1 % of it; ranges, learnt as factors, have ten times as much."""
    teacher: Literal["teacher", "student", "none"] = "teacher"
    """Whose answers are learnt from, with ``distill.losses`` of logits: the teacher's, the float student's, or
    nobody's: labels alone, the control."""
    ranges: Literal["learnt", "observed"] = "learnt"
    """Ends of the activations' ranges: trained from the least squared error on (LSQ+), or left there."""
    freeze_bn: Fraction = 0.0
    """Share of the epochs after which batch normalisation keeps its statistics (Krishnamoorthi 2018, 3.2.2). 0: those
    of the trained student from the start, which short trainings do not move away from it."""


class Recut(Value):
    """The student is cut (``student.surgery``), then distilled again (docs/students.md)."""

    activation: Activation | None = "relu6"
    squeeze_excite: SqueezeExcite | None = "drop"
    epochs: Count = 10
    lr: Positive = 1e-3
    """Peak learning rate."""


class Compress(Value):
    """The quantization ladder. Without it each runtime's plain static int8 is shipped, whatever it costs."""

    climb: bool = False
    """Climb ``rungs`` for each runtime's w8a8 file, of texts also its w8dyn, until the student's budget holds on the
    validation split. Of texts one file is made in place of both: the ladder chooses between static and dynamic int8."""
    rungs: tuple[RungName, ...] = ("ptq", "calibration", "ranges", "equalise", "bias", "islands", "w8a16", "w8")
    """In this order. ``ptq``: plain static int8, of texts dynamic too. ``calibration``: other numbers of pictures,
    where ranges depend on them. ``ranges``: percentile, MSE and entropy ranges, SmoothQuant. ``equalise``: channels
    rescaled across layers, biases corrected. ``bias``: bias correction. ``islands``: the worst layers stay float.
    ``qat``: distilled on in fake int8, where ``compress.qat`` is given, which adds it behind ``islands``. ``surgery``:
    cut and distilled again, where ``compress.surgery`` is given. ``w8a16``: 16-bit activations. ``w8``: int8 weights
    only, then float16. Texts leave out what is of pictures only."""
    qat: Qat | None = None
    """Adds the rung ``qat``, which trains, and only where the rungs before it did not settle a budget."""
    surgery: Recut | None = None
    """Adds the rung ``surgery`` behind it, which trains too."""
    samples: Count | None = None
    """Calibration pictures used; default: all of data.calibration."""
    min_agreement: Fraction = 0.98
    """Where the validation split is too small to decide, a rung is taken that answers as fp32 in so many pictures."""
    max_slowdown: Annotated[float, Field(gt=0)] = 1.0
    """p50 over that of the float file in the same measurement: int8 that is certainly slower is refused."""

    @model_validator(mode="after")
    def _with_trained_rungs(self) -> Compress:
        """Whoever says how to train wants the rung; whoever names the rung gets its defaults."""
        for name, settings in (("qat", Qat), ("surgery", Recut)):
            if getattr(self, name) is None and name in self.rungs:
                object.__setattr__(self, name, settings())
            if getattr(self, name) is not None and name not in self.rungs:
                later = [self.rungs.index(other) for other in ("w8a16", "w8") if other in self.rungs]
                at = min(later, default=len(self.rungs))
                object.__setattr__(self, "rungs", (*self.rungs[:at], name, *self.rungs[at:]))
        return self


def chosen(*, text: bool) -> tuple[Precision, ...]:
    """Precisions of a runtime that the ladder makes one file in place of."""
    return ("w8a8", "w8dyn") if text else ("w8a8",)
