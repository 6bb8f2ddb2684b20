"""Gathers a report from the stage directories of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from distilledge.models.base import Value
from distilledge.pipeline import gate
from distilledge.pipeline.data.content import location
from distilledge.pipeline.decode import as_row
from distilledge.pipeline.evidence import Evidence, gather_evidence
from distilledge.pipeline.outcomes import read_all
from distilledge.pipeline.profile import SHOWN, read_profiles
from distilledge.pipeline.record import (
    Adaptation,
    Checkpoint,
    ExportResult,
    Measurements,
    Parities,
    RunRecord,
    Sample,
    Scores,
    Splits,
    TextRow,
    Transfer,
    Verdicts,
    data_root,
    read_samples,
    read_texts,
)
from distilledge.pipeline.report import answers, results, text_answers
from distilledge.pipeline.report.answers import Pair, Pictures
from distilledge.pipeline.report.fits import monitor_words, notes
from distilledge.pipeline.report.protocol import protocol_content
from distilledge.pipeline.report.task_content import TaskContent
from distilledge.pipeline.report.tasks import task_content
from distilledge.pipeline.report.vocabulary import BesideHost, Curve, DataSummary, ReportContent, StageLine, Tokenizer
from distilledge.pipeline.task_scores import primary
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.text import TextEncoder, TextSpec
from distilledge.targets.units import Profile, top

GALLERY = 24
"""Disagreements shown at most."""
BAD_FILES = 100
"""Quarantined files listed at most."""
V = TypeVar("V", bound=Value)


class _Stages(NamedTuple):
    """What the stages of a run recorded."""

    splits: Splits
    checkpoints: tuple[Checkpoint, ...]
    exports: tuple[ExportResult, ...]
    parities: Parities
    measurements: Measurements
    scores: Scores
    verdicts: Verdicts
    samples: list[Sample]
    """Of the test split."""


def collect(run: RunRecord, *, gallery: int = GALLERY) -> ReportContent:
    """Everything the report says, from what the stages recorded; stages that did not run leave their part out."""
    stages = _read_stages(run)
    evidence = _evidence(run, stages)
    targets = gate.by_target(stages.verdicts)
    models: dict[str, str] = {c.role: c.model for c in stages.checkpoints}
    timed = results.timings(stages.measurements.items, run.recipe.seed)
    files = results.file_results(evidence, stages.exports, stages.verdicts, models, timed)
    pair = _pair(evidence, targets)
    return ReportContent(
        recipe=run.recipe,
        created=run.created,
        command=run.command,
        versions=run.versions,
        stages=tuple(
            StageLine(name=s.name, fingerprint=s.fingerprint, cached=s.cached, seconds=s.seconds) for s in run.stages
        ),
        outcome=gate.overall(stages.verdicts),
        headlines=results.headlines(files, targets),
        pictures=len(evidence.labels),
        files=files,
        timings=timed,
        protocol=protocol_content(stages.measurements, run.recipe.seed),
        device=stages.measurements.items[0].device if stages.measurements.items else {},
        profiles=_profiles(run),
        beside_host=tuple(
            BesideHost(name=i.name, agreement=i.host_agreement, max_abs=i.host_max_abs)
            for i in stages.scores.items
            if i.host_agreement is not None and i.host_max_abs is not None
        ),
        data=_data_summary(run, stages),
        checkpoints=stages.checkpoints,
        curves=tuple(c for name in _trainings(run, stages) for c in _curves(run, name)),
        teacher_worth=answers.teacher_worth(evidence),
        tasks=_tasks(run, stages),
        transfer=_read(run, "transfer", Transfer),
        adaptation=_read(run, "adaptation", Adaptation),
        fits=(
            *(
                monitor_words(c, _json_lines(run.directory(c.role) / "curves.jsonl"), _asked(run, c))
                for c in stages.checkpoints
            ),
            *notes(stages.checkpoints, [_read(run, f"pretrain-{role}", Checkpoint) for role in ("teacher", "student")]),
        ),
        parities=stages.parities.items,
        tokenizers=_tokenizers(run, stages) if run.recipe.is_text else (),
        ledgers=tuple((e.runtime, e.ledger) for e in stages.exports if e.ledger is not None),
        left_out=_left_out(run, stages),
        **_compared(run, stages, evidence, pair, gallery),
    )


def _asked(run: RunRecord, made: Checkpoint) -> int:
    """Epochs that the recipe gives a model."""
    part = run.recipe.teacher if made.role == "teacher" else run.recipe.student
    return part.training.epochs


def _read_stages(run: RunRecord) -> _Stages:
    names = [s.name for s in run.stages]
    trained = [_read(run, role, Checkpoint) for role in ("teacher", "student", "control")]
    exports = [_read(run, name, ExportResult) for name in names if name.startswith("export-")]
    return _Stages(
        splits=_require(run, "data", Splits).model_copy(update={"root": location(run.recipe.data, run.recipe.task)}),
        checkpoints=tuple(c for c in trained if c is not None),
        exports=tuple(e for e in exports if e is not None),
        parities=_read(run, "verify", Parities) or Parities(items=()),
        measurements=_read(run, "measure", Measurements) or Measurements(items=()),
        scores=_read(run, "score", Scores) or Scores(items=(), labels=(), paths=()),
        verdicts=_read(run, "gate", Verdicts) or Verdicts(items=()),
        samples=read_samples(run.directory("data"), "test"),
    )


def _require(run: RunRecord, stage: str, record: type[V]) -> V:
    return record.model_validate_json((run.directory(stage) / "value.json").read_bytes())


def _read(run: RunRecord, stage: str, record: type[V]) -> V | None:
    return _require(run, stage, record) if any(s.name == stage for s in run.stages) else None


def _profiles(run: RunRecord) -> tuple[Profile, ...]:
    found = read_profiles(run.directory("measure")) if any(s.name == "measure" for s in run.stages) else None
    return tuple(p.model_copy(update={"layers": top(p.layers, SHOWN)}) for p in found.items) if found else ()


def _evidence(run: RunRecord, stages: _Stages) -> Evidence:
    """The same evidence that the gate judged."""
    logits, classes = primary(_logits(run, stages), stages.splits.heads, stages.splits.classes)
    outcomes = read_all(stages.scores.items, run.directory("score"), run.recipe.metric) if run.recipe.is_text else None
    return gather_evidence(
        run.recipe,
        stages.scores,
        logits,
        stages.measurements,
        _groups(stages),
        classes=classes,
        outcomes=outcomes,
    )


def _logits(run: RunRecord, stages: _Stages) -> dict[str, Any]:
    return {item.name: np.load(run.directory("score") / item.logits) for item in stages.scores.items}


def _tasks(run: RunRecord, stages: _Stages) -> TaskContent | None:
    if not stages.splits.heads:
        return None
    curves: dict[str, list[dict[str, Any]]] = {
        c.role: _json_lines(run.directory(c.role) / "curves.jsonl") for c in stages.checkpoints
    }
    tested = (run.directory("data"), stages.samples)
    given = (run.recipe, stages.splits, stages.scores, _logits(run, stages), stages.verdicts)
    return task_content(*given, tested=tested, curves=curves)


def _groups(stages: _Stages) -> list[str] | None:
    named = {s.path: s.group for s in stages.samples}
    return [named.get(path, "") for path in stages.scores.paths] if any(named.values()) else None


def _pair(evidence: Evidence, targets: tuple[gate.TargetVerdict, ...]) -> Pair | None:
    """The first runtime's shipped student and its teacher."""
    for target in targets:
        teacher = evidence.find("teacher", target.runtime, "fp32")
        student = evidence.find("student", target.runtime, target.shipped.precision)
        if teacher is not None and student is not None and len(evidence.labels):
            return Pair(teacher, student)
    return None


