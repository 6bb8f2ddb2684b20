"""What this machine offers beside its device card: int8 instructions, memory, disk, GPU. Nothing is written."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from distilledge.targets.ondevice.facts import counters

GIB = 2**30
INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx2", "i8mm", "asimddp")
"""CPU flags that make int8 fast, fastest first; ``asimddp`` is ARM's dot product."""
INT8_APPLE = {"hw.optional.arm.FEAT_I8MM": "i8mm", "hw.optional.arm.FEAT_DotProd": "asimddp"}
GPU_SECONDS = 5.0


class Gpu(NamedTuple):
    name: str
    memory_mib: int
    driver: str


def int8_instructions(flags: Sequence[str]) -> tuple[str, ...]:
    """Those of a CPU with these flags, on macOS as sysctl tells; without any, int8 is seldom faster than float."""
    known = flags if platform.system() != "Darwin" else _apple_flags()
    return tuple(flag for flag in INT8_FLAGS if flag in known)


def memory_bytes(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> tuple[int, int]:
    """(usable in all, free now); a container's limit counts as all there is."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = cgroup.read_text(encoding="ascii").strip() if cgroup.is_file() else "max"
    total = total if limit == "max" else min(total, int(limit))
    return total, min(counters()["memory_available_bytes"] or total, total)


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


def _apple_flags() -> tuple[str, ...]:
    command = ["/usr/sbin/sysctl", "-n", *INT8_APPLE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS, check=False)
    return tuple(name for name, value in zip(INT8_APPLE.values(), done.stdout.split(), strict=False) if value == "1")
