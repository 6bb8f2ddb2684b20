"""Several tasks on one network: how their losses are weighed, and what each may lose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from distilledge.models.base import Value
from distilledge.pipeline.recipe_data import Data, NotNegative, Positive

if TYPE_CHECKING:
    from distilledge.pipeline.recipe import Recipe

Found = Iterator[tuple[str, str]]


class Multitask(Value):
    """Of recipes whose ``data.columns.labels`` names more than one task."""

    weighting: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    """``uncertainty``: learnt log variances (Kendall et al. 2018); ``gradnorm``: equal training rates, by the gradient
    of the last shared layer (Chen et al. 2018)."""
    weights: dict[str, Positive] = {}
    """Factor of each task's loss (at the start, where they are learnt); 1 where none is given."""
    alpha: NotNegative = 1.5
    """Of gradnorm: how strongly tasks that lag are pulled; 0: equal gradients."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.025
    """Of gradnorm: learning rate of the weights."""
    max_drop_points: dict[str, NotNegative | None] = {}
    """Task -> points below the teacher, instead of the budget's; null: no limit."""


def tasks(data: Data) -> tuple[str, ...]:
    """Names of the tasks, the primary first; empty where there is one without a name."""
    return (*data.columns.labels, *data.other_sets) if data.columns.labels else ()


def without_tasks(data: Data, fields: dict[str, Any]) -> None:
    """Take out of the dumped ``fields`` of the data what says nothing: other sets are named by their content."""
    del fields["other_sets"]
    if not data.columns.labels:
        del fields["columns"]["labels"]


def multitask_inputs(recipe: Recipe) -> dict[str, Any]:
    """What a training depends on beside what it depends on without several tasks."""
    if not tasks(recipe.data):
        return {}
    return {"multitask": recipe.multitask.model_dump(mode="json", exclude={"max_drop_points"})}


def gate_inputs(recipe: Recipe) -> dict[str, Any]:
    return {"multitask": recipe.multitask.max_drop_points} if tasks(recipe.data) else {}


OF_ONE_TASK = ("feature-extraction", "ewc", "zero-shot")
"""Strategies that know one head."""


def check_multitask(recipe: Recipe) -> Found:
    """What contradicts several tasks in a recipe, or needs them."""
    names = tasks(recipe.data)
    if not names:
        if recipe.multitask != Multitask() or recipe.data.other_sets:
            yield "multitask and data.other_sets are of several tasks", "name the tasks in data.columns.labels"
        return
    yield from _names(recipe, names)
    yield from _unfit(recipe)
    if recipe.multitask.weighting == "gradnorm":
        yield from _gradnorm(recipe)


def _names(recipe: Recipe, names: tuple[str, ...]) -> Found:
    from distilledge.models.heads import INPUT_NAMES

    if len(names) < 2:
        yield f"data.columns.labels names one task, {names[0]}", "use data.columns.label, or add a task"
    for name in sorted(set(names) & set(INPUT_NAMES)):
        yield f"a task cannot be named {name}, as a tensor of the files is", "choose another name"
    for name in sorted(set(recipe.data.columns.labels) & set(recipe.data.other_sets)):
        yield f"task {name} stands in data.columns.labels and in data.other_sets", "name it once"
    for field in ("weights", "max_drop_points"):
        for name in sorted(set(getattr(recipe.multitask, field)) - set(names)):
            yield f"multitask.{field}.{name} is no task", f"choose from {', '.join(names)}"


def _unfit(recipe: Recipe) -> Found:
    if recipe.is_text:
        yield "several tasks are of pictures", "leave data.columns.labels out"
    if recipe.data.format == "huggingface":
        yield "a Hugging Face data set gives one label", "write a manifest, or leave data.columns.labels out"
    if recipe.compress.climb:
        yield "compress.climb judges one task", "set compress.climb: false"
    teacher = recipe.teacher
    if teacher.strategy.name in OF_ONE_TASK:
        yield f"strategy {teacher.strategy.name} is of one task", "use fine-tune, l2-sp or lora"
    if teacher.check_transfer:
        yield "check_transfer compares one task", "leave it out"
    if recipe.data.target is not None:
        yield "data.target is of one task", "leave it out"
    if recipe.search.students or recipe.search.sizes:
        yield "search is of one task", "leave it out"


def _gradnorm(recipe: Recipe) -> Found:
    """It needs the gradient of the last shared layer, in each step of one process."""
    for role, part in (("teacher", recipe.teacher), ("student", recipe.student)):
        training = part.training
        if training.freeze_backbone:
            yield f"{role}.training.freeze_backbone: gradnorm needs the last shared layer", "use uncertainty"
        if training.compile or training.precision == "fp16":
            yield f"{role}.training: gradnorm goes without compile and fp16", "use uncertainty"
    if recipe.teacher.strategy.name in ("progressive", "lora", "qlora"):
        yield f"strategy {recipe.teacher.strategy.name}: gradnorm needs the last shared layer", "use uncertainty"
