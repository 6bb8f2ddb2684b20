"""Text networks without files: from a configuration, from a larger network, from one for another task."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distilledge.models.errors import UsageError
from distilledge.models.text_names import LEARNED_POSITIONS, UNLISTED, first_position, layout
from distilledge.models.text_net import Pooling, TextNet, settings_of

Field = int | float | str | bool
ABOUT_FILES = ("_name_or_path", "architectures", "transformers_version", "id2label", "label2id", "problem_type")
ABOUT_CALLS = ("dtype", "torch_dtype", "output_attentions", "output_hidden_states", "return_dict", "use_cache")


def from_config(
    model_type: str,
    fields: Mapping[str, Field],
    *,
    task: str,
    classes: int,
    vocabulary_size: int,
    max_length: int,
    pad_id: int,
    sep_id: int | None = None,
    pooling: Pooling | None = None,
) -> TextNet:
    """A network with random weights. ``fields`` are those of transformers' configuration, or BERT's names for them.

    Positions are as many as ``max_length`` needs, unless the fields say. ``pooling`` None: last for decoders, mean for
    others. Raises ``UsageError`` for an unknown architecture or field and for values that make no model.
    """
    from transformers import AutoConfig

    names = layout(model_type)
    usual = AutoConfig.for_model(model_type)
    known = {*usual.to_dict(), *usual.attribute_map, "hidden_size", "intermediate_size", *UNLISTED.get(model_type, ())}
    unknown = sorted(set(fields) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=3) or sorted(known)[:10]
        raise UsageError(
            "E2435", f"{model_type} has no setting {unknown[0]!r}", "did you mean " + ", ".join(near) + "?"
        )
    given = {names.intermediate if k == "intermediate_size" else k: v for k, v in fields.items()}
    given |= {"vocab_size": vocabulary_size, "pad_token_id": pad_id}
    if model_type in LEARNED_POSITIONS and "max_position_embeddings" in known:
        first = first_position({"model_type": model_type, "pad_token_id": pad_id})
        given.setdefault("max_position_embeddings", max_length + first)
    settings = settings_of({"model_type": model_type, **given})
    if "num_key_value_heads" in known and "num_key_value_heads" not in given:
        settings.num_key_value_heads = settings.num_attention_heads
    head = {"task": task, "classes": classes, "pooling": pooling or usual_pooling(model_type)}
    config = plain_config(settings)
    check_length(config, max_length)
    return TextNet({**head, "config": config, "pad_id": pad_id, "sep_id": sep_id, "vocabulary": None})


def usual_pooling(model_type: str) -> Pooling:
    return "last" if layout(model_type).causal else "mean"


def plain_config(settings: Any) -> dict[str, Any]:
    """A transformers configuration as JSON: what the network is made of. Special ids beyond its vocabulary go."""
    config = {k: v for k, v in settings.to_dict().items() if k not in (*ABOUT_FILES, *ABOUT_CALLS)}
    for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "decoder_start_token_id"):
        value = config.get(name)
        if name in config and not (isinstance(value, int) and 0 <= value < config["vocab_size"]):
            config[name] = None
    return config


def check_length(config: dict[str, Any], max_length: int) -> None:
    """Raise ``UsageError`` where the network has fewer learned positions than ``max_length``."""
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    if config["model_type"] not in LEARNED_POSITIONS or not limit:
        return
    fits = int(limit) - first_position(config)
    if max_length > fits:
        what = f"{config['model_type']} has {fits} positions, max_length is {max_length}"
        raise UsageError("E2434", what, f"set text.max_length to {fits}")


def with_task(net: TextNet, task: str, classes: int, *, pooling: Pooling | None = None) -> TextNet:
    """The same backbone, copied, under a fresh head for another task."""
    chosen = pooling or net.pooling
    made = TextNet({**net.architecture, "task": task, "classes": classes, "pooling": chosen})
    made.backbone.load_state_dict(net.backbone.state_dict())
    return made


def student_of(
    teacher: TextNet,
    layers: Sequence[int] = (),
    *,
    vocabulary: Sequence[int] | None = None,
    unknown_id: int | None = None,
) -> TextNet:
    """The teacher's architecture with some of its layers, by default every second, and its weights (Sanh et al. 2019).

    Head included. ``vocabulary``: ids that keep a row of their own in the embeddings, in order; all others share that
    of ``unknown_id``. Raises ``UsageError`` for a layer that the teacher does not have.
    """
    chosen = chosen_layers(teacher, layers)
    architecture = copy.deepcopy(teacher.architecture)
    architecture["config"] = _shallower(architecture["config"], chosen)
    if vocabulary is not None:
        architecture |= {"vocabulary": list(vocabulary), "unknown_id": unknown_id}
    student = TextNet(architecture)
    student.load_state_dict(_taken(teacher, student, chosen), strict=False)
    return student


def chosen_layers(teacher: TextNet, layers: Sequence[int]) -> list[int]:
    """By default every second."""
    count = int(teacher.config.num_hidden_layers)
    chosen = list(layers) or list(range(0, count, 2))
    if not all(0 <= layer < count for layer in chosen):
        raise UsageError("E2436", f"the teacher has layers 0 to {count - 1}, not {chosen}", "edit student.text.layers")
    return chosen


def trim(net: TextNet, vocabulary: Sequence[int], unknown_id: int | None = None) -> TextNet:
    """A copy with fewer embedding rows: see ``student_of``. Ids stay those of the whole tokenizer."""
    every = range(int(net.config.num_hidden_layers))
    return student_of(net, every, vocabulary=vocabulary, unknown_id=unknown_id)


def _shallower(config: dict[str, Any], layers: list[int]) -> dict[str, Any]:
    settings = settings_of(config)
    settings.num_hidden_layers = len(layers)
    shallower: dict[str, Any] = settings.to_dict()
    if config.get("layer_types"):  # ModernBERT's local and global ones stay what they are
        shallower["layer_types"] = [config["layer_types"][layer] for layer in layers]
    return {name: shallower[name] for name in config}


def _taken(teacher: TextNet, student: TextNet, layers: list[int]) -> dict[str, Tensor]:
    """The student's tensors out of the teacher's. What the first layer alone has stays in the first layer (T5)."""
    theirs, own = teacher.state_dict(), student.state_dict()
    prefix = f"backbone.{teacher.layout.layers}."
    taken = {}
    for name in own:
        source = name
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            moved = f"{prefix}{layers[int(index)]}.{rest}"
            source = moved if moved in theirs else name
        if source in theirs and name != "remap":
            taken[name] = theirs[source]
    if student.vocabulary is not None:
        rows = teacher.rows(torch.tensor(student.vocabulary)).long()
        for name in row_names(student):
            taken[name] = taken[name][rows]
    return taken


@torch.no_grad()
def narrow_embeddings(student: TextNet, teacher: TextNet) -> None:
    """Start the word embeddings of a narrower student of the same ids from the teacher's, in place.

    Its width of principal components of the teacher's rows, scaled to the spread that the student's had: words that
    are alike to the teacher begin alike. Nothing is done where the student is wider or cuts texts otherwise.
    """
    own = student.word_embeddings.weight
    ids = torch.arange(teacher.architecture["config"]["vocab_size"])
    if student.vocabulary is not None:
        ids = torch.tensor(student.vocabulary)
    theirs = teacher.word_embeddings.weight[teacher.rows(ids).long()]
    if own.shape[0] != theirs.shape[0] or own.shape[1] > theirs.shape[1]:
        return
    centred = theirs - theirs.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, : own.shape[1]]  # (D, width), the largest first
    axes = axes * axes.sum(0).sign()  # a direction and its opposite are the same axis
    narrow = centred @ axes
    own.copy_(narrow * (own.std() / narrow.std()))


def row_names(net: TextNet) -> list[str]:
    """Of the tensors with a row for each token: the word embeddings, and a masked language model's bias."""
    table = net.word_embeddings.weight
    return [name for name, p in net.named_parameters() if p is table or name == "head.bias"]
