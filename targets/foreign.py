"""Files that others made on a device: what its runtime says of them, and their answers to arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distilledge.targets.devices.base import Device
from distilledge.targets.lane import ANSWER_SECONDS
from distilledge.targets.measure import LOAD_SECONDS, Candidate, load


def described(one: Candidate, device: Device, threads: int) -> dict[str, Any]:
    """What the device's runtime says of a file once it is loaded: ``inputs``, ``outputs``, versions, times."""
    with device.start() as worker:
        return load(worker, one, device, threads)


def answers(one: Candidate, device: Device, pieces: Iterable[Path], out: Path) -> Iterator[np.ndarray[Any, Any]]:
    """The first output for each .npz of ``ondevice.ports``, (rows, values). ``out``: a folder here."""
    with device.start() as worker:
        load(worker, one, device, 0)
        for number, piece in enumerate(pieces):
            written = device.scratch(f"answers-{number}.npy")
            request = {"op": "answers", "arrays": device.push([piece])[0], "out": written}
            worker.request(request, ANSWER_SECONDS + LOAD_SECONDS)
            device.pull(written, out / f"answers-{number}.npy")
            yield np.load(out / f"answers-{number}.npy")
