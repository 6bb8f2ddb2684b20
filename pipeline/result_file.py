"""The result file: what was timed and scored, on what, of what, under which conditions, with every raw sample.

``recipes/result.schema.json`` is its JSON schema. A later version of the format has another ``schema``.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from distilledge.models.base import Value
from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.store import atomic_write
from distilledge.targets.base import Launch
from distilledge.targets.protocol import ScenarioRun

SINGLE_STREAM = "single-stream"
"""One inference after another, each as soon as the last has ended (MLPerf)."""


class PortCard(Value):
    """An input or output."""

    name: str
    dtype: str
    """As numpy names it."""
    shape: tuple[int, ...]
    """-1: any."""


class FileCard(Value):
    """What a file is."""

    runtime: Literal["onnx", "openvino", "tflite"]
    files: dict[str, str]
    """Name -> sha256; the first is the one that the runtime is given."""
    size_bytes: int
    """Of all of them; of a text file of ours, without its tokenizer."""
    precision: str
    """As a recipe names it, such as ``w8a8``; of other files the type of most bytes of its constants."""
    operations: dict[str, int] = {}
    """Type -> how often, as the file has them; empty of a recipe's file."""
    weights: dict[str, int] = {}
    """Type -> bytes of constants; empty of a recipe's file."""
    inputs: tuple[PortCard, ...] = ()
    """As it was run; empty of a recipe's file."""
    outputs: tuple[PortCard, ...] = ()


class InputCard(Value):
    """What was fed while timed."""

    kind: Literal["made", "given", "pictures", "texts"]
    sha256: str
    """Of arrays; of a recipe, of the data set and its splits. Equal where the inputs are."""
    rows: int
    """Different inputs that the inferences cycle through."""
    shape: dict[str, tuple[int, ...]]
    """By input name."""
    seed: int | None = None
    rule: str = ""
    """How inputs were made."""
    length: int | None = None
    """Tokens of each text, where all were made of one length."""


class Timing(Value):
    """Raw samples and the conditions they were taken under."""

    threads: int
    batch: int
    warmup: int
    quick: bool
    """Fewer samples or less time than is reportable (1,024 and 60 s by default)."""
    runtime_version: str
    execution_precision: str
    flags: tuple[str, ...]
    """Such as OTHER_LOAD, THROTTLED, DRIFT, NOISE, EMULATED."""
    launches: tuple[Launch, ...]
    """Nanoseconds of every timed inference, by process."""


class Accuracy(Value):
    """What the file answers to the labelled data, on the device."""

    metric: str
    value: Annotated[float, Field(ge=0, le=1)]
    data_sha256: str
    """Of the samples and their labels: two results with the same can be compared sample by sample."""
    labels: tuple[int, ...]
    counts: tuple[tuple[float, ...], ...]
    """Of each sample what the metric adds up (of accuracy: 1 or 0)."""
    groups: tuple[str, ...] = ()
    """Of each sample; those of one group are no independent evidence. Empty: each is its own."""


class Item(Value):
    """One file on one device."""

    name: str
    """By which ``compare`` finds the same file in another result."""
    device: str
    role: Literal["candidate", "baseline", "teacher", "student", "control"]
    file: FileCard
    input: InputCard | None = None
    timing: Timing | None = None
    accuracy: Accuracy | None = None
    scenarios: tuple[ScenarioRun, ...] = ()
    """Beside single-stream, with their raw samples."""


class Failure(Value):
    """A device on which nothing was measured."""

    code: str
    what: str
    hint: str
    exit_code: int


class Result(Value):
    schema_version: Literal[1] = Field(default=1, alias="schema")
    """Version of this format."""
    kind: Literal["distilledge result"] = "distilledge result"
    created: str
    """ISO 8601, UTC."""
    version: str
    """Of distilledge."""
    command: str
    """What reproduces it."""
    release: str = ""
    """The user's name of what was measured."""
    scenario: str = SINGLE_STREAM
    """How inferences were issued."""
    devices: dict[str, dict[str, Any]]
    """Name -> device card: CPU, cores, memory, kernel, governor, emulated or not."""
    items: tuple[Item, ...]
    failed: dict[str, Failure] = {}
    """Device -> why nothing was measured there."""

    model_config = {**Value.model_config, "populate_by_name": True}


def own_version() -> str:
    return version("distilledge")


def write_result(result: Result, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, result.model_dump_json(by_alias=True, indent=1) + "\n")


def read_result(path: Path) -> Result:
    """Raises ``UsageError`` where there is none, ``RejectedError`` for what is not one, or of another version."""
    if path.is_dir():
        path = path / "result.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "`distilledge benchmark` writes one"
        raise UsageError("E2060", f"no result can be read ({error.strerror}): {path}", hint) from None
    except ValueError:
        raise RejectedError("E3053", f"not JSON: {path}", "give a result.json of `distilledge benchmark`") from None
    if not isinstance(found, dict) or found.get("kind") != "distilledge result":
        raise RejectedError("E3054", f"not a result of ours: {path}", "give a result.json of `distilledge benchmark`")
    if found.get("schema") != 1:
        what = f"schema {found.get('schema')!r} is not read by distilledge {own_version()}: {path}"
        raise RejectedError("E3055", what, "update distilledge, or measure again")
    try:
        return Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        what = f"a damaged result: {'.'.join(map(str, first['loc']))}: {first['msg']}: {path}"
        raise RejectedError("E3056", what, "measure again") from None


def result_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of result files; shipped as recipes/result.schema.json."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "distilledge result"}
    return {**Result.model_json_schema(by_alias=True), **head}


def result_schema_path() -> Path:
    return Path(str(files("distilledge.pipeline.recipes"))) / "result.schema.json"