def _compared(run: RunRecord, stages: _Stages, evidence: Evidence, pair: Pair | None, limit: int) -> dict[str, Any]:
    """The parts that compare two files sample by sample."""
    if pair is None:
        return {"compared": None, "confusions": (), "class_changes": (), "reliabilities": (), "gallery": None}
    classes = stages.splits.heads[0].classes if stages.splits.heads else stages.splits.classes
    labelled = [p for p, label in zip(stages.scores.paths, stages.scores.labels, strict=True) if label >= 0]
    if run.recipe.is_text:
        rows = _rows(run, labelled)
        changes = text_answers.class_changes(evidence, pair, rows, classes)
        show = text_answers.texts(evidence, pair, rows)
    else:
        student = next(c for c in stages.checkpoints if c.role == "student")
        root = data_root(stages.splits, run.directory("data"))
        changes = answers.class_changes(evidence, pair, classes)
        show = answers.pictured(Pictures(root, labelled, InputSpec.from_dict(student.input_spec)))
    return {
        "compared": (pair.teacher.name, pair.student.name),
        "confusions": answers.confusions(evidence, pair, classes),
        "class_changes": changes,
        "reliabilities": answers.reliabilities(evidence, pair),
        "gallery": answers.gallery(evidence, pair, labelled, show, limit),
    }


