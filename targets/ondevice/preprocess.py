"""The one implementation of evaluation preprocessing: on the host, in calibration and on the device.

Standard library, numpy and Pillow only; imports nothing of ours.

Rules of decoding, stated here once:

- Colour: gray, palette, CMYK, YCbCr and Lab become RGB by Pillow's conversion; colour profiles are not applied.
- Alpha (also transparent palette entries) is composited on ``alpha_background``.
- More than 8 bits: gray values are scaled by ``bit_depth`` significant bits, rounding to nearest. Pillow reads 16-bit
  colour by its upper byte, so ``bit_depth: 16`` is the only one that such files accept.
- JPEG files with more pictures in them (MPO: previews, depth) count as their first picture.
- JPEG's reduced decoding (``draft``) is not used: it changes the pixels that the resize sees.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

Uint8Array = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""Formats that are opened where this Pillow has them; others (EPS runs Ghostscript) are not pictures to us."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that sets the picture upright."""

CORRUPT = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on damaged data."""


class BadPicture(ValueError):  # noqa: N818 (a verdict on the file, and a name users read)
    """A picture that is refused; ``reason`` is one clause without the file's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class InputSpec:
    """How a picture file becomes uint8 (height, width, 3) RGB.

    Normalisation is in the model file; ``mean`` and ``std`` are informative. ``max_pixels`` is by default where Pillow
    warns of decompression bombs; it can be raised to twice that, where Pillow refuses.
    """

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
    max_pixels: int = 89_478_485
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
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)


def preprocess(source: str | os.PathLike[str] | bytes, spec: InputSpec) -> Uint8Array:
    """uint8 (height, width, 3) RGB of a picture file or its bytes. Raises ``BadPicture``."""
    return fit(decode(source, spec), spec)


def decode(source: str | os.PathLike[str] | bytes, spec: InputSpec) -> Image.Image:
    """The whole picture, upright, 8-bit RGB, at its own size. Raises ``BadPicture``, whatever is wrong with it."""
    data = source if isinstance(source, bytes) else _read(source)
    if not data:
        raise BadPicture("empty file (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF: decoding judges the pixels; of bombs: max_pixels does
        try:
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                return _rgb(_upright(image, spec), spec)
        except BadPicture:
            raise
        except UnidentifiedImageError:
            raise BadPicture(f"not an image (starts with {data[:12]!r})") from None
        except Image.DecompressionBombError as bomb:
            raise BadPicture(f"too many pixels: {str(bomb).split(',')[0]}") from None
        except CORRUPT as error:
            raise BadPicture(f"damaged: {str(error).strip() or type(error).__name__}") from None


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadPicture("not a regular file")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise BadPicture("broken link" if os.path.islink(path) else "no such file") from None
    except OSError as error:
        raise BadPicture(f"cannot be read: {error.strerror}") from None


def _upright(image: Image.Image, spec: InputSpec) -> Image.Image:
    """The decoded picture with the orientation rule applied; header checks come before any pixel is decoded."""
    _check_header(image, spec)
    orientation = image.getexif().get(ORIENTATION_TAG, 1)
    if spec.exif == "error" and orientation in UPRIGHT:
        raise BadPicture(f"EXIF orientation {orientation}")
    image.load()
    turned = image.format == "TIFF"  # Pillow sets TIFF upright while loading
    if turned and spec.exif == "ignore":
        orientation = {6: 8, 8: 6}.get(orientation, orientation)  # the inverse operation
    if orientation in UPRIGHT and (spec.exif == "apply") != turned:
        return image.transpose(UPRIGHT[orientation])
    return image


def _check_header(image: Image.Image, spec: InputSpec) -> None:
    width, height = image.size
    if width * height > spec.max_pixels:
        raise BadPicture(f"too many pixels: {width}x{height} is above max_pixels {spec.max_pixels}")
    if min(width, height) < spec.min_size:
        raise BadPicture(f"too small: {width}x{height} is below min_size {spec.min_size}")
    animated = getattr(image, "is_animated", False) and image.format != "MPO"
    if animated and spec.frames != "first":
        raise BadPicture("animated or multi-page picture; frames: first takes the first one")
    rawmode = str(image.tile[0][3]) if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    if ";16" in rawmode and image.mode in ("RGB", "RGBA", "CMYK") and spec.bit_depth != 16:
        raise BadPicture(f"colour of 16 bits per channel, but bit_depth is {spec.bit_depth}")


def _rgb(image: Image.Image, spec: InputSpec) -> Image.Image:
    if image.mode == "F":
        raise BadPicture("floating-point pixels have no bit depth")
    if image.mode.startswith("I"):
        image = Image.fromarray(_scaled(image, spec.bit_depth))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (*spec.alpha_background, 255)), layer)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    rgb.info.clear()  # EXIF is applied: nobody may apply it again
    return rgb


