"""What the parity ladder compares on: probes, then real pictures or texts, and how torch and a file are given them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from distilledge.targets.base import FloatArray, Inputs, Uint8Array
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.session import Session
from distilledge.targets.ondevice.text import TextEncoder, TextSpec, pad
from distilledge.targets.samples import Samples, reader

GRAPH_ROWS = 4
"""Rows run with every tensor kept (memory)."""
PROBE_WORDS = ("", "a")
"""Probe texts: none, and one token."""


class Judged(NamedTuple):
    """Logits of all rows, and what is decided by them, each (rows, choices): equal but of independent labels."""

    logits: FloatArray
    decisions: FloatArray


class PictureRows:
    """Pictures behind constant images, uint8 (N, H, W, 3)."""

    PROBES = 6

    def __init__(self, images: Uint8Array, spec: InputSpec) -> None:
        self.images, self.spec = images, spec
        self.few = images[self.PROBES - 2 : self.PROBES + GRAPH_ROWS - 2]
        """Two coloured probes and the first pictures."""
        self.real_few = images[self.PROBES :][:GRAPH_ROWS]

    def __len__(self) -> int:
        return len(self.images)

    def only(self, few: Inputs) -> PictureRows:
        return PictureRows(few.astype(np.uint8), self.spec)

    def real(self) -> PictureRows:
        """Without the probes: they lie outside the calibrated range and say nothing of int8."""
        return PictureRows(self.images[self.PROBES :], self.spec)

    @torch.inference_mode()
    def by_torch(self, model: nn.Module) -> Judged:
        """Normalised in numpy, independent of the graph; in batches of 16."""
        parts = [self.images[i : i + 16] for i in range(0, len(self), 16)]
        return self.judged([row for p in parts for row in model(normalise(p, self.spec)).float().numpy()])

    def by_file(self, session: Session) -> Judged:
        return self.judged(list(session.run(self.images)))

    def judged(self, outputs: Sequence[FloatArray]) -> Judged:
        logits = np.stack([output.reshape(-1) for output in outputs])
        return Judged(logits, logits)

    def tensor(self, few: Inputs) -> torch.Tensor:
        return normalise(few.astype(np.uint8), self.spec)


class IdRows:
    """Ids of texts behind those of an empty text, one token and the longest; compared on real tokens only."""

    PROBES = 3

    def __init__(self, ids: Sequence[Inputs], spec: TextSpec, probes: int = PROBES) -> None:
        self.ids, self.spec, self.probes = list(ids), spec, probes
        self.few = self._common(self.ids[probes:][:GRAPH_ROWS] or self.ids[:1])
        self.real_few = self.few

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, few: Inputs) -> IdRows:
        return IdRows([row[row != self.spec.pad_id] for row in few], self.spec, 0)

    def real(self) -> IdRows:
        return IdRows(self.ids[self.probes :], self.spec, 0)

    @torch.inference_mode()
    def by_torch(self, model: nn.Module) -> Judged:
        """One text at a time, not padded: the file's padding must change nothing."""
        return self.judged([model(torch.from_numpy(ids)[None])[0].float().numpy() for ids in self.ids])

    def by_file(self, session: Session) -> Judged:
        return self.judged([session.run([pad(ids, self.spec)])[0] for ids in self.ids])

    def judged(self, outputs: Sequence[FloatArray]) -> Judged:
        """``outputs``: (C,) or (L, K) for each text, padding behind it or not."""
        if outputs[0].ndim == 1:
            logits = np.stack(outputs)
            return Judged(logits, binary(logits) if self.spec.task == "multi-label-classification" else logits)
        real = [output[: len(ids)] for output, ids in zip(outputs, self.ids, strict=True)]
        if self.spec.task == "question-answering":
            logits = np.concatenate([_widened(output.T, self.spec.max_length) for output in real])
        else:
            logits = np.concatenate(real)
        return Judged(logits, logits)

    def tensor(self, few: Inputs) -> torch.Tensor:
        return torch.from_numpy(few)

    def _common(self, rows: Sequence[Inputs]) -> Inputs:
        """(N, L), padded to a length that the file takes."""
        longest = max(rows, key=len)
        width = len(pad(longest.astype(np.int32), self.spec))
        return np.stack([np.pad(r, (0, width - len(r)), constant_values=self.spec.pad_id) for r in rows])


Rows = PictureRows | IdRows


def picture_rows(samples: Samples, spec: InputSpec) -> PictureRows:
    read = reader(spec.to_dict(), Path())
    images = [np.asarray(read(path), np.uint8) for path in samples.rows]
    return PictureRows(np.concatenate([probes(spec), np.stack(images)]), spec)


def id_rows(samples: Samples, encoder: TextEncoder) -> IdRows:
    """The longest: all texts in one, cut."""
    pair = {"context": "a"} if encoder.spec.task == "question-answering" else {}
    words = [list(w.split()) if encoder.spec.task == "token-classification" else w for w in PROBE_WORDS]
    made: list[dict[str, Any]] = [{"text": text, **pair} for text in words]
    made.append(_longest(samples.rows, encoder.spec.max_length))
    return IdRows([encoder.encode(row) for row in (*made, *samples.rows)], encoder.spec)


def probes(spec: InputSpec) -> Uint8Array:
    """Constant images: black, grey, white, red, green, blue; a doubled normalisation or swapped channels show."""
    colours = [(0, 0, 0), (128, 128, 128), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    return np.stack([np.full((spec.height, spec.width, 3), colour, np.uint8) for colour in colours])


def normalise(images: Uint8Array, spec: InputSpec) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32, the contract's own arithmetic."""
    scaled = (images.astype(np.float32) / 255.0 - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def binary(logits: FloatArray) -> FloatArray:
    """(N, C) independent logits -> (N * C, 2): no against yes."""
    flat = logits.reshape(-1)
    return np.stack([np.zeros_like(flat), flat], 1)


def _widened(logits: FloatArray, length: int) -> FloatArray:
    """(2, L) -> (2, length): behind the end each row's smallest, which is never chosen."""
    rest = np.repeat(logits.min(1, keepdims=True), length - logits.shape[1], axis=1)
    return np.concatenate([logits, rest], 1)


def _longest(rows: Sequence[Any], max_length: int) -> dict[str, Any]:
    """One row of at least ``max_length`` tokens, from the words of all."""
    words = [word for row in rows for word in (row["text"].split() if isinstance(row["text"], str) else row["text"])]
    many = (words or ["a"]) * (1 + max_length // max(1, len(words)))
    if rows and not isinstance(rows[0]["text"], str):
        return {"text": many}
    if rows and rows[0].get("context") is not None:
        return {"text": "a", "context": " ".join(many)}
    return {"text": " ".join(many)}
