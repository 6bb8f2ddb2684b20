"""TFLite: which operations the delegates took, from the interpreter that is also timed; times from LiteRT's profiler.

A delegate replaces operations by a DELEGATE node with the tensors it takes and gives. What lies between them is found
by walking back from what it gives. The times are of another object of the same library (``litert_profile.py``), so they
are taken only where it leaves the same operations to the built-in kernels. tflite-runtime has no profiler.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if __package__:
    from distilledge.targets.ondevice import units
    from distilledge.targets.ondevice.layers import Layer, Profile, typical
else:
    import units  # type: ignore[import-not-found,no-redef]
    from layers import Layer, Profile, typical  # type: ignore[import-not-found,no-redef]

DELEGATE = "DELEGATE"
BOUNDARIES = frozenset({"QUANTIZE", "DEQUANTIZE"})
DELEGATED = "Delegate/"
CONVERT = "Convert ("
"""Of the profiler: XNNPACK's own operations, and among them those that quantize or dequantize."""
LAYOUT = re.compile(r"\(([^)]*)\)")
NUMBER = re.compile(r"^Q?[A-Z]*[FUSCDI]\d+W?$")
"""A precision among an operation's attributes, such as F32, QS8 or QC8W."""
MODES = {True: "0", False: "2"}
"""With XNNPACK or without -> the profiler's mode."""
PROGRAM = Path(__file__).with_name("litert_profile.py")
EXTRA_SECONDS = 120.0
"""For the profiler's process to load and to summarise, beyond the time it may run."""


class Plan(NamedTuple):
    """Operations of the main graph, in the file's order."""

    operations: tuple[dict[str, Any], ...]
    units: tuple[str, ...]
    """Of each operation."""
    partitions: int
    constant: frozenset[int]
    """Operations that work on constants only: they run once, as the file is loaded."""


def profile_tflite(tflite: Any, path: str, threads: int, on: units.Units, most: tuple[int, float]) -> Profile:
    """``most``: runs and seconds."""
    plan = _plan(tflite, path, threads, on)
    counted = Counter(unit for i, unit in enumerate(plan.units) if i not in plan.constant)
    untimed, timed = "", None
    if not tflite.__name__.startswith("ai_edge_litert"):
        untimed = "tflite-runtime has no profiler"
    elif "delegate" in on.names:
        untimed = "LiteRT's profiler does not run other delegates"
    else:
        timed, untimed = _timed(path, threads, on, most)
    if timed is not None:
        layers, untimed = _layers(plan, timed)
        if not untimed:
            return Profile(layers, dict(counted), plan.partitions, timed["runs"])
    return Profile(_untimed_layers(plan), dict(counted), plan.partitions, 0, untimed)


def _plan(tflite: Any, path: str, threads: int, on: units.Units) -> Plan:
    interpreter = _allocated(tflite, path, threads, on)
    nodes = interpreter._get_ops_details()  # its only way to name the operations
    operations = tuple(node for node in nodes if node["op_name"] != DELEGATE)
    delegates = [node for node in nodes if node["op_name"] == DELEGATE]
    first = len(delegates)
    if on.names[:1] == ("delegate",) and "xnnpack" in on.names:  # the vendor's come before those of XNNPACK
        alone = _allocated(tflite, path, threads, on._replace(names=("delegate",)))
        first = sum(1 for node in alone._get_ops_details() if node["op_name"] == DELEGATE)
    places = ["builtin"] * len(operations)
    for number, node in enumerate(delegates):
        unit = "delegate" if "delegate" in on.names and number < first else "xnnpack"
        for index in _inside(node, operations):
            places[index] = unit
    given = {int(detail["index"]) for detail in interpreter.get_input_details()}
    return Plan(
        operations,
        tuple(places),
        len(delegates) if delegates else int(on.names == ("builtin",)),
        _constant(operations, given),
    )


def _allocated(tflite: Any, path: str, threads: int, on: units.Units) -> Any:
    interpreter = units.interpreter(tflite, path, threads, on)
    interpreter.allocate_tensors()  # default delegates are applied here
    return interpreter


