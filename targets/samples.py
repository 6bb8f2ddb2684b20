"""What files are measured and scored on: picture files or texts, by one interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from distilledge.targets.base import Exported, Inputs
from distilledge.targets.devices.base import Device, Message
from distilledge.targets.ondevice.preprocess import InputSpec, preprocess
from distilledge.targets.ondevice.text import TextEncoder, TextSpec, pad, write_rows

Reader = Callable[[Any], Inputs]
"""A picture's path -> uint8 (H, W, 3), or a row of text -> int32 (L,)."""


@dataclass(frozen=True)
class Samples:
    """``rows``: paths of pictures, or rows of text (``{"text": ..., "context": ...}``)."""

    rows: tuple[Any, ...]
    text: bool = False
    arrays: Mapping[str, str] = field(default_factory=dict)
    """Of files that others made: a candidate's name -> its .npz of ``ondevice.ports``; then ``rows`` only count."""

    def spread(self, count: int) -> Samples:
        """So many of them, or all, taken at even distances from the first on."""
        many = min(count, len(self.rows))
        return replace(self, rows=tuple(self.rows[i * len(self.rows) // many] for i in range(many)))

    def cycled(self, count: int) -> Samples:
        return replace(self, rows=tuple(self.rows[i % len(self.rows)] for i in range(count)))

    def pushed(self, device: Device, folder: Path) -> Message:
        """The fields of a request that name them, once they are on the device. ``folder``: for files of ours."""
        if not self.text:
            return {"files": list(device.push([Path(path) for path in self.rows]))}
        path = folder / f"texts-{len(list(folder.iterdir()))}.jsonl"
        write_rows(self.rows, path)
        return {"texts": device.push([path])[0]}

    def parts(self, pushed: Message, size: int) -> Iterator[Message]:
        """``pushed`` in requests for ``size`` rows each."""
        for start in range(0, len(self.rows), size):
            if self.text:
                yield {**pushed, "start": start, "count": size}
            else:
                yield {"files": pushed["files"][start : start + size]}


def pictures(paths: Sequence[str | Path]) -> Samples:
    return Samples(tuple(map(str, paths)))


def is_text(exported: Exported) -> bool:
    return exported.input_spec.get("kind") == "text"


def reader(input_spec: dict[str, Any], directory: Path) -> Reader:
    """By the code that runs on the device. ``directory``: where the tokenizer lies. Raises ``WrongTokenizer``."""
    if input_spec.get("kind") == "text":
        spec = TextSpec.from_dict(input_spec)
        return TextEncoder(directory / spec.tokenizer, spec).encode
    picture = InputSpec.from_dict(input_spec)
    return lambda path: preprocess(path, picture)


def timed_arrays(samples: Samples, input_spec: dict[str, Any], directory: Path, length: int | None) -> Inputs:
    """uint8 (N, H, W, 3); of texts int32 (N, L): each repeated or cut to ``length`` tokens, padded for the file."""
    read = reader(input_spec, directory)
    arrays = [read(row) for row in samples.rows]
    if length is None:
        return np.stack(arrays)
    spec = TextSpec.from_dict(input_spec)
    return np.stack([pad(np.resize(ids, length).astype(np.int32), spec) for ids in arrays])


def key(input_spec: dict[str, Any], directory: str) -> str:
    """Equal where the arrays are."""
    return json.dumps([input_spec, directory if input_spec.get("kind") == "text" else ""], sort_keys=True)
