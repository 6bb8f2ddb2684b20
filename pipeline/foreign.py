"""Timing model files that anybody made, as they are: looked at here, fed and timed on a device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from distilledge.models.base import Value
from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.benchmark import QUICK_SAMPLES
from distilledge.pipeline.foreign_pictures import Labelled, score
from distilledge.pipeline.protocol import quickened
from distilledge.pipeline.result_file import (
    Failure,
    FileCard,
    InputCard,
    Item,
    PortCard,
    Result,
    Timing,
    own_version,
)
from distilledge.targets.base import Exported, Measurement, Precision
from distilledge.targets.devices import Device
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.foreign import described
from distilledge.targets.look import RUNTIME_OF, Looked, look
from distilledge.targets.made_inputs import RULE, digest, given, made
from distilledge.targets.measure import ARRAYS, Candidate, measure
from distilledge.targets.ondevice.ports import Feed, Port, write_feeds
from distilledge.targets.placement import file_of, profile
from distilledge.targets.protocol import SAMPLES, SECONDS, CoolDown, Scenario, ScenarioRun
from distilledge.targets.samples import Samples
from distilledge.targets.scenarios import run_scenario
from distilledge.targets.steady import Steady
from distilledge.targets.units import Profile

log = logging.getLogger("distilledge")
Say = Callable[[str], None]


class Settings(Value):
    """How files are timed."""

    threads: int = 1
    samples: int = 1024
    seconds: float = 60.0
    launches: int = 3
    warmup: int = 20
    quick: bool = False
    seed: int = 0
    shapes: dict[str, tuple[int, ...]] = {}
    """By input name; "" where the file has one input."""
    scenarios: tuple[Scenario, ...] = ()
    """Beside single-stream."""


class Given(NamedTuple):
    """A file of the command line, looked at."""

    name: str
    role: str
    path: Path
    looked: Looked


class Fed(NamedTuple):
    """What a device's runtime says of a file, and what it is fed."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    feeds: list[Feed]


def is_model(path: str | Path) -> bool:
    """Whether an argument of ``benchmark`` is a model file and not a recipe."""
    return Path(path).suffix in RUNTIME_OF


def open_files(paths: Sequence[Path], baseline: Path | None, shapes: Sequence[str] = ()) -> list[Given]:
    """Look at each file; names are those of the files, with their folders where two are alike.

    ``shapes``: input names that the user gives shapes of; each must be one of some file.
    """
    everything = [*paths, *([baseline] if baseline else [])]
    plain = [path.name for path in everything]
    names = [p.name if plain.count(p.name) == 1 else p.as_posix() for p in everything]
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise UsageError("E2061", f"given twice: {again}", "name each file once")
    roles = ["candidate"] * len(paths) + ["baseline"]
    opened = [Given(n, r, p, look(p)) for n, r, p in zip(names, roles, everything, strict=False)]
    known = list(dict.fromkeys(name for one in opened for name in one.looked.inputs))
    strange = next((name for name in shapes if name and name not in known), None)
    if strange or ("" in shapes and any(len(one.looked.inputs) > 1 for one in opened)):
        what = f"no input {strange!r}" if strange else "--shape without a name, and several inputs"
        raise UsageError("E2063", f"{what}; there are {', '.join(known)}", "write --shape NAME=1x224x224x3")
    return opened


def measure_files(
    opened: Sequence[Given],
    device: Device,
    name: str,
    settings: Settings,
    inputs: Path | None,
    say: Say,
    *,
    pictures: Labelled | None = None,
) -> tuple[dict[str, Any], tuple[Item, ...]]:
    """Device card and one item for each file, all timed in turn in one run.

    Raises ``RejectedError`` (exit 3) for a file that the device's runtime does not take, ``UsageError`` for inputs
    that do not fit, and what the device raises.
    """
    card = device.facts()
    say("sending")
    with TemporaryDirectory(prefix="distilledge-foreign-") as folder:
        candidates, fed, arrays = [], [], {}
        for number, one in enumerate(opened):
            candidates.append(candidate(one, settings, device))
            fed.append(_fed(candidates[-1], device, settings, inputs))
            arrays[one.name] = str(Path(folder) / f"{number}.npz")
            write_feeds(arrays[one.name], fed[-1].feeds)
        rows = tuple(arrays.values())
        brief = settings.quick or settings.samples < SAMPLES or settings.seconds < SECONDS
        found = measure(
            candidates,
            device,
            threads=settings.threads,
            samples=QUICK_SAMPLES if settings.quick else settings.samples,
            min_seconds=0.0 if settings.quick else settings.seconds,
            launches=1 if settings.quick else settings.launches,
            warmup=settings.warmup,
            end_to_end=0,
            quick=brief,
            steady=Steady(CoolDown(), clock=not brief),
            inputs=Samples(rows, arrays=arrays),
            progress=lambda share: say(f"measuring {100 * share:.0f} %"),
        )
        ran = [_scenarios(c, device, settings, Samples(rows, arrays=arrays), say) for c in candidates]
    items = [_item(one, f, m, name, settings, inputs) for one, f, m in zip(opened, fed, found, strict=True)]
    items = [i.model_copy(update={"scenarios": runs}) for i, runs in zip(items, ran, strict=True)]
    if pictures:
        scores = [score(c, f.inputs, pictures, device, say) for c, f in zip(candidates, fed, strict=True)]
        items = [i.model_copy(update={"accuracy": one}) for i, one in zip(items, scores, strict=True)]
    return card, tuple(items)


