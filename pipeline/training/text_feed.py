"""Texts for the training loop: ids and targets of each task, batches of like length, validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from distilledge.models.losses import one_hot
from distilledge.models.tasks import IGNORED
from distilledge.pipeline.decode import first_pieces
from distilledge.pipeline.outcomes import validation_metrics
from distilledge.pipeline.recipe import TaskName, Training
from distilledge.pipeline.record import Sample, TextRow
from distilledge.pipeline.training.counters import IntArray, Purpose, generator
from distilledge.pipeline.training.evaluate import finite
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.mixing import Batch
from distilledge.pipeline.training.views import Steps
from distilledge.targets.ondevice.text import Encoded, Int32Array, TextEncoder

SORTED = 16
"""Steps whose texts are sorted by length together: padding costs a few per cent, and the order stays random."""
BATCH = 64


@dataclass(frozen=True)
class Texts:
    """Texts as ids, with their targets in the form of ``models.tasks``: (), (C,), (L,) or (2,), int64."""

    ids: list[Int32Array]
    targets: list[IntArray]
    names: tuple[str, ...]
    labels: IntArray
    """Class of each text, for balanced sampling; -1 where it has no single one."""
    cut: int = 0
    """Texts longer than the input."""

    def __len__(self) -> int:
        return len(self.ids)


def encode(pairs: Sequence[tuple[Sample, TextRow]], encoder: TextEncoder, task: TaskName, classes: int) -> Texts:
    made = [encoder.encode_aligned(plain(row)) for _, row in pairs]
    targets = [TARGETS[task](s, row, e, classes) for (s, row), e in zip(pairs, made, strict=True)]
    single = task == "text-classification"
    return Texts(
        ids=[e.ids for e in made],
        targets=targets,
        names=tuple(s.path for s, _ in pairs),
        labels=np.array([s.label if single or s.label < 0 else 0 for s, _ in pairs], np.int64),
        cut=sum(e.cut for e in made),
    )


def plain(row: TextRow) -> dict[str, str | list[str] | None]:
    """As the device reads it."""
    return {"text": row.text if isinstance(row.text, str) else list(row.text), "context": row.context}


def _class(sample: Sample, _row: TextRow, _encoded: Encoded, _classes: int) -> IntArray:
    return np.array(sample.label, np.int64)


def _labels(sample: Sample, row: TextRow, _encoded: Encoded, classes: int) -> IntArray:
    if sample.label < 0:
        return np.full(classes, -1, np.int64)
    present = np.zeros(classes, np.int64)
    present[list(row.labels)] = 1
    return present


def _tags(sample: Sample, row: TextRow, encoded: Encoded, _classes: int) -> IntArray:
    """The tag of a word at its first piece; -1 where the text has none."""
    targets = np.full(len(encoded.ids), IGNORED, np.int64)
    for word, place in first_pieces(encoded.words).items():
        targets[place] = row.labels[word] if sample.label >= 0 else -1
    return targets


def _ends(sample: Sample, row: TextRow, encoded: Encoded, _classes: int) -> IntArray:
    """First and last token of the first answer; of the text where it has none; -1 where it was cut.

    The end of an answer may have no token: a blank, or what the tokenizer drops.
    """
    if sample.label < 0:
        return np.array([-1, -1], np.int64)
    if not row.answers:
        return np.array([0, 0], np.int64)
    start = row.answers[0][0]
    end = start + len(row.answers[0][1].rstrip())
    covered = [
        place
        for place, (inside, (low, high)) in enumerate(zip(encoded.in_context, encoded.offsets, strict=True))
        if inside and low < end and high > start
    ]
    whole = covered and (not encoded.cut or encoded.offsets[covered[-1]][1] >= end)
    return np.array([covered[0], covered[-1]] if whole else [-1, -1], np.int64)


TARGETS: dict[str, Callable[[Sample, TextRow, Encoded, int], IntArray]] = {
    "text-classification": _class,
    "multi-label-classification": _labels,
    "token-classification": _tags,
    "question-answering": _ends,
}


class LengthSteps(Steps):
    """``Steps`` whose texts are of like length: sorted within ``SORTED`` steps, the steps then in random order."""

    def __init__(
        self,
        lengths: IntArray,
        labels: IntArray,
        step_size: int,
        *,
        seed: int,
        balanced: bool,
        rank: int,
        processes: int,
    ) -> None:
        super().__init__(labels, step_size, seed=seed, balanced=balanced, rank=rank, processes=processes)
        self._lengths = lengths

    def order(self, epoch: int) -> IntArray:
        return self.shuffled(like_length(super().order(epoch), self._lengths), epoch)

    def shuffled(self, steps: IntArray, epoch: int) -> IntArray:
        """The rows of (steps, size) in the epoch's random order."""
        return np.asarray(steps[generator(Purpose.ORDER, self._seed, epoch, 1).permutation(len(steps))])


def like_length(steps: IntArray, lengths: IntArray) -> IntArray:
    """Indices (steps, size), sorted by length within each ``SORTED`` steps."""
    flat, block = steps.reshape(-1), SORTED * steps.shape[1]
    parts = [flat[i : i + block] for i in range(0, len(flat), block)]
    made = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    return made.reshape(steps.shape)


