"""Domain adaptation against source-only: two shifts of light, five ways, intervals over seeds and samples.

    python benchmarks/domain.py             ten minutes of one idle core; --runs FILE goes on from earlier runs
    python benchmarks/domain.py --quick     one seed, one shift, few epochs: labelled so

``lamp`` is made: pictures of x-sdd are the source as they are; those of the target are other pictures of it, darkened
towards one side, with less contrast, blurred and with noise, as of another lamp and lens. ``exposure`` is real: the
magnetic tiles were photographed at six exposures; the two darkest are the source, the two brightest the target, and
the question is defect or none. The teacher is MobileNetV1 x 0.25 at 96 pixels with its ImageNet weights, made through
the pipeline's own data stage (with its audit) and training. Needs DISTILLEDGE_SHARED.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import common
import numpy as np
from PIL import Image, ImageFilter

SIDE, EPOCHS, BATCH, LR = 96, 5, 32, 1e-3
SEEDS = (0, 1, 2)
METHODS: dict[str, Any] = {
    "source-only": "fine-tune",
    "adabn": "adabn",
    "coral": "coral",
    "mmd": "mmd",
    "dann": "dann",
}
DRAWS = 10_000
MEANT = ("dann", "coral")
"""Those of the bar; their intervals there are of 97.5 %, because the better of two is taken."""


class Made(NamedTuple):
    """A data stage's directory."""

    splits: Any
    directory: Path
    recipe: Any


def lamp(content: bytes, picture: Image.Image) -> Image.Image:
    """Darker towards the right, flatter, blurred by 0.7 pixels, with noise of 6 levels drawn by the file's content."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    soft = np.asarray(picture.convert("RGB").filter(ImageFilter.GaussianBlur(0.7)), np.float64)
    light = np.linspace(0.85, 0.35, soft.shape[1])[None, :, None]
    flat = 60 + 0.7 * (soft - 60)
    noise = np.random.default_rng(seed).normal(0, 6, soft.shape)
    return Image.fromarray((flat * light + noise).clip(0, 255).astype(np.uint8))


def listed(shared: Path, name: str) -> list[dict[str, str]]:
    with (shared / "data" / name / "splits.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(folder: Path, rows: list[tuple[Path, str, str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["path", "label", "split", "group"])
        out.writerows(rows)
    return folder / "manifest.csv"


def steel(shared: Path, folder: Path) -> tuple[Path, Path]:
    """Every second training picture of x-sdd (by a hash of its name) is of the source, the others of the target."""
    root = shared / "data" / "x-sdd"
    source, target = [], []
    for row in listed(shared, "x-sdd"):
        path, split = root / row["file"], row["split"]
        half = hashlib.sha256(row["file"].encode()).digest()[0] % 2
        if split != "train" or half:
            source.append((path, row["label"], split, row["group"]))
        if split != "val" and (split == "test" or not half):
            changed = folder / "target" / row["file"]
            changed.parent.mkdir(parents=True, exist_ok=True)
            lamp(path.read_bytes(), Image.open(path)).save(changed.with_suffix(".png"))
            target.append((changed.with_suffix(".png"), row["label"], split, row["group"]))
    return write(folder / "source", source), write(folder / "target", target)


def tiles(shared: Path, folder: Path) -> tuple[Path, Path]:
    """Tiles keep the split of the set; what is unlabelled are the training tiles under the other light."""
    root = shared / "data" / "magnetic-tile"
    source, target = [], []
    for row in listed(shared, "magnetic-tile"):
        exposure = row["file"].rpartition("/")[2].partition("_")[0]
        label = "none" if row["label"] == "free" else "defect"
        entry = (root / row["file"], label, row["split"], row["group"])
        if exposure in ("exp1", "exp2"):
            source.append(entry)
        elif exposure in ("exp5", "exp6") and row["split"] != "val":
            target.append(entry)
    return write(folder / "source", source), write(folder / "target", target)


SHIFTS: dict[str, Callable[[Path, Path], tuple[Path, Path]]] = {"lamp": steel, "exposure": tiles}
METRIC = {"lamp": "accuracy", "exposure": "balanced_accuracy"}


def recipe_of(source: Path, target: Path, strategy: Any, *, seed: int, epochs: int, metric: str) -> Any:
    from distilledge.pipeline.recipe import Recipe

    shared = os.environ["DISTILLEDGE_SHARED"]
    return Recipe.model_validate(
        {
            "name": "domain",
            "seed": seed,
            "metric": metric,
            "data": {
                "path": str(source),
                "target": {"path": str(target)},
                "on_conflict": "quarantine",
                "max_bad": {"train": 0.05, "test": 0.05, "validation": 0.05},
                "workers": 0,
            },
            "teacher": {
                "model": "mobilenetv1_025",
                "weights": f"{shared}/weights/mobilenetv1_025_tfqat/model.safetensors",
                "input": {"size": SIDE},
                "strategy": strategy,
                "training": {
                    "epochs": epochs,
                    "batch_size": BATCH,
                    "lr": LR,
                    "select": "last",
                    "device": "cpu",
                    "class_weights": "balanced" if metric == "balanced_accuracy" else "none",
                },
            },
        }
    )


def prepared(name: str, folder: Path) -> Made:
    """The shift's data as the pipeline audits and joins it."""
    from distilledge.pipeline.data.prepare import prepare

    source, target = SHIFTS[name](Path(os.environ["DISTILLEDGE_SHARED"]), folder / name)
    directory, failed = folder / "store" / f"data-{name}", folder / f"failed-{name}"
    for place in (directory, failed):
        place.mkdir(parents=True)
    recipe = recipe_of(source, target, "fine-tune", seed=0, epochs=1, metric=METRIC[name])
    splits = prepare(recipe.data, bit_depth=8, seed=0, out=directory, unlabelled=None, failed=failed)
    return Made(splits, directory, recipe)


