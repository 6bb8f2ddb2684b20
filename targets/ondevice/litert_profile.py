"""Times of every operation of a TFLite file, by LiteRT's own profiler. A program: it prints one JSON object.

``python litert_profile.py FILE THREADS MODE RUNS SECONDS``; ``MODE``: 0 with XNNPACK, 2 built-in kernels alone.

The Python package has no call for the profiler; its library has (the C interface of LiteRT: litert_profiler.h,
litert_compiled_model.h, litert_options.h), from 2.3 on as it is called here. Whatever of this another version does
otherwise ends this process, not the one that asked. The library sums over all runs of a compiled model: so the runs are
spread over several of them, and one that something else disturbed can be told from the others.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

CPU = 1
RANKED_BYTES, DIMENSIONS_AT, MOST_DIMENSIONS = 256, 8, 8
"""Of a LiteRtRankedTensorType, which has 72 bytes: int32 element, int32 rank, int32 dimensions[8], strides."""
INTEGERS = {2: ctypes.c_int32, 4: ctypes.c_int64}
"""LiteRtElementType -> what ones are written as; others are fed zeros."""
LOCK_FOR_WRITING = 1
ROW = re.compile(r"^\s*(.+?)\s+[\d.]+\s+[\d.]+\s+([\d.]+)\s+[\d.]+%\s+[\d.]+%\s+[-\d.]+\s+(\d+)\s+\[.*\]:(\d+)\s*$")
"""Of the summary: type, ms on average, times called, index of the operation."""
WARMUP, BATCHES = 1, 10
Pointer = ctypes.c_void_p


class Library:
    """Calls by name; a status other than 0 is an error. Keeps alive what the library only points to."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("ai_edge_litert")
        if spec is None or not spec.submodule_search_locations:
            raise OSError("no ai_edge_litert")
        self._calls: Any = ctypes.CDLL(str(Path(next(iter(spec.submodule_search_locations))) / "libLiteRt.so"))
        self.kept: list[object] = []

    def call(self, name: str, *arguments: object) -> None:
        function = getattr(self._calls, name)
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status:
            raise OSError(f"{name}: status {status}")

    def made(self, name: str, *arguments: object) -> Pointer:
        """What a call returns through its last argument."""
        result = Pointer()
        self.call(name, *arguments, ctypes.byref(result))
        return result

    def number(self, name: str, *arguments: object) -> int:
        result = ctypes.c_size_t()
        self.call(name, *arguments, ctypes.byref(result))
        return result.value


