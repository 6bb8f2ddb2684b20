"""What a file did with the units of a device: records, and the flags they come to.

The flags say nothing of whether a figure is fair (``fairness.py`` does): a file that leaves its unit is slow always.
"""

from __future__ import annotations

from collections.abc import Sequence

from distilledge.models.base import Value

MAX_SHARE_ELSEWHERE = 0.05
"""Of the time off the chosen unit. Files that fit their unit spend 0.2 to 3.4 % elsewhere (LiteRT: the conversion of
the input, a softmax); MobileNetV3 in static int8 57 %, a dynamic-range CNN 63 % (benchmarks/placement.py)."""
MAX_OPERATIONS_ELSEWHERE = 0.10
"""Of the operations, where there are no times: 2 to 6 % of files that fit, 17 % of MobileNetV3 in static int8."""
MAX_BOUNDARY_OPERATIONS = 0.15
"""Of the executed operations only quantize, dequantize, convert or copy: 4 % of EfficientNet-Lite0 as QDQ in ONNX
Runtime, 36 % of MobileNetV3, whose hard-swish it computes in float (benchmarks/placement.py)."""
MAX_BOUNDARY_SHARE = 0.10
"""Of the time in them: 1.7 % and 22 % of the same two; up to 3.8 % of BERT with dynamic quantization."""


class UnitShare(Value):
    unit: str
    operations: int
    share: float | None
    """Of the time, 0..1; None where the runtime has no profiler."""


class Placement(Value):
    """Where one file's operations ran, as read back on the device; small, kept in the measurement."""

    chosen: tuple[str, ...]
    """As the recipe names them, in order of preference."""
    units: tuple[UnitShare, ...]
    """Of TFLite what no delegate took is ``builtin``, ONNX Runtime's is ``cpu``."""
    partitions: int
    """Stretches on the chosen unit that something else interrupts; 1 is the aim."""
    executed: int
    """Operations as the runtime runs them, several of the file's often fused to one."""
    boundaries: int
    """Those that only quantize, dequantize, convert, or copy between units."""
    boundary_share: float | None
    microseconds: float | None
    """Of one inference, all operations; under a profiler, and so no latency."""
    runs: int
    untimed: str = ""
    """Why there are no times, or why nothing could be read back."""


class LayerTime(Value):
    """One operation as the runtime runs it."""

    name: str
    type: str
    unit: str
    precision: str
    microseconds: float | None
    """Of one inference: mean of the faster half of the runs."""
    share: float | None
    boundary: bool
    calls: int = 1
    """Operations in it: LiteRT's profiler puts like ones of several partitions together."""


class Profile(Value):
    name: str
    """Row name, such as ``student onnx w8a8``."""
    threads: int
    placement: Placement
    layers: tuple[LayerTime, ...]
    """In the order in which they ran."""


class Profiles(Value):
    items: tuple[Profile, ...]


def unit_flags(placement: Placement | None, *, slower_than_float: bool) -> tuple[str, ...]:
    """``PARTIAL_DELEGATION``, ``QUANTIZE_STORM``, ``SLOWER_THAN_FLOAT``, in this order."""
    tests = {
        "PARTIAL_DELEGATION": placement is not None and partly(placement),
        "QUANTIZE_STORM": placement is not None and storms(placement),
        "SLOWER_THAN_FLOAT": slower_than_float,
    }
    return tuple(flag for flag, holds in tests.items() if holds)


def partly(placement: Placement) -> bool:
    """Whether more than a little is computed off the first of the chosen units. ``auto`` is any that is no CPU."""
    first = placement.chosen[0]
    off = [u for u in placement.units if (u.unit == "cpu" if first == "auto" else first not in u.unit.split())]
    shares = [u.share for u in off if u.share is not None]
    if placement.microseconds is not None:
        return sum(shares) > MAX_SHARE_ELSEWHERE
    return sum(u.operations for u in off) > MAX_OPERATIONS_ELSEWHERE * sum(u.operations for u in placement.units)


def storms(placement: Placement) -> bool:
    by_count = placement.boundaries > MAX_BOUNDARY_OPERATIONS * placement.executed
    return by_count or (placement.boundary_share or 0.0) > MAX_BOUNDARY_SHARE


def top(layers: Sequence[LayerTime], count: int) -> tuple[LayerTime, ...]:
    """Those that take the most time, longest first; in their order where there are no times."""
    return tuple(sorted(layers, key=lambda layer: -(layer.microseconds or 0.0))[:count])
