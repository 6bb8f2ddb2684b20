"""What a killed training goes on from: plain tensors and numbers in one file, named by a pointer written last."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilledge.pipeline.disk import atomic_write, disk_errors
from distilledge.pipeline.failpoints import failpoint

log = logging.getLogger("distilledge.training")

POINTER, PREFIX = "state.json", "state-"
Row = dict[str, float]


@dataclass
class Position:
    """How far a training has come. ``epoch`` and ``step`` (within it) are the next to run, from 0."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    """Of the steps of this epoch that counted."""
    loss_count: int = 0
    samples: int = 0
    seconds: float = 0.0
    """Of this epoch's steps."""
    evaluation_seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_epoch: int = -1
    skipped: int = 0
    skipped_in_a_row: int = 0
    parts: int = 1
    """Pieces a step's batch is cut into (``auto_batch`` doubles it)."""

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.step = epoch, 0
        self.loss_sum = self.seconds = 0.0
        self.loss_count = self.samples = 0

    @property
    def mean_loss(self) -> float:
        return self.loss_sum / max(1, self.loss_count)


def save_state(partial: Path, identity: str, position: Position, learner: dict[str, Any]) -> None:
    """Replace the saved state; a kill at any moment leaves the old one or the new. Raises ``ResourceError`` (disk)."""
    failpoint("train.checkpoint")
    name = f"{PREFIX}{position.epoch:05d}-{position.step:07d}.pt"
    temporary = partial / f".tmp-{name}"
    content = {"position": vars(position), "learner": learner, "threads": torch.get_num_threads()}
    with disk_errors("a training checkpoint", temporary):
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(partial / name)
        digest = _sha256(partial / name)
        atomic_write(partial / POINTER, json.dumps({"file": name, "sha256": digest, "identity": identity}))
    for old in (*partial.glob(f"{PREFIX}*.pt"), *partial.glob(f".tmp-{PREFIX}*")):
        if old.name != name:
            old.unlink()


def load_state(partial: Path, identity: str) -> tuple[Position, dict[str, Any]] | None:
    """The saved state, or None where there is none of this training or it is damaged (which is logged).

    The number of threads is set to what the state was made with: float sums depend on it.
    """
    try:
        pointer = json.loads((partial / POINTER).read_bytes())
        path = partial / str(pointer["file"])
        if pointer["identity"] != identity:
            log.warning("the state in %s is of another training and is not used", partial)
            return None
        if _sha256(path) != pointer["sha256"]:
            log.warning("%s is damaged: the training starts again", path)
            return None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged: the training starts again", partial / POINTER)
        return None
    content = torch.load(path, map_location="cpu", weights_only=True)
    torch.set_num_threads(content["threads"])
    return Position(**content["position"]), content["learner"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
