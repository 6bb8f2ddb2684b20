"""Cross-layer equalisation: the paper's formula in numpy, and networks that stay the same function."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from distilledge.models.equalise import MARGIN, Pair, equalised, found, input_peaks, peaks, scales
from distilledge.models.errors import UsageError
from distilledge.models.rounding import folded
from distilledge.pipeline.compress.ladder import MOST_PICTURES, calibration
from distilledge.pipeline.compress.stage import Climb
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.record import Sample
from distilledge.targets.ranges import Observed
from distilledge.targets.samples import pictures as pictures_of
from distilledge.targets.scheme import Scheme

INFINITE = float("inf")


def network(act: type[nn.Module], seed: int = 0) -> nn.Sequential:
    """Pointwise, depthwise, padded and pooled; channels of very different size."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), act()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), act()),
        *(nn.Conv2d(8, 16, 1), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).eval()
    for norm in (m for m in layers if isinstance(m, nn.BatchNorm2d)):
        norm.weight.data.uniform_(0.05, 6.0)
        norm.bias.data.normal_()
    return layers.double()


def pictures(count: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**16), st.integers(1, 9))
def test_scales_are_those_of_the_paper(seed: int, channels: int) -> None:
    """Equation 11: s_i = sqrt(r1_i r2_i) / r2_i; both ranges are then sqrt(r1_i r2_i)."""
    rng = np.random.default_rng(seed)
    r1, r2 = rng.uniform(0.01, 10, channels), rng.uniform(0.01, 10, channels)
    expected = np.sqrt(r1 * r2) / r2
    s = scales(torch.tensor(r1), torch.tensor(r2), torch.ones(channels), INFINITE).numpy()
    assert s == pytest.approx(expected)
    assert r1 / s == pytest.approx(r2 * s)


def test_dead_channels_keep_their_scale() -> None:
    s = scales(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), torch.ones(2), INFINITE)
    assert s.tolist() == [1.0, 1.0]


def test_a_ceiling_is_neither_reached_by_scaling_nor_moved_where_it_was_reached() -> None:
    r1, r2 = torch.tensor([0.01, 4.0, 0.01]), torch.ones(3)
    top = torch.tensor([3.0, 3.0, 6.5])
    s = scales(r1, r2, top, 6.0)
    assert s[0] == pytest.approx(3.0 * MARGIN / 6)  # the paper's 0.1 would lift it to 30
    assert s[1] == pytest.approx(2.0)
    assert s[2] == 1.0
    assert float((top / s)[0]) * MARGIN == pytest.approx(6.0)


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("by", ["weights", "activations"])
def test_it_is_the_same_function(act: type[nn.Module], by: Any) -> None:
    model, x = network(act), pictures()
    own, pairs = equalised(model, x, by=by)
    assert [(p.first, p.second) for p in pairs] == [("0", "3"), ("3", "6"), ("6", "10")]
    assert {p.ceiling for p in pairs} == {6.0 if act is nn.ReLU6 else INFINITE}
    assert torch.allclose(own(x), model(x), atol=1e-10)
    changed = own.get_submodule("3").weight / folded(model, x[:1]).get_submodule("3").weight
    assert float(changed.detach().log().abs().max()) > 0.1  # it did something
    if act is nn.ReLU:  # for all pictures, not only for those it was shown
        other = 10 * pictures(seed=2)
        assert torch.allclose(own(other), model(other), atol=1e-8)


def test_by_weights_the_ranges_of_both_sides_are_equal() -> None:
    own, pairs = equalised(network(nn.ReLU), pictures())
    for pair in pairs:
        first, second = own.get_submodule(pair.first), own.get_submodule(pair.second)
        assert torch.allclose(peaks(first.weight), input_peaks(second), rtol=0.05)  # type: ignore[arg-type]


