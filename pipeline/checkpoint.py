"""Trained models on disk: ``model.safetensors`` beside a ``Checkpoint``, checked against its hash before use.

Beside a text model lies its ``tokenizer.json``, whose hash is in the input spec.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from distilledge.models import clip_net, few_shot, vision
from distilledge.models.base import Surgery
from distilledge.models.errors import IntegrityError
from distilledge.models.pruning import resized, restated
from distilledge.models.surgery import operated
from distilledge.models.vision import InputDefaults
from distilledge.pipeline.recipe import Data, Input
from distilledge.pipeline.record import Checkpoint
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.text import TextEncoder, TextSpec, WrongTokenizer

WEIGHTS = "model.safetensors"
CHANGES = ("surgery", "channels", *few_shot.HEADS)
"""Parts of an architecture that change a network known by name: ``models.surgery``, ``models.pruning``, a head."""


def load(checkpoint: Checkpoint, directory: Path) -> nn.Module:
    """The model in eval mode on the CPU: float32 (N, 3, H, W), or ids (N, L) -> logits (N, classes).

    The bytes that are hashed are the bytes that are loaded. Raises ``IntegrityError`` where they are others.
    """
    path = directory / WEIGHTS
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise IntegrityError("E7601", f"weights missing: {path}", "run again: the stage is rebuilt") from None
    found = hashlib.sha256(data).hexdigest()
    if found != checkpoint.weights_sha256:
        raise IntegrityError(
            "E7602",
            f"not the weights that were trained: {path}: expected sha256 {checkpoint.weights_sha256}, got {found}",
            "run again: the stage is rebuilt",
        )
    model = built(checkpoint)
    model.load_state_dict(safetensors.torch.load(data))
    return model.eval()


def built(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint, without its weights."""
    architecture = {name: value for name, value in checkpoint.architecture.items() if name not in CHANGES}
    model: nn.Module
    if "clip" in architecture:
        model = clip_net.ClipNet(architecture["clip"])
    elif architecture:
        from distilledge.models import text

        model = text.create(architecture)
    else:
        model = vision.create(checkpoint.model, classes=len(checkpoint.classes), size=checkpoint.input_spec["height"])
    if "surgery" in checkpoint.architecture:
        operated(model, Surgery.model_validate(checkpoint.architecture["surgery"]))
    if "channels" in checkpoint.architecture:
        restated(resized(model, checkpoint.architecture["channels"]), checkpoint.input_spec["height"])
    return few_shot.with_head(model, checkpoint.architecture)


def spec(checkpoint: Checkpoint) -> InputSpec | TextSpec:
    """How its input is made from a picture or a text."""
    fields = checkpoint.input_spec
    return TextSpec.from_dict(fields) if fields.get("kind") == "text" else InputSpec.from_dict(fields)


def encoder(checkpoint: Checkpoint, directory: Path) -> TextEncoder:
    """The tokenizer of a text model. Raises ``IntegrityError`` where the file is another."""
    own = TextSpec.from_dict(checkpoint.input_spec)
    try:
        return TextEncoder(directory / own.tokenizer, own)
    except (WrongTokenizer, FileNotFoundError) as error:
        raise IntegrityError(
            "E7603", f"not the tokenizer it was trained with: {error}", "run again: the stage is rebuilt"
        ) from error


def save_weights(state: dict[str, Tensor], directory: Path) -> str:
    """Write ``model.safetensors``; returns its sha256, which is that of the weights: the file holds nothing else."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    data = safetensors.torch.save(plain)
    (directory / WEIGHTS).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def input_spec(size_and_rule: Input, data: Data, defaults: InputDefaults) -> InputSpec:
    """The input rule of a model: the recipe's, with the model's own mean and std where the recipe names none."""
    rule = size_and_rule
    return InputSpec(
        height=rule.size,
        width=rule.size,
        resize=rule.resize,
        crop_fraction=rule.crop_fraction,
        interpolation=rule.interpolation,
        antialias=rule.antialias,
        bit_depth=rule.bit_depth,
        alpha_background=rule.alpha_background,
        exif=data.exif,
        frames=data.frames,
        max_pixels=data.max_pixels,
        min_size=data.min_size,
        mean=rule.mean or defaults.mean,
        std=rule.std or defaults.std,
    )
