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
from distilledge.targets.ondevice.session import LENGTH
from distilledge.targets.ranges import by_token, layer_error
from distilledge.targets.scheme import LayerError
from distilledge.targets.tflite_file import layer_names, layers, read_graph, read_graphs
from distilledge.targets.tflite_quantize import EVERYTHING, calibrated, recipe_of

MOVES = {"QUANTIZE", "DEQUANTIZE"}


def layer_errors(fp32: Path, calibration: Sequence[Inputs], rows: Sequence[Inputs]) -> tuple[LayerError, ...]:
    """See ``Target.layer_errors``. A layer is named by its result, of several lengths by that of the first."""
    graphs = read_graphs(fp32)
    whole, _ = recipe_of("w8a8", graphs[0])
    ranges = calibrated(fp32, calibration, whole)
    reference = answers(fp32, rows)
    kinds = [operation.name for operation in layers(graphs[0])]
    alike = list(zip(*(layer_names(graph) for graph in graphs), strict=True))
    errors = [
        layer_error(names[0], kinds[place], place, reference, alone(fp32, names, ranges, rows))
        for place, names in enumerate(alike)
    ]
    return tuple(sorted(errors, key=lambda e: e.sqnr_db))


def alone(fp32: Path, names: Sequence[str], ranges: dict[str, Any], rows: Sequence[Inputs]) -> FloatArray:
    """``names``: the layer in every subgraph."""
    recipe = RecipeManager()
    for name in names:
        recipe.add_static_config(f"^{re.escape(name)};?$", EVERYTHING, activation_num_bits=8, weight_num_bits=8)
    recipe.add_quantization_config(".*", TFLOperationName.OUTPUT, algorithm_key=AlgorithmName.NO_QUANTIZE)
    work = quantizer.Quantizer(str(fp32))
    work.load_quantization_recipe(recipe.get_quantization_recipe())
    with TemporaryDirectory() as folder:
        path = Path(folder) / "alone.tflite"
        work.quantize(ranges).export_model(str(path))
        return answers(path, rows)


def answers(path: Path, rows: Sequence[Inputs]) -> FloatArray:
    """(all rows, or all their tokens, K)."""
    run = Interpreter(str(path), num_threads=1)
    signatures = run.get_signature_list()
    runners: dict[str, Any] = {}
    made = []
    for row in rows:
        name = f"{LENGTH}{row.shape[1]}"
        name = name if name in signatures else next(iter(signatures))
        runner = runners.setdefault(name, run.get_signature_runner(name))
        found = runner(**{next(iter(runner.get_input_details())): row})
        made.append(by_token(next(iter(found.values())).copy()))
    return np.concatenate(made)


def conversions(path: Path) -> int:
    return sum(operation.name in MOVES for operation in read_graph(path).operations)
