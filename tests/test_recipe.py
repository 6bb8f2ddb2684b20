"""Recipes: B21 to B26 of ROBUSTNESS, overrides, smoke, schema, and the way back to YAML."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilledge.models.errors import UsageError
from distilledge.pipeline.recipe import Budget, Distill, Export, ExportTarget, LossTerm, Recipe
from distilledge.pipeline.recipe_check import check_models, check_recipe
from distilledge.pipeline.recipe_file import load_recipe, recipe_to_yaml, schema, schema_path
from distilledge.pipeline.recipe_paths import fields, spot, takes


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str, smoke: bool = False) -> Recipe:
    return load_recipe(write(folder, text), overrides=overrides, smoke=smoke)


def refused(folder: Path, text: str, *overrides: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(folder, text, *overrides)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


def test_b21_an_unknown_key_has_file_line_column_and_the_nearest_name(tmp_path: Path) -> None:
    error = refused(tmp_path, "name: a\nteacher:\n  training:\n    epoch: 4\n")
    assert error.what == f"unknown key `epoch` under `teacher.training`: {tmp_path}/recipe.yaml:4:5"
    assert error.hint == "did you mean `epochs`?"


def test_b21_a_key_in_the_wrong_section_is_told_where_it_belongs(tmp_path: Path) -> None:
    error = refused(tmp_path, "name: a\nepochs: 4\n")
    assert "recipe.yaml:2:1" in error.what
    assert error.hint.startswith("it belongs to `teacher.training` or `student.training`")
    assert refused(tmp_path, "name: a\nxyzzy: 4\n").hint.startswith("choose from budgets, compress, data")


def test_b21_keys_of_budgets_and_list_items_are_checked_too(tmp_path: Path) -> None:
    error = refused(tmp_path, "name: a\nbudgets:\n  onx: {}\nexport:\n  targets:\n    - runtme: onnx\n")
    assert "recipe.yaml:3:3: unknown key `onx` under `budgets`; did you mean `onnx`?" in error.what
    assert "recipe.yaml:6:7: unknown key `runtme` under `export.targets.0`; did you mean `runtime`?" in error.what
    assert "`export.targets.0.runtime` is missing" in error.what


def test_b22_duplicate_keys_name_both_lines(tmp_path: Path) -> None:
    error = refused(tmp_path, "name: a\nseed: 1\nname: b\nteacher:\n  model: x\n  weights: none\n  model: y\n")
    assert "`name` stands twice, in lines 1 and 3" in error.what
    assert "`model` stands twice, in lines 5 and 7" in error.what
    assert "recipe.yaml:7:3" in error.what


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("name: a\nteacher:\n\ttraining: 3\n", "recipe.yaml:3:1", "replace the tab"),
        ("name: a\nlist: [1,\nb: 2\n", "begun in line 2", "correct that line"),
        ("name: a\n seed: 2\n", "recipe.yaml:2:6", "correct that line"),
        ("name: 'a\n", "begun in line 1", "quote the value"),
        ("name: a\n---\nname: b\n", "found another document", "correct that line"),
        ("name: *x\n", "undefined alias", "correct that line"),
        ("name: \x01\n", "recipe.yaml:1:7", "correct that line"),
        ("name: !!python/object:os.system x\n", "recipe.yaml:1:7", "correct that line"),
        ("%YAML 1.1\n---\nname: no\n", "YAML 1.2, not 1.1", "%YAML"),
        ("[" * 5000, "cannot read", "quote"),
        ("", "not a recipe", "init"),
        ("- name: a\n", "not a recipe", "init"),
        ('name: "\\ud800"\n', "not Unicode", "escape"),
    ],
)
def test_b22_bad_yaml_is_a_line_not_a_traceback(tmp_path: Path, text: str, what: str, hint: str) -> None:
    error = refused(tmp_path, text)
    assert what in error.what
    assert hint in error.hint
    assert "recipe.yaml" in error.what


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("student.training.lr", ".nan", "allowed: a number > 0"),
        ("student.training.lr", ".inf", "allowed: a number > 0"),
        ("student.training.lr", "-1", "allowed: a number > 0"),
        ("student.training.epochs", "0", "allowed: a whole number >= 1"),
        ("student.training.epochs", "1.5", "allowed: a whole number >= 1"),
        ("student.training.epochs", "true", "allowed: a whole number >= 1"),
        ("student.training.epochs", "'3'", "allowed: a whole number >= 1"),
        ("student.input.size", "0", "allowed: a whole number >= 8 and <= 4096"),
        ("student.training.ema", "1.0", "allowed: a number > 0 and < 1 or null"),
        ("student.training.augment.crop_scale", "[0.5, 2]", "allowed: a number >= 0 and <= 1"),
        ("student.input.mean", "[0.5, 0.5]", "add it"),
        ("metric", "acuracy", "one of auto, accuracy, balanced_accuracy, macro_f1"),
        ("data.cache", "no", "write true or false"),
        ("data.path", "7", 'quote it: "7"'),
        ("student", "null", "give it keys or remove the line"),
        ("measure.threads", "[-1]", "allowed: a whole number >= 0"),
        ("name", "../x", "letters, digits"),
    ],
)
def test_b23_a_bad_value_names_its_path_and_range(tmp_path: Path, field: str, value: str, allowed: str) -> None:
    parts = field.split(".")
    lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(parts)]
    name = "" if field == "name" else "name: a\n"
    error = refused(tmp_path, name + "\n".join(lines) + f" {value}\n")
    assert parts[-1] in error.what
    assert f"recipe.yaml:{len(lines) + bool(name)}:" in error.what
    assert allowed in error.hint


def test_b23_all_mistakes_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "seed: -1\nteacher:\n  training: {lr: .nan, epoch: 3}\nfoo: 1\nsmoke:\n  student.training.epochs: 0\n"
    error = refused(tmp_path, text, "student.input.size=0")
    head, *lines = error.what.splitlines()
    assert head == f"7 mistakes: {tmp_path}/recipe.yaml"
    assert [line.split(": ")[1].split(";")[0] for line in lines] == [
        "`student.input.size` is 0",
        "`name` is missing",
        "`seed` is -1",
        "`teacher.training.lr` is nan",
        "unknown key `epoch` under `teacher.training`",
        "unknown key `foo`",
        "`student.training.epochs` is 0",
    ]


def test_b24_yaml_1_2_meanings(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "name: no\n"
        "data: {path: 12:30, columns: {label: on, group: 2024-02-30}}\n"
        "seed: 010\n"
        "student: {training: {lr: 1e-4, weight_decay: 3e-4, early_stopping: ~}}\n"
        "distill: {losses: [{name: kl, arguments: {a: yes, b: 1e-1, c: 3, d: true}}]}\n",
    )
    assert (recipe.name, recipe.data.path, recipe.data.columns.label) == ("no", "12:30", "on")
    assert recipe.data.columns.group == "2024-02-30"
    assert recipe.seed == 10
    assert recipe.student.training.lr == 1e-4
    assert recipe.student.training.weight_decay == 3e-4
    assert recipe.student.training.early_stopping is None
    assert recipe.distill.losses[0].arguments == {"a": "yes", "b": 0.1, "c": 3, "d": True}


def test_b25_a_missing_recipe_is_an_error_with_the_near_name(tmp_path: Path) -> None:
    write(tmp_path, "name: a\n")
    for name, hint in (("recipes.yaml", f"did you mean {tmp_path}/recipe.yaml?"), ("zzz", "`distilledge init DATA`")):
        with pytest.raises(UsageError) as caught:
            load_recipe(tmp_path / name)
        assert caught.value.exit_code == 2
        assert caught.value.what == f"no such recipe: {tmp_path}/{name}"
        assert hint in caught.value.hint
    with pytest.raises(UsageError, match="cannot read the recipe"):
        load_recipe(tmp_path)


def test_b25_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: ä\n".encode("latin-1"))
    with pytest.raises(UsageError, match="byte 6 is not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_b25_the_command_line_exits_2(tmp_path: Path) -> None:
    code = (
        "import sys; from distilledge.pipeline.cli import main; sys.argv = ['distilledge', 'plan', 'none.yaml']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "error[E2011] no such recipe: none.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def checked(folder: Path, *overrides: str) -> UsageError:
    recipe = load(folder, "name: a\n", *overrides)
    with pytest.raises(UsageError) as caught:
        check_recipe(recipe)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("override", "what", "hint"),
    [
        ("distill.losses.0.name=klx", "distill.losses.0: unknown loss 'klx'; choose from kl", ""),
        ("distill.losses.0.arguments.tmperature=3", "'tmperature'", "temperature"),
        ("distill={losses: [], hard_weight: 0}", "no loss with a weight above 0", "hard_weight"),
        ("data.splits.train=0.8", "data.splits add up to 1.1", "add up to 1"),
        ("student.input.mean=[0.5, 0.5, 0.5]", "student.input.mean and std: only one", "both"),
        ("student.input={mean: [123, 117, 104], std: [1, 1, 1]}", "not of RGB in 0..1", "255"),
        ("teacher.input.alpha_background=[0, 0, 256]", "no colour", "0..255"),
        ("student.input.bit_depth=12", "bit_depth differ", "equal"),
        ("student.training.warmup_epochs=11", "warmup_epochs 11 exceeds epochs 10", "lower"),
        ("student.input={interpolation: lanczos, antialias: false}", "lanczos needs antialias", "bicubic"),
        ("student.training.augment.crop_scale=[1, 0.5]", "from 1 down to 0.5", "smaller number first"),
        ("export.targets=[]", "export.targets is empty", "runtime"),
        ("export.targets=[{runtime: onnx}, {runtime: onnx}]", "names onnx 2 times", "join"),
        ("export.targets.1.precisions=[]", "export.targets.1.precisions is empty", "fp32"),
        ("measure.threads=[]", "measure.threads is empty", "at least one"),
    ],
)
def test_contradictions_are_found_before_anything_runs(tmp_path: Path, override: str, what: str, hint: str) -> None:
    error = checked(tmp_path, override)
    assert what in error.what
    assert hint in error.hint
    assert "recipe a" in error.what


def test_contradictions_are_reported_at_once(tmp_path: Path) -> None:
    error = checked(tmp_path, "data.splits.train=0.8", "export.targets=[]", "distill.losses.0.name=klx")
    assert error.what.startswith("3 contradictions: recipe a\n")


def modelled(folder: Path, *overrides: str) -> UsageError:
    recipe = load(folder, "name: a\n", *overrides)
    with pytest.raises(UsageError) as caught:
        check_models(recipe)
    assert caught.value.exit_code == 2
    return caught.value


def test_b26_models_are_checked_before_any_download(tmp_path: Path) -> None:
    check_models(load(tmp_path, "name: a\n", "teacher.weights=hub", "student.weights=hub"))
    larger = modelled(tmp_path, "student.model=resnet50", "teacher.weights=hub")
    assert "the student is larger than its teacher" in larger.what
    assert "student.model resnet50" in larger.what
    unknown = modelled(tmp_path, "student.model=tf_eficientnet_lite0", "student.weights=hub")
    assert "unknown model 'tf_eficientnet_lite0': student.model" in unknown.what
    assert "tf_efficientnet_lite0" in unknown.hint


def test_b26_sizes_and_heads_that_do_not_fit(tmp_path: Path) -> None:
    assert "multiple of 16" in modelled(tmp_path, "teacher.input.size=100").what
    small = modelled(tmp_path, "student.model=inception_v3", "student.input.size=32")
    assert "cannot take pictures of 32 pixels" in small.what
    assert "student.input.size" in small.what


@pytest.mark.parametrize(
    ("override", "what", "hint"),
    [
        (
            "teacher.training.epoch=1",
            "unknown path `teacher.training.epoch`",
            "did you mean `teacher.training.epochs`?",
        ),
        ("teacher.trainin.epochs=1", "unknown path", "did you mean `teacher.training.epochs`?"),
        ("epochs=3", "unknown path", "did you mean `teacher.training.epochs` or `student.training.epochs`"),
        ("budgets.onx={}", "unknown path", "did you mean `budgets.onnx`?"),
        ("export.targets.7.optional=true", "leads past the end of a list", "count from 0"),
        ("seed", "not an override: --set seed", "write --set"),
        ("seed=-1", "`seed` is -1: --set seed=-1", "allowed: a whole number >= 0"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, what: str, hint: str) -> None:
    error = refused(tmp_path, "name: a\n", override)
    assert what in error.what
    assert f"--set {override}" in error.what
    assert hint in error.hint


def test_overrides(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "name: a\n",
        "name=010",
        "export.targets.0.optional=true",
        "student.input.interpolation=bicubic",
        "budgets.onnx.max_size_mb=3",
        "distill.losses.0.arguments.temperature=4",
        "student.training.augment.randaugment={magnitude: 9}",
        "student.training.max_grad_norm=null",
        "data.path=a=b",
    )
    assert recipe.name == "010"
    assert [t.optional for t in recipe.export.targets] == [True, False, False]
    assert recipe.student.input.interpolation == "bicubic"
    assert recipe.student.input.size == 128  # the default of the student, not of any input
    assert set(recipe.budgets) == {"default", "onnx"}
    assert recipe.budgets["onnx"].max_size_mb == 3
    assert recipe.distill.losses[0].arguments == {"temperature": 4}
    assert recipe.student.training.augment.randaugment is not None
    assert recipe.student.training.augment.randaugment.magnitude == 9
    assert recipe.student.training.max_grad_norm is None
    assert recipe.data.path == "a=b"


def test_the_smoke_block_applies_only_when_asked_and_overrides_win(tmp_path: Path) -> None:
    text = "name: a\nstudent: {training: {epochs: 30}}\nsmoke:\n  student.training.epochs: 2\n  measure.quick: true\n"
    assert load(tmp_path, text).student.training.epochs == 30
    smoke = load(tmp_path, text, smoke=True)
    assert (smoke.student.training.epochs, smoke.measure.quick) == (2, True)
    assert load(tmp_path, text, "student.training.epochs=3", smoke=True).student.training.epochs == 3


def test_a_mistake_in_the_smoke_block_is_found_without_smoke(tmp_path: Path) -> None:
    error = refused(tmp_path, "name: a\nsmoke:\n  student.training.epoch: 2\n")
    assert error.what == f"unknown path `student.training.epoch`: {tmp_path}/recipe.yaml:3:3"
    assert error.hint == "did you mean `student.training.epochs`?"


def test_sections_keep_the_defaults_of_what_they_leave_out(tmp_path: Path) -> None:
    recipe = load(tmp_path, "name: a\nstudent: {input: {resize: crop}}\nbudgets: {onnx: {max_size_mb: 3}}\n")
    assert recipe.student.input.size == Recipe(name="a").student.input.size == 128
    assert recipe.budgets["default"] == Budget()


RECIPES = st.builds(
    Recipe,
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
    seed=st.integers(0, 2**31 - 1),
    distill=st.builds(
        Distill,
        losses=st.lists(
            st.builds(
                LossTerm,
                name=st.sampled_from(["kl", "no", "1e3", "~", "a: b", "'", "#", "é", "[x]"]),
                arguments=st.dictionaries(st.text("abc", min_size=1), st.floats(-1e9, 1e9) | st.booleans(), max_size=2),
            ),
            max_size=2,
        ).map(tuple),
        unlabelled=st.none() | st.sampled_from(["no", "null", "/a b/c", "010", "12:30", "- x", "2024-01-01", ""]),
    ),
    export=st.builds(Export, targets=st.just((ExportTarget(runtime="onnx", precisions=("fp32",)),))),
)


@settings(max_examples=25)
@given(RECIPES, st.booleans())
def test_a_recipe_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, comments: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(recipe_to_yaml(recipe, comments=comments), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_the_commented_recipe_explains_every_section(tmp_path: Path) -> None:
    text = recipe_to_yaml(Recipe(name="a"), comments=True)
    assert "    # Peak learning rate. (a number > 0)\n    lr: 0.001\n" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_every_field_is_explained_and_reachable() -> None:
    notes = list(fields())
    assert len(notes) > 100
    for note in notes:
        here = spot(note.path.split("."))
        assert here is not None, note.path
        assert takes(here) == note.takes != "any value", note.path


def test_the_shipped_schema_is_current() -> None:
    """To renew it: ``json.dumps(schema(), indent=1)`` and a newline, written to ``schema_path()``."""
    shipped = schema_path().read_text(encoding="utf-8")
    assert json.loads(shipped) == json.loads(json.dumps(schema()))
    assert shipped.endswith("}\n")
    assert schema()["required"] == ["name"]
    assert schema()["additionalProperties"] is False


def test_every_shipped_recipe_loads_and_is_free_of_contradictions() -> None:
    shipped = sorted(schema_path().parent.glob("*.yaml"))
    assert shipped, "no recipes found"
    for path in shipped:
        for smoke in (False, True):
            check_recipe(load_recipe(path, smoke=smoke))


@pytest.mark.slow
def test_every_shipped_recipe_has_models_that_fit() -> None:
    for path in sorted(schema_path().parent.glob("*.yaml")):
        for smoke in (False, True):
            check_models(load_recipe(path, smoke=smoke))


def test_reading_recipes_does_not_import_torch() -> None:
    code = "import sys, distilledge.pipeline.recipe_file, distilledge.pipeline.store; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
