"""The chain as data: every step with its inputs and its fingerprint, known before anything runs.

A step's inputs hold the fingerprints of the steps it reads from, never their outputs, so that ``plan`` can say exactly
what ``run`` would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from distilledge.pipeline.data.content import unlabelled_hash
from distilledge.pipeline.previous_place import previous_place
from distilledge.pipeline.recipe import ExportTarget, Measure, Recipe, Student, Teacher, Units
from distilledge.pipeline.recipe_compress import chosen
from distilledge.pipeline.recipe_multitask import gate_inputs, multitask_inputs
from distilledge.pipeline.record import Role
from distilledge.pipeline.reshape import RESHAPE, pruned, surgery_inputs
from distilledge.pipeline.step_asked import asked_inputs
from distilledge.pipeline.step_data import data_inputs
from distilledge.pipeline.step_packages import export_packages, package_versions, training_packages
from distilledge.pipeline.store import fingerprint
from distilledge.pipeline.transfer import (
    TRANSFER,
    compares_domains,
    from_scratch,
    source_only,
    strategy_inputs,
    training_inputs,
)
from distilledge.pipeline.weights_hash import file_hash, weights_hash
from distilledge.targets.base import RuntimeName
from distilledge.targets.saturation import saturates

VERSIONS = {
    "data": 1,
    "teacher": 2,
    "student": 2,
    "control": 2,
    "scratch": 1,
    "transfer": 2,
    "source-only": 1,
    "adaptation": 1,
    "prune": 1,
    "pretrain": 1,
    "qat": 1,
    "surgery": 1,
    "export": 1,
    "verify": 3,
    "measure": 2,
    "predict": 1,
    "score": 1,
    "gate": 2,
    "report": 1,
}
"""Raised where a change of the code changes what a stage makes from the same inputs."""


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
    lazy: bool = False
    """Run only when a later step asks for it (``Chain.ask``)."""


def steps(recipe: Recipe, device_card: dict[str, Any]) -> tuple[Step, ...]:
    """The whole chain of a recipe, top to bottom. Hashes the data's and the weights' bytes; builds nothing."""
    data = _step("data", "data", data_inputs(recipe))
    first = _teacher_pretraining(recipe, data)
    teacher = _step("teacher", "teacher", _teacher_inputs(recipe, data, first), role="teacher")
    second = _student_pretraining(recipe, data, first or teacher)
    inputs = _control_inputs(recipe, data, teacher, second)
    students = [_step("student", "student", inputs | _taught_inputs(recipe, teacher, first))]
    if recipe.distill.control:
        students.append(_step("control", "control", inputs, role="control"))
    unpruned, students = pruned(recipe, students, _step)
    lazy = asked_inputs(recipe, data, teacher, students[0])
    asked = [_step(name, name, inputs)._replace(lazy=True) for name, inputs in lazy]
    trained = [teacher, *students]
    exports = [e for step in trained for e in _exports(recipe, data, step, device_card, asked)]
    verify = _step("verify", "verify", _downstream(recipe, data, exports, "verify"))
    measured = [e for e in exports if e.role != "control"]
    measure = _step("measure", "measure", {**_downstream(recipe, data, measured, "measure"), "device": device_card})
    elsewhere = {} if recipe.measure.device == "local" else {"device": device_card}
    predicts = [_predict(data, e, elsewhere | _units(recipe, e.runtime, device_card)) for e in exports]
    score = _step("score", "score", {p.name: p.fingerprint for p in predicts})
    gate = _step("gate", "gate", _gate_inputs(recipe, score, measure))
    checked = (*_transfer(recipe, data, teacher, first), *_adaptation(recipe, data, teacher, first))
    models = [step for step in (first, teacher, *checked, second, *unpruned, *students, *asked) if step is not None]
    return (data, *models, *exports, verify, measure, *predicts, score, gate)


def _step(
    name: str, kind: str, inputs: dict[str, Any], *, role: Role = "student", runtime: str = "", optional: bool = False
) -> Step:
    return Step(name, kind, inputs, fingerprint(kind, VERSIONS[kind], inputs), role, runtime, optional)


UNUSED = TRANSFER | RESHAPE
"""Fields of a model that are looked at one by one."""


def _model_inputs(recipe: Recipe, model: Teacher | Student) -> dict[str, Any]:
    """Without the language model before it, which is a step of its own."""
    other = {"input"} if recipe.is_text else {"text"}
    inputs = {
        **training_inputs(
            model.model_dump(mode="json", exclude={"weights", "trust_pickle", "pretraining", *UNUSED, *other})
        ),
        **strategy_inputs(model),
        **surgery_inputs(model),
        "weights": weights_hash(model.weights),
    }
    tokenizer = model.text.tokenizer
    if recipe.is_text:
        inputs["tokenizer"] = tokenizer if tokenizer in ("model", "teacher", "train") else weights_hash(tokenizer)
    return inputs


def _teacher_pretraining(recipe: Recipe, data: Step) -> Step | None:
    if recipe.teacher.pretraining is None:
        return None
    inputs = _language_inputs(recipe, data, recipe.teacher)
    return _step("pretrain-teacher", "pretrain", inputs, role="teacher")


def _student_pretraining(recipe: Recipe, data: Step, teacher: Step) -> Step | None:
    """``teacher``: its language model, or, where it has none, itself, whose layers and tokenizer may be wanted."""
    if recipe.student.pretraining is None:
        return None
    inputs = _language_inputs(recipe, data, recipe.student)
    if recipe.is_text:
        inputs |= {"teacher": teacher.fingerprint}
    return _step("pretrain-student", "pretrain", inputs)


def _language_inputs(recipe: Recipe, data: Step, model: Teacher | Student) -> dict[str, Any]:
    assert model.pretraining is not None
    corpus = model.pretraining.corpus
    later = {"training"} if recipe.is_text else {"training", "strategy"}
    return {
        "data": data.fingerprint,
        "model": {k: v for k, v in _model_inputs(recipe, model).items() if k not in later},
        "pretraining": training_inputs(model.pretraining.model_dump(mode="json", exclude={"corpus"})),
        "corpus": corpus and (weights_hash if recipe.is_text else unlabelled_hash)(corpus),
        "seed": recipe.seed,
        "packages": package_versions(training_packages(recipe)),
    }


def _teacher_inputs(recipe: Recipe, data: Step, language: Step | None) -> dict[str, Any]:
    return {
        "data": data.fingerprint,
        "teacher": _model_inputs(recipe, recipe.teacher),
        "metric": recipe.metric,
        "seed": recipe.seed,
        "packages": package_versions(training_packages(recipe)),
        **multitask_inputs(recipe),
        **({"pretrained": language.fingerprint} if language else {}),
    }


def _transfer(recipe: Recipe, data: Step, teacher: Step, language: Step | None) -> tuple[Step, ...]:
    """The teacher from scratch, and the comparison, where the recipe asks for them."""
    if not recipe.teacher.check_transfer:
        return ()
    scratch = _step("scratch", "scratch", _teacher_inputs(from_scratch(recipe), data, language), role="teacher")
    inputs = {"teacher": teacher.fingerprint, "scratch": scratch.fingerprint, "data": data.fingerprint}
    judged = {"metric": recipe.metric, "seed": recipe.seed}
    return (scratch, _step("transfer", "transfer", {**inputs, **judged}, role="teacher"))


def _adaptation(recipe: Recipe, data: Step, teacher: Step, first: Step | None) -> tuple[Step, ...]:
    """The teacher that never saw the target, and the comparison."""
    if not compares_domains(recipe):
        return ()
    plain = _step("source-only", "source-only", _teacher_inputs(source_only(recipe), data, first), role="teacher")
    inputs = {"teacher": teacher.fingerprint, "source_only": plain.fingerprint, "data": data.fingerprint}
    judged = {"metric": recipe.metric, "seed": recipe.seed, "method": recipe.teacher.strategy.name}
    return (plain, _step("adaptation", "adaptation", {**inputs, **judged}, role="teacher"))


def _taught_inputs(recipe: Recipe, teacher: Step, language: Step | None) -> dict[str, Any]:
    """What the student has and its control has not."""
    other = set() if recipe.is_text else {"augment_text"}
    distill = recipe.distill.model_dump(mode="json", exclude={"control", "unlabelled", *other})
    inputs = {"teacher": teacher.fingerprint, "distill": distill}
    if recipe.distill.augment_text and language:
        inputs["language"] = language.fingerprint
    return inputs


def _control_inputs(recipe: Recipe, data: Step, teacher: Step, language: Step | None) -> dict[str, Any]:
    """``language``: the student's own."""
    inputs = {
        "data": data.fingerprint,
        "student": _model_inputs(recipe, recipe.student),
        "metric": recipe.metric,
        "seed": recipe.seed,
        "packages": package_versions(training_packages(recipe)),
        **multitask_inputs(recipe),
    }
    if not recipe.is_text:
        inputs["view_size"] = max(recipe.teacher.input.size, recipe.student.input.size)
    if language:
        inputs["pretrained"] = language.fingerprint
    if needs_parent(recipe):
        inputs["parent"] = teacher.fingerprint
    return inputs


