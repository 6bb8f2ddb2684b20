"""Strategies of the teacher, in numbers: each against a reference written apart from it. Nothing is trained."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from distilledge.models import penalties, text, transfer, vision, vision_lora
from distilledge.models.errors import GateFailedError, UsageError
from distilledge.models.neighbours import Features, NearestNeighbours
from distilledge.models.transfer import Tuning, layer_groups
from distilledge.pipeline import recipe_strategy
from distilledge.pipeline import transfer as chain
from distilledge.pipeline.chain import Chain
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.recipe_data import Target
from distilledge.pipeline.report.fits import fit_words, transfer_words
from distilledge.pipeline.run import _raise_transfer
from distilledge.pipeline.steps import steps
from distilledge.pipeline.store import Store, Stored
from distilledge.pipeline.training import feature_cache
from distilledge.pipeline.training.compare import judged
from distilledge.pipeline.training.strategies import STRATEGIES

MODELS = ("test_vit", "test_efficientnet", "test_resnet", "mobilenetv3_small_050", "test_convnext")


def model(name: str = "test_efficientnet", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return vision.create(name, classes=3, size=32)


def bert() -> text.TextNet:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return text.from_config(
        "bert", sizes, task="text-classification", classes=3, vocabulary_size=50, max_length=12, pad_id=0
    )


# --- the recipe


def teacher(strategy: Any, **rest: Any) -> Recipe:
    return Recipe.model_validate({"name": "t", "teacher": {"weights": "hub", "strategy": strategy, **rest}})


def test_every_strategy_has_its_arguments() -> None:
    assert list(STRATEGIES) == list(recipe_strategy.ARGUMENTS)
    for name in STRATEGIES:
        arguments = {"source": "."} if name == "ewc" else {}
        own = {"model": "clip:some/clip", "weights": "hub"} if name == "zero-shot" else {}
        made = teacher({"name": name, "arguments": arguments}, **own)
        target = {"target": Target(path=".")} if name in recipe_strategy.ADAPTING else {}
        check_recipe(made.model_copy(update={"data": made.data.model_copy(update=target)}))


def test_a_bare_name_is_a_strategy_and_the_default_is_in_no_fingerprint() -> None:
    assert teacher("l2-sp").teacher.strategy == recipe_strategy.Strategy(name="l2-sp")
    assert chain.strategy_inputs(teacher("fine-tune", check_transfer=True).teacher) == {}
    named = chain.strategy_inputs(teacher({"name": "fine-tune", "arguments": {"layers": 2}}).teacher)
    assert named == {"strategy": {"name": "fine-tune", "arguments": {"layers": 2}}}


@pytest.mark.parametrize(
    ("strategy", "rest", "said"),
    [
        ("fine-tun", {}, "did you mean `fine-tune`"),
        ("nonsense-altogether", {}, "choose from fine-tune, "),
        ({"name": "progressive", "arguments": {"epoch": 2}}, {}, "did you mean `epochs`"),
        ({"name": "progressive", "arguments": {"by": "mood"}}, {}, "epoch' or 'plateau'"),
        ({"name": "l2-sp", "arguments": {"alpha": -1}}, {}, "greater than or equal to 0"),
        ("l2-sp", {"weights": "none"}, "starts from random weights"),
        ("l2-sp", {"training": {"freeze_backbone": True}}, "freeze_backbone"),
        ("discriminative", {"training": {"layer_decay": 0.5}}, "layer_decay"),
        ("fine-tune", {"weights": "none", "check_transfer": True}, "which the teacher has"),
        ("fine-tune", {"require_positive_transfer": True}, "needs the comparison"),
    ],
)
def test_what_cannot_be_meant_is_said(strategy: Any, rest: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match="E2016") as error:
        check_recipe(teacher(strategy, **rest))
    assert said in f"{error.value.what} {error.value.hint}"


def test_from_scratch_is_the_same_teacher_without_what_it_was_given() -> None:
    given = teacher("progressive", training={"epochs": 7, "lr": 0.5, "layer_decay": 0.5})
    plain = chain.from_scratch(given)
    assert plain.teacher.weights == "none"
    assert recipe_strategy.is_default(plain.teacher.strategy)
    assert plain.teacher.training == given.teacher.training.model_copy(update={"layer_decay": 1.0})
    assert plain.student == given.student


# --- groups, schedules, modes


@pytest.mark.parametrize("name", MODELS)
def test_groups_hold_every_parameter_once_and_end_with_the_head(name: str) -> None:
    net = model(name)
    groups = layer_groups(net)
    flat = [n for names in groups for n in names]
    assert sorted(flat) == sorted(n for n, _ in net.named_parameters())
    (head,) = vision.head_names(net)
    assert all(n.startswith(f"{head}.") for n in groups[-1])
    assert not any(n.startswith(f"{head}.") for names in groups[:-1] for n in names)
    assert len(groups) > 3


def test_groups_of_a_text_model_are_its_layers() -> None:
    groups = layer_groups(bert())
    assert len(groups) == 5  # embeddings, three layers, head
    assert all("layer.1." in name for name in groups[2])
    assert groups[-1] == ("head.1.weight", "head.1.bias")


def test_gradual_unfreezing_by_epoch() -> None:
    """ULMFiT: the head, then one group more each epoch (here: each second), until all are thawed."""
    assert [transfer.by_epoch(1)(e, (), 4) for e in range(6)] == [1, 2, 3, 4, 4, 4]
    assert [transfer.by_epoch(2)(e, (), 3) for e in range(6)] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_unfreezing_by_plateau_is_what_a_watcher_with_a_memory_does(patience: int) -> None:
    """The reference is told each epoch's value once and remembers; ours sees the whole curve each time."""
    values = np.random.default_rng(patience).integers(0, 6, 40).astype(float).tolist()
    opened = transfer.by_plateau(patience)
    best, since, count = -1.0, 0, 1
    for epoch, value in enumerate(values):
        assert opened(epoch, values[:epoch], 6) == min(count, 6)
        if value > best:
            best, since = value, 0
        else:
            since += 1
        if since == patience:
            count, since = count + 1, 0
    assert count > 2


