"""Choosing: a strategy from the data, a learning rate by a range test, and what is left of the source."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from distilledge.models import penalties, training, vision
from distilledge.models.domain_distance import batch_norm_distance
from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.transfer import Tuning, layer_groups
from distilledge.pipeline.cli import app
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.recipe_file import load_recipe
from distilledge.pipeline.recipe_strategy import ARGUMENTS
from distilledge.pipeline.recipe_yaml import parse
from distilledge.pipeline.record import Checkpoint, SourceKept
from distilledge.pipeline.report.fits import monitor_words, source_words
from distilledge.pipeline.stats import Estimate
from distilledge.pipeline.steps import steps
from distilledge.pipeline.suggest import Facts, propose
from distilledge.pipeline.training import feature_cache
from distilledge.pipeline.training.lr_find import LrFound, plotted, range_test, suggested
from distilledge.pipeline.training.source import read_source
from distilledge.pipeline.transfer import source_hash, training_inputs

FACTS = Facts(
    task="image-classification",
    samples=700,
    unlabelled=0,
    classes=7,
    per_class=50,
    label_columns=("label",),
    target="",
    keep_source=False,
    pretrained=True,
)

# --- the table of strategies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "strategy", "says"),
    [
        ({"samples": 0, "unlabelled": 90}, "zero-shot", "none of 90 pictures has a label"),
        ({"target": "photos/"}, "mmd", "the model will run in another"),
        ({"keep_source": True}, "ewc", "the source must be kept"),
        ({"keep_source": True, "attention": True}, "lora", "the source must be kept"),
        ({"pretrained": False}, "fine-tune", "nothing to transfer"),
        ({"per_class": 5, "distance": 0.1}, "feature-extraction", "like the source"),
        ({"per_class": 5}, "feature-extraction", "5 samples of the smallest class: a new head"),
        ({"per_class": 5, "distance": 0.5}, "fine-tune", "the top layers must change"),
        ({"per_class": 5, "distance": 0.5, "separation": 0.9}, "feature-extraction", "90 % have neighbours"),
        ({"per_class": 5, "task": "token-classification"}, "lora", "low-rank adapters"),
        ({"per_class": 50, "distance": 0.1}, "fine-tune", "enough for the top layers"),
        ({"per_class": 50, "distance": 0.5}, "fine-tune", "the features themselves must change"),
        ({"per_class": 500}, "fine-tune", "enough to fine-tune all layers"),
    ],
)
def test_each_row_of_the_table_is_reached(changed: dict[str, Any], strategy: str, says: str) -> None:
    made = propose(FACTS._replace(**changed))
    assert made.strategy == strategy
    assert says in made.reason
    if strategy in ARGUMENTS:
        _accepted(made.lines)
    else:
        assert made.lines == ""
        assert "this version" in made.also[0]


def _accepted(lines: str) -> None:
    """The lines make a recipe that loads, with the weights that they are about."""
    given: dict[str, Any] = parse(lines, "lines").data
    given.setdefault("teacher", {}).setdefault("weights", "hub")
    check_recipe(Recipe.model_validate({"name": "proposed", **given}))


def test_few_samples_get_few_layers_and_many_get_all() -> None:
    few = propose(FACTS._replace(per_class=5, distance=0.5))
    assert "layers: 2" in few.lines
    assert "layers" not in propose(FACTS._replace(per_class=500)).lines


def test_what_is_beside_is_said() -> None:
    found = propose(FACTS._replace(unlabelled=40, separation=0.15, chance=0.2, distance=0.5)).also
    assert any("40 samples without labels" in line for line in found)
    assert any("hardly tell the classes apart" in line for line in found)


def pictures(root: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """Folders of noise of another brightness for each class."""
    from PIL import Image

    random = np.random.default_rng(seed)
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            array = random.integers(40 * number, 60 + 40 * number, (40, 40, 3), np.uint8)
            Image.fromarray(array).save(root / name / f"{i}.png")
    return root


def suggested_by(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["plan", "--suggest", *arguments, "--json"], catch_exceptions=False)
    return json.loads(done.stdout)


def test_a_folder_of_pictures_without_labels(tmp_path: Path) -> None:
    made = suggested_by(str(pictures(tmp_path / "all" / "heap", {"": 3}).parent))
    assert made["facts"]["unlabelled"] == 3
    assert made["proposal"]["strategy"] == "zero-shot"


def test_a_folder_of_classes_says_what_was_not_looked_at(tmp_path: Path) -> None:
    made = suggested_by(str(pictures(tmp_path / "set", {"a": 30, "b": 20})), "--set", "teacher.weights=none")
    assert made["facts"]["samples"] == 50
    assert made["facts"]["per_class"] == 14  # of 20, 0.7 are learned from
    assert "teacher.weights is none" in made["facts"]["unknown"][0]
    assert "nothing to transfer" in made["proposal"]["reason"]


def test_a_manifest_with_two_label_columns(tmp_path: Path) -> None:
    root = pictures(tmp_path / "set", {"a": 12, "b": 12})
    lines = [f"{c}/{i}.png,{c},{'rough' if i % 2 else 'smooth'},{i}" for c in "ab" for i in range(12)]
    (root / "manifest.csv").write_text("\n".join(["path,label,texture,serial_number", *lines]))
    made = suggested_by(str(root), "--set", "teacher.weights=none")
    assert made["facts"]["label_columns"] == ["label", "texture"]


def test_texts_are_counted(tmp_path: Path) -> None:
    lines = [f"the {word} number {i} does not work,{word}" for word in ("pump", "door") for i in range(40)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines]))
    made = suggested_by(str(tmp_path / "texts.csv"))
    assert made["facts"]["classes"] == 2
    assert made["facts"]["per_class"] == 28
    assert "measured of pictures alone" in made["facts"]["unknown"][0]


RECIPE = """
schema: 1
name: suggest
data: {path: $DISTILLEDGE_SHARED/data/SET, columns: {path: file}, calibration: 16, workers: 0}
teacher:
  model: mobilenetv1_025
  weights: $DISTILLEDGE_SHARED/weights/mobilenetv1_025_tfqat/model.safetensors
  input: {size: 48}
  training: {epochs: 1}
