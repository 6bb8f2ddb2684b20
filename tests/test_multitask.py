"""Several tasks on one network: weightings and masks against independent references, data, recipes, the whole chain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from distilledge.models import vision
from distilledge.models.errors import DistilledgeError, RejectedError, UsageError
from distilledge.models.features import Outputs
from distilledge.models.heads import Head, joined, spans
from distilledge.models.losses import cross_entropy, kl
from distilledge.models.losses_heads import MultiTaskLoss
from distilledge.models.losses_total import DistillationLoss, Term
from distilledge.models.outputs import Apart, Sliced, with_outputs
from distilledge.models.weightings import LEAST, WEIGHTINGS, Fixed, GradNorm, Uncertainty, gradient_lengths
from distilledge.pipeline import recipe_multitask
from distilledge.pipeline.data.labels import read_labels
from distilledge.pipeline.data.prepare import prepare
from distilledge.pipeline.evidence import gather_evidence
from distilledge.pipeline.recipe import Data, Multitask, Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.recipe_file import load_recipe
from distilledge.pipeline.record import Check, Measurements, Scores, Verdict, read_samples
from distilledge.pipeline.run import run
from distilledge.pipeline.steps import steps
from distilledge.pipeline.task_scores import apart, check_width, with_limit, worst
from distilledge.pipeline.training.tasks import check_processes, last_shared, score_tasks
from distilledge.targets.base import Predictions

HEADS = (Head(name="texture", classes=("brushed", "cast", "fabric")), Head(name="defect", classes=("good", "pit")))
SYNTHETIC = {"synthetic": {"per_class": 6, "size": 32}, "calibration": 8}
BOTH = {"columns": {"labels": {"texture": "texture", "defect": "label"}}}


def never(_losses: torch.Tensor) -> torch.Tensor:
    raise AssertionError("this weighting needs no gradients")


# --- weightings ------------------------------------------------------------------------------------------------------


def test_fixed_weights_are_a_plain_sum() -> None:
    losses = torch.tensor([0.7, 2.0], requires_grad=True)
    total = Fixed([1.5, 0.25])(losses, torch.tensor([True, True]), never)
    total.backward()
    assert total.item() == pytest.approx(1.5 * 0.7 + 0.25 * 2.0)
    assert losses.grad is not None
    assert losses.grad.tolist() == pytest.approx([1.5, 0.25])


def test_uncertainty_has_kendalls_value_and_gradients() -> None:
    """L / sigma^2 + log sigma in sigma, by hand; the code has s = log sigma^2."""
    values, sigma = np.array([0.7, 2.0]), np.array([0.8, 1.7])
    losses = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    weighting = Uncertainty((1 / sigma**2).tolist())
    total = weighting(losses, torch.tensor([True, True]), never)
    total.backward()
    assert total.item() == pytest.approx((values / sigma**2 + np.log(sigma)).sum(), rel=1e-5)
    assert losses.grad is not None
    assert losses.grad.numpy() == pytest.approx(1 / sigma**2, rel=1e-5)
    by_sigma = -2 * values / sigma**3 + 1 / sigma
    assert weighting.log_variances.grad is not None
    assert weighting.log_variances.grad.numpy() == pytest.approx(
        by_sigma * sigma / 2, rel=1e-5
    )  # ds = 2 dsigma / sigma


def test_uncertainty_settles_where_the_weight_is_one_over_twice_the_loss() -> None:
    weighting = Uncertainty([1.0, 1.0])
    for _ in range(300):
        total = weighting(torch.tensor([0.2, 3.0]), torch.tensor([True, True]), never)
        (slope,) = torch.autograd.grad(total, weighting.log_variances)
        weighting.log_variances.data -= 0.3 * slope
    assert weighting.weights().tolist() == pytest.approx([1 / 0.4, 1 / 6.0], rel=1e-3)


def test_a_task_without_a_sample_leaves_its_uncertainty_alone() -> None:
    weighting = Uncertainty([1.0, 1.0])
    weighting(torch.tensor([0.2, 0.0]), torch.tensor([True, False]), never).backward()
    assert weighting.log_variances.grad is not None
    assert weighting.log_variances.grad[1] == 0
    assert weighting.log_variances.grad[0] != 0


def shared_network(seed: int = 0) -> tuple[nn.Parameter, Callable[[], torch.Tensor]]:
    """A shared matrix W and three losses of it, one a hundred times the first."""
    random = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(4, 5, generator=random))
    x, targets = torch.randn(8, 5, generator=random), torch.randn(3, 8, generator=random)
    heads = torch.randn(3, 4, generator=random) * torch.tensor([[0.3], [1.0], [3.0]])
    pairs = list(zip(heads, targets, strict=True))
    return weight, lambda: torch.stack([((x @ weight.T @ h) - t).square().mean() for h, t in pairs])


def test_gradnorm_moves_the_weights_as_differentiating_twice_does() -> None:
    """Reference: the paper's L_grad built with a graph of second order and differentiated by autograd, five steps."""
    weight, losses_of = shared_network()
    start, alpha, rate = [1.0, 0.5, 1.5], 1.5, 0.01
    weighting, lengths_of = GradNorm(start, alpha=alpha, rate=rate).train(), partial(gradient_lengths, weight=weight)
    expected, first = torch.tensor(start), losses_of().detach()
    for _ in range(5):
        losses = losses_of()
        w = expected.clone().requires_grad_()
        lengths = torch.stack(
            [torch.autograd.grad(w[i] * losses[i], weight, create_graph=True)[0].norm() for i in range(3)]
        )
        rates = (losses / first).detach() / (losses / first).detach().mean()
        wanted = (lengths.mean() * rates**alpha).detach()
        (slope,) = torch.autograd.grad((lengths - wanted).abs().sum(), w)
        moved = (expected - rate * slope).clamp_min(LEAST)
        before = weighting.weights().clone()
        total = weighting(losses, torch.ones(3, dtype=torch.bool), lengths_of)
        assert total.item() == pytest.approx((before * losses.detach()).sum().item(), rel=1e-5)
        expected = moved * 3.0 / moved.sum()
        assert weighting.weights().tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        (gradient,) = torch.autograd.grad(total, weight)  # the training step, with the weights of before
        with torch.no_grad():
            weight -= 0.01 * gradient
    assert expected.tolist() != pytest.approx(start, rel=1e-2)  # it did move


