"""``RUNGS``: from an exported fp32 student to compressed candidates, cheapest first, for any runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor, nn

from distilledge.models.equalise import By
from distilledge.pipeline.compress.calibration import half_shift
from distilledge.pipeline.compress.retrained import Retrained
from distilledge.pipeline.recipe_compress import RungName
from distilledge.targets.base import STATIC, AnyDeployable, Inputs, Precision, Target
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.text import TextSpec, pad
from distilledge.targets.ranges import RANGES, Observed, Range, observe
from distilledge.targets.samples import reader
from distilledge.targets.scheme import PLAIN, LayerError, Scheme

A = TypeVar("A")

BIAS_PICTURES = 64
"""Run at once for the bias correction."""
LAYER_ROWS = 32
"""Calibration pictures that the layers' errors are found on."""
MATCHED_ON = 4
"""Pictures by which tensors of a file are told."""
ISLANDS = (2, 4, 8)
"""Numbers of the worst layers that are tried in float."""
UNSTABLE = 0.25
"""Median |log2| of the ratio of the ranges of two halves from which other numbers of pictures are tried: a fifth."""
FEWER, MOST_PICTURES = (32, 128), 512
AFTER_SURGERY = "torch after surgery"
EQUALISED_BY: tuple[By, ...] = ("activations", "weights")


class Attempt(NamedTuple):
    """One candidate before it is made."""

    rung: RungName
    source: Path
    """The fp32 file it is made from."""
    scheme: Scheme = PLAIN
    precision: Precision = "w8a8"
    pictures: int | None = None
    """Calibration pictures; None: the recipe's."""
    twin: nn.Module | None = None
    """The torch network that the file is to answer as, where that is not the student."""
    of: str = ""
    """What that is."""


Ask = Callable[[str], tuple[Retrained, Path]]
"""Name of a step that trains for a rung -> its result and where that lies; trained now, if it was not before."""


class Bench:
    """One student in one runtime, and what several rungs need of it, each made once and when it is first asked for."""

    def __init__(
        self,
        target: Target,
        model: nn.Module,
        fp32: Path,
        deployable: AnyDeployable,
        calibration: Sequence[Inputs],
        more: Sequence[str] = (),
        *,
        ask: Ask | None = None,
    ) -> None:
        self.target, self.model, self.fp32, self.deployable = target, model, fp32, deployable
        self.calibration, self.more, self.ask = calibration, more, ask
        self.notes: list[str] = []
        """On rungs that made no file."""
        self._corrected: dict[tuple[int, ...], Path] = {}

    def make(self, attempt: Attempt, out: Path) -> tuple[Path, str]:
        """Write the candidate; returns it with its recipe in words."""
        return self.target.compress(
            attempt.source,
            self.deployable,
            out,
            precision=attempt.precision,
            calibration=self.chosen(attempt.pictures) if attempt.precision in STATIC else [],
            scheme=attempt.scheme,
        )

    def chosen(self, pictures: int | None) -> Sequence[Inputs]:
        """So many calibration pictures; where there are not enough, of all of the training split."""
        if pictures is None or pictures <= len(self.calibration):
            return self.calibration if pictures is None else spread(self.calibration, pictures)
        read = reader(self.deployable.input_spec, self.fp32.parent)
        return [read(row)[None] for row in spread(self.more, pictures)]

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

            self._corrected[islands] = self.exported(bias_corrected(self.model, self.pictures, islands))
        return self._corrected[islands]

    def equalised(self, by: By) -> Path | None:
        """An fp32 file with channels equalised across layers, then biases corrected; None where no layers pair up."""
        from distilledge.models.equalise import equalised
        from distilledge.models.rounding import bias_corrected

        model, pairs = equalised(self.model, self.pictures, by=by)
        return self.exported(bias_corrected(model, self.pictures)) if pairs else None

    @cached_property
    def pictures(self) -> Tensor:
        """(N, 3, H, W) float, at most ``BIAS_PICTURES`` of the calibration set."""
        from distilledge.pipeline.inputs import normalise

        spec = InputSpec.from_dict(self.deployable.input_spec)
        return normalise(np.concatenate(spread(self.calibration, BIAS_PICTURES)), spec)

    def exported(self, model: nn.Module) -> Path:
        folder = Path(mkdtemp(prefix="changed-", dir=self.fp32.parent))
        return self.target.export(model, self.deployable, folder)


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
    if bench.target.NAME == "openvino":  # its own are symmetric, which wastes half of the steps behind a hard-swish
        yield Attempt("ranges", bench.fp32, Scheme(ranges=estimated(bench.seen, "MSE"), ranges_name="MSE", whole=True))


