"""What each layer's int8 costs in ONNX Runtime: one-layer-at-a-time QDQ graphs, and the boundaries of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from distilledge.targets.base import FloatArray, Inputs
from distilledge.targets.onnx import session, tensors
from distilledge.targets.onnx_quantize import WITH_WEIGHTS, normalisation
from distilledge.targets.ranges import Range, by_token, layer_error, minmax, observe
from distilledge.targets.scheme import LayerError

MOVES = {"QuantizeLinear", "DequantizeLinear"}


def layer_errors(fp32: Path, calibration: Sequence[Inputs], rows: Sequence[Inputs]) -> tuple[LayerError, ...]:
    """See ``Target.layer_errors``: each node with weights alone, its input, weights and bias in U8S8, MinMax ranges.

    A layer is named by its result: exporters number nodes anew each time.
    """
    with prepared(fp32) as path:
        proto = onnx.load(path)
        seen = observe(lambda some: tensors(path, some, optimise=False), calibration)
    ranges = {name: minmax(found) for name, found in seen.items()}
    reference = answers(proto, rows)
    errors = []
    for place, node in enumerate(layers(proto.graph)):
        logits = answers(alone(proto, node.name, ranges), rows)
        errors.append(layer_error(node.output[0], node.op_type, place, reference, logits))
    return tuple(sorted(errors, key=lambda e: e.sqnr_db))


def layer_names(fp32: Path) -> tuple[str, ...]:
    """See ``Target.layer_names``."""
    with prepared(fp32) as path:
        return tuple(node.output[0] for node in layers(onnx.load(path).graph))


@contextmanager
def prepared(fp32: Path) -> Iterator[Path]:
    """The file as the quantizer sees it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "prepared.onnx"
        quant_pre_process(str(fp32), str(path), skip_symbolic_shape=True)
        yield path


def layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes with constant weights, in graph order."""
    stored = {tensor.name for tensor in graph.initializer}
    skipped = set(normalisation(graph))
    own = [n for n in graph.node if n.op_type in WITH_WEIGHTS and n.input[1] in stored]
    return [node for node in own if node.name not in skipped]


def alone(proto: onnx.ModelProto, name: str, ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """A copy in which only the node ``name`` is quantised; its result stays float."""
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    kind = next(node.op_type for node in own.graph.node if node.name == name)
    ends = {tensor: (np.float32(low), np.float32(high)) for tensor, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        own,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ends),
        nodes_to_quantize=[name],
        nodes_to_exclude=[],
        op_types_to_quantize=[kind],
        extra_options={"OpTypesToExcludeOutputQuantization": [kind]},
    )
    quantizer.quantize_model()
    made: onnx.ModelProto = quantizer.model.model
    return made


def answers(proto: onnx.ModelProto, rows: Sequence[Inputs]) -> FloatArray:
    """(all rows, or all their tokens, K)."""
    run = session(proto.SerializeToString())
    source = run.get_inputs()[0].name
    return np.concatenate([by_token(run.run(None, {source: row})[0]) for row in rows])


def conversions(optimised: onnx.GraphProto) -> int:
    """Q and DQ of activations that ONNX Runtime did not fuse into an int8 kernel."""
    stored = {tensor.name for tensor in optimised.initializer}
    return sum(node.op_type in MOVES and node.input[0] not in stored for node in optimised.node)
