"""Timing on a phone without Python: the runtime's own program is sent there and run; no answers come back.

Only a shell with sha256sum, mv and flock is needed, which Android brings (toybox). What the program prints becomes a
record; accuracy cannot be had this way.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distilledge.models.base import Value
from distilledge.models.errors import DeviceError, DistilledgeError
from distilledge.targets.devices.base import refusal
from distilledge.targets.devices.endings import SHELL_SIGNAL, LostError
from distilledge.targets.devices.native_tools import PROGRAMS, Figures, Job
from distilledge.targets.devices.process import End
from distilledge.targets.devices.remote import TRIES, Shell
from distilledge.targets.fairness import drifts, noisy
from distilledge.targets.ondevice.facts import android, thermal_status

NOT_RUN = re.compile("not executable|xec format error|cannot execute|not found")
"""What shells say of a program for another machine; Android's then gives code 1."""
BUSY, MISSING = 75, (126, 127)
"""Exit codes: of our script where another holds the device, and of a shell that cannot run a program."""
FACTS = (
    "getprop 2>/dev/null; cat /proc/cpuinfo; grep MemTotal /proc/meminfo; "
    'echo "uname: $(uname -mr)"; dumpsys thermalservice 2>/dev/null; true'
)


class NativeTiming(Value):
    """One file timed by its runtime's own program, in one process, on inputs that the program makes up."""

    name: str
    runtime: str
    sha256: tuple[str, ...]
    program: str
    program_sha256: str
    device: dict[str, Any]
    threads: int
    warmup: int
    figures: Figures
    thermal_status: tuple[int | None, int | None]
    """Before and after: 0 is none, 6 the worst; None: the phone does not say."""
    flags: tuple[str, ...]
    """``SUMMARY_ONLY``: the program gives no samples. The others as elsewhere."""


class Place(NamedTuple):
    """Where files are sent to."""

    shell: Shell
    send: Callable[[Path, str], None]
    """Copies a file to a path there. Raises ``LostError`` if it may go better another time."""
    folder: str
    name: str


class Settings(NamedTuple):
    threads: int
    runs: int
    warmup: int
    limit_s: float


def time_file(
    place: Place, runtime: str, program: Sequence[Path], model: Sequence[Path], settings: Settings
) -> NativeTiming:
    """``program``: the file to be run, then the libraries that lie beside it; ``model`` likewise.

    Raises ``DeviceError``, ``ResourceError`` (no end within ``limit_s``) or ``RejectedError`` (killed by a signal).
    """
    place.shell.link.reach()
    tool, file = (_pushed(place, files) for files in (program, model))
    result = f"{tool.rpartition('/')[0]}/result"
    job = Job(file, settings.threads, settings.runs, settings.warmup, result)
    before = facts(place.shell)
    printed, written = _ran(place, tool, PROGRAMS[runtime].arguments(job), result, settings.limit_s)
    after = facts(place.shell)
    try:
        figures = PROGRAMS[runtime].read(printed, written, job)
    except ValueError as error:
        what = f"{program[0].name} says nothing that can be read: {error}{_last(printed)}"
        raise DeviceError("E6085", what, "is it the program of that runtime? docs/android.md names them") from None
    found, thermal = card(before), (thermal_status(before), thermal_status(after))
    tests = {
        "SUMMARY_ONLY": not figures.latency_ns,
        "EMULATED": found["emulated"],
        "THROTTLED": (thermal[1] or 0) > (thermal[0] or 0),
        "DRIFT": drifts(figures.latency_ns),
        "NOISE": noisy(figures.latency_ns),
    }
    return NativeTiming(
        name=model[0].name,
        runtime=runtime,
        sha256=tuple(_digest(path) for path in model),
        program=program[0].name,
        program_sha256=_digest(program[0]),
        device=found,
        threads=settings.threads,
        warmup=settings.warmup,
        figures=figures,
        thermal_status=thermal,
        flags=tuple(flag for flag, holds in tests.items() if holds),
    )


def _pushed(place: Place, files: Sequence[Path]) -> str:
    """Path of the first there. Files that belong together lie together, and are sent once."""
    missing = next((f for f in files if not f.is_file()), None)
    if missing is not None:
        raise DeviceError("E6022", f"no such file: {missing}", "see `native:` in devices.yaml, or the file's name")
    digests = [_digest(f) for f in files]
    group = hashlib.sha256("".join(digests).encode()).hexdigest()[:24]
    folder = f"{place.folder}/files/native-{group}"
    _once(place, f"mkdir -p {shlex.quote(folder)} && rm -f {shlex.quote(folder)}/*.part")
    for path, digest in zip(files, digests, strict=True):
        _send(place, path, digest, f"{folder}/{path.name}")
    return f"{folder}/{files[0].name}"


def _send(place: Place, path: Path, digest: str, to: str) -> None:
    """Unless it is there; under another name until it is whole."""
    name, part = shlex.quote(to), shlex.quote(f"{to}.part")
    if digest in _once(place, f"sha256sum {name} 2>/dev/null || true"):
        return
    for left in reversed(range(TRIES)):
        try:
            place.send(path, f"{to}.part")
            if digest in _once(place, f"sha256sum {part}"):
                _once(place, f"chmod 700 {part} && mv {part} {name}")
                return
            raise refusal({"kind": "damaged", "text": f"{to} arrived otherwise"})
        except LostError:
            if not left:
                raise
            place.shell.link.reach()
        except DistilledgeError:
            _once(place, f"rm -f {part}")
            raise


