"""Formats, splits, calibration, the audit's numbers and the generated set."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distilledge.models.errors import RejectedError, ResourceError, UsageError
from distilledge.pipeline.data import duplicates, pictures, splits
from distilledge.pipeline.data.content import content_hash, location
from distilledge.pipeline.data.describe import describe
from distilledge.pipeline.data.formats import FORMATS, detect, list_unlabelled, listing
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.data.prepare import prepare
from distilledge.pipeline.data.synthetic import DEFECTS, SHOTS, picture
from distilledge.pipeline.recipe import Columns, Data, MaxBad, SplitFractions, Synthetic
from distilledge.pipeline.record import Split, Splits, data_root, read_samples
from distilledge.targets.ondevice.preprocess import InputSpec

SPEC = InputSpec(height=1, width=1)
SMALL = Data(synthetic=Synthetic(per_class=12, size=32), calibration=12)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated set, listed."""
    out = tmp_path_factory.mktemp("generated")
    listing(SMALL, out)
    return out


def run(data: Data, out: Path, seed: int = 0) -> Splits:
    out.mkdir(exist_ok=True)
    return prepare(data, bit_depth=8, seed=seed, out=out)


# Formats: every entry of the table brings the same pictures


def as_folder(source: Path, root: Path) -> Data:
    (source / "images").rename(root)
    return Data(path=str(root))


def as_manifest(source: Path, root: Path) -> Data:
    root.mkdir()
    (source / "images").rename(root / "images")
    lines = [f"images/{p.parent.name}/{p.name},{p.parent.name}" for p in sorted((root / "images").glob("*/*"))]
    (root / "manifest.csv").write_text("\n".join(["path,label", *lines]))
    return Data(path=str(root))


def as_huggingface(source: Path, root: Path) -> Data:
    paths = sorted((source / "images").glob("*/*"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=sorted(DEFECTS)[::-1])})
    rows = {"image": [{"bytes": p.read_bytes(), "path": None} for p in paths], "label": [p.parent.name for p in paths]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(root))
    return Data(path=str(root))


def as_synthetic(source: Path, root: Path) -> Data:
    return SMALL


WRITERS = {"folder": as_folder, "manifest": as_manifest, "huggingface": as_huggingface, "synthetic": as_synthetic}


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_format_brings_the_same_pictures(tmp_path: Path, generated: Path, kind: str) -> None:
    source = tmp_path / "source"
    listing(SMALL, source)
    data = WRITERS[kind](source, tmp_path / "data").model_copy(update={"calibration": 12})
    assert detect(data) == kind
    out = tmp_path / "out"
    result = run(data, out)
    assert result.classes == tuple(sorted(DEFECTS))
    assert result.synthetic == (kind == "synthetic")
    expected = {hashlib.sha256(p.read_bytes()).hexdigest(): p.parent.name for p in generated.glob("images/*/*")}
    samples = read_samples(out)
    assert {s.sha256: result.classes[s.label] for s in samples} == expected
    root = data_root(result, out)
    assert all(hashlib.sha256((root / s.path).read_bytes()).hexdigest() == s.sha256 for s in samples[:5])
    assert len(content_hash(data)) == 64


def test_huggingface_splits_and_string_labels(tmp_path: Path, generated: Path) -> None:
    paths = sorted(generated.glob("images/*/*"))
    parts = {}
    for number, name in enumerate(("train", "validation", "test")):
        own = paths[number::3]
        rows = {"image": [str(p) for p in own], "kind": [p.parent.name for p in own]}
        parts[name] = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "data"))
    result = run(Data(path=str(tmp_path / "data"), columns=Columns(label="kind"), calibration=12), tmp_path / "out")
    assert result.counts["test"] == dict.fromkeys(sorted(DEFECTS), 4)
    with pytest.raises(RejectedError, match="no label column"):
        run(Data(path=str(tmp_path / "data")), tmp_path / "out")


