"""The chain as data: every step with its inputs and its fingerprint, known before anything runs.

A step's inputs hold the fingerprints of the steps it reads from, never their outputs, so that ``plan`` can say exactly
what ``run`` would do.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data.content import content_hash, unlabelled_hash
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.recipe import ExportTarget, Recipe, Student, Teacher
from distilledge.pipeline.record import Role
from distilledge.pipeline.store import fingerprint
from distilledge.targets.saturation import saturates

VERSIONS = {
    "data": 1,
    "teacher": 1,
    "student": 1,
    "control": 1,
    "export": 1,
    "verify": 2,
    "measure": 1,
    "predict": 1,
    "score": 1,
    "gate": 1,
    "report": 1,
}
"""Raised where a change of the code changes what a stage makes from the same inputs."""

TRAINING_PACKAGES = ("torch", "torchvision", "timm", "accelerate")
RUNTIME_PACKAGES = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("torch", "openvino", "nncf"),
    "tflite": ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert"),
}

SATURATING = ("onnx", "openvino")
"""Runtimes whose int8 sums saturate on some CPUs; LiteRT's never do."""


class Step(NamedTuple):
    """One entry of the store: ``kind`` picks the code that builds it, ``name`` is unique in the run."""

    name: str
    kind: str
    inputs: dict[str, Any]
    fingerprint: str
    role: Role = "student"
    """Of training, export and predict steps."""
    runtime: str = ""
    optional: bool = False


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions; ``missing`` where a distribution is not there."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def steps(recipe: Recipe, device_card: dict[str, Any]) -> tuple[Step, ...]:
    """The whole chain of a recipe, top to bottom. Hashes the data's and the weights' bytes; builds nothing."""
    data = _step("data", "data", _data_inputs(recipe))
    teacher = _step("teacher", "teacher", _teacher_inputs(recipe, data), role="teacher")
    student = _step("student", "student", _student_inputs(recipe, data, teacher))
    trained = [teacher, student]
    if recipe.distill.control:
        trained.append(_step("control", "control", _control_inputs(recipe, data), role="control"))
    exports = [e for step in trained for e in _exports(recipe, data, step, saturates=saturates(device_card))]
    verify = _step("verify", "verify", _downstream(recipe, data, exports, "verify"))
    measured = [e for e in exports if e.role != "control"]
    measure = _step("measure", "measure", {**_downstream(recipe, data, measured, "measure"), "device": device_card})
    predicts = [_predict(data, e) for e in exports]
    score = _step("score", "score", {p.name: p.fingerprint for p in predicts})
    gate = _step("gate", "gate", _gate_inputs(recipe, score, measure))
    return (data, *trained, *exports, verify, measure, *predicts, score, gate)


def file_hash(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _step(
    name: str, kind: str, inputs: dict[str, Any], *, role: Role = "student", runtime: str = "", optional: bool = False
) -> Step:
    return Step(name, kind, inputs, fingerprint(kind, VERSIONS[kind], inputs), role, runtime, optional)


def _data_inputs(recipe: Recipe) -> dict[str, Any]:
    fields = recipe.data.model_dump(mode="json", exclude={"cache", "workers", "path"})
    inputs = {
        "data": fields,
        "content": content_hash(recipe.data),
        "bit_depth": recipe.student.input.bit_depth,
        "seed": recipe.seed,
    }
    if recipe.distill.unlabelled:
        place = str(Path(expand(recipe.distill.unlabelled)).resolve())  # its pictures are recorded by absolute path
        inputs["unlabelled"] = {"path": place, "content": unlabelled_hash(recipe.distill.unlabelled)}
    return inputs


def _model_inputs(model: Teacher | Student) -> dict[str, Any]:
    return {
        **model.model_dump(mode="json", exclude={"weights", "trust_pickle"}),
        "weights": _weights_hash(model.weights),
    }


def _weights_hash(weights: str) -> str:
    if weights in ("hub", "none"):
        return weights
    path = Path(expand(weights))
    if not path.is_file():
        raise RejectedError(
            "E3090", f"weights file not found: {weights}", "set `weights` to a .safetensors file, `hub` or `none`"
        )
    return file_hash(path)


def _teacher_inputs(recipe: Recipe, data: Step) -> dict[str, Any]:
    return {
        "data": data.fingerprint,
        "teacher": _model_inputs(recipe.teacher),
        "metric": recipe.metric,
        "seed": recipe.seed,
        "packages": package_versions(TRAINING_PACKAGES),
    }


def _student_inputs(recipe: Recipe, data: Step, teacher: Step) -> dict[str, Any]:
    distill = recipe.distill.model_dump(mode="json", exclude={"control", "unlabelled"})
    return {**_control_inputs(recipe, data), "teacher": teacher.fingerprint, "distill": distill}


def _control_inputs(recipe: Recipe, data: Step) -> dict[str, Any]:
    return {
        "data": data.fingerprint,
        "student": _model_inputs(recipe.student),
        "view_size": max(recipe.teacher.input.size, recipe.student.input.size),
        "metric": recipe.metric,
        "seed": recipe.seed,
        "packages": package_versions(TRAINING_PACKAGES),
    }


def _exports(recipe: Recipe, data: Step, trained: Step, *, saturates: bool) -> list[Step]:
    targets = recipe.export.targets
    chosen = targets[:1] if trained.name == "control" else targets
    return [_export(recipe, data, trained, target, saturates=saturates) for target in chosen]


def _export(recipe: Recipe, data: Step, trained: Step, target: ExportTarget, *, saturates: bool) -> Step:
    precisions = {
        "teacher": recipe.export.teacher_precisions,
        "student": tuple(dict.fromkeys(("fp32", *target.precisions))),
        "control": ("fp32",),
    }[trained.name]
    inputs = {
        "checkpoint": trained.fingerprint,
        "data": data.fingerprint,
        "runtime": target.runtime,
        "precisions": list(precisions),
        "packages": package_versions(RUNTIME_PACKAGES[target.runtime]),
    }
    if saturates and target.runtime in SATURATING and not {"w8dyn", "w8a8"}.isdisjoint(precisions):
        inputs["saturates"] = True  # the int8 files are others on such a CPU
    name = f"export-{trained.name}-{target.runtime}"
    return _step(name, "export", inputs, role=trained.role, runtime=target.runtime, optional=target.optional)


def _downstream(recipe: Recipe, data: Step, exports: list[Step], part: str) -> dict[str, Any]:
    return {
        "data": data.fingerprint,
        part: getattr(recipe, part).model_dump(mode="json"),
        "files": {e.name: e.fingerprint for e in exports},
    }


def _predict(data: Step, export: Step) -> Step:
    inputs = {"data": data.fingerprint, "export": export.fingerprint, "split": "test"}
    name = export.name.replace("export-", "predict-", 1)
    return _step(name, "predict", inputs, role=export.role, runtime=export.runtime, optional=export.optional)


def _gate_inputs(recipe: Recipe, score: Step, measure: Step) -> dict[str, Any]:
    budgets = {name: budget.model_dump(mode="json") for name, budget in recipe.budgets.items()}
    return {
        "score": score.fingerprint,
        "measure": measure.fingerprint,
        "budgets": budgets,
        "metric": recipe.metric,
        "seed": recipe.seed,
    }
