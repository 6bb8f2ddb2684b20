"""The recipe: everything a run needs to know, in one YAML file. Units and meanings stand under each field.

Nothing happens on construction: no network, no environment, no file is opened.
Reading a recipe from YAML, with line numbers and suggestions, is ``recipe_file.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from distilledge.models.base import Value
from distilledge.targets.base import Precision, RuntimeName

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=8, le=4096)]


class Columns(Value):
    """Column names of a manifest or a Hugging Face dataset."""

    path: str = "path"
    """Picture file, relative to the manifest (for Hugging Face: the image column)."""
    label: str = "label"
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


class Data(Value):
    path: str = "synthetic"
    """Folder with a folder per class, manifest (.csv, .jsonl), Hugging Face directory or hub name, or ``synthetic``.

    ``$NAME`` is expanded."""
    format: Literal["auto", "folder", "manifest", "huggingface", "synthetic"] = "auto"
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


class RandAugment(Value):
    operations: Annotated[int, Field(ge=0)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 7


class Augment(Value):
    crop_scale: tuple[Fraction, Fraction] = (0.7, 1.0)
    """Share of the picture's area that a random resized crop keeps; (1, 1) switches it off."""
    crop_ratio: tuple[Positive, Positive] = (0.8, 1.25)
    horizontal_flip: Fraction = 0.5
    """Probability."""
    vertical_flip: Fraction = 0.0
    randaugment: RandAugment | None = None
    mixup: NotNegative = 0.0
    """Alpha of the Beta distribution; 0: off (Zhang et al. 2018)."""
    cutmix: NotNegative = 0.0
    """Alpha; 0: off (Yun et al. 2019). With both on, each batch takes one of them."""


class Training(Value):
    """One training, of a teacher or a student."""

    epochs: Count = 10
    batch_size: Count = 32
    accumulate: Count = 1
    """Batches whose gradients are added before a step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NotNegative = 0.05
    """Not applied to biases and normalisation."""
    momentum: Fraction = 0.9
    """For sgd."""
    warmup_epochs: NotNegative = 1.0
    min_lr_ratio: Fraction = 0.01
    """Last learning rate over the peak, cosine between."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a layer over that of the layer above it (discriminative learning rates)."""
    freeze_backbone: bool = False
    """Train the head alone."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """``balanced``: each class is drawn equally often."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the weight average that is evaluated and kept."""
    augment: Augment = Augment()
    early_stopping: Count | None = None
    """Epochs without a better validation metric before training stops."""
    select: Literal["best", "last"] = "best"
    """Which epoch's weights are kept, by the validation metric."""
    max_grad_norm: Positive | None = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    """torch.compile."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    on_nan: Literal["stop", "skip"] = "stop"
    """What to do with a non-finite loss: stop with the batch named, or skip the step."""
    auto_batch: bool = False
    """Out of memory: halve the batch and double the accumulation instead of stopping."""
    checkpoint_every: Count = 200
    """Steps between checkpoints from which a killed run resumes (one is also written at each epoch's end)."""
    tracker: Literal["none", "tensorboard", "mlflow"] = "none"


class Teacher(Value):
    model: str = "deit_tiny_patch16_224"
    """Any timm classification model."""
    weights: str = "none"
    """``hub`` (timm's pretrained weights), ``none``, or a .safetensors file. ``$NAME`` is expanded."""
    trust_pickle: bool = False
    """Also read .pt and .pth files, which can run code."""
    input: Input = Input()
    training: Training = Training()


class Student(Value):
    model: str = "tf_efficientnet_lite0"
    weights: str = "none"
    trust_pickle: bool = False
    input: Input = Input(size=128)
    training: Training = Training()


class LossTerm(Value):
    name: str
    """A key of ``LOSSES``."""
    weight: NotNegative = 1.0
    arguments: dict[str, float | int | bool | str] = {}
    """Passed to the loss by keyword; checked against its signature."""


class Distill(Value):
    losses: tuple[LossTerm, ...] = (LossTerm(name="kl", arguments={"temperature": 2.0}),)
    hard_weight: NotNegative = 0.5
    """Weight of the cross-entropy with the labels."""
    unlabelled: str | None = None
    """Folder of pictures without labels, added to the training set; only the distillation losses see them."""
    control: bool = True
    """Train the same student without the teacher too, so that the report says what the teacher was worth."""


class ExportTarget(Value):
    runtime: RuntimeName
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "w8a8")
    optional: bool = False
    """A failure of this target is reported and the others go on."""


class Export(Value):
    targets: tuple[ExportTarget, ...] = (
        ExportTarget(runtime="onnx"),
        ExportTarget(runtime="openvino"),
        ExportTarget(runtime="tflite"),
    )
    teacher_precisions: tuple[Precision, ...] = ("fp32",)
    """The teacher is exported to every target's runtime in these."""


class Verify(Value):
    samples: Count = 64
    """Validation pictures compared on each rung."""
    max_abs_fp32: Positive = 1e-2
    """Largest difference of a logit between torch and a float file, relative to the largest logit."""
    min_agreement_fp32: Fraction = 1.0
    """Top-1 agreement with torch; a tie within max_abs_fp32 does not count against it."""
    min_agreement_fp16: Fraction = 0.98
    min_agreement_int8: Fraction = 0.9
    min_cosine_int8: Fraction = 0.9


class Measure(Value):
    samples: Count = 1024
    """Timed inferences of each file at least (MLPerf Mobile)."""
    min_seconds: NotNegative = 60.0
    """Timed seconds of each file at least (MLPerf Mobile)."""
    launches: Count = 3
    """Processes each file is started in."""
    warmup: Annotated[int, Field(ge=0)] = 20
    threads: tuple[Annotated[int, Field(ge=0)], ...] = (1,)
    """0: all cores."""
    quick: bool = False
    """256 samples, no minimum time, one launch; labelled as such."""
    end_to_end: Annotated[int, Field(ge=0)] = 64
    """Pictures timed from file to class, in each launch."""


class Budget(Value):
    """Limits of every shipped file; None: no limit."""

    max_drop_points: NotNegative | None = 1.0
    """Points (0..100) of the metric below the teacher."""
    max_drop_points_fp32: NotNegative | None = 0.5
    """Points below the student's own fp32 file."""
    max_latency_ms: Positive | None = None
    """p50, model only, first entry of measure.threads."""
    max_size_mb: Positive | None = None
    max_peak_rss_mb: Positive | None = None


class Gate(Value):
    on_fail: Literal["stop", "report"] = "stop"
    """``stop``: exit 5 after the report is written."""


class Recipe(Value):
    schema_version: Literal[1] = Field(default=1, alias="schema")
    """Version of this format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    task: Literal["image-classification"] = "image-classification"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    metric: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    data: Data = Data()
    teacher: Teacher = Teacher()
    student: Student = Student()
    distill: Distill = Distill()
    export: Export = Export()
    verify: Verify = Verify()
    measure: Measure = Measure()
    budgets: dict[Literal["default", "onnx", "openvino", "tflite"], Budget] = {"default": Budget()}
    """Per runtime; ``default`` for those not named."""
    gate: Gate = Gate()
    smoke: dict[str, Any] = {}
    """Overrides of this recipe under ``--smoke``: dotted path -> value; the same recipe, shrunk."""
