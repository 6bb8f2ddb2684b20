"""What a device is, and the counters that tell whether a measurement on it was fair.

Standard library only. What cannot be read is None, never 0: absence is a value.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from typing import Any

FLAGS_OF_INTEREST = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimddp", "asimdhp", "fphp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
PACKAGES = ("numpy", "pillow", "onnxruntime", "openvino", "ai-edge-litert", "tflite-runtime")
CGROUP_STATS = ("/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat")


def read(path: str) -> str | None:
    """A small text file, stripped of blanks and NULs; None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip(" \n\t\0")
    except OSError:
        return None


def number(path: str) -> int | None:
    text = read(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def numbers(pattern: str) -> dict[str, int] | None:
    """Path -> value of every readable file of a pattern; None where there is none."""
    found = {path: value for path in sorted(glob(pattern)) if (value := number(path)) is not None}
    return found or None


def device_card() -> dict[str, Any]:
    """What does not change while measuring."""
    cpu = cpu_fields()
    phone = android(getprop())
    model = read("/sys/firmware/devicetree/base/model") or read("/sys/class/dmi/id/product_name")
    model = phone["model"] if phone else model
    return {
        "android": phone,
        "board": model,
        "cpu_model": cpu.get("model name") or _arm_name(cpu),
        "machine": platform.machine(),
        "cpu_flags": [f for f in FLAGS_OF_INTEREST if f in (cpu.get("flags") or cpu.get("Features") or "").split()],
        "cpu_count": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "cpu_count_online": os.cpu_count(),
        "memory_bytes": _memory("MemTotal"),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()) or None,
        "python": platform.python_version(),
        "governor": read("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor"),
        "frequency_max_khz": numbers("/sys/devices/system/cpu/cpufreq/policy*/scaling_max_freq"),
        "turbo_off": number("/sys/devices/system/cpu/intel_pstate/no_turbo"),
        "cgroup_quota": read("/sys/fs/cgroup/cpu.max") or read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
        "virtual": "hypervisor" in (cpu.get("flags") or "").split(),
        "emulated": is_emulated(model) or bool(phone and phone["emulator"]),
        "packages": {name: installed(name) for name in PACKAGES},
    }


def counters() -> dict[str, Any]:
    """What may change while measuring: take it before and after. ``temperature``: thousandths of a degree Celsius."""
    return {
        "throttle_count": _total("/sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"),
        "cooling_state": _total("/sys/class/thermal/cooling_device*/cur_state"),
        "raspberry_throttled": read("/sys/devices/platform/soc/soc:firmware/get_throttled"),
        "scaling_max_khz": _total("/sys/devices/system/cpu/cpufreq/policy*/scaling_max_freq"),
        "cgroup_throttled": _cgroup_throttled(),
        "thermal_status": thermal_status(_said("dumpsys", "thermalservice")),
        "temperature": numbers("/sys/class/thermal/thermal_zone*/temp"),
        "steal_ticks": _stat_ticks()[0],
        "all_ticks": _stat_ticks()[1],
        "swapped_in": _vmstat("pswpin"),
        "frequency_khz": numbers("/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq"),
        "on_battery": on_battery(),
        "load": read("/proc/loadavg"),
        "memory_available_bytes": _memory("MemAvailable"),
    }


def on_battery(root: str = "/") -> bool | None:
    """Whether a battery discharges; None where there is none."""
    states = [read(path) for path in glob(os.path.join(root, "sys/class/power_supply/*/status"))]
    return "Discharging" in states if states else None


def cpu_fields() -> dict[str, str]:
    """/proc/cpuinfo of the first core."""
    first = (read("/proc/cpuinfo") or "").split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _arm_name(cpu: dict[str, str]) -> str | None:
    """ARM's /proc/cpuinfo has numbers only, such as ``implementer 0x41 part 0xd08`` (Cortex-A72)."""
    if "CPU part" not in cpu:
        return None
    return f"implementer {cpu.get('CPU implementer')} part {cpu['CPU part']}"


