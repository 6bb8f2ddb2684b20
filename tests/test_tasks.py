"""Every task's rows give the loss that the task is known by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distilledge.models.losses import LOSSES, cross_entropy, kl
from distilledge.models.tasks import IGNORED, TASKS
from distilledge.pipeline.recipe import METRICS


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def loss(task: str, logits: Tensor, targets: Tensor) -> float:
    return cross_entropy(*TASKS[task].rows(logits, targets)).item()


def test_every_task_of_a_recipe_is_here_and_two_language_models() -> None:
    assert {name for name, task in TASKS.items() if not task.language} == set(METRICS)
    assert {name for name, task in TASKS.items() if task.language} == {
        "masked-language-modelling",
        "causal-language-modelling",
    }


@pytest.mark.parametrize("task", ["image-classification", "text-classification"])
def test_classification_is_left_as_it_is(task: str) -> None:
    logits, targets = draw(4, 3), torch.tensor([0, 2, -1, 1])
    rows, classes = TASKS[task].rows(logits, targets)
    assert rows is logits
    assert classes is targets


def test_many_labels_give_binary_cross_entropy() -> None:
    logits, targets = draw(5, 4), torch.randint(0, 2, (5, 4), generator=torch.Generator().manual_seed(1))
    expected = functional.binary_cross_entropy_with_logits(logits, targets.float()).item()
    assert loss("multi-label-classification", logits, targets) == pytest.approx(expected, rel=1e-5)
    unlabelled = targets.clone()
    unlabelled[1] = -1
    known = [0, 2, 3, 4]
    assert loss("multi-label-classification", logits, unlabelled) == pytest.approx(
        loss("multi-label-classification", logits[known], targets[known]), rel=1e-5
    )


def test_many_labels_are_distilled_as_bernoullis() -> None:
    s, t, labels = draw(3, 4, seed=1), draw(3, 4, seed=2), torch.zeros(3, 4, dtype=torch.long)
    p, q = torch.sigmoid(t), torch.sigmoid(s)
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean().item()
    rows = TASKS["multi-label-classification"].rows
    got = kl(rows(s, labels)[0], rows(t, labels)[0], temperature=1.0).item()
    assert got == pytest.approx(expected, rel=1e-5)


def test_tokens_that_are_ignored_count_for_nothing_and_unlabelled_ones_are_distilled_only() -> None:
    logits = draw(2, 4, 3)
    targets = torch.tensor([[IGNORED, 2, -1, IGNORED], [IGNORED, 0, 1, IGNORED]])
    seen = torch.stack([logits[0, 1], logits[1, 1], logits[1, 2]])
    expected = functional.cross_entropy(seen, torch.tensor([2, 0, 1])).item()
    assert loss("token-classification", logits, targets) == pytest.approx(expected, rel=1e-5)
    rows, classes = TASKS["token-classification"].rows(logits, targets)
    assert classes.tolist() == [2, -1, 0, 1]
    assert torch.equal(rows[1], logits[0, 2])


def test_answers_give_the_mean_of_both_ends() -> None:
    logits, targets = draw(3, 6, 2), torch.tensor([[1, 4], [0, 5], [2, 2]])
    ends = [functional.cross_entropy(logits[:, :, i], targets[:, i]) for i in (0, 1)]
    assert loss("question-answering", logits, targets) == pytest.approx(float(sum(ends)) / 2, rel=1e-5)
    with_none = torch.tensor([[1, 4], [-1, -1], [2, 2]])
    assert loss("question-answering", logits, with_none) == pytest.approx(
        loss("question-answering", logits[[0, 2]], targets[[0, 2]]), rel=1e-5
    )


def test_masked_positions_of_an_answer_change_neither_the_loss_nor_its_gradient() -> None:
    short, targets = draw(2, 4, 2), torch.tensor([[1, 3], [0, 0]])
    padded = torch.cat([short, torch.full((2, 3, 2), -1e4)], 1)
    assert loss("question-answering", padded, targets) == pytest.approx(loss("question-answering", short, targets))
    rows = TASKS["question-answering"].rows
    teacher = draw(2, 4, 2, seed=3)
    wide = torch.cat([teacher, torch.full((2, 3, 2), -1e4)], 1)
    got, expected = (kl(rows(s, targets)[0], rows(t, targets)[0]) for s, t in ((padded, wide), (short, teacher)))
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_words_of_a_language_model_are_chosen_by_the_targets() -> None:
    targets = torch.tensor([[IGNORED, 7, IGNORED], [3, IGNORED, 9]])
    logits = draw(3, 11)
    expected = functional.cross_entropy(logits, torch.tensor([7, 3, 9])).item()
    assert loss("masked-language-modelling", logits, targets) == pytest.approx(expected, rel=1e-5)
    assert loss("causal-language-modelling", logits, targets) == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_any_row_costs_nothing() -> None:
    rows = TASKS["token-classification"].rows
    logits = draw(1, 3, 4).requires_grad_()
    ours, classes = rows(logits, torch.full((1, 3), IGNORED))
    total = cross_entropy(ours, classes)
    total.backward()  # type: ignore[no-untyped-call]
    assert total.item() == 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    for name, spec in LOSSES.items():
        if spec.needs == "logits":
            assert spec.fn(ours, ours.detach(), *((classes,) if spec.labels else ())).item() == 0, name


@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if spec.needs == "logits"])
def test_all_logit_losses_take_the_rows_of_all_tasks(name: str) -> None:
    shapes = {
        "text-classification": ((3, 4), torch.tensor([0, -1, 2])),
        "multi-label-classification": ((3, 4), torch.tensor([[0, 1, 1, 0], [-1, -1, -1, -1], [1, 0, 0, 0]])),
        "token-classification": ((2, 3, 4), torch.tensor([[IGNORED, 1, 2], [3, -1, IGNORED]])),
        "question-answering": ((2, 5, 2), torch.tensor([[1, 2], [-1, -1]])),
    }
    for task, (shape, targets) in shapes.items():
        (s, labels), (t, _) = (TASKS[task].rows(draw(*shape, seed=i), targets) for i in (1, 2))
        extra = (labels,) if LOSSES[name].labels else ()
        assert torch.isfinite(LOSSES[name].fn(s, t, *extra)), task
