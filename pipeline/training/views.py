"""The views that a model learns from: a function of (seed, epoch, index) alone, made once for teacher and student.

Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent": both see the same crop. The view
is made at the larger of the two input sizes; ``ToInput`` brings it to each model's own size and scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from distilledge.pipeline.recipe import Augment
from distilledge.pipeline.record import Sample
from distilledge.pipeline.training.counters import IntArray, Purpose, epoch_order, generator, torch_seed
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.pictures import FromFiles, Pictures, Uint8Array
from distilledge.pipeline.training.workers import follow_parent, starter
from distilledge.targets.ondevice.preprocess import INTERPOLATIONS, InputSpec, fit

Key = tuple[int, int]
"""(epoch, index) of a view."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ViewRule:
    """How views are cut. ``spec`` has the view's size; its resize rule says whether pictures are stretched."""

    spec: InputSpec
    augment: Augment
    seed: int

    @property
    def crops(self) -> bool:
        return self.augment.crop_scale != (1.0, 1.0)


def make_view(picture: Uint8Array, rule: ViewRule, epoch: int, index: int) -> Uint8Array:
    """uint8 (size, size, 3): random resized crop, flips, RandAugment. Without a random crop, the crop of evaluation."""
    random = generator(Purpose.VIEW, rule.seed, epoch, index)
    image = Image.fromarray(picture)
    view = _random_crop(image, rule, random) if rule.crops else fit(image, rule.spec)
    across, down = random.random(2)
    if across < rule.augment.horizontal_flip:
        view = view[:, ::-1]
    if down < rule.augment.vertical_flip:
        view = view[::-1]
    if rule.augment.randaugment is not None:
        view = _randaugment(view, rule, torch_seed(Purpose.VIEW, rule.seed, epoch, index))
    return np.ascontiguousarray(view)


def _random_crop(image: Image.Image, rule: ViewRule, random: np.random.Generator) -> Uint8Array:
    if rule.spec.resize == "letterbox":
        image = _squared(image)
    size = (rule.spec.width, rule.spec.height)
    box = crop_region(image.size, rule, random)
    return np.asarray(image.resize(size, INTERPOLATIONS[rule.spec.interpolation], box))


def crop_region(size: tuple[int, int], rule: ViewRule, random: np.random.Generator) -> Box:
    """Left, top, right, bottom of a crop of a picture of ``size`` (width, height), in its pixels.

    The crop's sides are in ``crop_ratio`` to each other, or (``stretch``, where evaluation distorts the picture to a
    square) to the sides of the picture. As Szegedy et al. 2015, but sides too long are cut instead of drawn again.
    """
    width, height = size
    narrow, wide = rule.augment.crop_ratio
    ratio = math.exp(random.uniform(math.log(narrow), math.log(wide)))
    if rule.spec.resize != "stretch":
        ratio *= height / width
    share = random.uniform(*rule.augment.crop_scale)
    across, down = min(1.0, math.sqrt(share * ratio)) * width, min(1.0, math.sqrt(share / ratio)) * height
    left, top = random.uniform(0, width - across), random.uniform(0, height - down)
    return left, top, min(left + across, width), min(top + down, height)


def _squared(image: Image.Image) -> Image.Image:
    """The picture centred on black, as ``letterbox`` evaluates it."""
    side = max(image.size)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _randaugment(view: Uint8Array, rule: ViewRule, seed: int) -> Uint8Array:
    """torchvision draws from torch's global generator: it is seeded for this view and put back."""
    assert rule.augment.randaugment is not None
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    operation = _randaugment_operation(rule.augment.randaugment.operations, rule.augment.randaugment.magnitude)
    changed = operation(Image.fromarray(np.ascontiguousarray(view)))
    torch.set_rng_state(before)
    return np.asarray(changed)


@cache
def _randaugment_operation(operations: int, magnitude: int) -> Any:
    from torchvision.transforms import v2

    return v2.RandAugment(operations, magnitude)


class Views(Dataset[tuple[Uint8Array, int]]):
    """Views by (epoch, index), each with its index."""

    def __init__(self, pictures: Pictures, rule: ViewRule) -> None:
        self.pictures, self.rule = pictures, rule

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> tuple[Uint8Array, int]:
        epoch, index = key
        return make_view(self.pictures[index], self.rule, epoch, index), index


class Fitted(Dataset[tuple[Uint8Array, int]]):
    """Pictures of one size, each with its index."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Uint8Array, int]:
        return self.pictures[index], index


class Steps(Sampler[list[Key]]):
    """The keys of each optimizer step of ``epoch``, from step ``first`` on; this process's share of them.

    An epoch's order is continued from its start until the last step is full: every picture is seen, and every step has
    the same number of pictures. ``step_size``: pictures of a step in all processes together.
    """

    def __init__(
        self, labels: IntArray, step_size: int, *, seed: int, balanced: bool, rank: int = 0, processes: int = 1
    ) -> None:
        self.step_size = max(processes, min(step_size, len(labels)) // processes * processes)
        self._labels, self._seed, self._balanced = labels, seed, balanced
        self._rank, self._processes = rank, processes
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return math.ceil(len(self._labels) / self.step_size)

    def order(self, epoch: int) -> IntArray:
        """(steps, step_size) indices."""
        order = epoch_order(self._labels, self._seed, epoch, balanced=self._balanced)
        return np.resize(order, (len(self), self.step_size))

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        for indices in self.order(epoch)[self.first :]:
            yield [(epoch, int(index)) for index in indices[self._rank :: self._processes]]


def collate(items: Sequence[tuple[Uint8Array, int]]) -> Loaded:
    pictures = torch.from_numpy(np.stack([picture for picture, _ in items]))  # (N, H, W, 3)
    return Loaded(pictures.permute(0, 3, 1, 2), torch.tensor([index for _, index in items]))


def view_loader(views: Dataset[tuple[Uint8Array, int]], steps: Steps, *, workers: int, pin: bool) -> DataLoader[Any]:
    return DataLoader(
        views,
        batch_sampler=steps,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=follow_parent,
        multiprocessing_context=starter(workers),
    )


def fitted_loader(pictures: Pictures, indices: Sequence[int], batch_size: int, *, workers: int) -> DataLoader[Any]:
    """Pictures of one size in the order of ``indices``."""
    return DataLoader(
        Fitted(pictures),
        batch_size=batch_size,
        sampler=indices,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=follow_parent,
        multiprocessing_context=starter(workers),
    )


def evaluation_batches(
    samples: Sequence[Sample], root: Path, spec: InputSpec, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(uint8 (N, 3, height, width), labels (N,)) in the order of ``samples``, by the device's own preprocessing."""
    labels = torch.tensor([s.label for s in samples])
    files = FromFiles(samples, root, spec, fitted=True)
    for pictures, indices in fitted_loader(files, range(len(files)), batch_size, workers=0):
        yield pictures, labels[indices]


class ToInput(nn.Module):
    """uint8 views (N, 3, V, V) -> what a model takes: float (N, 3, size, size), antialiased, its own mean and std."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.size = (spec.height, spec.width)
        self.mode = "bicubic" if spec.interpolation in ("bicubic", "lanczos") else "bilinear"
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, views: Tensor) -> Tensor:
        if views.shape[-2:] != self.size:
            if views.device.type != "cpu":  # only the CPU resizes uint8
                views = views.float()
            views = F.interpolate(views, self.size, mode=self.mode, antialias=True)
            views = views.clamp_(0, 255) if views.is_floating_point() else views
        return views.float().sub_(self.mean).div_(self.std)
