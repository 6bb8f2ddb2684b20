"""What has been run of a recipe's steps, and what a step gets from those before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilledge.pipeline.compress.retrained import Retrained
from distilledge.pipeline.data.content import location
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import (
    Checkpoint,
    ExportResult,
    Sample,
    Split,
    Splits,
    TextRow,
    data_root,
    read_samples,
    read_texts,
)
from distilledge.pipeline.steps import Step
from distilledge.pipeline.store import Store, Stored

if TYPE_CHECKING:
    pass

Report = Callable[[Any], None]
"""Receives the training loop's progress events."""


@dataclass
class Chain:
    """What has been run so far, by step name; each entry is a value with its directory."""

    recipe: Recipe
    store: Store
    steps: tuple[Step, ...]
    report: Report
    done: dict[str, Stored[Any]] = field(default_factory=dict)
    failed: dict[str, ExportResult] = field(default_factory=dict)
    """Optional targets that could not be exported."""

    @property
    def splits(self) -> Splits:
        """With the place where the pictures lie now: the store knows them by content, they may have moved."""
        value: Splits = self.done["data"].value
        return value.model_copy(update={"root": location(self.recipe.data, self.recipe.task)})

    def samples(self, split: Split) -> list[Sample]:
        return read_samples(self.done["data"].path, split)

    def inputs(self, split: Split, *, calibration: bool = False) -> tuple[list[Sample], Path, list[TextRow]]:
        """Samples of a split, where their pictures lie, and the texts of a text task.

        ``calibration``: only those that static int8 is calibrated on.
        """
        directory = self.done["data"].path
        if not self.recipe.is_text:
            return [s for s in self.samples(split) if s.calibration or not calibration], self.root, []
        pairs = [(s, row) for s, row in read_texts(directory, split) if s.calibration or not calibration]
        return [s for s, _ in pairs], directory, [row for _, row in pairs]

    def calibration(self) -> tuple[list[Sample], Path, list[TextRow]]:
        """What static int8 is calibrated on: of where the model will run."""
        return self.inputs("train" if self.recipe.data.target is None else "target", calibration=True)

    def compared(self) -> tuple[list[Sample], Path, list[TextRow]]:
        """What torch and the files are compared on: validation, or samples of the target that do not calibrate."""
        if self.recipe.data.target is None:
            return self.inputs("validation")
        samples, place, texts = self.inputs("target")
        free = [i for i, sample in enumerate(samples) if not sample.calibration]
        chosen = [samples[i] for i in free], place, [texts[i] for i in free] if texts else []
        return chosen if free else self.inputs("validation")

    @property
    def root(self) -> Path:
        return data_root(self.splits, self.done["data"].path)

    def trained(self, name: str) -> tuple[Checkpoint, Path] | None:
        """A trained model with its directory; None where the recipe has no such step."""
        stored = self.done.get(name)
        return None if stored is None else (stored.value, stored.path)

    def ask(self, name: str) -> tuple[Retrained, Path]:
        """The result of a lazy step, run now if it was not before."""
        from distilledge.pipeline.run import run_step

        if name not in self.done:
            run_step(self, next(step for step in self.steps if step.name == name))
        return self.done[name].value, self.done[name].path

    def exports(self) -> list[Stored[ExportResult]]:
        """The exports that were made, in order."""
        return [s for name, s in self.done.items() if name.startswith("export-")]
