"""Export stage: a checkpoint becomes one file per precision of one runtime; teacher and student by the same door."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distilledge.models.heads import Heads
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.recipe_compress import chosen
from distilledge.pipeline.record import Checkpoint, ExportResult, Role
from distilledge.pipeline.step_packages import RUNTIME_PACKAGES, package_versions
from distilledge.targets import get
from distilledge.targets.base import STATIC, AnyDeployable, Deployable, Exported, Precision, Target, TextDeployable
from distilledge.targets.ondevice.text import TextSpec
from distilledge.targets.samples import Samples, reader

if TYPE_CHECKING:
    from distilledge.pipeline.compress.stage import Climb


def export(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    role: Role,
    runtime: str,
    precisions: Sequence[Precision],
    calibration: Samples,
    out: Path,
    saturates: bool = False,
    climb: Climb | None = None,
) -> ExportResult:
    """Write ``model.<precision><suffix>`` for each precision into ``out``, fp32 first: the others are made from it.

    ``calibration``: used by static precisions only. ``saturates``: of the CPU that the files are for, see
    ``targets.saturation``. The tokenizer of a text model is copied beside. Raises ``MissingPackageError`` for a missing
    package or a converter that crashed, ``RejectedError`` for a model that the target cannot express. ``climb``: the
    quantization ladder chooses the w8a8 file (of texts w8a8 or w8dyn), or a float one in its place.
    """
    target = get(runtime)
    model = checkpoints.load(checkpoint, directory)
    deployable = describe(checkpoint, target).model_copy(update={"saturates": saturates})
    beside = copy_tokenizer(checkpoint, directory, out)
    started = time.perf_counter()
    fp32 = target.export(model, deployable, out)
    made = [finished(target, [fp32, *beside], "fp32", "as exported", deployable, started)]
    read = reader(deployable.input_spec, out)
    ledger = None
    for precision in (p for p in precisions if p != "fp32"):
        if climb is not None and precision in chosen(text=isinstance(deployable, TextDeployable)):
            if ledger is not None:
                continue
            from distilledge.pipeline.compress.stage import Student, climb_runtime

            student = Student(target, model, deployable, made[0], out)
            taken, ledger = climb_runtime(student, climb, out)
            made = [file for file in made if file.precision != taken.precision] + [taken]
            continue
        started = time.perf_counter()
        arrays = [read(row)[None] for row in calibration.rows] if precision in STATIC else []
        path, recipe = target.compress(fp32, deployable, out, precision=precision, calibration=arrays)
        made.append(finished(target, [path, *beside], precision, recipe, deployable, started))
    return ExportResult(role=role, runtime=runtime, files=tuple(made), ledger=ledger)


def describe(checkpoint: Checkpoint, target: Target) -> AnyDeployable:
    """What an exporter needs to know of a checkpoint."""
    spec = checkpoints.spec(checkpoint)
    metadata = {"distilledge.model": checkpoint.model, "distilledge.checkpoint": checkpoint.weights_sha256}
    if isinstance(spec, TextSpec):
        own = dataclasses.replace(spec, buckets=() if target.ANY_LENGTH else spec.buckets or (spec.max_length,))
        return TextDeployable(
            input_spec=own.to_dict(),
            max_length=own.max_length,
            pad_id=own.pad_id,
            buckets=own.buckets,
            classes=checkpoint.classes,
            metadata=metadata,
        )
    return Deployable(
        input_spec=checkpoint.input_spec,
        height=spec.height,
        width=spec.width,
        mean=spec.mean,
        std=spec.std,
        classes=checkpoint.classes,
        heads=checkpoint.heads,
        metadata=metadata,
    )


def copy_tokenizer(checkpoint: Checkpoint, directory: Path, out: Path) -> list[Path]:
    """Of a text model, its tokenizer, checked and copied; else nothing. Raises ``IntegrityError``."""
    if checkpoint.input_spec.get("kind") != "text":
        return []
    spec = checkpoints.encoder(checkpoint, directory).spec
    return [Path(shutil.copyfile(directory / spec.tokenizer, out / spec.tokenizer))]


def companions(path: Path) -> list[Path]:
    """The files of a model, the one a runtime is given first (OpenVINO: .xml, then .bin)."""
    weights = path.with_suffix(".bin")
    return [path, weights] if path.suffix == ".xml" and weights.exists() else [path]


def finished(
    target: Target, files: list[Path], precision: Precision, recipe: str, deployable: AnyDeployable, started: float
) -> Exported:
    """``files``: the model, then what lies beside it."""
    path, *beside = files
    target.embed_metadata(path, metadata(deployable, precision))
    own = companions(path)
    return Exported(
        runtime=target.NAME,
        precision=precision,
        files=tuple(f.name for f in (*own, *beside)),
        sha256=tuple(hashlib.sha256(f.read_bytes()).hexdigest() for f in (*own, *beside)),
        size_bytes=sum(f.stat().st_size for f in own),
        input_shape=input_shape(deployable),
        classes=deployable.classes,
        heads=heads_of(deployable),
        input_spec=deployable.input_spec,
        versions=package_versions(RUNTIME_PACKAGES[target.NAME]),
        recipe=recipe,
        seconds=time.perf_counter() - started,
        float_operations=target.float_operations(path) if precision in STATIC else (),
    )


def heads_of(deployable: AnyDeployable) -> Heads:
    return deployable.heads if isinstance(deployable, Deployable) else ()


def input_shape(deployable: AnyDeployable) -> tuple[int, ...]:
    """-1 where any length is taken, or one of several."""
    if isinstance(deployable, Deployable):
        return (1, deployable.height, deployable.width, 3)
    return (1, deployable.buckets[0] if len(deployable.buckets) == 1 else -1)


def metadata(deployable: AnyDeployable, precision: Precision) -> dict[str, str]:
    """What is written inside each model file; informative, the manifest wins."""
    return {
        **deployable.metadata,
        "distilledge.input_spec": json.dumps(deployable.input_spec, sort_keys=True),
        "distilledge.classes": json.dumps(list(deployable.classes), ensure_ascii=False),
        "distilledge.precision": precision,
        **({"distilledge.heads": heads_json(heads)} if (heads := heads_of(deployable)) else {}),
    }


def heads_json(heads: Heads) -> str:
    """Output name -> the classes of its columns, in the order of the outputs."""
    return json.dumps({head.name: list(head.classes) for head in heads}, ensure_ascii=False)
