"""TFLite files, run by LiteRT (XNNPACK) and by the older tflite-runtime."""

from __future__ import annotations

import io
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from distilledge.targets import tflite_file
from distilledge.targets.base import AnyDeployable, FloatArray, Inputs, Precision, RuntimeName, TextDeployable
from distilledge.targets.deployed import Named, converting, deployed, deployed_text, output_names
from distilledge.targets.ondevice.session import LENGTH
from distilledge.targets.scheme import PLAIN, LayerError, Scheme
from distilledge.targets.tflite_file import Graph, model_bytes, read_graph, subgraph_of

NAME: RuntimeName = "tflite"
SUFFIX = ".tflite"
PACKAGES = ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "w8", "w8dyn", "w8a16", "w8a8")
ANY_LENGTH = False

METADATA_FOLDER = "distilledge/"
"""In the zip at the end of the file, where TFLite keeps associated files; runtimes read the flatbuffer in front."""

NOT_ARITHMETIC = {
    *(
        "CAST",
        "QUANTIZE",
        "DEQUANTIZE",
        "RESHAPE",
        "TRANSPOSE",
        "PAD",
        "CONCATENATION",
        "SLICE",
        "STRIDED_SLICE",
        "SPLIT",
    ),
    *("GATHER", "SQUEEZE", "EXPAND_DIMS", "BROADCAST_TO", "PACK", "UNPACK", "SHAPE", "DELEGATE"),
}


def export(model: torch.nn.Module, deployable: AnyDeployable, out: Path) -> Path:
    """Write ``model.fp32.tflite``; see ``Target.export``. The converter names the tensors: ``args_0``, ``output_0``."""
    path = out / f"model.fp32{SUFFIX}"
    if isinstance(deployable, TextDeployable):
        with converting(f"torch to {path.name}"):
            export_text(model, deployable, path)
        return path
    module: torch.nn.Module
    module, example = deployed(model, deployable, channels_last=True)
    if deployable.heads:
        module = Named(module, output_names(deployable)).eval()
    with converting(f"torch to {path.name}"):
        import litert_torch  # seconds

        litert_torch.convert(module, (example,)).export(str(path))
    return path


def export_text(model: torch.nn.Module, deployable: TextDeployable, path: Path) -> None:
    """One signature for each length, such as ``length_16``; they share the weights (91.1 MB with one or four, MiniLM).

    XNNPACK needs fixed shapes: a file for any length would run without it.
    """
    import litert_torch

    module, _ = deployed_text(model, deployable)
    examples = {b: torch.full((1, b), 0 if deployable.pad_id else 1, dtype=torch.int32) for b in deployable.buckets}
    converter: Any = litert_torch
    for length, example in examples.items():
        converter = converter.signature(f"{LENGTH}{length}", module, (example,))
    converter.convert().export(str(path))


def compress(
    fp32: Path,
    deployable: AnyDeployable,
    out: Path,
    *,
    precision: Precision,
    calibration: Sequence[Inputs],
    scheme: Scheme = PLAIN,
) -> tuple[Path, str]:
    """See ``Target.compress``."""
    path = out / f"model.{precision}{SUFFIX}"
    with converting(f"{fp32.name} to {path.name}"):
        if precision == "fp32":
            shutil.copyfile(fp32, path)
            return path, "as exported"
        from distilledge.targets.tflite_quantize import quantize

        pad_id = deployable.pad_id if isinstance(deployable, TextDeployable) else 0
        return path, quantize(fp32, path, precision, calibration, pad_id=pad_id, scheme=scheme)


