"""Speed of our training loop over a hand-written PyTorch loop, and what bf16, channels_last and compile add.

Both loops train the same model on the same views in the same precision, step by step in turn in one process, so that
other load falls on both. Bar: ours has at least 0.97 of the hand-written loop's pictures per second (median of the
ratios of neighbouring steps). The extras are ratios of the median step to that of plain fp32, again in turn. Where the
processor does not compute in bf16 (it then takes some 15 times as long), fp32 is trained instead and bf16 left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from common import arguments, bar, conditions, finish
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from distilledge.models import vision
from distilledge.pipeline.recipe import Recipe, Training
from distilledge.pipeline.record import Sample, Splits
from distilledge.pipeline.training.distill import distill
from distilledge.pipeline.training.environment import has_bf16
from distilledge.pipeline.training.events import ProgressEvent
from distilledge.pipeline.training.pictures import shrink
from distilledge.pipeline.training.views import ViewRule, make_view
from distilledge.targets.ondevice.preprocess import InputSpec

BOUND = 0.97
CLASSES = ("a", "b", "c", "d", "e", "f")
SUBJECTS = (
    ("tf_efficientnet_lite0", 128, "fp32"),
    ("deit_tiny_patch16_224", 224, "bf16"),
    ("mobilenetv1_025", 96, "fp32"),
)
EXTRAS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "channels_last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "bf16 + channels_last": {"precision": "bf16", "channels_last": True},
    "channels_last + compile": {"channels_last": True, "compile": True},
}
WARMUP = 3
"""Steps of each side that are not timed."""


def make_data(store: Path, pictures: int) -> tuple[Splits, Path]:
    """A data stage's directory of generated pictures, 256 x 256 JPEG."""
    directory = store / "data-0"
    directory.mkdir(parents=True)
    lines = []
    for index in range(pictures):
        random = np.random.default_rng(index)
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(directory / f"{index}.jpg")
        split = "validation" if index % 8 == 0 else "train"
        digest = hashlib.sha256(str(index).encode()).hexdigest()
        lines.append(json.dumps(Sample(f"{index}.jpg", index % 6, "", split, digest, False)._asdict()))
    (directory / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    splits = Splits(
        root=".", classes=CLASSES, counts={}, data_hash="b", calibration_hash="", calibration=0, synthetic=True
    )
    return splits, directory


def make_recipe(model: str, size: int, batch: int, **training: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "teacher": {"input": {"size": size}},
            "student": {
                "model": model,
                "input": {"size": size},
                "training": {"epochs": 10_000, "batch_size": batch, "device": "cpu", **training},
            },
        }
    )


class Enough(Exception):  # noqa: N818
    """Ends our loop from its callback."""


class Plain(Dataset[Any]):
    """The same views, cut from pictures in memory."""

    def __init__(self, paths: list[Path], rule: ViewRule) -> None:
        self.pictures = [np.asarray(shrink(Image.open(p).convert("RGB"), rule.spec.height)) for p in paths]
        self.rule = rule

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        view = make_view(self.pictures[index], self.rule, 0, index)
        return torch.from_numpy(view.copy()).permute(2, 0, 1), index % 6


