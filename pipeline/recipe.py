"""The recipe: everything a run needs to know, in one YAML file. Units and meanings stand under each field.

Nothing happens on construction: no network, no environment, no file is opened.
Reading a recipe from YAML, with line numbers and suggestions, is ``recipe_file.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distilledge.models.base import Surgery, Value
from distilledge.pipeline.recipe_compress import Compress
from distilledge.pipeline.recipe_data import (
    METRICS,
    Columns,
    Count,
    Data,
    Fraction,
    Input,
    MaxBad,
    MetricName,
    NotNegative,
    Positive,
    Size,
    SplitFractions,
    Synthetic,
    TaskName,
    Tickets,
)
from distilledge.pipeline.recipe_multitask import Multitask
from distilledge.pipeline.recipe_prune import Prune
from distilledge.pipeline.recipe_search import Search
from distilledge.pipeline.recipe_strategy import Chosen, Strategy
from distilledge.pipeline.recipe_training import (
    Augment,
    Lora,
    LossTerm,
    Pretraining,
    Prompts,
    RandAugment,
    Text,
    TextAugment,
    Training,
)
from distilledge.pipeline.recipe_units import Units
from distilledge.targets.base import Precision, RuntimeName
from distilledge.targets.protocol import CoolDown, Scenario

__all__ = [
    "METRICS",
    "Augment",
    "Budget",
    "Columns",
    "Compress",
    "CoolDown",
    "Count",
    "Data",
    "Distill",
    "Export",
    "ExportTarget",
    "Fraction",
    "Gate",
    "Input",
    "Lora",
    "LossTerm",
    "MaxBad",
    "Measure",
    "MetricName",
    "Multitask",
    "NotNegative",
    "Positive",
    "Pretraining",
    "Prompts",
    "Prune",
    "RandAugment",
    "Recipe",
    "Scenario",
    "Search",
    "Size",
    "SplitFractions",
    "Strategy",
    "Student",
    "Surgery",
    "Synthetic",
    "TaskName",
    "Teacher",
    "Text",
    "TextAugment",
    "Tickets",
    "Training",
    "Units",
    "Verify",
]


class Teacher(Value):
    model: str = "deit_tiny_patch16_224"
    """Pictures: any timm classification model, or ``clip:`` and a hub name (``clip`` with a directory as weights).
    Text: a hub name or directory of transformers, or, built from scratch, an architecture's type, such as ``bert``."""
    weights: str = "none"
    """``hub`` (pretrained weights of the name), ``none``, or a .safetensors file. Text: ``hub``, ``none``, or a
    directory of config.json, model.safetensors and tokenizer.json. ``$NAME`` is expanded."""
    trust_pickle: bool = False
    """Also read .pt, .pth and .bin files, which can run code."""
    input: Input = Input()
    text: Text = Text()
    prompts: Prompts = Prompts()
    """Of a CLIP teacher, whose head starts from them."""
    pretraining: Pretraining | None = None
    strategy: Chosen = Strategy()
    """How the pretrained weights are adapted: a name, or a name with arguments. Default: all layers are fine-tuned."""
    check_transfer: bool = False
    """Train the same model from random weights under the same budget, and report whether the pretrained ones helped."""
    require_positive_transfer: bool = False
    """Exit 5 unless they did; needs check_transfer."""
    training: Training = Training()


class Student(Value):
    model: str = "tf_efficientnet_lite0"
    """As the teacher's; or ``teacher`` (text): the teacher's architecture with some of its layers and its weights."""
    weights: str = "none"
    trust_pickle: bool = False
    input: Input = Input(size=128)
    text: Text = Text()
    pretraining: Pretraining | None = None
    surgery: Surgery | None = None
    """Parts that int8 bears badly are replaced before the training; see docs/students.md."""
    prune: Prune | None = None
    """Channels are cut after the training, and the student is distilled again."""
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
    """Validation pictures or texts compared on each rung, taken at even distances: of every class its share."""
    max_abs_fp32: Positive = 1e-2
    """Largest difference of a logit between torch and a float file, relative to the largest logit."""
    min_agreement_fp32: Fraction = 1.0
    """Top-1 agreement with torch; a tie within max_abs_fp32 does not count against it."""
    min_agreement_fp16: Fraction = 0.98
    min_agreement_int8: Fraction = 0.9
    min_cosine_int8: Fraction = 0.9


class Measure(Value):
    device: str = "local"
    """Where files are timed and scored: ``local``, this machine, or a name of devices.yaml."""
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
    units: Units = Units()
    scenarios: tuple[Scenario, ...] = ()
    """Beside single-stream: ``{name: offline}``, ``{name: fixed-rate, fps: 15}``, ``{name: sustained}``."""
    previous: str = ""
    """The folder of an earlier run, or a model file of one: timed in turn with teacher and student."""
    tries: Count = 1
    """Whole measurements; from 2 on the report says whether they agree within 5 % (MLPerf Mobile: 5)."""
    cool_down: CoolDown = CoolDown()
    audits: bool = False
    """MLPerf's TEST01 (timed outputs are real) and TEST04 (no sample is cached) of every file."""
    energy_seconds: NotNegative = 0.0
    """Five times so long idle and so long busy, where the device has an energy counter; 0: not measured."""


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
    multitask: Multitask = Multitask()
    compress: Compress = Compress()
    export: Export = Export()
    verify: Verify = Verify()
    measure: Measure = Measure()
    budgets: dict[Literal["default", "onnx", "openvino", "tflite"], Budget] = {"default": Budget()}
    """Per runtime; ``default`` for those not named."""
    gate: Gate = Gate()
    search: Search = Search()
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

    def budget_of(self, runtime: RuntimeName) -> Budget:
        """The runtime's own, or the default one."""
        return self.budgets.get(runtime) or self.budgets.get("default") or Budget()
