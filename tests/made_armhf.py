"""A 32-bit ARM board without a kernel: Debian's packages for armhf, run by qemu. Real programs, no real times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BOARD = "DISTILLEDGE_ARMHF"
"""A folder for the packages (150 MB), made there in about a minute. Needs mmdebstrap, qemu-user-static and root."""
RUNTIME = "tflite-runtime==2.14.0"
"""The one runtime that has wheels for armv7l; numpy and Pillow are Debian's."""
DEBS = "base-files,libc6,libstdc++6,libgomp1,python3,python3-numpy,python3-pil"
SOURCES = "apt-get indextargets --format 'deb [arch=armhf] $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages'"


def armhf_python(folder: Path) -> Path:
    """A program of this machine that runs the board's Python."""
    root, wheel, python = folder / "root", folder / "wheel", folder / "python"
    if python.exists():
        return python
    folder.mkdir(parents=True, exist_ok=True)
    sources = printed(f"{SOURCES} | sort -u | grep -v -e -security -e -updates")
    (folder / "sources.list").write_text(sources)
    (folder / "apt.conf").write_text(printed("apt-config dump | grep -E '^Acquire::(https?|Retries)' || :"))
    links = 'for d in bin sbin lib; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done'
    words = ["--quiet", "--architectures=armhf", "--variant=extract", f"--include={DEBS}", f"--setup-hook={links}"]
    words += [f"--aptopt={folder / 'apt.conf'}", sources.split()[3], str(root), str(folder / "sources.list")]
    subprocess.run(["mmdebstrap", *words], check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary", ":all:"]
    there = ["--platform", "manylinux_2_34_armv7l", "--python-version", "3.11", "--target", str(wheel)]
    subprocess.run([*pip, *there, RUNTIME], check=True)
    lib, arm = root / "usr" / "lib", root / "usr" / "lib" / "arm-linux-gnueabihf"
    given = {
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": f"{wheel}:{lib / 'python3' / 'dist-packages'}",
        "LD_LIBRARY_PATH": f"{arm / 'blas'}:{arm / 'lapack'}",
    }
    options = " ".join(f"-E {name}={value}" for name, value in given.items())
    interpreter = root / "usr" / "bin" / "python3.11"
    python.write_text(f'#!/bin/sh\nexec qemu-arm-static -cpu cortex-a7 -L {root} {options} {interpreter} -S "$@"\n')
    python.chmod(0o755)
    return python


def printed(line: str) -> str:
    return subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
