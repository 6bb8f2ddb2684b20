"""One process that trains with loader processes and exports: the converters start threads that no fork survives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_training import data  # noqa: F401 (a fixture)

SCRIPT = """
import subprocess, sys
from pathlib import Path
import torch
import test_training as made
from distilledge.pipeline.export import export
from distilledge.targets.samples import Samples

data, out = Path(sys.argv[1]), Path(sys.argv[2])
recipe = made.recipe(student={"epochs": 1}, data={"workers": 2})
for name in ("before", "after"):
    trained = made.control(data, out, recipe, name)
    (out / f"{name}-tflite").mkdir()
    pictures = Samples(tuple(str(path) for path in sorted((data / "images").iterdir())[:8]))
    result = export(
        trained,
        made.folders(out, name)[0],
        role="student",
        runtime="tflite",
        precisions=("w8a8",),
        calibration=pictures,
        out=out / f"{name}-tflite",
    )
    subprocess.run([sys.executable, "-c", ""], check=True)
    print(name, *(file.precision for file in result.files))
"""


@pytest.mark.slow
def test_loader_processes_and_a_converter_in_one_process(data: Path, tmp_path: Path) -> None:  # noqa: F811
    """Twice, so that loader processes are also started after the converter was there."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(data), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == ["before fp32 w8a8", "after fp32 w8a8"]
