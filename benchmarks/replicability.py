"""Five whole measurements of two models: how far do their latencies spread, and how far the ratio of the two?

    python benchmarks/replicability.py --model student.onnx

Bar: the ratio of the two models stays within 3 %, whatever the absolute times do. Run it on an idle machine.
Without ``--model`` a network of the zoo with random weights is exported first; the other model is a larger one.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import numpy as np
from PIL import Image

from distilledge.targets.base import Deployable, Exported, Measurement
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.measure import Candidate, measure
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.protocol import Tries
from distilledge.targets.samples import pictures
from distilledge.targets.steady import Steady
from distilledge.targets.tries import compare_tries, joined

TRIES = 5
SECONDS = 20.0
"""Of each file in each try: five of them are 100."""
MAX_RATIO_SPREAD = 1.03
SIDE = 96
PICTURES = 32
MODELS = {"teacher": "resnet18", "student": "mobilenetv1_050"}


def main() -> None:
    options = parsed(__doc__ or "")
    with TemporaryDirectory() as folder:
        group = candidates(options.model, Path(folder))
        tries = [measured(group, Path(folder), quick=options.quick) for _ in range(TRIES)]
    rows = [row(found, m) for found, m in zip(compare_tries(tries), joined(tries), strict=True)]
    bars = [common.bar("ratio of the two models, largest over smallest", rows[1]["ratio_spread"], MAX_RATIO_SPREAD)]
    extra = {"tries": TRIES, "seconds": SECONDS}
    facts = common.conditions(quick=options.quick, packages=("onnxruntime",), extra=extra)
    common.finish("replicability", facts, rows, bars, out=options.out)


def parsed(description: str) -> argparse.Namespace:
    parser = common.arguments(description)
    parser.add_argument("--model", type=Path, help=f"an .onnx file that takes uint8 (1, {SIDE}, {SIDE}, 3)")
    return parser.parse_args()


def candidates(model: Path | None, folder: Path) -> list[Candidate]:
    """A teacher and a student, fp32, in ONNX Runtime."""
    files = {role: _exported(name, folder / role) for role, name in MODELS.items()}
    files["student"] = model.resolve() if model else files["student"]
    return [_candidate(role, path) for role, path in files.items()]


def measured(group: list[Candidate], folder: Path, *, quick: bool) -> tuple[Measurement, ...]:
    """The protocol with three launches of ``SECONDS`` in all, single thread; ``quick``: 256 samples, one launch."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(PICTURES)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)
    return measure(
        group,
        LocalDevice(),
        threads=1,
        samples=256 if quick else 1024,
        min_seconds=0.0 if quick else SECONDS,
        launches=1 if quick else 3,
        warmup=20,
        end_to_end=8,
        quick=quick,
        inputs=pictures(paths),
        steady=Steady(),
    )


def row(found: Tries, m: Measurement) -> common.Row:
    """``m``: with the flags of all tries."""
    ratios = [1 / one.value for one in found.to_teacher]
    return {
        "file": found.name,
        **{f"p50_{i}_ms": ns / 1e6 for i, ns in enumerate(found.p50_ns, 1)},
        "spread": found.spread,
        "replicable": found.replicable,
        "ratio": ratios[0] if ratios else None,
        "ratio_spread": max(ratios) / min(ratios) if ratios else None,
        "flags": " ".join(m.flags),
    }


def _exported(name: str, out: Path) -> Path:
    from distilledge.models.vision import create
    from distilledge.targets import onnx

    out.mkdir(exist_ok=True)
    spec = InputSpec(SIDE, SIDE).to_dict()
    colours = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    deployable = Deployable(input_spec=spec, height=SIDE, width=SIDE, classes=tuple("abcdef"), **colours)
    return onnx.export(create(name, classes=6, size=SIDE).eval(), deployable, out)


def _candidate(role: str, path: Path) -> Candidate:
    exported = Exported(
        runtime="onnx",
        precision="fp32",
        files=(path.name,),
        sha256=(hashlib.sha256(path.read_bytes()).hexdigest(),),
        size_bytes=path.stat().st_size,
        input_shape=(1, SIDE, SIDE, 3),
        classes=tuple("abcdef"),
        input_spec=InputSpec(SIDE, SIDE).to_dict(),
        versions={},
        recipe="as exported",
        seconds=0.0,
    )
    return Candidate.model_validate(
        {"name": f"{role} onnx fp32", "role": role, "directory": str(path.parent), "exported": exported}
    )


if __name__ == "__main__":
    main()
