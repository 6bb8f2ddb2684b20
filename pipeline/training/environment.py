"""Where a training runs: device, precision, Accelerate, and what makes a CPU repeat itself bit by bit."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from distilledge.models.errors import MissingPackageError, UsageError
from distilledge.pipeline.recipe import Training

log = logging.getLogger("distilledge.training")

TRACKER_MODULES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}


def prepare_accelerator(settings: Training, partial: Path) -> Accelerator:
    """CPU, one GPU, or as many as ``accelerate launch`` started processes for.

    Raises ``MissingPackageError`` for a GPU that is not there, a precision that needs one, or a tracker not installed;
    ``UsageError`` for MLflow without a server.
    """
    on_cpu = _on_cpu(settings)
    precision = resolve_precision(settings)
    _check_tracker(settings.tracker)
    # Accelerate keeps the first precision of a process for good, and one run trains several models
    AcceleratorState._reset_state(reset_partial_state="LOCAL_RANK" not in os.environ)
    tracked = settings.tracker != "none"
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=settings.tracker if tracked else None,
        project_dir=str(partial / "tracker") if tracked else None,
    )


def _on_cpu(settings: Training) -> bool:
    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        seen = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, sees {torch.cuda.device_count()} GPUs"
        raise MissingPackageError("E4601", f"device: cuda, but there is no usable GPU: {seen}", "set `device: auto`")
    on_cpu = settings.device == "cpu" or not there
    if on_cpu and settings.precision == "fp16":
        raise MissingPackageError(
            "E4602", "precision: fp16 needs a GPU; this training runs on the CPU", "set `precision: bf16`"
        )
    return on_cpu


def resolve_precision(settings: Training) -> str:
    """``fp32``, ``bf16`` or ``fp16``; ``auto`` is bf16 where the processor computes in it."""
    native = has_bf16(settings)
    if settings.precision == "bf16" and not native:
        log.warning("precision: bf16 is emulated by this processor and very slow; `precision: auto` avoids that")
    return ("bf16" if native else "fp32") if settings.precision == "auto" else settings.precision


def has_bf16(settings: Training) -> bool:
    """Whether bf16 arithmetic is native to where the training runs."""
    if settings.device != "cpu" and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capability = torch.cpu.get_capabilities()
    return bool(capability.get("avx512_bf16") or capability.get("amx_bf16") or capability.get("bf16"))


def _check_tracker(tracker: str) -> None:
    if tracker != "none" and importlib.util.find_spec(TRACKER_MODULES[tracker]) is None:
        raise MissingPackageError(
            "E4603", f"tracker: {tracker} is not installed", f'pip install "distilledge[{tracker}]"'
        )
    if tracker == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):  # mlflow-skinny has no store of its own
        raise UsageError(
            "E2627", "tracker: mlflow has no server to write to", "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000"
        )


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On a CPU, only algorithms that give the same bits again (for a number of threads). A GPU is left to be fast."""
    if device.type != "cpu":
        yield
        return
    deterministic: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled()
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # costs time and finds only bugs of torch
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        deterministic.fill_uninitialized_memory = filled
