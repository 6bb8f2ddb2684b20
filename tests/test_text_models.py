"""Text networks of every architecture: padding, heads, export, files good and bad, trimming, adapters, groups."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from distilledge.models import text, text_lora, training
from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.tasks import IGNORED, TASKS

KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "electra": {"embedding_size": 8},
    "distilbert": {},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "conv_kernel_size": 3,
    },
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "gpt2": {},
    "t5": {"d_kv": 4},
    "mt5": {"d_kv": 4},
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
}
CAUSAL = ("gpt2", "llama", "qwen2")
OFTEN = ("bert", "modernbert", "gpt2", "t5", "llama")
"""One of each family: the others share its code but for names, and are asked with the slow tests."""
EACH = [pytest.param(kind, marks=() if kind in OFTEN else pytest.mark.slow) for kind in KINDS]
PAD, SEP, WORDS = 1, 3, 60


def tiny(kind: str = "bert", task: str = "text-classification", *, layers: int = 3, **fields: Any) -> text.TextNet:
    """Weights large enough that a mistake shows in the logits."""
    settings = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 32}
    pooling = fields.pop("pooling", None)
    net = text.from_config(
        kind,
        settings | KINDS[kind] | fields,
        task=task,
        classes=2 if task == "question-answering" else 3,
        vocabulary_size=WORDS,
        max_length=32,
        pad_id=PAD,
        sep_id=SEP,
        pooling=pooling,
    )
    torch.manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def ids(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(4, WORDS, shape, generator=random, dtype=torch.int32)


def padded(given: Tensor, count: int) -> Tensor:
    return torch.cat([given, torch.full((len(given), count), PAD, dtype=given.dtype)], dim=1)


@torch.no_grad()
def run(net: text.TextNet, given: Tensor) -> Tensor:
    logits: Tensor = net(given)
    return logits


# ---- every architecture


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_padding_on_the_right_changes_no_class(kind: str, pooling: str) -> None:
    net, given = tiny(kind, pooling=pooling), ids(3, 12)
    logits = run(net, given)
    assert logits.shape == (3, 3)
    assert logits.std() > 0.01
    assert torch.allclose(run(net, padded(given, 17)), logits, atol=1e-5)
    mixed = padded(given[:, :5], 7)
    assert torch.allclose(run(net, torch.cat([given, mixed]))[3:], run(net, given[:, :5]), atol=1e-5)


@pytest.mark.parametrize("kind", EACH)
def test_padding_on_the_right_changes_no_token(kind: str) -> None:
    net, given = tiny(kind, "token-classification"), ids(2, 9)
    logits = run(net, given)
    assert logits.shape == (2, 9, 3)
    assert torch.allclose(run(net, padded(given, 11))[:, :9], logits, atol=1e-5)


@pytest.mark.parametrize("kind", EACH)
def test_answers_never_lie_in_the_padding(kind: str) -> None:
    net, given = tiny(kind, "question-answering"), ids(2, 9)
    given[:, 4] = SEP
    logits = run(net, padded(given, 5))
    assert logits.shape == (2, 14, 2)
    assert torch.equal(logits[:, 9:], torch.full((2, 5, 2), -1e4))
    assert torch.allclose(logits[:, :9], run(net, given), atol=1e-5)


@pytest.mark.parametrize("kind", EACH)
def test_only_decoders_do_not_look_ahead(kind: str) -> None:
    net, given = tiny(kind, "token-classification"), ids(1, 8)
    other = given.clone()
    other[0, 7] = 5 if given[0, 7] != 5 else 6
    change = (run(net, given) - run(net, other)).abs().amax(2)[0]
    assert (change[:4].max() < 1e-6) == (kind in CAUSAL)
    assert change[7] > 1e-3


@pytest.mark.parametrize("kind", EACH)
def test_an_architecture_is_json_and_its_state_fits_again(kind: str) -> None:
    net, given = tiny(kind), padded(ids(2, 7), 3)
    again = text.create(json.loads(json.dumps(net.architecture)))
    assert again.training
    again.load_state_dict(net.state_dict())
    assert torch.equal(run(again.eval(), given), run(net, given))
    assert again.architecture == net.architecture


@pytest.mark.parametrize("kind", EACH)
def test_states_are_those_of_transformers_own_forward_pass(kind: str) -> None:
    """Its own masks, positions and token types, where we make ours."""
    net, given = tiny(kind, "token-classification"), padded(ids(2, 9), 3)
    with torch.no_grad():
        ours, real = net.hidden(given)
        theirs = net.backbone(input_ids=given.long(), attention_mask=(given != PAD).long())[0]
    assert torch.allclose(ours[real], theirs[real], atol=1e-5)


@pytest.mark.parametrize("kind", EACH)
def test_gradients_reach_every_parameter(kind: str) -> None:
    net, given = tiny(kind).train(), padded(ids(2, 9), 3)
    net(given).square().sum().backward()
    unused = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert unused <= {f"backbone.{name}" for name in ("embeddings.token_type_embeddings.weight",)}


def export(net: text.TextNet, given: Tensor, *, dynamic: bool) -> Any:
    shapes = {"ids": {1: torch.export.Dim("length", min=2, max=32)}} if dynamic else None
    return torch.export.export(net, (given,), dynamic_shapes=shapes).module()


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "bert" else pytest.mark.slow) for k in KINDS])
@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
def test_every_architecture_exports_with_any_length(kind: str, task: str) -> None:
    net, given = tiny(kind, task), ids(1, 8)
    given[0, 3] = SEP
    moved = export(net, given, dynamic=True)
    for other in (given, padded(given, 9), ids(1, 5, seed=1)):
        assert torch.allclose(moved(other), run(net, other), atol=1e-5)
    fixed = export(net, padded(given, 8), dynamic=False)
    other = padded(ids(1, 11, seed=2), 5)
    assert torch.allclose(fixed(other), run(net, other), atol=1e-5)


# ---- heads


def test_decoders_pool_the_last_real_token_and_encoders_the_mean() -> None:
    assert {kind: tiny(kind).pooling for kind in KINDS} == {k: "last" if k in CAUSAL else "mean" for k in KINDS}
    given = padded(ids(2, 6), 4)
    for pooling in ("first", "mean", "last"):
        net = tiny(pooling=pooling)
        with torch.no_grad():
            states = net.hidden(given)[0]
        wanted = {"first": states[:, 0], "mean": states[:, :6].mean(1), "last": states[:, 5]}[pooling]
        assert torch.allclose(run(net, given), net.head(wanted), atol=1e-5)


def test_a_new_head_starts_small_and_its_dropout_is_the_configurations() -> None:
    net = text.from_config(
        "bert",
        {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1, "hidden_dropout_prob": 0.3},
        task="text-classification",
        classes=50,
        vocabulary_size=WORDS,
        max_length=8,
        pad_id=0,
    )
    dropout, linear = net.head
    assert dropout.p == 0.3  # type: ignore[union-attr]
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)  # type: ignore[union-attr]
    assert linear.bias.abs().max() == 0  # type: ignore[union-attr]


def test_token_types_are_one_after_the_first_separator_of_a_pair() -> None:
    given = torch.tensor([[5, 6, SEP, 7, SEP, PAD], [5, 6, 7, 8, 9, 10]], dtype=torch.int32)
    asked = tiny(task="question-answering")
    types = asked._special_inputs(given)["token_type_ids"]
    assert types.tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
    assert tiny()._special_inputs(given)["token_type_ids"].sum() == 0
    seen = run(asked, given)
    asked.backbone.get_submodule("embeddings.token_type_embeddings").weight.data[1, 0] += 3.0  # type: ignore[operator,union-attr]
    assert not torch.allclose(run(asked, given)[0, :5], seen[0, :5])
    assert torch.equal(run(asked, given)[1], seen[1])


def test_positions_of_roberta_start_after_the_padding_id() -> None:
    net = tiny("roberta")
    assert net.config.max_position_embeddings == 32 + PAD + 1
    assert net._special_inputs(ids(1, 4))["position_ids"].tolist() == [[2, 3, 4, 5]]
    assert run(net, ids(1, 32)).shape == (1, 3)


# ---- language models


def test_masked_language_model_equals_the_full_one_at_the_chosen_places() -> None:
    net, given = tiny(task="masked-language-modelling"), padded(ids(2, 6), 2)
    where = torch.zeros(2, 8, dtype=torch.bool)
    where[0, 2] = where[1, 5] = True
    with torch.no_grad():
        chosen = net.language_model(given, where)
    assert chosen.shape == (2, WORDS)
    assert torch.allclose(chosen, run(net, given)[where], atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "electra", "gpt2", "t5", "llama"])
def test_output_weights_are_the_embeddings_themselves(kind: str) -> None:
    task = "causal-language-modelling" if kind in CAUSAL else "masked-language-modelling"
    net, given = tiny(kind, task), ids(1, 5)
    before = run(net, given)
    unseen = next(i for i in range(4, WORDS) if i not in given.tolist()[0])
    net.word_embeddings.weight.data[unseen, 0] += 1.0
    changed = (run(net, given) - before).abs().amax((0, 1))
    assert changed[unseen] > 1e-3
    assert (changed > 1e-5).sum() == 1


@pytest.mark.slow
def test_a_language_model_learns_to_fill_the_gap() -> None:
    torch.manual_seed(0)
    net = tiny(task="masked-language-modelling", layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    texts = torch.tensor([[10, 20, 30], [11, 21, 31], [12, 22, 32]], dtype=torch.int32)
    given, targets = texts.clone(), torch.full((3, 3), IGNORED)
    given[:, 1], targets[:, 1] = 2, texts[:, 1].long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        rows, classes = TASKS[net.task].rows(net.language_model(given, targets != IGNORED), targets)
        loss = torch.nn.functional.cross_entropy(rows, classes)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.1 < 1.0 < losses[0]


def test_a_network_of_another_task_has_no_language_model_and_can_become_one() -> None:
    net, given = tiny(), ids(1, 4)
    with pytest.raises(AssertionError, match="no language model"):
        net.language_model(given, given > 0)
    made = text.with_task(net, "masked-language-modelling", 0).eval()
    assert run(made, given).shape == (1, 4, WORDS)
    back = text.with_task(made, "text-classification", 5).eval()
    assert run(back, given).shape == (1, 5)
    assert torch.equal(back.hidden(given)[0], net.hidden(given)[0])


def test_tokens_are_masked_in_the_published_shares_and_again_the_same() -> None:
    given = ids(200, 100).long()
    special = torch.zeros_like(given, dtype=torch.bool)
    special[:, 0] = special[:, 50] = True
    changed, targets = text.mask_tokens(given, special, 2, WORDS, 0.15, torch.Generator().manual_seed(7))
    again = text.mask_tokens(given, special, 2, WORDS, 0.15, torch.Generator().manual_seed(7))
    assert torch.equal(changed, again[0])
    assert torch.equal(targets, again[1])
    assert not torch.equal(
        changed, text.mask_tokens(given, special, 2, WORDS, 0.15, torch.Generator().manual_seed(8))[0]
    )
    chosen = targets != IGNORED
    assert not chosen[special].any()
    assert torch.equal(targets[chosen], given[chosen])
    assert torch.equal(changed[~chosen], given[~chosen])
    assert chosen[~special].float().mean().item() == pytest.approx(0.15, abs=0.01)
    kept, masked = changed[chosen] == given[chosen], changed[chosen] == 2
    assert masked.float().mean().item() == pytest.approx(0.8 + 0.1 / WORDS, abs=0.02)
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / WORDS, abs=0.02)
    assert changed.dtype == given.dtype
    assert changed.max() < WORDS


def test_next_tokens_stop_at_the_end_of_the_text() -> None:
    given = torch.tensor([[5, 6, 7, PAD], [5, 6, 7, 8]], dtype=torch.int32)
    assert text.next_tokens(given, PAD).tolist() == [[6, 7, IGNORED, IGNORED], [6, 7, 8, IGNORED]]


# ---- configurations


@pytest.mark.parametrize(
    ("kind", "fields", "code", "says"),
    [
        ("bart", {}, "E2431", "unknown text architecture 'bart'"),
        ("bert", {"hiden_size": 16}, "E2435", "no setting 'hiden_size'"),
        ("bert", {"hidden_size": 18, "num_attention_heads": 4}, "E2432", "impossible"),
        ("bert", {"hidden_size": "wide"}, "E2432", "impossible"),
        ("bert", {"max_position_embeddings": 10}, "E2434", "10 positions"),
        ("roberta", {"max_position_embeddings": 33}, "E2434", "31 positions"),
    ],
)
def test_impossible_configurations_are_refused(kind: str, fields: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        text.from_config(
            kind, fields, task="text-classification", classes=2, vocabulary_size=9, max_length=32, pad_id=PAD
        )
    assert caught.value.code == code


# ---- students and trimmed vocabularies


@pytest.mark.parametrize("kind", EACH)
def test_a_student_with_all_layers_is_the_teacher(kind: str) -> None:
    teacher, given = tiny(kind), padded(ids(2, 7), 2)
    assert torch.equal(run(text.student_of(teacher, [0, 1, 2]).eval(), given), run(teacher, given))


@pytest.mark.parametrize("kind", EACH)
def test_a_student_starts_from_the_layers_it_was_given(kind: str) -> None:
    teacher = tiny(kind, layers=4)
    student = text.student_of(teacher, [1, 3])
    prefix = f"backbone.{teacher.layout.layers}"
    theirs, own = teacher.state_dict(), student.state_dict()
    assert student.config.num_hidden_layers == 2
    for ours, source in ((0, 1), (1, 3)):
        names = [n for n in own if n.startswith(f"{prefix}.{ours}.") and "relative_attention_bias" not in n]
        assert names
        for name in names:
            assert torch.equal(own[name], theirs[name.replace(f"{prefix}.{ours}.", f"{prefix}.{source}.")])
    assert torch.equal(student.word_embeddings.weight, teacher.word_embeddings.weight)
    assert torch.equal(own["head.1.weight"], theirs["head.1.weight"])
    assert run(student.eval(), ids(1, 6)).shape == (1, 3)


def test_every_second_layer_is_the_default_and_absent_ones_are_refused() -> None:
    teacher = tiny(layers=4)
    student = text.student_of(teacher)
    name = "backbone.encoder.layer.{}.output.dense.weight"
    assert torch.equal(student.state_dict()[name.format(1)], teacher.state_dict()[name.format(2)])
    with pytest.raises(UsageError, match="layers 0 to 3"):
        text.student_of(teacher, [0, 4])


@pytest.mark.parametrize("kind", EACH)
def test_a_trimmed_network_answers_as_the_whole_one_for_the_tokens_it_kept(kind: str) -> None:
    net = tiny(kind)
    kept = [PAD, 2, SEP, *range(59, 30, -1)]
    small = text.trim(net, kept, unknown_id=2).eval()
    given = padded(31 + ids(2, 9) % 29, 3)
    assert small.word_embeddings.weight.shape[0] == len(kept)
    assert torch.allclose(run(small, given), run(net, given), atol=1e-6)
    unknown, replaced = given.clone(), given.clone()
    unknown[0, 3], replaced[0, 3] = 7, 2
    assert torch.allclose(run(small, unknown), run(net, replaced), atol=1e-6)
    again = text.create(json.loads(json.dumps(small.architecture)))
    again.load_state_dict(small.state_dict())
    assert torch.equal(run(again.eval(), unknown), run(small, unknown))


def test_a_trimmed_language_model_speaks_of_rows() -> None:
    net = tiny(task="masked-language-modelling")
    net.head.bias.data.normal_()  # type: ignore[union-attr,operator]
    kept = [PAD, 2, SEP, 40, 50]
    small = text.trim(net, kept, unknown_id=2).eval()
    given = torch.tensor([[40, 50, 2]], dtype=torch.int32)
    assert torch.allclose(run(small, given), run(net, given)[..., kept], atol=1e-5)
    assert small.rows(torch.tensor([[40, 9, PAD]])).tolist() == [[3, 1, 0]]
    assert net.rows(given) is given


def test_a_trimmed_student_can_be_trimmed_again() -> None:
    net = tiny()
    small = text.trim(net, [PAD, 2, 40, 50, 51], unknown_id=2)
    smaller = text.trim(small, [2, PAD, 51], unknown_id=2).eval()
    given = torch.tensor([[51, 2, PAD]], dtype=torch.int32)
    assert torch.allclose(run(smaller, given), run(net, given), atol=1e-6)


@pytest.mark.parametrize(("kept", "unknown"), [([PAD, 5], 2), ([PAD, 2, 2], 2), ([PAD, 2, WORDS], 2), ([3, 4], None)])
def test_impossible_vocabularies_are_refused(kept: list[int], unknown: int | None) -> None:
    with pytest.raises(UsageError, match="trimmed vocabulary"):
        text.trim(tiny(), kept, unknown_id=unknown)


@pytest.mark.slow
def test_a_trimmed_network_exports() -> None:
    net, given = text.trim(tiny(), [PAD, 2, *range(30, 60)], unknown_id=2).eval(), ids(1, 8)
    moved = export(net, given, dynamic=True)
    assert torch.allclose(moved(padded(given, 4)), run(net, padded(given, 4)), atol=1e-5)


# ---- files


def save(net: text.TextNet, directory: Path, prefix: str = "") -> dict[str, Tensor]:
    """As transformers saves its base models."""
    directory.mkdir(parents=True, exist_ok=True)
    config = dict(net.architecture["config"])
    (directory / "config.json").write_text(json.dumps(config))
    state = {prefix + name: tensor.clone() for name, tensor in net.backbone.state_dict().items()}
    save_file(state, directory / "model.safetensors")
    return state


def load(directory: Path | str, task: str = "text-classification", **options: Any) -> tuple[text.TextNet, str]:
    return text.from_pretrained(str(directory), task=task, classes=3, max_length=16, pad_id=PAD, sep_id=SEP, **options)


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("prefixed", [False, True])
def test_a_saved_backbone_is_read_whole(kind: str, prefixed: bool, tmp_path: Path) -> None:
    net = tiny(kind)
    save(net, tmp_path, net.layout.prefix if prefixed or kind in ("t5", "mt5") else "")
    read, note = load(tmp_path)
    given = padded(ids(1, 9), 3)
    assert torch.equal(read.eval().hidden(given)[0], net.hidden(given)[0])
    assert "new head" in note
    assert read.architecture["config"] == net.architecture["config"]


@pytest.mark.parametrize(
    ("kind", "published"),
    [
        ("bert", "BertForMaskedLM"),
        ("roberta", "RobertaForMaskedLM"),
        ("distilbert", "DistilBertForMaskedLM"),
        ("modernbert", "ModernBertForMaskedLM"),
        ("electra", "ElectraForMaskedLM"),
        ("gpt2", "GPT2LMHeadModel"),
        ("bert", "BertForQuestionAnswering"),
        ("t5", "T5ForConditionalGeneration"),
    ],
)
def test_files_of_transformers_heads_give_the_same_answers(kind: str, published: str, tmp_path: Path) -> None:
    import transformers

    fields = {k: v for k, v in tiny(kind).architecture["config"].items() if k != "model_type"}
    config = transformers.AutoConfig.for_model(kind, **fields)
    theirs = getattr(transformers, published)(config).eval()
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 or "bias" in name else None
    theirs.save_pretrained(tmp_path)
    asks = published.endswith("QuestionAnswering")
    language = "causal-language-modelling" if kind in CAUSAL else "masked-language-modelling"
    task = "question-answering" if asks else language
    net, note = text.from_pretrained(str(tmp_path), task=task, classes=2, max_length=16, pad_id=PAD, sep_id=SEP)
    given = ids(2, 9)
    net.eval()
    types = {"token_type_ids": net._special_inputs(given)["token_type_ids"].long()} if asks else {}
    if kind == "t5":
        with torch.no_grad():
            states = theirs.get_encoder()(input_ids=given.long())[0]
        assert torch.allclose(net.hidden(given)[0], states, atol=1e-5)
        return
    assert "its head" in note
    with torch.no_grad():
        out = theirs(input_ids=given.long(), **types)
    expected = torch.stack([out.start_logits, out.end_logits], 2) if asks else out.logits
    assert torch.allclose(run(net, given), expected, atol=1e-4)


def test_several_files_and_old_names_are_read(tmp_path: Path) -> None:
    net = tiny()
    state = save(net, tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in state.items():
        ending = next((end for end in old if name.endswith(end)), "")
        renamed[name.removesuffix(ending) + old.get(ending, "")] = tensor
    renamed |= {"pooler.dense.weight": torch.zeros(16, 16), "embeddings.position_ids": torch.arange(32)}
    (tmp_path / "model.safetensors").unlink()
    names = list(renamed)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: renamed[name] for name in members}, tmp_path / file)
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    given = ids(1, 5)
    assert torch.equal(load(tmp_path)[0].eval().hidden(given)[0], net.hidden(given)[0])
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(RejectedError, match=r"b\.safetensors"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(RejectedError, match="not an index"):
        load(tmp_path)


WORD = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (lambda s: s[WORD].__setitem__((0, 0), float("nan")), "E3406", r"NaN or Inf in embeddings\.word"),
        (
            lambda s: s.__setitem__(WORD, s[WORD][:, :8].clone()),
            "E3408",
            r"misshapen: .*word_embeddings.* instead of",
        ),
        (lambda s: s.pop(WORD), "E3408", r"missing: .*word_embeddings"),
        (lambda s: s.__setitem__("encoder.layer.9.x", s[WORD].clone()), "E3408", r"unexpected: .*layer\.9\.x"),
        (lambda s: s.__setitem__(WORD, s[WORD].to(torch.int8)), "E3408", r"not floating-point: .*word_embeddings"),
    ],
)
def test_tensors_that_do_not_fit_are_named(spoil: Any, code: str, says: str, tmp_path: Path) -> None:
    state = save(tiny(), tmp_path)
    spoil(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RejectedError, match=says) as caught:
        load(tmp_path)
    assert caught.value.code == code


def test_pickles_are_refused_unless_trusted(tmp_path: Path) -> None:
    net = tiny()
    state = save(net, tmp_path, "bert.")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RejectedError, match="no weights file"):
        load(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(RejectedError, match="pickle") as caught:
        load(tmp_path)
    assert caught.value.code == "E3404"
    read, _ = load(tmp_path, trust_pickle=True)
    assert torch.equal(read.word_embeddings.weight, net.word_embeddings.weight)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model_type": 3}'])
def test_a_directory_without_a_configuration_is_refused(content: str | None, tmp_path: Path) -> None:
    save(tiny(), tmp_path)
    (tmp_path / "config.json").unlink() if content is None else (tmp_path / "config.json").write_text(content)
    with pytest.raises((RejectedError, UsageError), match=r"config|unknown text architecture"):
        load(tmp_path)


def test_a_text_longer_than_the_published_positions_is_refused(tmp_path: Path) -> None:
    save(tiny(), tmp_path)
    with pytest.raises(UsageError, match="32 positions") as caught:
        text.from_pretrained(str(tmp_path), task="text-classification", classes=2, max_length=64, pad_id=PAD)
    assert caught.value.code == "E2434"


def test_the_hub_is_asked_through_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RejectedError, match="some/encoder") as caught:
        load("some/encoder")
    assert (caught.value.code, caught.value.exit_code) == ("E3421", 3)
    assert "hf download some/encoder" in caught.value.hint
    net = tiny()
    repository = tmp_path / "models--some--encoder"
    save(net, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    read, note = load("some/encoder")
    assert torch.equal(read.word_embeddings.weight, net.word_embeddings.weight)
    assert "some/encoder" in note
    shutil.rmtree(repository)
    with pytest.raises(RejectedError):
        load("some/encoder")


# ---- adapters


@pytest.mark.parametrize("kind", EACH)
def test_adapters_change_nothing_at_first_and_merge_into_the_weights(kind: str) -> None:
    net, given = tiny(kind), padded(ids(2, 9), 3)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    adapted = text_lora.add(net, 2, 8.0, 0.1).eval()
    assert torch.equal(run(adapted, given), run(net, given))
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("lora_" in name or name.startswith("head."))
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    merged = text_lora.merge(adapted)
    assert not torch.allclose(run(adapted, given), run(net, given), atol=1e-3)
    assert torch.allclose(run(merged, given), run(adapted, given), atol=1e-5)
    assert set(merged.state_dict()) == set(before)
    assert all(p.requires_grad for p in merged.parameters())
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert"])
def test_the_merged_weight_is_w_plus_alpha_over_rank_times_b_a(kind: str) -> None:
    net = tiny(kind)
    adapted = text_lora.add(net, 2, 6.0)
    name = text_lora.target_names(net)[0]
    a, b = (adapted.get_parameter(f"{name}.lora_{side}.default.weight") for side in "AB")
    torch.nn.init.normal_(b)
    update = 3.0 * (b @ a)
    update = update.T if kind == "gpt2" else update
    merged = text_lora.merge(adapted).get_parameter(f"{name}.weight")
    assert torch.allclose(merged, net.get_parameter(f"{name}.weight") + update, atol=1e-6)


def test_only_adapters_and_head_are_trained() -> None:
    adapted = text_lora.add(tiny(), 2, 4.0)
    groups = training.parameter_groups(adapted, lr=0.1, weight_decay=0.01, layer_decay=0.5)
    count = sum(p.numel() for g in groups for p in g["params"])
    assert count == 3 * 3 * 2 * (16 + 16) + 3 * 16 + 3
    optimizer = torch.optim.AdamW(groups)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    adapted.train()(ids(4, 6)).square().sum().backward()
    optimizer.step()
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in before if "lora_B" in name or name.startswith("head.")} <= changed
    assert all("lora_" in name or name.startswith("head.") for name in changed)


# ---- parameter groups and cost


@pytest.mark.parametrize("kind", EACH)
def test_groups_hold_every_parameter_once_and_rates_fall_towards_the_embeddings(kind: str) -> None:
    net = tiny(kind)
    groups = training.parameter_groups(net, lr=0.1, weight_decay=0.05, layer_decay=0.5)
    place = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters())) == len(place)
    rates = {name: place[id(p)][0] for name, p in net.named_parameters()}
    assert {rate for name, rate in rates.items() if name.startswith("head.")} == {0.1}
    assert place[id(net.word_embeddings.weight)][0] == pytest.approx(0.1 * 0.5**4)
    prefix = f"backbone.{net.layout.layers}."
    for i in range(3):
        assert {r for n, r in rates.items() if n.startswith(f"{prefix}{i}.")} == {0.1 * 0.5 ** (3 - i)}
    for name, parameter in net.named_parameters():
        assert place[id(parameter)][1] == (0 if parameter.ndim <= 1 or name.endswith("bias") else 0.05)
    plain = training.parameter_groups(net, lr=0.1, weight_decay=0.05)
    assert sorted({(g["lr"], g["weight_decay"]) for g in plain}) == [(0.1, 0.0), (0.1, 0.05)]


def test_a_frozen_backbone_leaves_only_the_head_and_its_dropout_still() -> None:
    net = tiny()
    groups = training.parameter_groups(net, lr=0.1, weight_decay=0.05, freeze_backbone=True)
    assert [tuple(p.shape) for g in groups for p in g["params"]] == [(3, 16), (3,)]
    training.train_mode(net, freeze_backbone=True)
    assert not any(m.training for m in net.backbone.modules())
    assert net.head.training
    net(ids(2, 5)).sum().backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {"head.1.weight", "head.1.bias"}
    training.train_mode(net)
    training.parameter_groups(net, lr=0.1, weight_decay=0.05)
    assert all(p.requires_grad for p in net.parameters())
    assert all(m.training for m in net.modules())


def test_pictures_still_have_their_own_groups() -> None:
    from distilledge.models import vision

    model = vision.create("test_efficientnet", classes=3, size=64)
    got = training.parameter_groups(model, lr=0.1, weight_decay=0.05, layer_decay=0.5)
    expected = vision.parameter_groups(model, lr=0.1, weight_decay=0.05, layer_decay=0.5)
    assert [(g["lr"], len(g["params"])) for g in got] == [(g["lr"], len(g["params"])) for g in expected]


@pytest.mark.parametrize("length", [16, 32])
def test_cost_is_what_the_layers_multiply(length: int) -> None:
    net = tiny()
    linear = 3 * length * (4 * 16 * 16 + 2 * 16 * 32)
    attention = 3 * 2 * length * length * 16
    pooled_and_head = length * 16 + 16 * 3
    cost = text.profile(net, length)
    assert cost.macs == linear + attention + pooled_and_head
    assert cost.parameters == sum(p.numel() for p in net.parameters())
    assert next(net.parameters()).device.type == "cpu"


@pytest.mark.slow
def test_cost_of_bert_is_the_published_one() -> None:
    net = text.from_config(
        "bert", {}, task="text-classification", classes=2, vocabulary_size=30522, max_length=512, pad_id=0
    )
    cost = text.profile(net, 128)
    assert cost.parameters / 1e6 == pytest.approx(109.5 - 0.6, rel=0.005)  # without the pooler
    assert cost.macs / 1e9 == pytest.approx(11.2, rel=0.02)


def test_hash_in_the_note_is_the_files(tmp_path: Path) -> None:
    import hashlib

    save(tiny(), tmp_path)
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert digest[:12] in load(tmp_path)[1]
    assert load_file(tmp_path / "model.safetensors")
