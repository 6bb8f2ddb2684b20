"""What a recipe's run measured and scored, as a result file that ``compare`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distilledge.pipeline.benchmark import row_name
from distilledge.pipeline.canonical import canonical_json
from distilledge.pipeline.chain import Chain
from distilledge.pipeline.evidence import Evidence, gather_evidence
from distilledge.pipeline.foreign import timing
from distilledge.pipeline.outcomes import read_all
from distilledge.pipeline.record import Measurements, RunRecord, Scores
from distilledge.pipeline.result_file import (
    Accuracy,
    FileCard,
    InputCard,
    Item,
    Result,
    own_version,
    write_result,
)
from distilledge.pipeline.store import fingerprint
from distilledge.pipeline.task_scores import primary
from distilledge.targets.base import Exported, Measurement
from distilledge.targets.measure import ROWS
from distilledge.targets.samples import is_text

NAME = "result.json"


def leave_result(chain: Chain, record: RunRecord, directory: Path) -> None:
    """Write ``result.json`` beside ``run.json``, once files were timed; with accuracies once they were scored."""
    if "measure" in chain.done:
        write_result(result_of(chain, record), directory / NAME)


def result_of(chain: Chain, record: RunRecord) -> Result:
    measurements: Measurements = chain.done["measure"].value
    files = {row_name(e.value.role, f): (e.value.role, f) for e in chain.exports() for f in e.value.files}
    device, evidence = chain.recipe.measure.device, _evidence(chain, measurements)
    items = []
    for found in measurements.items:
        _, exported = files[found.name]
        items.append(
            Item(
                name=found.name,
                device=device,
                role=found.role,
                file=_file(exported),
                input=_input(chain, exported, found),
                timing=timing(found),
                accuracy=_accuracy(chain, evidence, found.name) if found.length is None else None,
            )
        )
    cards: list[dict[str, Any]] = [m.device for m in measurements.items]
    return Result(
        created=record.created,
        version=own_version(),
        command=record.command,
        release=chain.recipe.name,
        devices={device: cards[0]} if cards else {},
        items=tuple(items),
    )


def _file(exported: Exported) -> FileCard:
    return FileCard(
        runtime=exported.runtime,
        files=dict(zip(exported.files, exported.sha256, strict=True)),
        size_bytes=exported.size_bytes,
        precision=exported.precision,
    )


def _input(chain: Chain, exported: Exported, found: Measurement) -> InputCard:
    """The rows that are timed follow from the splits, and the arrays from the file's own preprocessing."""
    text = is_text(exported)
    spec = {k: v for k, v in exported.input_spec.items() if k != "tokenizer"}
    content = canonical_json({"data": chain.splits.data_hash, "spec": spec, "length": found.length})
    return InputCard(
        kind="texts" if text else "pictures",
        sha256=_sha256(content),
        rows=min(ROWS, len(chain.samples("test"))),
        shape={"ids" if text else "image": exported.input_shape},
        length=found.length,
    )


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _evidence(chain: Chain, measurements: Measurements) -> Evidence | None:
    """The answers to the test split; None where it was not scored."""
    if "score" not in chain.done:
        return None
    score, scores = chain.done["score"].path, chain.done["score"].value
    assert isinstance(scores, Scores)
    logits = {item.name: np.load(score / item.logits) for item in scores.items}
    groups = [s.group for s in chain.samples("test")]
    outcomes = read_all(scores.items, score, chain.recipe.metric) if chain.recipe.is_text else None
    own, classes = primary(logits, chain.splits.heads, chain.splits.classes)
    return gather_evidence(chain.recipe, scores, own, measurements, groups, classes=classes, outcomes=outcomes)


def _accuracy(chain: Chain, evidence: Evidence | None, name: str) -> Accuracy | None:
    predictions = next((p for p in evidence.predictions if p.name == name), None) if evidence else None
    if evidence is None or predictions is None or not len(evidence.labels):
        return None
    groups = evidence.groups or ()
    return Accuracy(
        metric=chain.recipe.metric,
        value=evidence.value(predictions).value,
        data_sha256=fingerprint("data", 1, {"data": chain.splits.data_hash, "split": "test"}),
        labels=tuple(int(label) for label in evidence.labels),
        counts=tuple(tuple(float(c) for c in row) for row in evidence.counts(predictions)),
        groups=tuple(groups) if any(groups) else (),
    )
