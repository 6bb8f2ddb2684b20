"""What comes from a loader."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Loaded(NamedTuple):
    """Samples of a step as they come from a loader, and their indices (N,)."""

    inputs: Tensor
    """Pictures: uint8 (N, 3, H, W) in channels-last memory. Texts: int64 ids (N, L), padded."""
    indices: Tensor