class Compiled:
    """A compiled model with its profiler, and buffers for its first signature."""

    def __init__(self, library: Library, path: str, threads: int, mode: int) -> None:
        self._library = library
        self._environment = library.made("LiteRtCreateEnvironment", 0, None)
        model = library.made("LiteRtCreateModelFromFile", self._environment, path.encode())
        options = library.made("LiteRtCreateOptions")
        library.call("LiteRtSetOptionsHardwareAccelerators", options, CPU)
        self._add(options, b"runtime_options_string", "enable_profiling = true\n")
        self._add(options, b"xnnpack", f"num_threads = {threads}\nkernel_mode = {mode}\n")
        self._model = library.made("LiteRtCreateCompiledModel", self._environment, model, options)
        self.profiler = library.made("LiteRtCompiledModelGetProfiler", self._model)
        self._signature = library.made("LiteRtGetModelSignature", model, ctypes.c_size_t(0))
        self._inputs, self._outputs = self._buffers("Input"), self._buffers("Output")

    def _add(self, options: Pointer, name: bytes, toml: str) -> None:
        """Options travel as TOML; the library reads them now and lets go of them through ``freed``."""
        payload = ctypes.create_string_buffer(toml.encode())
        freed = ctypes.CFUNCTYPE(None, Pointer)(lambda _: None)
        self._library.kept += [payload, freed, name]
        made = self._library.made("LiteRtCreateOpaqueOptions", name, ctypes.cast(payload, Pointer), freed)
        self._library.call("LiteRtAddOpaqueOptions", options, made)

    def _buffers(self, side: str) -> Any:
        library, made = self._library, []
        for index in range(library.number(f"LiteRtGetNumSignature{side}s", self._signature)):
            at = ctypes.c_size_t(index)
            tensor = library.made(f"LiteRtGetSignature{side}TensorByIndex", self._signature, at)
            ranked = ctypes.create_string_buffer(RANKED_BYTES)
            library.call("LiteRtGetRankedTensorType", tensor, ranked)
            dimensions = (ctypes.c_int32 * MOST_DIMENSIONS).from_buffer(ranked, DIMENSIONS_AT)
            dimensions[:] = [1 if size < 0 else size for size in dimensions]  # a batch of any size
            needs = library.made(f"LiteRtGetCompiledModel{side}BufferRequirements", self._model, ctypes.c_size_t(0), at)
            name = "LiteRtCreateManagedTensorBufferFromRequirements"
            buffer = library.made(name, self._environment, ranked, needs)
            if side == "Input":
                self._fill(buffer, int.from_bytes(ranked.raw[:4], sys.byteorder))
            made.append(buffer)
        return (Pointer * len(made))(*made)

    def _fill(self, buffer: Pointer, element: int) -> None:
        library, address = self._library, Pointer()
        size = library.number("LiteRtGetTensorBufferPackedSize", buffer)
        library.call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), LOCK_FOR_WRITING)
        ctypes.memset(address, 0, size)
        if element in INTEGERS:
            count = size // ctypes.sizeof(INTEGERS[element])
            (INTEGERS[element] * count).from_address(address.value or 0)[:] = [1] * count
        library.call("LiteRtUnlockTensorBuffer", buffer)

    def run(self) -> None:
        counts = ctypes.c_size_t(len(self._inputs)), ctypes.c_size_t(len(self._outputs))
        name = "LiteRtRunCompiledModel"
        self._library.call(name, self._model, ctypes.c_size_t(0), counts[0], self._inputs, counts[1], self._outputs)

    def profiled(self, runs: int, seconds: float) -> tuple[list[tuple[str, int, float, int]], int]:
        """(type, index, mean microseconds, calls) of one run, in the order in which they ran; of how many runs."""
        for _ in range(WARMUP):
            self.run()
        done, end = 0, time.monotonic() + seconds
        self._library.call("LiteRtStartProfiler", self.profiler)
        while not done or (done < runs and time.monotonic() < end):
            self.run()
            done += 1
        self._library.call("LiteRtStopProfiler", self.profiler)
        text = ctypes.c_char_p()
        self._library.call("LiteRtGetProfileSummary", self.profiler, self._model, ctypes.byref(text))
        found = rows((text.value or b"").decode("utf-8", "replace"))
        self._library.call("LiteRtDestroyCompiledModel", self._model)
        return [(kind, index, total / done, calls // done) for kind, index, total, calls in found], done


def rows(summary: str) -> list[tuple[str, int, float, int]]:
    """(type, index, microseconds of all calls, calls) in the first table of a summary, which is in the run's order.

    Operations of the same type and index in several partitions are one row, called several times.
    """
    found = []
    for line in summary.partition("Top by Computation Time")[0].splitlines():
        if row := ROW.match(line):
            found.append((row[1], int(row[4]), round(float(row[2]) * 1000 * int(row[3]), 3), int(row[3])))
    return found


def main(path: str, threads: int, mode: int, runs: int, seconds: float) -> None:
    library = Library()
    found: list[list[tuple[str, int, float, int]]] = []
    counts, end = 0, time.monotonic() + seconds
    while not found or (len(found) < BATCHES and time.monotonic() < end):
        batch, done = Compiled(library, path, threads, mode).profiled(max(1, runs // BATCHES), seconds / BATCHES)
        found.append(batch)
        counts += done
    kinds = [[kind, index, calls] for kind, index, _, calls in found[0]]
    same = [batch for batch in found if [[kind, index, calls] for kind, index, _, calls in batch] == kinds]
    times = [[us for _, _, us, _ in batch] for batch in same]
    sys.stdout.write(json.dumps({"rows": kinds, "microseconds": times, "runs": counts}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