class Branched(nn.Module):
    """The result of ``a`` is also added: no pair. ``b`` and ``c`` are one, with nothing between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.d = nn.Conv2d(3, 3, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = x + self.c(self.b(x))
        y: Tensor = self.d(nn.functional.silu(x))
        return y


def test_only_layers_that_nothing_else_reads_are_pairs() -> None:
    assert list(found(Branched(), torch.zeros(1, 3, 8, 8))) == [Pair("b", "c", INFINITE, False)]


def test_scheme_and_recipe_say_it() -> None:
    assert Scheme(equalised="weights", own_bias=True).words == ", equalised by weights, bias correction"
    wide = {"runtime": "openvino", "precisions": ["fp32", "w8a16"]}
    with pytest.raises(UsageError, match="openvino has no w8a16"):
        check_recipe(Recipe.model_validate({"name": "a", "export": {"targets": [wide]}}))
    check_recipe(Recipe.model_validate({"name": "a", "export": {"targets": [{**wide, "runtime": "tflite"}]}}))


def bench(spread: float, own: int = 64, train: int = 1000) -> Any:
    """``spread``: how much wider the ranges of every second picture are."""
    low, high = np.full(own, -1.0), np.full(own, 1.0)
    high[1::2] *= spread
    seen = {"x": Observed(low, high, np.zeros(1, np.float32))}
    return SimpleNamespace(seen=seen, calibration=[None] * own, more=[None] * train, fp32=Path("model.onnx"))


def test_other_sizes_are_tried_only_where_two_halves_disagree() -> None:
    assert list(calibration(bench(1.0))) == []
    assert [a.pictures for a in calibration(bench(4.0))] == [32, MOST_PICTURES]
    assert [a.pictures for a in calibration(bench(4.0, own=200, train=200))] == [32, 128]


def test_larger_calibration_sets_leave_out_what_is_held_out() -> None:
    samples = [Sample(f"{i}.png", 0, "", "train", f"sha{i}", False) for i in range(4)]
    held = [Sample("x.png", 0, "", "test", "sha2", False)]
    ground: Any = None
    climb = Climb(ground, samples[:1], pictures_of(["0"]), held, (samples, pictures_of(["0", "1", "2", "3"])))
    assert climb.spare() == ["0", "1", "3"]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_16_bit_activations_are_nearer_to_float(runtime: str, tmp_path: Path) -> None:
    from distilledge.models.metrics import kl
    from distilledge.targets import get
    from distilledge.targets.base import Deployable
    from distilledge.targets.ondevice.preprocess import InputSpec

    spec, target = InputSpec(height=12, width=12), get(runtime)
    deployable = Deployable(
        input_spec=spec.to_dict(), height=12, width=12, mean=spec.mean, std=spec.std, classes=("a", "b", "c", "d")
    )
    fp32 = target.export(network(nn.ReLU).float(), deployable, tmp_path)
    rows = np.random.default_rng(0).integers(0, 255, (16, 12, 12, 3), np.uint8)
    logits, words = {}, {}
    for precision in ("w8a8", "w8a16"):
        path, words[precision] = target.compress(
            fp32, deployable, tmp_path, precision=precision, calibration=list(rows[:, None])
        )
        logits[precision] = list(target.tensors(path, rows, optimise=False).values())[-1].reshape(16, -1)
    float_logits = list(target.tensors(fp32, rows, optimise=False).values())[-1].reshape(16, -1)
    assert kl(float_logits, logits["w8a16"]) < kl(float_logits, logits["w8a8"])
    assert words["w8a16"].startswith({"onnx": "QDQ U16S8", "tflite": "static_wi8_ai16"}[runtime])


@pytest.mark.slow
def test_the_rung_repairs_a_channel_that_takes_all_steps(tmp_path: Path) -> None:
    """One channel between two convolutions is 300 times the others: plain int8 leaves those next to nothing."""
    from test_ladder_files import CLASSES, SPEC, Outlier
    from test_ladder_files import SIZE as SIDE

    from distilledge.models.metrics import kl
    from distilledge.pipeline.compress.ladder import RUNGS, Bench
    from distilledge.targets import get
    from distilledge.targets.base import Deployable
    from distilledge.targets.ondevice.session import open_session

    target, folder = get("onnx"), tmp_path / "fp32"
    folder.mkdir()
    deployable = Deployable(
        input_spec=SPEC.to_dict(), height=SIDE, width=SIDE, mean=SPEC.mean, std=SPEC.std, classes=CLASSES
    )
    model = Outlier().eval()
    rows = np.random.default_rng(0).integers(0, 255, (32, SIDE, SIDE, 3), np.uint8)
    bench = Bench(target, model, target.export(model, deployable, folder), deployable, list(rows[:, None]))
    reference = open_session(str(bench.fp32), "onnx", threads=1).run(rows)
    found = {}
    for name in ("ptq", "equalise"):
        for number, attempt in enumerate(RUNGS[name](bench)):  # type: ignore[index]
            out = tmp_path / f"{name}-{number}"
            out.mkdir()
            path, words = bench.make(attempt, out)
            found[words] = kl(reference, open_session(str(path), "onnx", threads=1).run(rows))
    plain, *equal = found.values()
    assert ["equalised by" in words for words in found] == [False, True, True]
    assert max(equal) < 0.2 * plain
