"""What a request names to be timed or scored: picture files, or texts."""

from __future__ import annotations

from typing import Any

import numpy as np

if __package__:
    from distilledge.targets.ondevice.preprocess import InputSpec, preprocess
    from distilledge.targets.ondevice.session import Session
    from distilledge.targets.ondevice.text import TextEncoder, TextSpec, pad, read_rows
else:
    from preprocess import InputSpec, preprocess  # type: ignore[import-not-found,no-redef]
    from session import Session  # type: ignore[import-not-found,no-redef]
    from text import TextEncoder, TextSpec, pad, read_rows  # type: ignore[import-not-found,no-redef]

Array = np.ndarray[Any, Any]
Message = dict[str, Any]


class Pictures:
    """The picture files that a request names."""

    longest = 0

    def __init__(self, request: Message) -> None:
        self.rows: list[Any] = request["files"]
        self.spec = InputSpec.from_dict(request["spec"])

    def name(self, index: int) -> str:
        return str(self.rows[index])

    def predict(self, session: Session, row: Any) -> Array:
        """Logits (classes,)."""
        logits: Array = session.run(preprocess(row, self.spec)[None])[0]
        return logits


class Texts:
    """The texts that a request names."""

    def __init__(self, request: Message, tokenizer: str) -> None:
        if not tokenizer:
            raise ValueError("no tokenizer is loaded")
        self.spec = TextSpec.from_dict(request["spec"])
        self.longest, self.start = self.spec.max_length, request.get("start", 0)
        rows = read_rows(request["texts"])
        self.rows: list[Any] = rows[self.start : self.start + request.get("count", len(rows))]
        self.read = TextEncoder(tokenizer, self.spec).encode

    def name(self, index: int) -> str:
        return f"text {self.start + index}"

    def predict(self, session: Session, row: Any) -> Array:
        """Logits (classes,), or of the real tokens (L, K)."""
        ids = self.read(row)
        logits: Array = session.run([pad(ids, self.spec)])[0]
        return logits if logits.ndim == 1 else logits[: len(ids)]
