"""What a well-formed recipe can still get wrong: parts that contradict each other, unknown losses, unfit models.

Nothing is downloaded and no weights are read; models are built without memory to be counted and tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from distilledge.models.clip_prompts import is_clip
from distilledge.models.errors import UsageError
from distilledge.pipeline.recipe import METRICS, Input, Recipe, Student, Teacher, Training
from distilledge.pipeline.recipe_compress import chosen
from distilledge.pipeline.recipe_domain import domain, pictures_before
from distilledge.pipeline.recipe_multitask import check_multitask
from distilledge.pipeline.recipe_search_check import check_search
from distilledge.pipeline.recipe_shots import clip_contradictions, head_contradictions
from distilledge.pipeline.recipe_strategy import ADAPTING, FeatureExtraction, arguments, is_default
from distilledge.pipeline.reshape import check_package, check_reshape

NOT_THERE: dict[str, set[str]] = {"openvino": {"w8a16"}}
"""Precisions that a runtime does not know."""
Found = Iterator[tuple[str, str]]
"""What is wrong, and the edit that mends it."""


def check_recipe(recipe: Recipe) -> None:
    """Raise ``UsageError`` (exit 2) naming every contradiction in the recipe and every loss that cannot be computed."""
    raise_all([finding for check in CHECKS for finding in check(recipe)], recipe.name)


def check_models(recipe: Recipe) -> None:
    """Raise ``UsageError`` (exit 2) for an unknown model (naming near ones), one that cannot take its input size or has
    no classification head, and for a student larger than its teacher.
    """
    if recipe.is_text:
        _check_text_models(recipe)
        return
    sizes = {}
    for role, part in (("teacher", recipe.teacher), ("student", recipe.student)):
        if not is_clip(part.model):  # its files say how large it is, and the run reads them
            sizes[role] = parameters(part, role)
    if recipe.student.prune is not None:
        check_package()
    if sizes["student"] > sizes.get("teacher", sizes["student"]):
        raise UsageError(
            "E2018",
            f"the student is larger than its teacher ({sizes['student']:,} parameters against {sizes['teacher']:,}): "
            f"student.model {recipe.student.model}, teacher.model {recipe.teacher.model}",
            "choose a smaller student.model; `distilledge models` lists sizes",
        )


def raise_all(found: list[tuple[str, str]], name: str) -> None:
    """Raise ``UsageError`` (exit 2) with all findings, if there are any."""
    if len(found) == 1:
        raise UsageError("E2016", f"{found[0][0]}: recipe {name}", found[0][1])
    if found:
        lines = [f"  {what}; {fix}" for what, fix in found]
        raise UsageError(
            "E2016", "\n".join([f"{len(found)} contradictions: recipe {name}", *lines]), "mend each of them"
        )


def parameters(part: Teacher | Student, role: str) -> int:
    """Number of parameters. The forward pass without memory shows whether the size fits and the head is one."""
    import torch

    from distilledge.models.surgery import operated
    from distilledge.models.vision_names import build

    classes, size = 3, part.input.size
    try:
        with torch.device("meta"), torch.no_grad():
            model = build(part.model, classes=classes, size=size).eval()
            if isinstance(part, Student) and part.surgery is not None:
                operated(model, part.surgery)
            shape = tuple(model(torch.empty(1, 3, size, size)).shape)
    except UsageError as error:
        raise UsageError(error.code, f"{error.what}: {role}.model", error.hint) from error
    except RuntimeError as error:
        what = f"{part.model} cannot take pictures of {size} pixels ({str(error).splitlines()[0]}): {role}.input.size"
        raise UsageError("E2017", what, "set a larger size") from error
    if shape != (1, classes):
        what = f"{part.model} has no classification head, it gives {shape} for {classes} classes: {role}.model"
        raise UsageError("E2017", what, "choose a classification model; `distilledge models` lists some")
    return sum(p.numel() for p in model.parameters())


def _check_text_models(recipe: Recipe) -> None:
    """Names of architectures; of hub names and directories only the run can tell more."""
    from distilledge.models.text_names import layout

    for role, part in (("teacher", recipe.teacher), ("student", recipe.student)):
        if part.weights == "none" and part.model != "teacher":
            try:
                layout(part.model)
            except UsageError as error:
                raise UsageError(error.code, f"{error.what}: {role}.model", error.hint) from error


def _splits(recipe: Recipe) -> Found:
    parts = recipe.data.splits
    total = parts.train + parts.validation + parts.test
    if abs(total - 1) > 1e-6:
        yield f"data.splits add up to {total:g}", "make train, validation and test add up to 1"


def _losses(recipe: Recipe) -> Found:
    from distilledge.models.losses import check_arguments

    before = recipe.student.pretraining.losses if recipe.student.pretraining else ()
    for place, terms in (("distill", recipe.distill.losses), ("student.pretraining", before)):
        for number, term in enumerate(terms):
            try:
                check_arguments(term.name, term.arguments)
            except UsageError as error:
                yield f"{place}.losses.{number}: {error.what}", error.hint
    if recipe.distill.hard_weight == 0 and not any(term.weight for term in recipe.distill.losses):
        yield "distill has no loss with a weight above 0", "set distill.hard_weight or a loss's weight"


def _inputs(recipe: Recipe) -> Found:
    for role, spec in (("teacher", recipe.teacher.input), ("student", recipe.student.input)):
        yield from ((f"{role}.input.{what}", fix) for what, fix in _input(spec))
    if recipe.teacher.input.bit_depth != recipe.student.input.bit_depth:
        yield "teacher.input.bit_depth and student.input.bit_depth differ", "they read the same files: make them equal"


def _input(spec: Input) -> Found:
    if (spec.mean is None) != (spec.std is None):
        yield "mean and std: only one is given", "give both or neither"
    if spec.mean and not all(0 <= m <= 1 for m in spec.mean):
        yield f"mean {spec.mean} is not of RGB in 0..1", "divide it by 255"
    if spec.std and not all(0 < s <= 1 for s in spec.std):
        yield f"std {spec.std} is not of RGB in 0..1", "divide it by 255"
    if not all(0 <= c <= 255 for c in spec.alpha_background):
        yield f"alpha_background {spec.alpha_background} is no colour", "use three numbers in 0..255"
    if spec.interpolation == "lanczos" and not spec.antialias:
        yield "interpolation lanczos needs antialias", "set antialias: true, or use bicubic"


def _trainings(recipe: Recipe) -> Found:
    for role, part in (("teacher", recipe.teacher), ("student", recipe.student)):
        yield from ((f"{role}.training.{what}", fix) for what, fix in _training(part.training))
        if part.pretraining is not None:
            yield from (
                (f"{role}.pretraining.training.{what}", fix) for what, fix in _training(part.pretraining.training)
            )
    recovery = recipe.student.prune.training if recipe.student.prune else None
    if recovery is not None:
        yield from ((f"student.prune.training.{what}", fix) for what, fix in _training(recovery))


def _training(training: Training) -> Found:
    if training.warmup_epochs > training.epochs:
        yield f"warmup_epochs {training.warmup_epochs:g} exceeds epochs {training.epochs}", "lower warmup_epochs"
    for name, (low, high) in (
        ("crop_scale", training.augment.crop_scale),
        ("crop_ratio", training.augment.crop_ratio),
    ):
        if low > high:
            yield f"augment.{name} runs from {low:g} down to {high:g}", "write the smaller number first"
    if training.augment.crop_scale[0] == 0:
        yield "augment.crop_scale begins at 0", "a crop keeps a share above 0"


def _targets(recipe: Recipe) -> Found:
    runtimes = [target.runtime for target in recipe.export.targets]
    if not runtimes:
        yield "export.targets is empty", "name at least one runtime"
    for runtime, times in Counter(runtimes).items():
        if times > 1:
            yield f"export.targets names {runtime} {times} times", "join its precisions in one entry"
    for number, target in enumerate(recipe.export.targets):
        if not target.precisions:
            yield f"export.targets.{number}.precisions is empty", "name at least one, such as fp32"
        for precision in sorted(set(target.precisions) & NOT_THERE.get(target.runtime, set())):
            yield f"{target.runtime} has no {precision}: export.targets.{number}", "leave it out"
    if not recipe.measure.threads:
        yield "measure.threads is empty", "name at least one count, such as 1"


def _units(recipe: Recipe) -> Found:
    units = recipe.measure.units
    for name, listed in (("onnx", units.onnx), ("tflite", units.tflite)):
        if not listed:
            yield f"measure.units.{name} is empty", "name at least one"
        if len(set(listed)) < len(listed):
            yield f"measure.units.{name} names a unit twice", "name it once"
    if "builtin" in units.tflite and len(units.tflite) > 1:
        yield "measure.units.tflite: builtin takes the rest by itself", "leave it out, or name it alone"
    if units.tflite[:2] == ("xnnpack", "delegate"):
        yield "measure.units.tflite: a delegate comes before xnnpack", "write [delegate, xnnpack]"
    if ("delegate" in units.tflite) != (units.delegate is not None):
        what = "measure.units.tflite: delegate and measure.units.delegate, its library, belong together"
        yield what, "give both or neither"
    named = {*units.onnx, units.openvino, *units.tflite}
    for unknown in sorted(set(units.options) - named):
        yield (
            f"measure.units.options.{unknown} is of a unit that is not chosen",
            f"choose from {', '.join(sorted(named))}",
        )


def _compress(recipe: Recipe) -> Found:
    if not recipe.compress.climb:
        for name in sorted({"qat", "surgery"} & recipe.compress.model_fields_set):
            if getattr(recipe.compress, name) is not None:
                yield f"compress.{name} without compress.climb", "set compress.climb: true"
        return
    for name in ("qat", "surgery"):
        if recipe.is_text and getattr(recipe.compress, name) is not None:
            yield f"compress.{name} is of pictures", "leave it out"
    wanted = chosen(text=recipe.is_text)
    if not any(set(wanted) & set(target.precisions) for target in recipe.export.targets):
        yield f"compress.climb without a target in {' or '.join(wanted)}", f"add {wanted[-1]} to export.targets"
    if recipe.is_text and recipe.compress.rungs and {"ptq", "w8"}.isdisjoint(recipe.compress.rungs):
        yield "compress.rungs: of texts LiteRT has neither ranges nor biases to mend", "add ptq"
    if not recipe.compress.rungs:
        yield "compress.rungs is empty", "name at least one, such as ptq"


def _task(recipe: Recipe) -> Found:
    if recipe.metric not in METRICS[recipe.task]:
        yield f"metric {recipe.metric} is not one of {recipe.task}", f"choose from {', '.join(METRICS[recipe.task])}"
    single = recipe.task in ("image-classification", "text-classification")
    for role, part in (("teacher", recipe.teacher), ("student", recipe.student)):
        if not single and (part.training.class_weights != "none" or part.training.sampling != "shuffle"):
            yield f"{role}.training balances classes, but a sample of {recipe.task} has several", "leave it out"
        yield from pictures_before(recipe, role, part.pretraining)
        if any(length > part.text.max_length for length in part.text.buckets):
            yield f"{role}.text.buckets are longer than max_length {part.text.max_length}", "raise max_length"
    if recipe.teacher.model == "teacher" or (recipe.student.model == "teacher" and not recipe.is_text):
        yield "model: teacher is for students of text tasks", "name a model"
    if recipe.student.pretraining and recipe.student.pretraining.losses and not recipe.teacher.pretraining:
        what = "student.pretraining.losses compare with the teacher's language model, which the recipe does not train"
        yield what, "set teacher.pretraining, or leave the losses out"
    if recipe.distill.augment_text is not None and not recipe.is_text:
        yield "distill.augment_text is of text tasks", "leave it out"


def _texts(recipe: Recipe) -> Found:
    """Settings of texts that would say nothing."""
    if not recipe.is_text:
        return
    if recipe.teacher.text.tokenizer == "teacher":
        yield "teacher.text.tokenizer: teacher is for students", "set it to model, train or a path"
    for role, part in (("teacher", recipe.teacher), ("student", recipe.student)):
        if part.text.config and part.weights != "none":
            yield f"{role}.text.config is of models without weights of their own", "leave it out"
        wrong = sorted(set(part.text.config) - {"hidden_size", "intermediate_size"})
        if part.model == "teacher" and wrong:
            what = f"{role}.text.config of a student made from the teacher has no {wrong[0]}"
            yield what, "give hidden_size and intermediate_size: heads keep their width"
        if part.text.layers and part.model != "teacher":
            yield f"{role}.text.layers are of students made from the teacher", "set student.model: teacher"


def _strategy(recipe: Recipe) -> Found:
    teacher = recipe.teacher
    chosen = teacher.strategy
    try:
        made = arguments(chosen)
    except UsageError as error:
        yield f"teacher.strategy: {error.what}", error.hint
        return
    random = teacher.weights == "none" and teacher.pretraining is None
    if random and chosen.name not in ("fine-tune", "discriminative", *ADAPTING):
        yield f"strategy {chosen.name} starts from random weights", "set teacher.weights"
    if not is_default(chosen) and teacher.training.freeze_backbone:
        yield "training.freeze_backbone and a strategy both say what is trained", "use feature-extraction"
    if not is_default(chosen) and teacher.text.lora is not None:
        yield "text.lora and a strategy both say what is trained", "use strategy: lora"
    if chosen.name == "discriminative" and teacher.training.layer_decay != 1:
        yield "training.layer_decay and strategy discriminative both set it", "leave layer_decay out"
    if recipe.is_text and any(model.training.drop_path is not None for model in (teacher, recipe.student)):
        yield "training.drop_path is of pictures", "set training.dropout"
    if isinstance(made, FeatureExtraction):
        yield from _features(recipe, made)


def _features(recipe: Recipe, made: FeatureExtraction) -> Found:
    if recipe.task in ("token-classification", "question-answering"):
        yield f"strategy feature-extraction is of whole texts, not of {recipe.task}", "use fine-tune or lora"
    yield from head_contradictions(recipe, made)


def _check_of_transfer(recipe: Recipe) -> Found:
    teacher = recipe.teacher
    if teacher.check_transfer and teacher.weights == "none" and teacher.pretraining is None:
        yield "check_transfer compares with random weights, which the teacher has", "set teacher.weights"
    if teacher.require_positive_transfer and not teacher.check_transfer:
        yield "require_positive_transfer needs the comparison", "set teacher.check_transfer: true"


def _losses_of_task(recipe: Recipe) -> Found:
    from distilledge.models.losses import LOSSES

    terms = [*recipe.distill.losses, *(recipe.student.pretraining.losses if recipe.student.pretraining else ())]
    for name in dict.fromkeys(term.name for term in terms if term.name in LOSSES):
        spec = LOSSES[name]
        if recipe.is_text and spec.needs in ("features", "embedding"):
            yield f"loss {name} looks at feature maps of pictures", "choose hidden, attention_scores or value_relation"
        if not recipe.is_text and spec.of_texts:
            yield f"loss {name} looks at states of text models", "choose hint, attention or relational"


CHECKS: tuple[Callable[[Recipe], Found], ...] = (
    _task,
    _texts,
    _splits,
    _losses,
    _losses_of_task,
    _inputs,
    _trainings,
    _strategy,
    clip_contradictions,
    _check_of_transfer,
    domain,
    _targets,
    _units,
    _compress,
    check_multitask,
    check_reshape,
    check_search,
)