def embed_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Append a stored zip with one text file for each key: the same bytes each time."""
    content = model_bytes(path) + zipped(read_metadata(path) | metadata)
    path.write_bytes(content)


def zipped(metadata: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for key, value in sorted(metadata.items()):
            archive.writestr(zipfile.ZipInfo(METADATA_FOLDER + key, date_time=(1980, 1, 1, 0, 0, 0)), value)
    return buffer.getvalue()


def read_metadata(path: Path) -> dict[str, str]:
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.startswith(METADATA_FOLDER)]
        return {name.removeprefix(METADATA_FOLDER): archive.read(name).decode() for name in names}


def tensors(path: Path, rows: Inputs, *, optimise: bool) -> dict[str, FloatArray]:
    """Every computed tensor as float32 in graph order, one row at a time, stacked; see ``Target.tensors``.

    int8 tensors are de-quantised. ``optimise``: with XNNPACK; tensors inside its partitions are then not to be seen.
    """
    resolver = OpResolverType.BUILTIN if optimise else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with warnings.catch_warnings(action="ignore"):  # of the memory that all tensors take
        run = Interpreter(
            str(path), num_threads=1, experimental_op_resolver_type=resolver, experimental_preserve_all_tensors=True
        )
    subgraph, name = subgraph_of(path, f"{LENGTH}{rows.shape[1]}")
    graph = read_graph(path, subgraph)
    call = _signature(run, name) if name else _primary(run)
    made = [computed(run, graph, row[None], call, subgraph) for row in rows]
    found = {name: np.stack([one[name] for one in made]) for name in made[0]}
    return found | {task: found[name] for task, name in task_outputs(run, graph)}


def task_outputs(run: Interpreter, graph: Graph) -> list[tuple[str, str]]:
    """Of several tasks: each one's name with that of its tensor, in the file's order; of one task nothing."""
    if len(graph.outputs) < 2:
        return []
    (name,) = run.get_signature_list()
    details = run.get_signature_runner(name).get_output_details()
    named = {detail["index"]: task for task, detail in details.items()}
    return [(named[index], graph.tensors[index].name) for index in graph.outputs]


def _primary(run: Interpreter) -> Callable[[Any], object]:
    run.allocate_tensors()
    index = run.get_input_details()[0]["index"]

    def call(row: Any) -> None:
        run.set_tensor(index, row)
        run.invoke()

    return call


def _signature(run: Interpreter, name: str) -> Callable[[Any], object]:
    runner = run.get_signature_runner(name)
    source = next(iter(runner.get_input_details()))
    return lambda row: runner(**{source: row})


def computed(
    run: Interpreter, graph: Graph, row: Any, call: Callable[[Any], object], subgraph: int
) -> dict[str, FloatArray]:
    call(row)
    found: dict[str, FloatArray] = {}
    for operation in graph.operations:
        for tensor in operation.outputs:
            detail = graph.tensors[tensor]
            try:
                value = run.get_tensor(tensor, subgraph)
            except ValueError:  # inside a delegate's partition: never materialised
                continue
            found[detail.name] = detail.dequantised(value)
    return found


def float_operations(path: Path) -> tuple[str, ...]:
    """Operations with a float result and no int8 weights (``Target.float_operations``)."""
    graph = read_graph(path)
    kept = Counter(
        operation.name
        for operation in graph.operations
        if operation.name not in NOT_ARITHMETIC
        and graph.tensors[operation.outputs[0]].is_float
        and not any(graph.tensors[t].is_int8 for t in operation.inputs)
    )
    return tuple(f"{name} x{count}" for name, count in kept.most_common())


def boundaries(path: Path) -> int:
    """See ``Target.boundaries``."""
    from distilledge.targets.tflite_layers import conversions

    return conversions(path)


def layer_names(fp32: Path) -> tuple[str, ...]:
    """See ``Target.layer_names``."""
    return tflite_file.layer_names(read_graph(fp32))


def layer_errors(
    fp32: Path,
    deployable: AnyDeployable,  # noqa: ARG001 (one call for all targets)
    *,
    calibration: Sequence[Inputs],
    rows: Sequence[Inputs],
) -> tuple[LayerError, ...]:
    """See ``Target.layer_errors``."""
    with converting(f"layers of {fp32.name}"):
        from distilledge.targets import tflite_layers

        return tflite_layers.layer_errors(fp32, calibration, rows)
