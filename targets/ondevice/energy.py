"""Energy counters of a device, read while it idles and while it infers. Standard library only.

Looked for in this order: RAPL (Intel, AMD; root only since Linux 5.10), INA219, INA3221 and their kin under hwmon,
the PMIC of a Raspberry Pi 5 (``vcgencmd pmic_read_adc``), an Android or laptop battery that discharges. Every reader
takes the root of the file system, so that tests can play one.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from glob import glob
from itertools import cycle
from typing import Any, NamedTuple

if __package__:
    from distilledge.targets.ondevice.facts import number, read
else:
    from facts import number, read  # type: ignore[import-not-found,no-redef]

Message = dict[str, Any]
INA = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina238", "ina3221")
WHOLE = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")
"""Labels of a Jetson's rail that feeds all others."""
RAIL = re.compile(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([\d.]+)[AV]")
SAMPLE_SECONDS = 0.02


class Source(NamedTuple):
    """``kind``: ``joules`` (since the first reading) or ``watts`` (now)."""

    name: str
    kind: str
    read: Callable[[], float | None]


def find(root: str = "/", vcgencmd: Sequence[str] = ("vcgencmd", "pmic_read_adc")) -> tuple[Source | None, str]:
    """The first counter that can be read, or None and why."""
    reasons = []
    for look in (rapl, ina, lambda root: pmic(root, vcgencmd), battery):
        found, reason = look(root)
        if found is not None:
            return found, ""
        reasons.append(reason)
    return None, "; ".join(reasons)


def rapl(root: str) -> tuple[Source | None, str]:
    """Packages only: the zones within them are parts, ``psys`` holds them again."""
    zones = sorted(glob(os.path.join(root, "sys/class/powercap/intel-rapl:*")))
    packages = [z for z in zones if (read(f"{z}/name") or "").startswith("package")]
    if not packages:
        return None, "no RAPL"
    if any(number(f"{z}/energy_uj") is None for z in packages):
        return None, "RAPL: energy_uj cannot be read (root only)"
    return Source("RAPL " + " ".join(read(f"{z}/name") or "" for z in packages), "joules", Wrapping(packages)), ""


class Wrapping:
    """The sum of microjoule counters that begin again behind ``max_energy_range_uj``, in joules."""

    def __init__(self, zones: Sequence[str]) -> None:
        self._zones = {zone: number(f"{zone}/max_energy_range_uj") or 0 for zone in zones}
        self._last = {zone: number(f"{zone}/energy_uj") or 0 for zone in zones}
        self._total = 0

    def __call__(self) -> float | None:
        for zone, size in self._zones.items():
            value = number(f"{zone}/energy_uj")
            if value is None:
                return None
            step = value - self._last[zone]
            self._total += step + size if step < 0 else step
            self._last[zone] = value
        return self._total / 1e6


def ina(root: str) -> tuple[Source | None, str]:
    """Microwatts of ``power*_input``, or milliamperes times millivolts; of a Jetson the rail that feeds the others."""
    chips = sorted(glob(os.path.join(root, "sys/class/hwmon/hwmon*")))
    found = [c for c in chips if (read(f"{c}/name") or "").split("-")[0] in INA]
    rails = [rail for chip in found for rail in _rails(chip)]
    whole = [rail for rail in rails if rail[0] in WHOLE] or rails
    if not whole:
        return None, "no INA sensor"
    factors = [paths for _, paths in whole]

    def watts() -> float | None:
        parts = [_product(paths) for paths in factors]
        return None if None in parts else sum(p for p in parts if p is not None)

    return Source("INA " + " ".join(label for label, _ in whole), "watts", watts), ""


def _rails(chip: str) -> list[tuple[str, tuple[str, ...]]]:
    """(label, the files whose product in micro-units is the power)."""
    powers = sorted(glob(f"{chip}/power*_input"))
    if powers:
        return [(read(p.replace("_input", "_label")) or os.path.basename(p), (p,)) for p in powers]
    rails: list[tuple[str, tuple[str, ...]]] = []
    for current in sorted(glob(f"{chip}/curr*_input")):
        volts = os.path.join(chip, os.path.basename(current).replace("curr", "in"))
        if number(volts) is not None:
            rails.append((read(volts.replace("_input", "_label")) or os.path.basename(volts), (current, volts)))
    return rails


def _product(paths: Sequence[str]) -> float | None:
    """Watts of microwatts, or of milliamperes and millivolts, or of microamperes and microvolts."""
    values = [number(path) for path in paths]
    if any(v is None for v in values):
        return None
    product = 1.0
    for value in values:
        product *= value or 0
    return product / 1e6


def pmic(_root: str, command: Sequence[str]) -> tuple[Source | None, str]:
    """The sum over the rails that have a current and a voltage: without the losses of the converter itself."""

    def watts() -> float | None:
        try:
            text = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        return pmic_watts(text)

    return (Source("Raspberry Pi PMIC", "watts", watts), "") if watts() else (None, "no Raspberry Pi PMIC")


def pmic_watts(text: str) -> float | None:
    rails: dict[str, dict[str, float]] = {}
    for name, unit, value in RAIL.findall(text):
        rails.setdefault(name, {})[unit] = float(value)
    whole = [r["A"] * r["V"] for r in rails.values() if len(r) == 2]
    return sum(whole) if whole else None


def battery(root: str) -> tuple[Source | None, str]:
    """Microamperes and microvolts, only while it discharges: else the current is not what the device draws."""
    supplies = sorted(glob(os.path.join(root, "sys/class/power_supply/*")))
    found = next((s for s in supplies if number(f"{s}/current_now") and number(f"{s}/voltage_now")), None)
    if found is None:
        return None, "no battery with a current"
    supply, state = found, read(f"{found}/status")
    if state != "Discharging":
        return None, f"battery: {state}, unplug it"

    def watts() -> float | None:
        current, volts = number(f"{supply}/current_now"), number(f"{supply}/voltage_now")
        return None if current is None or volts is None else abs(current) * volts / 1e12

    return Source(f"battery {os.path.basename(supply)}", "watts", watts), ""


def measured(calls: Sequence[Callable[[], object]], request: Message) -> Message:
    """``rounds`` of ``seconds`` idle and ``seconds`` of inferences: the counter's readings as (nanoseconds, value).

    ``source`` None with a ``reason`` where no counter can be read.
    """
    if not calls:
        raise ValueError("no inputs are loaded")
    source, reason = find(request.get("root", "/"))
    if source is None:
        return {"source": None, "kind": None, "reason": reason, "rounds": []}
    rounds = [_round(source, calls, request["seconds"]) for _ in range(request["rounds"])]
    return {"source": source.name, "kind": source.kind, "reason": "", "rounds": rounds}


def _round(source: Source, calls: Sequence[Callable[[], object]], seconds: float) -> Message:
    idle, _ = _recorded(source, lambda: time.sleep(seconds))
    done = [0]

    def work() -> None:
        end = time.perf_counter() + seconds
        for call in cycle(calls):
            call()
            done[0] += 1
            if time.perf_counter() >= end:
                return

    gc.collect()
    busy, busy_ns = _recorded(source, work)
    return {"idle": idle, "busy": busy, "n": done[0], "busy_ns": busy_ns}


def _recorded(source: Source, work: Callable[[], None]) -> tuple[list[tuple[int, float]], int]:
    """Readings from before to after ``work``, and how long it took. A reading that fails is left out."""
    readings: list[tuple[int, float]] = []
    over = threading.Event()

    def take() -> None:
        value = source.read()
        if value is not None:
            readings.append((time.perf_counter_ns(), value))

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            take()

    take()
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    start = time.perf_counter_ns()
    work()
    taken = time.perf_counter_ns() - start
    over.set()
    thread.join()
    take()
    return readings, taken
