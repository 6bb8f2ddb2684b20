"""Files for CPUs whose int8 sums saturate: which they are, what is other in the files, and that they are rebuilt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.steps import Step, steps
from distilledge.targets import get
from distilledge.targets.base import Deployable
from distilledge.targets.ondevice.session import open_session
from distilledge.targets.saturation import saturates

pytestmark = pytest.mark.slow

SIZE, CLASSES = 16, 3
OLD = {"machine": "x86_64", "cpu_flags": ["avx2"]}
NEW = {"machine": "x86_64", "cpu_flags": ["avx2", "avx512_vnni"]}


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (OLD, True),
        (NEW, False),
        ({"machine": "x86_64", "cpu_flags": ["avx2", "avx_vnni"]}, False),
        ({"machine": "AMD64", "cpu_flags": None}, True),
        ({"machine": "aarch64", "cpu_flags": ["asimd"]}, False),
        ({}, False),
    ],
)
def test_which_cpus_saturate(card: dict, expected: bool) -> None:
    assert saturates(card) is expected


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
    ).eval()  # fmt: skip


def made(runtime: str, out: Path, *, saturates: bool, precision: str = "w8a8") -> tuple[Path, str]:
    out.mkdir()
    half, classes = (0.5, 0.5, 0.5), tuple("abc")
    spec = Deployable(
        input_spec={}, height=SIZE, width=SIZE, mean=half, std=half, classes=classes, saturates=saturates
    )  # fmt: skip
    target = get(runtime)
    fp32 = target.export(network(), spec, out)
    calibration = list(pictures()[:, None]) if precision == "w8a8" else []
    return target.compress(fp32, spec, out, precision=precision, calibration=calibration)


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), np.uint8)


def dequantised(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Weights by name as real numbers, and their kinds."""
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    numbers, kinds = {}, {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored and stored[node.input[0]].ndim > 1:
            weights, scale, zero = (stored[name] for name in node.input)
            axis = next(a.i for a in node.attribute if a.name == "axis")
            shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
            numbers[node.input[0]] = (weights.astype(int) - zero.astype(int).reshape(shape)) * scale.reshape(shape)
            kinds[node.input[0]] = f"{weights.dtype}, {weights.shape[1]} inputs"
    return numbers, kinds


def test_onnx_weights_are_the_same_numbers_unsigned(tmp_path: Path) -> None:
    signed, words = made("onnx", tmp_path / "a", saturates=False)
    unsigned, other_words = made("onnx", tmp_path / "b", saturates=True)
    (numbers, kinds), (other_numbers, other_kinds) = dequantised(signed), dequantised(unsigned)
    assert numbers.keys() == other_numbers.keys()
    assert all(np.array_equal(numbers[name], other_numbers[name]) for name in numbers)
    assert sorted(kinds.values()) == ["int8, 1 inputs", "int8, 16 inputs", "int8, 3 inputs"]
    assert sorted(other_kinds.values()) == ["int8, 1 inputs", "uint8, 16 inputs", "uint8, 3 inputs"]
    assert "U8S8 per channel" in words
    assert "U8U8" in other_words
    assert "U8U8" not in words


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("precision", ["w8dyn", "w8a8"])
def test_what_is_made_for_a_saturating_cpu_is_true_on_every_cpu(runtime: str, precision: str, tmp_path: Path) -> None:
    path, _ = made(runtime, tmp_path / "a", saturates=True, precision=precision)
    logits = open_session(str(path), runtime, 1).run(pictures())
    with torch.no_grad():
        expected = network()(torch.from_numpy(pictures()).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
    assert np.abs(logits - expected).max() < 0.03 * np.abs(expected).max()


def test_openvino_uses_half_of_the_activation_range(tmp_path: Path) -> None:
    import openvino as ov

    def ranges(path: Path) -> list[float]:
        operations = ov.Core().read_model(path).get_ordered_ops()
        quantised = [o for o in operations if o.get_type_name() == "FakeQuantize"]
        return [float(np.ravel(o.input_value(2).get_node().get_data())[0]) for o in quantised]

    whole, words = made("openvino", tmp_path / "a", saturates=False)
    half, other_words = made("openvino", tmp_path / "b", saturates=True)
    assert "7-bit" in other_words
    assert "7-bit" not in words
    activations = [(a, b) for a, b in zip(ranges(whole), ranges(half), strict=True) if a != b]
    assert len(activations) >= 2
    assert all(b == pytest.approx(2 * a, rel=0.02) or b > 2 * a for a, b in activations)


def test_only_int8_files_are_rebuilt_for_another_kind_of_cpu(data_folder: Path) -> None:
    parts = {name: {"model": "resnet18", "weights": "none"} for name in ("teacher", "student")}
    chosen = [{"runtime": name, "precisions": ["fp32", "w8a8"]} for name in ("onnx", "openvino", "tflite")]
    recipe = Recipe.model_validate(
        {"name": "t", "data": {"path": str(data_folder)}, **parts, "export": {"targets": chosen}}
    )

    def exports(card: dict) -> dict[str, Step]:
        return {s.name: s for s in steps(recipe, card) if s.kind == "export"}

    old, new = exports(OLD), exports(NEW)
    assert old.keys() == new.keys()
    changed = {name for name in old if old[name].fingerprint != new[name].fingerprint}
    assert changed == {"export-student-onnx", "export-student-openvino"}
    assert "saturates" not in new["export-student-onnx"].inputs
    assert exports(OLD) == old


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    from PIL import Image

    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(tmp_path / "data" / label / "0.png")
    return tmp_path / "data"
