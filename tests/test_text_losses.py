"""Losses of the inner states of texts against numpy, their edges and invariances; and the taps that feed them."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from distilledge.models import text
from distilledge.models.errors import UsageError
from distilledge.models.features import Layer, LayerPair, Outputs
from distilledge.models.features_text import TextTap, layers, match_layers, text_tap
from distilledge.models.losses import LOSSES, check_arguments
from distilledge.models.losses_text import (
    attention_relation,
    attention_scores,
    hidden,
    hidden_cosine,
    value_relation,
)
from distilledge.models.losses_total import DistillationLoss, Term

Array = npt.NDArray[np.float64]
TEXT_LOSSES = [name for name, spec in LOSSES.items() if spec.of_texts]
REAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
LENGTHS = [3, 5, 1]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def arguments(name: str, *, seeds: tuple[int, int] = (1, 2)) -> tuple[Tensor, Tensor]:
    shape = {"hidden": (3, 5, 8), "embeddings": (3, 5, 8), "scores": (3, 4, 5, 5), "values": (3, 4, 5, 6)}
    ours, theirs = (draw(*shape[LOSSES[name].needs], seed=seed) for seed in seeds)
    return ours, theirs


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def arrays(*tensors: Tensor) -> list[Array]:
    return [tensor.double().numpy() for tensor in tensors]


def test_hidden_equals_reference() -> None:
    s, t = arguments("hidden")
    a, b = arrays(s, t)
    of_tokens = [((a[n, i] - b[n, i]) ** 2).mean() for n, length in enumerate(LENGTHS) for i in range(length)]
    assert hidden(s, t, REAL).item() == pytest.approx(np.mean(of_tokens), rel=1e-5)


def test_hidden_cosine_equals_reference() -> None:
    s, t = arguments("hidden")
    a, b = arrays(s, t)
    of_tokens = [
        1 - a[n, i] @ b[n, i] / np.linalg.norm(a[n, i]) / np.linalg.norm(b[n, i])
        for n, length in enumerate(LENGTHS)
        for i in range(length)
    ]
    assert hidden_cosine(s, t, REAL).item() == pytest.approx(np.mean(of_tokens), rel=1e-5)
    assert hidden_cosine(s * 7, s, REAL).item() == pytest.approx(0, abs=1e-6)
    assert hidden_cosine(-s, s, REAL).item() == pytest.approx(2, rel=1e-6)


def test_attention_scores_equal_reference() -> None:
    s, t = arguments("attention_scores")
    a, b = arrays(s, t)
    pairs = [(n, h, i, j) for n, k in enumerate(LENGTHS) for h, i, j in product(range(4), range(k), range(k))]
    expected = np.mean([(a[place] - b[place]) ** 2 for place in pairs])
    assert attention_scores(s, t, REAL).item() == pytest.approx(expected, rel=1e-5)


def test_attention_scores_of_other_heads_are_averaged_over_them() -> None:
    s, t = draw(3, 2, 5, 5, seed=1), draw(3, 4, 5, 5, seed=2)
    a, b = (x.mean(1) for x in arrays(s, t))
    expected = np.mean([(a[n, :k, :k] - b[n, :k, :k]).flatten() ** 2 for n, k in enumerate(LENGTHS) if k == 5])
    whole = torch.tensor([[False] * 5, [True] * 5, [False] * 5])
    assert attention_scores(s, t, whole).item() == pytest.approx(expected, rel=1e-5)


def relation(a: list[Array], b: list[Array]) -> float:
    """Mean KL(b || a) of the rows of softmaxed square scores, one array (H, k, k) for each text."""
    rows = []
    for x, y in zip(a, b, strict=True):
        q, p = softmax(x), softmax(y)
        rows += list((p * np.log(p / q)).sum(-1).mean(0))
    return float(np.mean(rows))


def test_attention_relation_equals_reference() -> None:
    s, t = arguments("attention_relation")
    cut = [[x[n, :, :k, :k] for n, k in enumerate(LENGTHS)] for x in arrays(s, t)]
    assert attention_relation(s, t, REAL).item() == pytest.approx(relation(*cut), rel=1e-5)


def test_attention_relation_of_other_heads_compares_mean_distributions() -> None:
    s, t = draw(1, 2, 4, 4, seed=1), draw(1, 6, 4, 4, seed=2)
    q, p = (softmax(x)[0].mean(0) for x in arrays(s, t))
    expected = (p * np.log(p / q)).sum(-1).mean()
    assert attention_relation(s, t, torch.ones(1, 4, dtype=torch.bool)).item() == pytest.approx(expected, rel=1e-5)


def heads(values: Array, count: int) -> list[Array]:
    """softmax arguments V V^T / sqrt(d) of each text, its values (H, L, d) cut into ``count`` heads."""
    found = []
    for n, k in enumerate(LENGTHS):
        side_by_side = np.concatenate(list(values[n, :, :k]), axis=1)  # (k, H*d)
        pieces = np.split(side_by_side, count, axis=1)
        found.append(np.stack([v @ v.T / np.sqrt(v.shape[1]) for v in pieces]))
    return found


@pytest.mark.parametrize(
    ("ours", "theirs", "asked", "count"), [((4, 6), (4, 6), 0, 4), ((4, 3), (6, 8), 0, 2), ((4, 6), (2, 12), 12, 12)]
)
def test_value_relation_equals_reference(
    ours: tuple[int, int], theirs: tuple[int, int], asked: int, count: int
) -> None:
    s, t = (draw(3, h, 5, d, seed=i) / 2 for i, (h, d) in enumerate((ours, theirs)))
    a, b = arrays(s, t)
    got = value_relation(s, t, REAL, relation_heads=asked).item()
    assert got == pytest.approx(relation(heads(a, count), heads(b, count)), rel=1e-4)


def test_relation_heads_must_divide_the_width() -> None:
    s, t = arguments("value_relation")
    with pytest.raises(UsageError, match="24 wide cannot be cut into 5"):
        value_relation(s, t, REAL, relation_heads=5)


def test_value_relation_does_not_see_a_rotation_of_the_values() -> None:
    s, t = arguments("value_relation")
    turn = torch.linalg.qr(draw(6, 6, seed=5)).Q
    assert value_relation(s @ turn, t, REAL).item() == pytest.approx(value_relation(s, t, REAL).item(), rel=1e-4)


@pytest.mark.parametrize("name", TEXT_LOSSES)
def test_zero_at_the_teacher_positive_elsewhere_and_float32(name: str) -> None:
    s, t = arguments(name)
    fn = LOSSES[name].fn
    assert fn(t, t, REAL).item() == pytest.approx(0, abs=1e-6)
    assert fn(s, t, REAL).item() > 1e-2
    low = fn(s.bfloat16(), t.bfloat16(), REAL)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(fn(s.bfloat16().float(), t.bfloat16().float(), REAL).item(), rel=1e-6)


@pytest.mark.parametrize("name", TEXT_LOSSES)
def test_padding_counts_for_nothing(name: str) -> None:
    """Neither what stands there, nor how much of it there is."""
    s, t = arguments(name)
    fn = LOSSES[name].fn
    expected = fn(s, t, REAL).item()
    other = arguments(name, seeds=(8, 9))
    token = REAL[:, :, None] if s.ndim == 3 else REAL[:, None, :, None]
    if LOSSES[name].needs == "scores":
        token = token & REAL[:, None, None, :]
    changed = [torch.where(token, mine, noise) for mine, noise in zip((s, t), other, strict=True)]
    assert fn(*changed, REAL).item() == pytest.approx(expected, rel=1e-5)
    one = [x[:1, :3] if x.ndim == 3 else x[:1, :, :3] for x in (s, t)]
    one = [x[..., :3] if LOSSES[name].needs == "scores" else x for x in one]
    alone = fn(*one, REAL[:1, :3]).item()
    assert fn(s[:1], t[:1], REAL[:1]).item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("name", TEXT_LOSSES)
def test_edges_stay_finite(name: str) -> None:
    s, t = arguments(name)
    fn = LOSSES[name].fn
    for scale, real in [(1, torch.zeros_like(REAL)), (0, REAL), (1e3, REAL)]:
        ours, theirs = (s * scale).requires_grad_(), t * max(scale, 1)
        loss = fn(ours, theirs, real)
        (grad,) = torch.autograd.grad(loss, ours)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()
    assert fn(s, t, torch.zeros_like(REAL)).item() == 0


def test_arguments_are_checked_by_their_signature() -> None:
    check_arguments("value_relation", {"relation_heads": 12})
    for bad in (-1, 1.5, "all"):
        with pytest.raises(UsageError, match="relation_heads"):
            check_arguments("value_relation", {"relation_heads": bad})
    with pytest.raises(UsageError, match="unexpected keyword"):
        check_arguments("hidden", {"temperature": 1.0})


# ---- taps


def tiny(kind: str = "bert", count: int = 3, **fields: Any) -> text.TextNet:
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_hidden_layers": count, "num_attention_heads": 4, "intermediate_size": 32}
    net = text.from_config(
        kind,
        settings | fields,
        task="text-classification",
        classes=3,
        vocabulary_size=40,
        max_length=16,
        pad_id=0,
    )
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


IDS = torch.tensor([[5, 6, 7, 0, 0], [5, 9, 11, 12, 3]], dtype=torch.int32)


def tapped(net: text.TextNet, *indices: int) -> Outputs:
    with torch.no_grad(), TextTap(net, indices, hidden=True, scores=True, values=True, embeddings=True) as tap:
        return tap.outputs(net(IDS))


KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "distilbert": {},
    "deberta-v2": {},
    "modernbert": {},
    "gpt2": {},
    "t5": {"d_kv": 4},
    "llama": {"num_key_value_heads": 2},
    "electra": {"embedding_size": 8},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_shows_its_states(kind: str) -> None:
    net = tiny(kind, **KINDS[kind])
    out = tapped(net, 0, 2)
    own_values = 2 if kind == "llama" else 4
    assert [tuple(x.shape) for x in out.hidden] == [(2, 5, 16)] * 2
    assert [tuple(x.shape) for x in out.scores] == [(2, 4, 5, 5)] * 2
    assert [tuple(x.shape) for x in out.values] == [(2, own_values, 5, 4)] * 2
    assert [tuple(x.shape) for x in out.embeddings] == [(2, 5, layers(net)[0].embedding_width)]
    assert out.real is not None
    assert torch.equal(out.real, IDS != 0)
    assert not torch.equal(out.scores[0], out.scores[1])
    assert all(not module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
def test_scores_and_values_are_those_of_the_models_own_attention(kind: str) -> None:
    """Where nothing is added to QK^T, softmax of the tapped scores is the attention that transformers reports."""
    net = tiny(kind)
    out = tapped(net, 0, 1, 2)
    net.backbone.set_attn_implementation("eager")  # type: ignore[operator]
    places = torch.arange(5).unsqueeze(0)
    with torch.no_grad():
        theirs = net.backbone(
            input_ids=IDS.long(),
            attention_mask=net._mask(IDS != 0),
            position_ids=places,
            output_attentions=True,
            output_hidden_states=True,
        )
    keys = (IDS != 0)[:, None, None, :]
    for i in range(3):
        ours = torch.softmax(out.scores[i].masked_fill(~keys, -1e4), dim=3)
        assert torch.allclose(ours[1], theirs.attentions[i][1], atol=1e-6)
        assert torch.allclose(ours[0, :, :3], theirs.attentions[i][0, :, :3], atol=1e-6)
    assert torch.allclose(out.embeddings[0], theirs.hidden_states[0], atol=1e-6)
    assert torch.allclose(out.hidden[0], theirs.hidden_states[1], atol=1e-6)
    assert torch.allclose(out.hidden[1], theirs.hidden_states[2], atol=1e-6)


def test_outputs_let_go_and_a_layer_too_many_is_refused() -> None:
    net = tiny()
    with TextTap(net, [1], hidden=True) as tap:
        out = tap.outputs(net(IDS))
        assert not tap._seen
    out.hidden[0].sum().backward()  # type: ignore[no-untyped-call]
    assert net.word_embeddings.weight.grad is not None
    assert out.scores == out.values == out.embeddings == ()
    with pytest.raises(UsageError, match="no layer 3"):
        TextTap(net, [3])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"), [(4, 12, [2, 5, 8, 11]), (2, 3, [0, 2]), (3, 3, [0, 1, 2]), (4, 2, [0, 0, 0, 1])]
)
def test_layers_are_matched_uniformly(ours: int, theirs: int, expected: list[int]) -> None:
    pairs = match_layers(tiny(count=ours), tiny(count=theirs))
    assert [pair.teacher.number for pair in pairs] == expected
    assert [pair.student.number for pair in pairs] == list(range(ours))


# ---- the total


@pytest.mark.parametrize("student_width", [16, 24])
def test_all_terms_of_texts_are_summed_and_their_projections_learn(student_width: int) -> None:
    student, teacher = tiny(count=2, hidden_size=student_width), tiny(count=4)
    terms = [Term(name, weight=0.5 + i) for i, name in enumerate(("kl", *TEXT_LOSSES))]
    loss = DistillationLoss(terms, pairs=match_layers(student, teacher))
    with text_tap(student, loss, "student") as ours, text_tap(teacher, loss, "teacher") as theirs:
        parts = loss(ours.outputs(student(IDS)), theirs.outputs(teacher(IDS)), torch.tensor([0, 2]))
    assert list(parts) == ["hard", "kl", *TEXT_LOSSES, "total"]
    expected = parts["hard"] + sum(t.weight * parts[t.name] for t in terms)
    assert parts["total"].item() == pytest.approx(float(expected), rel=1e-5)
    parts["total"].backward()
    learned = 0 if student_width == 16 else 4  # two layers, the cosine's last one, the embeddings
    assert [tuple(p.shape) for p in loss.parameters()] == [(16, 24)] * learned
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_student_equal_to_its_teacher_costs_nothing() -> None:
    teacher = tiny()
    student = text.student_of(teacher, [0, 1, 2]).eval()
    loss = DistillationLoss([Term(name) for name in TEXT_LOSSES], hard_weight=0.0, pairs=match_layers(student, teacher))
    with text_tap(student, loss, "student") as ours, text_tap(teacher, loss, "teacher") as theirs:
        parts = loss(ours.outputs(student(IDS)), theirs.outputs(teacher(IDS)), torch.tensor([0, 2]))
    assert parts["total"].item() == pytest.approx(0, abs=1e-5)


def test_only_the_last_pair_is_kept_where_no_term_looks_at_others() -> None:
    pairs = match_layers(tiny(count=2), tiny(count=4))
    assert DistillationLoss([Term("value_relation"), Term("hidden_cosine")], pairs=pairs).pairs == pairs[-1:]
    assert DistillationLoss([Term("value_relation"), Term("hidden")], pairs=pairs).pairs == pairs
    assert DistillationLoss([Term("kl")], pairs=pairs).pairs == ()


def test_states_without_pairs_unlike_attention_and_unlike_tokenizers_are_refused() -> None:
    with pytest.raises(UsageError, match="matched layers"):
        DistillationLoss([Term("hidden")])
    layer = Layer(0, 16, 4, 16)
    with pytest.raises(UsageError, match="decoder"):
        DistillationLoss([Term("attention_scores")], pairs=[LayerPair(layer, layer._replace(causal=True))])
    loss = DistillationLoss([Term("hidden")], pairs=[LayerPair(layer, layer)])
    ours = Outputs(draw(2, 3), hidden=(draw(2, 5, 16),), real=torch.ones(2, 5, dtype=torch.bool))
    theirs = Outputs(draw(2, 3), hidden=(draw(2, 7, 16),), real=torch.ones(2, 7, dtype=torch.bool))
    with pytest.raises(UsageError, match="same tokenizer"):
        loss(ours, theirs, torch.tensor([0, 1]))
