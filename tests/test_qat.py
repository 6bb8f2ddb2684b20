"""Quantization-aware distillation: gradients against the papers, the network's places, one training for all files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launched import distilledge
from torch import Tensor, nn

from distilledge.models.errors import RejectedError
from distilledge.models.fake_quant import STEPS, FakeQuantise, Range, RoundedWeight
from distilledge.models.fake_quantised import FakeQuantised
from distilledge.models.rounding import folded, rounded
from distilledge.pipeline.compress.places import matched
from distilledge.pipeline.compress.qat import RangeTuning, rebuilt
from distilledge.pipeline.compress.retrained import Retrained
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.recipe_compress import Compress, Qat, Recut
from distilledge.pipeline.steps import steps
from distilledge.pipeline.training.evaluate import check_answers

# --- fake quantisation -----------------------------------------------------------------------------------------------


def lsq_plus(x: np.ndarray, gradient: np.ndarray, step: float, offset: float) -> tuple[float, float]:
    """(d loss / d step, d loss / d offset) of LSQ+, equations 4 to 6, and LSQ, equation 3, element by element."""
    by_step = by_offset = 0.0
    for value, g in zip(x.ravel(), gradient.ravel(), strict=True):
        v = (value - offset) / step
        if v <= 0:
            by_step, by_offset = by_step + g * 0, by_offset + g
        elif v >= STEPS:
            by_step, by_offset = by_step + g * STEPS, by_offset + g
        else:
            by_step += g * (np.round(v) - v)
    return by_step, by_offset


def test_gradients_are_those_of_the_papers() -> None:
    rng = np.random.default_rng(0)
    step = 2**-6
    low, high = -64 * step, (STEPS - 64) * step  # the offset is a whole number of steps: nothing is moved for 0
    x = rng.uniform(low - 1, high + 1, (3, 50))
    gradient = rng.normal(0, 1, x.shape)
    values = torch.tensor(x, requires_grad=True)
    ends = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (low, high)]
    FakeQuantise.apply(values, *ends).backward(torch.tensor(gradient))
    by_step, by_offset = lsq_plus(x, gradient, step, low)
    scale = 1 / np.sqrt(STEPS * 50)
    assert ends[1].grad.item() == pytest.approx(scale * by_step / STEPS, rel=1e-9)  # step = (high - low) / 255
    assert ends[0].grad.item() == pytest.approx(scale * (by_offset - by_step / STEPS), rel=1e-9)
    inside = (x > low) & (x < high)
    assert np.array_equal(values.grad.numpy(), np.where(inside, gradient, 0))


def test_zero_is_exact_and_values_are_those_of_the_grid() -> None:
    one = Range()
    one.start(-0.7, 2.9)
    low, high = one.on_grid()
    made = one(torch.tensor([0.0, -9.0, 9.0, 1.234]))
    assert made[0] == 0
    assert made[1].item() == pytest.approx(low, rel=1e-6)
    assert made[2].item() == pytest.approx(high, rel=1e-6)
    step = (high - low) / STEPS
    assert made[3].item() == pytest.approx(round(1.234 / step) * step, rel=1e-6)
    one.start(0.0, 0.0)
    assert torch.isfinite(one(torch.zeros(3))).all()


def test_rounding_and_folding_can_be_exchanged() -> None:
    """Integers of W and of W gamma / sigma are equal up to the sign of gamma: no folding is needed while training."""
    torch.manual_seed(0)
    weight, factor = torch.randn(16, 3, 3, 3), torch.randn(16)
    whole = weight * factor.reshape(-1, 1, 1, 1)

    def integers(w: Tensor) -> Tensor:
        return torch.round(w / (w.abs().flatten(1).amax(1) / 127).reshape(-1, 1, 1, 1))

    assert torch.equal(integers(whole), integers(weight) * factor.sign().reshape(-1, 1, 1, 1))
    scaled = rounded(weight) * factor.reshape(-1, 1, 1, 1)
    assert torch.allclose(rounded(whole), scaled, rtol=1e-5, atol=1e-6)
    given = weight.clone().requires_grad_()
    RoundedWeight()(given).sum().backward()
    assert torch.equal(given.grad, torch.ones_like(weight))


# --- the network -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """What an efficient network is made of: depthwise, SiLU, squeeze-excite, a sum, in place or not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.deep = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True)
        )
        self.squeeze, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        for norm in (self.stem[1], self.deep[1]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.2, 3.0)
            norm.weight.data.normal_(1, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.deep(x)
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        logits: Tensor = self.last(nn.functional.relu(x + y).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, FakeQuantised, Tensor]:
    model, x = Block().eval(), torch.randn(4, 3, 8, 8)
    made = FakeQuantised(model, x[:2])
    made.start({name: (float(tap.min()), float(tap.max())) for name, tap in made.taps(x).items()})
    return model, made, x


def test_tensors_are_rounded_where_runtimes_store_them(network: tuple[nn.Module, FakeQuantised, Tensor]) -> None:
    model, made, x = network
    with made.in_float():
        assert torch.allclose(made(x), model(x), atol=1e-5)
    # input; stem behind its ReLU6; depthwise before SiLU, sigmoid, product; mean; 1x1, gate, product; sum; mean
    assert len(made.ranges) == 11
    taps = made.taps(x)
    stem = model.get_submodule("stem")(x)
    assert any(tap.shape == stem.shape and torch.allclose(tap, stem, atol=1e-5) for tap in taps.values())
    raw = folded(model, x[:1]).get_submodule("stem.0")(x)
    assert not any(tap.shape == raw.shape and torch.allclose(tap, raw, atol=1e-5) for tap in taps.values())
    gates = [one for one in made.ranges.values() if one.fixed]
    assert [one.on_grid() for one in gates] == [(0.0, pytest.approx(255 / 256))] * 2


def test_it_trains_weights_and_ranges_and_keeps_its_names(network: tuple[nn.Module, FakeQuantised, Tensor]) -> None:
    model, made, x = network
    made.train()
    RangeTuning((), frozen_from=1).begin_epoch(made, 1, [])
    statistics = {k: v.clone() for k, v in made.latent().items() if "running" in k}
    groups = RangeTuning(()).parameter_groups(made, lr=1e-3, weight_decay=0.1)
    assert [g["lr"] for g in groups] == [1e-3, 1e-3, 1e-2]
    made(x).square().sum().backward()
    assert all(p.grad is not None for group in groups for p in group["params"])
    assert all(torch.equal(v, made.latent()[k]) for k, v in statistics.items())
    made.freeze_norms(frozen=False)
    made(x)
    assert not all(torch.equal(v, made.latent()[k]) for k, v in statistics.items())
    assert {*made.latent()} == {k for k in model.state_dict() if "num_batches" not in k}
    made.eval()


def test_attention_is_left_to_the_other_rungs() -> None:
    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x.flatten(1), 1)

    with pytest.raises(RejectedError, match="E3652"):
        FakeQuantised(Attends(), torch.randn(2, 3, 4, 4))