def test_gradnorm_without_alpha_makes_the_gradients_alike() -> None:
    """Gradients of 1/2, 1 and 2 are alike under weights in 4 : 2 : 1."""
    weighting = GradNorm([1.0, 1.0, 1.0], alpha=0.0, rate=0.002).train()
    lengths = torch.tensor([0.5, 1.0, 2.0])
    for _ in range(1500):
        weighting(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3, dtype=torch.bool), lambda _each: lengths)
    assert weighting.weights().tolist() == pytest.approx([12 / 7, 6 / 7, 3 / 7], abs=0.02)


@pytest.mark.parametrize(
    ("present", "losses"), [([True, False], [1.0, 0.0]), ([True, True], [float("nan"), 1.0])], ids=["absent", "nan"]
)
def test_gradnorm_learns_nothing_of_a_batch_without_a_task_or_number(present: list[bool], losses: list[float]) -> None:
    weighting = GradNorm([1.0, 1.0]).train()
    weighting(torch.tensor(losses), torch.tensor(present), never)
    assert weighting.weights().tolist() == [1.0, 1.0]
    assert weighting.get_buffer("first").tolist() == [0.0, 0.0]


def test_gradnorm_goes_on_from_its_state() -> None:
    weight, losses_of = shared_network()
    present = torch.ones(3, dtype=torch.bool)
    whole, first = GradNorm([1.0] * 3).train(), GradNorm([1.0] * 3).train()
    for _ in range(4):
        whole(losses_of(), present, lambda each: gradient_lengths(each, weight))
    for _ in range(2):
        first(losses_of(), present, lambda each: gradient_lengths(each, weight))
    resumed = GradNorm([1.0] * 3).train()
    resumed.load_state_dict(first.state_dict())
    for _ in range(2):
        resumed(losses_of(), present, lambda each: gradient_lengths(each, weight))
    assert torch.equal(resumed.weights(), whole.weights())


# --- the loss --------------------------------------------------------------------------------------------------------


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of student and teacher (4, 5), and targets: row 1 lacks a defect, row 2 a texture, row 3 both."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, 5, generator=random) for _ in range(2))
    targets = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).float()
    return student.requires_grad_(), teacher, targets