student: {model: mobilenetv1_025, input: {size: 48}, training: {epochs: 1}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "like"), [("x-sdd", False), ("magnetic-tile", False), ("cifar10-subset", True)])
def test_real_textures_are_far_from_photos(
    name: str, like: bool, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLEDGE_SHARED", str(shared))
    (tmp_path / "r.yaml").write_text(RECIPE.replace("SET", name))
    made = suggested_by(str(tmp_path / "r.yaml"))
    assert (made["facts"]["distance"] < 0.22) is like
    assert made["facts"]["separation"] > 1.5 / made["facts"]["classes"] or name == "magnetic-tile"


def test_the_distance_is_the_divergence_of_gaussians() -> None:
    """By numerical integration; zero for the statistics' own data, and unmoved by a dead channel."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    data = torch.randn(64, 3, 8, 8) * torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1) + 0.3
    mean, variance = data.mean((0, 2, 3)).double(), data.var((0, 2, 3), unbiased=False).double()
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    model = nn.Sequential(norm)
    assert batch_norm_distance(model, data.split(16)) == pytest.approx(0, abs=1e-6)
    norm.running_mean.copy_(torch.tensor([0.0, 1.0, 0.3]))
    norm.running_var.copy_(torch.tensor([1.0, 1.0, 4.0]))
    grid = torch.linspace(-30, 30, 200001, dtype=torch.float64)
    each = []
    for m, v, expected, spread in zip(mean, variance, norm.running_mean, norm.running_var, strict=True):
        p = torch.distributions.Normal(m, (v + norm.eps).sqrt())
        q = torch.distributions.Normal(expected.double(), (spread.double() + norm.eps).sqrt())
        logs = p.log_prob(grid)
        each.append(float(torch.trapezoid(logs.exp() * (logs - q.log_prob(grid)), grid)))
    assert batch_norm_distance(model, data.split(16)) == pytest.approx(sorted(each)[1], rel=1e-4)
    assert batch_norm_distance(nn.Sequential(nn.ReLU()), data.split(16)) is None


# --- the learning rate ------------------------------------------------------------------------------------------------


def quadratic(sharpness: float) -> Any:
    """Gradient descent on sharpness/2 w^2, which is stable below 2 / sharpness."""
    weight = [1.0]

    def step(rate: float) -> float:
        loss = 0.5 * sharpness * weight[0] ** 2
        weight[0] -= rate * sharpness * weight[0]
        return loss

    return step


@pytest.mark.parametrize("sharpness", [0.5, 20.0, 1000.0])
def test_a_range_test_finds_the_stable_learning_rates_of_a_quadratic(sharpness: float) -> None:
    limit = 2 / sharpness
    rates, losses, diverged = range_test(quadratic(sharpness), lowest=limit * 1e-5, highest=limit * 1e3, steps=200)
    assert diverged
    assert limit < rates[-1] < 30 * limit  # it ends soon after the steps diverge, not before
    steepest, tenth = suggested(rates, losses)
    assert 1e-3 * limit < min(steepest, tenth) < limit
    assert steepest < limit


def test_a_range_that_ends_too_low_or_never_falls() -> None:
    assert not range_test(quadratic(1.0), lowest=1e-6, highest=1e-2, steps=50)[2]
    rising = iter(range(1, 100))
    rates, losses, diverged = range_test(lambda _: float(next(rising)), lowest=1e-3, highest=1.0, steps=60)
    assert diverged
    with pytest.raises(RejectedError, match="does not fall"):
        suggested(rates, losses)
    assert range_test(lambda _: math.nan, lowest=1e-3, highest=1.0, steps=60) == ([], [], True)


def test_the_curve_is_drawn() -> None:
    rates, losses, diverged = range_test(quadratic(20.0), lowest=1e-5, highest=10.0, steps=100)
    steepest, tenth = suggested(rates, losses)
    found = LrFound(
        role="teacher",
        configured=1e-3,
        lr=tuple(rates),
        loss=tuple(losses),
        steepest=steepest,
        tenth=tenth,
        suggestion=min(steepest, tenth),
        diverged=diverged,
    )
    text = plotted(found)
    assert text.splitlines()[0].count("v") == 1
    assert text.count("*") > 20


LR = """
schema: 1
name: lr
data: {path: synthetic, synthetic: {per_class: 24, size: 32}, calibration: 8, workers: 0}
teacher: {model: test_efficientnet, input: {size: 32}, training: {epochs: 2, batch_size: 16}}
student: {model: test_efficientnet, input: {size: 32}, training: {epochs: 1, batch_size: 16}}
"""


@pytest.mark.slow
def test_lr_find_leaves_nothing_of_the_training(tmp_path: Path) -> None:
    (tmp_path / "lr.yaml").write_text(LR)
    command = ["lr-find", str(tmp_path / "lr.yaml"), "--steps", "60", "--lowest", "1e-5", "--json"]
    done = CliRunner().invoke(app, [*command, "--work", str(tmp_path / "work")], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["lr"][0] == pytest.approx(1e-5)
    assert found["lr"] == sorted(found["lr"])
    assert min(found["loss"]) < found["loss"][5]
    assert 1e-5 < found["suggestion"] <= found["lr"][-1]
    assert [p.name.split("-")[0] for p in (tmp_path / "work" / "store").iterdir() if p.name[0] != "."] == ["data"]
    again = CliRunner().invoke(app, [*command, "--work", str(tmp_path / "work")], catch_exceptions=False)
    assert json.loads(again.stdout) == found


# --- recipe fields that came later ------------------------------------------------------------------------------------


def named(tmp_path: Path, *overrides: str) -> dict[str, str]:
    (tmp_path / "lr.yaml").write_text(LR)
    return {s.name: s.fingerprint for s in steps(load_recipe(tmp_path / "lr.yaml", overrides=list(overrides)), {})}


def test_fields_that_are_not_used_are_in_no_fingerprint(tmp_path: Path) -> None:
    plain = load_recipe_of(tmp_path).teacher.model_dump(mode="json")
    assert {"batch_norm", "dropout", "drop_path"} <= set(plain["training"])
    assert not {"batch_norm", "dropout", "drop_path"} & set(training_inputs(plain)["training"])
    before = named(tmp_path)
    for override in ("batch_norm=frozen", "dropout=0.2", "drop_path=0.1"):
        after = named(tmp_path, f"teacher.training.{override}")
        assert after["teacher"] != before["teacher"]
        assert after["data"] == before["data"]


def load_recipe_of(tmp_path: Path) -> Recipe:
    (tmp_path / "lr.yaml").write_text(LR)
    return load_recipe(tmp_path / "lr.yaml")


def test_dropout_and_stochastic_depth_reach_the_model() -> None:
    from timm.layers import DropPath

    model = vision.create("test_efficientnet", classes=3, size=32, rates={"drop_rate": 0.25, "drop_path_rate": 0.5})
    assert model.drop_rate == 0.25
    assert max(m.drop_prob for m in model.modules() if isinstance(m, DropPath)) > 0
    with pytest.raises(UsageError, match="E2580"):
        vision.create("vgg11", classes=3, size=32, rates={"drop_path_rate": 0.5})


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).train()
    training.freeze_norms(model)
    before = model[0].running_mean.clone()
    model(torch.randn(8, 2) + 5).sum().backward()
    assert torch.equal(model[0].running_mean, before)
    assert model[0].weight.grad is not None


def test_layer_decay_is_the_same_with_a_strategy_as_without() -> None:
    model = vision.create("test_efficientnet", classes=3, size=32)
    plain = training.parameter_groups(model, lr=0.1, weight_decay=0.05, layer_decay=0.5)
    shares = training.learning_rates(model, 0.5)
    tuned = Tuning(layer_groups(model), shares=shares).parameter_groups(model, lr=0.1, weight_decay=0.05)

    def rates(groups: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
        return {id(p): (round(g["lr"], 12), g["weight_decay"]) for g in groups for p in g["params"]}

    assert rates(tuned) == rates(plain)
    assert len({rate for rate, _ in rates(plain).values()}) > len(layer_groups(model)) - 1


# --- the cache of features --------------------------------------------------------------------------------------------


def test_the_cache_of_features_forgets_what_was_used_longest_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    rows = np.zeros((100, 10), np.float32)
    for number, key in enumerate(("old", "used", "newer")):
        feature_cache.cached(tmp_path, key, lambda: rows)
        os.utime(tmp_path / key, (number, number))
    feature_cache.cached(tmp_path, "used", lambda: pytest.fail("it is there"))
    monkeypatch.setattr(feature_cache, "MOST_BYTES", 2 * 4200 + 1000)
    (tmp_path / ".tmp-last-dead").mkdir()
    feature_cache.cached(tmp_path, "last", lambda: rows)
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"used", "last"}


# --- what is left of the source ---------------------------------------------------------------------------------------


def test_a_source_is_held_out_but_for_what_the_fisher_information_takes(tmp_path: Path) -> None:
    source = read_source(str(pictures(tmp_path / "set", {"a": 12, "b": 8})), seed=0, drawn=5)
    assert source.classes == ("a", "b")
    assert len(source.learned) == 5
    assert len(source.held) == 15
    assert not {s.path for s in source.learned} & {s.path for s in source.held}
    assert not source.declared


def test_a_source_with_a_test_part_is_judged_on_that_alone(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part, count in (("train", 6), ("test", 4)):
        pictures(root / part, {"a": count, "b": count})
    source = read_source(str(root), seed=0, drawn=100)
    assert {s.path.split("/")[0] for s in source.learned} == {"train"}
    assert [s.path.split("/")[0] for s in source.held] == ["test"] * 8
    assert source.declared


def test_a_source_without_labels_has_no_classes(tmp_path: Path) -> None:
    source = read_source(str(pictures(tmp_path / "heap", {"": 3})), seed=0, drawn=2)
    assert source.classes == ()
    assert len(source.learned) == 2


def test_the_hash_of_a_source_is_of_what_is_used(tmp_path: Path) -> None:
    root = pictures(tmp_path / "set", {"a": 3, "b": 3})
    folder = source_hash(str(root))
    (root / "a" / "0.png").write_bytes(b"other")
    assert source_hash(str(root)) != folder
    (root / "manifest.csv").write_text("file,label\na/1.png,a\nb/1.png,b\n")
    listed = source_hash(str(root))
    (root / "a" / "0.png").write_bytes(b"what no line names")
    assert source_hash(str(root)) == listed == source_hash(str(root / "manifest.csv"))
    (root / "a" / "1.png").write_bytes(b"other")
    assert source_hash(str(root)) != listed
    (root / "texts.csv").write_text("text,label\nit rattles,pump\n")
    texts = source_hash(str(root / "texts.csv"))
    (root / "texts.csv").write_text("text,label\nit rattles again,pump\n")
    assert source_hash(str(root / "texts.csv")) != texts


def test_the_fisher_information_of_several_answers_is_the_closed_form() -> None:
    """Of a linear layer: the gradient of sum_r log p(y_r | x_r) is sum_r (onehot(y_r) - p_r) x_r^T."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 3, bias=False)
    samples = [torch.randn(5, 4) for _ in range(7)]
    found = penalties.diagonal_fisher(net, [samples], ["weight"], seed=11, answer=net)["weight"]
    random, expected = torch.Generator().manual_seed(11), torch.zeros(3, 4)
    for x in samples:
        shares = net(x).softmax(-1).detach()
        drawn = torch.multinomial(shares, 1, generator=random)[:, 0]
        expected += ((torch.eye(3)[drawn] - shares).T @ x).square() / len(samples)
    assert torch.allclose(found, expected, rtol=1e-4)


KEPT = SourceKept(
    what="accuracy",
    samples=200,
    declared=True,
    before=Estimate(value=0.8),
    after=Estimate(value=0.6),
    lost=Estimate(value=20.0, low=15.0, high=25.0),
)


def test_what_was_forgotten_in_words() -> None:
    assert source_words(KEPT) == (
        "Source: the teacher forgot what its weights knew: 80.0 % accuracy before, 60.0 % after, +20.0 points "
        "[+15.0, +25.0] lost, on 200 pictures of the source's own test part."
    )
    little = KEPT.model_copy(update={"lost": Estimate(value=1.0, low=-1.0, high=3.0), "declared": False})
    assert "is not shown to have forgotten" in source_words(little)
    assert "may have been trained on" in source_words(little)


def test_a_training_in_words_says_what_was_kept_and_whether_it_stopped_early() -> None:
    made = Checkpoint.model_construct(role="teacher", best_epoch=2)
    rows = [{"loss": v, "train_loss": t} for v, t in ((1.0, 1.1), (0.7, 0.8), (0.9, 0.5), (0.95, 0.4))]
    found = monitor_words(made, rows, 20)
    assert "overfits" in found
    assert "Epoch 2's weights were kept; it stopped early, after 4 of 20 epochs." in found
    assert "stopped early" not in monitor_words(made, rows, 4)
    last = Checkpoint.model_construct(role="teacher", best_epoch=4)
    assert "The last epoch's weights were kept." in monitor_words(last, rows, 4)


def test_dropout_of_a_text_model_is_that_of_every_layer() -> None:
    from distilledge.models import text

    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes = {"classes": 2, "vocabulary_size": 30, "max_length": 8, "pad_id": 0}
    net = text.from_config("bert", config, task="text-classification", **sizes)
    text.set_dropout(net, 0.37)
    found = {m.p for m in net.modules() if isinstance(m, nn.Dropout)}
    assert found == {0.37}
    assert net.backbone.encoder.layer[0].attention.self.dropout.p == 0.37
