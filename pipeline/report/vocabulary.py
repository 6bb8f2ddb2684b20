"""What a report holds. Metrics and drops are in points (0..100), latencies in milliseconds; intervals are 95 %."""

from __future__ import annotations

from typing import Any

from distilledge.models.base import Value
from distilledge.pipeline.compress.ledger import Ledger
from distilledge.pipeline.gate import Outcome
from distilledge.pipeline.recipe import MetricName, Recipe
from distilledge.pipeline.record import Adaptation, Checkpoint, Parity, Transfer, Verdict
from distilledge.pipeline.report.protocol import ProtocolContent
from distilledge.pipeline.report.task_content import TaskContent
from distilledge.pipeline.stats import Bin, Estimate
from distilledge.targets.units import Profile


class FileResult(Value):
    """One exported file: what it answers, how fast, how large; the teacher's files and the student's alike."""

    name: str
    role: str
    model: str
    """timm's name, or that of a text network."""
    runtime: str
    precision: str
    metric: Estimate | None
    drop: Estimate | None
    """Below the fp32 teacher, on the same pictures."""
    drop_fp32: Estimate | None
    """Below the student's own fp32 file."""
    others: dict[MetricName, float] = {}
    """The task's other metrics, in points; of texts only."""
    p50: Estimate | None
    p90: Estimate | None
    p99: Estimate | None
    """None below 1,000 samples."""
    end_to_end_p50: Estimate | None
    """From the picture file, or the text, to the answer."""
    faster_than_teacher: Estimate | None
    """p50 of the fp32 teacher in the same runtime over this file's."""
    faster_than_fp32: Estimate | None
    """p50 of the student's fp32 file in the same runtime over this file's."""
    load_ms: float | None
    """Median over the launches."""
    first_inference_ms: float | None
    peak_rss_mb: float | None
    size_mb: float
    sha256: tuple[str, ...]
    recipe: str
    float_operations: tuple[str, ...]
    spread_ms: tuple[float, ...]
    """Percentiles 0, 1, ... 100 of the latency; empty where it was not measured."""
    launch_medians_ms: tuple[float, ...]
    chosen: bool = False
    """The file that is its runtime's to ship."""
    shipped: bool
    """It is, and keeps every budget."""
    not_compared: tuple[str, ...] = ()
    """Flags of its timing by which its ratios say nothing."""
    verdict: Verdict | None


class Timing(Value):
    """Conditions and result of one measurement; a file has one for each number of threads."""

    name: str
    threads: int
    launches: int
    samples: int
    warmup: int
    batch: int
    quick: bool
    length: int | None = None
    """Tokens of every text, where one length was timed by itself."""
    p50: Estimate | None
    p90: Estimate | None
    p99: Estimate | None
    end_to_end_p50: Estimate | None
    cpu_share: float | None
    """CPU time over wall time; None where the device does not say."""
    waited_share: float | None
    """Share of the wall time that a runnable thread waited for a CPU; None where the kernel does not say."""
    runtime_version: str
    execution_precision: str
    flags: tuple[str, ...]
    unit_flags: tuple[str, ...] = ()
    """Of the file on its unit, such as ``PARTIAL_DELEGATION``."""


class Headline(Value):
    """The verdict of one runtime in words."""

    runtime: str
    outcome: Outcome
    text: str
    notes: tuple[str, ...]


class Confusion(Value):
    name: str
    matrix: tuple[tuple[int, ...], ...]
    """Rows: true class; columns: answer."""


class ClassChange(Value):
    """Recall of a class of pictures; F1 of a class, label or entity type of texts. In points, of the two files."""

    name: str
    pictures: int
    """Pictures of the class; texts, or entities of the type."""
    teacher: float
    student: float


class Reliability(Value):
    name: str
    bins: tuple[Bin, ...]
    error: float
    """Expected calibration error, in points."""


class Piece(Value):
    """Words of a text. ``marks``: of tags the entity type; of a context ``truth``, ``teacher`` and ``student``."""

    text: str
    marks: tuple[str, ...] = ()


class Line(Value):
    """A text of the gallery, cut to a few hundred characters. ``who``: whose marks these are, or what it is."""

    who: str
    pieces: tuple[Piece, ...]