def needs_parent(recipe: Recipe) -> bool:
    """Whether the student's start, and so the control's, has something of the teacher's."""
    return recipe.is_text and "teacher" in (recipe.student.model, recipe.student.text.tokenizer)


def _exports(
    recipe: Recipe, data: Step, trained: Step, device_card: dict[str, Any], asked: Sequence[Step]
) -> list[Step]:
    targets = recipe.export.targets
    chosen = targets[:1] if trained.name == "control" else targets
    return [_export(recipe, data, trained, target, device_card, asked) for target in chosen]


def _export(
    recipe: Recipe,
    data: Step,
    trained: Step,
    target: ExportTarget,
    device_card: dict[str, Any],
    asked: Sequence[Step],
) -> Step:
    precisions = {
        "teacher": recipe.export.teacher_precisions,
        "student": tuple(dict.fromkeys(("fp32", *target.precisions))),
        "control": ("fp32",),
    }[trained.name]
    inputs: dict[str, Any] = {
        "checkpoint": trained.fingerprint,
        "data": data.fingerprint,
        "runtime": target.runtime,
        "precisions": list(precisions),
        "packages": package_versions(export_packages(recipe, target.runtime)),
    }
    if saturates(device_card) and target.runtime in SATURATING and not {"w8dyn", "w8a8"}.isdisjoint(precisions):
        inputs["saturates"] = True  # the int8 files are others on such a CPU
    if climbs(recipe, trained.name, precisions):
        inputs["compress"] = _compress_inputs(recipe, target.runtime, device_card)
        inputs |= {"asks": {step.name: step.fingerprint for step in asked}} if asked else {}
    name = f"export-{trained.name}-{target.runtime}"
    return _step(name, "export", inputs, role=trained.role, runtime=target.runtime, optional=target.optional)


