"""fp16 and int8 TFLite files with ai-edge-quantizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update

from distilledge.targets.base import Inputs, Precision
from distilledge.targets.ondevice.session import LENGTH
from distilledge.targets.scheme import PLAIN, Scheme
from distilledge.targets.tflite_file import Graph, layer_names, read_graph, read_graphs

PASSED = {"PAD", "RELU", "RELU6", "MAX_POOL_2D", "RESHAPE", "TRANSPOSE"}
EVERYTHING = TFLOperationName.ALL_SUPPORTED
TEXTS = 32
"""Calibration texts for each signature, the longest that fit: the calibrator takes 0.2 s for one (MiniLM)."""


def quantize(
    fp32: Path,
    path: Path,
    precision: Precision,
    samples: Sequence[Inputs],
    *,
    pad_id: int = 0,
    scheme: Scheme = PLAIN,
) -> str:
    """Write ``path`` and say how. It must not exist yet: ai-edge-quantizer refuses to overwrite.

    Ranges are the smallest and largest value of all pictures. The quantizer's default, a moving average of each
    picture's, depends on their order and cuts the tops off: six times the divergence (KL 0.041 against 0.007, lite0).
    """
    recipe, words = recipe_of(precision, read_graph(fp32), floats(fp32, scheme.islands))
    work = quantizer.Quantizer(str(fp32))
    work.load_quantization_recipe(recipe.get_quantization_recipe())
    if not work.need_calibration:
        work.quantize().export_model(str(path))
        return f"{words}{scheme.words}"
    work.quantize(narrowed(calibrated(fp32, samples, recipe, pad_id), scheme)).export_model(str(path))
    return f"{words}, {len(samples)} samples{scheme.words}"


def calibrated(fp32: Path, samples: Sequence[Inputs], recipe: RecipeManager, pad_id: int = 0) -> dict[str, Any]:
    """Tensor -> smallest and largest value of all samples."""
    ranges = Calibrator(str(fp32), num_threads=1, qsv_update_func=min_max_update)
    ranges.calibrate(fed(fp32, samples, pad_id), recipe)
    found: dict[str, Any] = ranges.get_model_qsvs()
    return found


def narrowed(found: dict[str, Any], scheme: Scheme) -> dict[str, Any]:
    """The scheme's ranges instead of the calibrated ones, of activations: weights are calibrated per channel."""
    given = {name: ends for name, ends in scheme.ranges.items() if name in found and found[name]["min"].size == 1}
    return found | {
        name: {
            **found[name],
            "min": np.full_like(found[name]["min"], low),
            "max": np.full_like(found[name]["max"], high),
        }
        for name, (low, high) in given.items()
    }


def fed(path: Path, samples: Sequence[Inputs], pad_id: int) -> dict[str, list[dict[str, Inputs]]]:
    """Signature -> its calibration inputs; texts padded to each length, those longer than all of them cut."""
    signatures = {name: entry["inputs"][0] for name, entry in Interpreter(str(path)).get_signature_list().items()}
    if not any(name.startswith(LENGTH) for name in signatures):
        name, source = next(iter(signatures.items()))
        return {name: [{source: sample} for sample in samples]}
    return {
        name: [{source: ids} for ids in of_length(samples, int(name.removeprefix(LENGTH)), pad_id)]
        for name, source in signatures.items()
    }


def of_length(samples: Sequence[Inputs], length: int, pad_id: int) -> list[Inputs]:
    """(1, length) of the longest texts that fit; where none does, of the shortest, cut."""
    by_size = sorted(samples, key=lambda ids: ids.shape[1])
    fitting = [ids for ids in by_size if ids.shape[1] <= length][-TEXTS:] or by_size[:TEXTS]
    cut = [ids[:, :length] for ids in fitting]
    return [np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=pad_id) for ids in cut]