def test_places_are_found_in_any_layout() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(0, 1, (4, *shape)).astype(np.float32) for shape in ((6, 5, 5), (6, 5, 5), (6, 1, 1)))
    taps = {"a": a, "b": b, "c": c, "a/pad": np.pad(a, ((0, 0), (0, 0), (1, 1), (1, 1)))}
    tensors = {
        "channels last": np.moveaxis(a, 1, -1)[:, None] * np.float32(1 + 1e-6),
        "padded": np.moveaxis(taps["a/pad"], 1, -1)[:, None],
        "channels first": b[:, None],
        "flat": c.reshape(4, 1, 6),
        "another": rng.normal(0, 1, (4, 1, 6, 5, 5)).astype(np.float32),
    }
    assert matched(taps, tensors) == {"channels last": "a", "padded": "a", "channels first": "b", "flat": "c"}


# --- the rung in the recipe ------------------------------------------------------------------------------------------


def test_the_rung_comes_with_its_settings_and_before_weights_only() -> None:
    assert "qat" not in Compress().rungs
    own = Compress().rungs
    assert Compress(qat=Qat()).rungs == (*own[:-2], "qat", *own[-2:])
    assert own[-2:] == ("w8a16", "w8")
    assert Compress(qat=Qat(), surgery=Recut()).rungs == (*own[:-2], "qat", "surgery", *own[-2:])
    assert Compress(rungs=("qat",)).qat == Qat()
    assert Compress.model_validate(Compress(qat=Qat()).model_dump()) == Compress(qat=Qat())


def test_the_training_is_named_beforehand_and_only_exports_that_may_ask_know_it() -> None:
    plain, asking = (Recipe(name="t", compress=c) for c in (Compress(climb=True), Compress(climb=True, qat=Qat())))
    before, after = ({s.name: s for s in steps(recipe, {})} for recipe in (plain, asking))
    assert "qat" not in before
    assert after["qat"].lazy
    assert after["export-student-onnx"].inputs["asks"] == {"qat": after["qat"].fingerprint}
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert {"export-student-onnx", "gate"} < changed
    assert not changed & {"data", "teacher", "student", "control", "export-teacher-onnx", "export-control-onnx"}
    own = Recipe(name="t", compress=Compress(climb=True, qat=Qat(teacher="none")))
    assert "teacher" not in next(s for s in steps(own, {}) if s.name == "qat").inputs


def test_settings_without_the_ladder_are_a_mistake() -> None:
    with pytest.raises(Exception, match="qat without"):
        check_recipe(Recipe(name="t", compress=Compress(qat=Qat())))


