"""The runtimes' own timing programs: how each is asked, and what its words come to.

Formats, read from the programs' sources: TFLite's ``benchmark_model`` (tflite/tools/benchmark/benchmark_model.cc, and
tsl's stats_calculator.h), ONNX Runtime's ``onnxruntime_perf_test`` (test/perftest/performance_runner.cc) and OpenVINO's
``benchmark_app`` (samples/cpp/benchmark_app/main.cpp). Only the second gives each sample; none are made up for others.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from distilledge.models.base import Value


class Job(NamedTuple):
    model: str
    """A path on the device."""
    threads: int
    runs: int
    warmup: int
    result: str
    """A path on the device that the program may write."""


class Summary(Value):
    """What a program says of all timed inferences, nanoseconds; None: it does not say."""

    count: int
    mean_ns: float
    min_ns: float
    max_ns: float
    median_ns: float | None = None
    std_ns: float | None = None


class Figures(Value):
    load_ns: int | None
    first_inference_ns: int | None
    latency_ns: tuple[int, ...]
    """Empty where the program gives a summary only."""
    summary: Summary
    peak_rss_bytes: int | None = None


class Program(NamedTuple):
    arguments: Callable[[Job], list[str]]
    read: Callable[[str, str, Job], Figures]
    """Of what it printed and what it wrote. Raises ValueError."""


def tflite_arguments(job: Job) -> list[str]:
    runs = [f"--num_runs={job.runs}", "--min_secs=0", f"--warmup_runs={job.warmup}", "--warmup_min_secs=0"]
    return [f"--graph={job.model}", f"--num_threads={job.threads}", *runs, "--max_secs=3600"]


def tflite_figures(printed: str, _result: str, _job: Job) -> Figures:
    """Microseconds. ``first``, ``min`` ... are left out where all samples are equal. Peak memory is not asked for: the
    thread that watches it would disturb.
    """
    found = [dict(re.findall(r"(\w+)=([-+.\deE]+)", line)) for line in printed.splitlines() if "count=" in line]
    if not found or int(found[-1]["count"]) == 0:
        raise ValueError("no line with count=")
    fields = {key: float(value) for key, value in found[-1].items()}
    only = fields.get("curr", 0.0)
    init = re.search(r"Init: ([\d.eE+]+)", printed)
    first = re.search(r"First inference: ([\d.eE+]+)", printed)
    median = fields.get("median", fields.get("p50"))
    return Figures(
        load_ns=None if init is None else round(float(init.group(1)) * 1000),
        first_inference_ns=None if first is None else round(float(first.group(1)) * 1000),
        latency_ns=(),
        summary=Summary(
            count=int(fields["count"]),
            mean_ns=fields.get("avg", only) * 1000,
            min_ns=fields.get("min", only) * 1000,
            max_ns=fields.get("max", only) * 1000,
            median_ns=None if median is None else median * 1000,
            std_ns=fields.get("std", 0.0) * 1000,
        ),
    )


def onnx_arguments(job: Job) -> list[str]:
    """``-I``: inputs are made up, ``-Z``: threads do not spin between inferences."""
    runs = ["-m", "times", "-r", str(job.runs + job.warmup)]
    return ["-e", "cpu", *runs, "-x", str(job.threads), "-y", "1", "-I", "-Z", job.model, job.result]


def onnx_figures(printed: str, result: str, job: Job) -> Figures:
    """Of the file, one row each: name, seconds, peak bytes, CPU share, number; in later versions the seconds until the
    work was handed over and those until it was done. It knows one warm-up: ours are its first rows.
    """
    rows = [line.split(",") for line in result.splitlines() if line.count(",") in (4, 5)]
    seconds = [float(row[-4]) for row in rows][job.warmup :]
    if not seconds:
        raise ValueError("no row of a sample in its result file")
    load = re.search(r"Session creation time cost: ?([\d.eE+-]+) s", printed)
    first = re.search(r"First inference time cost: ?([\d.eE+-]+) ms", printed)
    peak = re.search(r"Peak working set size: ?(\d+)", printed)
    latency_ns = tuple(round(s * 1e9) for s in seconds)
    return Figures(
        load_ns=None if load is None else round(float(load.group(1)) * 1e9),
        first_inference_ns=None if first is None else round(float(first.group(1)) * 1e6),
        latency_ns=latency_ns,
        summary=summary(latency_ns),
        peak_rss_bytes=int(peak.group(1)) if peak else None,
    )


def summary(latency_ns: Sequence[int]) -> Summary:
    return Summary(
        count=len(latency_ns),
        mean_ns=statistics.fmean(latency_ns),
        min_ns=min(latency_ns),
        max_ns=max(latency_ns),
        median_ns=statistics.median(latency_ns),
        std_ns=statistics.pstdev(latency_ns),
    )


def openvino_arguments(job: Job) -> list[str]:
    """One stream, as elsewhere; it knows one warm-up only, its first inference."""
    fine = ["-hint", "none", "-nstreams", "1", "-nthreads", str(job.threads), "-infer_precision", "f32"]
    return ["-m", job.model, "-d", "CPU", "-api", "sync", "-niter", str(job.runs), *fine]


def openvino_figures(printed: str, _result: str, _job: Job) -> Figures:
    """Times in ms, or us where they are short."""
    count = re.search(r"Count: +(\d+) iterations", printed)
    named = {name.lower(): _time(printed, rf"{name}: +") for name in ("Median", "Average", "Min", "Max")}
    read, compiled = _time(printed, "Read model took "), _time(printed, "Compile model took ")
    first = _time(printed, "First inference took ")
    if count is None or named["average"] is None or named["min"] is None or named["max"] is None:
        raise ValueError("no Count or no Latency")
    return Figures(
        load_ns=None if compiled is None else round(compiled + (read or 0.0)),
        first_inference_ns=None if first is None else round(first),
        latency_ns=(),
        summary=Summary(
            count=int(count.group(1)),
            mean_ns=named["average"],
            min_ns=named["min"],
            max_ns=named["max"],
            median_ns=named["median"],
        ),
    )


def _time(printed: str, before: str) -> float | None:
    found = re.search(rf"{before}([\d.]+) (ms|us)", printed)
    return None if found is None else float(found.group(1)) * {"ms": 1e6, "us": 1e3}[found.group(2)]


PROGRAMS: dict[str, Program] = {
    "tflite": Program(tflite_arguments, tflite_figures),
    "onnx": Program(onnx_arguments, onnx_figures),
    "openvino": Program(openvino_arguments, openvino_figures),
}
"""By runtime."""
