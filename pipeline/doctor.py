"""``doctor``: what in this environment would stop a run or spoil its numbers, and the one command that mends it.

Reads metadata and files only, so that it takes a second and works where torch does not import. ``deep`` also runs a
tiny model in each runtime, each in a process of its own.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from distilledge.models.base import Value
from distilledge.models.errors import MissingPackageError
from distilledge.pipeline.machine import GIB, free_disk_bytes, gpus, int8_instructions, memory_bytes
from distilledge.pipeline.packages import CONSTRAINTS, Installed, TorchPair, dependencies, torch_pair
from distilledge.targets.ondevice.facts import device_card
from distilledge.targets.telemetry import still_on
from distilledge.targets.trial import NMS, TRIALS, attempt

State = Literal["ok", "warn", "fail"]
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai-edge-litert"}
"""Runtime -> distribution."""
LEAST_DISK = 5 * GIB
LEAST_MEMORY = 4 * GIB


class Finding(Value):
    name: str
    state: State
    detail: str
    hint: str = ""
    """One command or one edit; empty where nothing needs doing."""


class DoctorReport(Value):
    findings: tuple[Finding, ...]

    def rows(self) -> tuple[Finding, ...]:
        """The findings, failures first, then warnings."""
        return tuple(sorted(self.findings, key=lambda f: ("fail", "warn", "ok").index(f.state)))

    def problem(self) -> MissingPackageError | None:
        """What to raise (exit 4) where something fails."""
        failed = [f for f in self.rows() if f.state == "fail"]
        if not failed:
            return None
        return MissingPackageError("E4502", f"{failed[0].name}: {failed[0].detail}", failed[0].hint)


def examine(*, deep: bool = False, work: Path = Path("distilledge-work")) -> DoctorReport:
    """Look at everything. ``work`` is where the store would lie; it is not made."""
    packages = dependencies()
    findings = [_python(), *map(_package, packages), _pins(packages), _torch(torch_pair(), deep), _cpu()]
    findings += [_gpu(torch_pair()), _memory(), _disk(work), _telemetry(), *_runtimes(packages, deep)]
    return DoctorReport(findings=tuple(findings))


def explain(error: BaseException) -> MissingPackageError | None:
    """The error that a user can act on, where ``error`` is torchvision's obscure one; None for any other."""
    if NMS not in str(error):
        return None
    return MissingPackageError("E4503", *_mismatch(torch_pair()))


def _python() -> Finding:
    return Finding(name="python", state="ok", detail=f"{platform.python_version()} on {platform.platform(terse=True)}")


def _package(found: Installed) -> Finding:
    install = f"pip install '{found.requirement}'"
    if found.fit == "missing":
        return Finding(name=found.name, state="fail", detail="missing", hint=install)
    if found.fit == "too old or too new":
        detail = f"{found.found}, but {found.requirement} is needed"
        return Finding(name=found.name, state="fail", detail=detail, hint=install)
    return Finding(name=found.name, state="ok", detail=f"{found.found} ({found.fit})")


def _pins(packages: list[Installed]) -> Finding:
    moved = [f"{p.name} {p.found} ({p.known_good})" for p in packages if p.fit == "within bounds" and p.known_good]
    if not moved:
        return Finding(name="known-good set", state="ok", detail="no installed package departs from it")
    hint = f"if something breaks: pip install -c {CONSTRAINTS} distilledge"
    return Finding(name="known-good set", state="warn", detail=f"departs in {', '.join(moved)}", hint=hint)


def _torch(pair: TorchPair, deep: bool) -> Finding:
    """Importing torchvision takes seconds, so it is done only where the metadata raises a doubt, or when asked."""
    detail = f"torch {pair.torch or 'missing'}, torchvision {pair.torchvision or 'missing'}"
    if not pair.doubt and not deep:
        return Finding(name="torch and torchvision", state="ok", detail=f"{detail}: belong together")
    outcome = attempt("torchvision")
    if outcome.works and pair.doubt:
        return Finding(name="torch and torchvision", state="warn", detail=f"{detail}: {pair.doubt}; they do import")
    if outcome.works:
        return Finding(name="torch and torchvision", state="ok", detail=outcome.detail)
    what, hint = _mismatch(pair)
    return Finding(name="torch and torchvision", state="fail", detail=f"{what} ({outcome.detail})", hint=hint)


