"""Refuse model files that a runtime would crash on, read beyond, or load something else for. Nothing is run.

One check for each suffix. A damaged file is told from a strange one; what it names is what the user can look for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from distilledge.models.errors import IntegrityError, RejectedError

FORMATS = {
    ".onnx": "ONNX model",
    ".tflite": "TFLite model",
    ".xml": "OpenVINO model",
    ".safetensors": "safetensors file",
}
EXPORT_AGAIN = "export it again: distilledge export"


def check_model_file(path: Path, *, sha256: str | None = None, shape: Sequence[int] | None = None) -> None:
    """Check a model file before it is loaded or sent anywhere.

    ``sha256``: what it must be. ``shape``: of the input, such as (1, 224, 224, 3), where the caller knows it; without
    it only the batch may be dynamic, and the length of ids (1, L); -1 in ``shape``: any. Raises ``RejectedError``
    (damaged, not self-contained, operations or versions that the runtime here does not know, dynamic or other shape)
    and ``IntegrityError`` (another hash).
    """
    found = check_whole(path, sha256=sha256)
    if found is not None:
        _check_shape(path, found, shape)


def check_whole(path: Path, *, sha256: str | None = None) -> Sequence[int | None] | None:
    """``check_model_file`` for any shape; the first input's is returned, None where there is no input."""
    check = CHECKS.get(path.suffix)
    if check is None:
        raise RejectedError("E3700", f"not a model file: {path}", f"known: {', '.join(CHECKS)}")
    content_hash = _opened(path)
    if sha256 is not None and content_hash != sha256:
        raise IntegrityError("E7700", f"changed: {path}: expected sha256 {sha256}, got {content_hash}", EXPORT_AGAIN)
    return check(path)


def _opened(path: Path) -> str:
    """The file's hash; refuses what is no file, empty, or a web page."""
    if not path.is_file():
        raise RejectedError("E3701", f"no such model file: {path}", "check the path")
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
        digest = hashlib.file_digest(file, "sha256").hexdigest() if file.seek(0) == 0 else ""
    if not start:
        raise damaged(path, f"the file is empty, sha256 {digest}")
    if start.startswith((b"<!doctype html", b"<html")):
        raise RejectedError(
            "E3702", f"not a valid {FORMATS[path.suffix]}: {path}: it is a web page", "download it again"
        )
    return digest


def damaged(path: Path, why: str) -> RejectedError:
    lines = [line.strip() for line in why.splitlines() if line.strip()] or ["unreadable"]
    return RejectedError("E3703", f"not a valid {FORMATS[path.suffix]}: {path}: {lines[-1][:300]}", EXPORT_AGAIN)


def unknown_operations(path: Path, names: Sequence[str], runtime: str) -> RejectedError:
    what = f"operations that {runtime} does not know: {', '.join(sorted(set(names)))}: {path}"
    if "edgetpu-custom-op" in names:
        raise RejectedError("E3704", what, "it is compiled for an Edge TPU: give the file it was compiled from")
    return RejectedError("E3704", what, "export it with builtin operations only, without Flex or custom ones")


def _check_shape(path: Path, found: Sequence[int | None], shape: Sequence[int] | None) -> None:
    """``found``: the input's dimensions, None where dynamic."""
    words = "x".join("?" if d is None else str(d) for d in found)
    if shape is None:
        if None in found[1:] and len(found) != 2:
            raise RejectedError("E3705", f"dynamic input shape {words}: {path}", "fix it when exporting: export.shape")
        return
    wanted = "x".join(map(str, shape))
    differ = any(want not in (-1, d) for d, want in zip(found, shape, strict=False) if d is not None)
    if differ or len(found) != len(shape):
        channels_first = len(shape) == 4 and list(found[1:]) == [shape[3], shape[1], shape[2]]
        layout = "it is NCHW, wanted is NHWC; " if channels_first else ""
        raise RejectedError("E3706", f"input shape {words}, expected {wanted}: {path}", f"{layout}set export.shape")
    if None in found and -1 not in shape:
        raise RejectedError("E3705", f"dynamic input shape {words}: {path}", f"set export.shape: {list(shape)}")


def check_companion(model: Path, companion: Path) -> None:
    """A second file that a model reads must be a plain file of its own, beside it."""
    if companion.is_symlink():
        raise RejectedError(
            "E3707", f"{companion} of {model} is a symbolic link", "copy the file itself beside the model"
        )
    if not companion.is_file():
        raise RejectedError("E3708", f"{model} needs {companion.name}, which is missing", "copy both files together")
    if companion.stat().st_nlink > 1:
        raise RejectedError("E3709", f"{companion} of {model} is a hard link", "copy the file itself beside the model")


def _onnx(path: Path) -> Sequence[int | None] | None:
    from distilledge.targets.onnx_file import check_onnx

    return check_onnx(path)


def _tflite(path: Path) -> Sequence[int | None] | None:
    from ai_edge_litert.interpreter import Interpreter

    from distilledge.targets.tflite_file import DAMAGED, read_graph

    try:
        graph = read_graph(path)
    except DAMAGED as error:
        raise damaged(path, f"{error or type(error).__name__}") from error
    custom = [o.name for o in graph.operations if o.custom and o.name not in {"TFLite_Detection_PostProcess"}]
    if custom:
        raise unknown_operations(path, custom, "LiteRT")
    try:
        Interpreter(str(path), num_threads=1)
    except (ValueError, RuntimeError) as error:
        raise damaged(path, str(error)) from error
    return [None if d < 0 else d for d in graph.tensors[graph.inputs[0]].shape] if graph.inputs else None


def _openvino(path: Path) -> Sequence[int | None] | None:
    weights = path.with_suffix(".bin")
    check_companion(path, weights)
    from distilledge.targets.openvino import file_sha256, read_model, weights_sha256

    text = path.read_text(encoding="utf-8", errors="replace")
    ends = [int(m[1]) + int(m[2]) for m in re.finditer(r'\boffset="(\d+)"[^>]*?\bsize="(\d+)"', text)]
    if ends and max(ends) != weights.stat().st_size:
        raise wrong_weights(path, f"{weights.stat().st_size} bytes, expected {max(ends)}")
    try:
        model = read_model(path)
    except (RuntimeError, ValueError) as error:  # its text is not always UTF-8
        raise damaged(path, str(error)) from error
    expected = weights_sha256(model)
    if expected is not None and file_sha256(weights) != expected:
        raise wrong_weights(path, f"expected sha256 {expected}, got {file_sha256(weights)}")
    return [d.get_length() if d.is_static else None for d in model.inputs[0].partial_shape] if model.inputs else None


def wrong_weights(path: Path, why: str) -> RejectedError:
    what = f"{path.with_suffix('.bin').name} is not the one of {path}: {why}"
    return RejectedError("E3710", what, "copy both files together")


def _safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            file.keys()
    except SafetensorError as error:
        raise damaged(path, str(error)) from error


CHECKS: dict[str, Callable[[Path], Sequence[int | None] | None]] = {
    ".onnx": _onnx,
    ".tflite": _tflite,
    ".xml": _openvino,
    ".safetensors": _safetensors,
}
"""Suffix -> its check, which returns the input's shape (None where dynamic), or None where there is no input."""
