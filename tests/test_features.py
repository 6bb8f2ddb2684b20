"""Feature taps, stage matching and projections on small real networks."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from distilledge.models.errors import UsageError
from distilledge.models.features import FeatureTap, Projection, as_map, match_stages, stages


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=4).eval()
    return model


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("test_efficientnet", 160), ("test_vit", 160), ("test_convnext", 160), ("swin_tiny_patch4_window7_224", 224)],
)
def test_every_stage_gives_the_map_it_promises(name: str, size: int) -> None:
    model = small(name)
    found = stages(model)
    with torch.no_grad(), FeatureTap(model, [s.module for s in found], embedding=True) as tap:
        out = tap.outputs(model(torch.randn(2, 3, size, size)))
    assert [tuple(f.shape) for f in out.features] == [
        (2, s.channels, size // s.reduction, size // s.reduction) for s in found
    ]
    assert out.embedding is not None
    assert out.embedding.shape[0] == 2
    assert torch.allclose(model.get_classifier()(out.embedding), out.logits, atol=1e-6)  # type: ignore[operator]


def test_hooks_go_away_even_after_an_error() -> None:
    model = small("test_efficientnet")
    seen = []

    def fail_inside() -> None:
        with FeatureTap(model, [stages(model)[0].module], embedding=True):
            seen.append(hooks(model))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert seen == [2]
    assert hooks(model) == 0


def test_outputs_let_go_of_what_was_recorded_and_keep_gradients() -> None:
    model = small("test_efficientnet")
    with FeatureTap(model, [stages(model)[-1].module]) as tap:
        out = tap.outputs(model(torch.randn(1, 3, 64, 64)))
        assert not tap._seen
    out.features[0].sum().backward()  # type: ignore[no-untyped-call]
    assert model.conv_stem.weight.grad is not None  # type: ignore[union-attr]


def test_tokens_become_the_map_they_were_cut_from() -> None:
    grid = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    tokens = torch.cat([torch.full((2, 2, 3), -1.0), grid.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(as_map(tokens, prefix_tokens=2), grid)
    assert torch.equal(as_map(grid.permute(0, 2, 3, 1), channels_last=True), grid)


def test_pyramids_are_matched_by_reduction() -> None:
    pairs = match_stages(small("mobilenetv1_100"), small("resnet18"), count=3)
    assert [(p.student.reduction, p.teacher.module) for p in pairs] == [(8, "layer2"), (16, "layer3"), (32, "layer4")]


def test_a_plain_transformer_is_matched_by_depth() -> None:
    pairs = match_stages(small("tf_efficientnet_lite0"), small("deit_tiny_patch16_224"), count=2)
    assert [(p.student.module, p.teacher.module) for p in pairs] == [
        ("blocks.4", "blocks.9"),
        ("blocks.6", "blocks.11"),
    ]


def test_projection_reaches_the_teachers_shape_from_either_side() -> None:
    projection = Projection(3, 5)
    for ours in (2, 7, 14):
        assert projection(torch.randn(2, 3, ours, ours), torch.zeros(2, 5, 7, 7)).shape == (2, 5, 7, 7)
    constant = projection(torch.ones(1, 3, 2, 2), torch.zeros(1, 5, 9, 9))
    assert torch.allclose(constant, constant[..., :1, :1].expand_as(constant))


def test_unknown_modules_and_models_without_stages_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no module 'blocks\.99'"):
        FeatureTap(small("test_efficientnet"), ["blocks.99"])
    with pytest.raises(UsageError, match="no recorded feature stages"):
        stages(nn.Sequential(nn.Conv2d(3, 4, 3)))
