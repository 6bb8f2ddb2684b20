"""Real browsers for tests: the runtimes of the web, a Chromium of its own for each device, exported models."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distilledge.models.errors import MissingPackageError
from distilledge.targets import get, web_files
from distilledge.targets.base import Deployable, Exported
from distilledge.targets.devices.browser import BrowserDevice
from distilledge.targets.devices.browser_program import CHROMIUM, processes_with
from distilledge.targets.measure import Candidate
from distilledge.targets.ondevice.preprocess import InputSpec

SIZE, CLASSES = 32, 7
SPEC = InputSpec(SIZE, SIZE)
WATCH_SECONDS = 3.0


def runtimes(folder: Path) -> Path:
    """Those of the user's cache, or fetched into ``folder`` by npm; skips with the reason where neither is possible."""
    if not any(map(shutil.which, CHROMIUM)):
        pytest.skip("no Chromium on PATH")
    try:
        web_files.files()
        return web_files.folder()
    except MissingPackageError:
        os.environ[web_files.ENVIRONMENT] = str(folder)
    try:
        return web_files.fetch()
    except MissingPackageError as error:
        pytest.skip(f"the runtimes of the web cannot be had here: {error.what}")


class Small(nn.Module):
    """A few convolutions and a linear layer, such that logits differ between pictures."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            *(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6()),
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


def exported(runtime: Any, folder: Path) -> Candidate:
    """By the product's own exporter, fp32."""
    classes = tuple("abcdefg")
    fields = {"height": SIZE, "width": SIZE, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    deployable = Deployable(input_spec=SPEC.to_dict(), classes=classes, **fields)
    return as_candidate(runtime, get(runtime).export(Small().eval(), deployable, folder))


def as_candidate(runtime: Any, path: Path, **fields: Any) -> Candidate:
    made = Exported(
        runtime=runtime,
        precision="fp32",
        files=(path.name,),
        sha256=(hashlib.sha256(path.read_bytes()).hexdigest(),),
        size_bytes=path.stat().st_size,
        input_shape=(1, SIZE, SIZE, 3),
        classes=tuple("abcdefg"),
        input_spec=SPEC.to_dict(),
        versions={},
        recipe="",
        seconds=0.0,
    )
    return Candidate(name=f"student {runtime} fp32", role="student", directory=str(path.parent), exported=made)


@contextmanager
def opened(**fields: Any) -> Iterator[BrowserDevice]:
    """A device whose browser leaves no process behind, or the test fails."""
    device = BrowserDevice("page", watch_s=WATCH_SECONDS, **fields)
    profile = ""
    try:
        yield device
        profile = device._browser._profile if device._browser else ""
    finally:
        device.close()
    assert not profile or settled(profile) == []


def settled(word: str, seconds: float = 10.0) -> list[int]:
    """Processes with the word in their command line, waiting so long for them to go."""
    end = time.monotonic() + seconds
    while (left := processes_with(word)) and time.monotonic() < end:
        time.sleep(0.1)
    return left