def test_frozen_batchnorm_keeps_its_statistics_and_open_groups_learn() -> None:
    net = model()
    groups = layer_groups(net)
    Tuning(groups, opened=transfer.by_epoch(1)).begin_epoch(net, 1, ())  # the head and the group below it
    before = {n: b.clone() for n, b in net.named_buffers() if "running_mean" in n}
    net(torch.randn(4, 3, 32, 32)).sum().backward()
    moved = {n.rpartition(".")[0] for n, b in net.named_buffers() if n in before and not torch.equal(b, before[n])}
    open_names = {*groups[-1], *groups[-2]}
    assert moved == {n.rpartition(".")[0] for n in open_names if ".bn" in n or n.startswith("bn")}
    assert moved
    assert {n for n, p in net.named_parameters() if p.grad is not None} == open_names


def test_dropout_of_a_frozen_layer_is_off() -> None:
    net = bert()
    Tuning(layer_groups(net), top=2).thaw(net, 2)
    layers = net.backbone.get_submodule("encoder.layer")
    modes = [[m.training for m in layer.modules() if isinstance(m, nn.Dropout)] for layer in layers]
    assert modes[0]
    assert [set(m) for m in modes] == [{False}, {False}, {True}]


def test_rates_fall_geometrically_from_the_head_down_and_biases_do_not_decay() -> None:
    net = model()
    groups = layer_groups(net)
    made = Tuning(groups, decay=0.5).parameter_groups(net, lr=0.8, weight_decay=0.1)
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in made for p in g["params"]}
    named = dict(net.named_parameters())
    assert len(rate) == len(named)
    for below, names in enumerate(reversed(groups)):
        for name in names:
            expected = (0.8 / 2**below, 0.1 if named[name].ndim > 1 else 0.0)
            assert rate[id(named[name])] == pytest.approx(expected)


