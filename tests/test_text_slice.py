"""A narrower student out of the teacher's weights: what it keeps, and which networks and widths are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_text_models import PAD, SEP, ids, padded, run, tiny
from torch import nn

from distilledge.models import text, text_slice
from distilledge.models.errors import UsageError

SAMPLE = [ids(16, 9, seed=1), padded(ids(16, 5, seed=2), 4)]


def scaled(net: text.TextNet, scale: float) -> text.TextNet:
    """Norms as trained ones are, but of one scale each: shifts of any kind."""
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.constant_(module.weight, scale)
            nn.init.normal_(module.bias, std=0.3)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.bias, std=0.2)
    return net


@pytest.mark.parametrize("kind", text_slice.PLACES)
def test_at_the_teacher_s_own_width_the_student_is_the_teacher(kind: str) -> None:
    teacher, given = scaled(tiny(kind), 0.7), padded(ids(4, 7), 2)
    student = text.narrowed(teacher, [0, 1, 2], {}, SAMPLE).eval()
    assert torch.allclose(run(student, given), run(teacher, given), atol=1e-4)
    trimmed = text.narrowed(teacher, [0, 1, 2], {}, SAMPLE, vocabulary=[PAD, 2, SEP, *range(20, 50)], unknown_id=2)
    assert trimmed.word_embeddings.weight.shape == (33, 16)
    known = 20 + ids(2, 9) % 30
    assert torch.allclose(run(trimmed.eval(), known), run(teacher, known), atol=1e-4)


@pytest.mark.parametrize("kind", text_slice.PLACES)
def test_a_narrower_student_is_nearer_to_the_teacher_than_chance(kind: str) -> None:
    teacher, given = scaled(tiny(kind, hidden_size=64, intermediate_size=128), 0.7), ids(64, 9)
    student = text.narrowed(teacher, [0, 1, 2], {"hidden_size": 48}, SAMPLE).eval()
    assert (student.config.hidden_size, student.config.num_attention_heads) == (48, 3)
    assert getattr(student.config, student.layout.intermediate) == 96
    ours, theirs = (run(net, given).numpy().ravel() for net in (student, teacher))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.6
    again = text.create(json.loads(json.dumps(student.architecture)))
    again.load_state_dict(student.state_dict())
    assert torch.equal(run(again.eval(), given), run(student, given))


def test_coordinates_of_the_axes_have_no_mean_and_stand_upright() -> None:
    states = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(12.0)
    axes = text_slice.principal(states.T @ states / 400, 6)
    assert torch.allclose(axes.sum(1), torch.zeros(12), atol=1e-5)
    reach = (axes @ axes.T).double().numpy()  # the projection onto what they span
    left = np.linalg.svd(states.double().numpy().T, full_matrices=False)[0][:, :5]
    np.testing.assert_allclose(reach, left @ left.T, atol=1e-5)


def test_the_neurons_and_heads_that_do_most_are_kept() -> None:
    teacher = tiny()
    places, layer = text_slice.PLACES["bert"], teacher.backbone.get_submodule("encoder.layer.0")
    loud = layer.get_submodule(places.narrow)
    with torch.no_grad():
        loud.weight[:, 5:] *= 1e-3  # type: ignore[index,operator]
        layer.get_submodule(places.mixed).weight[:, :8] *= 1e-3  # type: ignore[index,operator]
    kept = text_slice._heads(
        layer.get_submodule("attention.self.value"), layer.get_submodule(places.mixed), teacher.config, 8
    )
    assert kept.tolist() == list(range(8, 16))
    student = text.narrowed(teacher, [0], {"intermediate_size": 5}, SAMPLE)
    own = student.backbone.get_submodule("encoder.layer.0").get_submodule(places.narrow).weight
    before = text_slice.norm_before(teacher, 0)
    assert own.norm() > 0.9 * (loud.weight - loud.weight.mean(0)).norm() / before.weight.mean()  # type: ignore[operator]


def test_the_teacher_is_left_as_it_was() -> None:
    teacher = tiny().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    text.narrowed(teacher, [0], {"hidden_size": 8}, SAMPLE)
    assert teacher.training
    assert not any(m._forward_pre_hooks for m in teacher.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_a_language_model_s_head_starts_fresh() -> None:
    student = text.narrowed(tiny(task="masked-language-modelling"), [0], {"hidden_size": 8}, SAMPLE).eval()
    assert run(student, ids(1, 6)).shape == (1, 6, 60)


@pytest.mark.parametrize("kind", ["gpt2", "modernbert", "electra"])
def test_other_architectures_are_refused(kind: str) -> None:
    with pytest.raises(UsageError, match="cannot be made narrower") as error:
        text.narrowed(tiny(kind), [0], {"hidden_size": 8}, SAMPLE)
    assert error.value.code == "E2437"


@pytest.mark.parametrize(
    "fields", [{"hidden_size": 6}, {"hidden_size": 32}, {"intermediate_size": 64}, {"intermediate_size": 0}, {"x": 1}]
)
def test_widths_that_make_no_slice_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="takes hidden_size and intermediate_size") as error:
        text.narrowed(tiny(), [0], fields, SAMPLE)
    assert error.value.code == "E2438"
