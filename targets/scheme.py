"""How static int8 is made, beyond the plain recipe of a runtime; and what one layer's int8 costs."""

from __future__ import annotations

from distilledge.models.base import Value


class Scheme(Value):
    """Without arguments: today's recipe of each runtime, to the bit."""

    ranges: dict[str, tuple[float, float]] = {}
    """Float tensor of the fp32 file -> smallest and largest value that int8 can tell apart; others are calibrated."""
    ranges_name: str = "MinMax"
    """How ``ranges`` were found, in words."""
    whole: bool = False
    """``ranges`` as they are, zero point and all: also in OpenVINO, whose own are symmetric or begin at 0."""
    islands: tuple[str, ...] = ()
    """Operations that stay float, by ``Target.layer_names``."""
    own_bias: bool = False
    """The fp32 file's biases are corrected already: OpenVINO's quantizer must not undo it."""
    equalised: str = ""
    """By what the channels of the fp32 file were equalised across layers; empty: they were not."""
    full_bias: bool = False
    """NNCF's layer-by-layer bias correction instead of its fast one; OpenVINO only."""
    smooth: float | None = None
    """SmoothQuant's alpha in NNCF's TRANSFORMER scheme, 0..1, -1: off; None: NNCF's own, 0.95. OpenVINO only."""
    asymmetric: bool = False
    """NNCF's MIXED preset: activations with a zero point of their own. OpenVINO only."""

    @property
    def words(self) -> str:
        """What is to be added to a recipe's words, beginning with a comma, or nothing."""
        parts = [f"{self.ranges_name} ranges"] if self.ranges else []
        parts += [f"equalised by {self.equalised}"] if self.equalised else []
        parts += ["bias correction"] if self.own_bias and not self.whole else []
        parts += ["full bias correction"] if self.full_bias else []
        parts += (
            [f"SmoothQuant {self.smooth:g}" if self.smooth >= 0 else "no SmoothQuant"]
            if self.smooth is not None
            else []
        )
        parts += ["asymmetric activations"] if self.asymmetric or (self.whole and not self.own_bias) else []
        parts += [f"{len(self.islands)} layers in float"] if self.islands else []
        return "".join(f", {part}" for part in parts)


PLAIN = Scheme()


class LayerError(Value):
    """What changes at the output when one layer only is quantised."""

    name: str
    kind: str
    """Operation type, such as ``Conv``."""
    place: int
    """Among the layers with weights, in graph order (``Target.layer_names``)."""
    sqnr_db: float
    """Power of the logits over power of their error; larger is better, 200 where there is no error."""
    kl: float
    """Mean KL divergence of the softmaxed output from that of the float model, nats."""
