"""fp16 and int8 TFLite files with ai-edge-quantizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update

from distilledge.targets.base import Precision, Uint8Array
from distilledge.targets.tflite_file import Graph, read_graph

EVERYTHING = TFLOperationName.ALL_SUPPORTED


def quantize(fp32: Path, path: Path, precision: Precision, pictures: Sequence[Uint8Array]) -> str:
    """Write ``path`` and say how. It must not exist yet: ai-edge-quantizer refuses to overwrite.

    Ranges are the smallest and largest value of all pictures. The quantizer's default, a moving average of each
    picture's, depends on their order and cuts the tops off: six times the divergence (KL 0.041 against 0.007, lite0).
    """
    recipe, words = recipe_of(precision, read_graph(fp32))
    work = quantizer.Quantizer(str(fp32))
    work.load_quantization_recipe(recipe.get_quantization_recipe())
    if not work.need_calibration:
        work.quantize().export_model(str(path))
        return words
    signature, source = signature_of(fp32)
    ranges = Calibrator(str(fp32), num_threads=1, qsv_update_func=min_max_update)
    ranges.calibrate({signature: [{source: picture} for picture in pictures]}, recipe)
    work.quantize(ranges.get_model_qsvs()).export_model(str(path))
    return f"{words}, {len(pictures)} pictures"


def recipe_of(precision: Precision, graph: Graph) -> tuple[RecipeManager, str]:
    """The quantizer's rules (the last that matches wins) and their words.

    Dynamic int8 keeps one scale for each fully-connected layer: tflite-runtime 2.14 reads one scale per channel as
    nonsense without a word (cosine with float 0.13 on MobileNetV1, 0.97 with one scale; static int8 is not affected).
    Attention models: only fully-connected and convolution layers become static int8; all of it is slower and wrong.
    """
    recipe, attention = RecipeManager(), any(o.name == "SOFTMAX" for o in graph.operations)
    if precision == "fp16":
        recipe.add_weight_only_config(".*", EVERYTHING, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING)
        return recipe, "float16 weights, float32 arithmetic"
    if precision == "w8dyn":
        recipe.add_dynamic_config(".*", EVERYTHING, num_bits=8)
        dense = TFLOperationName.FULLY_CONNECTED
        recipe.add_dynamic_config(".*", dense, num_bits=8, granularity=QuantGranularity.TENSORWISE)
        return recipe, "dynamic_wi8_afp32, convolutions per channel, FULLY_CONNECTED per tensor"
    scope = (TFLOperationName.FULLY_CONNECTED, TFLOperationName.CONV_2D) if attention else (EVERYTHING,)
    for operation in scope:
        recipe.add_static_config(".*", operation, activation_num_bits=8, weight_num_bits=8)
    for name in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        recipe.add_quantization_config(".*", name, algorithm_key=AlgorithmName.NO_QUANTIZE)
    for tensor in normalisation(graph):
        recipe.add_quantization_config(f"^{re.escape(tensor)};?$", EVERYTHING, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return recipe, "static_wi8_ai8, per channel, MinMax" + (", FULLY_CONNECTED and CONV_2D only" if attention else "")


def normalisation(graph: Graph) -> Iterator[str]:
    """Results from the input to the first operation that is not a cast, a change of shape or plain arithmetic."""
    tensor = graph.inputs[0]
    while True:
        users = [o for o in graph.operations if tensor in o.inputs]
        if len(users) != 1 or users[0].name not in {"CAST", "TRANSPOSE", "RESHAPE", "MUL", "ADD", "SUB", "DIV"}:
            return
        tensor = users[0].outputs[0]
        yield graph.tensors[tensor].name


def signature_of(path: Path) -> tuple[str, str]:
    """Name of the signature and of its input."""
    name, entry = next(iter(Interpreter(str(path)).get_signature_list().items()))
    return name, entry["inputs"][0]