def _rows(run: RunRecord, paths: Sequence[str]) -> list[TextRow]:
    """The texts of the scored samples, in their order."""
    named = {sample.path: row for sample, row in read_texts(run.directory("data"), "test")}
    return [named[path] for path in paths]


def _tokenizers(run: RunRecord, stages: _Stages) -> tuple[Tokenizer, ...]:
    """Of the teacher's and the student's files, with the test texts that each cuts."""
    rows = [row for _, row in read_texts(run.directory("data"), "test")]
    found = {}
    for result in stages.exports:
        path = run.directory(f"export-{result.role}-{result.runtime}") / "tokenizer.json"
        if result.role != "control" and result.files and path.is_file():
            found[result.role] = _tokenizer(result, path, rows)
    return tuple(found.values())


def _tokenizer(result: ExportResult, path: Path, rows: Sequence[TextRow]) -> Tokenizer:
    spec = TextSpec.from_dict(result.files[0].input_spec)
    encoder = TextEncoder(path, spec)
    cut = sum(encoder.encode_aligned({"text": as_row(row.text), "context": row.context}).cut for row in rows)
    size = path.stat().st_size / gate.MB
    return Tokenizer(role=result.role, size_mb=size, max_length=spec.max_length, cut=cut, texts=len(rows))


def _data_summary(run: RunRecord, stages: _Stages) -> DataSummary:
    directory = run.directory("data")
    audit = directory / "audit.json"
    bad = _json_lines(directory / "bad_files.jsonl")
    return DataSummary(
        classes=stages.splits.classes,
        counts=stages.splits.counts,
        synthetic=stages.splits.synthetic,
        data_hash=stages.splits.data_hash,
        calibration=stages.splits.calibration,
        calibration_hash=stages.splits.calibration_hash,
        groups=len({s.group or s.path for s in stages.samples}),
        warnings=stages.splits.warnings,
        audit=json.loads(audit.read_text(encoding="utf-8")) if audit.is_file() else {},
        bad_files=tuple(bad[:BAD_FILES]),
        bad_count=len(bad),
    )


def _trainings(run: RunRecord, stages: _Stages) -> list[str]:
    """The stages that left curves."""
    rungs = [s.name for s in run.stages if s.name in ("qat", "surgery")]
    return [*(checkpoint.role for checkpoint in stages.checkpoints), *rungs]


def _curves(run: RunRecord, role: str) -> list[Curve]:
    """Every number of curves.jsonl over its epoch."""
    lines = _json_lines(run.directory(role) / "curves.jsonl")
    names = dict.fromkeys(key for line in lines for key, value in line.items() if _is_number(value))
    return [
        Curve(
            role=role,
            name=name,
            points=tuple(
                (float(line.get("epoch", i)), float(line[name]))
                for i, line in enumerate(lines, start=1)
                if _is_number(line.get(name))
            ),
        )
        for name in names
        if name != "epoch"
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _left_out(run: RunRecord, stages: _Stages) -> tuple[str, ...]:
    """Targets of the recipe without a student file, with the reason where one was recorded."""
    failed = [f"{e.role} in {e.runtime}: {e.error}" for e in stages.exports if e.error]
    made = {e.runtime for e in stages.exports if e.role == "student"}
    reasons = {f.runtime: f.error for f in run.failed}
    absent = [
        f"{t.runtime}: not exported: {reasons.get(t.runtime, 'the run did not come so far')}"
        for t in run.recipe.export.targets
        if t.runtime not in made
    ]
    return tuple(failed + absent)
