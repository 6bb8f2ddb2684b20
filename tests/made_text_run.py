"""A run of a text task made by hand: what the gate judges and the report shows, without training."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_run import ERRORS, RUNTIMES, MadeRun, measurement
from made_texts import CLASSES, logits_of, made_encoder, made_rows

from distilledge.pipeline.benchmark import with_outcomes
from distilledge.pipeline.gate import judge
from distilledge.pipeline.outcomes import read_all
from distilledge.pipeline.recipe import METRICS, Recipe
from distilledge.pipeline.record import (
    Checkpoint,
    ExportResult,
    Measurements,
    RunRecord,
    Sample,
    Scores,
    Splits,
    read_texts,
)
from distilledge.targets.base import Predictions

LENGTHS = (16, 32, 64, 128)
MODELS = {"teacher": "bert-base-uncased", "student": "teacher (6 of 12 layers)", "control": "teacher (6 of 12 layers)"}


class MadeTextRun(MadeRun):
    """``MadeRun`` of one of the text tasks, with a real tokenizer."""

    def __init__(
        self, work: Path, recipe: Recipe, texts: int = 300, classes: Sequence[str] | None = None, saying: str = ""
    ) -> None:
        super().__init__(work, recipe, classes or CLASSES[recipe.task], pictures=texts)
        self.rows, self.numbers = made_rows(recipe.task, texts)
        if saying:
            self.rows = [_saying(row, saying) for row in self.rows]
        self.encoder = made_encoder(work / "tokenizer", recipe.task)
        self.spec = self.encoder.spec.to_dict()

    def path(self, index: int) -> str:
        return f"test.csv:{index + 2}"

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
        )
        directory = self.add("data", splits)
        samples = [
            Sample(self.path(i), label, f"g{i // group_size}" if group_size > 1 else "", "test", "a" * 64, False)
            for i, label in enumerate(self.numbers)
        ]
        lines = [json.dumps(s._asdict()) for s in samples]
        (directory / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        texts = [row.model_dump_json() for row in self.rows]
        (directory / "texts.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
        message = "5 of 1500 texts are longer than 48 tokens and are cut (99 % have 40 or fewer)"
        cut = {"kind": "truncation", "severity": "warning", "count": 5, "message": message, "examples": []}
        lengths = {"edges": [0, 1, 2, 4, 8, 16, 32, 64], "counts": [0, 0, 3, 41, 640, 790, 26]}
        audit = {
            "findings": [cut],
            "class_counts": splits.counts,
            "lengths": {"words": lengths | {"min": 3, "median": 15.0, "p99": 33.0, "max": 41}},
            "texts": 1500,
            "texts_per_split": {"train": 900, "validation": 300, "test": len(self.rows)},
        }
        (directory / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
        bad = {"path": "train.csv:17", "reason": "no text"}
        (directory / "bad_files.jsonl").write_text(json.dumps(bad) + "\n", encoding="utf-8")

    def training(self) -> None:
        for role, model in MODELS.items():
            rate = 1 - ERRORS[role]
            checkpoint = Checkpoint(
                role=role,
                model=model,
                classes=self.classes,
                input_spec=self.spec,
                task=self.recipe.task,
                weights_sha256=role[0] * 64,
                parameters=110_000_000 if role == "teacher" else 66_000_000,
                macs=11_200_000_000 if role == "teacher" else 5_600_000_000,
                validation=dict.fromkeys(METRICS[self.recipe.task], rate) | {"loss": 0.2},
                best_epoch=3,
                epochs=3,
                seconds=140.0,
                samples_per_second=61.0,
                precision="fp32",
            )
            directory = self.add(role, checkpoint)
            with (directory / "curves.jsonl").open("w", encoding="utf-8") as lines:
                for epoch in range(1, 4):
                    now = rate - 0.5 * 0.4**epoch
                    line: dict[str, Any] = dict.fromkeys(METRICS[self.recipe.task], now)
                    lines.write(json.dumps(line | {"epoch": epoch, "train_loss": 1 - now, "loss": 1.1 - now}) + "\n")

    def exports(self, runtimes: Sequence[str] = RUNTIMES) -> list[ExportResult]:
        made = super().exports(runtimes)
        for result in made:
            place = self.work / "store" / f"export-{result.role}-{result.runtime}-0123456789abcdef"
            (place / "tokenizer.json").write_bytes((self.work / "tokenizer" / "tokenizer.json").read_bytes())
        return made

    def measurements(self, exports: Sequence[ExportResult]) -> Measurements:
        made = list(super().measurements(exports).items)
        self.stages.pop()
        for item in list(made):
            middle = float(np.median(item.launches[0].latency_ns)) / 1e6
            for length in LENGTHS:
                given = {"median_ms": middle * length / 48, "samples": 90, "length": length}
                made.append(measurement(item.runtime, item.precision, item.role, **given))
        found = Measurements(items=tuple(made))
        self.add("measure", found)
        return found

    def logits(self, wrong: Collection[int], seed: int = 0) -> np.ndarray:
        return logits_of(self.recipe.task, self.rows, self.numbers, self.encoder, wrong=wrong, seed=seed, strength=5.0)

    def constant(self, name: str) -> dict[str, np.ndarray]:
        """Logits of one file that answers the same to every text."""
        made = np.full_like(self.logits(()), -1)
        if self.recipe.task == "question-answering":
            made[:, 40] = 9
        elif self.recipe.task != "multi-label-classification":
            made[..., 0] = 9
        return {name: made}

    def scores(
        self, exports: Sequence[ExportResult], given: Mapping[str, np.ndarray] | None = None
    ) -> tuple[Scores, dict[str, np.ndarray]]:
        """``given``: logits of files that answer otherwise."""
        logits, items = {}, []
        hard = np.random.default_rng(99).random(len(self.rows))
        for number, (result, file) in enumerate((r, f) for r in exports for f in r.files):
            name = f"{result.role} {file.runtime} {file.precision}"
            seed = {"teacher": 10, "student": 20, "control": 30}[result.role]
            own = np.random.default_rng(seed + ("w8" in file.precision)).normal(0, 0.03, len(self.rows))
            wrong = set(np.flatnonzero(hard + own < ERRORS[result.role] + 0.02).tolist())
            logits[name] = self.logits(wrong, seed=number)
            logits[name] = (given or {}).get(name, logits[name])
            facts = {"runtime": file.runtime, "precision": file.precision, "role": result.role, "split": "test"}
            items.append(Predictions(name=name, **facts, logits=f"{number}.npy", seconds=2.0))
        directory = self.add("score", Scores(items=(), labels=(), paths=()))
        self.stages.pop()
        for item in items:
            np.save(directory / item.logits, logits[item.name])
        texts = read_texts(self.work / "store" / "data-0123456789abcdef", "test")
        judged = with_outcomes(items, directory, texts, self.encoder, self.classes)
        scores = Scores(items=judged, labels=tuple(self.numbers), paths=tuple(s.path for s, _ in texts))
        self.add("score", scores)
        return scores, logits

    def everything(self, *, synthetic: bool = True, runtimes: Sequence[str] = RUNTIMES) -> RunRecord:
        self.data(synthetic=synthetic)
        self.training()
        exports = self.exports(runtimes)
        self.parity()
        measurements = self.measurements(exports)
        scores, logits = self.scores(exports)
        outcomes = read_all(scores.items, self.work / "store" / "score-0123456789abcdef", self.recipe.metric)
        self.add("gate", judge(self.recipe, scores, logits, measurements, exports, outcomes=outcomes))
        return self.record()


def _saying(row: Any, words: str) -> Any:
    """The row with ``words`` in its text, before or after what is there."""
    if not isinstance(row.text, str):
        return row.model_copy(update={"text": (*row.text, words), "labels": (*row.labels, 0)})
    added = {"text": f"{row.text} {words}"}
    return row.model_copy(update=added | ({"context": f"{row.context} {words}"} if row.context else {}))
