"""The parity ladder against exports that were broken on purpose: it must stop, name the class and the first tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from distilledge.pipeline.divergence import first_tensor, sqnr_db
from distilledge.pipeline.inputs import PictureRows, probes
from distilledge.pipeline.recipe import Verify
from distilledge.pipeline.record import ExportResult, Rung
from distilledge.pipeline.verify import ladder
from distilledge.targets import get
from distilledge.targets.base import Deployable, Exported, Precision
from distilledge.targets.ondevice.preprocess import InputSpec

SIZE, CLASSES = 24, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = InputSpec(height=SIZE, width=SIZE, mean=MEAN, std=STD)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU6(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    ).eval()  # fmt: skip


def pictures(count: int = 24) -> np.ndarray:
    draw = np.random.default_rng(1)
    coarse = draw.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.concatenate([probes(SPEC), coarse.repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)])


def deployable(mean: tuple[float, float, float] = MEAN, std: tuple[float, float, float] = STD) -> Deployable:
    return Deployable(
        input_spec=SPEC.to_dict(), height=SIZE, width=SIZE, mean=mean, std=std, classes=tuple("abcde"), metadata={}
    )


def exported(precision: Precision, path: Path) -> Exported:
    return Exported(
        runtime="onnx", precision=precision, files=(path.name,), sha256=("",), size_bytes=1,
        input_shape=(1, SIZE, SIZE, 3), classes=tuple("abcde"), input_spec=SPEC.to_dict(), versions={}, recipe="",
        seconds=0.0,
    )  # fmt: skip


def climb(model: nn.Module, out: Path, files: dict[Precision, Path], limits: Verify | None = None) -> tuple[Rung, ...]:
    result = ExportResult(role="student", runtime="onnx", files=tuple(exported(p, f) for p, f in files.items()))
    return ladder(model, PictureRows(pictures(), SPEC), result, out, limits or Verify())


def test_a_sound_export_holds_on_every_rung(tmp_path: Path) -> None:
    model, target = network(), get("onnx")
    fp32 = target.export(model, deployable(), tmp_path)
    calibration = [p[None] for p in pictures()[6:]]
    int8, _ = target.compress(fp32, deployable(), tmp_path, precision="w8a8", calibration=calibration)
    rungs = climb(model, tmp_path, {"fp32": fp32, "w8a8": int8})
    assert [r.holds for r in rungs] == [True, True, True]
    assert rungs[0].max_abs < 1e-4
    assert rungs[2].psnr_db is not None
    assert rungs[2].psnr_db > 20


class Twice(nn.Module):
    """Normalises inside, although the graph already does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        result: torch.Tensor = self.model((x / 255 - mean) / std)
        return result


class Reversed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        result: torch.Tensor = self.model(((x * std + mean).flip(1) - mean) / std)
        return result


@pytest.mark.parametrize(("wrapper", "mistake"), [(Twice, "normalised twice"), (Reversed, "channels reversed")])
def test_a_wrong_input_is_classed_as_preprocess(tmp_path: Path, wrapper: type[nn.Module], mistake: str) -> None:
    model = network()
    fp32 = get("onnx").export(wrapper(model).eval(), deployable(), tmp_path)
    broken = climb(model, tmp_path, {"fp32": fp32})[0]
    assert not broken.holds
    assert broken.fault_class == "preprocess"
    assert mistake in (broken.first_divergent or "")


def test_a_wrong_weight_is_an_export_op_and_its_module_is_named(tmp_path: Path) -> None:
    model = network()
    fp32 = get("onnx").export(model, deployable(), tmp_path)
    proto = onnx.load(fp32)
    weight = next(t for t in proto.graph.initializer if list(t.dims) == [32, 16, 3, 3])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * -1.5, weight.name))
    onnx.save(proto, fp32)
    broken = climb(model, tmp_path, {"fp32": fp32})[0]
    assert (broken.holds, broken.fault_class, broken.first_divergent) == (False, "export op", "2")


def test_calibration_on_the_wrong_pictures_is_an_activation_range(tmp_path: Path) -> None:
    model, target = network(), get("onnx")
    fp32 = target.export(model, deployable(), tmp_path)
    grey = [np.full((1, SIZE, SIZE, 3), 118 + i % 3, np.uint8) for i in range(16)]
    int8, _ = target.compress(fp32, deployable(), tmp_path, precision="w8a8", calibration=grey)
    broken = climb(model, tmp_path, {"fp32": fp32, "w8a8": int8}, Verify(min_agreement_int8=0.95))[-1]
    assert (broken.holds, broken.fault_class) == (False, "activation range")
    assert broken.first_divergent is not None


def test_outliers_in_the_weights_are_a_weight_range(tmp_path: Path) -> None:
    model, target = network(), get("onnx")
    with torch.no_grad():
        # A dead input channel with a huge weight takes all int8 steps of the head, nothing is left for the rest.
        model[2].bias[0] = -1e4
        model[6].weight[:, 0] = torch.linspace(400, 900, CLASSES)
    fp32 = target.export(model, deployable(), tmp_path)
    calibration = [p[None] for p in pictures()[6:]]
    int8, _ = target.compress(fp32, deployable(), tmp_path, precision="w8a8", calibration=calibration)
    broken = climb(model, tmp_path, {"fp32": fp32, "w8a8": int8}, Verify(min_agreement_int8=0.95))[-1]
    assert (broken.holds, broken.fault_class) == (False, "weight range")


def test_sqnr_and_first_tensor() -> None:
    a = np.ones((1, 4), np.float32)
    assert sqnr_db(a, a) == 200.0
    assert sqnr_db(a, a * 1.1) == pytest.approx(20.0, abs=1e-3)
    named = first_tensor({"x": a, "y": a, "z": a}, {"x": a, "y": -a, "z": -a}, min_sqnr_db=20)
    assert named is not None
    assert named.startswith("y ")
    assert first_tensor({"x": a}, {"x": a}, min_sqnr_db=20) is None
