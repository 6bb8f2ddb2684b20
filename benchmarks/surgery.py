"""Students that are cut: surgery, pruning, and the ladder's rungs for networks without training, as measured.

    python benchmarks/surgery.py                    trained variants; what is in the store of --work is not redone
    python benchmarks/surgery.py --only rungs       equalisation, 16-bit activations, sizes of the calibration set
    python benchmarks/surgery.py --only networks    surgery and pruning
    python benchmarks/surgery.py --markdown         the recorded tables into the pages, nothing is run
    python benchmarks/surgery.py --quick            the networks under their smoke blocks, labelled so

Needs torch-pruning, and DISTILLEDGE_SHARED: the folder with data/ and weights/. Networks are judged on the test split,
fp32 beside the same network uncut, paired; int8 is plain static int8 in ONNX Runtime. Rungs are judged on the
validation split by the answers they share with the fp32 file. No latency is recorded here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
from distilledge.models.metrics import kl
from distilledge.pipeline.outcomes import classified
from distilledge.pipeline.record import Checkpoint, ExportResult, RunRecord, Scores
from distilledge.pipeline.stats_counts import drop

PAGES = Path(__file__).parents[1] / "docs"
PACKAGES = ("torch", "timm", "torch-pruning", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer")
MAX_DROP = 0.5
"""Points that a pruned network may lose to the uncut one, by value."""


class Variant(NamedTuple):
    """One student of a recipe; the first of each recipe and model is the uncut one."""

    recipe: str
    name: str
    what: str
    settings: tuple[str, ...] = ()


SMALL = ("student.model=mobilenetv3_small_050", "student.training.epochs=30", "distill.control=false")
CUT = "student.surgery={activation: relu6, squeeze_excite: drop}"
STEEL = ("distill.control=false",)
RECOVERY = (
    "student.prune.training={epochs: 12, batch_size: 32, lr: 1e-3, ema: 0.99, "
    "augment: {crop_scale: [0.6, 1.0], vertical_flip: 0.5}}"
)
VARIANTS = (
    Variant("demo", "surgery-none", "as it is", SMALL),
    Variant("demo", "surgery-relu6", "ReLU6, no squeeze-excite", (*SMALL, CUT)),
    Variant("x-sdd-tiny", "prune-none", "as it is", STEEL),
    Variant("x-sdd-tiny", "prune-60", "60 % of the MACs", (*STEEL, "student.prune.macs=0.6", RECOVERY)),
    Variant("x-sdd-tiny", "prune-30", "30 % of the MACs", (*STEEL, "student.prune.macs=0.3", RECOVERY)),
)
EXPORT = "export.targets=[{runtime: onnx, precisions: [fp32, w8a8]}]"
FREE = ("gate.on_fail=report", "measure.quick=true", "verify.min_agreement_int8=0", "verify.min_cosine_int8=0", EXPORT)


def run(variant: Variant, options: argparse.Namespace) -> None:
    """The chain up to the scores; nothing is timed."""
    command = [sys.executable, "-m", "distilledge.pipeline.cli", "run", variant.recipe, "--work", str(options.work)]
    for setting in (f"name={variant.name}", *FREE, *variant.settings):
        command += ["--set", setting]
    done = subprocess.run([*command, *(["--smoke"] if options.quick else [])], stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{variant.name} ended with {done.returncode}")
