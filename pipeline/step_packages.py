"""The packages whose versions are part of a step's name: another version may make something else."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from distilledge.models.clip_prompts import is_clip
from distilledge.pipeline.recipe import Recipe

TRAINING_PACKAGES = ("torch", "torchvision", "timm", "accelerate")
TEXT_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate")
RUNTIME_PACKAGES = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("torch", "openvino", "nncf"),
    "tflite": ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert"),
}


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions; ``missing`` where a distribution is not there."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def training_packages(recipe: Recipe) -> tuple[str, ...]:
    own = TEXT_PACKAGES if recipe.is_text else TRAINING_PACKAGES
    more = ("transformers", "tokenizers") if is_clip(recipe.teacher.model) else ()
    return (*own, *more, *(("bitsandbytes",) if recipe.teacher.strategy.name == "qlora" else ()))


def export_packages(recipe: Recipe, runtime: str) -> tuple[str, ...]:
    """What makes the files; of texts, OpenVINO reads an ONNX graph."""
    own = RUNTIME_PACKAGES[runtime]
    return (*own, "onnx", "onnxscript") if recipe.is_text and runtime == "openvino" else own
