"""The results of the stages: every box of the data flow is one of these. Files are relative to their stage's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from distilledge.models.base import Value
from distilledge.models.heads import Heads
from distilledge.pipeline.compress.ledger import Ledger
from distilledge.pipeline.recipe import MetricName, Recipe, TaskName
from distilledge.pipeline.stats import Estimate
from distilledge.targets.base import Exported, Measurement, Predictions
from distilledge.targets.protocol import Audit, Energy, ScenarioRun, Tries

Split = Literal["train", "validation", "test", "unlabelled", "target", "source-test"]
"""With ``data.target``, ``test`` is the target's, ``target`` its pictures without labels: see ``data.target``."""
Role = Literal["teacher", "student", "control"]


class Sample(NamedTuple):
    """One picture or text. ``label`` indexes ``Splits.classes``; -1: none; 0 where a labelled text has no single one.

    ``path``: of a picture, relative to ``Splits.root``; of a text, where it was read, such as ``train.csv:17``.
    """

    path: str
    label: int
    group: str
    split: Split
    sha256: str
    calibration: bool


class TextRow(Value):
    """One text. Its ``Sample`` is the line of samples.jsonl with the same number."""

    text: str | tuple[str, ...]
    """A text; for token-classification its words; for question-answering the question."""
    context: str | None = None
    """Of question-answering."""
    labels: tuple[int, ...] = ()
    """Class indices: of multi-label-classification those that hold, of token-classification one for each word."""
    answers: tuple[tuple[int, str], ...] = ()
    """Of question-answering: (first character in the context, text); empty where the context holds no answer."""


class Splits(Value):
    """Result of the data stage. Beside it lie samples.jsonl, audit.json, bad_files.jsonl; of text also texts.jsonl."""

    root: str
    """Where sample paths start: absolute, or ``.`` for the stage's own directory (generated and unpacked sets)."""
    classes: tuple[str, ...]
    heads: Heads = ()
    """Of several tasks: then ``classes`` are the classes of all, one task after another, a sample's label is of the
    first, and labels.jsonl beside has those of all."""
    counts: dict[str, dict[str, int]]
    """Pictures per split and class."""
    data_hash: str
    """Over all (path, label, group, split, sha256)."""
    calibration_hash: str
    calibration: int
    synthetic: bool
    warnings: tuple[str, ...] = ()


class SourceKept(Value):
    """What a teacher still knows of the source of its pretrained weights, under their own head."""

    what: Literal["accuracy", "token accuracy"]
    """``token accuracy``: of masked (or next) tokens, by the language model that the weights came with."""
    samples: int
    """Pictures, or tokens."""
    declared: bool
    """Whether they are a test part of the source's own; else the weights may have been trained on them."""
    before: Estimate
    after: Estimate
    lost: Estimate
    """Points, paired by sample."""


class Checkpoint(Value):
    """A trained model: ``model.safetensors`` and ``curves.jsonl`` beside it."""

    role: Role
    model: str
    classes: tuple[str, ...]
    heads: Heads = ()
    """Of several tasks: whose columns of the logits are whose."""
    input_spec: dict[str, Any]
    """``InputSpec.to_dict()`` with the mean and std in use, or of a text model ``TextSpec.to_dict()``: then
    ``tokenizer.json`` lies beside the weights."""
    architecture: dict[str, Any] = {}
    """Of a text model: what ``models.text.create`` builds the same network from (no weights). ``knn``: the shapes of a
    head of nearest neighbours. ``surgery``: what was replaced; ``channels``: those of layers that were pruned."""
    task: TaskName = "image-classification"
    weights_sha256: str
    parameters: int
    macs: int
    """Multiply-accumulates of one picture, or of one text of ``max_length`` tokens."""
    validation: dict[str, float]
    """The task's metrics and ``loss`` of the kept epoch."""
    best_epoch: int
    epochs: int
    """Epochs run (fewer than asked when stopped early)."""
    seconds: float
    samples_per_second: float
    precision: str
    skipped_steps: int = 0
    """Steps left out because their loss was not finite (``on_nan: skip``)."""
    notes: tuple[str, ...] = ()
    """What else is to be said of it, in sentences."""
    source: SourceKept | None = None
    """Where the strategy names a labelled source."""


class Transfer(Value):
    """What pretrained weights were worth: the teacher beside the same model trained from random ones, on test."""

    metric: MetricName
    samples: int
    teacher: Estimate
    scratch: Estimate
    gain: Estimate
    """Points the teacher lies above the model from scratch, paired by sample."""
    p_value: float
    """McNemar, exact; of metrics of counts, answers swapped at random (Noreen 1989)."""
    outcome: Literal["helped", "hurt", "undecided"]
    """By whether the interval of the gain lies above 0, below it, or holds it."""