def _inside(node: dict[str, Any], operations: Sequence[dict[str, Any]]) -> set[int]:
    """Positions of the operations that a DELEGATE node stands for."""
    makers = {int(out): i for i, operation in enumerate(operations) for out in operation["outputs"]}
    outside = {int(tensor) for tensor in node["inputs"]}
    found: set[int] = set()
    waiting = [int(tensor) for tensor in node["outputs"]]
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is not None and maker not in found:
            found.add(maker)
            waiting += [int(t) for t in operations[maker]["inputs"] if int(t) not in outside]
    return found


def _constant(operations: Sequence[dict[str, Any]], given: set[int]) -> frozenset[int]:
    """Positions of operations that see nothing of the graph's inputs."""
    live, constant = set(given), set()
    for index, operation in enumerate(operations):
        if any(int(tensor) in live for tensor in operation["inputs"]):
            live.update(int(tensor) for tensor in operation["outputs"])
        else:
            constant.add(index)
    return frozenset(constant)


def _timed(path: str, threads: int, on: units.Units, most: tuple[int, float]) -> tuple[dict[str, Any] | None, str]:
    """What the profiler's process prints, or why there is nothing: the interface differs between versions."""
    command = [sys.executable, str(PROGRAM), path, str(threads), MODES["xnnpack" in on.names], *map(str, most)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=most[1] + EXTRA_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None, "LiteRT's profiler took too long"
    if done.returncode != 0 or not done.stdout.startswith("{"):
        last = (done.stderr.strip().splitlines() or [""])[-1][:200]
        return None, f"LiteRT's profiler failed (exit code {done.returncode}): {last}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found, "" if found["rows"] else "LiteRT's profiler saw no operation"


def _layers(plan: Plan, timed: dict[str, Any]) -> tuple[tuple[Layer, ...], str]:
    """Layers as they ran; or why their times are not of this plan."""
    columns = np.asarray(timed["microseconds"], np.float64)  # (batches of runs, operations)
    builtin = {index for kind, index, _ in timed["rows"] if not kind.startswith(DELEGATED)}
    there = {int(plan.operations[i]["index"]) for i, unit in enumerate(plan.units) if unit == "builtin"}
    never = {int(plan.operations[i]["index"]) for i in plan.constant}
    if builtin - never != there - never:
        return (), "LiteRT's compiled model places other operations than its interpreter"
    position = {int(operation["index"]): i for i, operation in enumerate(plan.operations)}
    layers, partition, last = [], 0, -1
    for column, (kind, index, calls) in enumerate(timed["rows"]):
        microseconds = typical(columns[:, column].tolist())
        if kind.startswith(DELEGATED):
            partition += index <= last or last < 0
            last = index
            place = f"{partition}.{index}" if calls == 1 else f"{index} of {calls} partitions"
            layers.append(_delegated(kind.removeprefix(DELEGATED), place, microseconds)._replace(calls=calls))
        else:
            last = -1
            if index not in never:
                layers.append(_builtin(plan.operations[position[index]], kind, microseconds))
    return tuple(layers), ""


def _delegated(kind: str, place: str, microseconds: float) -> Layer:
    """``place``: partition and operation in it, since XNNPACK does not keep the file's names."""
    attributes = [part.strip() for found in LAYOUT.findall(kind) for part in found.split(",")]
    precision = " ".join(part.lower() for part in attributes if NUMBER.match(part))
    return Layer(f"xnnpack {place}", kind, "xnnpack", precision, microseconds, kind.startswith(CONVERT))


def _builtin(operation: dict[str, Any], kind: str, microseconds: float | None, unit: str = "builtin") -> Layer:
    sorts = [np.dtype(sort) for sort in operation.get("result_types", [])[:1]]
    precision = f"{'i' if sorts[0].kind == 'i' else sorts[0].kind}{8 * sorts[0].itemsize}" if sorts else ""
    return Layer(f"{kind} {operation['index']}", kind, unit, precision, microseconds, kind in BOUNDARIES)


def _untimed_layers(plan: Plan) -> tuple[Layer, ...]:
    pairs = zip(plan.operations, plan.units, strict=True)
    return tuple(
        _builtin(operation, operation["op_name"], None, unit)
        for i, (operation, unit) in enumerate(pairs)
        if i not in plan.constant
    )
