"""Predicted fit: latency of a file with random weights over that of the trained model's, ten students, each runtime.

    python benchmarks/fit.py --prepare    the files alone, into --work: may be done while the machine is busy
    python benchmarks/fit.py              timing, under 10 minutes once the files are there; an idle machine is needed
    python benchmarks/fit.py --quick      two students in ONNX Runtime, fewer samples: labelled so

Random weights get batch statistics from generated pictures, as ``distilledge fit`` gives them. Trained: with the real
weights of DISTILLEDGE_SHARED where it has any, each then trained for a few steps. Both files of a precision, and both
precisions, take turns in one run; ratios are paired, block by block.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import common
import numpy as np

PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "litert-torch")
BOUND = 0.05
"""Largest distance of a ratio from 1."""
PRECISIONS = ("fp32", "w8a8")
CLASSES, STEPS, BATCH = 10, 12, 16


class Student(NamedTuple):
    model: str
    size: int
    weights: str = ""
    """File in DISTILLEDGE_SHARED/weights, without its suffix."""


STUDENTS = (
    Student("mobilenetv1_025", 96, "mobilenetv1_025_tfqat/model"),
    Student("mobilenetv1_050", 96),
    Student("mobilenetv2_050", 96),
    Student("mobilenetv2_100_same", 96, "mobilenetv2_100_tfqat/model"),
    Student("mobilenetv3_small_100", 96),
    Student("mobilenetv4_conv_small_050", 96),
    Student("mobilenetv4_conv_small", 96),
    Student("tf_efficientnet_lite0", 96, "tf_efficientnet_lite0/backbone"),
    Student("efficientnet_b0", 64),
    Student("resnet18", 64),
)


class Plan(NamedTuple):
    students: tuple[Student, ...]
    runtimes: tuple[str, ...]
    samples: int
    seconds: float
    """Timed of each file, over all launches."""
    launches: int


FULL = Plan(STUDENTS, ("onnx", "openvino", "tflite"), 256, 1.6, 2)
QUICK = Plan((STUDENTS[0], STUDENTS[4]), ("onnx",), 128, 0.5, 2)


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    parser.add_argument("--prepare", action="store_true", help="make the files and stop")
    parser.add_argument("--students", nargs="+", default=[s.model for s in STUDENTS], help="others keep their rows")
    parser.add_argument("--runtimes", nargs="+", default=FULL.runtimes, choices=FULL.runtimes)
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    asked = [(student, runtime) for student in plan.students for runtime in plan.runtimes]
    pairs = [(s, runtime) for s, runtime in asked if s.model in options.students and runtime in options.runtimes]
    files = {pair: made(*pair, options) for pair in pairs}
    if options.prepare:
        return
    rows = [row for pair in pairs for row in timed(*pair, files[pair], plan)]
    if len(pairs) < len(asked):
        rows = common.beside(rows, options.out / "fit.json", ("student", "runtime", "precision"))
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra=plan._asdict() | {"students": None})
    common.finish("fit-quick" if options.quick else "fit", facts, rows, bars(rows), out=options.out)


def recipe_of(student: Student) -> Any:
    from distilledge.pipeline.recipe import Recipe

    part = {"model": student.model, "input": {"size": student.size}}
    return Recipe.model_validate({"name": "fit", "data": {"path": "synthetic"}, "student": part})


def made(student: Student, runtime: str, options: argparse.Namespace) -> dict[str, Any]:
    """``random`` and ``trained``: exports with their folders, found in the store of --work or made."""
    from distilledge.pipeline.recipe import ExportTarget
    from distilledge.pipeline.record import ExportResult
    from distilledge.pipeline.run import device_card
    from distilledge.pipeline.search.candidates import Candidate
    from distilledge.pipeline.search.fit import Ground, file_inputs, made_files
    from distilledge.pipeline.store import Store
    from distilledge.targets.devices.local import LocalDevice

    recipe = recipe_of(student)
    target = ExportTarget.model_validate({"runtime": runtime, "precisions": PRECISIONS})
    ground = Ground(recipe, CLASSES, LocalDevice(), device_card(recipe), Store(options.work / "store"))
    one = Candidate(student.model, student.size)
    inputs = file_inputs(ground, one, target) | {"steps": STEPS, "weights": student.weights if shared() else ""}
    return {
        "random": made_files(ground, one, target),
        "trained": ground.store.once(
            "benchmark-fit", 1, inputs, ExportResult, lambda out, _partial: export(student, inputs, out)
        ),
    }


def shared() -> Path | None:
    place = os.environ.get("DISTILLEDGE_SHARED")
    return Path(place) if place else None


def export(student: Student, inputs: dict[str, Any], out: Path) -> Any:
    from distilledge.pipeline import export as stage
    from distilledge.pipeline.search.fit import made_pictures
    from distilledge.targets.samples import pictures

    with TemporaryDirectory() as folder:
        paths = made_pictures(student.size, Path(folder))
        checkpoint = trained(student, paths, Path(folder))
        return stage.export(
            checkpoint,
            Path(folder),
            role="student",
            runtime=inputs["runtime"],
            precisions=inputs["precisions"],
            calibration=pictures(paths),
            out=out,
            saturates=inputs.get("saturates", False),
        )


def trained(student: Student, paths: Sequence[Path], out: Path) -> Any:
    """The same architecture with real weights, or random ones of another seed, after some steps of SGD."""
    import torch
    from torch import nn

    from distilledge.models import vision
    from distilledge.pipeline.inputs import normalise
    from distilledge.pipeline.search.candidates import Candidate
    from distilledge.pipeline.search.fit import described, input_spec
    from distilledge.targets.ondevice.preprocess import preprocess

    torch.manual_seed(1)
    place = shared()
    weights = str(place / "weights" / f"{student.weights}.safetensors") if place and student.weights else "none"
    model = vision.create(student.model, classes=CLASSES, size=student.size, weights=weights)
    spec = input_spec(recipe_of(student), Candidate(student.model, student.size))
    rows = normalise(np.stack([preprocess(path, spec) for path in paths]), spec)
    labels = torch.arange(len(rows)) % 6
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02 if weights != "none" else 0.05, momentum=0.9)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # so few steps must be enough for its statistics
    model.train()
    for step in range(STEPS):
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(step))[:BATCH]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows[chosen]), labels[chosen]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return described(model, Candidate(student.model, student.size), spec, CLASSES, out)


def timed(student: Student, runtime: str, stored: dict[str, Any], plan: Plan) -> list[common.Row]:
    """All four files of a student in one runtime, in turn; a row for each precision."""
    from distilledge.pipeline.gate import peak_rss_mb
    from distilledge.pipeline.search.fit import made_pictures
    from distilledge.targets.devices.local import LocalDevice
    from distilledge.targets.measure import Candidate, measure, p50
    from distilledge.targets.paired import paired_ratio
    from distilledge.targets.samples import pictures

    candidates = [
        Candidate(name=f"{kind} {p}", role="student", directory=str(s.path), exported=s.value.precision(p))
        for p in PRECISIONS
        for kind, s in stored.items()
    ]
    with TemporaryDirectory() as folder:
        found = measure(
            candidates,
            LocalDevice(),
            threads=1,
            samples=plan.samples,
            min_seconds=plan.seconds,
            launches=plan.launches,
            warmup=20,
            end_to_end=0,
            quick=True,
            inputs=pictures(made_pictures(student.size, Path(folder))),
        )
    rows = []
    for number, precision in enumerate(PRECISIONS):
        fresh, real = found[2 * number : 2 * number + 2]
        ratio = paired_ratio(*([launch.latency_ns for launch in m.launches] for m in (fresh, real)))
        assert ratio is not None
        memory = [peak_rss_mb(m) for m in (fresh, real)]
        rows.append(
            {
                "student": student.model,
                "size": student.size,
                "weights": student.weights or "random, trained",
                "runtime": runtime,
                "precision": precision,
                "random_p50_ms": p50(fresh) / 1e6,
                "trained_p50_ms": p50(real) / 1e6,
                "ratio": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
                "rss_ratio": memory[0] / memory[1] if memory[0] and memory[1] else None,
                "size_ratio": candidates[2 * number].exported.size_bytes
                / candidates[2 * number + 1].exported.size_bytes,
                "flags": " ".join(sorted({*fresh.flags, *real.flags})),
            }
        )
    return rows


def bars(rows: list[common.Row]) -> list[common.Row]:
    """Of each runtime and precision: the student whose ratio is farthest from 1."""
    found = []
    for runtime in dict.fromkeys(row["runtime"] for row in rows):
        for precision in PRECISIONS:
            own = [r for r in rows if (r["runtime"], r["precision"]) == (runtime, precision)]
            worst = max(own, key=lambda r: abs(r["ratio"] - 1))
            name = f"{runtime} {precision}: distance from 1, worst of {len(own)} ({worst['student']})"
            found.append(common.bar(name, abs(worst["ratio"] - 1), BOUND))
    return found


if __name__ == "__main__":
    main()
