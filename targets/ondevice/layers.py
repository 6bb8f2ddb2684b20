"""What a profile is made of: layers with their unit and time, and what they come to for each unit.

Times are the mean of the faster half of the runs: clocks of profilers count whole microseconds, and what else runs on
the machine only adds. (The mean of the middle half gave the conversion of an input 7 % instead of 0.6 % under load.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

WARMUP = 2
MIN_RUNS = 3
DYNAMIC = 32
"""What stands for a dimension that may be any, but for the first, which is the batch."""


class Layer(NamedTuple):
    """One operation as the runtime executes it, which may be several of the file's."""

    name: str
    type: str
    """As the runtime calls it, such as ``QLinearConv``."""
    unit: str
    precision: str
    """Such as ``i8``; empty where the runtime does not say."""
    microseconds: float | None
    boundary: bool = False
    """Whether it only quantizes, dequantizes, converts or copies between units."""
    calls: int = 1
    """Operations in it: a profiler may put like ones of several partitions together."""


class Profile(NamedTuple):
    """Where a file's operations ran, and for how long."""

    layers: tuple[Layer, ...]
    operations: dict[str, int]
    """Unit -> operations of the file (ONNX, TFLite), or of the compiled model (OpenVINO), in it."""
    partitions: int
    """Stretches of operations on the first chosen unit without another in between."""
    runs: int
    """Inferences that the times are of; 0: there are none."""
    untimed: str = ""
    """Why there are no times."""


def answer(profile: Profile) -> dict[str, Any]:
    """As the worker sends it. Shares are of the time of all layers, 0..1; None where there are no times."""
    total = sum(layer.microseconds or 0.0 for layer in profile.layers)
    timed = profile.runs > 0 and total > 0

    def share(layers: Sequence[Layer]) -> float | None:
        return sum(layer.microseconds or 0.0 for layer in layers) / total if timed else None

    names = dict.fromkeys([*profile.operations, *(layer.unit for layer in profile.layers)])
    boundaries = [layer for layer in profile.layers if layer.boundary]
    return {
        "units": [
            {
                "unit": name,
                "operations": profile.operations.get(name, 0),
                "share": share([layer for layer in profile.layers if layer.unit == name]),
            }
            for name in names
        ],
        "partitions": profile.partitions,
        "executed": sum(layer.calls for layer in profile.layers),
        "boundaries": sum(layer.calls for layer in boundaries),
        "boundary_share": share(boundaries),
        "microseconds": total if timed else None,
        "runs": profile.runs if timed else 0,
        "untimed": "" if timed else profile.untimed or "the runtime reports no times",
        "layers": [{**layer._asdict(), "share": share([layer])} for layer in profile.layers],
    }


def stretches(units: Sequence[str], wanted: str) -> int:
    """How many stretches of operations in a row run on ``wanted``."""
    return sum(unit == wanted and (i == 0 or units[i - 1] != wanted) for i, unit in enumerate(units))


def repeat(run: Callable[[], object], runs: int, seconds: float) -> int:
    """Run ``WARMUP`` times, then up to ``runs`` times within ``seconds``, but at least ``MIN_RUNS``; how often."""
    for _ in range(WARMUP):
        run()
    done, end = 0, time.monotonic() + seconds
    while done < MIN_RUNS or (done < runs and time.monotonic() < end):
        run()
        done += 1
    return done


def typical(microseconds: Sequence[float]) -> float:
    """Mean of the faster half."""
    ordered = np.sort(np.asarray(microseconds, np.float64))
    return float(ordered[: (len(ordered) + 1) // 2].mean())


def filled(shape: Sequence[Any], dtype: Any) -> np.ndarray[Any, Any]:
    """Ones. Dimensions that are no numbers, or negative: 1 for the batch, else ``DYNAMIC``."""
    sizes = [d if isinstance(d, int) and d > 0 else 1 if i == 0 else DYNAMIC for i, d in enumerate(shape)]
    return np.ones(sizes, dtype)
