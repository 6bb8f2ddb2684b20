"""The ladder on real files: a student that plain static int8 breaks, repaired in each runtime; what islands cost."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from distilledge.pipeline.compress.judge import Ground
from distilledge.pipeline.compress.ledger import Ledger
from distilledge.pipeline.compress.stage import Climb, Student, climb_runtime
from distilledge.pipeline.export import finished
from distilledge.pipeline.recipe import Budget, Recipe
from distilledge.pipeline.recipe_compress import Compress
from distilledge.pipeline.record import Sample
from distilledge.targets import get
from distilledge.targets.base import Deployable, Exported
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.ondevice.preprocess import InputSpec, preprocess
from distilledge.targets.samples import pictures

SIZE, CLASSES = 32, ("a", "b", "c", "d")
SPEC = InputSpec(height=SIZE, width=SIZE)
TIMES = 300.0
"""How much larger one channel is than the others."""

pytestmark = pytest.mark.slow


class Outlier(nn.Module):
    """One channel between two convolutions is large, and the second convolution's weights for it are as small: the
    float network is the one without it, but one scale for the tensor leaves the other channels no steps.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.third = (nn.Conv2d(a, 16, 3, stride=2, padding=1) for a in (3, 16, 16))
        self.last = nn.Linear(16, len(CLASSES))
        with torch.no_grad():
            self.second.weight[0] *= TIMES
            self.second.bias[0] = abs(float(self.second.bias[0])) * TIMES
            self.third.weight[:, 0] /= TIMES

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x))))))
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, list[Sample], Path]:
    """The network, its last bias set so that all classes occur, and 96 pictures; labels: what it answers."""
    root = tmp_path_factory.mktemp("outlier")
    rng = np.random.default_rng(0)
    for i in range(96):
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(root / f"{i}.png")
    arrays = np.stack([preprocess(root / f"{i}.png", SPEC) for i in range(96)]).astype(np.float32)
    x = torch.from_numpy((arrays / 255 - SPEC.mean) / SPEC.std).float().permute(0, 3, 1, 2)
    model = Outlier().eval()
    with torch.no_grad():
        logits = model(x)
        model.last.weight /= logits.std(0)[:, None]
        model.last.bias.copy_((model.last.bias - logits.mean(0)) / logits.std(0))
        labels = model(x).argmax(1).tolist()
    digests = [hashlib.sha256((root / f"{i}.png").read_bytes()).hexdigest() for i in range(96)]
    splits: list[Any] = ["train"] * 32 + ["validation"] * 64
    samples = [Sample(f"{i}.png", labels[i], "", splits[i], digests[i], i < 32) for i in range(96)]
    return model, samples, root


def climbed(
    made: tuple[nn.Module, list[Sample], Path], runtime: str, folder: Path, compress: Compress
) -> tuple[Exported, Ledger, Path]:
    """The file taken, the ledger, and the folder that the file lies in."""
    model, samples, root = made
    target = get(runtime)
    deployable = Deployable(
        input_spec=SPEC.to_dict(), height=SIZE, width=SIZE, mean=SPEC.mean, std=SPEC.std, classes=CLASSES
    )
    fp32 = finished(target, [target.export(model, deployable, folder)], "fp32", "as exported", deployable, 0.0)
    recipe = Recipe(name="outlier", compress=compress)
    calibration, validation = samples[:32], samples[32:]
    inputs = pictures([root / s.path for s in validation])
    ground = Ground(recipe, Budget(max_drop_points_fp32=10.0), LocalDevice(), validation, inputs)
    given = Climb(ground, calibration, pictures([root / s.path for s in calibration]), validation)
    out = folder / "out"
    out.mkdir()
    taken, ledger = climb_runtime(Student(target, model, deployable, fp32, folder), given, out)
    return taken, ledger, out


@pytest.mark.parametrize("runtime", ["onnx", "openvino", "tflite"])
def test_the_ladder_repairs_what_plain_int8_breaks(
    made: tuple[nn.Module, list[Sample], Path], runtime: str, tmp_path: Path
) -> None:
    compress = Compress(climb=True, rungs=("ptq", "islands"), max_slowdown=100.0)
    taken, ledger, out = climbed(made, runtime, tmp_path, compress)
    naive, shipped = ledger.tried[0], ledger.tried[ledger.taken]
    assert naive.outcome == "fails"
    assert naive.agreement < 0.5
    assert (shipped.rung, shipped.precision) == ("islands", "w8a8")
    assert shipped.agreement >= 0.9
    assert shipped.drop.value <= 10.0
    assert ledger.outcome != "fails"
    assert all((out / name).is_file() for name in taken.files)
    assert hashlib.sha256((out / taken.files[0]).read_bytes()).hexdigest() == taken.sha256[0]
    assert len(ledger.layers) == 4
    assert ledger.layers[0].place in (1, 2)  # the convolutions before and behind the large channel
    assert ledger.audit.pictures == 32


def test_what_is_refused_for_its_speed_says_where_the_time_goes(
    made: tuple[nn.Module, list[Sample], Path], tmp_path: Path
) -> None:
    compress = Compress(climb=True, rungs=("islands",), max_slowdown=1e-3)
    _, ledger, _ = climbed(made, "onnx", tmp_path, compress)
    (refused,) = ledger.tried
    assert refused.outcome == "fails"
    assert refused.slowness is not None
    assert sum(share.share for share in refused.slowness.shares) == pytest.approx(1.0, abs=0.05)
    assert refused.slowness.words in refused.reason