def _mismatch(pair: TorchPair) -> tuple[str, str]:
    """What is wrong and the command that mends it: the same releases from the registry, or the known-good pair."""
    builds = f"torch {pair.torch} and torchvision {pair.torchvision} do not belong together"
    what = f"{builds}: {pair.doubt or 'see their builds'}; hence `torchvision::nms does not exist`"
    if "one is built for" in pair.doubt:
        torch, vision = pair.torch.partition("+")[0], pair.torchvision.partition("+")[0]
        return what, f"pip install --force-reinstall --no-deps torch=={torch} torchvision=={vision}"
    return what, f"pip install --force-reinstall -c {CONSTRAINTS} torch torchvision"


def _cpu() -> Finding:
    card = device_card()
    fast = int8_instructions(card["cpu_flags"])
    detail = (
        f"{card['cpu_model'] or card['machine']}, {card['cpu_count']} cores usable; int8: {', '.join(fast) or 'none'}"
    )
    if fast:
        return Finding(name="CPU", state="ok", detail=detail)
    return Finding(name="CPU", state="warn", detail=detail, hint="expect int8 to be no faster than float here")


def _gpu(pair: TorchPair) -> Finding:
    cards = gpus()
    if not cards:
        return Finding(name="GPU", state="ok", detail="none seen; training runs on the CPU")
    detail = ", ".join(f"{g.name} ({g.memory_mib / 1024:.0f} GiB, driver {g.driver})" for g in cards)
    if "+cpu" in pair.torch:
        hint = "install torch and torchvision from the registry (their CUDA build)"
        return Finding(name="GPU", state="warn", detail=f"{detail}; but torch {pair.torch} cannot use it", hint=hint)
    return Finding(name="GPU", state="ok", detail=detail)


def _memory() -> Finding:
    total, free = memory_bytes()
    detail = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free >= LEAST_MEMORY:
        return Finding(name="memory", state="ok", detail=detail)
    return Finding(
        name="memory", state="warn", detail=detail, hint="close other programs, or lower training.batch_size"
    )


def _disk(work: Path) -> Finding:
    free = free_disk_bytes(work)
    detail = f"{free / GIB:.1f} GiB free for {work}"
    if free >= LEAST_DISK:
        return Finding(name="disk", state="ok", detail=detail)
    return Finding(name="disk", state="warn", detail=detail, hint="--work PATH puts the store on another disk")


def _telemetry() -> Finding:
    on = still_on()
    if not on:
        return Finding(
            name="telemetry", state="ok", detail="off for this process: OpenVINO, NNCF, Hugging Face, MLflow"
        )
    hint = "call distilledge.targets.telemetry.switch_off() first"
    return Finding(name="telemetry", state="warn", detail=f"not switched off: {', '.join(on)}", hint=hint)


def _runtimes(packages: list[Installed], deep: bool) -> Iterator[Finding]:
    versions = {p.name: p.found for p in packages}
    for runtime, package in RUNTIMES.items():
        found = versions.get(package, "")
        if not found:
            yield Finding(name=f"runtime {runtime}", state="fail", detail="missing", hint=f"pip install {package}")
        elif not deep:
            yield Finding(name=f"runtime {runtime}", state="ok", detail=f"{package} {found}; --deep runs a model in it")
        else:
            yield _trial(runtime, package)


def _trial(runtime: str, package: str) -> Finding:
    assert runtime in TRIALS
    outcome = attempt(runtime)
    if outcome.works:
        return Finding(name=f"runtime {runtime}", state="ok", detail=outcome.detail)
    hint = f"pip install --force-reinstall -c {CONSTRAINTS} {package}"
    return Finding(name=f"runtime {runtime}", state="fail", detail=outcome.detail, hint=hint)
