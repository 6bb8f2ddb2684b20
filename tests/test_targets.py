"""Every target x every precision: export -> load with the bare runtime -> compare with torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from distilledge import targets
from distilledge.models.errors import MissingPackageError, UsageError
from distilledge.targets.base import STATIC, Deployable, RuntimeName, Target
from distilledge.targets.deployed import Deployed, converting
from distilledge.targets.ondevice.facts import device_card
from distilledge.targets.ondevice.session import open_session
from distilledge.targets.saturation import saturates
from distilledge.targets.tflite_file import read_graph

pytestmark = pytest.mark.slow

SIZE, CLASSES = 32, 7
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

MAX_DIFFERENCE = {"fp32": 1e-4, "fp16": 1e-2}
"""Of the largest logit."""
MIN_COSINE = {"convolutional": 0.99, "attentive": 0.9}
"""Of int8 logits, the worst picture. NNCF's smoothing costs the untrained attention layer more than a trained one."""


class Small(nn.Module):
    """Convolution, batch norm, ReLU6, depthwise, residual, pool, linear; weights such that logits differ."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.depthwise(x)
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


class Attentive(nn.Module):
    """Patches, one attention layer, class scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.qkv, self.norm, self.head = nn.Linear(32, 96), nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # (B, T, C)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + (q @ k.transpose(1, 2) * 32**-0.5).softmax(-1) @ v
        logits: torch.Tensor = self.head(x.mean(1))
        return logits


def deployable(mean: tuple[float, ...], std: tuple[float, ...]) -> Deployable:
    return Deployable(
        input_spec={}, height=SIZE, width=SIZE, mean=mean, std=std, classes=tuple("abcdefg"),
        saturates=saturates(device_card()),
    )  # fmt: skip


def pictures(count: int, seed: int) -> list[np.ndarray]:
    """Smooth random pictures of random brightness, uint8 (1, H, W, 3)."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 255, (count, 4, 4, 3)) * random.uniform(0.3, 1, (count, 1, 1, 3))
    return list(coarse.repeat(SIZE // 4, 1).repeat(SIZE // 4, 2).astype(np.uint8)[:, None])


def reference(model: nn.Module, images: np.ndarray, spec: Deployable) -> np.ndarray:
    """Normalised in numpy, independent of what is tested."""
    x = (images.astype(np.float32) / 255 - np.float32(spec.mean)) / np.float32(spec.std)
    with torch.no_grad():
        return model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


Built = Callable[[str, str], dict[str, Path]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Files of one runtime and one model by precision, made once."""
    made: dict[tuple[str, str], dict[str, Path]] = {}

    def build(runtime: str, kind: str) -> dict[str, Path]:
        if (runtime, kind) not in made:
            out, target = tmp_path_factory.mktemp(f"{runtime}-{kind}"), targets.get(runtime)
            model, spec = MODELS[kind]
            fp32 = target.export(model, spec, out)
            made[runtime, kind] = {"fp32": fp32}
            for precision in target.PRECISIONS[1:]:
                calibration = pictures(16, 1) if precision in STATIC else []
                path, words = target.compress(fp32, spec, out, precision=precision, calibration=calibration)
                assert words
                made[runtime, kind][precision] = path
        return made[runtime, kind]

    return build


MODELS: dict[str, tuple[nn.Module, Deployable]] = {
    "convolutional": (Small().eval(), deployable(*IMAGENET)),
    "attentive": (Attentive().eval(), deployable(*HALVES)),
}
ALL = [(runtime, kind) for runtime in targets.TARGETS for kind in MODELS]


def test_table_is_the_vocabulary() -> None:
    assert tuple(targets.TARGETS) == get_args(RuntimeName)


def test_importing_the_table_does_not_import_torch() -> None:
    code = "import sys, distilledge.targets; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("runtime", targets.TARGETS)
def test_module_satisfies_the_protocol(runtime: str) -> None:
    target = targets.get(runtime)
    names = [name for name in (*vars(Target), *Target.__annotations__) if not name.startswith("_")]
    assert len(names) >= 10
    assert [name for name in names if not hasattr(target, name)] == []
    assert runtime == target.NAME