def test_the_top_layers_alone_are_in_the_optimizer() -> None:
    net = model("test_vit")
    groups = layer_groups(net)
    made = Tuning(groups, top=3).parameter_groups(net, lr=1e-3, weight_decay=0.0)
    named = {id(p): n for n, p in net.named_parameters()}
    assert {named[id(p)] for g in made for p in g["params"]} == {n for names in groups[-3:] for n in names}
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {n for names in groups[-3:] for n in names}


# --- penalties


class Softmax(nn.Module):
    """Two linear layers without anything between, so that gradients have a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def test_l2_sp_is_equation_3_of_its_paper() -> None:
    """alpha/2 ||w_S - w_S^0||^2 + beta/2 ||w_head||^2, and its gradient, by numpy."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    start = copy.deepcopy(net.float())
    penalty = penalties.l2_sp(net, ("1.weight", "1.bias"), alpha=0.3, beta=0.02)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    value = penalty(net)
    value.backward()
    value = value.detach()
    body, head = 0.0, 0.0
    for (name, p), (_, p0) in zip(net.named_parameters(), start.named_parameters(), strict=True):
        now, then = (t.detach().numpy().astype(np.float64) for t in (p, p0))
        gradient = p.grad.numpy()  # type: ignore[union-attr]
        if name.startswith("1."):
            head += float((now**2).sum())
            np.testing.assert_allclose(gradient, 0.02 * now, rtol=1e-5)
        else:
            body += float(((now - then) ** 2).sum())
            np.testing.assert_allclose(gradient, 0.3 * (now - then), rtol=1e-5)
    assert float(value) == pytest.approx(0.3 / 2 * body + 0.02 / 2 * head, rel=1e-6)


def test_the_fisher_information_is_that_of_logistic_regression() -> None:
    """Of p = softmax(W x + b): E_y[(dlog p_y/dW_ci)^2] = p_c (1 - p_c) x_i^2, the mean over samples."""
    torch.manual_seed(1)
    net, inputs = Softmax(), torch.randn(1500, 4)
    found = penalties.diagonal_fisher(net, inputs.split(500), ["body.weight", "body.bias"], seed=5)
    scores = inputs.numpy() @ net.body.weight.detach().numpy().T + net.body.bias.detach().numpy()
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = np.einsum("nc,ni->ci", p * (1 - p), inputs.numpy() ** 2) / len(inputs)
    np.testing.assert_allclose(found["body.weight"].numpy(), expected, rtol=0.15)
    np.testing.assert_allclose(found["body.bias"].numpy(), (p * (1 - p)).mean(0), rtol=0.15)
    again = penalties.diagonal_fisher(net, inputs.split(300), ["body.weight"], seed=5)
    assert torch.allclose(again["body.weight"], found["body.weight"], rtol=1e-4)  # batches do not matter


def test_ewc_pulls_a_quadratic_to_its_closed_minimum() -> None:
    """min_w 1/2 (w - a)^2 + lambda/2 F (w - w0)^2 is at (a + lambda F w0) / (1 + lambda F), for each weight."""
    net = Softmax()
    rng = np.random.default_rng(0)
    aim, start = rng.normal(size=(3, 4)), net.body.weight.detach().numpy().astype(np.float64).copy()
    fisher = rng.uniform(0, 2, (3, 4))
    penalty = penalties.ewc(net, {"body.weight": torch.tensor(fisher, dtype=torch.float32)}, strength=1.7)
    optimizer = torch.optim.SGD([net.body.weight], lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = 0.5 * (net.body.weight - torch.tensor(aim, dtype=torch.float32)).square().sum() + penalty(net)
        loss.backward()
        optimizer.step()
    expected = (aim + 1.7 * fisher * start) / (1 + 1.7 * fisher)
    np.testing.assert_allclose(net.body.weight.detach().numpy(), expected, atol=1e-5)


# --- frozen features


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_features_are_what_timm_gives_its_classifier(name: str) -> None:
    net: Any = model(name).eval()
    pictures = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(pictures), pre_logits=True)
        assert torch.equal(Features(net)(pictures), expected)


