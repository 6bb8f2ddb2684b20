"""What this machine offers: CPU and its int8 instructions, memory, disk, GPU. Standard library; nothing is written."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

GIB = 2**30
INT8_X86 = ("amx_int8", "avx512_vnni", "avx_vnni", "avx2")
"""Flags of /proc/cpuinfo, fastest first. Without any, int8 is seldom faster than float."""
INT8_ARM = ("i8mm", "asimddp")
"""``asimddp`` is the dot product (SDOT/UDOT)."""
INT8_APPLE = {"hw.optional.arm.FEAT_I8MM": "i8mm", "hw.optional.arm.FEAT_DotProd": "asimddp"}
GPU_SECONDS = 5.0


class Cpu(NamedTuple):
    model: str
    cores: int
    """That this process may use."""
    int8: tuple[str, ...]
    """Instruction sets that make int8 fast, fastest first."""


class Gpu(NamedTuple):
    name: str
    memory_mib: int
    driver: str


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    """From /proc/cpuinfo, on macOS from sysctl; ``int8`` is empty where neither tells."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not cpuinfo.is_file():
        return Cpu(platform.processor() or platform.machine(), cores, _apple_int8())
    fields = dict(_field(line) for line in reversed(cpuinfo.read_text(encoding="utf-8").splitlines()) if ":" in line)
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    model = fields.get("model name") or f"{platform.machine()} part {fields.get('CPU part', '?')}"
    return Cpu(model, cores, tuple(f for f in (*INT8_X86, *INT8_ARM) if f in flags))


def memory_bytes(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> tuple[int, int]:
    """(usable in all, free now); a container's limit counts as all there is."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = cgroup.read_text(encoding="ascii").strip() if cgroup.is_file() else "max"
    total = total if limit == "max" else min(total, int(limit))
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.is_file() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), total)
    return total, min(free, total)


def free_disk_bytes(directory: Path) -> int:
    """Free space where ``directory`` lies, or would lie if it were made."""
    existing = next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA cards as the driver's own tool lists them, whatever torch was built for; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError):
        return ()
    rows = (line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 2)
    return tuple(Gpu(name, int(mib) if mib.isdigit() else 0, driver) for name, mib, driver in rows)


def _field(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def _apple_int8() -> tuple[str, ...]:
    if platform.system() != "Darwin":
        return ()
    command = ["/usr/sbin/sysctl", "-n", *INT8_APPLE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS, check=False)
    return tuple(name for name, value in zip(INT8_APPLE.values(), done.stdout.split(), strict=False) if value == "1")
