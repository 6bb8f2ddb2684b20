"""Each loss against an independent numpy reference, its invariances and its edges."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from distilledge.models import metrics
from distilledge.models.errors import UsageError
from distilledge.models.features import Outputs, Stage, StagePair
from distilledge.models.losses import (
    LOSSES,
    attention,
    check_arguments,
    cross_entropy,
    dist,
    dkd,
    hint,
    kl,
    kl_standardised,
    one_hot,
    relational,
)
from distilledge.models.losses_total import DistillationLoss, Term, hard_labels

Array = npt.NDArray[np.float64]
PAIR = StagePair(Stage("a", 3, 16), Stage("b", 5, 16))
PICTURE_LOSSES = [name for name, spec in LOSSES.items() if not spec.of_texts]
LOGIT_LOSSES = [name for name, spec in LOSSES.items() if spec.needs == "logits"]


def draw(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def pair(*shape: int) -> tuple[Tensor, Tensor, Array, Array]:
    s, t = draw(*shape, seed=1), draw(*shape, seed=2)
    return s, t, s.double().numpy(), t.double().numpy()


def reference_kl(s: Array, t: Array, tau: float) -> float:
    p, q = softmax(t / tau), softmax(s / tau)
    return (
        float(
            np.mean(
                [sum(a * (np.log(a) - np.log(b)) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
            )
        )
        * tau**2
    )


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_kl_equals_reference(tau: float) -> None:
    s, t, s_, t_ = pair(6, 5)
    assert kl(s, t, temperature=tau).item() == pytest.approx(reference_kl(s_, t_, tau), rel=1e-5)


def test_kl_at_temperature_one_is_the_metric() -> None:
    s, t, s_, t_ = pair(6, 5)
    assert kl(s, t, temperature=1.0).item() == pytest.approx(metrics.kl(t_, s_), rel=1e-5)


def test_kl_standardised_equals_reference() -> None:
    s, t, s_, t_ = pair(6, 5)
    z, w = ((x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True) for x in (s_, t_))
    assert kl_standardised(s, t, temperature=2.0).item() == pytest.approx(reference_kl(z, w, 2.0), rel=1e-5)


def test_kl_standardised_ignores_scale() -> None:
    s, t, _, _ = pair(6, 5)
    assert kl_standardised(s * 7 + 3, t).item() == pytest.approx(kl_standardised(s, t).item(), rel=1e-4)


def test_dkd_equals_reference_row_by_row() -> None:
    s, t, s_, t_ = pair(4, 5)
    labels = [2, 0, 4, -1]
    rows = []
    for x, y, label in zip(softmax(s_ / 4), softmax(t_ / 4), labels, strict=True):
        if label < 0:
            continue
        q, p = np.array([x[label], 1 - x[label]]), np.array([y[label], 1 - y[label]])
        q_rest, p_rest = (np.delete(v, label) / np.delete(v, label).sum() for v in (x, y))
        rows.append(1.5 * (p * np.log(p / q)).sum() + 3.0 * (p_rest * np.log(p_rest / q_rest)).sum())
    got = dkd(s, t, torch.tensor(labels), alpha=1.5, beta=3.0, temperature=4.0)
    assert got.item() == pytest.approx(16 * np.mean(rows), rel=1e-5)


def test_dkd_is_kl_when_beta_is_the_teachers_doubt() -> None:
    """Equation 6: KL = TCKD + (1 - p_label) NCKD."""
    s, t, _, _ = pair(1, 5)
    label = torch.tensor([3])
    doubt = 1 - functional.softmax(t, 1)[0, 3].item()
    assert dkd(s, t, label, beta=doubt, temperature=1.0).item() == pytest.approx(
        kl(s, t, temperature=1.0).item(), rel=1e-4
    )


def test_dist_equals_reference() -> None:
    s, t, s_, t_ = pair(6, 5)
    p, q = softmax(s_ / 2), softmax(t_ / 2)
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    got = dist(s, t, beta=2.0, gamma=0.5, temperature=2.0).item()
    assert got == pytest.approx(4 * (2 * inter + 0.5 * intra), rel=1e-4)


def test_hint_equals_reference() -> None:
    s, t, s_, t_ = pair(2, 3, 4, 4)
    assert hint(s, t).item() == pytest.approx(((s_ - t_) ** 2).mean(), rel=1e-5)
    unit = [x / np.sqrt((x**2).mean((1, 2, 3), keepdims=True)) for x in (s_, t_)]
    assert hint(s, t, normalise=True).item() == pytest.approx(((unit[0] - unit[1]) ** 2).mean(), rel=1e-5)
    assert hint(s * 5, s, normalise=True).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_attention_equals_reference(power: int) -> None:
    s, t = draw(2, 3, 4, 4, seed=1), draw(2, 5, 8, 8, seed=2)
    small = t.double().numpy().reshape(2, 5, 4, 2, 4, 2).mean((3, 5))
    maps = [(np.abs(x) ** power).sum(1).reshape(2, -1) for x in (s.double().numpy(), small)]
    a, b = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps)
    assert attention(s, t, power=power).item() == pytest.approx(((a - b) ** 2).sum(1).mean(), rel=1e-5)


def reference_relational(s: Array, t: Array) -> tuple[float, float]:
    def huber(x: float) -> float:
        return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5

    n = len(s)
    d = [np.array([[np.linalg.norm(a - b) for a in e] for b in e]) for e in (s, t)]
    d = [x / x[x > 0].mean() for x in d]
    distance = np.mean([huber(d[0][i, j] - d[1][i, j]) for i in range(n) for j in range(n)])
    angle = 0.0
    for i, j, k in permutations(range(n), 3):
        cosines = [
            (e[j] - e[i]) @ (e[k] - e[i]) / np.linalg.norm(e[j] - e[i]) / np.linalg.norm(e[k] - e[i]) for e in (s, t)
        ]
        angle += huber(cosines[0] - cosines[1])
    return float(distance), angle / n**3


def test_relational_equals_reference() -> None:
    s, t = draw(4, 3, seed=1), draw(4, 6, seed=2)
    distance, angle = reference_relational(s.double().numpy(), t.double().numpy())
    assert relational(s, t, distance=1.0, angle=0.0).item() == pytest.approx(distance, rel=1e-4)
    assert relational(s, t, distance=0.0, angle=1.0).item() == pytest.approx(angle, rel=1e-4)
    assert relational(s, t, distance=2.0, angle=3.0).item() == pytest.approx(2 * distance + 3 * angle, rel=1e-4)


def test_relational_survives_one_picture_and_twins() -> None:
    one = draw(1, 3).requires_grad_()
    twins = draw(1, 3).repeat(3, 1).requires_grad_()
    for s in (one, twins):
        loss = relational(s, draw(len(s), 4))
        loss.backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(loss)
        assert s.grad is not None
        assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_equals_torch_and_skips_unlabelled(smoothing: float, weighted: bool) -> None:
    z, labels = draw(6, 4), torch.tensor([0, 3, -1, 2, 2, -1])
    weights = torch.tensor([0.2, 1.0, 3.0, 0.5]) if weighted else None
    expected = functional.cross_entropy(z, labels, weight=weights, label_smoothing=smoothing, ignore_index=-1)
    for targets in (labels, one_hot(labels, 4)):
        got = cross_entropy(z, targets, label_smoothing=smoothing, class_weights=weights)
        assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_cross_entropy_of_mixed_targets_equals_reference() -> None:
    z, mixed = draw(3, 4), torch.tensor([[0.3, 0.7, 0, 0], [0, 0, 0.5, 0.5], [0.6, 0, 0, 0]])  # the last: half unknown
    log_p = np.log(softmax(z.double().numpy()))
    expected = -(mixed.double().numpy() * log_p)[:2].sum(1).mean()
    assert cross_entropy(z, mixed).item() == pytest.approx(expected, rel=1e-5)
    assert hard_labels(mixed).tolist()[::2] == [1, -1]


def arguments(name: str, width: int = 6) -> tuple[Tensor, ...]:
    """Something each loss can take."""
    spec = LOSSES[name]
    shape = (5, 3, 4, 4) if spec.needs == "features" else (5, width)
    labels = (torch.tensor([0, 1, 2, -1, 4]),) if spec.labels else ()
    return draw(*shape, seed=3), draw(*shape, seed=4), *labels


@pytest.mark.parametrize("name", PICTURE_LOSSES)
def test_every_loss_is_zero_at_the_teacher_and_positive_elsewhere(name: str) -> None:
    s, t, *labels = arguments(name)
    fn = LOSSES[name].fn
    assert fn(t, t, *labels).item() == pytest.approx(0, abs=1e-4)
    assert fn(s, t, *labels).item() > 1e-3


@pytest.mark.parametrize("name", PICTURE_LOSSES)
def test_every_loss_computes_in_float32(name: str) -> None:
    s, t, *labels = arguments(name)
    s, t = s.bfloat16(), t.bfloat16()
    got = LOSSES[name].fn(s, t, *labels)
    assert got.dtype == torch.float32
    expected = LOSSES[name].fn(s.float(), t.float(), *labels).item()
    assert got.item() == pytest.approx(expected, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert LOSSES[name].fn(s, t, *labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_constant_added_to_the_logits_changes_nothing(name: str, shift: float, seed: int) -> None:
    s, t, *labels = arguments(name)
    s = s + draw(1, 6, seed=seed)
    fn = LOSSES[name].fn
    assert fn(s + shift, t - shift, *labels).item() == pytest.approx(fn(s, t, *labels).item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["kl", "dkd"])
def test_gradient_size_does_not_depend_on_a_high_temperature(name: str) -> None:
    norms = []
    for tau in (20.0, 40.0, 80.0):
        s, t, *labels = arguments(name)
        s.requires_grad_()
        (grad,) = torch.autograd.grad(LOSSES[name].fn(s, t, *labels, temperature=tau), s)
        norms.append(grad.norm().item())
    assert max(norms) / min(norms) < 1.15


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@pytest.mark.parametrize("tau", [1e-3, 0.1, 1e3])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_extreme_temperatures_and_logits_stay_finite(name: str, tau: float, scale: float) -> None:
    s, t, *labels = arguments(name)
    s = (s * scale).requires_grad_()
    loss = LOSSES[name].fn(s, t * scale, *labels, temperature=tau)
    (grad,) = torch.autograd.grad(loss, s)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", [n for n, s in LOSSES.items() if s.labels])
def test_losses_of_labels_skip_unlabelled_rows(name: str) -> None:
    s, t, labels = arguments(name)
    known = labels >= 0
    fn = LOSSES[name].fn
    assert fn(s, t, labels).item() == pytest.approx(fn(s[known], t[known], labels[known]).item(), rel=1e-6)
    assert fn(s, t, torch.full_like(labels, -1)).item() == 0


@pytest.mark.parametrize("name", PICTURE_LOSSES)
def test_defaults_of_every_loss_pass_their_own_check(name: str) -> None:
    defaults = LOSSES[name].fn.__kwdefaults__
    assert defaults
    check_arguments(name, defaults)


@pytest.mark.parametrize(
    ("name", "given_", "code", "says"),
    [
        ("klx", {}, "E2411", "choose from kl, "),
        ("kl", {"tau": 4.0}, "E2412", "unexpected keyword argument 'tau'"),
        ("dkd", {"labels": 1}, "E2412", "labels"),
        ("kl", {"temperature": 0.0}, "E2413", "greater than 0"),
        ("kl", {"temperature": float("nan")}, "E2413", "temperature=nan"),
        ("kl", {"temperature": "warm"}, "E2413", "valid number"),
        ("kl", {"temperature": True}, "E2413", "valid number"),
        ("attention", {"power": 1.5}, "E2413", "valid integer"),
    ],
)
def test_wrong_arguments_are_refused(name: str, given_: dict[str, float | str], code: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        check_arguments(name, given_)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


LABELS = torch.tensor([0, 1, 2, -1])


def outputs(seed: int, channels: int = 3) -> Outputs:
    return Outputs(draw(4, 6, seed=seed), (draw(4, channels, 4, 4, seed=seed),), draw(4, 7, seed=seed))


def test_total_is_the_weighted_sum_of_all_losses() -> None:
    torch.manual_seed(0)
    terms = [Term(name, weight=0.5 + i) for i, name in enumerate(PICTURE_LOSSES)]
    loss = DistillationLoss(terms, hard_weight=0.25, pairs=[PAIR])
    parts = loss(outputs(1), outputs(2, channels=5), LABELS)
    assert list(parts) == ["hard", *PICTURE_LOSSES, "total"]
    expected = 0.25 * parts["hard"] + sum(t.weight * parts[t.name] for t in terms)
    assert parts["total"].item() == pytest.approx(float(expected), rel=1e-5)
    parts["total"].backward()
    assert [tuple(p.shape) for p in loss.parameters()] == [(5, 3, 1, 1)]
    assert all(p.grad is not None for p in loss.parameters())


def test_edges_of_the_hard_weight() -> None:
    s, t = outputs(1), outputs(2)
    soft_only = DistillationLoss([Term("kl", 2.0, {"temperature": 3.0})], hard_weight=0.0)(s, t, LABELS)
    assert list(soft_only) == ["kl", "total"]
    assert soft_only["total"].item() == pytest.approx(2 * kl(s.logits, t.logits, temperature=3.0).item())
    hard_only = DistillationLoss([Term("kl", 0.0)], hard_weight=1.0, label_smoothing=0.1)(s, None, LABELS)
    assert list(hard_only) == ["hard", "total"]
    assert hard_only["total"].item() == pytest.approx(cross_entropy(s.logits, LABELS, label_smoothing=0.1).item())
    with pytest.raises(UsageError, match="nothing to train on"):
        DistillationLoss([], hard_weight=0.0)


def test_a_batch_without_labels_still_learns_from_the_teacher() -> None:
    s, t = outputs(1), outputs(2)
    parts = DistillationLoss([Term("kl")], hard_weight=0.5)(s, t, torch.full((4,), -1))
    assert parts["hard"].item() == 0
    assert parts["total"].item() == pytest.approx(kl(s.logits, t.logits).item())


def test_class_weights_and_soft_targets_reach_the_hard_loss() -> None:
    s, weights = outputs(1), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    loss = DistillationLoss(class_weights=weights)
    expected = functional.cross_entropy(s.logits, LABELS, weight=torch.tensor(weights), ignore_index=-1)
    for targets in (LABELS, one_hot(LABELS, 6)):
        assert loss(s, None, targets)["total"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert not loss.state_dict()


def test_the_teacher_gets_no_gradient_and_twin_terms_keep_their_names() -> None:
    t = Outputs(draw(4, 6).requires_grad_())
    s = Outputs(draw(4, 6, seed=1).requires_grad_())
    parts = DistillationLoss([Term("kl"), Term("dkd"), Term("kl", 1.0, {"temperature": 9.0})])(s, t, LABELS)
    parts["total"].backward()
    assert list(parts) == ["hard", "kl", "dkd", "kl_2", "total"]
    assert t.logits.grad is None
    assert s.logits.grad is not None


def test_features_without_pairs_are_refused() -> None:
    with pytest.raises(UsageError, match="matched stages"):
        DistillationLoss([Term("attention")])
