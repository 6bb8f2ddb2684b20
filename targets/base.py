"""The vocabulary of the targets layer: what an export, a measurement and a score are.

A target is a *module* with the names of ``Target``; ``targets.TARGETS`` maps runtime names to modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from distilledge.models.base import Value
from distilledge.models.heads import Heads
from distilledge.targets.scheme import PLAIN, LayerError, Scheme
from distilledge.targets.units import Placement

Precision = Literal["fp32", "fp16", "w8", "w8dyn", "w8a16", "w8a8"]
"""``w`` weights, ``a`` activations, then bits; ``dyn``: activation ranges computed at run time; ``w8a8`` and ``w8a16``
are static; ``w8``: weights only, computed in float."""
STATIC: tuple[Precision, ...] = ("w8a8", "w8a16")
"""Precisions whose activation ranges are measured on calibration pictures or texts."""

RuntimeName = Literal["onnx", "openvino", "tflite"]
Uint8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
Inputs = npt.NDArray[Any]
"""Pictures uint8 (N, H, W, 3) or ids int32 (N, L)."""


class Exported(Value):
    """One model file. ``files`` are relative to the stage's directory; the first is the one a runtime is given."""

    runtime: RuntimeName
    precision: Precision
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    size_bytes: int
    input_shape: tuple[int, ...]
    """Pictures: NHWC, uint8, RGB, batch 1. Text: (1, L), int32; L is -1 where the file takes any length, or several."""
    classes: tuple[str, ...]
    heads: Heads = ()
    """Of several tasks: an output for each, of its name, in this order; ``classes`` are those of all."""
    input_spec: dict[str, Any]
    """``InputSpec.to_dict()`` or ``TextSpec.to_dict()`` of ``ondevice``; also inside each model file as metadata.

    Of text, the last of ``files`` is the tokenizer, which ``size_bytes`` leaves out."""
    versions: dict[str, str]
    """Package versions that made the file."""
    recipe: str
    """The quantization recipe in words, such as ``QDQ U8S8 per channel, MinMax, 200 pictures``."""
    seconds: float
    float_operations: tuple[str, ...] = ()
    """Operation types left in float in an int8 file, with their count, such as ``Softmax x12``."""


class Deployable(Value):
    """What an exporter needs to know beside the torch module."""

    input_spec: dict[str, Any]
    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...]
    heads: Heads = ()
    """Of several tasks: the file has an output for each, of its name; empty: one, ``logits``."""
    metadata: dict[str, str] = {}
    """Written into the model file beside the input spec, such as the checkpoint's sha256."""
    saturates: bool = False
    """Whether the device that the file is for has 16-bit int8 sums (``saturation.saturates``)."""


class TextDeployable(Value):
    """What an exporter needs to know of a text model beside the torch module, which takes ids (1, L)."""

    input_spec: dict[str, Any]
    """``TextSpec.to_dict()``."""
    max_length: int
    pad_id: int
    buckets: tuple[int, ...] = ()
    """Lengths of a file with fixed shapes, rising; the last is ``max_length``."""
    classes: tuple[str, ...]
    metadata: dict[str, str] = {}
    saturates: bool = False
    """See ``Deployable``."""


AnyDeployable = Deployable | TextDeployable


