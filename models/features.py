"""Feature maps of image models: where they are, how to read them, how to compare unlike ones; what losses look at."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from distilledge.models.errors import UsageError
from distilledge.models.text_net import TextNet
from distilledge.models.vision_names import head_names


class Stage(NamedTuple):
    """A place in a model where feature maps can be read."""

    module: str
    channels: int
    reduction: int
    """Pixels of the picture for one cell of the map."""


class StagePair(NamedTuple):
    """A stage of the student and the teacher's that it learns from."""

    student: Stage
    teacher: Stage


class Layer(NamedTuple):
    """A layer of a text model, where its states can be read."""

    number: int
    width: int
    heads: int
    embedding_width: int
    """Of the input of the model's first layer."""
    causal: bool = False


class LayerPair(NamedTuple):
    """A layer of a text student and the teacher's that it learns from."""

    student: Layer
    teacher: Layer


class Outputs(NamedTuple):
    """What a loss may look at."""

    logits: Tensor
    features: tuple[Tensor, ...] = ()
    """Maps (B, C, H, W), in the order of the pairs."""
    embedding: Tensor | None = None
    """(B, D), the input of the head."""
    hidden: tuple[Tensor, ...] = ()
    """Of texts: hidden states (N, L, D), in the order of the pairs."""
    scores: tuple[Tensor, ...] = ()
    """Of texts: attention scores before softmax (N, H, L, L), in the order of the pairs."""
    values: tuple[Tensor, ...] = ()
    """Of texts: attention values (N, H, L, d), in the order of the pairs."""
    embeddings: tuple[Tensor, ...] = ()
    """Of texts: the one input of the first layer (N, L, D)."""
    real: Tensor | None = None
    """Of texts: (N, L), False at padding."""


def stages(model: nn.Module) -> tuple[Stage, ...]:
    """The stages timm records in ``feature_info``, shallow to deep; the blocks of a transformer are stages too.

    Raises ``UsageError`` for a model without that record.
    """
    info: Any = getattr(model, "feature_info", None)
    if not info:
        raise UsageError("E2421", "the model has no recorded feature stages", "use a logit loss such as kl")
    return tuple(Stage(entry["module"], entry["num_chs"], entry["reduction"]) for entry in info)


def match_stages(student: nn.Module, teacher: nn.Module, count: int = 2) -> tuple[StagePair, ...]:
    """Pairs for the ``count`` deepest stages of the student, shallow to deep.

    Two pyramids are paired by reduction (the teacher's last stage that has it, else its nearest). Where either side has
    one reduction throughout, as plain transformers do, pairs lie at the same share of the depth.
    """
    ours, theirs = stages(student), stages(teacher)
    pyramids = all(len({s.reduction for s in side}) > 1 for side in (ours, theirs))
    pairs = []
    for index, stage in list(enumerate(ours))[-count:]:
        if pyramids:
            partner = min(reversed(theirs), key=lambda t: abs(t.reduction - stage.reduction))
        else:
            partner = theirs[max(0, round((index + 1) / len(ours) * len(theirs)) - 1)]
        pairs.append(StagePair(stage, partner))
    return tuple(pairs)


def as_map(features: Tensor, *, prefix_tokens: int = 0, channels_last: bool = False) -> Tensor:
    """Tokens (B, N, C) or a map in either layout -> (B, C, H, W); class and register tokens are dropped.

    The tokens of a picture must form a square.
    """
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if channels_last else features
    tokens = features[:, prefix_tokens:].transpose(1, 2)  # (B, C, H*W)
    side = round(tokens.shape[2] ** 0.5)
    return tokens.reshape(*tokens.shape[:2], side, side)


class FeatureTap:
    """Records the maps of some modules, and the head's input, at each forward pass inside a ``with`` block.

    Hooks are removed on leaving, also after an error. Tap the module itself, before wrapping or compiling it.
    """

    def __init__(self, model: nn.Module, modules: Sequence[str] = (), *, embedding: bool = False) -> None:
        known = dict(model.named_modules())
        unknown = [name for name in modules if name not in known]
        if unknown:
            raise UsageError("E2422", f"the model has no module {unknown[0]!r}", "list them with model.named_modules()")
        self._model, self._modules, self._embedding = model, tuple(modules), embedding
        self._seen: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> FeatureTap:
        for name in dict.fromkeys(self._modules):
            self._handles.append(self._model.get_submodule(name).register_forward_hook(self._recorder(name)))
        if self._embedding:
            name = "head" if isinstance(self._model, TextNet) else head_names(self._model)[0]
            head = self._model.get_submodule(name)
            self._handles.append(head.register_forward_pre_hook(self._record_embedding))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def outputs(self, logits: Tensor) -> Outputs:
        """What the last forward pass left, with its logits; recorded tensors are let go of."""
        layout = getattr(self._model, "output_fmt", None)
        prefix = int(getattr(self._model, "num_prefix_tokens", 0) or 0)
        maps = tuple(
            as_map(self._seen[name], prefix_tokens=prefix, channels_last=layout == "NHWC") for name in self._modules
        )
        embedding = self._seen[""].flatten(1) if self._embedding else None
        self._seen.clear()
        return Outputs(logits, maps, embedding)

    def _recorder(self, name: str) -> Any:
        def record(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._seen[name] = output

        return record

    def _record_embedding(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen[""] = inputs[0]


class Projection(nn.Module):
    """Learned 1x1 convolution to the teacher's channels, then resampling to the teacher's grid (Romero et al. 2015)."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Maps (B, Cs, h, w) and (B, Ct, H, W) -> the student's as (B, Ct, H, W)."""
        projected: Tensor = self.convolution(student)
        if projected.shape[2:] == teacher.shape[2:]:
            return projected
        size = (teacher.shape[2], teacher.shape[3])
        return functional.interpolate(projected.float(), size=size, mode="bilinear", antialias=True)