def calibration(bench: Bench) -> Iterator[Attempt]:
    """Fewer pictures, whose outliers do not widen the ranges, and more; only where two halves of them disagree."""
    shifts = [shift for found in bench.seen.values() if (shift := half_shift(found)) is not None]
    if not shifts or float(np.median(shifts)) < UNSTABLE:
        return
    most = min(len(bench.more), MOST_PICTURES)
    for pictures in sorted({*(n for n in FEWER if n < len(bench.calibration)), max(most, len(bench.calibration))}):
        if pictures != len(bench.calibration):
            yield Attempt("calibration", bench.fp32, pictures=pictures)


def equalise(bench: Bench) -> Iterator[Attempt]:
    """Channels equalised across layers, then biases corrected; first by what is most of the error."""
    for by in EQUALISED_BY:
        source = bench.equalised(by)
        if source is not None:
            yield Attempt("equalise", source, Scheme(own_bias=True, equalised=by))


def w8a16(bench: Bench) -> Iterator[Attempt]:
    """Activations in 16 bits, where the runtime has them: more exact, and seldom as fast."""
    if "w8a16" in bench.target.PRECISIONS:
        yield Attempt("w8a16", bench.fp32, precision="w8a16")


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


def qat(bench: Bench) -> Iterator[Attempt]:
    """The student trained on in fake int8, with its ranges wherever the runtime stores one of its tensors."""
    from distilledge.models.rounding import folded
    from distilledge.pipeline.compress.places import matched
    from distilledge.pipeline.compress.qat import rebuilt
    from distilledge.pipeline.inputs import normalise

    assert bench.ask is not None
    found, directory = bench.ask("qat")
    if found.checkpoint is None:
        bench.notes.append(f"qat made no file: {found.stopped}")
        return
    model, network = rebuilt(found, directory)
    few = np.concatenate(spread(bench.calibration, MATCHED_ON))
    pictures = normalise(few, InputSpec.from_dict(bench.deployable.input_spec))
    folder = bench.fp32.parent / "qat"
    folder.mkdir()
    source = bench.target.export(folded(model, pictures[:1]), bench.deployable, folder)
    taps = {place: tap.numpy() for place, tap in network.taps(pictures, passed=True).items()}
    places = matched(taps, bench.target.tensors(source, few, optimise=False))
    learnt = {tensor: found.ranges[place] for tensor, place in places.items()}
    ends = estimated(bench.observed(source), "MSE") | learnt
    scheme = Scheme(ranges=ends, ranges_name="trained", whole=True, own_bias=True)
    yield Attempt("qat", source, scheme, twin=network, of="torch fake int8")


def surgery(bench: Bench) -> Iterator[Attempt]:
    """The student without what int8 bears badly, distilled again: plain static int8, then with corrected biases."""
    from distilledge.models.rounding import bias_corrected
    from distilledge.pipeline import checkpoint as checkpoints

    assert bench.ask is not None
    found, directory = bench.ask("surgery")
    if found.checkpoint is None:
        bench.notes.append(f"surgery made no file: {found.stopped}")
        return
    model = checkpoints.load(found.checkpoint, directory)
    yield Attempt("surgery", bench.exported(model), twin=model, of=AFTER_SURGERY)
    corrected = bench.exported(bias_corrected(model, bench.pictures))
    yield Attempt("surgery", corrected, Scheme(own_bias=True), twin=model, of=AFTER_SURGERY)


def w8(bench: Bench) -> Iterator[Attempt]:
    """The honest fallback: a smaller file that computes in float."""
    yield Attempt("w8", bench.fp32, precision="w8")
    yield Attempt("w8", bench.fp32, precision="fp16")


RUNGS: dict[RungName, Callable[[Bench], Iterator[Attempt]]] = {
    "ptq": ptq,
    "calibration": calibration,
    "ranges": ranges,
    "equalise": equalise,
    "bias": bias,
    "islands": islands,
    "qat": qat,
    "surgery": surgery,
    "w8a16": w8a16,
    "w8": w8,
}
"""Name in the recipe -> its candidates, made one at a time, cheapest first."""