class Target(Protocol):
    """One file format with its runtime."""

    NAME: RuntimeName
    SUFFIX: str
    PACKAGES: tuple[str, ...]
    """Distributions that must be there; their versions enter the cache key of exports."""
    PRECISIONS: tuple[Precision, ...]
    ANY_LENGTH: bool
    """Whether a text file takes any number of tokens; else it takes those of ``TextDeployable.buckets``."""

    def export(self, model: Any, deployable: AnyDeployable, out: Path) -> Path:
        """Write the fp32 file ``out/model.fp32<SUFFIX>`` from an eval-mode module (NCHW float -> logits); return it.

        The file takes uint8 NHWC RGB (batch 1) at the final size and returns float32 logits (1, classes);
        normalisation is inside. Of text: int32 ids (1, L), padded right with ``pad_id``, to float32 logits (1, classes)
        or (1, L, classes). Raises ``RejectedError`` naming the operation when the converter cannot do it.
        """

    def compress(
        self,
        fp32: Path,
        deployable: AnyDeployable,
        out: Path,
        *,
        precision: Precision,
        calibration: Sequence[Inputs],
        scheme: Scheme = PLAIN,
    ) -> tuple[Path, str]:
        """Make ``precision`` from the fp32 file; return the file and the recipe in words.

        ``scheme``: of ``w8a8``; of ``w8dyn`` its islands, and in OpenVINO nothing.

        ``calibration``: uint8 arrays (1, H, W, 3) or int32 (1, L), already preprocessed, not padded; empty unless the
        precision is static.
        """

    def embed_metadata(self, path: Path, metadata: dict[str, str]) -> None:
        """Write metadata inside the file (ONNX metadata_props, OpenVINO rt_info, TFLite appended zip)."""

    def read_metadata(self, path: Path) -> dict[str, str]:
        """Read it back; an empty dict if there is none."""

    def tensors(self, path: Path, rows: Inputs, *, optimise: bool) -> dict[str, FloatArray]:
        """Run the file and return intermediate tensors by name in graph order (for naming the first that diverges).

        ``rows``: uint8 (N, H, W, 3), or int32 (N, L) of a length that the file takes.
        """

    def float_operations(self, path: Path) -> tuple[str, ...]:
        """Operation types a quantised file still computes in float, with counts."""

    def boundaries(self, path: Path) -> int:
        """Operations of a quantised file, as it runs, that only turn float into int8 or back."""

    def layer_names(self, fp32: Path) -> tuple[str, ...]:
        """Layers with constant weights, in graph order."""

    def layer_errors(
        self, fp32: Path, deployable: AnyDeployable, *, calibration: Sequence[Inputs], rows: Sequence[Inputs]
    ) -> tuple[LayerError, ...]:
        """The error at the output with one layer only in static int8, worst first.

        ``rows``: uint8 (1, H, W, 3), or int32 (1, L) of lengths that the file takes.
        """


class Measurement(Value):
    """Timing of one file on one device, with its raw samples and the conditions they were taken under."""

    name: str
    """Row name, such as ``student w8a8``."""
    runtime: RuntimeName
    precision: Precision
    role: Literal["teacher", "student", "control", "previous"]
    """``previous``: a file of an earlier run (``measure.previous``)."""
    device: dict[str, Any]
    """Device card: CPU, cores, memory, kernel, governor, emulated or not."""
    threads: int
    batch: int = 1
    warmup: int
    quick: bool
    launches: tuple[Launch, ...]
    runtime_version: str
    execution_precision: str
    """As read back from the loaded model, such as ``f32``."""
    length: int | None = None
    """Tokens of every timed text, where texts of one length were timed (``measure.lengths``)."""
    flags: tuple[str, ...] = ()
    """Such as ``OTHER_LOAD``; a flagged result is kept, and the report says so beside every comparison."""
    int8_slower_than_float: bool = False
    placement: Placement | None = None
    """Where the operations ran; None: it was measured before this was read back."""
    unit_flags: tuple[str, ...] = ()
    """Of ``targets.units.unit_flags``: what is wrong with the file on this unit, not with the figure."""


class Launch(Value):
    """One process: loaded once, timed in blocks that alternate with the other models' blocks."""

    load_ns: int
    first_inference_ns: int
    peak_rss_bytes: int | None
    """None in a browser, as the fields below that a page cannot know of itself."""
    latency_ns: tuple[int, ...]
    """Model only."""
    end_to_end_ns: tuple[int, ...]
    """Decode, preprocess, infer, arg-max, one picture after another."""
    cpu_ns: int | None
    """CPU time of the process while timed."""
    wall_ns: int
    waited_ns: int | None
    """Time a runnable thread waited for a CPU (schedstat); None where the kernel does not say."""
    involuntary_switches: int | None
    disturbed: tuple[int, ...] | None = None
    """Inferences (indices of ``latency_ns``) during which something else ran; None: not seen, or several threads."""
    major_faults: int | None = None
    """Pages read back from disk while timed."""
    rest: Rest | None = None
    """How the device cooled down before it; None: it was not asked to, or cannot tell."""


class Rest(Value):
    """The wait before a launch."""

    waited_seconds: float
    hottest_celsius: float | None
    """Of all thermal zones, afterwards; None: none can be read."""
    above_start_celsius: float | None
    """What was left above the temperature before the first launch."""


Measurement.model_rebuild()
Launch.model_rebuild()


class Predictions(Value):
    """Logits of one file over one split, made on the device by that file; ``logits``: a .npy beside, (N, classes)."""

    name: str
    runtime: RuntimeName
    precision: Precision
    role: Literal["teacher", "student", "control"]
    split: str
    logits: str
    seconds: float
    outcomes: str | None = None
    """Of texts: a .npz beside, the counts and answers that the logits come to (``pipeline.outcomes``)."""
    host_agreement: float | None = None
    """Share of the rows (0..1) that the same file answers equally on this machine; None: they were made here."""
    host_max_abs: float | None = None
    """Largest difference of two logits of the same file here and there."""
