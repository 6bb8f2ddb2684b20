"""Why int8 is slower than float, in words, from a runtime's profile."""

from __future__ import annotations

from typing import Any

import pytest

from distilledge.pipeline.compress.slowness import SURGERY, slowness
from distilledge.targets.units import LayerTime, Placement, Profile


def profile(*layers: tuple[str, float | None, bool], calls: int = 1) -> Profile:
    """Of (type, share, boundary)."""
    shares = [share for _, share, boundary in layers if boundary and share is not None]
    boundaries = sum(boundary for *_, boundary in layers)
    times = None if all(share is None for _, share, _ in layers) else 100.0
    made = [
        LayerTime(
            **{"name": f"{kind}{i}", "type": kind, "unit": "cpu", "precision": "f32", "boundary": boundary},
            **{"share": share, "calls": calls, "microseconds": None if share is None else 100 * share},
        )
        for i, (kind, share, boundary) in enumerate(layers)
    ]
    placement = Placement(
        **{"chosen": ("cpu",), "units": (), "partitions": 1, "executed": len(layers), "boundaries": boundaries},
        **{"boundary_share": None if times is None else sum(shares), "microseconds": times, "runs": 20},
    )
    return Profile(name="student w8a8", threads=1, placement=placement, layers=tuple(made))


def test_kinds_of_operations_are_summed_and_the_longest_is_named_first() -> None:
    found = slowness(
        profile(("Add", 0.1, False), ("Conv", 0.3, False), ("Conv", 0.4, False), ("Cast", 0.2, True)), (), islands=False
    )
    assert [(s.type, s.operations, round(s.share, 6)) for s in found.shares] == [
        ("Conv", 2, 0.7),
        ("Cast", 1, 0.2),
        ("Add", 1, 0.1),
    ]
    assert found.conversions == pytest.approx(0.2)
    assert found.words.startswith("of its time: Conv x2 70 %, Cast x1 20 %, Add x1 10 %; conversions 20 %. The int8")


def test_operations_that_a_profiler_puts_together_are_counted() -> None:
    (share,) = slowness(profile(("CONV_2D", 1.0, False), calls=7), (), islands=False).shares
    assert (share.operations, share.share) == (7, 1.0)


@pytest.mark.parametrize(
    ("layers", "floats", "islands", "expected"),
    [
        ([("Conv", 0.5, False), ("HardSwish", 0.5, False)], (), True, SURGERY),
        ([("Conv", 1.0, False)], ("Sigmoid x8",), False, SURGERY),
        ([("Conv", 0.6, False), ("QuantizeLinear", 0.4, True)], (), True, "fewer islands"),
        ([("Conv", 0.6, False), ("QuantizeLinear", 0.4, True)], (), False, "float16"),
        ([("Conv", 0.99, False), *[("Mul", 0.001, False)] * 10], ("Mul x10",), True, "float16"),
    ],
)
def test_what_to_do_follows_from_what_takes_the_time(
    layers: list[Any], floats: tuple[str, ...], islands: bool, expected: str
) -> None:
    assert expected in slowness(profile(*layers), floats, islands=islands).fix


def test_a_runtime_without_times_is_told() -> None:
    found = slowness(profile(("Conv", None, False)), (), islands=False)
    assert (found.shares, found.conversions) == ((), None)
    assert found.words.startswith("no times from the runtime's profiler. The int8")
