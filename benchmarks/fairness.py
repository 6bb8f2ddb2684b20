"""Does the tool see that something else runs? One model measured alone and beside three busy loops.

    python benchmarks/fairness.py --model student.onnx

Bars: beside the loops the measurement is flagged and its comparison refused; alone it is not. Run it while idle.
Without ``--model`` a network of the zoo with random weights is exported first.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import replicability

from distilledge.targets.base import Measurement
from distilledge.targets.fairness import not_compared, undisturbed
from distilledge.targets.measure import p50

LOOPS = 3


def main() -> None:
    options = replicability.parsed(__doc__ or "")
    with TemporaryDirectory() as folder:
        group = replicability.candidates(options.model, Path(folder))
        rows, refused = [], {}
        for state, loops in (("alone", 0), ("beside busy loops", LOOPS)):
            with busy(loops):
                measured = replicability.measured(group, Path(folder), quick=options.quick)
            refused[state] = refusal(measured)
            rows += [row(state, m, refused[state]) for m in measured]
    bars = [
        common.bar("alone: comparisons refused", float(bool(refused["alone"])), 0.0),
        common.bar("beside busy loops: refused", float(bool(refused["beside busy loops"])), 1.0, at_most=False),
    ]
    facts = common.conditions(quick=options.quick, packages=("onnxruntime",), extra={"loops": LOOPS})
    common.finish("fairness", facts, rows, bars, out=options.out)


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many processes that do nothing but turn, all of them begun."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        begun = [context.Event() for _ in range(loops)]
        for one in begun:
            process = context.Process(target=turn, args=(one,), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
        for one in begun:
            one.wait()
        yield


def turn(begun: Event) -> None:
    begun.set()
    while True:
        pass


def refusal(measured: tuple[Measurement, ...]) -> str:
    """The flags for which the gate decides nothing by these figures."""
    return " ".join(dict.fromkeys(flag for m in measured for flag in not_compared(m.flags)))


def row(state: str, m: Measurement, refused: str) -> common.Row:
    wall = sum(launch.wall_ns for launch in m.launches)
    quiet = undisturbed(m.launches)
    return {
        "state": state,
        "file": m.name,
        "p50_ms": p50(m) / 1e6,
        "undisturbed_p50_ms": statistics.median(quiet) / 1e6 if quiet else None,
        "undisturbed": len(quiet) if quiet is not None else None,
        "cpu_share": sum(launch.cpu_ns or 0 for launch in m.launches) / wall,
        "flags": " ".join(m.flags),
        "compared": not refused,
    }


if __name__ == "__main__":
    main()
