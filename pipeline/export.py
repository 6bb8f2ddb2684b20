"""Export stage: a checkpoint becomes one file per precision of one runtime; teacher and student by the same door."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.record import Checkpoint, ExportResult, Role
from distilledge.pipeline.steps import RUNTIME_PACKAGES, package_versions
from distilledge.targets import get
from distilledge.targets.base import Deployable, Exported, Precision, Uint8Array
from distilledge.targets.ondevice.preprocess import InputSpec, preprocess

STATIC: tuple[Precision, ...] = ("w8a8",)
"""Precisions whose activation ranges are measured on calibration pictures."""


def export(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    role: Role,
    runtime: str,
    precisions: Sequence[Precision],
    pictures: Sequence[Path],
    out: Path,
) -> ExportResult:
    """Write ``model.<precision><suffix>`` for each precision into ``out``, fp32 first: the others are made from it.

    ``pictures``: the calibration set, used by static precisions only. Raises ``MissingPackageError`` for a missing
    package or a converter that crashed, ``RejectedError`` for a model that the target cannot express.
    """
    target = get(runtime)
    model = checkpoints.load(checkpoint, directory)
    deployable = describe(checkpoint)
    started = time.perf_counter()
    fp32 = target.export(model, deployable, out)
    made = [_finish(target, fp32, "fp32", "as exported", deployable, started)]
    spec = InputSpec.from_dict(checkpoint.input_spec)
    for precision in (p for p in precisions if p != "fp32"):
        started = time.perf_counter()
        calibration = calibration_arrays(pictures, spec) if precision in STATIC else []
        path, recipe = target.compress(fp32, deployable, out, precision=precision, calibration=calibration)
        made.append(_finish(target, path, precision, recipe, deployable, started))
    return ExportResult(role=role, runtime=runtime, files=tuple(made))


def describe(checkpoint: Checkpoint) -> Deployable:
    """What an exporter needs to know of a checkpoint."""
    spec = InputSpec.from_dict(checkpoint.input_spec)
    return Deployable(
        input_spec=checkpoint.input_spec,
        height=spec.height,
        width=spec.width,
        mean=spec.mean,
        std=spec.std,
        classes=checkpoint.classes,
        metadata={"distilledge.model": checkpoint.model, "distilledge.checkpoint": checkpoint.weights_sha256},
    )


def calibration_arrays(pictures: Sequence[Path], spec: InputSpec) -> list[Uint8Array]:
    """The pictures as (1, H, W, 3) uint8, by the code that runs on the device."""
    return [preprocess(path, spec)[None] for path in pictures]


def companions(path: Path) -> list[Path]:
    """The files of a model, the one a runtime is given first (OpenVINO: .xml, then .bin)."""
    weights = path.with_suffix(".bin")
    return [path, weights] if path.suffix == ".xml" and weights.exists() else [path]


def _finish(target, path: Path, precision: Precision, recipe: str, deployable: Deployable, started: float) -> Exported:  # type: ignore[no-untyped-def]
    target.embed_metadata(path, metadata(deployable, precision))
    files = companions(path)
    return Exported(
        runtime=target.NAME,
        precision=precision,
        files=tuple(f.name for f in files),
        sha256=tuple(hashlib.sha256(f.read_bytes()).hexdigest() for f in files),
        size_bytes=sum(f.stat().st_size for f in files),
        input_shape=(1, deployable.height, deployable.width, 3),
        classes=deployable.classes,
        input_spec=deployable.input_spec,
        versions=package_versions(RUNTIME_PACKAGES[target.NAME]),
        recipe=recipe,
        seconds=time.perf_counter() - started,
        float_operations=target.float_operations(path) if precision in STATIC else (),
    )


def metadata(deployable: Deployable, precision: Precision) -> dict[str, str]:
    """What is written inside each model file; informative, the manifest wins."""
    return {
        **deployable.metadata,
        "distilledge.input_spec": json.dumps(deployable.input_spec, sort_keys=True),
        "distilledge.classes": json.dumps(list(deployable.classes), ensure_ascii=False),
        "distilledge.precision": precision,
    }


def stack(pictures: Sequence[Path], spec: InputSpec) -> Uint8Array:
    """Pictures as one (N, H, W, 3) uint8 array."""
    out = np.empty((len(pictures), spec.height, spec.width, 3), np.uint8)
    for row, path in enumerate(pictures):
        out[row] = preprocess(path, spec)
    return out