@pytest.mark.parametrize(("runtime", "kind"), ALL)
def test_every_precision_agrees_with_torch(runtime: str, kind: str, built: Built) -> None:
    model, spec = MODELS[kind]
    images = np.concatenate(pictures(24, 2))
    expected = reference(model, images, spec)
    files = built(runtime, kind)
    assert tuple(files) == targets.get(runtime).PRECISIONS
    for precision, path in files.items():
        session = open_session(str(path), runtime, threads=1)
        logits = session.run(images)
        assert session.input_shape == (1, SIZE, SIZE, 3)
        assert logits.shape == (24, CLASSES)
        if precision in MAX_DIFFERENCE:
            difference = np.abs(logits - expected).max() / np.abs(expected).max()
            assert difference <= MAX_DIFFERENCE[precision], f"{precision}: {difference}"
        assert cosine(logits, expected).min() >= MIN_COSINE[kind], precision


@pytest.mark.parametrize("runtime", targets.TARGETS)
def test_static_int8_leaves_nothing_of_weight_in_float(runtime: str, built: Built) -> None:
    files = built(runtime, "convolutional")
    heavy = ("Conv", "Gemm", "MatMul", "FullyConnected", "CONV", "DEPTHWISE", "FULLY")
    left = targets.get(runtime).float_operations(files["w8a8"])
    assert not [name for name in left if name.startswith(heavy)]
    everything = targets.get(runtime).float_operations(files["fp32"])
    assert [name for name in everything if name.startswith((*heavy, "FusedConv"))]
    assert files["w8a8"].stat().st_size > 0


@pytest.mark.parametrize("runtime", targets.TARGETS)
def test_metadata_round_trip(runtime: str, built: Built, tmp_path: Path) -> None:
    target, images = targets.get(runtime), np.concatenate(pictures(2, 3))
    for precision, source in built(runtime, "convolutional").items():
        copies = [tmp_path / source.name, tmp_path / source.with_suffix(".bin").name]
        for copy, original in zip(copies, (source, source.with_suffix(".bin")), strict=True):
            if original.exists():
                copy.write_bytes(original.read_bytes())
        before = open_session(str(copies[0]), runtime, 1).run(images)
        assert target.read_metadata(copies[0]) == {}
        written = {
            "distilledge.classes": '["<img src=x onerror=alert(1)>", "Kratzer ä\\n"]',
            "distilledge.model": "x" * 5000,
        }
        target.embed_metadata(copies[0], written)
        assert target.read_metadata(copies[0]) == written
        target.embed_metadata(copies[0], {"distilledge.model": "y", "more": ""})
        assert target.read_metadata(copies[0]) == written | {"distilledge.model": "y", "more": ""}, precision
        assert np.array_equal(open_session(str(copies[0]), runtime, 1).run(images), before), precision
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9._]{0,20}", fullmatch=True), st.text(st.characters(codec="utf-8"))))
def test_tflite_metadata_of_any_text(built: Built, tmp_path: Path, metadata: dict[str, str]) -> None:
    target, path = targets.get("tflite"), tmp_path / "model.tflite"
    content = built("tflite", "convolutional")["fp32"].read_bytes()
    path.write_bytes(content)
    target.embed_metadata(path, metadata)
    assert target.read_metadata(path) == metadata
    assert path.read_bytes().startswith(content)


@pytest.mark.parametrize("runtime", targets.TARGETS)
def test_equal_models_are_equal_files(runtime: str, built: Built, tmp_path: Path) -> None:
    model, spec = MODELS["convolutional"]
    target = targets.get(runtime)
    again = {"fp32": target.export(model, spec, tmp_path)}
    again["w8a8"], _ = target.compress(again["fp32"], spec, tmp_path, precision="w8a8", calibration=pictures(16, 1))
    for precision, path in again.items():
        assert digest(path) == digest(built(runtime, "convolutional")[precision])


def digest(path: Path) -> list[str]:
    files = [path, path.with_suffix(".bin")]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()]


