"""Domain adaptation: losses against numpy, BatchNorm's statistics by hand, pairs, the target's audit, what is said."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from distilledge.models import domains
from distilledge.models.domains import Dann, Distance, SimSiam, adapt_batch_norm, coral, dann_lambda, mmd
from distilledge.models.errors import GateFailedError, RejectedError, UsageError
from distilledge.pipeline import transfer as chain
from distilledge.pipeline.data.prepare import prepare
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.record import Adaptation, Checkpoint, read_samples
from distilledge.pipeline.report.fits import adaptation_words, notes
from distilledge.pipeline.steps import steps
from distilledge.pipeline.training.compare import judged
from distilledge.pipeline.training.domain_feed import Joined, Pairs

Array = Any


def rows(count: int, width: int, seed: int, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1, (count, width))


def slope(function: Any, at: Array, step: float = 1e-6) -> Array:
    """Central differences of a function of an array."""
    found = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        found[index] = (function(up) - function(down)) / (2 * step)
    return found


def gradient(function: Any, at: Array) -> Array:
    leaf = torch.tensor(at, requires_grad=True)
    function(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


# --- losses


def test_the_reversed_gradient_has_the_sign_and_the_scale() -> None:
    features, weights = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True), torch.tensor([2.0, -5.0])
    out = domains.reverse_gradient(features, 0.25)
    assert torch.equal(out, features)
    (out * weights).sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.stack([-0.25 * weights, -0.25 * weights]))


@pytest.mark.parametrize(("done", "expected"), [(0.0, 0.0), (0.1, 0.46211716), (0.5, 0.98661430), (1.0, 0.99990920)])
def test_the_schedule_is_that_of_the_paper(done: float, expected: float) -> None:
    assert dann_lambda(done) == pytest.approx(expected, abs=1e-8)  # 2 / (1 + exp(-10 p)) - 1, computed apart


def test_dann_turns_the_features_around_and_lets_the_classifier_learn() -> None:
    torch.manual_seed(0)
    loss = Dann(3, hidden=4, weight=2.0, gamma=10.0).double()
    given, targets = rows(6, 3, 0), torch.zeros(6, 2).double()
    targets[::2, 1] = 1  # rows 1, 3, 5 have no label: of the target
    total = loss(torch.tensor(given), targets, 0.1)

    def plain(x: Any) -> Any:
        logits = loss.classifier(torch.as_tensor(x)).squeeze(1)
        of_target = torch.tensor([0.0, 1, 0, 1, 0, 1]).double()
        p = torch.sigmoid(logits)
        return -(of_target * p.log() + (1 - of_target) * (1 - p).log()).mean()

    assert total.item() == pytest.approx(plain(given).item())
    reached = gradient(lambda x: loss(x, targets, 0.1), given)
    expected = slope(lambda x: float(plain(x).detach()), given)
    np.testing.assert_allclose(reached, -2.0 * 0.46211716 * expected, rtol=1e-5, atol=1e-9)
    loss.zero_grad()
    loss(torch.tensor(given), targets, 0.0).backward()  # nothing reaches the features yet
    first = loss.classifier[0].weight.grad.clone()
    loss.zero_grad()
    plain(given).backward()
    torch.testing.assert_close(first, loss.classifier[0].weight.grad)


def reference_coral(source: Array, target: Array) -> float:
    difference = np.cov(source, rowvar=False) - np.cov(target, rowvar=False)
    return float((difference**2).sum() / (4 * source.shape[1] ** 2))


def test_coral_and_its_gradient_are_those_of_the_covariances() -> None:
    source, target = rows(7, 4, 0), 2 * rows(9, 4, 1, 3.0)
    assert float(coral(torch.tensor(source), torch.tensor(target))) == pytest.approx(reference_coral(source, target))
    found = gradient(lambda s: coral(s, torch.tensor(target)), source)
    np.testing.assert_allclose(found, slope(lambda s: reference_coral(s, target), source), rtol=1e-5, atol=1e-8)
    found = gradient(lambda t: coral(torch.tensor(source), t), target)
    np.testing.assert_allclose(found, slope(lambda t: reference_coral(source, t), target), rtol=1e-5, atol=1e-8)
    assert float(coral(torch.tensor(source), torch.tensor(source + 5))) == pytest.approx(0, abs=1e-20)  # no means


def reference_mmd(source: Array, target: Array, widths: list[float]) -> float:
    def mean(a: Array, b: Array) -> float:
        values = [np.exp(-((x - y) ** 2).sum() / w) for x in a for y in b for w in widths]
        return float(np.mean(values))

    return mean(source, source) + mean(target, target) - 2 * mean(source, target)


def test_mmd_and_its_gradient_are_those_of_the_kernels() -> None:
    source, target = rows(5, 3, 0), rows(4, 3, 1, 1.0)
    every = np.concatenate([source, target])
    pairs = [((x - y) ** 2).sum() for i, x in enumerate(every) for j, y in enumerate(every) if i != j]
    widths = [float(np.mean(pairs)) * f for f in (0.25, 0.5, 1.0, 2.0, 4.0)]
    assert float(mmd(torch.tensor(source), torch.tensor(target))) == pytest.approx(
        reference_mmd(source, target, widths)
    )
    found = gradient(lambda s: mmd(s, torch.tensor(target)), source)
    np.testing.assert_allclose(
        found, slope(lambda s: reference_mmd(s, target, widths), source), rtol=1e-5, atol=1e-8
    )  # the widths of the reference stay: they get no gradient
    assert float(mmd(torch.tensor(source), torch.tensor(source))) == pytest.approx(0, abs=1e-12)


def test_a_distance_is_between_the_labelled_and_the_others() -> None:
    embedding, targets = torch.tensor(rows(6, 3, 0)), torch.zeros(6, 2)
    targets[:3, 0] = 1
    found = Distance(coral, 3.0)(embedding, targets, 0.0)
    assert float(found) == pytest.approx(3 * reference_coral(embedding[:3].numpy(), embedding[3:].numpy()))
    assert float(Distance(coral, 3.0)(embedding[:4], targets[:4], 0.0)) == 0  # one row of the target


def test_simsiam_is_the_cosine_of_each_view_with_the_others_projection() -> None:
    p, z = rows(4, 3, 0), rows(4, 3, 1)

    def cosine(a: Array, b: Array) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    expected = -np.mean([(cosine(p[i], z[i + 1]) + cosine(p[i + 1], z[i])) / 2 for i in (0, 2)])
    projected = torch.tensor(z, requires_grad=True)
    predicted = torch.tensor(p, requires_grad=True)
    found = domains.simsiam(predicted, projected)
    assert found.item() == pytest.approx(expected)
    found.backward()
    assert projected.grad is None  # stop-gradient
    assert predicted.grad is not None
    torch.manual_seed(0)
    assert SimSiam(3, 8)(torch.randn(6, 3), torch.zeros(6, 2), 0.0).shape == ()


def test_spread_tells_a_collapse() -> None:
    assert domains.spread(torch.tensor(rows(4000, 16, 0))) == pytest.approx(1, abs=0.02)
    assert domains.spread(torch.ones(10, 16) + 1e-4 * torch.randn(10, 16)) < 0.01


# --- BatchNorm


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten(),
        nn.Linear(80, 6), nn.BatchNorm1d(6),
    )  # fmt: skip


def test_statistics_of_batch_norm_are_those_of_the_targets_features_by_hand() -> None:
    net, pictures = network().eval(), torch.randn(10, 3, 8, 8) * 3 + 1
    weights = [p.clone() for p in net.parameters()]
    assert adapt_batch_norm(net, lambda: pictures.split(4)) == 3
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))  # no weight is trained
    first = net[0](pictures).detach().numpy()
    mean, var = first.mean((0, 2, 3)), first.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(net[1].running_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net[1].running_var, var, rtol=1e-5)
    normal = (first - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    second = net[3](torch.tensor(np.maximum(normal, 0))).detach().numpy()
    np.testing.assert_allclose(net[4].running_mean, second.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net[4].running_var, second.var((0, 2, 3), ddof=1), rtol=1e-4)
    out = net(pictures)
    assert out.mean(0).abs().max() < 1e-5
    other = network().eval()
    adapt_batch_norm(other, lambda: pictures.split(10))
    torch.testing.assert_close(net[4].running_var, other[4].running_var)  # whatever the batches
    with pytest.raises(UsageError, match="E2530"):
        adapt_batch_norm(nn.Sequential(nn.Linear(3, 2)), lambda: [torch.randn(4, 3)])


def test_batch_statistics_are_used_and_left_as_they_were() -> None:
    net, pictures = network().train(), torch.randn(10, 3, 8, 8) * 3 + 1
    net[2].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad(), domains.batch_statistics(net):
        assert net(pictures).mean(0).abs().max() < 1e-5
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [m.training for m in net] == [True, True, False, *[True] * 5]
    assert net[1].momentum == 0.1


# --- pairs


def test_each_step_holds_pairs_and_an_epoch_every_source_picture() -> None:
    def partners(_epoch: int, own: Array) -> Array:
        return own + 10

    steps_of = Pairs(np.arange(10) % 3, 4, partners, seed=5, balanced=False)
    order = steps_of.order(0)
    assert order.shape == (3, 8)
    assert len(steps_of) == 3
    assert set(order[:, ::2].ravel()) == set(range(10))
    np.testing.assert_array_equal(order[:, 1::2], order[:, ::2] + 10)
    assert not np.array_equal(order, steps_of.order(1))
    np.testing.assert_array_equal(order, steps_of.order(0))
    both = Joined([np.zeros((1, 1, 3), np.uint8)] * 2, [np.ones((1, 1, 3), np.uint8)] * 3)  # type: ignore[arg-type]
    assert [int(both[i].max()) for i in range(len(both))] == [0, 0, 1, 1, 1]


# --- the recipe


def recipe(strategy: Any, target: Any = None, **rest: Any) -> Recipe:
    data = {"path": "synthetic"} | ({"target": target} if target else {})
    teacher = {"strategy": strategy, "training": rest}
    return Recipe.model_validate({"name": "t", "data": data, "teacher": teacher})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (recipe("dann"), "that the recipe does not name"),
        (recipe("coral", {"path": "x"}, early_stopping=2), "early_stopping"),
        (recipe("mmd", {"path": "x"}, augment={"mixup": 0.2}), "mixup"),
        (recipe("dann", {"path": "x"}, batch_size=1), "batch_size"),
        (recipe({"name": "coral", "arguments": {"wieght": 1}}, {"path": "x"}), "did you mean `weight`"),
    ],
)
def test_what_cannot_be_meant_is_said(made: Recipe, said: str) -> None:
    with pytest.raises(UsageError, match="E2016") as error:
        check_recipe(made)
    assert said in f"{error.value.what} {error.value.hint}"


def test_source_only_is_the_same_teacher_at_the_same_budget() -> None:
    made = recipe("dann", {"path": "x"}, epochs=7, lr=0.5)
    plain = chain.source_only(made)
    assert plain.teacher.strategy.name == "fine-tune"
    assert plain.teacher.training == chain.last_epoch(made).teacher.training
    assert plain.teacher.training.select == "last"  # the best by the source is the least adapted
    assert chain.last_epoch(recipe("fine-tune")).teacher.training.select == "best"


# --- data


def picture(label: int, index: int, light: float) -> Image.Image:
    """Stripes and noise; ``light`` darkens."""
    random = np.random.default_rng((label, index))
    base = np.full((40, 44, 3), 90.0)
    base[:: 2 + 2 * label] += 90
    return Image.fromarray(((base + random.normal(0, 12, base.shape)) * light).clip(0, 255).astype(np.uint8))


def sets(root: Path, *, source: int = 8, learned: int = 12, tested: int = 4) -> Path:
    """source/<class>/, target/*.png without labels and test/<class>/, two classes, other pictures in each."""
    index = 0
    for folder, count, light in (("source", source, 1.0), ("target", learned, 0.5), ("test", tested, 0.5)):
        for label, name in enumerate(("a", "b")):
            place = root / folder / ("" if folder == "target" else name)
            place.mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                index += 1
                picture(label, index, light).save(place / f"{index:03d}.png")
    return root


def prepared(root: Path, **target: Any) -> Any:
    made = Recipe.model_validate(
        {
            "name": "t",
            "data": {
                "path": str(root / "source"),
                "calibration": 8,
                "target": {"path": str(root / "target"), "test": str(root / "test"), **target},
            },
        }
    )
    out = root / "store" / "data-0"
    out.mkdir(parents=True, exist_ok=True)
    return prepare(made.data, bit_depth=8, seed=0, out=out), out, made


def test_the_targets_pictures_are_learned_from_without_labels_and_scored_with(tmp_path: Path) -> None:
    splits, out, made = prepared(sets(tmp_path))
    free, test = read_samples(out, "target"), read_samples(out, "test")
    assert len(free) == 24
    assert {s.label for s in free} == {-1}
    assert sorted(s.label for s in test) == [0] * 4 + [1] * 4
    assert all(Path(s.path).is_relative_to(tmp_path / "test") for s in test)
    assert splits.counts["test"] == {"a": 4, "b": 4}
    assert read_samples(out, "source-test")
    assert not any(Path(s.path).is_absolute() for s in read_samples(out, "train"))
    assert {s.split for s in read_samples(out) if s.calibration} == {"target"}  # where the student will run
    inputs = steps(made, {})[0].inputs
    assert "target" not in inputs["data"]
    before = inputs["target"]["test"]["content"]
    picture(1, 999, 0.5).save(tmp_path / "test" / "a" / "more.png")
    assert steps(made, {})[0].inputs["target"]["test"]["content"] != before


def test_a_recipe_without_a_target_has_the_steps_it_had() -> None:
    made = recipe("fine-tune")
    assert not {"source-only", "adaptation"} & {s.name for s in steps(made, {})}
    assert all("target" not in json.dumps(s.inputs) for s in steps(made, {}) if s.kind in ("data", "teacher"))


def test_a_manifest_brings_both_parts_of_the_target(tmp_path: Path) -> None:
    root = sets(tmp_path)
    lines = [f"target/{p.name},a,train" for p in sorted((root / "target").iterdir())]
    lines += [f"test/{n}/{p.name},{n},test" for n in "ab" for p in sorted((root / "test" / n).iterdir())]
    (root / "all.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    _, out, _ = prepared(root, path=str(root / "all.csv"), test="")
    assert len(read_samples(out, "target")) == 24
    assert {s.label for s in read_samples(out, "target")} == {-1}
    assert len(read_samples(out, "test")) == 8
    (root / "all.csv").write_text("\n".join(["path,label,split", *lines[:24]]) + "\n")
    with pytest.raises(RejectedError, match="E3530"):
        prepared(root, path=str(root / "all.csv"), test="")


@pytest.mark.parametrize("learned", ["target", "source/a"])
@pytest.mark.parametrize("how", ["same", "another container", "saved again"])
def test_a_test_picture_that_is_learned_from_is_found_by_content(tmp_path: Path, learned: str, how: str) -> None:
    root = sets(tmp_path, source=12)
    tested = next((root / "test" / "a").iterdir())
    image = Image.open(tested)
    for number in range(3):  # of the source one falls into its own test part, which nobody learns from
        suffix = {"same": "png", "another container": "bmp", "saved again": "jpg"}[how]
        image.save(root / learned / f"copy{number}.{suffix}", **({"quality": 97} if how == "saved again" else {}))
    with pytest.raises(GateFailedError, match="E5101") as error:
        prepared(root)
    assert error.value.exit_code == 5
    assert "test" in error.value.what


def test_a_class_that_the_source_has_not_is_refused(tmp_path: Path) -> None:
    root = sets(tmp_path)
    (root / "test" / "b").rename(root / "test" / "bb")
    with pytest.raises(RejectedError, match="E3533"):
        prepared(root)


# --- what is said


def test_the_page_has_the_table_that_was_recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    recorded = json.loads((root / "benchmarks" / "results" / "domain.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "domains.md").read_text(encoding="utf-8")
    assert importlib.import_module("domain").markdown(recorded) in page
    assert {"dann", "coral"} <= {row["method"] for row in recorded["rows"]}


def test_negative_transfer_is_said_in_words() -> None:
    labels = np.arange(200) % 4
    good, bad = np.arange(200) >= 10, np.arange(200) >= 60
    hurt = judged(bad, good, labels, metric="accuracy")
    words = adaptation_words(
        Adaptation(method="dann", target=hurt, source=judged(good, good, labels, metric="accuracy"))
    )
    assert "by dann hurt (negative transfer)" in words
    assert "70.0 % accuracy, the same teacher trained on the source alone 95.0 %: -25.0 points [" in words
    assert "On the source's own test part" in words
    helped = adaptation_words(
        Adaptation(method="coral", target=judged(good, bad, labels, metric="accuracy"), source=None)
    )
    assert "by coral helped. On the target's test part" in helped


def test_notes_of_a_training_reach_the_report() -> None:
    fields: dict[str, Any] = {
        "role": "teacher", "model": "m", "classes": ("a", "b"), "input_spec": {}, "weights_sha256": "0",
        "parameters": 1, "macs": 1, "validation": {}, "best_epoch": 1, "epochs": 1, "seconds": 1.0,
        "samples_per_second": 1.0, "precision": "fp32", "notes": ("it collapsed",),
    }  # fmt: skip
    made = Checkpoint.model_validate(fields)
    assert notes([], [made, None]) == ["pretraining of the teacher: it collapsed."]