def test_features_of_a_model_whose_head_is_not_its_end_are_refused() -> None:
    net: Any = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, img_size=32, depth=1)
    with pytest.raises(UsageError, match="E2463"):
        Features(net)
    tagger = text.with_task(bert(), "token-classification", 3)
    with torch.no_grad(), pytest.raises(UsageError, match="E2464"):
        Features(tagger.eval())(torch.tensor([[5, 6, 7]]))


def test_neighbours_vote_as_scikit_learn_lets_them() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(3)
    bank, asked = rng.normal(size=(60, 8)).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    labels = rng.integers(0, 4, 60)
    reference = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(bank, labels)
    head = NearestNeighbours(60, 8, 4, k=7, temperature=0.07)
    head.fill(torch.from_numpy(bank), torch.eye(4)[torch.from_numpy(labels)])
    found = head(torch.from_numpy(asked)).exp().numpy()
    np.testing.assert_allclose(found, reference.predict_proba(asked).clip(1e-4), rtol=1e-3, atol=1e-6)
    for index in (0, 31):
        others = np.delete(np.arange(60), index)
        left = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=reference.weights)
        expected = left.fit(bank[others], labels[others]).predict_proba(bank[index : index + 1])
        np.testing.assert_allclose(head.left_out()[index].exp().numpy(), expected[0].clip(1e-4), rtol=1e-3, atol=1e-6)


def test_features_are_computed_once_and_a_damaged_file_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(feature_cache.cached(tmp_path, "k", lambda: made), made)

    def never() -> Any:
        raise AssertionError

    assert np.array_equal(feature_cache.cached(tmp_path, "k", never), made)
    path = tmp_path / "k" / feature_cache.FEATURES
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert np.array_equal(feature_cache.cached(tmp_path, "k", lambda: made + 1), made + 1)
    assert "damaged" in caplog.text
    path.unlink()
    assert np.array_equal(feature_cache.cached(tmp_path, "k", lambda: made), made)


def test_the_name_of_a_cache_is_its_content() -> None:
    net = model()
    body = feature_cache.state_hash(net.state_dict())
    with torch.no_grad():
        net.get_submodule("conv_stem").weight[0, 0, 0, 0] += 1e-6  # type: ignore[index,operator]
    other = feature_cache.state_hash(net.state_dict())
    digest = hashlib.sha256(b"x").hexdigest()
    keys = {
        feature_cache.cache_key([digest], body, {"size": 32}),
        feature_cache.cache_key([digest], other, {"size": 32}),
        feature_cache.cache_key([digest], body, {"size": 64}),
        feature_cache.cache_key([digest, digest], body, {"size": 32}),
    }
    assert len(keys) == 4
    assert feature_cache.cache_key([digest], body, {"size": 32}) in keys


# --- adapters of pictures


def test_merged_adapters_give_the_same_logits_as_w_plus_ba() -> None:
    net = model("test_vit").eval()
    adapted = vision_lora.add(net, rank=2, alpha=6.0).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(adapted(pictures), net(pictures))  # B is zero at first
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(0))
        merged = vision_lora.merge(adapted)
        assert not torch.allclose(adapted(pictures), net(pictures), atol=1e-2)
        assert torch.allclose(merged(pictures), adapted(pictures), atol=1e-5)
    assert merged.state_dict().keys() == net.state_dict().keys()
    own = dict(adapted.named_parameters())
    down, up = (own[f"blocks.0.attn.qkv.lora_{side}.default.weight"].detach().numpy() for side in "AB")
    start = net.state_dict()["blocks.0.attn.qkv.weight"].numpy()
    np.testing.assert_allclose(
        merged.state_dict()["blocks.0.attn.qkv.weight"].numpy(), start + 6.0 / 2 * up @ down, atol=1e-5
    )