def test_a_missing_label_is_masked_in_its_task_alone() -> None:
    """Reference: numpy, over the rows that have a label."""
    student, _, targets = batch()
    parts = MultiTaskLoss(HEADS, Fixed([1.0, 2.0]))(Outputs(student), None, targets)
    parts["total"].backward()
    z = student.detach().double().numpy()
    log_p = [z[:, c] - np.log(np.exp(z[:, c]).sum(1, keepdims=True)) for c in spans(HEADS)]
    texture, defect = -(log_p[0][0, 1] + log_p[0][1, 0]) / 2, -(log_p[1][0, 0] + log_p[1][2, 1]) / 2
    assert parts["hard texture"].item() == pytest.approx(texture, rel=1e-5)
    assert parts["hard defect"].item() == pytest.approx(defect, rel=1e-5)
    assert parts["total"].item() == pytest.approx(texture + 2 * defect, rel=1e-5)
    assert student.grad is not None
    assert not student.grad[1, 3:].any()
    assert not student.grad[2, :3].any()
    assert not student.grad[3].any()
    assert student.grad[0].all()
    assert student.grad[1, :3].all()
    assert student.grad[2, 3:].all()


def test_the_teacher_teaches_every_task_of_every_picture() -> None:
    student, teacher, targets = batch()
    terms = [Term("kl", 0.5, {"temperature": 3.0}), Term("dkd", 0.1)]
    loss = MultiTaskLoss(HEADS, Fixed([1.0, 2.0]), terms, hard_weight=0.25)
    parts = loss(Outputs(student), Outputs(teacher), targets)
    parts["total"].backward()
    expected = 0.0
    for weight, columns in zip((1.0, 2.0), spans(HEADS), strict=True):
        alone = DistillationLoss(terms, hard_weight=0.25)
        outputs = (Outputs(student[:, columns]), Outputs(teacher[:, columns]))
        expected += weight * alone(*outputs, targets[:, columns])["total"].item()
    assert parts["total"].item() == pytest.approx(expected, rel=1e-6)
    assert parts["kl defect"].item() == pytest.approx(kl(student[:, 3:], teacher[:, 3:], temperature=3.0).item())
    assert student.grad is not None
    assert student.grad[3].all()  # no label of any task, but a teacher's answer


def test_a_loss_of_embeddings_is_shared_and_not_weighed() -> None:
    student, teacher, targets = batch()
    embedding = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    ours, theirs = Outputs(student, embedding=embedding), Outputs(teacher, embedding=embedding.flip(0))
    terms = [Term("relational", 0.3)]
    found = MultiTaskLoss(HEADS, Fixed([2.0, 2.0]), terms)(ours, theirs, targets)
    hard = found["hard texture"] + found["hard defect"]
    assert found["total"].item() == pytest.approx((2 * hard + 0.3 * found["relational"]).item(), rel=1e-5)
    assert set(found) == {"hard texture", "hard defect", "relational", "total"}


def test_class_weights_are_of_each_task() -> None:
    student, _, targets = batch()
    loss = MultiTaskLoss(HEADS, Fixed([1.0, 1.0]), class_weights=[[1.0, 3.0, 1.0], None])
    parts = loss(Outputs(student), None, targets)
    expected = cross_entropy(student[:, :3], targets[:, :3], class_weights=torch.tensor([1.0, 3.0, 1.0]))
    assert parts["hard texture"].item() == pytest.approx(expected.item())
    assert parts["hard defect"].item() == pytest.approx(cross_entropy(student[:, 3:], targets[:, 3:]).item())