@dataclass(frozen=True)
class TextFeed:
    """See ``Feed``. ``guide_ids``: of the same texts, by the tokenizer of a teacher with another."""

    train: Texts
    validation: Texts
    task: TaskName
    classes: tuple[str, ...]
    pad_id: int
    seed: int
    guide_ids: list[Int32Array] | None = None
    guide_pad_id: int = 0
    changed: Callable[[Tensor, int, Sequence[int]], Tensor] | None = None
    """(ids (N, L), epoch, indices) -> ids, those of changed copies changed; copies stand behind the texts."""
    answers: npt.NDArray[np.float32] | None = None
    """The teacher's logits of every text, where it was asked once for all epochs."""
    lengths: IntArray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.array([len(ids) for ids in self.train.ids], np.int64))

    @property
    def names(self) -> tuple[str, ...]:
        return self.train.names

    @property
    def labels(self) -> IntArray:
        return self.train.labels

    def steps(self, settings: Training, seed: int, accelerator: Accelerator) -> LengthSteps:
        return length_steps(self.lengths, self.labels, settings, seed, accelerator)

    def loader(self, steps: Steps, *, pin: bool) -> Iterable[Loaded]:
        return Padded(self.train.ids, steps, self.pad_id, pin=pin)

    def batch(self, loaded: Loaded, counters: tuple[int, ...], accelerator: Accelerator) -> Batch:
        device, chosen = accelerator.device, loaded.indices.tolist()
        ids = loaded.inputs
        if self.changed is not None:
            ids = self.changed(ids, counters[0], chosen)
        targets = collate_targets([self.train.targets[i] for i in chosen])
        if self.task == "text-classification":
            targets = one_hot(targets, len(self.classes))
        theirs = None
        if self.guide_ids is not None:
            theirs = collate_ids([self.guide_ids[i] for i in chosen], self.guide_pad_id).to(device)
        answers = None if self.answers is None else torch.from_numpy(self.answers[chosen]).to(device)
        return Batch(ids.to(device, non_blocking=True), targets.to(device, non_blocking=True), theirs, answers)

    def validate(
        self, model: nn.Module, to_input: nn.Module, accelerator: Accelerator, poll: Callable[[], None]
    ) -> dict[str, float]:
        logits = predict(model, to_input, self.validation.ids, self.pad_id, accelerator, poll)
        found = validation_metrics(self.task, logits, self.validation.targets, self.classes)
        return finite(found)


class Padded:
    """Iterates over the steps each time it is started, as a loader does."""

    def __init__(self, ids: list[Int32Array], steps: Steps, pad_id: int, *, pin: bool) -> None:
        self._ids, self._steps, self._pad_id, self._pin = ids, steps, pad_id, pin

    def __iter__(self) -> Iterator[Loaded]:
        for keys in self._steps:
            indices = [index for _, index in keys]
            ids = collate_ids([self._ids[i] for i in indices], self._pad_id)
            yield Loaded(ids.pin_memory() if self._pin else ids, torch.tensor(indices))


def length_steps(
    lengths: IntArray, labels: IntArray, settings: Training, seed: int, accelerator: Accelerator
) -> LengthSteps:
    return LengthSteps(
        lengths,
        labels,
        settings.batch_size * settings.accumulate,
        seed=seed,
        balanced=settings.sampling == "balanced",
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )


def collate_ids(ids: Sequence[Int32Array], pad_id: int) -> Tensor:
    """int64 (N, L), padded on the right to the longest."""
    made = np.full((len(ids), max(len(row) for row in ids)), pad_id, np.int64)
    for row, own in zip(made, ids, strict=True):
        row[: len(own)] = own
    return torch.from_numpy(made)


def collate_targets(targets: Sequence[IntArray]) -> Tensor:
    """int64 (N,), (N, C), (N, 2), or (N, L) with ``IGNORED`` behind the ends."""
    if targets[0].ndim == 0:
        return torch.from_numpy(np.array(targets, np.int64))
    made = np.full((len(targets), max(len(row) for row in targets)), IGNORED, np.int64)
    for row, own in zip(made, targets, strict=True):
        row[: len(own)] = own
    return torch.from_numpy(made)


@torch.inference_mode()
def predict(
    model: nn.Module,
    to_input: nn.Module,
    ids: Sequence[Int32Array],
    pad_id: int,
    accelerator: Accelerator,
    poll: Callable[[], None],
) -> list[npt.NDArray[np.float32]]:
    """Logits of each text, in order: (C,), or (L, K) of its own tokens. Texts of like length go together."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    mine = range(accelerator.process_index, len(ids), accelerator.num_processes)
    order = sorted(mine, key=lambda i: len(ids[i]))
    found: list[tuple[int, npt.NDArray[np.float32]]] = []
    for start in range(0, len(order), BATCH):
        poll()
        chosen = order[start : start + BATCH]
        batch = collate_ids([ids[i] for i in chosen], pad_id).to(accelerator.device)
        with accelerator.autocast():
            logits = model(to_input(batch)).float().cpu().numpy()
        found += [(i, row[: len(ids[i])] if row.ndim == 2 else row) for i, row in zip(chosen, logits, strict=True)]
    for module in was_training:
        module.training = True
    if accelerator.num_processes > 1:
        found = gather_object(found)
    return [row for _, row in sorted(found, key=lambda item: item[0])]