def _scenarios(
    one: Candidate, device: Device, settings: Settings, inputs: Samples, say: Say
) -> tuple[ScenarioRun, ...]:
    made = []
    for scenario in map(quickened, settings.scenarios) if settings.quick else settings.scenarios:
        say(scenario.name)
        found = run_scenario(one, device, scenario, threads=settings.threads, inputs=inputs, warmup=settings.warmup)
        made.append(found)
    return tuple(made)


def profiles(paths: Sequence[Path], device: Device, settings: Settings) -> Iterator[Profile]:
    """Where the operations of each file run on the device, and its layers' times."""
    for one in open_files(paths, None, list(settings.shapes)):
        file = file_of(candidate(one, settings, device))
        yield profile(file, device, threads=settings.threads)


def candidate(one: Given, settings: Settings, device: Device) -> Candidate:
    """``precision`` of a float16 file is fp16: OpenVINO then runs it so where the CPU can; it says in which it runs."""
    looked = one.looked
    deep = [name for name in looked.files if "/" in name]
    if deep and not isinstance(device, LocalDevice):
        what = f"{one.path} has its weights in another folder ({deep[0]}), which is not sent to a device"
        raise RejectedError("E3057", what, "save the model with its external data beside it")
    shapes = {name: list(v) for name, v in settings.shapes.items() if not name or name in looked.inputs}
    precision: Precision = "fp16" if looked.precision == "float16" else "fp32"
    exported = Exported(
        runtime=looked.runtime,
        precision=precision,
        files=looked.files,
        sha256=looked.sha256,
        size_bytes=looked.size_bytes,
        input_shape=(),
        classes=(),
        input_spec={"kind": ARRAYS, "shapes": shapes},
        versions={},
        recipe="",
        seconds=0.0,
    )
    return Candidate(name=one.name, role="student", directory=str(one.path.parent), exported=exported)


def _fed(one: Candidate, device: Device, settings: Settings, inputs: Path | None) -> Fed:
    loaded = described(one, device, settings.threads)
    ins, outs = (
        tuple(Port(p["name"], p["dtype"], tuple(p["shape"])) for p in loaded[k]) for k in ("inputs", "outputs")
    )
    return Fed(ins, outs, given(inputs, ins) if inputs else made(ins, settings.seed))


def _item(one: Given, fed: Fed, found: Measurement, device: str, settings: Settings, inputs: Path | None) -> Item:
    kind = {"kind": "given"} if inputs else {"kind": "made", "seed": settings.seed, "rule": RULE}
    return Item(
        name=one.name,
        device=device,
        role="baseline" if one.role == "baseline" else "candidate",
        file=FileCard(
            runtime=one.looked.runtime,
            files=dict(zip(one.looked.files, one.looked.sha256, strict=True)),
            size_bytes=one.looked.size_bytes,
            precision=one.looked.precision,
            operations=one.looked.operations,
            weights=one.looked.weights,
            inputs=_cards(fed.inputs),
            outputs=_cards(fed.outputs),
        ),
        input=InputCard.model_validate(
            {
                **kind,
                "sha256": digest(fed.inputs, fed.feeds),
                "rows": len(fed.feeds),
                "shape": {p.name: p.shape for p in fed.inputs},
            }
        ),
        timing=timing(found),
    )


def timing(found: Measurement) -> Timing:
    return Timing(
        threads=found.threads,
        batch=found.batch,
        warmup=found.warmup,
        quick=found.quick,
        runtime_version=found.runtime_version,
        execution_precision=found.execution_precision,
        flags=found.flags,
        launches=found.launches,
    )


def _cards(ports: Sequence[Port]) -> tuple[PortCard, ...]:
    return tuple(PortCard(name=p.name, dtype=p.dtype, shape=p.shape) for p in ports)


def result(
    measured: dict[str, tuple[dict[str, Any], tuple[Item, ...]]],
    failed: dict[str, Failure],
    *,
    command: str,
    release: str,
) -> Result:
    """``measured``: by device, its card and items."""
    return Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=own_version(),
        command=command,
        release=release,
        devices={name: card for name, (card, _) in measured.items()},
        items=tuple(item for _, items in measured.values() for item in items),
        failed=failed,
    )


def shapes_of(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``NAME=1x224x224x3`` or, of one input, ``1x224x224x3``. Raises ``UsageError``."""
    found = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        with suppress(ValueError):
            found[name] = tuple(int(size) for size in sizes.lower().replace(",", "x").split("x"))
        if min(found.get(name, (0,))) < 1:
            raise UsageError("E2062", f"not a shape: {text}", "write --shape NAME=1x224x224x3")
    return found
