"""The one implementation of evaluation preprocessing: on the host, in calibration and on the device.

Standard library, numpy and Pillow only; imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class InputSpec:
    """How a picture file becomes uint8 (height, width, 3) RGB. Normalisation is in the model file; mean and std are informative."""

    height: int
    width: int
    resize: str = "stretch"
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"
    antialias: bool = True
    bit_depth: int = 8
    alpha_background: tuple[int, int, int] = (255, 255, 255)
    exif: str = "apply"
    frames: str = "error"
    max_pixels: int = 178_956_970
    min_size: int = 1
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    colour: str = "RGB"
    layout: str = "NHWC"
    dtype: str = "uint8"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> InputSpec:
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**lists)