def test_a_hub_name_without_network_says_what_is_missing(tmp_path: Path) -> None:
    """In a process of its own: the library reads its offline switch once."""
    code = (
        "from pathlib import Path; from distilledge.pipeline.recipe import Data;"
        "from distilledge.pipeline.data.formats import listing;"
        "listing(Data(path='someone/defects', format='huggingface'), Path('.'))"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert "RejectedError" in done.stderr
    assert "data set 'someone/defects' is neither in the local cache" in done.stderr
    assert "save_to_disk" in done.stderr


def test_a_hub_name_is_not_looked_up_unasked(tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match=r"data\.format=huggingface"):
        detect(Data(path="someone/defects"))


def test_given_splits_are_kept_and_validation_is_cut_from_train(tmp_path: Path, generated: Path) -> None:
    root = tmp_path / "data"
    for number, path in enumerate(sorted(generated.glob("images/*/*"))):
        target = root / ("test" if number % 4 == 0 else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    result = run(Data(path=str(root), calibration=12), tmp_path / "out")
    assert {s.path.split("/")[0] for s in read_samples(tmp_path / "out", "test")} == {"test"}
    assert {s.path.split("/")[0] for s in read_samples(tmp_path / "out", "validation")} == {"train"}
    assert sum(result.counts["validation"].values()) == pytest.approx(54 * 0.15 / 0.85, abs=3)


def test_unlabelled_pictures_join_and_tested_ones_stay_out(tmp_path: Path, generated: Path) -> None:
    extra = tmp_path / "extra"
    extra.mkdir()
    picture("good", 500, Synthetic(size=32)).save(extra / "new.png")
    Image.open(next(generated.glob("images/dent/*"))).save(extra / "known.png")
    assert [row.path for row in list_unlabelled(str(extra)).rows] == ["known.png", "new.png"]
    out = tmp_path / "out"
    out.mkdir()
    result = prepare(SMALL, bit_depth=8, seed=0, out=out, unlabelled=str(extra))
    (sample,) = read_samples(out, "unlabelled")
    assert Path(sample.path).name == "new.png"
    assert (data_root(result, out) / sample.path).is_file()
    assert (sample.label, sample.calibration) == (-1, False)
    assert any("unlabelled" in text for text in result.warnings)
    with pytest.raises(RejectedError, match="no such folder"):
        list_unlabelled(str(tmp_path / "nowhere"))


def test_variables_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/somewhere")
    assert expand("$PLACE/a") == expand("${PLACE}/a") == "/somewhere/a"
    with pytest.raises(RejectedError, match="NO_PLACE"):
        expand("$NO_PLACE/a")


def test_describe(tmp_path: Path, generated: Path) -> None:
    found = describe(str(generated / "images"))
    assert (found["format"], found["pictures"], found["splits"]) == ("folder", 72, [])
    assert found["sizes"]["median"] == [32, 32]
    assert found["counts"]["all"] == dict.fromkeys(sorted(DEFECTS), 12)
    lines = [f"{p},{p.parent.name},{n // 4},train" for n, p in enumerate(sorted(generated.glob("images/*/*")))]
    (tmp_path / "m.csv").write_text("\n".join(["file,class,group,split", *lines]))
    found = describe(str(tmp_path / "m.csv"))
    assert found["columns"] == {"path": "file", "label": "class"}
    assert (found["splits"], found["groups"]) == (["train"], 18)
    assert describe("synthetic")["classes"] == sorted(DEFECTS)


def test_describe_opens_a_datasets_directory_without_unpacking(tmp_path: Path) -> None:
    listing(SMALL, tmp_path / "source")
    data = as_huggingface(tmp_path / "source", tmp_path / "data")
    found = describe(tmp_path / "data")
    assert data.path == str(tmp_path / "data")
    assert (found["format"], found["pictures"], found["modes"]) == ("huggingface", 72, {"RGB": 50})
    assert found["counts"]["all"] == dict.fromkeys(sorted(DEFECTS), 12)


def test_location_is_the_root_of_the_result(tmp_path: Path, generated: Path) -> None:
    folder = Data(path=str(generated / "images"), calibration=12)
    for data in (folder, SMALL):
        assert location(data) == run(data, tmp_path / "out").root


def test_a_failed_audit_is_left_where_it_survives(tmp_path: Path, generated: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(generated / "images", root)
    (root / "good/empty.png").write_bytes(b"")
    for name in ("out", "kept"):
        (tmp_path / name).mkdir()
    with pytest.raises(RejectedError, match="empty file") as caught:
        prepare(Data(path=str(root)), bit_depth=8, seed=0, out=tmp_path / "out", failed=tmp_path / "kept")
    assert str(tmp_path / "kept/bad_files.jsonl") in caught.value.hint
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"audit.json", "bad_files.jsonl"}
    assert not list((tmp_path / "out").iterdir())


# Splits


@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Labels and groups: each class has at least three groups of its own, and some groups mix classes."""
    labels, groups = [], []
    for name in draw(st.lists(st.sampled_from("abcde"), min_size=2, max_size=5, unique=True)):
        for group, size in enumerate(draw(st.lists(st.integers(1, 6), min_size=3, max_size=12))):
            labels += [name] * size
            groups += [f"{name}{group}"] * size
    for label in draw(st.lists(st.sampled_from(sorted(set(labels))), max_size=6)):
        labels.append(label)
        groups.append("mixed")
    return labels, groups


@settings(max_examples=150, deadline=None)
@given(labelled_groups(), st.integers(0, 2**31 - 1))
def test_groups_never_straddle_and_classes_are_in_every_split(data: tuple[list[str], list[str]], seed: int) -> None:
    labels, groups = data
    parts = splits.assign(labels, groups, {"train": 0.7, "validation": 0.15, "test": 0.15}, seed)
    of: dict[str, set[str]] = defaultdict(set)
    for group, part in zip(groups, parts, strict=True):
        of[group].add(part)
    assert all(len(own) == 1 for own in of.values())
    assert len(set(zip(parts, labels, strict=True))) == 3 * len(set(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    again = splits.assign(
        [labels[i] for i in order], [groups[i] for i in order], {"train": 0.7, "validation": 0.15, "test": 0.15}, seed
    )
    assert [parts[i] for i in order] == again


def test_shares_are_kept_in_every_class() -> None:
    labels = ["rare"] * 20 + ["common"] * 400
    parts = splits.assign(labels, [str(i) for i in range(420)], {"train": 0.7, "validation": 0.15, "test": 0.15}, 3)
    counts = Counter(zip(labels, parts, strict=True))
    assert counts == {
        ("rare", "train"): 14,
        ("rare", "validation"): 3,
        ("rare", "test"): 3,
        ("common", "train"): 280,
        ("common", "validation"): 60,
        ("common", "test"): 60,
    }
    other = splits.assign(labels, [str(i) for i in range(420)], {"train": 0.7, "validation": 0.15, "test": 0.15}, 4)
    assert other != parts


def test_fractions() -> None:
    given_all: set[Split] = {"train", "validation", "test"}
    assert splits.fractions_of(given_all, SplitFractions()) == {}
    assert splits.fractions_of({"train", "test"}, SplitFractions(train=0.6, validation=0.2)) == pytest.approx(
        {"train": 0.75, "validation": 0.25}
    )
    with pytest.raises(UsageError, match=r"data\.splits\.test is 0"):
        splits.fractions_of(set(), SplitFractions(test=0))


@settings(max_examples=60, deadline=None)
@given(labelled_groups(), st.integers(1, 200), st.integers(0, 100))
def test_calibration_covers_every_class(data: tuple[list[str], list[str]], wanted: int, seed: int) -> None:
    labels, groups = data
    paths = [f"{label}/{number}.png" for number, label in enumerate(labels)]
    try:
        chosen, _ = splits.calibration(paths, labels, groups, wanted, seed)
    except RejectedError:
        assert min(max(wanted, len(set(labels))), len(labels)) < splits.LEAST_CALIBRATION
        return
    assert len(chosen) == min(max(wanted, len(set(labels))), len(labels))
    assert {labels[i] for i in chosen} == set(labels)
    counts = Counter(labels[i] for i in chosen)
    left = Counter(labels) - counts
    assert all(counts[c] >= max(counts.values()) - 1 for c in left)  # classes take turns until they run out


def test_calibration_is_from_train_and_recorded(tmp_path: Path) -> None:
    result = run(SMALL, tmp_path / "a")
    chosen = [s for s in read_samples(tmp_path / "a") if s.calibration]
    assert len(chosen) == result.calibration == 12
    assert {s.split for s in chosen} == {"train"}
    assert {s.label for s in chosen} == set(range(6))
    assert len({s.group for s in chosen}) == 12
    again = run(SMALL, tmp_path / "b")
    assert again == result
    other = run(SMALL, tmp_path / "b", seed=1)
    assert other.calibration_hash != result.calibration_hash
    assert other.data_hash != result.data_hash


def test_a_cut_of_ours_keeps_identical_pictures_and_parts_together(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for kind in ("good", "dent"):
        (root / kind).mkdir(parents=True)
        for number in range(20):
            shot = picture(kind, number * SHOTS, Synthetic(size=96))
            for copy in ("a.png", "b.bmp", "c.jpg"):
                shot.save(root / kind / f"{number:02d}{copy}", quality=98, subsampling=0)
    run(Data(path=str(root), calibration=12), tmp_path / "out")
    parts = defaultdict(set)
    for sample in read_samples(tmp_path / "out"):
        parts[sample.path[:-5]].add((sample.split, sample.group))
    assert len(parts) == 40
    assert all(len(of) == 1 for of in parts.values())


# The audit's parts


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.integers(0, 12), st.integers(0, 63))
def test_near_values_equal_a_plain_search(values: list[int], bits: int, flip: int) -> None:
    close = [v ^ (1 << flip) for v in values] + [v ^ (3 << min(flip, 62)) for v in values]
    unique = np.unique(np.array(values + close, np.uint64))
    expected = {
        (i, j, (int(unique[i]) ^ int(unique[j])).bit_count())
        for i in range(len(unique))
        for j in range(i + 1, len(unique))
        if (int(unique[i]) ^ int(unique[j])).bit_count() <= bits
    }
    assert {tuple(pair) for pair in duplicates.near_values(unique, bits)} == expected


def test_near_search_is_fast() -> None:
    rng = np.random.default_rng(0)
    values = np.unique(rng.integers(0, 2**64, 20_000, np.uint64))
    values = np.unique(np.concatenate([values, values[:50] ^ np.uint64(5)]))
    start = time.process_time()
    assert len(duplicates.near_values(values, 2)) == 50
    assert time.process_time() - start < 2


def test_many_equal_hashes_are_cut() -> None:
    pairs, cut = duplicates.near([7] * 3000, ["train", "test"] * 1500, 2, {"train"})
    assert 0 < len(pairs) <= duplicates.MOST_PAIRS
    assert not cut
    values = list(range(4000))
    pairs, cut = duplicates.near(values, ["all"] * 4000, 12, {"all"})
    assert len(pairs) == duplicates.MOST_PAIRS
    assert cut


def test_a_copy_is_the_same_noise() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(120, 25, (15, 20)).astype(np.float32).repeat(8, 0).repeat(8, 1)
    first = (base + rng.normal(0, 1.0, base.shape)).astype(np.float32)
    assert duplicates.is_copy(first, first + 1)
    flat = np.full((64, 64), 90, np.float32)
    shots = [flat + rng.normal(0, 1.0, flat.shape).astype(np.float32) for _ in range(2)]
    assert not duplicates.is_copy(*shots)
    assert not duplicates.is_copy(first, first[:-1])


def test_joining_alike_pictures_is_bounded() -> None:
    chain = [duplicates.Pair(i, i + 1, 1) for i in range(99)]
    sizes = Counter(duplicates.join(100, [], chain)).values()
    assert max(sizes) == duplicates.MOST_ALIKE
    assert set(duplicates.join(100, [range(100)])) == {0}


def test_facts(generated: Path) -> None:
    path = sorted(generated.glob("images/*/*"))[0]
    facts = pictures.examine(str(path), SPEC)
    assert isinstance(facts, pictures.Facts)
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts.phash == int(str(imagehash.phash(Image.open(path))), 16)
    assert (facts.width, facts.height, facts.mode, facts.bits, facts.rotated) == (32, 32, "RGB", 8, False)


def test_worker_processes_see_the_same(generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad\nname.png").write_bytes(b"nothing")
    paths = [str(p) for p in sorted(generated.glob("images/*/*"))] + [str(tmp_path / "bad\nname.png")]
    paths *= 3
    alone = pictures.examine_all(paths, SPEC, 1)
    monkeypatch.setattr(pictures, "PATIENCE", 0.0)
    assert pictures.examine_all(paths, SPEC, 2) == alone
    assert sum(isinstance(item, str) for item in alone) == 3


def test_a_worker_that_dies_is_named(generated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(p) for p in sorted(generated.glob("images/*/*"))] * 3
    monkeypatch.setattr(pictures, "PATIENCE", 0.0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ResourceError, match="died at") as caught:
        pictures.examine_all(paths, SPEC, 2)
    assert caught.value.exit_code == 9


# The generated set


def test_pictures_are_functions_of_seed_class_and_index() -> None:
    options = Synthetic(size=64)
    first = picture("crack", 7, options).tobytes()
    picture("dent", 3, options)
    assert picture("crack", 7, options.model_copy(update={"per_class": 5})).tobytes() == first
    others = [
        picture("crack", 8, options),
        picture("pit", 7, options),
        picture("crack", 7, Synthetic(size=64, seed=1)),
        picture("crack", 7, Synthetic(size=64, difficulty=0.9)),
    ]
    assert len({first, *(p.tobytes() for p in others)}) == 5


@pytest.mark.parametrize("kind", sorted(set(DEFECTS) - {"good"}))
def test_difficulty_makes_defects_fainter(kind: str) -> None:
    """Detail of the picture above that of the same surface without a defect is smaller where it is harder."""

    def contrast(difficulty: float) -> float:
        options = Synthetic(size=96, difficulty=difficulty)
        return float(np.mean([np.asarray(picture(kind, i, options).convert("L"), np.float32).std() for i in range(12)]))

    def plain(difficulty: float) -> float:
        options = Synthetic(size=96, difficulty=difficulty)
        return float(
            np.mean([np.asarray(picture("good", i, options).convert("L"), np.float32).std() for i in range(12)])
        )

    assert contrast(0.0) - plain(0.0) > contrast(1.0) - plain(1.0)


@pytest.mark.parametrize("size", [8, 33, 256])
def test_any_size(size: int) -> None:
    for kind in DEFECTS:
        assert picture(kind, 0, Synthetic(size=size)).size == (size, size)


def test_generating_is_fast() -> None:
    options = Synthetic()
    picture("good", 0, options)
    start = time.process_time()
    for number in range(30):
        picture(sorted(DEFECTS)[number % 6], number, options)
    assert (time.process_time() - start) / 30 < 0.006 * 3  # a slow machine has three times as long


# Real data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "counts", "expected", "forbidden"),
    [
        ("x-sdd", (947, 207, 206), {"duplicates": 9}, {"conflicts", "near_duplicates", "leakage"}),
        ("magnetic-tile", (898, 239, 207), {"near_duplicates": 49, "mixed_groups": 15}, {"conflicts", "leakage"}),
        ("cifar10-subset", (8240, 1760, 2000), {"near_duplicates": 3}, {"conflicts", "leakage", "duplicates"}),
    ],
)
def test_real_data(
    shared: Path, tmp_path: Path, name: str, counts: tuple[int, int, int], expected: dict[str, int], forbidden: set[str]
) -> None:
    root = shared / "data" / name
    data = Data(path=str(root), columns=Columns(path="file"), max_bad=MaxBad(train=0))
    result = run(data, tmp_path / "out")
    assert tuple(sum(result.counts[part].values()) for part in splits.PARTS) == counts
    found = {f["kind"]: f["count"] for f in json.loads((tmp_path / "out/audit.json").read_text())["findings"]}
    assert {kind: found.get(kind) for kind in expected} == expected
    assert not forbidden & found.keys()
    assert (result.calibration, result.synthetic, result.root) == (128, False, str(root.resolve()))
    of: dict[str, set[str]] = defaultdict(set)
    for sample in read_samples(tmp_path / "out"):
        of[sample.group].add(sample.split)
    assert all(len(parts) == 1 for parts in of.values())
