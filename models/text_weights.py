"""Published text models: finding their files, refusing bad ones, fitting them to our networks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distilledge.models.errors import RejectedError
from distilledge.models.text_build import check_length, plain_config, usual_pooling
from distilledge.models.text_names import LAYOUTS, layout
from distilledge.models.text_net import Pooling, TextNet
from distilledge.models.weights import State, check_finite, check_fit, read_weights

FILES = (
    "config.json",
    "model*.safetensors*",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "*.model",
)
HEADS = (
    "cls.",
    "lm_head.",
    "lm_predictions.",
    "mask_predictions.",
    "generator_",
    "discriminator_",
    "vocab_",
    "head.",
    "decoder.",
    "classifier.",
    "qa_outputs.",
    "score.",
)
NOT_OURS = re.compile(
    r"(^|\.)(pooler\..*|position_ids|token_type_ids|rotary_emb\..*inv_freq|h\.\d+\.attn\.(masked_)?bias)$"
)
OWN_HEAD = "its head"
"""Ends the line for the log where the head is the files' own."""
LANGUAGE_HEADS = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ("lm_predictions.lm_head.dense", "lm_predictions.lm_head.LayerNorm", "lm_predictions.lm_head.bias"),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    ("head.dense", "head.norm", "decoder.bias"),
    ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
)
"""Names of the dense layer, the norm and the bias by rows of published masked language models."""


def from_pretrained(
    model: str,
    *,
    task: str,
    classes: int,
    max_length: int,
    pad_id: int,
    sep_id: int | None = None,
    pooling: Pooling | None = None,
    trust_pickle: bool = False,
) -> tuple[TextNet, str]:
    """The network and weights of a hub name or directory under a head for ``task``; and a line for the log.

    The head is new, but for that of a language model or of question-answering where the files have it. Raises
    ``RejectedError`` for absent or bad files, by name of the tensor, ``UsageError`` for what cannot be made of them.
    """
    directory = directory_of(model)
    config = read_config(directory)
    check_length(config, max_length)
    net = TextNet(
        {
            "task": task,
            "classes": classes,
            "config": config,
            "pooling": pooling or usual_pooling(config["model_type"]),
            "pad_id": pad_id,
            "sep_id": sep_id,
            "vocabulary": None,
        }
    )
    state, path, sha256 = read_directory(directory, trust_pickle=trust_pickle)
    check_finite(state, path)
    body, rest = split(state, config["model_type"])
    kept = _load(net, body, rest, path)
    head = OWN_HEAD if kept else "new head"
    return net, f"{model}: {len(body)} tensors of {path.name} (sha256 {sha256[:12]}), {head}"


def directory_of(model: str, files: Sequence[str] = FILES) -> Path:
    """A local directory, or the Hugging Face cache's for a hub name, fetched if it is not there."""
    from httpx import HTTPError  # what huggingface_hub lets through when there is no network
    from huggingface_hub import snapshot_download

    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    try:
        return Path(snapshot_download(model, allow_patterns=list(files)))
    except (HTTPError, OSError, ValueError) as error:
        raise RejectedError(
            "E3421",
            f"no directory, and cannot get it from the hub: {model}: {str(error).partition(chr(10))[0]}",
            f"with a network, run `hf download {model}`, or give a directory with config.json and model.safetensors",
        ) from error


def read_config(directory: Path) -> dict[str, Any]:
    """transformers' configuration as JSON. Code that may lie beside it is never run."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = directory / "config.json"
    if not path.is_file():
        raise RejectedError("E3422", f"no config.json: {directory}", "give a directory that transformers has saved")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        model_type = str(found["model_type"])
        settings = AutoConfig.from_pretrained(directory) if model_type in LAYOUTS else None
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise RejectedError(
            "E3422", f"not a configuration of transformers ({error}): {path}", "fetch the file again"
        ) from error
    layout(model_type)
    return plain_config(settings)


def read_directory(directory: Path, *, trust_pickle: bool) -> tuple[State, Path, str]:
    """All tensors, the file that names them, and its sha256; several files where there is an index."""
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        path = directory / name
        if path.is_file() and path.suffix == ".json":
            return _read_parts(path)
        if path.is_file():
            return (*_after(read_weights(path, trust_pickle=trust_pickle), path),)
    raise RejectedError("E3401", f"no weights file: {directory / 'model.safetensors'}", "save the model as safetensors")


def _after(read: tuple[State, str], path: Path) -> tuple[State, Path, str]:
    return read[0], path, read[1]


def _read_parts(index: Path) -> tuple[State, Path, str]:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RejectedError("E3423", f"not an index of weight files ({error}): {index}", "fetch it again") from error
    state: State = {}
    digests = []
    for name in names:
        part, digest = read_weights(index.parent / Path(name).name)
        state |= part
        digests.append(digest)
    return state, index, digests[0]


def split(state: State, model_type: str) -> tuple[State, State]:
    """Tensors of the backbone, under our names, and of the heads, under theirs."""
    prefix = layout(model_type).prefix
    prefixed = any(name.startswith(prefix) for name in state)
    body: State = {}
    rest: State = {}
    for old, tensor in state.items():
        name = old.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        inside = name.startswith(prefix) if prefixed else not name.startswith(HEADS)
        if not inside:
            rest[name] = tensor
        elif not NOT_OURS.search(name):
            body[name.removeprefix(prefix)] = tensor
    if model_type in ("t5", "mt5") and "shared.weight" in state:
        body["embed_tokens.weight"] = state["shared.weight"]
        body.pop("shared.weight", None)
    return body, rest


def _load(net: TextNet, body: State, rest: State, path: Path) -> bool:
    """Copies the tensors; whether the head is the files'."""
    own = net.backbone.state_dict()
    body = {k: v for k, v in body.items() if k in own or not k.endswith("embeddings.position_embeddings.weight")}
    head = _head(net, rest)
    state = {f"backbone.{k}": v for k, v in body.items()} | head
    own = {k: v for k, v in net.state_dict().items() if k.startswith("backbone.") or k in head}
    kept = all(own[k].shape == v.shape for k, v in head.items())
    state = state if kept else {k: v for k, v in state.items() if k not in head}
    check_fit(own, [k for k in own if k not in head], state, path)
    net.load_state_dict(state, strict=False)
    return kept and (bool(head) or net.task == "causal-language-modelling")


def _head(net: TextNet, rest: State) -> State:
    """The tensors of our head among the files' heads, or none."""
    if net.task == "question-answering" and {"qa_outputs.weight", "qa_outputs.bias"} <= set(rest):
        return {f"head.1.{part}": rest[f"qa_outputs.{part}"] for part in ("weight", "bias")}
    if net.task != "masked-language-modelling":
        return {}
    for dense, norm, bias in LANGUAGE_HEADS:
        if f"{dense}.weight" in rest and f"{norm}.weight" in rest:
            width = torch.zeros(len(rest[f"{dense}.weight"]))
            found = {
                "head.transform.0.weight": rest[f"{dense}.weight"],
                "head.transform.0.bias": rest.get(f"{dense}.bias", width),
                "head.transform.2.weight": rest[f"{norm}.weight"],
                "head.transform.2.bias": rest.get(f"{norm}.bias", width),
            }
            return found | ({"head.bias": rest[bias]} if bias in rest else {})
    return {}
