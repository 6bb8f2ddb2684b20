"""Many devices at once: a thread for each, so that a slow or dead one holds up no other."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from distilledge.models.errors import DeviceError, DistilledgeError
from distilledge.pipeline.inventory import LOCAL, entry_of, load, opened
from distilledge.targets.devices import Device
from distilledge.targets.devices.adb import AdbDevice
from distilledge.targets.devices.browser_worker import RUNTIMES
from distilledge.targets.ondevice.runtimes import PACKAGES_OF

AT_ONCE = 8
"""Connections that one machine opens at a time."""
ANSWER_SECONDS = 120.0


class Examined(NamedTuple):
    name: str
    state: Literal["ok", "warn", "fail"]
    card: dict[str, Any]
    runtimes: dict[str, str]
    """Runtime -> its version, or what is wrong with it."""
    error: str = ""
    hint: str = ""
    exit_code: int = 0


def examine(names: Sequence[str]) -> list[Examined]:
    """Reach each device, read its card and load its runtimes there; all of the inventory where none is named."""
    inventory = load()
    for name in names:
        if name != LOCAL:
            entry_of(name, inventory)
    chosen = list(names) or [LOCAL, *inventory.devices]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(_examine, chosen))


def _examine(name: str) -> Examined:
    try:
        with opened(name) as device:
            try:
                card = device.facts()
            except DeviceError as error:
                if error.code != "E6037" or not isinstance(device, AdbDevice) or not device.native:
                    raise
                return Examined(name, "ok", device.shell_card(), {r: Path(p[0]).name for r, p in device.native.items()})
            tried = [(runtime, _tried(device, runtime)) for runtime in PACKAGES_OF if _installed(card, runtime)]
    except DistilledgeError as error:
        return Examined(name, "fail", {}, {}, error.what, error.hint, error.exit_code)
    versions = {runtime: found for runtime, found in tried if isinstance(found, str)}
    errors = {runtime: found for runtime, found in tried if not isinstance(found, str)}
    said = versions | {runtime: str(error) for runtime, error in errors.items()}
    if errors:
        first = next(iter(errors.values()))
        code = 0 if versions else first.exit_code
        return Examined(name, "warn" if versions else "fail", card, said, first.what, first.hint, code)
    if not versions:
        hint = "install onnxruntime, openvino or ai-edge-litert there"
        return Examined(name, "fail", card, said, "no runtime is installed", hint, 6)
    return Examined(name, "ok", card, said)


def _installed(card: dict[str, Any], runtime: str) -> bool:
    return any(card["packages"].get(package) for package in (*PACKAGES_OF[runtime], RUNTIMES.get(runtime, "")))


def _tried(device: Device, runtime: str) -> str | DistilledgeError:
    """Its version as it says itself, in a process of its own: some builds die of the CPU as they are imported."""
    try:
        with device.start() as worker:
            return str(worker.request({"op": "runtime", "runtime": runtime}, ANSWER_SECONDS)["runtime_version"])
    except DistilledgeError as error:
        return error
