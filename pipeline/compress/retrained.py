"""What the training of a rung leaves in the store: a checkpoint to be compressed, or why there is none."""

from __future__ import annotations

from distilledge.models.base import Value
from distilledge.pipeline.record import Checkpoint


class Retrained(Value):
    """``model.safetensors`` and ``curves.jsonl`` beside it."""

    checkpoint: Checkpoint | None
    """None: the training was stopped."""
    stopped: str | None = None
    """Why."""
    ranges: dict[str, tuple[float, float]] = {}
    """Of quantization-aware training: place in the fake-quantised network -> its learnt ends."""
