"""The parity ladder against exports that were broken on purpose: it must stop, name the class and the first tensor."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from distilledge.models import text
from distilledge.models.errors import IntegrityError
from distilledge.pipeline.divergence import first_tensor, sqnr_db
from distilledge.pipeline.inputs import PictureRows, probes
from distilledge.pipeline.recipe import Verify
from distilledge.pipeline.record import ExportResult, Rung
from distilledge.pipeline.verify import ladder, rows_of
from distilledge.targets import get
from distilledge.targets.base import Deployable, Exported, Precision, TextDeployable
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.text import TextSpec
from distilledge.targets.samples import Samples

SIZE, CLASSES = 24, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = InputSpec(height=SIZE, width=SIZE, mean=MEAN, std=STD)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU6(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    ).eval()  # fmt: skip


def pictures(count: int = 24) -> np.ndarray:
    draw = np.random.default_rng(1)
    coarse = draw.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.concatenate([probes(SPEC), coarse.repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)])


def deployable(mean: tuple[float, float, float] = MEAN, std: tuple[float, float, float] = STD) -> Deployable:
    return Deployable(
        input_spec=SPEC.to_dict(), height=SIZE, width=SIZE, mean=mean, std=std, classes=tuple("abcde"), metadata={}
    )


def exported(precision: Precision, path: Path) -> Exported:
    return Exported(
        runtime="onnx", precision=precision, files=(path.name,), sha256=("",), size_bytes=1,
        input_shape=(1, SIZE, SIZE, 3), classes=tuple("abcde"), input_spec=SPEC.to_dict(), versions={}, recipe="",
        seconds=0.0,
    )  # fmt: skip


def climb(model: nn.Module, out: Path, files: dict[Precision, Path], limits: Verify | None = None) -> tuple[Rung, ...]:
    result = ExportResult(role="student", runtime="onnx", files=tuple(exported(p, f) for p, f in files.items()))
    return ladder(model, PictureRows(pictures(), SPEC), result, out, limits or Verify())


@pytest.mark.slow
def test_a_sound_export_holds_on_every_rung(tmp_path: Path) -> None:
    model, target = network(), get("onnx")
    fp32 = target.export(model, deployable(), tmp_path)
    calibration = [p[None] for p in pictures()[6:]]
    int8, _ = target.compress(fp32, deployable(), tmp_path, precision="w8a8", calibration=calibration)
    rungs = climb(model, tmp_path, {"fp32": fp32, "w8a8": int8})
    assert [r.holds for r in rungs] == [True, True, True]
    assert rungs[0].max_abs < 1e-4
    assert rungs[2].psnr_db is not None
    assert rungs[2].psnr_db > 20


class Twice(nn.Module):
    """Normalises inside, although the graph already does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        result: torch.Tensor = self.model((x / 255 - mean) / std)
        return result


class Reversed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        result: torch.Tensor = self.model(((x * std + mean).flip(1) - mean) / std)
        return result


@pytest.mark.slow
@pytest.mark.parametrize(("wrapper", "mistake"), [(Twice, "normalised twice"), (Reversed, "channels reversed")])
def test_a_wrong_input_is_classed_as_preprocess(tmp_path: Path, wrapper: type[nn.Module], mistake: str) -> None:
    model = network()
    fp32 = get("onnx").export(wrapper(model).eval(), deployable(), tmp_path)
    broken = climb(model, tmp_path, {"fp32": fp32})[0]
    assert not broken.holds
    assert broken.fault_class == "preprocess"
    assert mistake in (broken.first_divergent or "")


@pytest.mark.slow
def test_a_wrong_weight_is_an_export_op_and_its_module_is_named(tmp_path: Path) -> None:
    model = network()
    fp32 = get("onnx").export(model, deployable(), tmp_path)
    proto = onnx.load(fp32)
    weight = next(t for t in proto.graph.initializer if list(t.dims) == [32, 16, 3, 3])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * -1.5, weight.name))
    onnx.save(proto, fp32)
    broken = climb(model, tmp_path, {"fp32": fp32})[0]
    assert (broken.holds, broken.fault_class, broken.first_divergent) == (False, "export op", "2")


@pytest.mark.slow
def test_calibration_on_the_wrong_pictures_is_an_activation_range(tmp_path: Path) -> None:
    model, target = network(), get("onnx")
    fp32 = target.export(model, deployable(), tmp_path)
    grey = [np.full((1, SIZE, SIZE, 3), 118 + i % 3, np.uint8) for i in range(16)]
    int8, _ = target.compress(fp32, deployable(), tmp_path, precision="w8a8", calibration=grey)
    broken = climb(model, tmp_path, {"fp32": fp32, "w8a8": int8}, Verify(min_agreement_int8=0.95))[-1]
    assert (broken.holds, broken.fault_class) == (False, "activation range")
    assert broken.first_divergent is not None