@pytest.mark.parametrize("runtime", targets.TARGETS)
def test_tensors_in_graph_order_end_with_the_logits(runtime: str, built: Built) -> None:
    model, spec = MODELS["convolutional"]
    images, target = np.concatenate(pictures(3, 4)), targets.get(runtime)
    files = built(runtime, "convolutional")
    fp32 = target.tensors(files["fp32"], images, optimise=False)
    assert np.allclose(list(fp32.values())[-1].reshape(3, -1), reference(model, images, spec), atol=1e-4)
    assert all(value.dtype == np.float32 and len(value) == 3 for value in fp32.values())
    normalised = (images / 255 - np.float32(spec.mean)) / np.float32(spec.std)
    sums = [float(value.sum()) for value in fp32.values() if value.size == normalised.size]
    assert any(abs(total - normalised.sum()) < 1 for total in sums)
    int8 = target.tensors(files["w8a8"], images, optimise=False)
    shared = [name for name in fp32 if name in int8 and int8[name].shape == fp32[name].shape]
    assert len(shared) >= 4
    assert all(np.abs(fp32[name] - int8[name]).max() < 0.3 * np.abs(fp32[name]).max() + 1e-6 for name in shared)
    assert target.tensors(files["fp32"], images, optimise=True)


@pytest.mark.parametrize("kind", MODELS)
def test_dynamic_tflite_is_for_the_old_runtime_too(kind: str, built: Built) -> None:
    """tflite-runtime 2.14 computes nonsense from fully-connected weights with a scale for each channel."""
    graph = read_graph(built("tflite", kind)["w8dyn"])
    dense = [graph.tensors[o.inputs[1]] for o in graph.operations if o.name == "FULLY_CONNECTED"]
    assert dense
    constant = [weights for weights in dense if weights.is_int8]
    assert constant
    assert all(weights.scale.size == 1 for weights in constant)


def test_onnx_holds_no_paths_of_this_machine(built: Built) -> None:
    content = built("onnx", "convolutional")["fp32"].read_bytes()
    assert b".py" not in content


@pytest.mark.parametrize("statistics", [IMAGENET, HALVES])
@pytest.mark.parametrize("channels_last", [True, False])
def test_normalisation(statistics: Any, channels_last: bool) -> None:
    spec = deployable(*statistics)
    images = np.concatenate(pictures(2, 5))
    module = Deployed(nn.Identity(), spec, channels_last=channels_last)
    got = module(torch.from_numpy(images)).numpy()
    expected = ((images / 255 - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2)
    assert np.abs(got - expected).max() < 1e-5


def test_the_callers_model_is_not_touched(tmp_path: Path) -> None:
    model = Small().eval().to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    targets.get("onnx").export(model, deployable(*IMAGENET), tmp_path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.stem[0].weight.is_contiguous(memory_format=torch.channels_last)


class Impossible(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such thing\nas this network")


@pytest.mark.parametrize("runtime", targets.TARGETS)
def test_a_crash_of_a_converter_is_exit_4(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match="the converter failed") as caught:
        targets.get(runtime).export(Impossible().eval(), deployable(*IMAGENET), tmp_path)
    assert caught.value.exit_code == 4
    assert caught.value.hint == "distilledge doctor"


def test_a_full_disk_stays_a_full_disk() -> None:
    with pytest.raises(OSError, match="No space"), converting("x"):
        raise OSError(28, "No space left on device")


def test_unknown_runtime() -> None:
    with pytest.raises(UsageError, match="unknown runtime: coreml"):
        targets.get("coreml")


def test_missing_package_prints_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distilledge.targets.tflite", None)
    with pytest.raises(ModuleNotFoundError):  # ours: a bug, not the user's environment
        targets.get("tflite")
    monkeypatch.undo()
    find = importlib.metadata.Distribution.from_name

    def absent(name: str) -> importlib.metadata.Distribution:
        if name == "litert-torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", absent)
    with pytest.raises(MissingPackageError) as caught:
        targets.get("tflite")
    assert caught.value.hint == "pip install litert-torch"
    assert caught.value.exit_code == 4


def test_missing_module_prints_the_pip_line() -> None:
    code = (
        "import sys; sys.modules['ai_edge_litert'] = None\n"
        "from distilledge import targets\n"
        "try: targets.get('tflite')\n"
        "except Exception as error: print(type(error).__name__, error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "MissingPackageError pip install ai-edge-litert"