def by_hand(model: torch.nn.Module, loader: DataLoader[Any], precision: str) -> Iterator[None]:
    """The loop that everybody writes; yields after each step."""
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    mean = torch.tensor([127.5, 127.5, 127.5]).view(1, 3, 1, 1)
    total = 0.0
    while True:
        for pictures, labels in loader:
            inputs = ((pictures.float() - mean) / mean).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = cross_entropy(model(inputs).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
            yield


class Clocks(NamedTuple):
    """Seconds on the wall, and of CPU in all threads: the latter hardly feels other load."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Clocks:
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Clocks) -> Clocks:
        return Clocks(self.wall - start.wall, self.cpu - start.cpu)


def in_turn(recipe: Recipe, splits: Splits, data: Path, scratch: Path, steps: int) -> list[tuple[Clocks, Clocks]]:
    """What (our step, the hand-written step) took, ``steps`` pairs."""
    student = recipe.student
    spec = InputSpec(student.input.size, student.input.size)
    paths = [p for p in sorted(data.glob("*.jpg")) if int(p.stem) % 8]
    loader = DataLoader(
        Plain(paths, ViewRule(spec, student.training.augment, 0)),
        batch_size=student.training.batch_size,
        shuffle=True,
        drop_last=True,
    )
    model = vision.create(student.model, classes=len(CLASSES), size=student.input.size)
    other = by_hand(model, loader, student.training.precision)
    pairs: list[tuple[Clocks, Clocks]] = []
    left = Clocks.now()

    def step(_event: ProgressEvent) -> None:
        nonlocal left
        entered = Clocks.now()
        next(other)
        pairs.append((entered.since(left), Clocks.now().since(entered)))
        if len(pairs) == steps + WARMUP:
            raise Enough
        left = Clocks.now()

    our_steps(recipe, splits, data, scratch, step)
    return pairs[WARMUP:]


def our_steps(recipe: Recipe, splits: Splits, data: Path, scratch: Path, step: Callable[[ProgressEvent], None]) -> None:
    """Our loop, as a run calls it, until ``step`` raises ``Enough``."""
    out, partial = scratch / "out", scratch / "partial"
    for folder in (out, partial):
        folder.mkdir(exist_ok=True)
    with contextlib.suppress(Enough):
        distill(recipe, splits, data, None, out, partial=partial, report=step)


def compare(subject: tuple[str, int, str], batch: int, steps: int) -> dict[str, Any]:
    model, size, precision = subject
    with TemporaryDirectory() as folder:
        splits, data = make_data(Path(folder) / "store", 16 * batch)
        made = make_recipe(model, size, batch, precision=precision)
        pairs = in_turn(made, splits, data, Path(folder), steps)
    ratios = sorted(hand.wall / ours.wall for ours, hand in pairs)
    ours, hand = (statistics.median(clocks.wall for clocks in side) for side in zip(*pairs, strict=True))
    return {
        "what": "ours / by hand",
        "model": model,
        "size": size,
        "variant": precision,
        "pictures_per_s": batch / ours,
        "by_hand_per_s": batch / hand,
        "ratio": statistics.median(ratios),
        "cpu_ratio": statistics.median(hand.cpu / ours.cpu for ours, hand in pairs),
        "quartiles": f"{ratios[len(ratios) // 4]:.3f}..{ratios[3 * len(ratios) // 4]:.3f}",
        "steps": steps,
    }


def extras(subject: tuple[str, int, str], batch: int, rounds: int, names: list[str]) -> list[dict[str, Any]]:
    """Median seconds of a step of each variant of our loop; the variants take turns, a few steps each."""
    model, size, _ = subject
    taken: dict[str, list[float]] = {name: [] for name in names}
    for name in names * rounds:
        with TemporaryDirectory() as folder:
            splits, data = make_data(Path(folder) / "store", 4 * batch)
            made = make_recipe(model, size, batch, **{"channels_last": False, **EXTRAS[name]})
            taken[name] += single(made, splits, data, Path(folder))
    base = statistics.median(taken["fp32"])
    return [
        {
            "what": "over plain fp32",
            "model": model,
            "size": size,
            "variant": name,
            "pictures_per_s": batch / statistics.median(seconds),
            "ratio": base / statistics.median(seconds),
            "steps": len(seconds),
        }
        for name, seconds in taken.items()
    ]


def single(recipe: Recipe, splits: Splits, data: Path, scratch: Path) -> list[float]:
    """Seconds of two steps of our loop, after the first ones (which compile)."""
    seconds: list[float] = []
    left = 0.0

    def step(_event: ProgressEvent) -> None:
        nonlocal left
        seconds.append(time.perf_counter() - left)
        if len(seconds) == 4:
            raise Enough
        left = time.perf_counter()

    our_steps(recipe, splits, data, scratch, step)
    return seconds[2:]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=None, help="timed pairs of each model (60; 8 with --quick)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = options.steps or (8 if options.quick else 60)
    native = has_bf16(Training(device="cpu"))
    subjects = [
        (model, size, precision if native else "fp32")
        for model, size, precision in (SUBJECTS[::2] if options.quick else SUBJECTS)
    ]
    rows = [compare(subject, options.batch, steps) for subject in subjects]
    worst = min(row["ratio"] for row in rows)
    names = [n for n in EXTRAS if (native or "bf16" not in n) and not (options.quick and "compile" in n)]
    for subject in subjects[:1] if options.quick else subjects[:2]:
        rows += extras(subject, options.batch, 1 if options.quick else 5, names)
    facts = conditions(
        quick=options.quick,
        packages=("torch", "timm", "accelerate"),
        extra={"threads": options.threads, "batch": options.batch, "native_bf16": native},
    )
    finish("training", facts, rows, [bar("ours over by hand, worst", worst, BOUND, at_most=False)], out=options.out)


if __name__ == "__main__":
    main()
