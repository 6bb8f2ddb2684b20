"""A narrower student out of the teacher's own weights: its states along their principal components.

Ashkboos et al. 2024 (SliceGPT) slice a pre-norm network that way; here the norms come after the sums, so the scale of
each is folded into what reads from it. Heads and neurons are kept by their weight, as in structured pruning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from distilledge.models.errors import UsageError
from distilledge.models.text_build import Field, chosen_layers, student_of
from distilledge.models.text_names import layers_of
from distilledge.models.text_net import TextNet, settings_of

WIDTHS = ("hidden_size", "intermediate_size")
"""What may be given; the number of heads follows, as a head keeps its width."""


class Places(NamedTuple):
    """Module names inside of a layer of encoders whose norms come after the sums."""

    mixed: str = "attention.output.dense"
    mixed_norm: str = "attention.output.LayerNorm"
    widen: str = "intermediate.dense"
    narrow: str = "output.dense"
    norm: str = "output.LayerNorm"


BERT = Places()
PLACES: dict[str, Places] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "distilbert": Places("attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
}
EMBEDDINGS_NORM = "embeddings.LayerNorm"
TABLES = ("embeddings.position_embeddings", "embeddings.token_type_embeddings")
"""Added to the word embeddings, where the architecture has them."""


class Seen(NamedTuple):
    """Of the teacher on a sample of real tokens."""

    moments: Tensor
    """(D, D): mean outer product of the normalised states, before a norm's own scale, of all norms."""
    neurons: list[Tensor]
    """(F,) for each layer: root mean square of what leaves each neuron."""


@torch.no_grad()
def narrowed(
    teacher: TextNet,
    layers: Sequence[int],
    fields: Mapping[str, Field],
    sample: Sequence[Tensor],
    *,
    vocabulary: Sequence[int] | None = None,
    unknown_id: int | None = None,
) -> TextNet:
    """``student_of``, and narrower: ``fields`` give ``hidden_size`` and ``intermediate_size`` (default: as narrow).

    ``sample``: ids (N, L) that the teacher's states are seen on. Raises ``UsageError`` for architectures other than
    BERT's kind, for other fields and for widths that are no multiple of a head's width or above the teacher's.
    """
    whole = student_of(teacher, layers, vocabulary=vocabulary, unknown_id=unknown_id)
    student = TextNet({**whole.architecture, "config": narrow_config(whole, fields)})
    seen = look(teacher, sample)
    axes = principal(seen.moments, int(student.config.hidden_size))
    scale = float((axes * (seen.moments @ axes)).sum(0).mean().sqrt())
    _embeddings(whole, student, axes)
    numbers = chosen_layers(teacher, layers)
    for own, number in zip(layers_of(student.backbone, student.model_type), numbers, strict=True):
        _layer(teacher, number, own, axes, seen.neurons[number])
    for module in student.backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(scale)
            module.bias.zero_()
    if isinstance(teacher.head, nn.Sequential):  # a language model's head starts fresh
        _copy(student.head[1], _reading(teacher.head[1], norm_before(teacher, len(seen.neurons)), axes))  # type: ignore[index]
    return student