def _scaled(image: Image.Image, bit_depth: int) -> Uint8Array:
    """Gray of more than 8 bits as uint8 (H, W); refused where the values do not fit ``bit_depth``.

    Pillow itself scales PPM to 16 bits, whatever its maximum is.
    """
    values = np.asarray(image).astype(np.int64)
    top = 65535 if image.format == "PPM" and bit_depth > 8 else 2**bit_depth - 1
    outside = float(np.mean((values > top) | (values < 0)))
    if bit_depth == 8 or outside > 0:
        share = f"{100 * outside:.1f} % of the pixels would saturate (largest value {values.max()})"
        raise BadPicture(f"more than 8 bits per pixel, but bit_depth is {bit_depth}: {share}")
    return ((values * 510 + top) // (2 * top)).astype(np.uint8)  # round(255 v / top)


def fit(image: Image.Image, spec: InputSpec) -> Uint8Array:
    """uint8 (height, width, 3) of an RGB picture of any size.

    ``stretch`` both sides; ``crop``: the shorter side to size / crop_fraction, then the centre, rounded as
    torchvision does; ``letterbox``: the whole picture, centred on black.
    """
    size = (spec.width, spec.height)
    if spec.resize == "stretch":
        return _array(_resize(image, size, (0.0, 0.0, float(image.width), float(image.height)), spec))
    if spec.resize == "crop":
        return _array(_resize(image, size, crop_box(image.size, spec), spec))
    if spec.resize == "letterbox":
        return _letterbox(image, spec)
    raise ValueError(f"unknown resize rule {spec.resize!r}; choose from crop, letterbox, stretch")


def crop_box(size: tuple[int, int], spec: InputSpec) -> tuple[float, float, float, float]:
    """The part of a picture of ``size`` (width, height) that ``crop`` keeps, in its pixels (left, top, right, bottom).

    Equal to resizing the whole picture and cutting the centre out, without making the rest.
    """
    width, height = size
    across, down = int(spec.width / spec.crop_fraction), int(spec.height / spec.crop_fraction)
    if width * down <= height * across:
        down = max(down, int(across * height / width))
    else:
        across = max(across, int(down * width / height))
    left, top = round((across - spec.width) / 2.0), round((down - spec.height) / 2.0)
    x, y = width / across, height / down
    return left * x, top * y, (left + spec.width) * x, (top + spec.height) * y


def _letterbox(image: Image.Image, spec: InputSpec) -> Uint8Array:
    scale = min(spec.width / image.width, spec.height / image.height)
    width = min(spec.width, max(1, round(image.width * scale)))
    height = min(spec.height, max(1, round(image.height * scale)))
    inner = _resize(image, (width, height), (0.0, 0.0, float(image.width), float(image.height)), spec)
    canvas = np.zeros((spec.height, spec.width, 3), np.uint8)
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    canvas[top : top + height, left : left + width] = _array(inner)
    return canvas


def _resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float], spec: InputSpec
) -> Image.Image:
    """The region ``box`` at ``size`` (width, height); without antialias each pixel is interpolated at its centre."""
    if spec.interpolation not in INTERPOLATIONS:
        raise ValueError(f"unknown interpolation {spec.interpolation!r}; choose from {', '.join(INTERPOLATIONS)}")
    method = INTERPOLATIONS[spec.interpolation]
    left, top, right, bottom = box
    if spec.antialias or box == (0.0, 0.0, *map(float, size)):
        right, bottom = min(right, float(image.width)), min(bottom, float(image.height))  # rounding of the product
        return image.resize(size, method, (left, top, right, bottom))
    if spec.interpolation == "lanczos":
        raise ValueError("interpolation lanczos needs antialias: true")
    affine = ((right - left) / size[0], 0.0, left, 0.0, (bottom - top) / size[1], top)
    return image.transform(size, Image.Transform.AFFINE, affine, Image.Resampling(method))


def _array(image: Image.Image) -> Uint8Array:
    return np.array(image, np.uint8)
