"""The previous release: files of an earlier run, or one file, timed between teacher and student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from distilledge.models.errors import UsageError
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.previous_place import previous_place
from distilledge.pipeline.record import ExportResult, RunRecord
from distilledge.pipeline.weights_hash import file_hash
from distilledge.targets import get
from distilledge.targets.base import Exported, Precision, RuntimeName
from distilledge.targets.measure import Candidate

SUFFIXES: dict[str, RuntimeName] = {".onnx": "onnx", ".xml": "openvino", ".tflite": "tflite"}


def previous_files(place: str, runtime: str) -> list[Candidate]:
    """The files for a runtime, named such as ``previous onnx w8a8``; none where there is none for it.

    ``place``: the folder of an earlier run (that with its run.json), of which the student's files are taken, or one
    model file that a run of ours made. Raises ``UsageError``.
    """
    path = previous_place(place)
    if path.name == "run.json":
        return _of_run(path, runtime)
    return [_of_file(path)] if SUFFIXES.get(path.suffix) == runtime else []


def check_previous(place: str, found: int) -> None:
    """Raise ``UsageError`` where no runtime of the recipe has a file there."""
    if place and not found:
        raise UsageError(
            "E2452",
            f"no file of {expand(place)} is for a runtime of this recipe",
            "name the folder of a run with the same export.targets, or leave measure.previous out",
        )


def _of_run(path: Path, runtime: str) -> list[Candidate]:
    run = RunRecord.model_validate_json(path.read_bytes())
    name = f"export-student-{runtime}"
    if all(s.name != name for s in run.stages):
        return []
    directory = run.directory(name)
    if not (directory / "value.json").is_file():
        raise UsageError("E2451", f"the files of that run are gone: {directory}", "run it again, or name another run")
    result = ExportResult.model_validate_json((directory / "value.json").read_bytes())
    return [_candidate(file, directory) for file in result.files]


def _of_file(path: Path) -> Candidate:
    runtime = SUFFIXES[path.suffix]
    found = get(runtime).read_metadata(path)
    if "distilledge.input_spec" not in found:
        raise UsageError(
            "E2453", f"{path} does not say how its input is made", "name a file that a run of distilledge exported"
        )
    spec = json.loads(found["distilledge.input_spec"])
    files = [path]
    if runtime == "openvino":
        files.append(path.with_suffix(".bin"))
    if spec.get("kind") == "text":
        files.append(path.with_name(spec["tokenizer"]))
    missing = next((f for f in files if not f.is_file()), None)
    if missing is not None:
        raise UsageError("E2454", f"missing beside {path.name}: {missing}", "copy it there from the run that made it")
    shape = (1, -1) if spec.get("kind") == "text" else (1, spec["height"], spec["width"], 3)
    exported = Exported(
        runtime=runtime,
        precision=cast(Precision, found.get("distilledge.precision", "fp32")),
        files=tuple(f.name for f in files),
        sha256=tuple(file_hash(f) for f in files),
        size_bytes=sum(f.stat().st_size for f in files if f.suffix != ".json"),
        input_shape=shape,
        classes=tuple(json.loads(found.get("distilledge.classes", "[]"))),
        input_spec=spec,
        versions={},
        recipe="",
        seconds=0.0,
    )
    return _candidate(exported, path.parent)


def _candidate(exported: Exported, directory: Path) -> Candidate:
    name = f"previous {exported.runtime} {exported.precision}"
    return Candidate(name=name, role="previous", directory=str(directory), exported=exported)
