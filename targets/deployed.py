"""What is exported: the network with its normalisation inside, and the boundary around other people's converters."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from distilledge.models.errors import DistilledgeError, MissingPackageError
from distilledge.models.outputs import with_outputs
from distilledge.targets.base import Deployable, TextDeployable

IMAGE, IDS, LOGITS = "image", "ids", "logits"
"""Names of the inputs and the output wherever the format lets us choose them."""
EXAMPLE_LENGTH = 24
"""Tokens of the example that a network for any length is traced with."""


class Deployed(nn.Module):
    """uint8 (N, H, W, 3) RGB -> float32 logits (N, classes); of several tasks a tuple of them.

    Normalisation is one multiply-add, ``x * 1/(255 std) - mean/std``. It stays in float when the rest becomes int8
    (see the targets): as int8 it costs 2 ms of 6 in ONNX Runtime and rounds the picture twice. The mean cannot be
    folded into a zero-padded convolution, and folding the scale alone saves under 1 %.

    ``channels_last`` normalises before the permutation: 5 % faster in LiteRT, 10 % slower in ONNX Runtime. Otherwise
    the pixels are flattened while they are normalised: else ONNX Runtime moves the permutation behind the arithmetic
    of an int8 file, where broadcasting over an innermost axis of 3 costs 0.5 ms for each operation. One mean and one
    std for all channels become scalars, which are fast anywhere.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, deployable: Deployable, *, channels_last: bool) -> None:
        super().__init__()
        self.model, self.channels_last = model, channels_last
        self.height, self.width = deployable.height, deployable.width
        mean, std = torch.tensor(deployable.mean), torch.tensor(deployable.std)
        self.uniform = bool((mean == mean[0]).all() and (std == std[0]).all())
        shape = (1,) if self.uniform else (3,) if channels_last else (3, 1)
        size = 1 if self.uniform else 3
        self.register_buffer("scale", (1 / (255 * std))[:size].reshape(shape))
        self.register_buffer("shift", (-mean / std)[:size].reshape(shape))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        logits: Tensor | tuple[Tensor, ...] = self.model(self.normalised(image))
        return logits

    def normalised(self, image: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) float32."""
        if self.channels_last:
            return (image.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        planes = image.permute(0, 3, 1, 2)
        if self.uniform:
            return planes.float() * self.scale + self.shift
        flat = planes.reshape(-1, 3, self.height * self.width).float()
        return (flat * self.scale + self.shift).reshape(-1, 3, self.height, self.width)


def deployed(model: nn.Module, deployable: Deployable, *, channels_last: bool) -> tuple[Deployed, Tensor]:
    """The module to convert and an example input (1, H, W, 3). The caller's model is copied, not changed."""
    own = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format)
    own = with_outputs(own, deployable.heads) if deployable.heads else own
    module = Deployed(own, deployable, channels_last=channels_last).eval().requires_grad_(False)
    return module, torch.zeros((1, deployable.height, deployable.width, 3), dtype=torch.uint8)


class Named(nn.Module):
    """Outputs in a dictionary, by which LiteRT's converter names them."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.model(image), strict=True))


def output_names(deployable: Deployable) -> list[str]:
    """Names of the outputs of a file, in order."""
    return [head.name for head in deployable.heads] or [LOGITS]


def deployed_text(model: nn.Module, deployable: TextDeployable) -> tuple[nn.Module, Tensor]:
    """The module to convert and an example input (1, L). The caller's model is copied, not changed.

    Attention is written out (``eager``): every converter knows it, and the graph is smaller (48 matrix products and 24
    reshapes instead of 48, 36 and 19 slices, BERT of 6 layers); ONNX Runtime and OpenVINO fuse it again.
    """
    own = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    for part in own.modules():
        if hasattr(part, "set_attn_implementation"):
            part.set_attn_implementation("eager")  # type: ignore[operator]
    length = min(EXAMPLE_LENGTH, deployable.max_length)
    ids = torch.full((1, length), 0 if deployable.pad_id else 1, dtype=torch.int32)
    return own, ids


@contextlib.contextmanager
def converting(what: str) -> Iterator[None]:
    """Run a converter: its chatter, its log and its warnings are dropped; its crash becomes exit 4.

    The one broad ``except`` of the exporters: converters raise anything, and their last line is what the user needs.
    Errors of ours, a full disk and a full memory pass unchanged. Import converters inside: they talk then too.
    """
    try:
        with contextlib.ExitStack() as quiet:
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
            quiet.enter_context(warnings.catch_warnings(action="ignore"))
            quiet.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.ERROR)
            yield
    except (DistilledgeError, OSError, MemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        hint = "distilledge doctor"
        raise MissingPackageError("E4010", f"the converter failed: {what}: {lines[-1][:300]}", hint) from error
