"""What a model file is, whoever made it: its operations, its weights, and the files that belong to it.

``python -m distilledge.targets.look PATH`` checks one file and prints it as JSON; ``look`` starts that as a child, so
that a file on which a parser crashes, hangs or eats the memory takes only the child along.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from distilledge.models.base import Value
from distilledge.models.errors import DistilledgeError, RejectedError
from distilledge.targets.base import RuntimeName
from distilledge.targets.validate import EXPORT_AGAIN, check_whole

RUNTIME_OF: dict[str, RuntimeName] = {".onnx": "onnx", ".xml": "openvino", ".tflite": "tflite"}
"""Suffix -> the runtime that a file is run in."""
SECONDS = 180.0
MEMORY_BYTES = 16 << 30
POINTER = b"version https://git-lfs.github.com/spec/"


class Looked(Value):
    """``files``: names below the folder of the first, which is the one a runtime is given."""

    runtime: RuntimeName
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    size_bytes: int
    operations: dict[str, int]
    """Type -> how often, with those of inner graphs; as the file has them, before a runtime fuses any."""
    weights: dict[str, int]
    """Type of number -> bytes of constants."""
    inputs: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The type of most bytes of the constants, such as ``float32`` or ``int8``."""
        return max(self.weights, key=lambda kind: self.weights[kind], default="none")


class _Found(NamedTuple):
    files: list[str]
    operations: Counter[str]
    weights: Counter[str]
    inputs: list[str]


def look(path: Path) -> Looked:
    """Check a model file and say what it is. Raises ``RejectedError`` (exit 3) that says what is wrong with it.

    Also where looking at it takes more than 180 s or 16 GiB.
    """
    check_name(path)
    command = [sys.executable, "-m", "distilledge.targets.look", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise RejectedError("E3047", f"no end after {SECONDS:.0f} s of reading {path}", "use a smaller file") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise RejectedError("E3041", f"the reader of {path} was killed by {name}", "export it again: it is damaged")
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
        if "MemoryError" in last or "bad_alloc" in last:
            raise RejectedError("E3048", f"out of memory while reading {path}", "use a smaller file")
        raise RejectedError("E3042", f"{path} cannot be read: {last[:300]}", "export it again")
    said = json.loads(lines[-1])
    if "code" in said:
        said["hint"] = said["hint"].replace(EXPORT_AGAIN, "download or export it again")
        raise {kind.__name__: kind for kind in DistilledgeError.__subclasses__()}[said["kind"]](
            said["code"], said["what"], said["hint"]
        )
    return Looked.model_validate(said)


def check_name(path: Path) -> None:
    """What needs no parser: the suffix, what stands in for a file, and one that is named as what it is not."""
    if path.suffix not in RUNTIME_OF:
        raise RejectedError("E3043", f"not a model file: {path}", f"known: {', '.join(RUNTIME_OF)}")
    if not path.is_file():
        return  # the check says it
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(POINTER):
        what = f"{path} is a pointer of Git LFS, not the model itself"
        raise RejectedError("E3044", what, f"git lfs pull --include {path.name}")
    real = _real(start)
    if real and real != path.suffix:
        what = f"{path} holds {FORMS[real]}, not what its name says"
        raise RejectedError("E3045", what, f"rename it to {path.with_suffix(real).name}")


FORMS = {".tflite": "a TFLite model", ".xml": "an XML text", ".zip": "a zip archive (such as a checkpoint)"}


def _real(start: bytes) -> str:
    """The suffix that the first bytes are of, where they say it."""
    if start[4:8] == b"TFL3":
        return ".tflite"
    if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<?xml"):
        return ".xml"
    return ".zip" if start.startswith(b"PK\x03\x04") else ""


def _onnx(path: Path) -> _Found:
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    from distilledge.targets.onnx_file import graphs_of, tensors_of

    proto = onnx.load(path, load_external_data=False)
    functions = [node for function in proto.functions for node in function.node]
    nodes = [*functions, *(node for graph in graphs_of(proto.graph) for node in graph.node)]
    beside, weights = [], Counter[str]()
    for tensor in tensors_of(proto):
        if uses_external_data(tensor):
            beside.append(str(ExternalDataInfo(tensor).location))
        if tensor.data_type and tensor.data_type != onnx.TensorProto.STRING:
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            weights[kind.name] += math.prod(tensor.dims) * kind.itemsize
    names = Counter(f"{n.domain}.{n.op_type}" if n.domain not in ("", "ai.onnx") else n.op_type for n in nodes)
    names.pop("Constant", None)
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value.name for value in proto.graph.input if value.name not in constants]
    return _Found([path.name, *dict.fromkeys(beside)], names, weights, inputs)


def _tflite(path: Path) -> _Found:
    from ai_edge_litert import schema_py_generated as schema

    from distilledge.targets.tflite_file import operation_name, read_graph

    model = schema.Model.GetRootAs(bytearray(path.read_bytes()), 0)
    kinds = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    codes = [operation_name(model.OperatorCodes(i))[0] for i in range(model.OperatorCodesLength())]
    operations, weights, seen = Counter[str](), Counter[str](), set[int]()
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        operations.update(codes[graph.Operators(i).OpcodeIndex()] for i in range(graph.OperatorsLength()))
        for tensor in (graph.Tensors(i) for i in range(graph.TensorsLength())):
            buffer = tensor.Buffer()
            size = model.Buffers(buffer).DataLength()
            if size and buffer not in seen:
                seen.add(buffer)
                weights[kinds.get(tensor.Type(), str(tensor.Type()))] += size
    first = read_graph(path)
    return _Found([path.name], operations, weights, [first.tensors[i].name for i in first.inputs])


def _openvino(path: Path) -> _Found:
    from distilledge.targets.openvino import read_model

    model, operations, weights = read_model(path), Counter[str](), Counter[str]()
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind == "Constant":
            data = node.get_output_element_type(0).get_type_name()
            weights[OPENVINO.get(data, data)] += node.get_byte_size()
        elif kind not in ("Parameter", "Result"):
            operations[kind] += 1
    inputs = [min(node.get_names(), default=str(number)) for number, node in enumerate(model.inputs)]
    return _Found([path.name, path.with_suffix(".bin").name], operations, weights, inputs)


OPENVINO = {"f32": "float32", "f16": "float16", "f64": "float64", "i8": "int8", "u8": "uint8", "i64": "int64"}
LOOKS: dict[str, Callable[[Path], _Found]] = {".onnx": _onnx, ".xml": _openvino, ".tflite": _tflite}


def looked(path: Path) -> Looked:
    """``look`` in this process."""
    check_name(path)
    if check_whole(path) is None:
        raise RejectedError("E3046", f"it has no input: {path}", "give a file of a network that takes something")
    found = LOOKS[path.suffix](path)
    paths = [path.parent / name for name in found.files]
    return Looked(
        runtime=RUNTIME_OF[path.suffix],
        files=tuple(found.files),
        sha256=tuple(_hash(p) for p in paths),
        size_bytes=sum(p.stat().st_size for p in paths),
        operations=dict(found.operations.most_common()),
        weights=dict(found.weights.most_common()),
        inputs=tuple(found.inputs),
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said(path: Path) -> dict[str, Any]:
    try:
        return looked(path).model_dump()
    except DistilledgeError as error:
        return {"kind": type(error).__name__, "code": error.code, "what": error.what, "hint": error.hint}


if __name__ == "__main__":
    from distilledge.targets.telemetry import switch_off

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    switch_off()
    sys.stdout.write(json.dumps(_said(Path(sys.argv[1]))) + "\n")
