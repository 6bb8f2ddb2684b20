"""Text models in every runtime: each architecture at several lengths, each precision, and what int8 must not lose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from distilledge import targets
from distilledge.models import metrics, text
from distilledge.models.errors import RejectedError
from distilledge.targets.base import TextDeployable
from distilledge.targets.ondevice.session import open_session
from distilledge.targets.ondevice.text import TextSpec, pad
from distilledge.targets.validate import check_model_file

pytestmark = pytest.mark.usefixtures("one_thread")

PAD, SEP, WORDS, LONGEST = 1, 3, 200, 16
BUCKETS = (8, 16)
LENGTHS = (1, 2, 7, 8, 13, 16)
KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "distilbert": {},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "gpt2": {},
    "t5": {"d_kv": 8},
    "llama": {"num_key_value_heads": 2},
}
TASKS = [(task, runtime) for task in ("token-classification", "question-answering") for runtime in targets.TARGETS]
TASKS.append(("multi-label-classification", "onnx"))
"""Classes of a text are BERT's below; several at once leave by the same head."""


LAYERS = {"bert": 2, "modernbert": 2, "deberta-v2": 2}
"""Two where layers differ or share something; of the others one shows the same in less time. BERT's stand for all."""


def tiny(kind: str = "bert", task: str = "text-classification", **fields: Any) -> text.TextNet:
    """Weights large enough that a mistake shows in the logits."""
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS.get(kind, 1)}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 64}
    net = text.from_config(
        kind,
        sizes | KINDS[kind] | fields,
        task=task,
        classes=2 if task == "question-answering" else 5,
        vocabulary_size=WORDS,
        max_length=LONGEST,
        pad_id=PAD,
        sep_id=SEP,
    )
    torch.manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def deployable(target: Any, task: str = "text-classification", buckets: tuple[int, ...] = BUCKETS) -> TextDeployable:
    """``buckets``: one costs a converter that wants fixed lengths half the time of two."""
    buckets = () if target.ANY_LENGTH else buckets
    spec = TextSpec(LONGEST, PAD, task, buckets=buckets)
    classes = ("a", "b", "c", "d", "e")
    return TextDeployable(
        input_spec=spec.to_dict(), max_length=LONGEST, pad_id=PAD, buckets=buckets, classes=classes, metadata={}
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of ``tiny()`` for a runtime, exported once."""

    @functools.cache
    def made(runtime: str) -> Path:
        target = targets.get(runtime)
        return target.export(tiny(), deployable(target), tmp_path_factory.mktemp(runtime))

    return made


def texts(count: int, seed: int = 0, longest: int = LONGEST) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(4, WORDS, draw.integers(3, longest + 1)).astype(np.int32) for _ in range(count)]


@torch.no_grad()
def reference(net: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """Of one text, not padded."""
    logits: np.ndarray = net(torch.from_numpy(ids)[None])[0].numpy()
    return logits


def run(path: Path, runtime: str, rows: list[np.ndarray], spec: TextSpec, precision: str = "fp32") -> list[np.ndarray]:
    """Padded as the spec says; logits of the real tokens."""
    session = open_session(str(path), runtime, 1, precision)
    out = [session.run([pad(ids, spec)])[0] for ids in rows]
    return [o if o.ndim == 1 else o[: len(ids)] for o, ids in zip(out, rows, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", targets.TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_at_every_length(
    kind: str, runtime: str, tmp_path: Path, bert: Callable[[str], Path]
) -> None:
    """Also with padding that the file was not asked for: it must change nothing."""
    net, target = tiny(kind), targets.get(runtime)
    made = deployable(target, buckets=BUCKETS if kind == "bert" else (LONGEST,))
    path = bert(runtime) if kind == "bert" else target.export(net, made, tmp_path)
    check_model_file(path)
    spec = TextSpec.from_dict(made.input_spec)
    rows = [texts(1, seed=n)[0].repeat(LONGEST)[:n] for n in LENGTHS]
    expected = [reference(net, ids) for ids in rows]
    scale = max(np.abs(e).max() for e in expected)
    for ids, got, want in zip(rows, run(path, runtime, rows, spec), expected, strict=True):
        assert np.abs(got - want).max() <= 1e-4 * scale, len(ids)
    wider = [np.pad(ids, (0, LONGEST - len(ids)), constant_values=PAD) for ids in rows]
    for ids, got, want in zip(rows, run(path, runtime, wider, spec), expected, strict=True):
        assert np.abs(got - want).max() <= 1e-4 * scale, len(ids)
    assert np.isfinite(run(path, runtime, [np.array([PAD], np.int32)], spec)[0]).all(), "nothing but padding"


@pytest.mark.slow
@pytest.mark.parametrize(("task", "runtime"), TASKS)
def test_every_task(task: str, runtime: str, tmp_path: Path) -> None:
    net, target = tiny(task=task), targets.get(runtime)
    made = deployable(target, task, (LONGEST,))
    path = target.export(net, made, tmp_path)
    rows = [np.insert(ids, 2, SEP) for ids in texts(6, longest=LONGEST - 1)]
    for ids, got in zip(rows, run(path, runtime, rows, TextSpec.from_dict(made.input_spec)), strict=True):
        want = reference(net, ids)
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize("runtime", targets.TARGETS)
def test_every_precision(runtime: str, tmp_path: Path) -> None:
    net, target = learned(outlier=1.0), targets.get(runtime)
    made, rows = deployable(target, buckets=(LONGEST,)), list(learning_set().numpy())[:60]
    spec = TextSpec.from_dict(made.input_spec)
    fp32 = target.export(net, made, tmp_path)
    expected = np.stack([reference(net, ids) for ids in rows])
    for precision in ("fp16", "w8dyn", "w8a8"):
        path, words = target.compress(
            fp32, made, tmp_path, precision=precision, calibration=[ids[None] for ids in rows[:24]]
        )
        target.embed_metadata(path, {"k": "v"})
        assert words
        assert target.read_metadata(path) == {"k": "v"}
        check_model_file(path)
        got = np.stack(run(path, runtime, rows, spec, precision))
        assert metrics.cosine(expected, got) >= (0.999 if precision == "fp16" else 0.95), precision
        assert metrics.agreement(expected, got) >= (0.98 if precision == "fp16" else 0.9), precision
        weights = path.with_suffix(".bin") if path.suffix == ".xml" else path
        assert weights.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("runtime", targets.TARGETS)
def test_embeddings_become_int8_too(runtime: str, tmp_path: Path) -> None:
    """Most of a small text model is its embedding: without it a file stays at three quarters."""
    net = text.from_config(
        "bert",
        {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
        task="text-classification",
        classes=5,
        vocabulary_size=20000,
        max_length=LONGEST,
        pad_id=PAD,
        sep_id=SEP,
    ).eval()
    target = targets.get(runtime)
    made = deployable(target, buckets=(LONGEST,))
    fp32 = target.export(net, made, tmp_path)
    calibration = [ids[None] for ids in texts(8)]
    for precision, share in {"fp16": 0.6, "w8dyn": 0.35, "w8a8": 0.4}.items():
        path, _ = target.compress(
            fp32, made, tmp_path, precision=precision, calibration=calibration if precision == "w8a8" else []
        )
        assert size(path) < share * size(fp32), (precision, size(path), size(fp32))


def size(path: Path) -> int:
    return sum(p.stat().st_size for p in {path, path.with_suffix(".bin")} if p.exists())


@pytest.mark.slow
@pytest.mark.parametrize("runtime", targets.TARGETS)
def test_tensors_of_texts(runtime: str, tmp_path: Path, bert: Callable[[str], Path]) -> None:
    net, target = tiny(), targets.get(runtime)
    made = deployable(target)
    fp32 = bert(runtime)
    rows = np.stack([ids[:8] for ids in texts(20) if len(ids) >= 8][:3])
    found = target.tensors(fp32, rows, optimise=False)
    expected = np.stack([reference(net, ids) for ids in rows])
    last = found["logits"] if "logits" in found else list(found.values())[-1]
    assert np.allclose(last.reshape(3, -1), expected, atol=1e-3)
    int8, _ = target.compress(fp32, made, tmp_path, precision="w8dyn", calibration=[])
    assert len(set(found) & set(target.tensors(int8, rows, optimise=False))) >= 4


@pytest.mark.slow
def test_a_tflite_file_takes_its_own_lengths_only(bert: Callable[[str], Path]) -> None:
    session = open_session(str(bert("tflite")), "tflite", 1)
    assert session.input_shape == (1, -1)
    with pytest.raises(ValueError, match=r"\[8, 16\] tokens, not 9"):
        session.run([np.full(9, 5, np.int32)])


# ---- the trap of dynamic int8


def learned(outlier: float) -> text.TextNet:
    """A small BERT made sure of what it decided at random, by attention too.

    ``outlier``: scale of a channel of each query that its key undoes. Large models have such channels; they take the
    steps of one scale for a whole matrix.
    """
    net = tiny()
    with torch.no_grad():
        for name, module in net.named_modules():
            if name.endswith("self.query"):
                module.weight *= 4
    rows = learning_set()
    labels = net(rows).argmax(1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(net(rows), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for name, module in net.named_modules():
            scale = {"query": outlier, "key": 1 / outlier}.get(name.rpartition(".")[2])
            if scale is not None:
                module.weight[::8] *= scale
                module.bias[::8] *= scale
    return net.eval()


def learning_set() -> torch.Tensor:
    """200 texts of 12 words."""
    return torch.from_numpy(np.random.default_rng(5).integers(4, WORDS, (200, 12)).astype(np.int32))


@pytest.mark.slow
def test_dynamic_int8_keeps_what_one_scale_for_a_matrix_loses(tmp_path: Path) -> None:
    net, target = learned(outlier=300.0), targets.get("onnx")
    made = deployable(target)
    fp32 = target.export(net, made, tmp_path)
    rows = list(learning_set().numpy())
    expected = np.stack([reference(net, ids) for ids in rows])
    spec = TextSpec.from_dict(made.input_spec)
    ours, _ = target.compress(fp32, made, tmp_path, precision="w8dyn", calibration=[])
    trap = tmp_path / "trap.onnx"
    quantize_dynamic(str(fp32), str(trap), weight_type=QuantType.QInt8, per_channel=False)
    kept, lost = (metrics.agreement(expected, np.stack(run(path, "onnx", rows, spec))) for path in (ours, trap))
    assert kept >= 0.95
    assert lost < 0.9, "the limit of the ladder, verify.min_agreement_int8, must catch it"


def test_lengths_other_than_the_batch_may_be_dynamic_of_ids_only(tmp_path: Path) -> None:
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    for shape, kind, fine in (
        ([1, None], onnx.TensorProto.INT32, True),
        ([1, None, 4, 3], onnx.TensorProto.UINT8, False),
    ):
        graph = onnx.helper.make_graph(
            [node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)],
            "g",
            [value("x", kind, shape)],
            [value("y", onnx.TensorProto.FLOAT, shape)],
        )
        path = tmp_path / f"{len(shape)}.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
        if fine:
            check_model_file(path)
            check_model_file(path, shape=(1, -1))
        else:
            with pytest.raises(RejectedError, match="dynamic input shape"):
                check_model_file(path)