def test_the_weights_are_told_and_only_learnt_ones_are_parameters() -> None:
    told = {name: MultiTaskLoss(HEADS, made([1.0, 2.0], alpha=1.5, rate=0.1)) for name, made in WEIGHTINGS.items()}
    for loss in told.values():
        assert loss.told() == pytest.approx({"weight.texture": 1.0, "weight.defect": 2.0})
    assert {name: len(list(loss.parameters())) for name, loss in told.items()} == {
        "fixed": 0,
        "uncertainty": 1,
        "gradnorm": 0,
    }


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mobilenetv1_025", Apart), ("resnet18", Apart), ("deit_tiny_distilled_patch16_224", Sliced)],
)
def test_outputs_are_the_columns_of_the_joined_logits(name: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = vision.create(name, classes=5, size=32).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        whole = model(pictures)
        made = with_outputs(model, HEADS).eval()
        outputs = made(pictures)
    assert any(isinstance(module, kind) for module in made.modules())
    assert [tuple(o.shape) for o in outputs] == [(2, 3), (2, 2)]
    assert torch.allclose(torch.cat(outputs, 1), whole, atol=1e-6)


def test_gradnorm_watches_the_last_kernel_below_the_heads() -> None:
    model = vision.create("mobilenetv1_025", classes=5, size=32)
    names = [name for name, p in model.named_parameters() if p is last_shared(model)]
    layers = [name for name, p in model.named_parameters() if p.ndim >= 2]
    assert [*names, "classifier.weight"] == layers[-2:]


def test_scores_leave_out_what_has_no_label() -> None:
    logits = np.array([[2, 1, 0, 5, 1], [0, 3, 0, 1, 4], [0, 0, 1, 9, 0]], np.float32)
    labels = np.array([[0, -1], [2, 1], [-1, 1]])
    found = score_tasks(logits, labels, HEADS)
    assert (found["accuracy.texture"], found["accuracy.defect"], found["accuracy"]) == (0.5, 0.5, 0.5)
    losses = [float(np.log(np.exp(logits[i, c]).sum()) - logits[i, j]) for i, c, j in [
        (0, slice(0, 3), 0), (1, slice(0, 3), 2), (1, slice(3, 5), 4), (2, slice(3, 5), 4)
    ]]  # fmt: skip
    assert found["loss.texture"] == pytest.approx(np.mean(losses[:2]), rel=1e-5)
    assert found["loss"] == pytest.approx(np.mean(losses[:2]) + np.mean(losses[2:]), rel=1e-5)


# --- data ------------------------------------------------------------------------------------------------------------


def drawn(folder: Path, lines: list[str], *, header: str = "path,kind,surface") -> Path:
    """A manifest of noise pictures, one a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, line in enumerate(lines):
        random = np.random.default_rng((len(str(folder)), number))
        path = folder / line.split(",")[0]
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    (folder / "manifest.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder / "manifest.csv"


COLUMNS = {"labels": {"defect": "kind", "texture": "surface"}}


def of_manifest(path: Path, **more: Any) -> Data:
    return Data.model_validate({"path": str(path), "columns": COLUMNS, "calibration": 8, **more})


def lines_of(number: int) -> list[str]:
    """Every third picture lacks a defect, every fifth a texture, none both."""
    defects = ["" if i % 3 == 0 and i % 5 else ("good", "pit")[i % 2] for i in range(number)]
    textures = ["" if i % 5 == 0 else ("cast", "fabric")[i // 2 % 2] for i in range(number)]
    return [f"{i}.png,{defect},{texture}" for i, (defect, texture) in enumerate(zip(defects, textures, strict=True))]


def test_a_manifest_gives_several_labels_and_may_lack_some(tmp_path: Path) -> None:
    data = of_manifest(drawn(tmp_path / "in", lines_of(60)))
    out = tmp_path / "out"
    out.mkdir()
    splits = prepare(data, bit_depth=8, seed=0, out=out)
    assert splits.heads == (
        Head(name="defect", classes=("good", "pit")),
        Head(name="texture", classes=("cast", "fabric")),
    )
    assert splits.classes == ("defect: good", "defect: pit", "texture: cast", "texture: fabric") == joined(splits.heads)
    samples = read_samples(out)
    labels = read_labels(out, samples[::-1])[::-1]
    defects, textures = ((*head.classes, None) for head in splits.heads)  # -1: None
    names = [[defects[first], textures[second]] for first, second in labels]
    written = {line.split(",")[0]: [part or None for part in line.split(",")[1:]] for line in lines_of(60)}
    assert {s.path: name for s, name in zip(samples, names, strict=True)} == written
    assert [s.label for s in samples] == labels[:, 0].tolist()
    total = sum(splits.counts[part]["texture: cast"] for part in splits.counts)
    assert total == sum(line.endswith("cast") for line in lines_of(60))


def test_another_data_set_brings_a_task_of_its_own(tmp_path: Path) -> None:
    first = drawn(tmp_path / "a", [f"{i}.png,{('good', 'pit')[i % 2]}" for i in range(24)], header="path,kind")
    drawn(tmp_path / "longer", [f"{kind}/{i}.png" for i in range(12) for kind in ("dry", "wet")], header="path")
    (tmp_path / "longer" / "manifest.csv").unlink()
    data = Data.model_validate(
        {
            "path": str(first),
            "columns": {"labels": {"defect": "kind"}},
            "other_sets": {"water": str(tmp_path / "longer")},
            "calibration": 8,
        }
    )
    out = tmp_path / "out"
    out.mkdir()
    splits = prepare(data, bit_depth=8, seed=0, out=out)
    samples = read_samples(out)
    labels = read_labels(out, samples)
    assert [head.name for head in splits.heads] == ["defect", "water"]
    assert (labels >= 0).sum(1).tolist() == [1] * 48
    others = [s for s, row in zip(samples, labels, strict=True) if row[1] >= 0]
    assert {s.label for s in others} == {-1}
    assert all(Path(s.path).is_file() for s in others)
    assert {s.split for s in others} == {"train", "validation", "test"}


def broken_data(tmp_path: Path, what: str) -> Data:
    lines = lines_of(60)
    if what == "column":
        return of_manifest(drawn(tmp_path, lines, header="path,kind,surfaces"))
    if what == "none":
        return of_manifest(drawn(tmp_path, [",".join([*line.split(",")[:2], ""]) for line in lines[1::3]]))
    if what == "folder":
        drawn(tmp_path, [f"{kind}/{i}.png" for i in range(8) for kind in ("good", "pit")], header="path")
        (tmp_path / "manifest.csv").unlink()
        return of_manifest(tmp_path)
    if what == "generated":
        return Data.model_validate({"path": "synthetic", "columns": COLUMNS, **SYNTHETIC})
    if what == "split":
        parts = ["train", "validation", "test"]
        rows = [
            f"{i}.png,{('good', 'pit')[i % 2]},{'' if i % 6 > 3 else ('cast', 'fabric')[i // 6 % 2]}" for i in range(60)
        ]
        return of_manifest(
            drawn(tmp_path, [f"{r},{parts[i % 6 // 2]}" for i, r in enumerate(rows)], header="path,kind,surface,split")
        )
    drawn(
        tmp_path / "other", [f"{i}.png,{('cast', 'fabric')[i % 2]},train" for i in range(8)], header="path,label,split"
    )
    first = drawn(tmp_path, [f"{i}.png,{('good', 'pit')[i % 2]}" for i in range(24)], header="path,kind")
    return of_manifest(first, columns={"labels": {"defect": "kind"}}, other_sets={"texture": str(tmp_path / "other")})


@pytest.mark.parametrize(
    ("what", "code", "word"),
    [
        ("column", "E3106", "surfaces"),
        ("none", "E3503", "texture"),
        ("folder", "E2501", "folder"),
        ("generated", "E2502", "kind"),
        ("split", "E3504", "test has no label of task texture"),
        ("splits", "E3502", "train"),
    ],
)
def test_what_is_wrong_with_labels_is_named(tmp_path: Path, what: str, code: str, word: str) -> None:
    data = broken_data(tmp_path / "in", what)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DistilledgeError) as caught:
        prepare(data, bit_depth=8, seed=0, out=out)
    assert caught.value.code == code
    assert word in f"{caught.value.what} {caught.value.hint}"


def test_identical_pictures_with_another_texture_contradict_each_other(tmp_path: Path) -> None:
    manifest = drawn(
        tmp_path, [f"{i}.png,good,cast" if i < 2 else f"{i}.png,{('good', 'pit')[i % 2]},fabric" for i in range(30)]
    )
    Image.open(tmp_path / "0.png").save(tmp_path / "2.png")
    with pytest.raises(RejectedError) as caught:
        prepare(of_manifest(manifest), bit_depth=8, seed=0, out=tmp_path)
    assert "good, cast" in caught.value.what
    assert "good, fabric" in caught.value.what


# --- recipes ---------------------------------------------------------------------------------------------------------


def recipe(**more: Any) -> Recipe:
    return Recipe.model_validate({"name": "two", "data": {**SYNTHETIC, **BOTH}, **more})


GRADNORM = {"weighting": "gradnorm"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"multitask": {"weights": {"textur": 2.0}}}, "multitask.weights.textur"),
        ({"multitask": {"max_drop_points": {"crack": 2.0}}}, "multitask.max_drop_points.crack"),
        ({"data": SYNTHETIC, "multitask": GRADNORM}, "of several tasks"),
        ({"data": {"columns": {"labels": {"defect": "label"}}}}, "one task"),
        ({"data": {"columns": {"labels": {"image": "label", "b": "texture"}}}}, "cannot be named image"),
        ({"data": {**BOTH, "other_sets": {"defect": "elsewhere"}}}, "in data.other_sets"),
        ({"task": "text-classification"}, "of pictures"),
        ({"compress": {"climb": True}}, "compress.climb judges one task"),
        ({"teacher": {"strategy": "feature-extraction", "weights": "hub"}}, "is of one task"),
        ({"teacher": {"check_transfer": True, "weights": "hub"}}, "check_transfer compares one task"),
        ({"student": {"training": {"freeze_backbone": True}}, "multitask": GRADNORM}, "student.training.freeze"),
        ({"teacher": {"strategy": "lora", "weights": "hub"}, "multitask": GRADNORM}, "last shared layer"),
        ({"teacher": {"training": {"compile": True}}, "multitask": GRADNORM}, "without compile"),
    ],
)
def test_contradictions_are_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        check_recipe(recipe(**change))


def test_a_sound_recipe_of_several_tasks_passes() -> None:
    check_recipe(recipe(multitask=GRADNORM))
    with pytest.raises(UsageError, match="one process"):
        check_processes(recipe(multitask=GRADNORM), 2)


def test_a_recipe_of_one_task_has_nothing_of_several_in_its_fingerprints() -> None:
    plain = Recipe.model_validate({"name": "one", "data": SYNTHETIC})
    for step in steps(plain, {}):
        text = json.dumps(step.inputs)
        assert not any(word in text for word in ("multitask", "other_sets", '"labels"', '"tasks"'))


def test_the_primary_task_and_the_weighting_are_in_the_fingerprints() -> None:
    made = {s.name: s.fingerprint for s in steps(recipe(), {})}
    turned = recipe(data={**SYNTHETIC, "columns": {"labels": {"defect": "label", "texture": "texture"}}})
    other = {s.name: s.fingerprint for s in steps(turned, {})}
    assert made["data"] != other["data"]
    weighed = {s.name: s.fingerprint for s in steps(recipe(multitask=GRADNORM), {})}
    changed = {name for name in made if made[name] != weighed[name]}
    assert {"teacher", "student", "control"} <= changed
    assert "data" not in changed
    limited = {s.name: s.fingerprint for s in steps(recipe(multitask={"max_drop_points": {"defect": 3}}), {})}
    assert {name for name in made if made[name] != limited[name]} == {"gate"}


def test_tables_of_recipe_and_code_agree() -> None:
    given = Multitask.model_fields["weighting"].annotation
    assert set(given.__args__) == set(WEIGHTINGS)  # type: ignore[union-attr]
    assert recipe_multitask.tasks(recipe().data) == ("texture", "defect")


def test_the_demo_recipe_is_sound() -> None:
    from importlib.resources import files

    path = Path(str(files("distilledge.pipeline.recipes"))) / "demo-multitask.yaml"
    check_recipe(load_recipe(path, smoke=True))


# --- the verdict -----------------------------------------------------------------------------------------------------


def verdict(outcome: str, word: str, drop: float) -> Verdict:
    def check(what: str, value: float, held: str) -> Check:
        return Check.model_validate(
            {"what": what, "value": value, "low": value, "high": value, "limit": 1.0, "outcome": held}
        )

    held = {"pass": "holds", "fail": "fails", "inconclusive": "inconclusive"}[outcome]
    return Verdict.model_validate(
        {
            "name": "student onnx w8a8",
            "runtime": "onnx",
            "precision": "w8a8",
            "outcome": outcome,
            "accuracy_word": word,
            "checks": [check("drop against the teacher (points)", drop, held), check("size (MB)", 3.0, "holds")],
            "alarms": ["int8 is slower than float (1.4x fp32)"] + (["collapsed: answers cast"] if drop > 50 else []),
        }
    )


def test_the_worst_task_decides_and_is_named() -> None:
    made = worst({"defect": verdict("pass", "not worse", 0.2), "texture": verdict("fail", "worse", 66.0)})
    assert (made.outcome, made.accuracy_word, made.decided_by) == ("fail", "worse", "texture")
    assert [c.what for c in made.checks] == [
        "defect: drop against the teacher (points)",
        "texture: drop against the teacher (points)",
        "size (MB)",
    ]
    assert made.alarms == ("texture: collapsed: answers cast", "int8 is slower than float (1.4x fp32)")
    fine = worst({"defect": verdict("pass", "better", -3.0), "texture": verdict("pass", "not worse", 0.0)})
    assert (fine.outcome, fine.accuracy_word, fine.decided_by) == ("pass", "not worse", "")


def test_a_task_may_have_a_limit_of_its_own() -> None:
    made = recipe(multitask={"max_drop_points": {"texture": 7.5}}, budgets={"default": {}, "onnx": {"max_size_mb": 2}})
    own = with_limit(made, "texture")
    assert [b.max_drop_points for b in own.budgets.values()] == [7.5, 7.5]
    assert own.budget_of("onnx").max_size_mb == 2
    assert with_limit(made, "defect") == made


def test_a_device_that_reads_one_output_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((4, 3), np.float32))
    given = {"name": "student onnx fp32", "runtime": "onnx", "precision": "fp32", "role": "student"}
    found = Predictions.model_validate({**given, "split": "test", "logits": "one.npy", "seconds": 1.0})
    check_width(found, tmp_path, ())
    with pytest.raises(RejectedError, match="3 of 5 values") as caught:
        check_width(found, tmp_path, HEADS)
    assert caught.value.code == "E3505"


def test_each_task_is_judged_on_its_own_columns_and_samples() -> None:
    """The teacher is right on all; the student errs in the defect of samples 2 and 3, and 3 has no such label."""
    labels = np.array([[0, 0], [1, 1], [2, 0], [0, -1]])
    teacher = np.array([[9, 0, 0, 9, 0], [0, 9, 0, 0, 9], [0, 0, 9, 9, 0], [9, 0, 0, 9, 0]], np.float32)
    student = teacher.copy()
    student[2:, 3:] = [0, 9]
    scores = Scores(items=(), labels=tuple(labels[:, 0].tolist()), paths=tuple("abcd"))
    made = list(apart(recipe(), scores, {"t": teacher, "s": student}, HEADS, labels))
    assert [one.head.name for one in made] == ["texture", "defect"]
    assert [one.scores.labels for one in made] == [(0, 1, 2, 0), (0, 1, 0, -1)]
    none = Measurements(items=())
    for one, wrong in zip(made, ([], [2]), strict=True):
        found = gather_evidence(one.recipe, one.scores, one.logits, none, None, classes=one.head.classes)
        assert np.flatnonzero(~found.outcomes["s"].right).tolist() == wrong
        assert found.outcomes["t"].right.all()
    assert len(found.labels) == 3


# --- the whole chain -------------------------------------------------------------------------------------------------


def tiny(**more: Any) -> Recipe:
    """The primary task is not the first by name: the order of outputs is that of the recipe."""

    def part(side: int) -> dict[str, Any]:
        training = {"epochs": 2, "batch_size": 16, "device": "cpu", "lr": 3e-3}
        return {"model": "mobilenetv1_025", "weights": "none", "input": {"size": side}, "training": training}

    return Recipe.model_validate(
        {
            "name": "tiny-multitask",
            "data": {"synthetic": {"per_class": 10, "size": 32}, "calibration": 8, **BOTH},
            "teacher": part(40),
            "student": part(32),
            "distill": {"losses": [{"name": "kl"}, {"name": "hint", "weight": 0.1}], "control": False},
            "multitask": {"weighting": "gradnorm", "max_drop_points": {"texture": 90.0}},
            "export": {
                "targets": [
                    {"runtime": "onnx", "precisions": ["fp32", "w8a8"]},
                    {"runtime": "openvino", "precisions": ["fp32"]},
                    {"runtime": "tflite", "precisions": ["fp32"]},
                ]
            },
            "verify": {"samples": 8, "min_agreement_int8": 0.0, "min_cosine_int8": 0.0},
            "measure": {"quick": True, "end_to_end": 2},
            "budgets": {"default": {"max_drop_points": 0.0}},
            "gate": {"on_fail": "report"},
            **more,
        }
    )


@pytest.mark.slow
def test_two_tasks_go_through_the_whole_chain(tmp_path: Path) -> None:

    record, directory = run(tiny(), tmp_path)
    lines = [json.loads(line) for line in (record.directory("student") / "curves.jsonl").read_text().splitlines()]
    assert all({"weight.texture", "weight.defect", "accuracy.texture", "loss.defect"} <= set(line) for line in lines)
    assert sum(lines[-1][f"weight.{name}"] for name in ("texture", "defect")) == pytest.approx(2.0, rel=1e-4)
    assert lines[-1]["weight.texture"] != 1.0
    _check_files(record)
    _check_report(record, directory)
    _check_guilt(record, tmp_path)


def _check_files(record: Any) -> None:
    """Named outputs in the recipe's order, each equal to the torch network's columns; classes in the metadata."""
    from distilledge.pipeline import checkpoint as checkpoints
    from distilledge.pipeline.inputs import normalise
    from distilledge.pipeline.record import Checkpoint, ExportResult
    from distilledge.targets import get
    from distilledge.targets.ondevice.preprocess import InputSpec
    from distilledge.targets.ondevice.session import open_session

    student = Checkpoint.model_validate_json((record.directory("student") / "value.json").read_bytes())
    model = checkpoints.load(student, record.directory("student"))
    pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    with torch.inference_mode():
        expected = model(normalise(pictures, InputSpec.from_dict(student.input_spec))).numpy()
    for runtime in ("onnx", "openvino", "tflite"):
        folder = record.directory(f"export-student-{runtime}")
        exported = ExportResult.model_validate_json((folder / "value.json").read_bytes())
        for file in exported.files:
            session = open_session(str(folder / file.files[0]), runtime, threads=1, precision=file.precision)
            found = session.run(pictures)
            names = [port.name for port in session.feeds.outputs]
            assert len(names) == 2
            assert all(name in own for name, own in zip(("texture", "defect"), names, strict=True))
            assert [port.shape[-1] for port in session.feeds.outputs] == [3, 6]
            (call, *_) = session.calls(pictures[:1])
            assert session.output(call()) == pytest.approx(found[0], abs=1e-6)
            heads = json.loads(get(runtime).read_metadata(folder / file.files[0])["distilledge.heads"])
            assert list(heads) == ["texture", "defect"]
            assert heads["texture"] == ["brushed", "cast", "fabric"]
            if file.precision == "fp32":
                assert found == pytest.approx(expected, abs=1e-3 * float(np.abs(expected).max()))


def _check_report(record: Any, directory: Path) -> None:
    content = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    rungs = [rung for parity in content["parities"] for rung in parity["rungs"]]
    assert {rung["head"] for rung in rungs} == {"texture", "defect"}
    assert all(rung["holds"] and rung["candidate"].endswith(f", {rung['head']}") for rung in rungs)
    timed = [timing["name"] for timing in content["timings"]]
    assert len(timed) == len(set(timed)) == 7  # each file once
    files = content["tasks"]["files"]
    assert {(f["task"], f["file"]) for f in files} == {(t, name) for t in ("texture", "defect") for name in timed}
    scores = json.loads((record.directory("score") / "value.json").read_bytes())
    logits = np.load(record.directory("score") / scores["items"][0]["logits"])
    tested = read_samples(record.directory("data"), "test")
    labels = read_labels(record.directory("data"), tested)
    for number, (task, columns) in enumerate((("texture", slice(0, 3)), ("defect", slice(3, 9)))):
        own = next(f for f in files if (f["task"], f["file"]) == (task, scores["items"][0]["name"]))
        right = (logits[:, columns].argmax(1) == labels[:, number]).mean()
        assert own["metric"]["value"] == pytest.approx(100 * right)
    limits = {c["what"]: c["limit"] for v in content["files"] if v["verdict"] for c in v["verdict"]["checks"]}
    assert limits["texture: drop against the teacher (points)"] == 90.0
    assert limits["defect: drop against the teacher (points)"] == 0.0
    page = (directory / "report.html").read_text(encoding="utf-8") + (directory / "report.md").read_text("utf-8")
    assert page.count("Each task by itself") == 2
    assert "GradNorm" in page


def _check_guilt(record: Any, tmp_path: Path) -> None:
    """One output of a sound file is changed: the ladder breaks in that task alone."""
    import onnx
    from onnx import helper

    from distilledge.pipeline.benchmark import samples_of
    from distilledge.pipeline.record import Checkpoint, ExportResult
    from distilledge.pipeline.verify import verify

    folder = tmp_path / "damaged"
    shutil.copytree(record.directory("export-student-onnx"), folder)
    result = ExportResult.model_validate_json((folder / "value.json").read_bytes())
    result = result.model_copy(update={"files": result.files[:1]})
    path = folder / result.files[0].files[0]
    proto = onnx.load(path)
    last = next(node for node in proto.graph.node if "defect" in node.output)
    last.output[0] = "before"
    proto.graph.node.append(helper.make_node("Neg", ["before"], ["defect"], name="damage"))
    onnx.save(proto, path)
    student = Checkpoint.model_validate_json((record.directory("student") / "value.json").read_bytes())
    data = record.directory("data")
    compared = samples_of(read_samples(data, "validation"), data, []).spread(8)
    parity = verify(student, record.directory("student"), result, folder, compared, record.recipe.verify)
    assert [(rung.head, rung.holds) for rung in parity.rungs] == [("texture", True)] * 2 + [("defect", False)] * 2
    assert parity.broken is not None
    assert parity.broken.candidate == "onnx fp32 as exported, defect"