def right(made: Made, trained: Any, split: str) -> list[int]:
    """1 for each picture of a split that the model has right, with the device's own preprocessing."""
    import torch

    from distilledge.models.metrics import top1
    from distilledge.pipeline import checkpoint as checkpoints
    from distilledge.pipeline.record import read_samples
    from distilledge.pipeline.training.views import ToInput, evaluation_batches

    checkpoint, out = trained
    spec = checkpoints.spec(checkpoint)
    model, to_input = checkpoints.load(checkpoint, out), ToInput(spec)
    samples = read_samples(made.directory, split)
    with torch.inference_mode():
        batches = evaluation_batches(samples, Path(made.splits.root), spec, 64)
        logits = torch.cat([model(to_input(pictures)) for pictures, _ in batches]).numpy()
    return [int(value) for value in top1(logits) == np.array([s.label for s in samples])]


def train(made: Made, shift: str, method: str, seed: int, *, folder: Path, epochs: int) -> dict[str, Any]:
    from distilledge.pipeline.training.events import silent
    from distilledge.pipeline.training.teacher import finetune

    own = made.recipe.data
    recipe = recipe_of(
        Path(own.path), Path(own.target.path), METHODS[method], seed=seed, epochs=epochs, metric=METRIC[shift]
    )
    out = folder / f"{shift}-{method}-{seed}"
    (out / "partial").mkdir(parents=True)
    started = time.perf_counter()
    checkpoint = finetune(recipe, made.splits, made.directory, out, out / "partial", silent)
    seconds = time.perf_counter() - started
    found = {split: right(made, (checkpoint, out), split) for split in ("test", "source-test")}
    shares = ", ".join(f"{split} {np.mean(values):.3f}" for split, values in found.items())
    print(f"{shift}, {method}, seed {seed}: {shares} in {seconds:.0f} s", file=sys.stderr, flush=True)
    return {"shift": shift, "method": method, "seed": seed, "seconds": seconds, **found}


def weights_of(made: Made, shift: str, split: str) -> np.ndarray:
    """What each picture counts, for a weighted mean that is the metric; and its group, to be drawn whole."""
    from distilledge.pipeline.record import read_samples

    labels = np.array([s.label for s in read_samples(made.directory, split)])
    if METRIC[shift] == "accuracy":
        return np.full(len(labels), 1.0)
    counts = np.bincount(labels)
    return 1.0 / counts[labels]


def groups_of(made: Made, split: str) -> np.ndarray:
    from distilledge.pipeline.record import read_samples

    return np.unique([s.group for s in read_samples(made.directory, split)], return_inverse=True)[1]


