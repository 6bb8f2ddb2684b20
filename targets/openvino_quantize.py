"""int8 OpenVINO models with NNCF. Import after ``telemetry.switch_off()``: NNCF sends an event when it is imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import nncf
import openvino as ov
from nncf.quantization.advanced_parameters import OverflowFix
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from distilledge.targets.base import Uint8Array


def quantize(model: ov.Model, pictures: Sequence[Uint8Array]) -> tuple[ov.Model, str]:
    """Static int8, preset PERFORMANCE; the TRANSFORMER scheme for models with attention.

    Ranges: smallest and largest value of all pictures (KL 0.007 on lite0). With hard-swish or SiLU, NNCF's mean over
    the pictures: it withstands their outliers (cosine 0.95 against 0.51 on an untrained MobileNetV3), but clips unusual
    pictures and diverges more elsewhere (KL 0.013 on lite0).

    NNCF's ``overflow_fix`` halves the range of the first layer's weights, for x86 CPUs without VNNI, whose 16-bit sums
    saturate. It costs five times the divergence (KL 0.034 against 0.007, lite0), so it is off: on such a CPU, and in
    ONNX Runtime there too, look at the score measured on it.
    """
    kinds = {o.get_type_name() for o in model.get_ordered_ops()}
    attention = bool(kinds & {"Softmax", "ScaledDotProductAttention"})
    unbounded = bool(kinds & {"HSwish", "Swish"})
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(pictures)),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(pictures),
        model_type=nncf.ModelType.TRANSFORMER if attention else None,
        ignored_scope=nncf.IgnoredScope(names=list(normalisation(model))),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.DISABLE,
            activations_range_estimator_params=None if unbounded else RangeEstimatorParametersSet.MINMAX,
        ),
    )
    scheme = (", TRANSFORMER" if attention else "") + (", mean MinMax" if unbounded else ", MinMax")
    return quantized, f"NNCF post-training, PERFORMANCE{scheme}, {len(pictures)} pictures"


def compress_to_int8(model: ov.Model) -> tuple[ov.Model, str]:
    """int8 weights; activations are quantised at run time where the plug-in has the kernel."""
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM), "NNCF weight compression, INT8_ASYM"


def normalisation(model: ov.Model) -> Iterator[str]:
    """Operations from the input to the first that is not a cast, a change of shape or arithmetic with a constant."""
    output = model.inputs[0]
    while True:
        users = [target.get_node() for target in output.get_target_inputs()]
        if len(users) != 1 or users[0].get_type_name() not in {
            *("Convert", "Transpose", "Reshape", "Multiply", "Add", "Subtract", "Divide"),
        }:
            return
        yield users[0].friendly_name
        output = users[0].output(0)