def run_script(home: str, tool: str, arguments: Sequence[str], result: str) -> str:
    """A shell line that says it is ready, reads a line, runs the program, and answers as a worker does.

    The program ends with the standard input, so with the connection. One program at a time, also beside workers.
    ``9>&9``: Android's shell keeps numbered files from programs that are not given them.
    """
    folder, _, name = tool.rpartition("/")
    lock, output = shlex.quote(f"{home}/lock"), shlex.quote(f"{folder}/output")
    words = " ".join(map(shlex.quote, [f"./{name}", *arguments]))
    return (
        f"( cd {shlex.quote(folder)} && exec 3<&0 9>>{lock} || exit 1; "
        f"flock -n 9 9>&9 || {{ cat {lock} >&2; exit {BUSY}; }}; echo 'a timing' >{lock}; rm -f {shlex.quote(result)}; "
        "echo '{\"ready\": 1}'; read go; "
        f"LD_LIBRARY_PATH=. {words} >{output} 2>&1 </dev/null 3<&- 9>&- & p=$!; "
        "{ cat <&3 >/dev/null; kill -9 $p; } >/dev/null 2>&1 9>&- & w=$!; "
        'wait $p; echo "{\\"id\\": 1, \\"ok\\": true, \\"code\\": $?}"; kill $w )'
    )


def _ran(place: Place, tool: str, arguments: Sequence[str], result: str, limit_s: float) -> tuple[str, str]:
    """What the program printed and wrote."""
    folder, _, name = tool.rpartition("/")
    script = run_script(place.folder, tool, arguments, result)
    try:
        with place.shell.run(script) as running:
            code = running.request({"op": f"timing of {name}"}, limit_s)["code"]
    except DeviceError as error:
        raise _busy(error) from None
    printed = _once(place, f"cat {shlex.quote(f'{folder}/output')}")
    if code:
        raise _failed(place, name, code, printed)
    return printed, _once(place, f"cat {shlex.quote(result)} 2>/dev/null || true")


def remove_all(place: Place) -> int:
    """What was ever sent; bytes that it took."""
    home = shlex.quote(place.folder)
    held = f"cd {home} && exec 9>>lock && flock -n 9 9>&9 || {{ cat lock >&2; exit {BUSY}; }}"
    try:
        said = _once(place, f"mkdir -p {home} && ( {held}; du -sk files 2>/dev/null; rm -rf files )")
    except DeviceError as error:
        raise _busy(error) from None
    return 1024 * int((said.split() or ["0"])[0])


def _busy(error: DeviceError) -> DistilledgeError:
    """What our script's own code means; else the error itself."""
    if f"exit code {BUSY}" not in error.what:
        return error
    return refusal({"kind": "busy", "text": error.what.rpartition(": ")[2]})


def _failed(place: Place, name: str, code: int, printed: str) -> DistilledgeError:
    if code in MISSING or NOT_RUN.search(_last(printed)):
        what = f"{place.name} cannot run {name}{_last(printed)}"
        return DeviceError(
            "E6086", what, "is it built for that phone (its ro.product.cpu.abi), and are its libraries named beside it?"
        )
    if code > SHELL_SIGNAL:
        return place.shell.link.explain(End(0, code, f"timing with {name}", printed))
    return DeviceError("E6084", f"{name} ended with code {code}{_last(printed)}", "try it by hand: adb shell")


def _once(place: Place, line: str) -> str:
    """As ``Shell.once``, with what keeps a file from being written said as elsewhere."""
    try:
        return place.shell.once(line)
    except DeviceError as error:
        for kind, words in (
            ("space", "No space left"),
            ("read-only", "Permission denied|Read-only file|Not a directory"),
        ):
            if any(word in error.what for word in words.split("|")):
                raise refusal({"kind": kind, "text": error.what.rpartition(": ")[2]}) from None
        raise


def facts(shell: Shell) -> str:
    """Lines for ``card``."""
    return shell.once(FACTS)


def card(said: str) -> dict[str, Any]:
    """The fields of ``ondevice.facts.device_card`` that a shell can read."""
    phone = android(said)
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in reversed(said.splitlines()))}
    kernel, _, machine = fields["uname"].partition(" ")
    part = (
        f"implementer {fields.get('CPU implementer')} part {fields.get('CPU part')}" if "CPU part" in fields else None
    )
    memory = fields.get("MemTotal", "").split()
    arm = machine.startswith(("arm", "aarch64"))
    return {
        "android": phone,
        "board": phone["model"] if phone else None,
        "cpu_model": fields.get("model name") or part,
        "machine": machine,
        "cpu_count": sum(line.startswith("processor") for line in said.splitlines()),
        "memory_bytes": int(memory[0]) * 1024 if memory else None,
        "kernel": kernel,
        "python": "none",
        "emulated": bool(phone and phone["emulator"]) or (arm and "flags" in fields),
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""
