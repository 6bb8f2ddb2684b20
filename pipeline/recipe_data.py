"""Parts of the recipe: the task, its data, and how a picture becomes an input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distilledge.models.base import Value

Fraction = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[float, Field(gt=0)]


NotNegative = Annotated[float, Field(ge=0)]


Count = Annotated[int, Field(ge=1)]


Size = Annotated[int, Field(ge=8, le=4096)]


TaskName = Literal[
    "image-classification",
    "text-classification",
    "multi-label-classification",
    "token-classification",
    "question-answering",
]


MetricName = Literal[
    "auto", "accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "entity_f1", "exact_match", "answer_f1"
]


METRICS: dict[TaskName, tuple[MetricName, ...]] = {
    "image-classification": ("accuracy", "balanced_accuracy"),
    "text-classification": ("accuracy", "balanced_accuracy", "macro_f1"),
    "multi-label-classification": ("micro_f1", "exact_match"),
    "token-classification": ("entity_f1", "accuracy"),
    "question-answering": ("answer_f1", "exact_match"),
}
"""Task -> the metrics it can be judged by, its default first. ``accuracy`` of token-classification is by token."""


class Columns(Value):
    """Column names of a manifest, a text file or a Hugging Face dataset."""

    path: str = "path"
    """Picture file, relative to the manifest (for Hugging Face: the image column)."""
    text: str = "text"
    """Of text: the column with the text; for question-answering the question."""
    context: str = "context"
    """Of question-answering: the text that holds the answer."""
    answers: str = "answers"
    """Of question-answering: ``{"text": [...], "answer_start": [...]}``, as SQuAD; starts count characters."""
    tokens: str = "tokens"
    """Of token-classification: the list of words."""
    tags: str = "tags"
    """Of token-classification: a tag for each word, BIO (``B-PER``, ``I-PER``, ``O``) or plain."""
    label: str = "label"
    """For multi-label-classification a list of labels, or one string cut at ``data.label_separator``."""
    labels: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$")], str] = {}
    """Several tasks on one network: task -> column of its label, the primary task first; then ``label`` is not read.
    A picture may lack some of them (an empty field). Of manifests, and of ``synthetic`` (label, texture)."""
    split: str = "split"
    """Ignored where the column does not exist."""
    group: str = "group"
    """Pictures with the same value never straddle two splits. Ignored where the column does not exist."""


class SplitFractions(Value):
    """Used where the data brings no split of its own; a missing validation part is cut from train."""

    train: Fraction = 0.7
    validation: Fraction = 0.15
    test: Fraction = 0.15


class MaxBad(Value):
    """Largest share of unreadable pictures that a run tolerates, per split; they are quarantined."""

    train: Fraction = 0.01
    validation: Fraction = 0.0
    test: Fraction = 0.0


class Synthetic(Value):
    """The generated surface-inspection set: metal, cast and fabric textures, six classes. Synthetic: no real parts."""

    per_class: Count = 120
    """Pictures of each class."""
    size: Size = 128
    """Pixels of each side."""
    difficulty: Fraction = 0.3
    """0: strong defects, even light; 1: faint defects, strong light and position changes."""
    seed: int = 0


class Tickets(Value):
    """The generated maintenance tickets: short reports with an intent and a severity. Synthetic: nobody's tickets."""

    count: Count = 2400
    """Tickets in all."""
    difficulty: Fraction = 0.3
    """0: one clear phrase for each intent; 1: paraphrases, typing errors, misleading words of other intents."""
    seed: int = 0


class Target(Value):
    """Where the model will run, if the labelled pictures or texts are of elsewhere: domain adaptation. Of texts for
    text-classification."""

    path: str
    """Pictures of the target. With ``test``: a folder (searched through) or a manifest; no label is read. Without: a
    folder or manifest with splits, of which ``test`` is scored on and the rest learned from without labels.
    Texts: a .csv, .tsv, .jsonl or .parquet file, .txt (a text a line), or a folder with train and test files.
    ``$NAME`` is expanded."""
    test: str = ""
    """Labelled pictures of the target, a folder with a folder per class or a manifest, or a file of labelled texts:
    scored on alone."""
    source_only: bool = True
    """With a strategy that adapts: train the same teacher without the target too, under the same budget, so that the
    report says whether adaptation helped or hurt."""


class Data(Value):
    path: str = "synthetic"
    """Pictures: a folder with a folder per class, manifest (.csv, .jsonl), Hugging Face directory or hub name.

    Text: a .csv, .tsv, .jsonl or .parquet file, or a folder with train and test files of one of these, Hugging Face
    directory or hub name. ``synthetic``: the generated set of the task. ``$NAME`` is expanded."""
    format: Literal["auto", "folder", "manifest", "huggingface", "synthetic"] = "auto"
    other_sets: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$")], str] = {}
    """Task -> a folder or manifest whose labels are of that task alone; its pictures lack all other labels."""
    columns: Columns = Columns()
    splits: SplitFractions = SplitFractions()
    max_bad: MaxBad = MaxBad()
    min_size: Count = 8
    """Pixels; pictures with a smaller side are quarantined."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 89_478_485
    """Pictures with more are refused before decoding (decompression bombs)."""
    exif: Literal["apply", "ignore", "error"] = "apply"
    frames: Literal["error", "first"] = "error"
    """What to do with animated and multi-page pictures."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=32)] = 2
    """Perceptual hashes (64 bit) that differ in at most so many bits are near-duplicates."""
    allow_leakage: bool = False
    """Go on although pictures of the test or validation split are in train too."""
    on_conflict: Literal["error", "quarantine", "keep"] = "error"
    """What to do with identical pictures that carry different labels."""
    calibration: Count = 128
    """Pictures for static int8, from train only, every class covered."""
    cache: bool = True
    """Keep decoded and resized pictures on disk during training."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Loader processes; 0 decodes in the training process."""
    synthetic: Synthetic = Synthetic()
    tickets: Tickets = Tickets()
    target: Target | None = None
    """Every score is then of the target's test part."""
    label_separator: str = "|"
    """Between the labels of one string, in multi-label-classification."""
    max_characters: Count = 100_000
    """Texts with more are quarantined."""
    near_duplicate_jaccard: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Texts whose sets of word 3-grams overlap by so much (MinHash estimate) are near-duplicates."""


class Input(Value):
    """How a picture becomes the model's input: the same rule in evaluation, calibration, test and on the device."""

    size: Size = 224
    """Pixels of each side of the model's square input."""
    resize: Literal["stretch", "crop", "letterbox"] = "stretch"
    """``stretch`` both sides; ``crop``: shorter side to size / crop_fraction, then the centre; ``letterbox``: pad."""
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    antialias: bool = True
    bit_depth: Literal[8, 10, 12, 14, 16] = 8
    """Significant bits of each channel in the files; above 8, values are scaled to 8 bits by this depth."""
    alpha_background: tuple[int, int, int] = (255, 255, 255)
    """Colour on which transparent pictures are composited."""
    mean: tuple[float, float, float] | None = None
    """Of RGB in 0..1. Default: the model's own."""
    std: tuple[float, float, float] | None = None
