"""The recipe: everything a run needs to know, in one YAML file. Units and meanings stand under each field.

Nothing happens on construction: no network, no environment, no file is opened.
Reading a recipe from YAML, with line numbers and suggestions, is ``recipe_file.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distilledge.models.base import Value
from distilledge.targets.base import Precision, RuntimeName

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
    """The generated maintenance-ticket set: short reports with an intent and a severity. Synthetic: nobody's tickets."""

    count: Count = 2400
    """Tickets in all."""
    difficulty: Fraction = 0.3
    """0: one clear phrase for each intent; 1: paraphrases, typing errors, misleading words of other intents."""
    seed: int = 0


class Data(Value):
    path: str = "synthetic"
    """Pictures: a folder with a folder per class, manifest (.csv, .jsonl), Hugging Face directory or hub name.

    Text: a .csv, .tsv, .jsonl or .parquet file, or a folder with train and test files of one of these, Hugging Face
    directory or hub name. ``synthetic``: the generated set of the task. ``$NAME`` is expanded."""
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
    tickets: Tickets = Tickets()
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


class Lora(Value):
    rank: Count = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Text(Value):
    """How a text becomes ids, and how the network is made: of text tasks only."""

    tokenizer: str = "model"
    """``model``: that of the model's hub name or directory (a student made from the teacher: the teacher's);
    ``teacher`` (student only): the teacher's; ``train``: WordPiece learned from the train split; or a path:
    tokenizer.json or vocab.txt (BERT, lower case). ``$NAME`` is expanded."""
    vocabulary: Count | None = None
    """Entries of a tokenizer that is learned. For a student that shares the teacher's tokenizer: embedding rows kept,
    the most frequent of the train split first; the other ids share the row of the unknown token."""
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    """Tokens, special ones counted; longer texts are cut at the right and counted."""
    buckets: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = ()
    """Lengths of a file with fixed shapes (TFLite), up to max_length. Default: powers of two from 16 to max_length."""
    config: dict[str, int | float | str | bool] = {}
    """Fields of the transformers configuration of a model built from scratch, such as ``hidden_size: 256``."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """``model: teacher``: the teacher's layers that the student starts from, counted from 0. Default: every second."""
    pooling: Literal["auto", "first", "mean", "last"] = "auto"
    """Which hidden state the head of a classification sees. ``auto``: last for decoders, mean for others."""
    lora: Lora | None = None
    """Train low-rank adapters instead of all weights; merged before export (Hu et al. 2021)."""


class TextAugment(Value):
    """Changed copies of texts for distillation, labels unseen (as TinyBERT; Jiao et al. 2020, section 3)."""

    copies: Count = 1
    """Changed copies of each text and epoch, beside the text itself."""
    replace: Fraction = 0.3
    """Share of the words that are replaced by what the teacher's language model predicts, or by ``mask``."""
    mask: Fraction = 0.1
    """Share of the words that become the mask token."""


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
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """``auto``: bf16 where the processor computes in it, else fp32. A CPU without it takes 15 times as long in bf16."""
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


class LossTerm(Value):
    name: str
    """A key of ``LOSSES``."""
    weight: NotNegative = 1.0
    arguments: dict[str, float | int | bool | str] = {}
    """Passed to the loss by keyword; checked against its signature."""


class Pretraining(Value):
    """Training as a language model on unlabelled text before the task (Gururangan et al. 2020)."""

    corpus: str | None = None
    """A text file (a text a line), .csv, .jsonl or .parquet with the text column. Default: the texts of the train split."""
    objective: Literal["auto", "mlm", "causal"] = "auto"
    """``mlm``: masked language model (Devlin et al. 2019); ``causal``: next token, for decoders."""
    mask: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that are masked."""
    losses: tuple[LossTerm, ...] = ()
    """Student only, task-agnostic distillation: losses against the teacher's own language model, which is then
    pretrained first (Sanh et al. 2019: kl and cosine beside the student's own masked loss)."""
    training: Training = Training(epochs=5, lr=5e-4, select="last")


class Teacher(Value):
    model: str = "deit_tiny_patch16_224"
    """Pictures: any timm classification model. Text: a hub name or directory of transformers, or, built from
    scratch, the type of an architecture, such as ``bert``."""
    weights: str = "none"
    """``hub`` (pretrained weights of the name), ``none``, or a .safetensors file. Text: ``hub``, ``none``, or a
    directory of config.json, model.safetensors and tokenizer.json. ``$NAME`` is expanded."""
    trust_pickle: bool = False
    """Also read .pt, .pth and .bin files, which can run code."""
    input: Input = Input()
    text: Text = Text()
    pretraining: Pretraining | None = None
    training: Training = Training()


class Student(Value):
    model: str = "tf_efficientnet_lite0"
    """As the teacher's; or ``teacher`` (text): the teacher's architecture with some of its layers and its weights."""
    weights: str = "none"
    trust_pickle: bool = False
    input: Input = Input(size=128)
    text: Text = Text()
    pretraining: Pretraining | None = None
    training: Training = Training()


class Distill(Value):
    losses: tuple[LossTerm, ...] = (LossTerm(name="kl", arguments={"temperature": 2.0}),)
    hard_weight: NotNegative = 0.5
    """Weight of the cross-entropy with the labels."""
    unlabelled: str | None = None
    """Pictures (a folder) or texts (a file) without labels, added to the training set; only the distillation losses
    see them."""
    augment_text: TextAugment | None = None
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
    """Pictures (or texts) timed from file (or string) to answer, in each launch."""
    lengths: tuple[Count, ...] = ()
    """Text: every file is also timed at each of these numbers of tokens."""


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
    task: TaskName = "image-classification"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    metric: MetricName = "auto"
    """``auto`` becomes the task's own: accuracy, micro_f1, entity_f1, answer_f1."""
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

    @model_validator(mode="after")
    def _own_metric(self) -> Recipe:
        if self.metric == "auto":
            object.__setattr__(self, "metric", METRICS[self.task][0])
        return self

    @property
    def is_text(self) -> bool:
        return self.task != "image-classification"