def floats(path: Path, islands: Sequence[str]) -> list[str]:
    """Results that stay float for ``islands``, layers of the first subgraph, in every subgraph."""
    graphs = read_graphs(path)
    places = [place for place, name in enumerate(layer_names(graphs[0])) if name in islands]
    return [name for graph in graphs for name in widened(graph, [layer_names(graph)[place] for place in places])]


def recipe_of(precision: Precision, graph: Graph, kept: Sequence[str] = ()) -> tuple[RecipeManager, str]:
    """The quantizer's rules (the last that matches wins) and their words. ``kept``: results that stay float.

    Dynamic int8 keeps one scale for each fully-connected layer: tflite-runtime 2.14 reads one scale per channel as
    nonsense without a word (cosine with float 0.13 on MobileNetV1, 0.97 with one scale; static int8 is not affected).
    Text models, which it does not run (see ``session``), have one for each channel: agreement with float 0.993 instead
    of 0.965 (MiniLM on Banking77).

    Attention models: only fully-connected and convolution layers (and the embedding) become static int8; all of it is
    slower and wrong.
    """
    recipe, attention = RecipeManager(), any(o.name == "SOFTMAX" for o in graph.operations)
    text = len(graph.tensors[graph.inputs[0]].shape) == 2
    if precision == "fp16":
        recipe.add_weight_only_config(".*", EVERYTHING, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING)
        return recipe, "float16 weights, float32 arithmetic"
    if precision == "w8":
        recipe.add_weight_only_config(".*", EVERYTHING, num_bits=8)
        return recipe, "weight_only_wi8_afp32, per channel"
    if precision == "w8dyn":
        recipe.add_dynamic_config(".*", EVERYTHING, num_bits=8)
        keep(recipe, kept)
        if text:
            return recipe, "dynamic_wi8_afp32, per channel"
        dense = TFLOperationName.FULLY_CONNECTED
        recipe.add_dynamic_config(".*", dense, num_bits=8, granularity=QuantGranularity.TENSORWISE)
        return recipe, "dynamic_wi8_afp32, convolutions per channel, FULLY_CONNECTED per tensor"
    bits = 16 if precision == "w8a16" else 8
    scope = (TFLOperationName.FULLY_CONNECTED, TFLOperationName.CONV_2D) if attention else (EVERYTHING,)
    for operation in scope:
        recipe.add_static_config(".*", operation, activation_num_bits=bits, weight_num_bits=8)
    if text:
        recipe.add_dynamic_config(".*", TFLOperationName.EMBEDDING_LOOKUP, num_bits=8)
    for name in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        recipe.add_quantization_config(".*", name, algorithm_key=AlgorithmName.NO_QUANTIZE)
    keep(recipe, (*normalisation(graph), *kept))
    return recipe, f"static_wi8_ai{bits}, per channel, MinMax" + (
        ", FULLY_CONNECTED and CONV_2D only" if attention else ""
    )


def keep(recipe: RecipeManager, results: Sequence[str]) -> None:
    for tensor in results:
        recipe.add_quantization_config(f"^{re.escape(tensor)};?$", EVERYTHING, algorithm_key=AlgorithmName.NO_QUANTIZE)


def widened(graph: Graph, islands: Sequence[str]) -> list[str]:
    """Results of float layers, and of what only passes them on: else they would be rounded on the way."""
    own = {index for index, tensor in enumerate(graph.tensors) if tensor.name in islands}
    for operation in graph.operations:
        if operation.name in PASSED and operation.inputs[0] in own:
            own.update(operation.outputs)
    return [graph.tensors[index].name for index in sorted(own)]


def normalisation(graph: Graph) -> Iterator[str]:
    """Results from the input to the first operation that is not a cast, a change of shape or plain arithmetic."""
    tensor = graph.inputs[0]
    while True:
        users = [o for o in graph.operations if tensor in o.inputs]
        if len(users) != 1 or users[0].name not in {"CAST", "TRANSPOSE", "RESHAPE", "MUL", "ADD", "SUB", "DIV"}:
            return
        tensor = users[0].outputs[0]
        yield graph.tensors[tensor].name
