"""``TEXT_RUNGS``: the quantization ladder for texts, where dynamic int8 is a candidate beside static."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distilledge.pipeline.compress.ladder import RUNGS, Attempt, Bench, estimated
from distilledge.pipeline.recipe_compress import RungName
from distilledge.targets.base import Precision, RuntimeName
from distilledge.targets.scheme import Scheme

FASTEST_FIRST: dict[RuntimeName, tuple[Precision, ...]] = {
    "onnx": ("w8dyn", "w8a8"),
    "openvino": ("w8a8",),
    "tflite": ("w8dyn", "w8a8"),
}
"""Plain int8 of each runtime. OpenVINO's w8dyn is its w8 by another name: weights only, as fast as float or slower."""
SMOOTH = (0.5, -1.0)
"""SmoothQuant's alphas that are tried beside NNCF's own: the paper's, and none."""
ISLANDS = (1, 2, 4)
"""Numbers of the worst layers that are tried in float; often the head or the last feed-forward layer."""


def plain(bench: Bench) -> Iterator[Attempt]:
    """Dynamic int8 where the runtime has fast kernels for it, then static int8 of the layers with weights."""
    for precision in FASTEST_FIRST[bench.target.NAME]:
        yield Attempt("ptq", bench.fp32, precision=precision)


def ranges(bench: Bench) -> Iterator[Attempt]:
    """Static int8 with other ranges; in OpenVINO a zero point for activations, and other alphas of SmoothQuant.

    Not in LiteRT: its tensors are others for each length, and dynamic int8 has no ranges.
    """
    if bench.target.NAME == "openvino":
        for alpha in SMOOTH:
            yield Attempt("ranges", bench.fp32, Scheme(smooth=alpha))
        yield Attempt("ranges", bench.fp32, Scheme(asymmetric=True))
    if bench.target.NAME == "onnx":
        for name in ("percentile", "MSE"):
            yield Attempt("ranges", bench.fp32, Scheme(ranges=estimated(bench.seen, name), ranges_name=name))


def bias(bench: Bench) -> Iterator[Attempt]:
    """NNCF's layer-by-layer correction. Dynamic int8 has no mean error to speak of: its ranges fit each text."""
    if bench.target.NAME == "openvino":
        yield Attempt("bias", bench.fp32, Scheme(full_bias=True))


def islands(bench: Bench) -> Iterator[Attempt]:
    """The worst layers in float, in the runtime's fastest int8."""
    names = bench.target.layer_names(bench.fp32)
    for count in ISLANDS:
        if count >= len(bench.layers):
            return
        places = sorted(error.place for error in bench.layers[:count])
        scheme = Scheme(islands=tuple(names[place] for place in places))
        yield Attempt("islands", bench.fp32, scheme, FASTEST_FIRST[bench.target.NAME][0])


TEXT_RUNGS: dict[RungName, Callable[[Bench], Iterator[Attempt]]] = {
    "ptq": plain,
    "ranges": ranges,
    "bias": bias,
    "islands": islands,
    "w8": RUNGS["w8"],
}
"""As ``RUNGS``; a rung of the recipe that is not here has no meaning for texts and is passed over."""