def test_outliers_in_the_weights_are_a_weight_range(tmp_path: Path) -> None:
    model, target = network(), get("onnx")
    with torch.no_grad():
        # A dead input channel with a huge weight takes all int8 steps of the head, nothing is left for the rest.
        model[2].bias[0] = -1e4
        model[6].weight[:, 0] = torch.linspace(400, 900, CLASSES)
    fp32 = target.export(model, deployable(), tmp_path)
    calibration = [p[None] for p in pictures()[6:]]
    int8, _ = target.compress(fp32, deployable(), tmp_path, precision="w8a8", calibration=calibration)
    broken = climb(model, tmp_path, {"fp32": fp32, "w8a8": int8}, Verify(min_agreement_int8=0.95))[-1]
    assert (broken.holds, broken.fault_class) == (False, "weight range")


def test_sqnr_and_first_tensor() -> None:
    a = np.ones((1, 4), np.float32)
    assert sqnr_db(a, a) == 200.0
    assert sqnr_db(a, a * 1.1) == pytest.approx(20.0, abs=1e-3)
    named = first_tensor({"x": a, "y": a, "z": a}, {"x": a, "y": -a, "z": -a}, min_sqnr_db=20)
    assert named is not None
    assert named.startswith("y ")
    assert first_tensor({"x": a}, {"x": a}, min_sqnr_db=20) is None


# ---- texts


def text_network(task: str) -> nn.Module:
    net = text.from_config(
        "bert",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        task=task,
        classes=2 if task == "question-answering" else CLASSES,
        vocabulary_size=60,
        max_length=16,
        pad_id=0,
        sep_id=2,
    )
    torch.manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return net.eval()


def write_tokenizer(path: Path) -> str:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[SEP]": 2, **{f"w{i}": 3 + i for i in range(57)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$A [SEP] $B:1 [SEP]:1", special_tokens=[("[SEP]", 2)]
    )
    made.save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def text_samples(task: str) -> Samples:
    draw = np.random.default_rng(0)
    words = [[f"w{i}" for i in draw.integers(0, 57, draw.integers(1, 12))] for _ in range(24)]
    if task == "token-classification":
        return Samples(tuple({"text": w} for w in words), text=True)
    if task == "question-answering":
        return Samples(tuple({"text": " ".join(w[:2]), "context": " ".join(w)} for w in words), text=True)
    return Samples(tuple({"text": " ".join(w)} for w in words), text=True)


def text_result(net: nn.Module, task: str, out: Path, *precisions: Precision) -> ExportResult:
    sha256 = write_tokenizer(out / "tokenizer.json")
    spec, target = TextSpec(16, 0, task, tokenizer_sha256=sha256).to_dict(), get("onnx")
    own = TextDeployable(input_spec=spec, max_length=16, pad_id=0, classes=tuple("abcde"))
    files = {"fp32": target.export(net, own, out)}
    for precision in precisions:
        files[precision], _ = target.compress(files["fp32"], own, out, precision=precision, calibration=[])
    made = [exported(p, f).model_copy(update={"input_spec": spec, "input_shape": (1, -1)}) for p, f in files.items()]
    return ExportResult(role="student", runtime="onnx", files=tuple(made))


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", ["text-classification", "multi-label-classification", "token-classification", "question-answering"]
)
def test_a_sound_export_of_texts_holds_on_every_rung(tmp_path: Path, task: str) -> None:
    net = text_network(task)
    result = text_result(net, task, tmp_path, "w8dyn")
    rows = rows_of(result, tmp_path, text_samples(task))
    assert len(rows) == 24 + rows.PROBES
    rungs = ladder(net, rows, result, tmp_path, Verify(min_agreement_int8=0.5, min_cosine_int8=0.5))
    assert [r.holds for r in rungs] == [True, True, True], rungs
    assert rungs[1].max_abs < 1e-4
    assert rungs[2].max_abs > 0


@pytest.mark.slow
def test_a_mask_that_sees_padding_is_found(tmp_path: Path) -> None:
    """The file takes another id for padding: with padding its logits change, without they do not."""
    net = text_network("text-classification")
    result = text_result(net, "text-classification", tmp_path)
    fixed = [f.model_copy(update={"input_spec": {**f.input_spec, "buckets": [16]}}) for f in result.files]
    result = result.model_copy(update={"files": tuple(fixed)})
    proto = onnx.load(tmp_path / "model.fp32.onnx")
    equal = next(node for node in proto.graph.node if node.op_type == "Equal")
    proto.graph.initializer.append(numpy_helper.from_array(np.array(59, np.int32), "other"))
    equal.input[1] = "other"
    onnx.save(proto, tmp_path / "model.fp32.onnx")
    rows = rows_of(result, tmp_path, text_samples("text-classification"))
    broken = ladder(net, rows, result, tmp_path, Verify())[0]
    assert (broken.holds, broken.fault_class) == (False, "export op")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    spec = TextSpec(16, 0, "text-classification", tokenizer_sha256="0" * 64).to_dict()
    write_tokenizer(tmp_path / "tokenizer.json")
    one = exported("fp32", tmp_path / "x").model_copy(update={"input_spec": spec})
    result = ExportResult(role="student", runtime="onnx", files=(one,))
    with pytest.raises(IntegrityError, match="not the tokenizer"):
        rows_of(result, tmp_path, text_samples("text-classification"))
