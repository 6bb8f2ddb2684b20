"""One test for each bad input that a data set brings: its exit code, and a message that names the fault."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distilledge.models.errors import DistilledgeError, GateFailedError, RejectedError
from distilledge.pipeline.data.content import content_hash
from distilledge.pipeline.data.prepare import prepare
from distilledge.pipeline.recipe import Columns, Data, MaxBad
from distilledge.pipeline.record import Sample, Splits, read_samples

CLASSES = ("crack", "good")
TOLERANT = MaxBad(train=0.2, validation=0.2, test=0.2)


def noise(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A picture like no other: blocks that perceptual hashes tell apart."""
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def fill(root: Path, parts: tuple[str, ...] = ("",), each: int = 12) -> Path:
    """``each`` pictures of two classes in each part."""
    seed = 0
    for part in parts:
        for name in CLASSES:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(each):
                seed += 1
                noise(seed).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return fill(tmp_path / "data")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return fill(tmp_path / "data", ("train", "validation", "test"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(root: Path | str, out: Path, *, bit_depth: int = 8, **changes: Any) -> Splits:
    data = Data(path=str(root), **{"calibration": 12, **changes})
    return prepare(data, bit_depth=bit_depth, seed=0, out=out)


def refused(root: Path | str, out: Path, *, bit_depth: int = 8, **changes: Any) -> DistilledgeError:
    with pytest.raises(RejectedError) as caught:
        run(root, out, bit_depth=bit_depth, **changes)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value


def bad_files(out: Path) -> dict[str, str]:
    lines = (out / "bad_files.jsonl").read_text().splitlines()
    return {record["path"]: record["reason"] for record in map(json.loads, lines)}


def findings(out: Path) -> dict[str, dict[str, Any]]:
    return {f["kind"]: f for f in json.loads((out / "audit.json").read_text())["findings"]}


def quarantines(plain: Path, out: Path, name: str, reason: str, **changes: Any) -> None:
    """Over the limit the run stops and says why; under it the picture is left out and the run goes on."""
    error = refused(plain, out, max_bad=MaxBad(train=0.0), **changes)
    assert name in error.what
    assert reason in error.what
    assert "bad_files.jsonl" in error.hint
    assert reason in bad_files(out)[name]
    splits = run(plain, out, max_bad=TOLERANT, **changes)
    assert reason in bad_files(out)[name]
    assert name not in {s.path for s in read_samples(out)}
    assert any("cannot be used" in text for text in splits.warnings)
    assert json.loads((out / "audit.json").read_text())["bad"] == 1


# B1


@pytest.mark.parametrize("kind", ["missing", "empty", "no class folders", "a picture"])
def test_b1_no_data_shows_the_expected_layout(tmp_path: Path, out: Path, kind: str) -> None:
    root = tmp_path / "data"
    if kind != "missing":
        root.mkdir()
    if kind in ("no class folders", "a picture"):
        noise(1).save(root / "a.png")
    error = refused(root / "a.png" if kind == "a picture" else root, out)
    assert str(root) in error.what
    assert "ROOT/<class>/*.png" in error.what


def test_b1_an_unset_variable_is_named(out: Path) -> None:
    assert "$NO_SUCH_VARIABLE_HERE" in refused("$NO_SUCH_VARIABLE_HERE/data", out).what


def test_b1_variables_are_expanded(plain: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PLACE", str(plain.parent))
    assert run("${SOME_PLACE}/data", out).root == str(plain)


# B2


def test_b2_empty_class_folder_lists_counts(plain: Path, out: Path) -> None:
    (plain / "dent").mkdir()
    error = refused(plain, out)
    assert "dent" in error.what
    assert "crack 12, dent 0, good 12" in error.what


def test_b2_one_class_lists_counts_and_suggests_the_inner_folder(plain: Path, out: Path) -> None:
    (plain / "crack").rename(plain.parent / "elsewhere")
    error = refused(plain, out)
    assert "only one class" in error.what
    assert "good 12" in error.what
    outer = plain.parent / "outer"
    outer.mkdir()
    (plain.parent / "elsewhere").rename(plain / "crack")
    plain.rename(outer / "images")
    assert refused(outer, out).hint.endswith("outer/images")


# B3, B4, B5, B6, B10, B15: quarantine


def test_b3_empty_file(plain: Path, out: Path) -> None:
    (plain / "good/000.png").write_bytes(b"")
    quarantines(plain, out, "good/000.png", "empty file")


def test_b4_truncated_jpeg_is_found_by_full_decode(plain: Path, out: Path) -> None:
    path = plain / "good/cut.jpg"
    noise(99, (200, 200)).save(path, quality=90)
    path.write_bytes(path.read_bytes()[:-2000])
    Image.open(path).verify()  # does not notice
    quarantines(plain, out, "good/cut.jpg", "damaged")


def test_b5_html_as_jpg(plain: Path, out: Path) -> None:
    (plain / "good/x.jpg").write_text("<html><body>404</body></html>")
    quarantines(plain, out, "good/x.jpg", "not an image")


def test_b5_text_file(plain: Path, out: Path) -> None:
    (plain / "good/notes.txt").write_text("lot 7, second shift")
    quarantines(plain, out, "good/notes.txt", "not an image")


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data does not have."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_b6_bomb_is_refused_before_decoding(plain: Path, out: Path, side: int) -> None:
    (plain / "good/bomb.png").write_bytes(bomb(side, side))
    quarantines(plain, out, "good/bomb.png", "too many pixels")


def test_b6_max_pixels(plain: Path, out: Path) -> None:
    noise(99, (200, 200)).save(plain / "good/large.png")
    quarantines(plain, out, "good/large.png", "max_pixels", max_pixels=10_000)


@pytest.mark.parametrize("size", [(1, 400), (3, 3)])
def test_b10_too_small(plain: Path, out: Path, size: tuple[int, int]) -> None:
    noise(99, size).save(plain / "good/small.png")
    quarantines(plain, out, "good/small.png", f"{size[0]}x{size[1]} is below min_size 8")


def test_b15_broken_link(plain: Path, out: Path) -> None:
    (plain / "good/gone.png").symlink_to(plain / "nowhere.png")
    quarantines(plain, out, "good/gone.png", "broken link")


def test_b15_link_to_itself(plain: Path, out: Path) -> None:
    (plain / "good/self.png").symlink_to(plain / "good/self.png")
    quarantines(plain, out, "good/self.png", "cannot be read")


def test_b15_pipe_does_not_hang(plain: Path, out: Path) -> None:
    os.mkfifo(plain / "good/pipe.png")
    quarantines(plain, out, "good/pipe.png", "not a regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_b15_unreadable_file(plain: Path, out: Path) -> None:
    (plain / "good/000.png").chmod(0)
    quarantines(plain, out, "good/000.png", "cannot be read")


def test_b15_directory_loop_is_cut(plain: Path, out: Path) -> None:
    (plain / "good/more").mkdir()
    noise(99).save(plain / "good/more/a.png")
    (plain / "good/more/back").symlink_to(plain / "good", target_is_directory=True)
    splits = run(plain, out)
    assert "good/more/back" in findings(out)["directory_loop"]["examples"]
    assert sum(of["good"] for of in splits.counts.values()) == 13


def test_bad_files_are_judged_by_split(given: Path, out: Path) -> None:
    (given / "test/good/000.png").write_bytes(b"")
    error = refused(given, out, max_bad=MaxBad(train=0.5))
    assert "1 of 24 test pictures" in error.what
    assert "--set data.max_bad.test=" in error.hint


# B7


def deep(path: Path, top: int) -> None:
    values = np.random.default_rng(5).integers(0, top + 1, (20, 20)).astype(np.uint16)
    values[0, 0] = top
    Image.fromarray(values).save(path)


def test_b7_twelve_bit_mono_needs_the_bit_depth(plain: Path, out: Path) -> None:
    deep(plain / "good/deep.png", 4095)
    error = refused(plain, out)
    assert "good/deep.png" in error.what
    assert "% of the pixels would saturate" in error.what
    assert "bit_depth=12" in error.hint
    run(plain, out, bit_depth=12)
    assert "good/deep.png" in {s.path for s in read_samples(out)}


def test_b7_values_above_the_bit_depth(plain: Path, out: Path) -> None:
    deep(plain / "good/deep.png", 65535)
    assert "bit_depth=16" in refused(plain, out, bit_depth=12).hint


# B8


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(99, (40, 24)).save(path, exif=exif)


def test_b8_exif_rotation_is_applied_and_counted(plain: Path, out: Path) -> None:
    rotated(plain / "good/turned.jpg")
    run(plain, out)
    content = json.loads((out / "audit.json").read_text())
    assert content["exif_rotated"] == 1
    assert findings(out)["exif"]["examples"] == ["good/turned.jpg"]
    assert content["sizes"]["max"] == [24, 40]
    run(plain, out, exif="ignore")
    assert json.loads((out / "audit.json").read_text())["sizes"]["max"] == [40, 24]


def test_b8_exif_error(plain: Path, out: Path) -> None:
    rotated(plain / "good/turned.jpg")
    error = refused(plain, out, exif="error")
    assert "EXIF orientation 6" in error.what
    assert "data.exif=apply" in error.hint


# B9


def test_b9_modes_are_converted_and_counted(plain: Path, out: Path) -> None:
    for number, mode in enumerate(("CMYK", "L", "P", "RGBA")):
        suffix = "jpg" if mode == "CMYK" else "png"
        noise(100 + number).convert(mode).save(plain / f"good/{mode}.{suffix}")
    run(plain, out)
    modes = json.loads((out / "audit.json").read_text())["modes"]
    assert modes == {"CMYK": 1, "L": 1, "P": 1, "RGB": 24, "RGBA": 1}
    assert findings(out)["converted"]["count"] == 3  # gray needs no mention
    assert "CMYK 1" in findings(out)["converted"]["message"]


# B11


@pytest.mark.parametrize("suffix", ["gif", "tif"])
def test_b11_several_frames(plain: Path, out: Path, suffix: str) -> None:
    noise(98).save(plain / f"good/many.{suffix}", save_all=True, append_images=[noise(99)])
    error = refused(plain, out)
    assert f"good/many.{suffix}" in error.what
    assert "data.frames=first" in error.hint
    run(plain, out, frames="first")


# B12


def test_b12_strange_names_work(plain: Path, out: Path) -> None:
    names = ["naïve Prüfung.png", "two\nlines.png", "x" * 251 + ".png", "日本.png"]
    for number, name in enumerate(names):
        noise(100 + number).save(plain / "good" / name)
    (plain / "good" / os.fsdecode(b"\xff\xfe.png")).write_bytes((plain / "good/two\nlines.png").read_bytes()[:50])
    run(plain, out, max_bad=TOLERANT)
    assert {f"good/{name}" for name in names} <= {s.path for s in read_samples(out)}
    assert os.fsencode(next(iter(bad_files(out)))) == b"good/\xff\xfe.png"
    for finding in findings(out).values():
        assert all(text.isprintable() and text.encode() for text in finding["examples"])


def test_b12_case_collisions_are_named(plain: Path, out: Path) -> None:
    noise(100).save(plain / "good/A.png")
    noise(101).save(plain / "good/a.png")
    splits = run(plain, out)
    assert findings(out)["case_collision"]["examples"] == ["good/A.png / good/a.png"]
    assert any("case" in text for text in splits.warnings)


# B13


def leaks(root: Path, out: Path, *paths: str) -> None:
    with pytest.raises(GateFailedError) as caught:
        run(root, out)
    assert caught.value.exit_code == 5
    for path in paths:
        assert path in caught.value.what
    assert "allow_leakage" in caught.value.hint
    assert json.loads((out / "audit.json").read_text())["findings"][-1]["severity"] == "error"
    assert any("allowed" in text for text in run(root, out, allow_leakage=True).warnings)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_b13_the_same_file_in_two_splits(given: Path, out: Path, part: str) -> None:
    (given / part / "good/copy.png").write_bytes((given / "train/good/000.png").read_bytes())
    leaks(given, out, "train/good/000.png", f"{part}/good/copy.png")


def test_b13_the_same_pixels_in_another_container(given: Path, out: Path) -> None:
    Image.open(given / "train/good/000.png").save(given / "test/good/copy.bmp")
    leaks(given, out, "train/good/000.png", "test/good/copy.bmp")


def test_b13_saved_again_as_jpeg(given: Path, out: Path) -> None:
    grain = np.random.default_rng(3).normal(0, 12, (120, 160, 3))
    picture = Image.fromarray((np.asarray(noise(99, (160, 120))) * 0.6 + 40 + grain).clip(0, 255).astype(np.uint8))
    picture.save(given / "train/good/x.png")
    picture.save(given / "test/good/y.jpg", quality=96, subsampling=0)
    leaks(given, out, "train/good/x.png", "test/good/y.jpg")


def test_b13_a_second_shot_of_a_similar_part_is_a_warning(given: Path, out: Path) -> None:
    rng = np.random.default_rng(3)
    base = np.asarray(noise(99, (160, 120))) * 0.6 + 40
    for path in ("train/good/x.png", "test/good/y.png"):
        Image.fromarray((base + rng.normal(0, 5, base.shape)).clip(0, 255).astype(np.uint8)).save(given / path)
    run(given, out)
    near = findings(out)["near_duplicates"]
    assert near["severity"] == "warning"
    assert "train/good/x.png" in near["examples"][0]
    assert "test/good/y.png" in near["examples"][0]


def test_b13_a_group_in_two_splits(given: Path, out: Path) -> None:
    lines = ["path,label,split,group"]
    for path in sorted(given.glob("*/*/*.png")):
        split, label, name = path.relative_to(given).parts
        group = "part-7" if label == "good" and name == "003.png" and split != "validation" else path
        lines.append(f"{split}/{label}/{name},{label},{split},{group}")
    (given / "manifest.csv").write_text("\n".join(lines))
    leaks(given, out, "part-7", "train/good/003.png", "test/good/003.png")


# B14


def test_b14_duplicates_inside_a_split_are_reported(given: Path, out: Path) -> None:
    (given / "train/good/twin.png").write_bytes((given / "train/good/000.png").read_bytes())
    run(given, out)
    assert findings(out)["duplicates"]["examples"] == ["train/good/000.png = train/good/twin.png"]


def test_b14_conflicting_labels(plain: Path, out: Path) -> None:
    (plain / "crack/twin.png").write_bytes((plain / "good/000.png").read_bytes())
    error = refused(plain, out)
    assert "crack/twin.png (crack) = good/000.png (good)" in error.what
    assert "on_conflict" in error.hint
    run(plain, out, on_conflict="quarantine")
    assert set(bad_files(out)) == {"crack/twin.png", "good/000.png"}
    run(plain, out, on_conflict="keep")
    assert bad_files(out) == {}
    assert "kept" in findings(out)["conflicts"]["message"]


# B16


def written(root: Path, lines: list[str], *, name: str = "manifest.csv", encoding: str = "utf-8") -> Path:
    path = root / name
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def manifest_lines(given: Path) -> list[str]:
    lines = ["path,label,split"]
    for path in sorted(given.glob("*/*/*.png")):
        split, label, name = path.relative_to(given).parts
        lines.append(f"{split}/{label}/{name},{label},{split}")
    return lines


def changed(given: Path, line: int, new: str) -> Path:
    """The manifest with line ``line`` (from 1) replaced."""
    lines = manifest_lines(given)
    lines[line - 1] = new
    return written(given, lines)


def test_b16_unknown_label(given: Path, out: Path) -> None:
    error = refused(changed(given, 3, "test/crack/000.png,crakc,test"), out)
    assert "'crakc'" in error.what
    assert "manifest.csv:3" in error.what
    assert "did you mean crack" in error.hint


def test_b16_misspelt_label_without_splits(given: Path, out: Path) -> None:
    lines = [line.rsplit(",", 1)[0] for line in manifest_lines(given)]
    lines[2] = lines[2].replace(",crack", ",crakc")
    error = refused(written(given, lines), out)
    assert "crakc" in error.what
    assert "misspelt 'crack'" in error.hint


@pytest.mark.parametrize(
    ("header", "near"),
    [("file,label,split", "data.columns.path=file"), ("path,lable,split", "data.columns.label=lable")],
)
def test_b16_missing_column(given: Path, out: Path, header: str, near: str) -> None:
    error = refused(changed(given, 1, header), out)
    assert "manifest.csv:1" in error.what
    assert near in error.hint


def test_b16_byte_order_mark(given: Path, out: Path) -> None:
    error = refused(written(given, manifest_lines(given), encoding="utf-8-sig"), out)
    assert "byte order mark" in error.what
    assert "manifest.csv:1" in error.what


def test_b16_semicolons(given: Path, out: Path) -> None:
    error = refused(written(given, [line.replace(",", ";") for line in manifest_lines(given)]), out)
    assert "semicolons" in error.what
    assert "manifest.csv:1" in error.what


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("test/crack/000.png,crack", "2 fields, the header has 3"),
        ("test/crack/000.png,crack,tset", "unknown split 'tset'"),
        ("test/crack/000.png,,test", "no label"),
        (",crack,test", "no path"),
        ("test/crack/000.png,crack,", "no split"),
        ('test/crack/000.png,"cra"ck,test', "not CSV"),
    ],
)
def test_b16_bad_lines_are_numbered(given: Path, out: Path, line: str, what: str) -> None:
    error = refused(changed(given, 5, line), out)
    assert what in error.what
    assert "manifest.csv:5" in error.what


def test_b16_not_utf8(given: Path, out: Path) -> None:
    lines = manifest_lines(given)
    lines[3] = lines[3].replace("crack,", "crâck,")
    error = refused(written(given, lines, encoding="latin-1"), out)
    assert "not UTF-8" in error.what
    assert "manifest.csv:4" in error.what


def test_b16_jsonl(given: Path, out: Path) -> None:
    records = [
        dict(zip(("path", "label", "split"), line.split(","), strict=True)) for line in manifest_lines(given)[1:]
    ]
    path = written(given, [json.dumps(record) for record in records], name="manifest.jsonl")
    assert run(path, out).counts["test"] == {"crack": 12, "good": 12}
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:-1]
    assert "manifest.jsonl:2" in refused(written(given, lines, name="manifest.jsonl"), out).what


def test_b16_pictures_that_a_manifest_names_but_are_not_there(given: Path, out: Path) -> None:
    error = refused(changed(given, 2, "test/crack/no.png,crack,test"), out)
    assert "test/crack/no.png: no such file" in error.what


# B18


def test_b18_classes_are_joined_by_name(given: Path, out: Path) -> None:
    """Train lists good first, test crack first: labels follow the names."""
    lines = manifest_lines(given)
    body = sorted(lines[1:], key=lambda line: ("train" in line) == ("crack" in line))
    splits = run(written(given, [lines[0], *body]), out)
    assert splits.classes == ("crack", "good")
    assert all(splits.classes[s.label] in s.path for s in read_samples(out))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_b18_missing_class(given: Path, out: Path, part: str) -> None:
    for path in (given / part / "crack").iterdir():
        path.unlink()
    (given / part / "crack").rmdir()
    error = refused(given, out)
    assert "crack" in error.what
    assert part in error.what


# B19


def test_b19_few_calibration_pictures(plain: Path, out: Path) -> None:
    splits = run(plain, out, calibration=100)
    assert any("calibration" in text for text in splits.warnings)
    assert findings(out)["calibration"]["severity"] == "warning"


def test_b19_too_few_calibration_pictures(tmp_path: Path, out: Path) -> None:
    error = refused(fill(tmp_path / "data", each=5), out)
    assert "at least 8" in error.what


# B20


def test_b20_the_hash_follows_content_and_names_only(plain: Path, out: Path) -> None:
    data = Data(path=str(plain))
    before = content_hash(data)
    for path in plain.rglob("*.png"):
        os.utime(path, (1, 1))
    plain.rename(plain.with_name("moved"))
    data = Data(path=str(plain.with_name("moved")))
    assert content_hash(data) == before
    (plain.with_name("moved") / "good/000.png").rename(plain.with_name("moved") / "good/zzz.png")
    renamed = content_hash(data)
    assert renamed != before
    noise(99).save(plain.with_name("moved") / "good/zzz.png")
    assert content_hash(data) not in (before, renamed)


def test_b20_a_manifest_counts_with_its_pictures(given: Path) -> None:
    path = written(given, manifest_lines(given))
    data = Data(path=str(path))
    before = content_hash(data)
    noise(99).save(given / "unlisted.png")
    assert content_hash(data) == before
    noise(99).save(given / "train/good/000.png")
    changed_picture = content_hash(data)
    assert changed_picture != before
    written(given, manifest_lines(given)[:-1])
    assert content_hash(data) != changed_picture


def test_columns_may_be_renamed(given: Path, out: Path) -> None:
    lines = manifest_lines(given)
    lines[0] = "file,label,split"
    assert isinstance(run(written(given, lines), out, columns=Columns(path="file")), Splits)
    assert isinstance(read_samples(out)[0], Sample)
