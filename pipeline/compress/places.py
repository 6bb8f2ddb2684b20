"""Which tensors of a runtime's float file are which places of the torch network: by their values, up to the layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from distilledge.targets.base import FloatArray

SAME = 1e-3
"""Largest difference of two values of one tensor in two runtimes, relative to the tensor's largest."""


def matched(taps: Mapping[str, FloatArray], tensors: Mapping[str, FloatArray]) -> dict[str, str]:
    """Tensor -> the place whose values it has on the same pictures; tensors that are none are left out.

    ``taps``: place (or ``place/operation``) -> (N, ...), channels first. ``tensors``: of ``Target.tensors``, in any of
    the layouts. Of several places, such as before and behind a ReLU that never cuts, the nearest.
    """
    known = {place: (squeezed(value), float(np.linalg.norm(value))) for place, value in taps.items()}
    found = {}
    for name, value in tensors.items():
        norm = float(np.linalg.norm(value))
        near = [p for p, (tap, size) in known.items() if tap.size == value.size and abs(size - norm) <= SAME * norm]
        distances = {place: distance(known[place][0], value) for place in near}
        best = min(distances, key=lambda place: distances[place], default=None)
        if best is not None and distances[best] <= SAME:
            found[name] = best.partition("/")[0]
    return found


def distance(tap: FloatArray, value: FloatArray) -> float:
    """Largest difference in the best layout, relative to the largest value; infinite where the shapes differ."""
    same = [layout for layout in layouts(squeezed(value)) if layout.shape == tap.shape]
    scale = max(float(np.abs(tap).max()), 1e-12)
    return min((float(np.abs(layout - tap).max()) / scale for layout in same), default=float("inf"))


def layouts(value: FloatArray) -> Iterator[FloatArray]:
    yield value
    if value.ndim > 2:
        yield np.moveaxis(value, -1, 1)


def squeezed(value: FloatArray) -> FloatArray:
    """(N, ...) without axes of one element behind the first."""
    return value.reshape(len(value), *(n for n in value.shape[1:] if n > 1))