def climbs(recipe: Recipe, trained: str, precisions: Sequence[str]) -> bool:
    """Whether the quantization ladder chooses a file of this model."""
    wanted = chosen(text=recipe.is_text)
    return recipe.compress.climb and trained == "student" and not set(wanted).isdisjoint(precisions)


LADDERS: dict[RuntimeName, int] = {"openvino": 2}
"""Of pictures; raised where a rung makes other files from the same inputs."""


def _compress_inputs(recipe: Recipe, runtime: RuntimeName, device_card: dict[str, Any]) -> dict[str, Any]:
    """What decides on a rung: limits, metric, and the device that it is timed on."""
    lengths = {"lengths"} if recipe.is_text and recipe.measure.lengths else set()
    measured = recipe.measure.model_dump(mode="json", include={"threads", "warmup", *lengths})
    budget = recipe.budget_of(runtime).model_dump(mode="json", exclude={"max_drop_points"})
    settings = recipe.compress.model_dump(mode="json", exclude={"climb", "qat", "surgery"})
    decided = {"metric": recipe.metric, "seed": recipe.seed, "budget": budget, "measure": measured}
    if runtime in LADDERS and not recipe.is_text:
        decided["ladder"] = LADDERS[runtime]
    return {**settings, **decided, "device": device_card}


PROTOCOL = ("scenarios", "previous", "tries", "cool_down", "audits", "energy_seconds")
"""Fields of ``measure`` that came later."""


def _downstream(recipe: Recipe, data: Step, exports: list[Step], part: str) -> dict[str, Any]:
    other = {"device"} if part == "measure" else set()  # its card stands beside
    other |= {"lengths"} if part == "measure" and not recipe.is_text else set()
    other |= {"units"} if part == "measure" and recipe.measure.units == Units() else set()
    if part == "measure":  # what asks for nothing has no part in the name of what is made
        other |= {name for name in PROTOCOL if getattr(recipe.measure, name) == Measure.model_fields[name].default}
    place = recipe.measure.previous if part == "measure" else ""
    earlier = {"previous": file_hash(previous_place(place))} if place else {}
    return {
        **earlier,
        "data": data.fingerprint,
        part: getattr(recipe, part).model_dump(mode="json", exclude=other),
        "files": {e.name: e.fingerprint for e in exports},
    }


def _units(recipe: Recipe, runtime: str, device_card: dict[str, Any]) -> dict[str, Any]:
    """Where a runtime computes, if that is not its default."""
    request = recipe.measure.units.request(runtime)
    return {"units": request, "device": device_card} if request else {}


def _predict(data: Step, export: Step, device: dict[str, Any]) -> Step:
    inputs = {"data": data.fingerprint, "export": export.fingerprint, "split": "test", **device}
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
        **gate_inputs(recipe),
    }