def narrow_config(teacher: TextNet, fields: Mapping[str, Field]) -> dict[str, Any]:
    """A network's configuration at the widths of ``fields``."""
    if teacher.model_type not in PLACES:
        hint = "leave out student.text.config; these can: " + ", ".join(PLACES)
        raise UsageError("E2437", f"{teacher.model_type} cannot be made narrower", hint)
    config = settings_of(teacher.architecture["config"])
    head = config.hidden_size // config.num_attention_heads
    own = int(getattr(config, teacher.layout.intermediate))
    width = int(fields.get("hidden_size", config.hidden_size))
    inner = int(fields.get("intermediate_size", max(1, own * width // config.hidden_size)))
    wrong = sorted(set(fields) - set(WIDTHS)) or width % head or not max(head, 2) <= width <= config.hidden_size
    if wrong or not 1 <= inner <= own:
        what = f"a student made from the teacher takes {' and '.join(WIDTHS)}, not {dict(fields)}"
        hint = f"hidden_size: a multiple of {head} up to {config.hidden_size}; intermediate_size: up to {own}"
        raise UsageError("E2438", what, hint)
    config.hidden_size, config.num_attention_heads = width, width // head
    setattr(config, teacher.layout.intermediate, inner)
    found: dict[str, Any] = config.to_dict()
    return {name: found[name] for name in teacher.architecture["config"]}


def look(teacher: TextNet, sample: Sequence[Tensor]) -> Seen:
    """Run the teacher on the sample; it is left in the mode it was in."""
    places, found = PLACES[teacher.model_type], layers_of(teacher.backbone, teacher.model_type)
    width, inner = int(teacher.config.hidden_size), int(getattr(teacher.config, teacher.layout.intermediate))
    moments = torch.zeros(width, width, dtype=torch.float64)
    neurons = [torch.zeros(inner, dtype=torch.float64) for _ in found]
    real = torch.empty(0)
    count = 0

    def norm(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.LayerNorm)
        states = functional.layer_norm(given[0], module.normalized_shape, eps=module.eps)[real].double()
        moments.add_(states.T @ states)

    def neuron(number: int, given: tuple[Tensor, ...]) -> None:
        neurons[number].add_(given[0][real].double().square().sum(0))

    norms = [m for m in teacher.backbone.modules() if isinstance(m, nn.LayerNorm)]
    hooks = [m.register_forward_pre_hook(norm) for m in norms]
    hooks += [
        layer.get_submodule(places.narrow).register_forward_pre_hook(lambda _, given, n=n: neuron(n, given))
        for n, layer in enumerate(found)
    ]
    training = teacher.training
    teacher.eval()
    try:
        for ids in sample:
            real = teacher.real(ids)
            count += int(real.sum())
            teacher(ids)
    finally:
        teacher.train(training)
        for hook in hooks:
            hook.remove()
    return Seen((moments / (count * len(norms))).float(), [(n / count).sqrt().float() for n in neurons])


def principal(moments: Tensor, width: int) -> Tensor:
    """(D, width) of rank width - 1: what holds most of the second moment, along coordinates whose mean is zero.

    A norm of the student takes their mean away, so they must have none: the directions are spread over the
    coordinates by a discrete cosine transform (DCT-II) without its constant row. That leaves no outlier to int8 either.
    """
    axes = torch.linalg.eigh(moments.double())[1].flip(1)[:, : width - 1]
    axes = axes * axes.sum(0).sign()  # a direction and its opposite are the same axis
    rows, places = torch.arange(1, width, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    waves = torch.cos(torch.pi / width * rows[:, None] * (places + 0.5)) * (2 / width) ** 0.5
    found: Tensor = (axes @ waves).float()
    return found


def norm_before(teacher: TextNet, number: int) -> nn.LayerNorm:
    """The norm whose output enters layer ``number``, or the head after the last."""
    places = PLACES[teacher.model_type]
    if number == 0:
        return _norm(teacher.backbone, EMBEDDINGS_NORM)
    return _norm(layers_of(teacher.backbone, teacher.model_type)[number - 1], places.norm)


def _norm(module: nn.Module, name: str) -> nn.LayerNorm:
    found = module.get_submodule(name)
    assert isinstance(found, nn.LayerNorm)
    return found


def _embeddings(whole: TextNet, student: TextNet, axes: Tensor) -> None:
    student.word_embeddings.weight.copy_(_centred(whole.word_embeddings.weight) @ axes)
    for name in TABLES:
        if name.rpartition(".")[2] in dict(whole.backbone.get_submodule("embeddings").named_children()):
            table: Any = whole.backbone.get_submodule(name)
            student.backbone.get_submodule(name).weight.copy_(_centred(table.weight) @ axes)  # type: ignore[operator]


def _layer(teacher: TextNet, number: int, own: nn.Module, axes: Tensor, neurons: Tensor) -> None:
    places, layout = PLACES[teacher.model_type], teacher.layout
    theirs = layers_of(teacher.backbone, teacher.model_type)[number]
    before, between = norm_before(teacher, number), _norm(theirs, places.mixed_norm)
    mixed: Any = theirs.get_submodule(places.mixed)
    rows = _heads(theirs.get_submodule(layout.value), mixed, teacher.config, axes.shape[1])
    for name in (layout.query, layout.key, layout.value):
        _copy(own.get_submodule(name), _reading(theirs.get_submodule(name), before, axes, rows))
    _copy(own.get_submodule(places.mixed), _writing(mixed, before, axes, rows))
    narrow: Any = theirs.get_submodule(places.narrow)
    smaller: Any = own.get_submodule(places.narrow)
    kept = (neurons * narrow.weight.norm(dim=0)).topk(smaller.in_features).indices.sort().values
    _copy(own.get_submodule(places.widen), _reading(theirs.get_submodule(places.widen), between, axes, kept))
    _copy(smaller, _writing(narrow, between, axes, kept))


def _heads(value: Any, mixed: Any, config: Any, width: int) -> Tensor:
    """Rows of the heads whose value and output weights together are the largest."""
    size = config.hidden_size // config.num_attention_heads
    pairs = zip(value.weight.split(size), mixed.weight.split(size, dim=1), strict=True)
    kept = torch.stack([(out @ inside).norm() for inside, out in pairs]).topk(width // size).indices.sort().values
    rows: Tensor = (kept[:, None] * size + torch.arange(size)).flatten()
    return rows


def _reading(linear: Any, norm: nn.LayerNorm, axes: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias on normalised states along ``axes``: the norm's scale and shift are folded in."""
    weight, bias = (linear.weight * norm.weight) @ axes, linear.weight @ norm.bias + linear.bias
    return (weight, bias) if rows is None else (weight[rows], bias[rows])


def _writing(linear: Any, norm: nn.LayerNorm, axes: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to the normalised states of ``norm``, which pass by without its scale: divided by its mean."""
    scale = norm.weight.mean()
    weight = axes.T @ _centred(linear.weight[:, columns].T).T
    return weight / scale, axes.T @ _centred(linear.bias + norm.bias) / scale


def _centred(states: Tensor) -> Tensor:
    """A norm takes the mean over the width away."""
    return states - states.mean(-1, keepdim=True)


def _copy(linear: Any, values: tuple[Tensor, Tensor]) -> None:
    linear.weight.copy_(values[0])
    linear.bias.copy_(values[1])
