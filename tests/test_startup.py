"""The command line starts quickly because nothing heavy is imported before a command asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "sklearn",
    "datasets",
)
LIGHT_MODULES = (
    "distilledge.pipeline.cli",
    "distilledge.pipeline.recipe",
    "distilledge.pipeline.recipe_file",
    "distilledge.pipeline.record",
    "distilledge.pipeline.store",
    "distilledge.models.errors",
)


def loaded_after(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has imported after ``code``."""
    program = f"{code}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_import_is_light(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert module in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_is_light() -> None:
    run = "from distilledge.pipeline.cli import main; main()"
    loaded = loaded_after(f"import sys; sys.argv[1:] = ['--help']\ntry:\n    {run}\nexcept SystemExit: pass")
    assert "distilledge.pipeline.cli" in loaded
    assert loaded.isdisjoint(HEAVY)
