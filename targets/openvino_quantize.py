"""int8 OpenVINO models with NNCF. Import after ``telemetry.switch_off()``: NNCF sends an event when it is imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import nncf
import numpy as np
import openvino as ov
from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters, OverflowFix
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from openvino import opset13 as ops

from distilledge.targets.base import Inputs
from distilledge.targets.scheme import PLAIN, Scheme

STEPS = 255
PASSED = {"Pad", "Reshape", "Transpose", "MaxPool", "Squeeze", "Unsqueeze"}


def quantize(
    model: ov.Model, pictures: Sequence[Inputs], *, saturates: bool = False, scheme: Scheme = PLAIN
) -> tuple[ov.Model, str]:
    """Static int8, preset PERFORMANCE; the TRANSFORMER scheme for models with attention.

    Ranges: smallest and largest value of all pictures (KL 0.007 on lite0). With hard-swish or SiLU, NNCF's mean over
    the pictures: it withstands their outliers (cosine 0.95 against 0.51 on an untrained MobileNetV3), but clips unusual
    pictures and diverges more elsewhere (KL 0.013 on lite0).

    NNCF's ``overflow_fix`` halves the range of weights, for x86 CPUs without VNNI, whose 16-bit sums saturate. It costs
    five times the divergence elsewhere (KL 0.034 against 0.007, lite0) and cures little there, so it is off;
    ``saturates``: ``halve_activations`` instead (figures: ``saturation``).
    """
    kinds = {o.get_type_name() for o in model.get_ordered_ops()}
    attention = bool(kinds & {"Softmax", "ScaledDotProductAttention"})
    unbounded = bool(kinds & {"HSwish", "Swish"})
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(pictures)),
        preset=nncf.QuantizationPreset.MIXED if scheme.asymmetric else nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(pictures),
        model_type=nncf.ModelType.TRANSFORMER if attention else None,
        fast_bias_correction=not scheme.full_bias,
        ignored_scope=nncf.IgnoredScope(names=[*normalisation(model), *scheme.islands]),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.DISABLE,
            disable_bias_correction=scheme.own_bias,
            activations_range_estimator_params=None if unbounded else RangeEstimatorParametersSet.MINMAX,
            smooth_quant_alphas=smoothing(scheme),
        ),
    )
    (set_activations if scheme.whole else narrow_activations)(quantized, scheme.ranges)
    if saturates:
        halve_activations(quantized)
    kind = (", TRANSFORMER" if attention else "") + (", mean MinMax" if unbounded else ", MinMax")
    bits = ", 7-bit activations" if saturates else ""
    return quantized, f"NNCF post-training, PERFORMANCE{kind}{bits}, {len(pictures)} samples{scheme.words}"


def smoothing(scheme: Scheme) -> AdvancedSmoothQuantParameters:
    """Xiao et al. 2022 (arXiv 2211.10438); NNCF applies it with the TRANSFORMER scheme only."""
    return (
        AdvancedSmoothQuantParameters()
        if scheme.smooth is None
        else AdvancedSmoothQuantParameters(matmul=scheme.smooth)
    )


def narrow_activations(model: ov.Model, ranges: dict[str, tuple[float, float]]) -> None:
    """Scale the range of each activation so that its larger end is that of ``ranges``: PERFORMANCE ranges are symmetric
    or begin at 0, so that one number says all and the zero point stays.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or is_constant(node.input_value(0).get_node()):
            continue
        ends = ranges.get(node.input_value(0).get_node().friendly_name)
        low, high = (node.input_value(i).get_node().get_data() for i in (1, 2))
        widest = max(float(np.abs(low).max()), float(np.abs(high).max()))
        if ends is None or widest == 0 or max(-ends[0], ends[1]) <= 0:
            continue
        factor = min(1.0, max(-ends[0], ends[1]) / widest)
        for inputs, value in (((1, 3), low), ((2, 4), high)):
            scaled = ops.constant((value * factor).astype(np.float32)).output(0)
            for index in inputs:
                node.input(index).replace_source_output(scaled)
    model.validate_nodes_and_infer_types()


def set_activations(model: ov.Model, ranges: dict[str, tuple[float, float]]) -> None:
    """The range of each activation becomes that of ``ranges``, moved so that 0 is one of its 256 values.

    Where nothing but a change of shape lies between, that of the tensor before it.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or is_constant(node.input_value(0).get_node()):
            continue
        source = node.input_value(0).get_node()
        while source.friendly_name not in ranges and source.get_type_name() in PASSED:
            source = source.input_value(0).get_node()
        low, high = ranges.get(source.friendly_name, (0.0, 0.0))
        if low >= high:
            continue
        step = (high - low) / STEPS
        zero = round(-low / step)
        for inputs, value in (((1, 3), -zero * step), ((2, 4), (STEPS - zero) * step)):
            end = ops.constant(np.float32(value)).output(0)
            for index in inputs:
                node.input(index).replace_source_output(end)
    model.validate_nodes_and_infer_types()


def halve_activations(model: ov.Model) -> None:
    """Double the upper range of activations: 7 of their 8 bits are used, and sums fit (2 x 127 x 127 = 32,258)."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or is_constant(node.input_value(0).get_node()):
            continue
        low, high = (node.input_value(i).get_node().get_data() for i in (1, 2))
        wider = ops.constant((low + 2 * (high - low)).astype(np.float32)).output(0)
        node.input(2).replace_source_output(wider)
        node.input(4).replace_source_output(wider)
    model.validate_nodes_and_infer_types()


def is_constant(node: ov.Node) -> bool:
    kinds = ("Constant", "Convert")
    return node.get_type_name() in kinds and all(is_constant(i.get_node()) for i in node.input_values())


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
