"""``RUNGS``: from an exported fp32 student to compressed candidates, cheapest first, for any runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from torch import nn

from distilledge.pipeline.recipe_compress import RungName
from distilledge.targets.base import AnyDeployable, Inputs, Precision, Target
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.text import TextSpec, pad
from distilledge.targets.ranges import RANGES, Observed, Range, observe
from distilledge.targets.scheme import PLAIN, LayerError, Scheme

A = TypeVar("A")

BIAS_PICTURES = 64
"""Run at once for the bias correction."""
LAYER_ROWS = 32
"""Calibration pictures that the layers' errors are found on."""
ISLANDS = (2, 4, 8)
"""Numbers of the worst layers that are tried in float."""


class Attempt(NamedTuple):
    """One candidate before it is made."""

    rung: RungName
    source: Path
    """The fp32 file it is made from."""
    scheme: Scheme = PLAIN
    precision: Precision = "w8a8"


class Bench:
    """One student in one runtime, and what several rungs need of it, each made once and when it is first asked for."""

    def __init__(
        self, target: Target, model: nn.Module, fp32: Path, deployable: AnyDeployable, calibration: Sequence[Inputs]
    ) -> None:
        self.target, self.model, self.fp32, self.deployable = target, model, fp32, deployable
        self.calibration = calibration
        self._corrected: dict[tuple[int, ...], Path] = {}

    def make(self, attempt: Attempt, out: Path) -> tuple[Path, str]:
        """Write the candidate; returns it with its recipe in words."""
        static = attempt.precision == "w8a8"
        return self.target.compress(
            attempt.source,
            self.deployable,
            out,
            precision=attempt.precision,
            calibration=self.calibration if static else [],
            scheme=attempt.scheme,
        )

    @cached_property
    def seen(self) -> dict[str, Observed]:
        """The float tensors of the plain file on the calibration pictures."""
        return self.observed(self.fp32)

    def observed(self, fp32: Path) -> dict[str, Observed]:
        return observe(lambda rows: self.target.tensors(fp32, rows, optimise=False), self.fed)

    @cached_property
    def fed(self) -> list[Inputs]:
        """The calibration rows as the file takes them; of texts the shortest first, so that equal lengths follow."""
        if self.deployable.input_spec.get("kind") != "text":
            return list(self.calibration)
        spec = TextSpec.from_dict(self.deployable.input_spec)
        return sorted((pad(row[0], spec)[None] for row in self.calibration), key=len_of)

    @cached_property
    def layers(self) -> tuple[LayerError, ...]:
        """The plain file's layers, worst first."""
        rows = spread(self.fed, LAYER_ROWS)
        return self.target.layer_errors(self.fp32, self.deployable, calibration=self.calibration, rows=rows)

    def corrected(self, islands: tuple[int, ...] = ()) -> Path:
        """An fp32 file whose biases make up for int8 in all layers but ``islands``: to be quantised, not shipped."""
        if islands not in self._corrected:
            from distilledge.models.rounding import bias_corrected
            from distilledge.pipeline.inputs import normalise

            spec = InputSpec.from_dict(self.deployable.input_spec)
            pictures = normalise(np.concatenate(spread(self.calibration, BIAS_PICTURES)), spec)
            folder = self.fp32.parent / f"corrected-{len(self._corrected)}"
            folder.mkdir()
            model = bias_corrected(self.model, pictures, islands)
            self._corrected[islands] = self.target.export(model, self.deployable, folder)
        return self._corrected[islands]


def len_of(row: Inputs) -> int:
    return int(row.shape[1])


def spread(rows: Sequence[A], count: int) -> list[A]:
    """So many at even distances, or all."""
    many = min(count, len(rows))
    return [rows[i * len(rows) // many] for i in range(many)]


def estimated(seen: dict[str, Observed], name: str) -> dict[str, Range]:
    return {tensor: RANGES[name](found) for tensor, found in seen.items()}


def ptq(bench: Bench) -> Iterator[Attempt]:
    """Plain static int8 of the runtime."""
    yield Attempt("ptq", bench.fp32)


def ranges(bench: Bench) -> Iterator[Attempt]:
    """The same ranges in every runtime, found by us on the float tensors."""
    for name in list(RANGES)[1:]:
        yield Attempt("ranges", bench.fp32, Scheme(ranges=estimated(bench.seen, name), ranges_name=name))


def bias(bench: Bench) -> Iterator[Attempt]:
    """Biases corrected for the mean error of int8; OpenVINO's own layer-by-layer correction first; then with ranges."""
    if bench.target.NAME == "openvino":
        yield Attempt("bias", bench.fp32, Scheme(full_bias=True))
    source = bench.corrected()
    yield Attempt("bias", source, Scheme(own_bias=True))
    best = estimated(bench.observed(source), "MSE")
    yield Attempt("bias", source, Scheme(own_bias=True, ranges=best, ranges_name="MSE"))


def islands(bench: Bench) -> Iterator[Attempt]:
    """The worst layers in float, the biases of the others corrected.

    ONNX Runtime and LiteRT store the result of an int8 layer in int8: the layer before a worst one, in graph order, is
    float too, or its input would be rounded all the same. OpenVINO rounds at the input of each layer.
    """
    before = 0 if bench.target.NAME == "openvino" else 1
    for count in ISLANDS:
        worst = {error.place for error in bench.layers[:count]}
        places = tuple(sorted(worst | {place - before for place in worst if place >= before}))
        if len(places) >= len(bench.layers):
            return
        source = bench.corrected(places)
        names = bench.target.layer_names(source)
        if len(names) != len(bench.layers):  # the corrected graph is cut otherwise: the plain one is used
            source, names = bench.fp32, bench.target.layer_names(bench.fp32)
        scheme = Scheme(islands=tuple(names[i] for i in places), own_bias=source != bench.fp32)
        yield Attempt("islands", source, scheme)


def w8(bench: Bench) -> Iterator[Attempt]:
    """The honest fallback: a smaller file that computes in float."""
    yield Attempt("w8", bench.fp32, precision="w8")
    yield Attempt("w8", bench.fp32, precision="fp16")


RUNGS: dict[RungName, Callable[[Bench], Iterator[Attempt]]] = {
    "ptq": ptq,
    "ranges": ranges,
    "bias": bias,
    "islands": islands,
    "w8": w8,
}
"""Name in the recipe -> its candidates, made one at a time, cheapest first."""
