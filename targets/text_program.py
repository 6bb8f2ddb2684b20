"""A text network as an ONNX graph of any length: what ONNX Runtime runs, and what OpenVINO reads."""

from __future__ import annotations

import onnx
import torch

from distilledge.targets.base import TextDeployable
from distilledge.targets.deployed import IDS, LOGITS, deployed_text

OPSET = 18
"""The lowest that torch's exporter writes without down-conversion: the widest choice of runtimes on devices."""


def text_program(model: torch.nn.Module, deployable: TextDeployable) -> onnx.ModelProto:
    """int32 ids (1, L) -> logits, L from 1 to ``max_length``, by torch's own exporter."""
    module, example = deployed_text(model, deployable)
    length = torch.export.Dim("length", min=1, max=deployable.max_length)
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[IDS],
        output_names=[LOGITS],
        dynamic_shapes=({1: length},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    strip_traces(proto)
    return proto


def strip_traces(proto: onnx.ModelProto) -> None:
    """Drop the exporter's stack traces: they hold paths of this machine and make the file depend on it."""
    del proto.graph.metadata_props[:]
    graph = proto.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
