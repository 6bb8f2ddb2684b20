"""A transformers backbone with a head of ours: one input, the ids; mask and token types are computed in the graph."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distilledge.models.errors import UsageError
from distilledge.models.tasks import TASKS
from distilledge.models.text_language import LanguageHead
from distilledge.models.text_names import first_position, layout

Pooling = Literal["first", "mean", "last"]
MASKED = -1e4
"""Added to attention scores, and given as logit, where there is padding; it fits float16."""
PER_TOKEN = ("token-classification", "question-answering")


class RealTokens(nn.Module):
    """Ids (N, L) -> bool (N, L), False at padding. A module, so that a tap can listen to it.

    The first token is real whatever it is: a text without tokens is one pad, and more padding must change nothing.
    """

    def __init__(self, pad_id: int) -> None:
        super().__init__()
        self.pad_id = pad_id

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        return (ids != self.pad_id) | (places == 0)


class TextNet(nn.Module):
    """Ids (N, L), padded right with ``pad_id`` -> float logits: (N, C), of tokens (N, L, C), of answers (N, L, 2).

    ``architecture`` is JSON: task, classes, config (transformers'; ``vocab_size`` is the tokenizer's), pooling, pad_id,
    sep_id (ends the question of a pair), vocabulary (ids that have a row of their own; None: all) and unknown_id (whose
    row the others share; None: the padding's). A language model's logits are (N, L, rows).
    """

    remap: Tensor

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        self.architecture = copy.deepcopy(architecture)
        config: dict[str, Any] = architecture["config"]
        self.task, self.classes = str(architecture["task"]), int(architecture["classes"])
        self.pooling: Pooling = architecture["pooling"]
        self.pad_id, self.sep_id = int(architecture["pad_id"]), architecture["sep_id"]
        self.vocabulary: list[int] | None = architecture.get("vocabulary")
        self.model_type = str(config["model_type"])
        self.layout = layout(self.model_type)
        self._first_position = first_position(config)
        self.backbone = build_backbone(config, self.vocabulary)
        self.config: Any = self.backbone.config
        self.real = RealTokens(self.pad_id)
        if self.vocabulary is not None:
            rows = remap_rows(self.vocabulary, config["vocab_size"], architecture.get("unknown_id"), self.pad_id)
            self.register_buffer("remap", rows)
        self.head = self._new_head()

    @property
    def word_embeddings(self) -> nn.Embedding:
        """(rows, width)"""
        table: nn.Embedding = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return table

    def forward(self, ids: Tensor) -> Tensor:
        hidden, real = self.hidden(ids)
        if isinstance(self.head, LanguageHead):
            words: Tensor = self.head(hidden, self.word_embeddings.weight)
            return words
        if self.task not in PER_TOKEN:
            hidden = self._pooled(hidden, real)
        logits: Tensor = self.head(hidden)
        if self.task == "question-answering":
            logits = torch.where(real.unsqueeze(-1), logits, MASKED)
        return logits

    def language_model(self, ids: Tensor, where: Tensor) -> Tensor:
        """Logits (T, rows) of the tokens at ``where`` (N, L); in a causal model each stands for the token after it.

        The task must be one of language modelling: see ``with_task``.
        """
        assert isinstance(self.head, LanguageHead), f"{self.task} has no language model; see text.with_task"
        logits: Tensor = self.head(self.hidden(ids)[0][where], self.word_embeddings.weight)
        return logits

    def rows(self, ids: Tensor) -> Tensor:
        """Ids of any shape -> the rows of their embeddings; targets of a trimmed language model are rows too."""
        if self.vocabulary is None:
            return ids
        return torch.index_select(self.remap, 0, ids.flatten()).reshape(ids.shape)

    def hidden(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states (N, L, D), and which tokens are real (N, L)."""
        real: Tensor = self.real(ids)
        inputs = self._special_inputs(ids)
        states: Tensor = self.backbone(input_ids=self.rows(ids), attention_mask=self._mask(real), **inputs)[0]
        return states, real

    def _new_head(self) -> nn.Module:
        if TASKS[self.task].language:
            width = self.word_embeddings.embedding_dim
            return LanguageHead(self.config, width, masked=self.task == "masked-language-modelling")
        linear = nn.Linear(self.config.hidden_size, self.classes)
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.Dropout(head_dropout(self.config)), linear)

    def _special_inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """Positions and token types, where the architecture has them."""
        places = torch.arange(ids.shape[1], device=ids.device)
        inputs: dict[str, Tensor] = {}
        if self.layout.positions:
            inputs["position_ids"] = (places + self._first_position).unsqueeze(0)
        if self.layout.token_types:
            inputs["token_type_ids"] = self._token_types(ids, places)
        return inputs

    def _token_types(self, ids: Tensor, places: Tensor) -> Tensor:
        """0 up to and including the first separator, 1 after, of pairs; else 0."""
        types = getattr(self.config, "type_vocab_size", 0) or 0
        if self.task != "question-answering" or self.sep_id is None or types < 2:
            return torch.zeros_like(ids)
        end = torch.where(ids == self.sep_id, places, ids.shape[1]).amin(1, keepdim=True)
        return (places > end).to(ids.dtype)

    def _mask(self, real: Tensor) -> Any:
        """What the backbone adds to its attention scores, made here so that no exporter meets transformers' own way."""
        if self.model_type == "deberta-v2":
            return real.long()
        keys = real[:, None, None, :]
        places = torch.arange(real.shape[1], device=real.device)
        if self.layout.causal:
            return additive(keys & (places[None, :] <= places[:, None]))
        if self.model_type == "modernbert":
            near = (places[None, :] - places[:, None]).abs() <= self.config.sliding_window
            return {"full_attention": additive(keys), "sliding_attention": additive(keys & near)}
        return additive(keys)

    def _pooled(self, hidden: Tensor, real: Tensor) -> Tensor:
        """(N, L, D) -> (N, D)"""
        if self.pooling == "first":
            return hidden[:, 0]
        weights = real.to(hidden.dtype)
        if self.pooling == "last":
            places = torch.arange(real.shape[1], device=real.device)
            last = (real * places).amax(1, keepdim=True)
            weights = (places == last).to(hidden.dtype)
        total = weights.sum(1, keepdim=True).clamp_min(1)
        return torch.matmul((weights / total).unsqueeze(1), hidden).squeeze(1)


