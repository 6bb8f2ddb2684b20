"""Formats and runtimes. ``TARGETS`` lists them; ``get`` imports one when it is asked for."""

from __future__ import annotations

import importlib
from importlib.metadata import distribution
from typing import cast

from distilledge.models.errors import MissingPackageError, UsageError
from distilledge.targets.base import RuntimeName, Target

TARGETS: dict[RuntimeName, str] = {
    "onnx": "distilledge.targets.onnx",
    "openvino": "distilledge.targets.openvino",
    "tflite": "distilledge.targets.tflite",
}
"""Runtime -> the module that satisfies ``Target``."""

DISTRIBUTIONS: dict[str, str] = {
    "litert_torch": "litert-torch",
    "ai_edge_litert": "ai-edge-litert",
    "ai_edge_quantizer": "ai-edge-quantizer",
    "torch_pruning": "torch-pruning",
}
"""Imported name -> name to install, where they differ."""


def get(name: str) -> Target:
    """Import a target; its other packages, which it imports when it needs them, must be installed too.

    Raises ``UsageError`` for an unknown name and ``MissingPackageError`` with the pip line for a missing package.
    """
    module = {str(runtime): path for runtime, path in TARGETS.items()}.get(name)
    if module is None:
        raise UsageError("E2010", f"unknown runtime: {name}", f"choose from {', '.join(TARGETS)}")
    try:
        target = cast(Target, importlib.import_module(module))
        for package in target.PACKAGES:
            distribution(package)
    except ModuleNotFoundError as error:  # PackageNotFoundError is one
        root = (error.name or "").partition(".")[0]
        if root in {"", "distilledge"}:
            raise
        raise missing_package(root, f"target {name}") from error
    return target


def missing_package(module: str, wanted_by: str) -> MissingPackageError:
    """The error for a third-party module that is not installed."""
    package = DISTRIBUTIONS.get(module, module)
    return MissingPackageError("E4001", f"missing package: {package}, needed by {wanted_by}", f"pip install {package}")