class Adaptation(Value):
    """What adapting the teacher to the target was worth. Of each ``Transfer``, ``scratch`` is the same teacher trained
    on the source alone.
    """

    method: str
    target: Transfer
    """On the target's test part."""
    source: Transfer | None
    """On the source's, which adaptation may cost something."""


class Rung(Value):
    """One step of the parity ladder: ``reference`` against ``candidate`` on the same pictures."""

    runtime: str
    reference: str
    """Such as ``torch fp32``."""
    candidate: str
    head: str = ""
    """Of several tasks: the one whose output is compared."""
    agreement: float
    """Share of pictures with the same top-1."""
    kl: float
    """Mean KL divergence of the softmaxed outputs, nats."""
    cosine: float
    """Mean cosine of the logits."""
    psnr_db: float | None
    """None where the difference is zero."""
    max_abs: float
    """Largest absolute difference of a logit."""
    limit: str
    """The bound in words."""
    holds: bool
    fault_class: (
        Literal["preprocess", "export op", "graph optimisation", "activation range", "weight range", "runtime"] | None
    ) = None
    first_divergent: str | None = None
    """The first tensor, in graph order, that differs."""


class Parity(Value):
    role: Role
    rungs: tuple[Rung, ...]
    samples: int

    @property
    def broken(self) -> Rung | None:
        return next((r for r in self.rungs if not r.holds), None)


class Parities(Value):
    items: tuple[Parity, ...]


class ExportResult(Value):
    """Result of the export stage of one model for one runtime."""

    role: Role
    runtime: str
    files: tuple[Exported, ...]
    error: str | None = None
    """Set where an optional target failed."""
    ledger: Ledger | None = None
    """Of a student whose recipe climbs the quantization ladder."""

    def precision(self, name: str) -> Exported | None:
        """The file of a precision, if it was made."""
        return next((f for f in self.files if f.precision == name), None)


class Measurements(Value):
    items: tuple[Measurement, ...]
    """Single stream."""
    scenarios: tuple[ScenarioRun, ...] = ()
    audits: tuple[Audit, ...] = ()
    tries: tuple[Tries, ...] = ()
    energies: tuple[Energy, ...] = ()


class Scores(Value):
    items: tuple[Predictions, ...]
    labels: tuple[int, ...]
    paths: tuple[str, ...]


class Check(Value):
    """One budget line: its value, interval and outcome."""

    what: str
    """Such as ``drop against teacher (points)``."""
    value: float
    low: float | None
    high: float | None
    """95 % interval; None where the value is exact."""
    limit: float | None
    outcome: Literal["holds", "fails", "inconclusive", "no limit"]
    note: str = ""
    """Such as ``needs 410 more pictures``."""


class Verdict(Value):
    """What the statistics allow to say of one file."""

    name: str
    runtime: str
    precision: str
    outcome: Literal["pass", "fail", "inconclusive"]
    accuracy_word: Literal["better", "not worse", "worse", "inconclusive"]
    """Of the metric against the teacher, with ``max_drop_points`` as the margin."""
    checks: tuple[Check, ...]
    decided_by: str = ""
    """Of several tasks: the one with the worst outcome."""
    alarms: tuple[str, ...] = ()
    """Such as ``int8 is slower than float (1.4x)``."""


class Verdicts(Value):
    items: tuple[Verdict, ...]


class StageRecord(Value):
    name: str
    fingerprint: str
    path: str
    """Relative to the work directory."""
    cached: bool
    seconds: float
    inputs: dict[str, Any]


class RunRecord(Value):
    """What a run leaves in run.json; everything that the report needs, or the place where it lies."""

    recipe: Recipe
    command: str
    """The command that reproduces the run."""
    work: str
    created: str
    """ISO 8601, UTC."""
    versions: dict[str, str]
    stages: tuple[StageRecord, ...]
    failed: tuple[ExportResult, ...] = ()
    """Optional targets that could not be exported, with the reason."""

    def stage(self, name: str) -> StageRecord:
        return next(s for s in self.stages if s.name == name)

    def directory(self, name: str) -> Path:
        return Path(self.work) / self.stage(name).path


def read_samples(directory: Path, split: Split | None = None) -> list[Sample]:
    """Samples of a data stage's directory, in file order, of one split or of all."""
    with (directory / "samples.jsonl").open(encoding="utf-8") as lines:
        samples = [Sample(**json.loads(line)) for line in lines]
    return [s for s in samples if split is None or s.split == split]


def read_texts(directory: Path, split: Split | None = None) -> list[tuple[Sample, TextRow]]:
    """Samples of a text data stage's directory with their texts, in file order, of one split or of all."""
    with (directory / "texts.jsonl").open(encoding="utf-8") as lines:
        pairs = zip(read_samples(directory), lines, strict=True)
        return [(s, TextRow.model_validate_json(line)) for s, line in pairs if split is None or s.split == split]


def data_root(splits: Splits, directory: Path) -> Path:
    """The directory that sample paths start from."""
    return directory if splits.root == "." else Path(splits.root)
