"""A drafted recipe must load, must fit the data it was drafted for, and must say why."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distilledge.models.errors import RejectedError
from distilledge.pipeline.init import draft
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.recipe_file import load_recipe


def pictures(root: Path, counts: dict[str, int], size: tuple[int, int] = (40, 40), mode: str = "RGB") -> Path:
    """A class folder for each name, with so many pictures of (width, height)."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            shade = np.full(size[::-1], number, np.uint16 if mode == "I;16" else np.uint8)
            image = Image.fromarray(shade)
            (image if mode == "I;16" else image.convert(mode)).save(root / name / f"{number}.png")
    return root


def loaded(text: str, folder: Path, *, smoke: bool = False) -> Recipe:
    """Through the file and both checks, as a run reads it."""
    path = folder / "drafted.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path, smoke=smoke)
    check_recipe(recipe)
    return recipe


@pytest.mark.parametrize("explain", [False, True])
def test_draft_is_a_recipe_with_schema_line_and_comments(tmp_path: Path, explain: bool) -> None:
    data = pictures(tmp_path / "parts", {"good": 12, "bad": 10})
    text = draft(data, explain=explain)
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert Path(first.partition("=")[2]).is_file()
    recipe = loaded(text, tmp_path)
    assert (recipe.name, recipe.data.path, recipe.metric) == ("parts", str(data), "accuracy")
    assert recipe.data.calibration == round(0.7 * 22)
    assert "bad 10, good 12" in text
    assert loaded(text, tmp_path, smoke=True).student.training.epochs == 1


def test_explained_draft_says_the_same_and_names_every_field(tmp_path: Path) -> None:
    data = pictures(tmp_path / "parts", {"good": 12, "bad": 10})
    short, full = draft(data), draft(data, explain=True)
    assert loaded(short, tmp_path) == loaded(full, tmp_path)
    for section, model in Recipe.model_fields.items():
        assert f"\n{model.alias or section}:" in f"\n{full}"
    assert "Largest share of unreadable" not in short
    assert "Peak learning rate." in full


def test_unbalanced_classes_are_judged_and_drawn_as_such(tmp_path: Path) -> None:
    text = draft(pictures(tmp_path / "parts", {"good": 40, "crack": 4}))
    recipe = loaded(text, tmp_path)
    assert recipe.metric == "balanced_accuracy"
    assert recipe.student.training.sampling == recipe.teacher.training.sampling == "balanced"
    assert "10 times the pictures" in text
    assert "few pictures of crack 4" in text


@pytest.mark.parametrize(("side", "size"), [(32, 128), (191, 128), (192, 160), (400, 224)])
def test_students_size_follows_the_pictures(tmp_path: Path, side: int, size: int) -> None:
    text = draft(pictures(tmp_path / "parts", {"a": 2, "b": 2}, (side, side + 3)))
    assert loaded(text, tmp_path).student.input.size == size
    assert f"shorter side is {side} pixels" in text


def test_long_pictures_keep_their_shape(tmp_path: Path) -> None:
    recipe = loaded(draft(pictures(tmp_path / "parts", {"a": 2, "b": 2}, (90, 30))), tmp_path)
    assert recipe.student.input.resize == recipe.teacher.input.resize == "letterbox"


def test_sixteen_bit_pictures_are_read_as_such(tmp_path: Path) -> None:
    recipe = loaded(draft(pictures(tmp_path / "parts", {"a": 2, "b": 2}, mode="I;16")), tmp_path)
    assert recipe.student.input.bit_depth == recipe.teacher.input.bit_depth == 16


def test_manifest_with_other_column_names_splits_and_groups(tmp_path: Path) -> None:
    pictures(tmp_path / "set" / "images", {"a": 6, "b": 6})
    lines = [f"images/{c}/{n}.png,{c},{'test' if n < 2 else 'train'},tile{n // 2}" for c in "ab" for n in range(6)]
    (tmp_path / "set" / "manifest.csv").write_text("\n".join(["file,label,split,group", *lines]) + "\n")
    text = draft(tmp_path / "set")
    recipe = loaded(text, tmp_path)
    assert recipe.data.columns.path == "file"
    assert recipe.data.calibration == 8
    assert "3 groups found" in text
    assert "given by the data: test, train" in text


@pytest.mark.parametrize("name", ["no", "010", "a: b # c", "Ä 'quoted\" ünï", "-", "line\nbreak", "1e3"])
def test_awkward_folder_names_survive(tmp_path: Path, name: str) -> None:
    data = pictures(tmp_path / name, {"a": 2, "b": 2}, (10, 10))
    assert loaded(draft(data), tmp_path).data.path == str(data)


def test_path_that_no_text_can_hold_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(RejectedError) as error:
        draft(folder)
    assert (error.value.code, error.value.exit_code) == ("E3501", 3)


@pytest.mark.parametrize("counts", [{}, {"only": 3}, {"a": 3, "empty": 0}])
def test_data_that_no_run_could_read_is_refused(tmp_path: Path, counts: dict[str, int]) -> None:
    (tmp_path / "parts").mkdir()
    with pytest.raises(RejectedError) as error:
        draft(pictures(tmp_path / "parts", counts))
    assert error.value.hint
    assert "parts" in error.value.what


def test_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures(tmp_path / "parts", {"a": 2, "b": 2})
    monkeypatch.chdir(tmp_path)
    assert loaded(draft(Path("parts")), tmp_path).data.path == str(data)
    monkeypatch.setenv("PARTS", str(data))
    assert loaded(draft(Path("$PARTS")), tmp_path).data.path == "$PARTS"


@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=5), side=st.integers(8, 60))
def test_any_folder_gives_a_recipe(tmp_path_factory: pytest.TempPathFactory, counts: list[int], side: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    data = pictures(folder / "parts", {f"c{i}": n for i, n in enumerate(counts)}, (side, side))
    recipe = loaded(draft(data), folder)
    assert recipe.metric == ("balanced_accuracy" if max(counts) >= 3 * min(counts) else "accuracy")
    assert 6 <= recipe.student.training.epochs <= 60


@pytest.mark.parametrize("name", ["x-sdd", "magnetic-tile", "cifar10-subset"])
def test_real_data(shared: Path, tmp_path: Path, name: str) -> None:
    recipe = loaded(draft(shared / "data" / name), tmp_path)
    assert recipe.data.columns.path == "file"
    assert (recipe.metric == "accuracy") == (name == "cifar10-subset")
