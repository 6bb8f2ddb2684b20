"""What each layer's int8 costs in OpenVINO: the quantised model with all other layers turned back to float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from distilledge.targets.base import FloatArray, Inputs
from distilledge.targets.openvino import compiled, fed_by_constants
from distilledge.targets.openvino_quantize import is_constant, quantize
from distilledge.targets.ranges import by_token, layer_error
from distilledge.targets.scheme import LayerError, Scheme

WITH_WEIGHTS = {"Convolution", "GroupConvolution", "MatMul"}
PASSED = {"Pad", "Reshape", "Transpose", "MaxPool", "Squeeze", "Unsqueeze"}
"""Operations between a layer and the quantisation of its input."""


def layer_errors(model: ov.Model, calibration: Sequence[Inputs], rows: Sequence[Inputs]) -> tuple[LayerError, ...]:
    """See ``Target.layer_errors``; ``model``: the fp32 one. Biases are those that NNCF corrected, in all of them.

    Without SmoothQuant, which moves scales from activations into weights that are put back here.
    """
    quantized, _ = quantize(model.clone(), calibration, scheme=Scheme(smooth=-1.0))
    kinds = {o.friendly_name: o.get_type_name() for o in model.get_ordered_ops()}
    weights = {o.friendly_name: constant_of(o.input_value(1)) for o in layers(model)}
    reference = answers(alone(quantized, weights, ""), rows)
    errors = [
        layer_error(name, kinds[name], place, reference, answers(alone(quantized, weights, name), rows))
        for place, name in enumerate(weights)
    ]
    return tuple(sorted(errors, key=lambda e: e.sqnr_db))


def layers(model: ov.Model) -> list[ov.Node]:
    """Operations with constant weights, in graph order."""
    return [o for o in model.get_ordered_ops() if o.get_type_name() in WITH_WEIGHTS and weighed(o)]


def weighed(operation: ov.Node) -> bool:
    return fed_by_constants(operation.input_value(1).get_node())


def alone(quantized: ov.Model, weights: Mapping[str, FloatArray], name: str) -> ov.Model:
    """A copy with one layer in int8, or none where no layer has this name."""
    own = quantized.clone()
    operations = own.get_ordered_ops()
    kept = None
    for operation in operations:
        if operation.friendly_name not in weights:
            continue
        if operation.friendly_name == name:
            kept = quantiser_of(operation)
            continue
        operation.input(1).replace_source_output(ops.constant(weights[operation.friendly_name]).output(0))
    for operation in operations:
        if operation.get_type_name() != "FakeQuantize" or is_constant(operation.input_value(0).get_node()):
            continue
        if kept is None or operation.friendly_name != kept:
            source = operation.input_value(0)
            for target in list(operation.output(0).get_target_inputs()):
                target.replace_source_output(source)
    own.validate_nodes_and_infer_types()
    return own


def constant_of(value: ov.Output) -> FloatArray:
    """What a chain of constants comes to."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        return np.array(node.get_data(), np.float32)
    run = compiled(ov.Model([ops.result(value)], [], "weights")).create_infer_request()
    run.infer({})
    return np.array(run.get_output_tensor(0).data, np.float32)


def quantiser_of(operation: ov.Node) -> str | None:
    """The name of the FakeQuantize that a layer's input comes from."""
    node = operation.input_value(0).get_node()
    while node.get_type_name() in PASSED:
        node = node.input_value(0).get_node()
    return str(node.friendly_name) if node.get_type_name() == "FakeQuantize" else None


def answers(model: ov.Model, rows: Sequence[Inputs]) -> FloatArray:
    """(all rows, or all their tokens, K)."""
    run = compiled(model).create_infer_request()
    made = []
    for row in rows:
        run.infer({0: row})
        made.append(by_token(run.get_output_tensor(0).data.copy()))
    return np.concatenate(made)
