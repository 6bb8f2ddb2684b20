"""Runs one tool in an environment of its own: ``ENV/bin/python tools_apart.py TOOL JOB.json``; imports nothing of ours.

A job names the fp32 ``source`` file, ``rows`` (an .npz of one array for each calibration sample, batch 1), the name of
the ``input``, whether it is a ``text``, and the file to write, ``out``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

Job = dict[str, Any]


def rows_of(job: Job) -> list[np.ndarray]:
    with np.load(job["rows"]) as found:
        return [found[name] for name in found.files]


def olive(job: Job, *, dynamic: bool) -> None:
    """Olive's ONNX quantization pass for a CPU, with its own defaults."""
    from olive.data.config import DataConfig
    from olive.data.registry import Registry
    from olive.hardware import AcceleratorSpec
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxDynamicQuantization, OnnxStaticQuantization

    class Rows:
        """Pairs of inputs and labels, as Olive's loaders give."""

        def __init__(self) -> None:
            self.rows = rows_of(job)

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
            if index >= len(self.rows):
                raise IndexError(index)
            return {job["input"]: self.rows[index]}, 0

    @Registry.register_dataset(name="rows")
    def rows(**_: Any) -> Rows:
        return Rows()

    @Registry.register_dataloader(name="one_by_one")
    def one_by_one(dataset: Rows, **_: Any) -> Rows:
        return dataset

    on_cpu = AcceleratorSpec("cpu", "CPUExecutionProvider")
    data = DataConfig(
        name="calibration",
        type="DummyDataContainer",
        load_dataset_config={"type": "rows"},
        pre_process_data_config={"type": "skip_pre_process"},
        post_process_data_config={"type": "skip_post_process"},
        dataloader_config={"type": "one_by_one"},
    )
    settings: dict[str, Any] = (
        {} if dynamic else {"data_config": data, "calibration_providers": ["CPUExecutionProvider"]}
    )
    kind = OnnxDynamicQuantization if dynamic else OnnxStaticQuantization
    work = Path(job["out"]).parent / "olive"
    made = create_pass_from_dict(kind, settings, disable_search=True, accelerator_spec=on_cpu).run(
        ONNXModelHandler(job["source"]), str(work)
    )
    shutil.copyfile(made.model_path, job["out"])
    shutil.rmtree(work)


def optimum(job: Job) -> None:
    """``OVQuantizer`` of optimum-intel: static int8 with its own defaults for the kind of model."""
    import nncf
    import openvino as ov
    from optimum.intel import (
        OVConfig,
        OVModelForImageClassification,
        OVModelForSequenceClassification,
        OVQuantizationConfig,
        OVQuantizer,
    )
    from transformers import PretrainedConfig

    kind = OVModelForSequenceClassification if job["text"] else OVModelForImageClassification
    model = kind(ov.Core().read_model(job["source"]), config=PretrainedConfig(), compile=False, dynamic_shapes=False)
    rows = nncf.Dataset([{job["input"]: row} for row in rows_of(job)])
    config = OVConfig(quantization_config=OVQuantizationConfig(bits=8, num_samples=len(rows_of(job))))
    folder = Path(job["out"]).parent / "optimum"
    OVQuantizer.from_pretrained(model).quantize(calibration_dataset=rows, ov_config=config, save_directory=folder)
    made = ov.Core().read_model(folder / "openvino_model.xml")
    ov.save_model(made, job["out"], compress_to_fp16=False)
    del made
    shutil.rmtree(folder)


TOOLS = {
    "olive-static": lambda job: olive(job, dynamic=False),
    "olive-dynamic": lambda job: olive(job, dynamic=True),
    "optimum": optimum,
}

if __name__ == "__main__":
    TOOLS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