def test_one_answer_to_everything_is_a_collapse() -> None:
    labels = np.array([0, 1, 2, 1])
    constant = np.tile(np.array([[0.0, 2.0, 1.0]], np.float32), (4, 1))
    with pytest.raises(RejectedError, match="one answer to all 4"):
        check_answers(constant, labels)
    check_answers(constant, np.array([1, 1, 1, 1]))
    check_answers(np.eye(3, dtype=np.float32)[[0, 1, 2, 1]], labels)


# --- the whole chain -------------------------------------------------------------------------------------------------

RECIPE = """
schema: 1
name: tiny
data:
  path: synthetic
  synthetic: {per_class: 24, size: 40, difficulty: 0.2}
  calibration: 24
teacher:
  model: mobilenetv1_050
  input: {size: 32}
  training: {epochs: 2, batch_size: 16, lr: 2e-3}
student:
  model: test_efficientnet
  input: {size: 32}
  training: {epochs: 8, batch_size: 16, lr: 5e-3, select: last}
distill: {control: false}
compress: {climb: true, rungs: [qat], qat: {epochs: 2}, min_agreement: 0.0, max_slowdown: 1000}
export:
  targets:
    - {runtime: onnx, precisions: [w8a8]}
    - {runtime: openvino, precisions: [w8a8]}
    - {runtime: tflite, precisions: [w8a8]}
  teacher_precisions: []
verify: {samples: 8, min_agreement_int8: 0.8, min_cosine_int8: 0.9}
budgets: {default: {max_drop_points_fp32: 100}}
"""


def entries(folder: Path, stage: str) -> list[Path]:
    return sorted((folder / "distilledge-work" / "store").glob(f"{stage}-*"))


def ledger(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "value.json").read_text())["ledger"]
    return found


def check_weights(exported: Path, trained: Path) -> None:
    """Every layer's integers are those that it was trained with, whatever the layout.

    NNCF leaves the convolutions of a squeeze-excite in float: of those there are none.
    """
    model, _ = rebuilt(Retrained.model_validate_json((trained / "value.json").read_bytes()), trained)
    own = folded(model, torch.randn(1, 3, 32, 32))
    found = integers_of(next(exported.glob("model.w8a8.*[!n]")))
    layers = {name: m for name, m in own.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for name, layer in layers.items():
        weight = layer.weight.detach()
        step = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / 127
        expected = np.sort(torch.round(weight / step).numpy().ravel())
        same = [float((np.sort(x.ravel()) == expected).mean()) for x in found if x.size == expected.size]
        if not same and ".se." in name and list(exported.glob("*.xml")):
            continue
        assert max(same, default=0.0) >= 0.99, (exported, name, same)


def integers_of(path: Path) -> list[np.ndarray]:
    """The int8 constants of a file."""
    if path.suffix == ".onnx":
        import onnx

        return [x for t in onnx.load(path).graph.initializer if (x := onnx.numpy_helper.to_array(t)).dtype == np.int8]
    if path.suffix == ".xml":
        from distilledge.targets.openvino import read_model

        constants = (o for o in read_model(path).get_ops() if o.get_type_name() == "Constant")
        return [o.get_data() for o in constants if o.get_output_element_type(0).get_type_name() == "i8"]
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path))
    stored = [d for d in run.get_tensor_details() if d["dtype"] == np.int8]
    found = []
    for detail in stored:
        try:
            found.append(run.get_tensor(detail["index"]))
        except ValueError:  # an activation
            continue
    return found


@pytest.mark.slow
def test_one_training_ships_in_all_runtimes_and_survives_a_kill(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    planned = distilledge("plan", "tiny.yaml", "--json", cwd=tmp_path)
    assert "only if" in next(r["reason"] for r in json.loads(planned.stdout) if r["stage"] == "qat")
    assert distilledge("distill", "tiny.yaml", cwd=tmp_path).returncode == 0
    assert not entries(tmp_path, "qat")
    killed = distilledge("export", "tiny.yaml", cwd=tmp_path, DISTILLEDGE_FAILPOINT="train.epoch@1:kill")
    assert killed.returncode == -9
    assert not entries(tmp_path, "qat")
    done = distilledge("export", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (trained,) = entries(tmp_path, "qat")
    students = [path for path in entries(tmp_path, "export") if ledger(path)]  # not the teacher's
    assert len(students) == 3
    for path in students:
        (one,) = ledger(path)["tried"]
        assert one["rung"] == "qat"
        assert one["twin"]["agreement"] >= 0.85, path
        assert one["twin"]["cosine"] >= 0.99, path
        check_weights(path, trained)
    resumed = (trained / "model.safetensors").read_bytes()
    value = json.loads((trained / "value.json").read_text())
    assert value["checkpoint"]["epochs"] == 2
    asking = next(path for path in students if list(path.glob("*.onnx")))  # one asks for the training, as each would
    for path in (trained, asking):
        shutil.rmtree(path)
    again = distilledge("export", "tiny.yaml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (trained / "model.safetensors").read_bytes() == resumed
    assert json.loads((trained / "value.json").read_text())["ranges"] == value["ranges"]