def interval(values: np.ndarray, weights: np.ndarray, groups: np.ndarray, share: float) -> tuple[float, float]:
    """Of the weighted mean of (seeds, pictures): seeds and groups of pictures are both drawn again."""
    random = np.random.default_rng(0)
    numbers = groups.max() + 1
    sums = np.stack([np.bincount(groups, row * weights, numbers) for row in values])  # (seeds, groups)
    totals = np.bincount(groups, weights, numbers)
    found = np.empty(DRAWS)
    for draw in range(DRAWS):
        seeds = random.integers(len(values), size=len(values))
        counts = np.bincount(random.integers(numbers, size=numbers), minlength=numbers)
        found[draw] = (sums[seeds] @ counts).mean() / (totals @ counts)
    low, high = np.quantile(found, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


class Runs:
    """Trainings as they were recorded, one JSON line each; a run that is there is not redone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.found = [json.loads(line) for line in lines]

    def get(self, shift: str, method: str, seed: int) -> dict[str, Any] | None:
        wanted = {"shift": shift, "method": method, "seed": seed}
        return next((r for r in self.found if wanted.items() <= r.items()), None)

    def add(self, made: dict[str, Any]) -> None:
        self.found.append(made)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(r) + "\n" for r in self.found), encoding="utf-8")

    def right(self, shift: str, method: str, seeds: tuple[int, ...], split: str) -> np.ndarray:
        """(seeds, pictures)."""
        return np.array([(self.get(shift, method, seed) or {})[split] for seed in seeds], float)


def row(runs: Runs, made: Made, shift: str, method: str, seeds: tuple[int, ...]) -> common.Row:
    """Per cent on the target's and the source's test part, and points above source-only with their interval."""
    weights, groups = weights_of(made, shift, "test"), groups_of(made, "test")
    mine, base = (runs.right(shift, name, seeds, "test") for name in (method, "source-only"))
    source = weights_of(made, shift, "source-test")
    per_seed = 100 * ((mine - base) * weights).sum(1) / weights.sum()
    low, high = (None, None) if method == "source-only" else interval(mine - base, weights, groups, 0.95)
    kept = runs.right(shift, method, seeds, "source-test")
    return {
        "shift": shift,
        "method": method,
        "metric": METRIC[shift],
        "target": float(100 * (mine * weights).sum(1).mean() / weights.sum()),
        "source": float(100 * (kept * source).sum(1).mean() / source.sum()),
        "gain": None if low is None else float(per_seed.mean()),
        "low": None if low is None else 100 * low,
        "high": None if high is None else 100 * high,
        "seeds": " ".join(f"{value:+.1f}" for value in per_seed),
    }


def bar_of(runs: Runs, made: Made, shift: str, seeds: tuple[int, ...]) -> common.Row:
    weights, groups = weights_of(made, shift, "test"), groups_of(made, "test")
    base = runs.right(shift, "source-only", seeds, "test")
    lows = {}
    for name in MEANT:
        lows[name] = 100 * interval(runs.right(shift, name, seeds, "test") - base, weights, groups, 0.975)[0]
    best = max(lows, key=lambda name: lows[name])
    return common.bar(f"{shift}: low end of the gain of {best}, points", lows[best], 0.0, at_most=False)


PAGE = Path(__file__).parents[1] / "docs" / "domains.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->"


def markdown(recorded: dict[str, Any]) -> str:
    """Gains on the target with their intervals, and what became of the source."""
    facts = recorded["conditions"]
    lines = ["| shift | strategy | target, % | above source-only, points | source, % |", "|---|---|---|---|---|"]
    for found in recorded["rows"]:
        gain = "" if found["gain"] is None else f"{found['gain']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"
        shares = f"{found['target']:.1f} | {gain} | {found['source']:.1f}"
        lines.append(f"| {found['shift']} | {found['method']} | {shares} |")
    counts = "; ".join(
        f"{name}: {of['train']} of the source, {of['target']} of the target, {of['test']} tested"
        for name, of in facts["pictures"].items()
    )
    held = "; ".join(
        f"{b['name']}: {b['value']:+.1f} ({'holds' if b['holds'] else 'does not hold'})" for b in recorded["bars"]
    )
    lines += [
        "",
        f"{facts['created'][:10]}, {facts['cpu_model']}, 1 thread, {len(facts['seeds'])} seeds, {facts['epochs']} "
        "epochs; accuracy (of exposure: balanced), means over seeds; 95 % bootstrap intervals over seeds and groups of "
        f"test pictures. Pictures: {counts}. Bars (above 0, at 97.5 %): {held}.",
    ]
    return "\n".join(lines) + "\n"


def fill_page(out: Path) -> None:
    recorded = json.loads((out / "domain.json").read_text(encoding="utf-8"))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + markdown(recorded) + END + rest.partition(END)[2], encoding="utf-8")


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    parser.add_argument("--runs", type=Path, default=None, help="file of the trainings that were run before")
    parser.add_argument("--shifts", nargs="+", choices=list(SHIFTS), default=list(SHIFTS), help="only these")
    options = parser.parse_args()
    if options.markdown:
        fill_page(options.out)
        return
    if "DISTILLEDGE_SHARED" not in os.environ:
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    import torch

    torch.set_num_threads(1)
    shifts = ("lamp",) if options.quick else tuple(options.shifts)
    seeds, epochs = (SEEDS[:1], 1) if options.quick else (SEEDS, EPOCHS)
    with TemporaryDirectory() as place:
        folder = Path(place)
        runs = Runs(options.runs or folder / "runs.jsonl")
        data = {name: prepared(name, folder) for name in shifts}
        for shift, seed, method in product(shifts, seeds, METHODS):
            if runs.get(shift, method, seed) is None:
                runs.add(train(data[shift], shift, method, seed, folder=folder, epochs=epochs))
        rows = [row(runs, data[shift], shift, method, seeds) for shift in shifts for method in METHODS]
        bars = [bar_of(runs, data[shift], shift, seeds) for shift in shifts]
        counts = {shift: _counts(data[shift]) for shift in shifts}
    facts = common.conditions(
        quick=options.quick,
        packages=("torch", "timm", "accelerate"),
        extra={"model": "mobilenetv1_025", "size": SIDE, "epochs": epochs, "batch_size": BATCH, "lr": LR}
        | {"seeds": list(seeds), "threads": 1, "pictures": counts, "strategies": METHODS}
        | {"made": {"lamp": True, "exposure": False}},
    )
    common.finish("domain-quick" if options.quick else "domain", facts, rows, bars, out=options.out)


def _counts(made: Made) -> dict[str, int]:
    from collections import Counter

    from distilledge.pipeline.record import read_samples

    return dict(Counter(s.split for s in read_samples(made.directory)))


if __name__ == "__main__":
    main()