def additive(allowed: Tensor) -> Tensor:
    """Bool -> float: 0 where allowed."""
    return torch.where(allowed, 0.0, MASKED)


def settings_of(config: dict[str, Any]) -> Any:
    """transformers' configuration object. Raises ``UsageError`` for values it refuses."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    fields = {k: v for k, v in config.items() if k != "model_type"}
    later: dict[str, Any] = {}
    if config["model_type"] == "modernbert":  # transformers makes none whose layers are all of one kind, but runs it
        count, every = fields.get("num_hidden_layers", 22), fields.pop("global_attn_every_n_layers", 3)
        kinds = ["sliding_attention" if i % every else "full_attention" for i in range(count)]
        later = {"num_hidden_layers": count, "layer_types": fields.get("layer_types") or kinds}
        fields |= {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
    try:
        settings = AutoConfig.for_model(config["model_type"], **fields)
        for name, value in later.items():
            setattr(settings, name, value)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise _impossible(config, error) from error
    settings.use_cache = False
    return settings


def _impossible(config: dict[str, Any], error: Exception) -> UsageError:
    reason = " ".join(str(error).split())
    return UsageError("E2432", f"impossible configuration of {config['model_type']}: {reason}", "edit text.config")


def build_backbone(config: dict[str, Any], vocabulary: list[int] | None) -> nn.Module:
    """transformers' base model with random weights; of an encoder-decoder the encoder."""
    from transformers import AutoModel, AutoModelForTextEncoding

    rows = {} if vocabulary is None else {"vocab_size": len(vocabulary), "pad_token_id": None}
    settings = settings_of(config | rows)
    two_sided = bool(settings.is_encoder_decoder)  # transformers changes it while building
    kind: Any = AutoModelForTextEncoding if two_sided else AutoModel
    try:
        model: nn.Module = kind.from_config(settings, dtype=torch.float32)
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        raise _impossible(config, error) from error
    if two_sided:
        model = model.get_submodule("encoder")
    if hasattr(model, "pooler"):
        model.pooler = None  # type: ignore[assignment]
    return model


def remap_rows(vocabulary: list[int], tokens: int, unknown_id: int | None, pad_id: int) -> Tensor:
    """int32 (tokens,): the embedding row of every id."""
    row = {token: i for i, token in enumerate(vocabulary)}
    shared = pad_id if unknown_id is None else unknown_id
    if len(row) < len(vocabulary) or shared not in row or not all(0 <= token < tokens for token in vocabulary):
        raise UsageError(
            "E2433",
            f"a trimmed vocabulary must name ids of 0..{tokens - 1} once each, the unknown token's ({shared}) too",
            "keep the special tokens first",
        )
    return torch.tensor([row.get(token, row[shared]) for token in range(tokens)], dtype=torch.int32)


def head_dropout(config: Any) -> float:
    """What the architecture's own classifier has; no two configurations call it the same."""
    names = (
        "classifier_dropout",
        "seq_classif_dropout",
        "summary_first_dropout",
        "hidden_dropout_prob",
        "dropout_rate",
    )
    found = [getattr(config, name, None) for name in names]
    return float(next((value for value in found if value is not None), 0.0))