def test_adapters_need_attention() -> None:
    with pytest.raises(UsageError, match="E2465"):
        vision_lora.add(model(), 2, 4.0)


# --- words


def curve(train: list[float], held: list[float]) -> list[dict[str, float]]:
    return [{"train_loss": t, "loss": v} for t, v in zip(train, held, strict=True)]


def test_trainings_in_words() -> None:
    over = fit_words("teacher", curve([1.0, 0.6, 0.3, 0.1], [1.0, 0.7, 0.8, 0.9]))
    assert "overfits. After epoch 2 of 4 its validation loss rose from 0.700 to 0.900 (gap to the training" in over
    assert "+0.10 there" in over
    assert "still falling" in fit_words("control", curve([1.0, 0.6, 0.3], [1.0, 0.7, 0.5]))
    assert "no sign" in fit_words("student", curve([1.0, 0.6, 0.5], [1.0, 0.70, 0.695]))
    assert "gap" not in fit_words("student", curve([1.0, 0.6, 0.1], [1.0, 0.7, 0.9]))
    assert "says nothing" in fit_words("teacher", curve([1.0], [1.0]))


def test_transfer_is_judged_by_the_paired_interval() -> None:
    labels = np.arange(200) % 4
    good, bad = np.ones(200, bool), np.ones(200, bool)
    good[:10], bad[:60] = False, False
    found = judged(good, bad, labels, metric="accuracy")
    assert found.gain.value == pytest.approx(25.0)
    assert found.outcome == "helped"
    assert judged(bad, good, labels, metric="accuracy").outcome == "hurt"
    assert judged(good, np.roll(good, 5), labels, metric="accuracy").outcome == "undecided"
    assert "Transfer helped: the teacher has 95.0 % accuracy, the same model" in transfer_words(found)
    assert "+25.0 points [" in transfer_words(found)


@pytest.mark.parametrize(
    ("wanted", "better", "stops"), [(True, True, False), (True, False, True), (False, False, False)]
)
def test_a_recipe_that_demands_transfer_stops_without_it(
    wanted: bool, better: bool, stops: bool, tmp_path: Path
) -> None:
    labels = np.arange(80) % 4
    good, bad = np.ones(80, bool), labels > 1
    found = judged(*((good, bad) if better else (bad, good)), labels, metric="accuracy")
    made = teacher("fine-tune", check_transfer=True, require_positive_transfer=wanted)
    done = {"transfer": Stored(found, tmp_path, "f", cached=False, seconds=1.0)}
    run = Chain(made, Store(tmp_path), (), lambda _event: None, done)
    if not stops:
        _raise_transfer(run)
        return
    with pytest.raises(GateFailedError, match=r"E5020.*-50\.0 points") as error:
        _raise_transfer(run)
    assert error.value.exit_code == 5


def test_the_check_is_two_steps_and_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"w")
    own = {"name": "t", "data": {"path": "synthetic"}, "teacher": {"weights": str(weights)}}
    plain = {s.name: s.fingerprint for s in steps(Recipe.model_validate(own), {})}
    own["teacher"] |= {"check_transfer": True}
    checked = {s.name: s.fingerprint for s in steps(Recipe.model_validate(own), {})}
    assert set(checked) - set(plain) == {"scratch", "transfer"}
    assert plain.items() <= checked.items()
    own["teacher"] |= {"strategy": "l2-sp"}
    other = {s.name: s.fingerprint for s in steps(Recipe.model_validate(own), {})}
    assert other["scratch"] == checked["scratch"]
    assert other["teacher"] != checked["teacher"]
