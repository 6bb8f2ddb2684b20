"""One look at each picture: all that the audit knows comes from one read and one full decode, by the device's rules."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE
from typing import NamedTuple

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from distilledge.models.errors import ResourceError
from distilledge.targets.ondevice.preprocess import FORMATS, ORIENTATION_TAG, UPRIGHT, BadPicture, InputSpec, decode

CHUNK = 32
"""Pictures handed to a worker at a time."""

PATIENCE = 4.0
"""Seconds that one process may need before worker processes are started (each costs about half a second)."""


class Facts(NamedTuple):
    """What one decodable picture is. Sizes are those of the upright picture."""

    sha256: str
    pixels: str
    """Hash of the decoded RGB pixels: equal for the same picture in another container."""
    phash: int
    """64-bit perceptual hash (DCT of the 32x32 gray picture, low 8x8 against their median)."""
    width: int
    height: int
    mode: str
    """Pillow's mode of the file, before conversion."""
    bits: int
    """Per channel, 8 or 16."""
    rotated: bool
    """EXIF asks for a turn or a flip."""
    clipped: float
    """Share of white pixels (gray 255)."""


def examine(path: str, spec: InputSpec) -> Facts | str:
    """The facts, or the reason why the picture cannot be used."""
    try:
        content = _content(path, spec)
        picture = decode(content, spec)
    except BadPicture as bad:
        return bad.reason
    light = picture.convert("L")
    mode, bits, rotated = _header(content)
    return Facts(
        sha256=hashlib.sha256(content).hexdigest(),
        pixels=hashlib.blake2b(picture.tobytes(), digest_size=16, salt=b"%dx%d" % picture.size).hexdigest(),
        phash=int.from_bytes(np.packbits(imagehash.phash(light).hash).tobytes(), "big"),
        width=picture.width,
        height=picture.height,
        mode=mode,
        bits=bits,
        rotated=rotated,
        clipped=light.histogram()[255] / (picture.width * picture.height),
    )


def examine_all(paths: Sequence[str], spec: InputSpec, workers: int = 0) -> list[Facts | str]:
    """``examine`` of each path, in order. With 0 workers, processes are started only where one would need long.

    Raises ResourceError (exit 9) where a worker dies, as under a memory limit.
    """
    first = min(2 * CHUNK, len(paths))
    start = time.monotonic()
    done = [examine(path, spec) for path in paths[:first]]
    rest = paths[first:]
    seconds = (time.monotonic() - start) / max(first, 1) * len(rest)
    count = workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if count > 1 and seconds > PATIENCE:
        return done + list(_in_processes(rest, spec, count))
    return done + [examine(path, spec) for path in rest]


def gray(path: str, spec: InputSpec) -> npt.NDArray[np.float32]:
    """The decoded picture in gray, (H, W), 0..255."""
    return np.asarray(decode(path, spec).convert("L"), np.float32)


def _in_processes(paths: Sequence[str], spec: InputSpec, count: int) -> Iterator[Facts | str]:
    """Plain child processes: ``multiprocessing`` would run the caller's script again (spawn) or copy locks (fork)."""
    command = [sys.executable, "-P", "-m", __spec__.name, json.dumps(spec.to_dict())]
    idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
    workers = [subprocess.Popen(command, stdin=PIPE, stdout=PIPE, encoding="ascii") for _ in range(count)]
    for worker in workers:
        idle.put(worker)
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    try:
        with ThreadPoolExecutor(count) as threads:
            for facts in threads.map(partial(_ask, idle), chunks):
                yield from facts
    finally:
        for worker in workers:
            worker.communicate()  # closes its input, which ends it


def _ask(idle: SimpleQueue[subprocess.Popen[str]], paths: Sequence[str]) -> list[Facts | str]:
    worker = idle.get()
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(json.dumps(paths) + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
    except BrokenPipeError:
        answer = ""
    idle.put(worker)
    if not answer:
        where = f"{paths[0]} to {paths[-1]}"
        raise ResourceError("E9101", f"a process that decodes pictures died at {where}", "--set data.workers=1")
    return [item if isinstance(item, str) else Facts(*item) for item in json.loads(answer)]


def _serve(spec: InputSpec) -> None:
    """A line with paths in, a line with facts out, until the input ends."""
    for line in sys.stdin:
        print(json.dumps([examine(path, spec) for path in json.loads(line)]), flush=True)


def _content(path: str, spec: InputSpec) -> bytes:
    """The file's bytes; what is no readable file is left to ``decode``, which knows the reasons."""
    if os.path.isdir(path):
        raise BadPicture("a folder that cannot be read")
    if not os.path.isfile(path):
        decode(path, spec)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadPicture(f"cannot be read: {error.strerror}") from None


def _header(content: bytes) -> tuple[str, int, bool]:
    """(mode, bits, rotated) of a file that decodes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the decode has judged the file
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            rawmode = str(image.tile[0][3]) if getattr(image, "tile", None) else ""
            bits = 16 if image.mode.startswith("I") or ";16" in rawmode else 8
            return image.mode, bits, image.getexif().get(ORIENTATION_TAG, 1) in UPRIGHT


if __name__ == "__main__":
    _serve(InputSpec.from_dict(json.loads(sys.argv[1])))