class Disagreement(Value):
    """A picture or text on which the teacher and the shipped student answer differently, as the student sees it."""

    path: str
    label: str
    teacher: str
    teacher_probability: float
    teacher_right: bool = False
    student: str
    student_probability: float
    student_right: bool = False
    picture: str = ""
    """data: URI of a JPEG; empty where the file could not be read any more, and of texts."""
    lines: tuple[Line, ...] = ()
    """Of texts."""


class Gallery(Value):
    shown: tuple[Disagreement, ...]
    teacher_right: int
    """Samples that only the teacher gets right."""
    student_right: int
    both_wrong: int


class TeacherWorth(Value):
    """The student with and without its teacher: same budget, same seeds, same pictures, same runtime."""

    runtime: str
    student: Estimate
    control: Estimate
    teacher: Estimate
    gain: Estimate
    """Points the student lies above the control."""
    p_value: float
    """Two-sided; of ``test``."""
    test: str = "McNemar, exact"
    only_student: int
    """Samples that only the student gets right."""
    only_control: int


class Curve(Value):
    """One quantity over the epochs of one training."""

    role: str
    name: str
    points: tuple[tuple[float, float], ...]
    """(epoch, value)."""


class StageLine(Value):
    name: str
    fingerprint: str
    cached: bool
    seconds: float


class Tokenizer(Value):
    """The tokenizer.json that travels with the files of a model, and is not in their size."""

    role: str
    size_mb: float
    max_length: int
    """Tokens, beyond which texts are cut."""
    cut: int
    """Test texts that are cut."""
    texts: int


class BesideHost(Value):
    """One file's answers on the device against this machine's, over the whole test split."""

    name: str
    agreement: float
    """Share of the rows, 0..1."""
    max_abs: float
    """Largest difference of two logits."""


class DataSummary(Value):
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    synthetic: bool
    data_hash: str
    calibration: int
    calibration_hash: str
    groups: int
    """Groups among the test samples; as many as samples where the data brings none."""
    warnings: tuple[str, ...]
    audit: dict[str, Any]
    bad_files: tuple[dict[str, Any], ...]
    """The first hundred."""
    bad_count: int


class ReportContent(Value):
    recipe: Recipe
    created: str
    command: str
    versions: dict[str, str]
    stages: tuple[StageLine, ...]
    outcome: Outcome
    headlines: tuple[Headline, ...]
    pictures: int
    """Test pictures, or texts, that every file was scored on."""
    files: tuple[FileResult, ...]
    """The teacher's first."""
    timings: tuple[Timing, ...]
    protocol: ProtocolContent = ProtocolContent()
    device: dict[str, Any]
    profiles: tuple[Profile, ...] = ()
    """With the longest layers alone; empty where nothing was read back."""
    beside_host: tuple[BesideHost, ...] = ()
    """Empty where this machine is the device."""
    data: DataSummary
    checkpoints: tuple[Checkpoint, ...]
    curves: tuple[Curve, ...]
    teacher_worth: TeacherWorth | None
    """None without a control."""
    compared: tuple[str, str] | None
    """Names of the teacher's and the shipped student's file that the figures below compare."""
    confusions: tuple[Confusion, ...]
    class_changes: tuple[ClassChange, ...]
    reliabilities: tuple[Reliability, ...]
    gallery: Gallery | None
    tasks: TaskContent | None = None
    """Of several tasks; all else is then of the primary one."""
    transfer: Transfer | None = None
    """None where the recipe does not ask for the comparison."""
    adaptation: Adaptation | None = None
    """None where the teacher is adapted to no target."""
    fits: tuple[str, ...] = ()
    """A sentence on each training: whether it overfitted, and which epoch was kept."""
    parities: tuple[Parity, ...]
    tokenizers: tuple[Tokenizer, ...] = ()
    """Of texts: the teacher's and the student's."""
    ledgers: tuple[tuple[str, Ledger], ...] = ()
    """(Runtime, its quantization ladder), where the recipe climbs it."""
    left_out: tuple[str, ...]
    """Targets of the recipe that could not be exported."""