def getprop() -> str:
    """What Android's property service says; empty elsewhere."""
    return _said("getprop")


def android(properties: str) -> dict[str, Any] | None:
    """The phone that lines such as ``[ro.product.model]: [Pixel 7]`` are of; None if there are none."""
    found = dict(re.findall(r"^\[(.+?)\]: \[(.*)\]$", properties, re.MULTILINE))
    if "ro.build.version.sdk" not in found:
        return None
    names = (found.get("ro.product.manufacturer"), found.get("ro.product.model"))
    virtual = "1" in (found.get("ro.kernel.qemu"), found.get("ro.boot.qemu"))
    return {
        "model": " ".join(n for n in names if n) or None,
        "soc": found.get("ro.soc.model") or found.get("ro.board.platform"),
        "android": found.get("ro.build.version.release"),
        "sdk": int(found["ro.build.version.sdk"]),
        "abi": found.get("ro.product.cpu.abi"),
        "build": found.get("ro.build.fingerprint"),
        "emulator": virtual or found.get("ro.hardware") in ("ranchu", "goldfish"),
    }


def thermal_status(said: str) -> int | None:
    """Of ``dumpsys thermalservice``: 0 none, 1 light, 2 moderate, 3 severe, to 6; None where it says nothing."""
    found = re.search(r"^Thermal Status: (\d+)$", said, re.MULTILINE)
    return int(found.group(1)) if found else None


def _said(*command: str) -> str:
    """What a program of Android prints; empty where it is missing, fails, or takes longer than 5 s."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, timeout=5).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def is_emulated(model: str | None) -> bool:
    """Under qemu: the board says so, its CPU is described as an x86, or one of our parents is qemu's."""
    if (model or "").startswith("Emulated"):
        return True
    if platform.machine().startswith(("arm", "aarch64")) and "flags" in cpu_fields():
        return True
    process: int | None = os.getpid()
    while process and process > 1:
        if "qemu" in (read(f"/proc/{process}/cmdline") or "").split("\0")[0]:
            return True
        after_name = (read(f"/proc/{process}/stat") or "").rpartition(")")[2].split()
        process = int(after_name[1]) if len(after_name) > 1 else None
    return False


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def status_bytes(field: str) -> int | None:
    """A field of /proc/self/status in bytes, such as VmHWM, the largest resident size so far."""
    return _kilobytes("/proc/self/status", field)


def waited_ns() -> int | None:
    """Time that threads of this process were ready to run but had no CPU."""
    fields = [(read(path) or "").split() for path in glob("/proc/self/task/*/schedstat")]
    waits = [int(f[1]) for f in fields if len(f) == 3]
    return sum(waits) if waits else None


def _memory(field: str) -> int | None:
    return _kilobytes("/proc/meminfo", field)


def _kilobytes(path: str, field: str) -> int | None:
    for line in (read(path) or "").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _total(pattern: str) -> int | None:
    found = numbers(pattern)
    return sum(found.values()) if found else None


def _cgroup_throttled() -> int | None:
    text = next((t for t in map(read, CGROUP_STATS) if t), "")
    fields = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
    return int(fields["nr_throttled"]) if "nr_throttled" in fields else None


def _stat_ticks() -> tuple[int | None, int | None]:
    """Stolen ticks and all ticks of /proc/stat."""
    ticks = [int(t) for t in (read("/proc/stat") or "").split("\n")[0].split()[1:]]
    return (ticks[7], sum(ticks[:8])) if len(ticks) >= 8 else (None, None)


def _vmstat(field: str) -> int | None:
    fields = dict(line.split() for line in (read("/proc/vmstat") or "").splitlines())
    return int(fields[field]) if field in fields else None


if __name__ == "__main__":
    import json

    json.dump({"card": device_card(), "counters": counters()}, sys.stdout, indent=2)
