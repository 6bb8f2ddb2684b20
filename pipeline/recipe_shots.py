"""What a well-formed recipe can still get wrong about zero- and few-shot teachers."""

from __future__ import annotations

from collections.abc import Iterator

from distilledge.models.clip_prompts import hub_name, is_clip
from distilledge.pipeline.recipe import Prompts, Recipe
from distilledge.pipeline.recipe_strategy import FeatureExtraction

Found = Iterator[tuple[str, str]]


def clip_contradictions(recipe: Recipe) -> Found:
    teacher = recipe.teacher
    if is_clip(recipe.student.model):
        yield "CLIP models are teachers", "choose another student.model"
    if not is_clip(teacher.model):
        if teacher.strategy.name == "zero-shot":
            yield f"strategy zero-shot is of CLIP, not of {teacher.model}", "set teacher.model: clip:OWNER/NAME"
        if teacher.prompts != Prompts():
            yield "teacher.prompts are of CLIP models", "leave them out"
        return
    if recipe.is_text:
        yield "a CLIP teacher is of pictures", "choose a text model"
    if teacher.weights == "none":
        yield "a CLIP teacher is made of its weights", "set teacher.weights: hub, or a directory"
    if teacher.weights == "hub" and not hub_name(teacher.model):
        yield "weights: hub needs a name", "set teacher.model: clip:OWNER/NAME"
    if teacher.strategy.name == "ewc":
        yield "strategy ewc needs a head of the source, which CLIP has none of", "use l2-sp, or lora"
    for template in teacher.prompts.listed:
        if template.count("{}") != 1:
            yield f"teacher.prompts.templates: {template!r} does not hold {{}} once", "write {} where the class stands"
    if not teacher.prompts.listed:
        yield "teacher.prompts.templates is empty", "name at least one, or leave it out"


def head_contradictions(recipe: Recipe, made: FeatureExtraction) -> Found:
    """Of the heads that take a linear one's place."""
    if made.head == "linear":
        return
    if recipe.student.model == "teacher":
        yield f"a student made from the teacher cannot keep its head of {WORDS[made.head]}", "use head: linear"
    if recipe.task == "multi-label-classification":
        yield f"head {made.head} gives one label", "use head: linear"
    if (made.tuned or made.search) and made.head != "tip-adapter":
        yield f"head {made.head} has nothing to tune", "use head: tip-adapter, or leave tuned and search out"


WORDS = {"knn": "neighbours", "prototypes": "class means", "tip-adapter": "a cache"}
