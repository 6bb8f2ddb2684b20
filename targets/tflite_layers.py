"""What each layer's int8 costs in LiteRT: files in which ai-edge-quantizer made one operation int8."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.qtyping import TFLOperationName
from ai_edge_quantizer.recipe_manager import RecipeManager

from distilledge.targets.base import FloatArray, Inputs
from distilledge.targets.ranges import layer_error
from distilledge.targets.scheme import LayerError
from distilledge.targets.tflite_file import Graph, Operation, read_graph
from distilledge.targets.tflite_quantize import EVERYTHING, calibrated, recipe_of

WITH_WEIGHTS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
MOVES = {"QUANTIZE", "DEQUANTIZE"}


def layer_errors(fp32: Path, calibration: Sequence[Inputs], rows: Inputs) -> tuple[LayerError, ...]:
    """See ``Target.layer_errors``. A layer is named by its result."""
    graph = read_graph(fp32)
    whole, _ = recipe_of("w8a8", graph)
    ranges = calibrated(fp32, calibration, whole)
    reference = answers(fp32, rows)
    errors = [
        layer_error(name, operation.name, place, reference, alone(fp32, name, ranges, rows))
        for place, (operation, name) in enumerate(zip(layers(graph), layer_names(graph), strict=True))
    ]
    return tuple(sorted(errors, key=lambda e: e.sqnr_db))


def layers(graph: Graph) -> list[Operation]:
    return [operation for operation in graph.operations if operation.name in WITH_WEIGHTS]


def layer_names(graph: Graph) -> tuple[str, ...]:
    """See ``Target.layer_names``."""
    return tuple(graph.tensors[operation.outputs[0]].name for operation in layers(graph))


def alone(fp32: Path, name: str, ranges: dict[str, Any], rows: Inputs) -> FloatArray:
    recipe = RecipeManager()
    recipe.add_static_config(f"^{re.escape(name)};?$", EVERYTHING, activation_num_bits=8, weight_num_bits=8)
    recipe.add_quantization_config(".*", TFLOperationName.OUTPUT, algorithm_key=AlgorithmName.NO_QUANTIZE)
    work = quantizer.Quantizer(str(fp32))
    work.load_quantization_recipe(recipe.get_quantization_recipe())
    with TemporaryDirectory() as folder:
        path = Path(folder) / "alone.tflite"
        work.quantize(ranges).export_model(str(path))
        return answers(path, rows)


def answers(path: Path, rows: Inputs) -> FloatArray:
    run = Interpreter(str(path), num_threads=1)
    run.allocate_tensors()
    source, result = run.get_input_details()[0]["index"], run.get_output_details()[0]["index"]
    made = []
    for row in rows:
        run.set_tensor(source, row[None])
        run.invoke()
        made.append(run.get_tensor(result).copy())
    return np.concatenate(made)


def conversions(path: Path) -> int:
    return sum(operation.name in MOVES for operation in read_graph(path).operations)
