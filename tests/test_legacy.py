"""The worker in the Python of small boards: tflite-runtime 2.14 and numpy 1, on this machine and as 32-bit ARM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_armhf import BOARD, RUNTIME, armhf_python
from PIL import Image
from test_targets import IMAGENET, SIZE, Small, deployable, pictures
from test_worker import load_request

from distilledge import targets
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.ondevice.preprocess import InputSpec

pytestmark = pytest.mark.slow


def x86(folder: Path) -> Path:
    """An environment of its own."""
    if not (3, 9) <= sys.version_info[:2] <= (3, 11):
        pytest.skip("tflite-runtime 2.14 is for Python 3.9 to 3.11")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "-q", RUNTIME, "numpy<2", "pillow"]
    made = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    if made.returncode:
        pytest.skip(f"cannot be installed here: {made.stderr[-300:]}")
    return folder / "bin" / "python"


def armhf(_: Path) -> Path:
    if BOARD not in os.environ:
        pytest.skip(f"name a folder in {BOARD} to try 32-bit ARM")
    return armhf_python(Path(os.environ[BOARD]).resolve())


@pytest.mark.parametrize("board", [x86, armhf])
def test_a_small_board_answers_as_this_machine(board: Any, tmp_path: Path) -> None:
    """Loaded, timed and scored from files of pictures; int8 differs by a step at most, since kernels round apart."""
    old = board(tmp_path / "old")
    target, spec = targets.get("tflite"), deployable(*IMAGENET)
    fp32 = target.export(Small().eval(), spec, tmp_path)
    w8a8, _ = target.compress(fp32, spec, tmp_path, precision="w8a8", calibration=pictures(16, 1))
    shown = [str(tmp_path / f"{i}.png") for i in range(6)]
    for path, array in zip(shown, pictures(6, 2), strict=True):
        Image.fromarray(array[0].repeat(2, 0).repeat(2, 1)).save(path)
    np.save(tmp_path / "rows.npy", np.zeros((2, SIZE, SIZE, 3), np.uint8))
    score = {"op": "score", "files": shown, "spec": InputSpec(SIZE, SIZE).to_dict()}
    for model, tolerance in ((fp32, 1e-4), (w8a8, 0.02)):
        logits = []
        for device in (LocalDevice(), LocalDevice(python=str(old))):
            with device.start() as worker:
                loaded = worker.request(load_request(model, "tflite"), 120)
                worker.request({"op": "inputs", "path": str(tmp_path / "rows.npy")}, 60)
                assert len(worker.request({"op": "block", "n": 5}, 120)["latency_ns"]) == 5
                worker.request({**score, "out": str(tmp_path / "out.npy")}, 120)
                logits.append(np.load(tmp_path / "out.npy"))
        assert loaded["runtime_version"] == "tflite-runtime 2.14.0"
        np.testing.assert_allclose(*logits, atol=tolerance)
        assert np.ptp(logits[0]) > 0.05
        np.testing.assert_array_equal(*(found.argmax(-1) for found in logits))
    card = LocalDevice(python=str(old)).facts()
    assert card["packages"]["numpy"].startswith("1.")
    assert card["emulated"] == (board is armhf)
