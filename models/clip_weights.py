"""Published CLIP models: their files, their text embeddings, and the image tower with a head of class names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distilledge.models.clip_net import FIELDS, ClipNet, ensembled
from distilledge.models.errors import RejectedError
from distilledge.models.text_weights import FILES, directory_of, read_directory
from distilledge.models.weights import check_finite, check_fit

CLIP_FILES = (*FILES, "preprocessor_config.json")
BATCH = 64


class Clip(NamedTuple):
    model: Any
    """transformers' CLIPModel in eval mode, float32."""
    directory: Path
    note: str
    """One line for the log."""


def read_clip(place: str, *, trust_pickle: bool) -> Clip:
    """Of a directory or hub name. Raises ``RejectedError`` for absent or bad files, by name of the tensor."""
    from transformers import CLIPConfig, CLIPModel

    directory = directory_of(place, (*CLIP_FILES, "pytorch_model.bin") if trust_pickle else CLIP_FILES)
    path = directory / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["model_type"]
        if kind != "clip":
            raise ValueError(f"its model_type is {kind}")
        config = CLIPConfig.from_pretrained(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RejectedError(
            "E3560", f"not the configuration of a CLIP model ({error}): {path}", "give a directory with both towers"
        ) from error
    model: Any = CLIPModel(config)
    state, file, sha256 = read_directory(directory, trust_pickle=trust_pickle)
    state = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    check_finite(state, file)
    own = model.state_dict()
    check_fit(own, own, state, file)
    model.load_state_dict(state)
    note = f"{place}: {len(state)} tensors of {file.name} (sha256 {sha256[:12]}), a head of class names"
    return Clip(model.eval(), directory, note)


def text_length(clip: Clip) -> int:
    """Tokens that a prompt may have."""
    return int(clip.model.config.text_config.max_position_embeddings)


@torch.inference_mode()
def text_embeddings(clip: Clip, prompts: Sequence[Sequence[int]]) -> Tensor:
    """(P, D), not yet of unit length. Prompts of equal length go together, so that nothing is padded.

    Raises ``RejectedError`` where a prompt does not end in the token whose state CLIP takes.
    """
    settings = clip.model.config.text_config
    end = settings.eos_token_id
    if end == 2:  # as old configurations say, which transformers takes for: the highest id
        end = max(max(ids) for ids in prompts)
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, ids in enumerate(prompts):
        if ids[-1] != end or max(ids) >= settings.vocab_size:
            raise RejectedError(
                "E3561", f"the tokenizer does not fit CLIP's text tower: {clip.directory}", "use the one of the weights"
            )
        by_length[len(ids)].append(number)
    found = torch.empty(len(prompts), clip.model.config.projection_dim)
    for chosen in by_length.values():
        for start in range(0, len(chosen), BATCH):
            part = chosen[start : start + BATCH]
            made = clip.model.get_text_features(input_ids=torch.tensor([list(prompts[i]) for i in part]))
            found[part] = made.pooler_output
    return found


def architecture_of(clip: Clip, prompts: dict[str, list[str]]) -> dict[str, Any]:
    """Of a ``ClipNet``; ``prompts`` by class, in order."""
    settings = clip.model.config.vision_config.to_dict()
    return {
        "vision": {name: settings[name] for name in FIELDS},
        "projection": int(clip.model.config.projection_dim),
        "classes": len(prompts),
        "prompts": prompts,
    }


@torch.no_grad()
def image_classifier(clip: Clip, architecture: dict[str, Any], embeddings: Tensor) -> ClipNet:
    """The tower under the class embeddings, ``embeddings`` (C, T, D) ensembled, times CLIP's logit scale."""
    net = ClipNet(architecture)
    net.tower.load_state_dict(clip.model.vision_model.state_dict())
    net.projection.load_state_dict(clip.model.visual_projection.state_dict())
    net.head.load_state_dict({"weight": ensembled(embeddings) * clip.model.logit_scale.exp()})
    return net


def published_input(directory: Path) -> dict[str, Any]:
    """``mean`` and ``std`` of preprocessor_config.json; empty where there is none."""
    path = directory / "preprocessor_config.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {"mean": found.get("image_mean"), "std": found.get("image_std")}
