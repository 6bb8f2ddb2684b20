"""A run made by hand with the real record types: what the gate judges and the report shows, without training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distilledge.models.base import Value
from distilledge.pipeline.gate import judge
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import (
    Checkpoint,
    ExportResult,
    Measurements,
    Parities,
    Parity,
    Rung,
    RunRecord,
    Scores,
    Splits,
    StageRecord,
)
from distilledge.targets.base import Exported, Launch, Measurement, Predictions
from distilledge.targets.ondevice.preprocess import InputSpec

CLASSES = ("good", "scratch", "pit", "stain", "crack", "dent")
RUNTIMES = ("onnx", "openvino", "tflite")
PRECISIONS = ("fp32", "fp16", "w8a8")
SPEC = InputSpec(height=64, width=64).to_dict()
SIZES = {"teacher": {"fp32": 22.9}, "student": {"fp32": 13.6, "fp16": 6.9, "w8a8": 3.6}, "control": {"fp32": 13.6}}
TEACHER_MS = {"onnx": 31.0, "openvino": 27.5, "tflite": 45.0}
STUDENT_MS = {"fp32": 0.13, "fp16": 0.128, "w8a8": 0.07}
ERRORS = {"teacher": 0.03, "student": 0.035, "control": 0.08}


def exported(
    runtime: str, precision: str, role: str, classes: Sequence[str] = CLASSES, spec: dict[str, Any] = SPEC
) -> Exported:
    return Exported(
        runtime=runtime,
        precision=precision,
        files=(f"model.{precision}.{runtime}",),
        sha256=(hashlib.sha256(f"{runtime} {precision} {role}".encode()).hexdigest(),),
        size_bytes=int(SIZES[role][precision] * 1e6),
        input_shape=(1, 64, 64, 3),
        classes=tuple(classes),
        input_spec=spec,
        versions={runtime: "1.0"},
        recipe="as exported" if precision == "fp32" else f"{precision} by hand",
        seconds=3.0,
        float_operations=("Softmax x1", "GlobalAveragePool x1") if precision == "w8a8" else (),
    )


def measurement(
    runtime: str, precision: str, role: str, *, median_ms: float, seed: int = 0, samples: int = 1024, **more: Any
) -> Measurement:
    rng = np.random.default_rng(seed)
    launches = []
    for _ in range(3):
        centre = median_ms * rng.normal(1, 0.01) * 1e6
        latency = centre * (1 + rng.gamma(2.0, 0.01, samples // 3 + 1))
        launches.append(
            Launch(
                load_ns=int(40e6),
                first_inference_ns=int(3 * centre),
                peak_rss_bytes=int(90e6 + median_ms * 1e6),
                latency_ns=tuple(int(x) for x in latency),
                end_to_end_ns=tuple(int(x + 1.1e6) for x in latency[:64]),
                cpu_ns=int(latency.sum() * 0.99),
                wall_ns=int(latency.sum()),
                waited_ns=int(latency.sum() * 0.002),
                involuntary_switches=3,
            )
        )
    return Measurement(
        name=f"{role} {runtime} {precision}",
        runtime=runtime,
        precision=precision,
        role=role,
        device={"cpu_model": "Made CPU", "cpu_count": 2, "machine": "x86_64", "governor": None, "emulated": False},
        threads=1,
        warmup=20,
        quick=False,
        launches=tuple(launches),
        runtime_version="1.0",
        execution_precision="f32",
        **more,
    )


def made_logits(labels: np.ndarray, errors: float, seed: int, classes: int = len(CLASSES)) -> np.ndarray:
    """Logits right on about ``1 - errors`` of the pictures; all models err on the same hard pictures."""
    hard = np.random.default_rng(99).random(len(labels))
    rng = np.random.default_rng(seed)
    wrong = hard + rng.normal(0, 0.01, len(labels)) < errors
    answers = np.where(wrong, (labels + rng.integers(1, classes, len(labels))) % classes, labels)
    logits = rng.normal(0, 1, (len(labels), classes))
    logits[np.arange(len(labels)), answers] += rng.gamma(4, 1.5, len(labels)) + 2
    return logits.astype(np.float32)


class MadeRun:
    """Writes stage directories under ``work`` and the record that names them."""

    def __init__(self, work: Path, recipe: Recipe, classes: Sequence[str] = CLASSES, pictures: int = 600) -> None:
        self.work, self.recipe, self.classes = work, recipe, tuple(classes)
        self.labels = np.arange(pictures) % len(classes)
        self.stages: list[StageRecord] = []
        self.spec = SPEC

    def add(self, name: str, value: Value) -> Path:
        directory = self.work / "store" / f"{name}-0123456789abcdef"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "value.json").write_text(value.model_dump_json(by_alias=True), encoding="utf-8")
        stage = StageRecord(
            name=name,
            fingerprint="0" * 64,
            path=str(directory.relative_to(self.work)),
            cached=False,
            seconds=1.5,
            inputs={},
        )
        self.stages.append(stage)
        return directory

    def record(self) -> RunRecord:
        return RunRecord(
            recipe=self.recipe,
            command=f"distilledge run {self.recipe.name}",
            work=str(self.work),
            created="2025-01-31T12:00:00+00:00",
            versions={"torch": "2.14.1", "onnxruntime": "1.22.0"},
            stages=tuple(self.stages),
        )

    def data(self, *, synthetic: bool = True, group_size: int = 1) -> None:
        counts = dict.fromkeys(self.classes, 100)
        splits = Splits(
            root=".",
            classes=self.classes,
            counts={"train": counts, "validation": counts, "test": counts},
            data_hash="d" * 64,
            calibration_hash="c" * 64,
            calibration=128,
            synthetic=synthetic,
            warnings=("2 pictures of train are nearly the same as pictures of test",),
        )
        directory = self.add("data", splits)
        (directory / "images").mkdir(exist_ok=True)
        rng = np.random.default_rng(1)
        lines = []
        for i, label in enumerate(self.labels):
            path = self.path(i)
            if i % 5 < 2:
                texture = rng.integers(90, 160, (64, 64, 3), dtype=np.uint8)
                texture[16 : 24 + 6 * int(label), 20:40] = (30 * int(label) + 40) % 255
                Image.fromarray(texture).save(directory / path)
            group = f"part{i // group_size}" if group_size > 1 else ""
            sample = {"path": path, "label": int(label), "group": group, "split": "test", "sha256": "a" * 64}
            lines.append(json.dumps(sample | {"calibration": False}))
        (directory / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        finding = {"kind": "near_duplicates", "severity": "warning", "count": 2, "message": "two pictures look alike"}
        audit = {
            "findings": [finding | {"examples": ["train/a.png", "test/<b>.png"]}],
            "class_counts": splits.counts,
            "sizes": {"min": [64, 64], "max": [64, 64]},
            "modes": {"RGB": 1790, "L": 10},
            "exif_rotated": 3,
            "pictures": 1800,
        }
        (directory / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
        bad = {"path": "train/<b>broken</b>.jpg", "reason": "not an image"}
        (directory / "bad_files.jsonl").write_text(json.dumps(bad) + "\n", encoding="utf-8")

    def path(self, index: int) -> str:
        return f"images/{index:04d}.png"

    def training(self) -> None:
        models = {
            "teacher": "deit_tiny_patch16_224",
            "student": "tf_efficientnet_lite0",
            "control": "tf_efficientnet_lite0",
        }
        for role, model in models.items():
            checkpoint = Checkpoint(
                role=role,
                model=model,
                classes=self.classes,
                input_spec=SPEC,
                weights_sha256=role[0] * 64,
                parameters=5_500_000 if role == "teacher" else 3_400_000,
                macs=1_080_000_000 if role == "teacher" else 126_000_000,
                validation={"accuracy": 1 - ERRORS[role], "balanced_accuracy": 1 - ERRORS[role], "loss": 0.2},
                best_epoch=7,
                epochs=8,
                seconds=140.0,
                samples_per_second=61.0,
                precision="fp32",
            )
            directory = self.add(role, checkpoint)
            with (directory / "curves.jsonl").open("w", encoding="utf-8") as lines:
                for epoch in range(1, 9):
                    loss = ERRORS[role] * 4 + 1.4 * 0.6**epoch
                    line = {"epoch": epoch, "train_loss": loss, "loss": loss * 1.1, "lr": 1e-3}
                    line["accuracy"] = 1 - ERRORS[role] - 0.5 * 0.6**epoch
                    lines.write(json.dumps(line) + "\n")

    def exports(self, runtimes: Sequence[str] = RUNTIMES) -> list[ExportResult]:
        made = []
        for role in ("teacher", "student", "control"):
            for runtime in runtimes if role != "control" else runtimes[:1]:
                precisions = PRECISIONS if role == "student" else ("fp32",)
                files = tuple(exported(runtime, p, role, self.classes, self.spec) for p in precisions)
                made.append(ExportResult(role=role, runtime=runtime, files=files))
                self.add(f"export-{role}-{runtime}", made[-1])
        return made

    def parity(self) -> None:
        steps = [("torch fp32", "exported fp32"), ("exported fp32", "optimised fp32"), ("exported fp32", "w8a8")]
        items = []
        for runtime in RUNTIMES:
            rungs = tuple(
                Rung(
                    runtime=runtime,
                    reference=a,
                    candidate=b,
                    agreement=0.97 if b == "w8a8" else 1.0,
                    kl=3e-3 if b == "w8a8" else 1e-9,
                    cosine=0.998 if b == "w8a8" else 1.0,
                    psnr_db=None if b == "optimised fp32" else 41.0,
                    max_abs=0.3 if b == "w8a8" else 1e-5,
                    limit="agreement >= 0.9",
                    holds=True,
                )
                for a, b in steps
            )
            items.append(Parity(role="student", rungs=rungs, samples=64))
        self.add("verify", Parities(items=tuple(items)))

    def measurements(self, exports: Sequence[ExportResult]) -> Measurements:
        items = []
        for result in exports:
            if result.role == "control":
                continue
            for seed, file in enumerate(result.files):
                factor = 1.0 if result.role == "teacher" else STUDENT_MS[file.precision]
                median = TEACHER_MS[result.runtime] * factor
                items.append(measurement(result.runtime, file.precision, result.role, median_ms=median, seed=seed))
        made = Measurements(items=tuple(items))
        self.add("measure", made)
        return made

    def scores(self, exports: Sequence[ExportResult]) -> tuple[Scores, dict[str, np.ndarray]]:
        logits = {}
        items = []
        for number, (result, file) in enumerate((r, f) for r in exports for f in r.files):
            name = f"{result.role} {file.runtime} {file.precision}"
            seed = {"teacher": 10, "student": 20, "control": 30}[result.role]
            made = made_logits(self.labels, ERRORS[result.role], seed, len(self.classes))
            noise = {"fp32": 0.0, "fp16": 0.01, "w8a8": 0.3, "w8dyn": 0.3}[file.precision]
            logits[name] = made + np.random.default_rng(number).normal(0, noise, made.shape).astype(np.float32)
            items.append(
                Predictions(
                    name=name,
                    runtime=file.runtime,
                    precision=file.precision,
                    role=result.role,
                    split="test",
                    logits=f"{number}.npy",
                    seconds=2.0,
                )
            )
        paths = tuple(self.path(i) for i in range(len(self.labels)))
        scores = Scores(items=tuple(items), labels=tuple(int(x) for x in self.labels), paths=paths)
        directory = self.add("score", scores)
        for item in items:
            np.save(directory / item.logits, logits[item.name])
        return scores, logits

    def everything(self, *, synthetic: bool = True, runtimes: Sequence[str] = RUNTIMES) -> RunRecord:
        """All stages, as a run leaves them."""
        self.data(synthetic=synthetic)
        self.training()
        exports = self.exports(runtimes)
        self.parity()
        measurements = self.measurements(exports)
        scores, logits = self.scores(exports)
        self.add("gate", judge(self.recipe, scores, logits, measurements, exports))
        return self.record()
