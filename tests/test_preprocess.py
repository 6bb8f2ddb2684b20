"""Decoding and fitting of pictures: the rules that ``ondevice/preprocess.py`` states."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from distilledge.targets.ondevice.preprocess import (
    ORIENTATION_TAG,
    BadPicture,
    InputSpec,
    crop_box,
    decode,
    fit,
    preprocess,
)

SPEC = InputSpec(32, 32)


def spec(**fields: Any) -> InputSpec:
    return InputSpec(**{"height": 32, "width": 32, **fields})


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height: int = 40, width: int = 56, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def reason(data: bytes | str | Path, **fields: Any) -> str:
    with pytest.raises(BadPicture) as caught:
        decode(data, spec(**fields))
    return caught.value.reason


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(file_format: str) -> None:
    image = noise()
    found = decode(encoded(image, file_format), SPEC)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "GIF", "JPEG2000", "AVIF", "MPO"])
def test_other_formats_open(file_format: str) -> None:
    assert decode(encoded(noise(), file_format), SPEC).size == (56, 40)


def test_jpeg_is_decoded_whole() -> None:
    """A reduced decoding would change pixels before they are resized."""
    data = encoded(noise(512, 512), "JPEG")
    with Image.open(io.BytesIO(data)) as plain:
        expected = np.asarray(plain.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(data, SPEC)), expected)


def test_bytes_and_path_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ü name\nwith line.png"
    path.write_bytes(encoded(noise()))
    np.testing.assert_array_equal(preprocess(path, SPEC), preprocess(path.read_bytes(), SPEC))
    np.testing.assert_array_equal(preprocess(str(path), SPEC), preprocess(path.read_bytes(), SPEC))


@pytest.mark.parametrize(("mode", "file_format"), [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("CMYK", "JPEG")])
def test_modes_become_rgb_by_pillows_rule(mode: str, file_format: str) -> None:
    image = noise().convert(mode)
    data = encoded(image, file_format)
    with Image.open(io.BytesIO(data)) as plain:
        expected = np.asarray(plain.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(data, SPEC)), expected)


@pytest.mark.parametrize("colour", [(255, 255, 255), (10, 200, 30)])
def test_alpha_is_composited_on_the_stated_colour(colour: tuple[int, int, int]) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, :8] = (255, 0, 0, 255)
    found = np.asarray(decode(encoded(Image.fromarray(pixels)), spec(alpha_background=colour)))
    assert tuple(found[0, 0]) == (255, 0, 0)
    assert tuple(found[0, 15]) == colour


def test_half_transparency_is_mixed() -> None:
    image = Image.new("LA", (9, 9), (0, 128))
    value = np.asarray(decode(encoded(image), SPEC))[0, 0, 0]
    assert abs(int(value) - 127) <= 1


def test_transparent_palette_entry_shows_the_background() -> None:
    image = Image.new("P", (9, 9), 3)
    image.putpalette([7, 7, 7] * 256)
    data = encoded(image, transparency=3)
    assert np.asarray(decode(data, spec(alpha_background=(1, 2, 3))))[4, 4].tolist() == [1, 2, 3]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, file_format: str) -> None:
    """``apply`` sets upright what a camera stored turned; ``ignore`` keeps it as stored; ``error`` refuses."""
    upright = Image.fromarray(np.kron(np.array([[250, 10, 10], [10, 10, 120]], np.uint8), np.ones((16, 16), np.uint8)))
    to_stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of each, as PIL.Image.Transpose
    stored = upright.transpose(Image.Transpose(to_stored[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    data = encoded(stored.convert("RGB"), file_format, exif=exif)
    for rule, expected in (("apply", upright), ("ignore", stored)):
        found = np.asarray(decode(data, spec(exif=rule)).convert("L")).astype(int)
        assert found.shape == np.asarray(expected).shape, rule
        assert np.abs(found - np.asarray(expected)).mean() < 12, rule
    if orientation > 1:
        assert reason(data, exif="error") == f"EXIF orientation {orientation}"
    else:
        decode(data, spec(exif="error"))


def sixteen_bit(values: np.ndarray[Any, Any], file_format: str = "PNG") -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)), file_format)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("depth", [10, 12, 14, 16])
def test_deep_gray_is_scaled_by_its_depth(depth: int, file_format: str) -> None:
    top = 2**depth - 1
    values = np.linspace(0, top, 400).round().reshape(20, 20)
    found = np.asarray(decode(sixteen_bit(values, file_format), spec(bit_depth=depth)))[..., 0]
    np.testing.assert_array_equal(found, np.floor(values * 255 / top + 0.5))


def test_deep_gray_is_refused_without_a_depth() -> None:
    values = np.zeros((10, 10))
    values[:3] = 4095
    assert "bit_depth is 8: 30.0 % of the pixels would saturate (largest value 4095)" in reason(sixteen_bit(values))


def test_values_above_the_depth_are_refused() -> None:
    values = np.full((10, 10), 1000)
    values[0, 0] = 5000
    assert "bit_depth is 12: 1.0 %" in reason(sixteen_bit(values), bit_depth=12)


def test_deep_pgm_is_scaled_by_its_own_maximum() -> None:
    data = b"P5 2 1 4095\n" + struct.pack(">HH", 4095, 0)
    assert np.asarray(decode(data, spec(bit_depth=12)))[0, :, 0].tolist() == [255, 0]
    assert "bit_depth is 8" in reason(data)


def colour_png_of_16_bits() -> bytes:
    """Pillow cannot write one."""
    rows = b"".join(b"\0" + struct.pack(">6H", *([0x1234] * 6)) for _ in range(2))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_deep_colour_needs_depth_16() -> None:
    assert "16 bits per channel" in reason(colour_png_of_16_bits())
    assert "16 bits per channel" in reason(colour_png_of_16_bits(), bit_depth=12)
    assert np.asarray(decode(colour_png_of_16_bits(), spec(bit_depth=16)))[0, 0].tolist() == [0x12] * 3


def test_float_pixels_are_refused() -> None:
    assert "floating-point" in reason(encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"))


def bomb(side: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8))))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize(("side", "limit"), [(60_000, 89_478_485), (10_000, 89_478_485), (3000, 1_000_000)])
def test_too_many_pixels_are_refused_before_decoding(side: int, limit: int) -> None:
    """The files hold 8x8 pixels of data: decoding would end as ``damaged``."""
    assert reason(bomb(side), max_pixels=limit).startswith("too many pixels")


def test_max_pixels_can_be_raised() -> None:
    assert reason(bomb(10_000), max_pixels=120_000_000).startswith("damaged")


@pytest.mark.parametrize("size", [(1, 40), (3, 3), (40, 7)])
def test_small_pictures_are_refused(size: tuple[int, int]) -> None:
    assert "below min_size 8" in reason(encoded(Image.new("RGB", size)), min_size=8)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_more_frames_are_refused_unless_the_first_is_asked_for(file_format: str) -> None:
    frames = [Image.new("RGB", (16, 16), c) for c in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert "frames: first" in reason(data)
    found = np.asarray(decode(data, spec(frames="first")))[8, 8].astype(int)
    assert np.abs(found - (200, 0, 0)).max() < 12


def test_what_is_not_a_picture(tmp_path: Path) -> None:
    assert reason(b"") == "empty file (0 bytes)"
    assert reason(b"<!DOCTYPE html><html></html>").startswith("not an image (starts with b'<!DOCTYPE ht")
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").startswith("not an image")
    assert reason(tmp_path) == "not a regular file"
    assert reason(tmp_path / "absent.png") == "no such file"
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "absent.png")
    assert reason(link) == "broken link"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"])
def test_truncated_pictures_are_damaged(file_format: str) -> None:
    """A truncated JPEG passes Pillow's ``verify()``; only a full decode finds it."""
    data = encoded(noise(), file_format)
    assert reason(data[: len(data) * 2 // 3]).startswith(("damaged", "not an image"))


@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]), st.data())
@settings(max_examples=120, deadline=None)
def test_damage_ends_in_a_picture_or_in_bad_picture(file_format: str, data: st.DataObject) -> None:
    content = bytearray(encoded(noise(12, 14), file_format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = preprocess(bytes(content[: data.draw(st.integers(0, len(content)))]), spec(max_pixels=1_000_000))
    except BadPicture:
        return
    assert array.shape == (32, 32, 3)


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.sampled_from(["stretch", "crop", "letterbox"]),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    st.booleans(),
    st.floats(0.05, 1.0),
)
@settings(max_examples=200, deadline=None)
def test_any_size_gives_the_shape_asked_for(
    size: tuple[int, int], target: tuple[int, int], resize: str, interpolation: str, antialias: bool, fraction: float
) -> None:
    image = noise(*size)
    rule = InputSpec(
        *target,
        resize=resize,
        interpolation=interpolation,
        antialias=antialias or interpolation == "lanczos",
        crop_fraction=fraction,
    )
    array = fit(image, rule)
    assert array.shape == (*target, 3)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    assert array.flags.writeable
    np.testing.assert_array_equal(array, fit(image, rule))


@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
def test_a_picture_of_the_final_size_stays_as_it_is(resize: str) -> None:
    image = noise(32, 32)
    for antialias in (True, False):
        np.testing.assert_array_equal(fit(image, spec(resize=resize, antialias=antialias)), np.asarray(image))


@given(st.integers(1, 255), st.sampled_from(["stretch", "crop"]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_constant_picture_stays_constant(value: int, resize: str, antialias: bool) -> None:
    array = fit(Image.new("RGB", (75, 41), (value,) * 3), spec(resize=resize, antialias=antialias, crop_fraction=0.8))
    assert (array == value).all()


@pytest.mark.parametrize("size", [(300, 437), (437, 300), (224, 224), (57, 90)])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_crop_agrees_with_torchvision(size: tuple[int, int], method: str) -> None:
    image = noise(*size)
    side = int(64 / 0.875)
    mode = transforms.InterpolationMode(method)
    expected = transforms.CenterCrop(64)(transforms.Resize(side, mode)(image))
    found = fit(image, InputSpec(64, 64, resize="crop", crop_fraction=0.875, interpolation=method))
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1


def test_crop_keeps_the_centre() -> None:
    assert crop_box((200, 100), InputSpec(50, 50)) == (50.0, 0.0, 150.0, 100.0)
    assert crop_box((100, 200), InputSpec(50, 50)) == (0.0, 50.0, 100.0, 150.0)
    assert crop_box((100, 100), InputSpec(50, 50, crop_fraction=0.5)) == (25.0, 25.0, 75.0, 75.0)


def test_letterbox_geometry() -> None:
    wide = fit(Image.new("RGB", (80, 40), (255, 255, 255)), spec(resize="letterbox"))
    assert (wide[8:24] == 255).all()
    assert wide[:8].max() == wide[24:].max() == 0
    tall = fit(Image.new("RGB", (1, 500), (255, 255, 255)), spec(resize="letterbox"))
    assert (tall[:, 15] == 255).all()
    assert tall.sum() == 32 * 3 * 255


def test_without_antialias_pixels_are_interpolated_as_torch_does() -> None:
    image = noise(300, 437)
    found = fit(image, InputSpec(100, 120, antialias=False)).astype(float)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(tensor, (100, 120), mode="bilinear", align_corners=False)
    assert np.abs(found - expected[0].permute(1, 2, 0).numpy()).max() < 1.01  # Pillow cuts fractions off
    assert np.abs(found - fit(image, InputSpec(100, 120))).max() > 20  # antialias makes a difference here


def test_unknown_rules_are_named() -> None:
    with pytest.raises(ValueError, match="choose from crop, letterbox, stretch"):
        fit(noise(), spec(resize="squash"))
    with pytest.raises(ValueError, match="choose from nearest, bilinear"):
        fit(noise(), spec(interpolation="cubic"))
    with pytest.raises(ValueError, match="needs antialias"):
        fit(noise(), spec(interpolation="lanczos", antialias=False))


def test_spec_survives_json() -> None:
    given_spec = spec(alpha_background=(1, 2, 3), mean=(0.1, 0.2, 0.3), antialias=False)
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in given_spec.to_dict().items()}
    assert InputSpec.from_dict(fields) == given_spec
