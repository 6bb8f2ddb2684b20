"""``benchmark``, of a recipe or of any model file, and ``compare``, of what it leaves."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilledge.models.errors import DistilledgeError, GateFailedError, InconclusiveError, UsageError
from distilledge.pipeline.cli_lists import Json, table

if TYPE_CHECKING:
    from distilledge.pipeline.comparable import Named
    from distilledge.pipeline.foreign import Settings
    from distilledge.pipeline.foreign_pictures import Labelled
    from distilledge.pipeline.result_file import Result
    from distilledge.targets.units import Profile

WORK = Path("distilledge-work")
NONE: list[str] = []
NO_PATHS: list[Path] = []
SCENARIOS = ("offline", "fixed-rate", "sustained")
RECIPE_PATHS = {
    "samples": "measure.samples",
    "seconds": "measure.min_seconds",
    "launches": "measure.launches",
    "threads": "measure.threads",
}


def benchmark(  # noqa: PLR0913, PLR0917 (the options of a command)
    what: Annotated[list[str], typer.Argument(help="Model files (.onnx, .xml, .tflite), or one recipe.")],
    device: Annotated[list[str], typer.Option(help="A name of devices.yaml; several: all at once.")] = NONE,
    baseline: Annotated[Path | None, typer.Option(help="An earlier release, timed in turn in the same run.")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="1 by default; 0: all cores.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Inferences of each file at least: 1,024.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Timed seconds of each file at least: 60.")] = None,
    launches: Annotated[int | None, typer.Option(min=1, help="Processes of each file: 3.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="256 samples, one launch; labelled as such.")] = False,
    shape: Annotated[list[str], typer.Option(help="NAME=1x224x224x3, of an input whose shape is open.")] = NONE,
    inputs: Annotated[Path | None, typer.Option(help=".npy or .npz to be fed; else arrays are made.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the arrays that are made.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder of class folders, to be scored on too.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Names of the outputs in order, one a line.")] = None,
    range_: Annotated[str, typer.Option("--range", help="What a float input takes for black..white.")] = "0..1",
    scenario: Annotated[list[str], typer.Option(help="Beside single-stream: offline, fixed-rate, sustained.")] = NONE,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames per second of fixed-rate.")] = 30.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print where each file's operations ran, and its longest layers.")
    ] = False,
    release: Annotated[str, typer.Option(help="Your name of what is measured, kept in the result.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where the result goes.")] = None,
    set_: Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Of a recipe.")] = NONE,
    work: Annotated[Path, typer.Option("--work", help="Where the store, the runs and the results lie.")] = WORK,
    smoke: Annotated[bool, typer.Option("--smoke", help="A recipe shrunk by its own `smoke` block.")] = False,
    as_json: Json = False,
) -> None:
    """Time any model file, or the files of a recipe and their teacher, on one device or many."""
    from distilledge.pipeline.foreign import is_model

    asked = _scenarios(scenario, fps)
    timed = {"threads": threads, "samples": samples, "seconds": seconds, "launches": launches}
    command = shlex.join(["distilledge", *sys.argv[1:]])
    if any(map(is_model, what)):
        from distilledge.pipeline.foreign import Settings, shapes_of
        from distilledge.pipeline.foreign_pictures import labelled, range_of

        _only("a model file", {"set": set_, "smoke": smoke})
        chosen = {name: value for name, value in {**timed, "seed": seed}.items() if value is not None}
        more = {"quick": quick, "shapes": shapes_of(shape), "scenarios": asked}
        settings = Settings.model_validate({**chosen, **more})
        scored = labelled(pictures, labels, range_of(range_)) if pictures else None
        given = [Path(w) for w in what]
        found = _files(given, baseline, device, settings, inputs, command, release, pictures=scored)
        _finish(*found, out or work / "results" / _file_name(what[0], found[0]), as_json)
        if profile:
            _profile_files(given, device, settings, as_json)
        return
    files = {"baseline": baseline, "shape": shape, "inputs": inputs, "seed": seed, "pictures": pictures}
    _only("a recipe", {**files, "labels": labels, "release": release})
    if len(what) > 1:
        raise UsageError("E2075", f"several recipes: {' '.join(what)}", "give one, or model files")
    overrides = [*set_, *_overrides(timed, quick, asked)]
    directory = _recipe(what[0], overrides, device, work, smoke, as_json, out, command)
    if profile:
        _profile_recipe(directory, as_json)


def _scenarios(names: list[str], fps: float) -> list[dict[str, Any]]:
    """As a recipe's ``measure.scenarios`` holds them."""
    wrong = next((name for name in names if name not in SCENARIOS), None)
    if wrong:
        raise UsageError("E2074", f"no such scenario: {wrong}", f"choose from {', '.join(SCENARIOS)}")
    return [{"name": name, **({"fps": fps} if name == "fixed-rate" else {})} for name in names]


def _overrides(timed: dict[str, Any], quick: bool, scenarios: list[dict[str, Any]]) -> list[str]:
    found = [f"{RECIPE_PATHS[k]}={[v] if k == 'threads' else v}" for k, v in timed.items() if v is not None]
    found += ["measure.quick=true"] if quick else []
    return found + ([f"measure.scenarios={json.dumps(scenarios)}"] if scenarios else [])


def _profile_files(paths: list[Path], devices: list[str], settings: Settings, as_json: bool) -> None:
    from distilledge.pipeline.fleet_run import known
    from distilledge.pipeline.foreign import profiles
    from distilledge.pipeline.inventory import opened

    for name in known(devices):
        with opened(name) as device:
            _say_profiles(profiles(paths, device, settings), as_json)


def _profile_recipe(directory: Path, as_json: bool) -> None:
    from distilledge.pipeline.profile import profiles_of
    from distilledge.pipeline.record import RunRecord

    run = RunRecord.model_validate_json((directory / "run.json").read_bytes())
    _say_profiles(profiles_of(run).items, as_json)


def _say_profiles(found: Iterable[Profile], as_json: bool) -> None:
    from distilledge.pipeline.profile import in_words

    for one in found:
        typer.echo(one.model_dump_json() if as_json else in_words(one))


def _only(kind: str, given: dict[str, Any]) -> None:
    strange = [name for name, value in given.items() if value]
    if strange:
        raise UsageError("E2076", f"--{strange[0]} says nothing to {kind}", "leave it out")


def _file_name(first: str, result: Result | None) -> str:
    when = (result.created if result else "").replace(":", "").replace("-", "").partition("+")[0]
    return f"{Path(first).stem}-{when}.json"


def _files(
    paths: list[Path],
    baseline: Path | None,
    devices: list[str],
    settings: Settings,
    inputs: Path | None,
    command: str,
    release: str,
    *,
    pictures: Labelled | None,
) -> tuple[Result | None, dict[str, DistilledgeError]]:
    from distilledge.pipeline.cli_states import shown
    from distilledge.pipeline.fleet_run import failure, known, on_each
    from distilledge.pipeline.foreign import measure_files, open_files, result
    from distilledge.pipeline.inventory import opened

    names, files = known(devices), open_files(paths, baseline, list(settings.shapes))

    def work(name: str, say: Any) -> Any:
        say("connecting")
        with opened(name) as device:
            return measure_files(files, device, name, settings, inputs, say, pictures=pictures)

    with shown(names) as states:
        made, failed = on_each(names, work, states)
    whys = {name: failure(error) for name, error in failed.items()}
    if not made:
        return None, failed
    return result(made, whys, command=command, release=release), failed


def _recipe(
    recipe: str,
    overrides: list[str],
    devices: list[str],
    work: Path,
    smoke: bool,
    as_json: bool,
    out: Path | None,
    command: str,
) -> Path:
    """The run folder; of several devices the one that the last stage common to them left."""
    from distilledge.pipeline.cli_run import run_recipe
    from distilledge.pipeline.fleet_run import benchmark_fleet, gathered, known
    from distilledge.pipeline.recipe_result import NAME
    from distilledge.pipeline.result_file import read_result, write_result
    from distilledge.pipeline.run import run

    if len(devices) < 2:
        overrides = [*overrides, *(f"measure.device={name}" for name in devices)]
        directory = run_recipe(recipe, overrides, work, smoke, "score", as_json, quiet=not as_json)
        found = read_result(directory / NAME)
        if as_json and out:
            write_result(found, out)
        elif not as_json:
            _finish(found, {}, out or directory / NAME, as_json=False)
        return directory
    from distilledge.pipeline.cli_run import load_for
    from distilledge.pipeline.cli_states import shown

    names = known(devices)
    directory = run_recipe(recipe, overrides, work, smoke, "verify", False, quiet=True)
    loaded = load_for(recipe, overrides, smoke)
    with shown(names) as states:
        made, failed = benchmark_fleet(
            loaded,
            work.absolute(),
            names,
            command=command,
            states=states,
            run=lambda own, where, until, said: run(own, where, until=until, command=said),
        )
    results = [read_result(path / NAME) for path in made.values()]
    whole = gathered(results, failed, command) if results else None
    _finish(whole, failed, out or directory / NAME, as_json)
    return directory


def _finish(result: Result | None, failed: dict[str, DistilledgeError], out: Path, as_json: bool) -> None:
    """Write and show what there is; raise the worst of what went wrong."""
    from distilledge.pipeline.fleet_run import worst
    from distilledge.pipeline.report.protocol import scenario_tables
    from distilledge.pipeline.result_file import write_result
    from distilledge.pipeline.result_rows import HEAD, rows

    if result:
        write_result(result, out)
        if as_json:
            typer.echo(json.dumps({"result": str(out), **json.loads(result.model_dump_json(by_alias=True))}))
        else:
            table(HEAD, rows(result))
            for one in scenario_tables([run for item in result.items for run in item.scenarios]):
                if one.rows:
                    typer.echo(f"\n{one.title}. {one.explanation}")
                    table(one.columns, list(one.rows))
            typer.echo(f"written: {out}")
    error = worst(failed)
    for name, other in failed.items():
        if other is not error:
            typer.echo(f"{name}: {other}", err=True)
    if error:
        raise error


def compare(
    results: Annotated[list[Path], typer.Argument(help="Result files: the baseline, then newer ones.")],
    gate: Annotated[Path | None, typer.Option(help="gates.yaml with the limits.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML for a CI server.")] = None,
    md: Annotated[Path | None, typer.Option(help="Write a Markdown table for a pull request.")] = None,
    history: Annotated[list[Path], typer.Option(help="Results of earlier releases, or folders of them.")] = NO_PATHS,
    allow_flagged: Annotated[
        bool, typer.Option("--allow-flagged", help="Show flagged timings too; they never pass.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge a newer result against a baseline and limits: exit 0 pass, 5 fail, 10 inconclusive."""
    from distilledge.pipeline.compare import compare as judge
    from distilledge.pipeline.compare_report import junit as as_junit
    from distilledge.pipeline.compare_report import markdown, said
    from distilledge.pipeline.gates_file import Gates, load_gates
    from distilledge.pipeline.store import atomic_write

    gates = load_gates(gate) if gate else Gates()
    named = [_named(path) for path in results]
    own = {n: d.baseline for n, d in gates.devices.items() if d.baseline}
    baselines = {name: _named((gate or Path()).parent / path) for name, path in own.items()}
    earlier = [_named(path) for place in history for path in _inside(place)]
    found = judge(named, gates, baselines=baselines, history=earlier, allow_flagged=allow_flagged)
    if junit:
        atomic_write(junit, as_junit(found))
    if md:
        atomic_write(md, markdown(found, named))
    if as_json:
        typer.echo(json.dumps({"outcome": found.outcome, **json.loads(found.model_dump_json())}))
    else:
        for item in found.items:
            typer.echo(f"{item.outcome}: {item.name} on {item.device} {' '.join(item.flags)}".rstrip())
            for line in (*map(said, item.checks), *item.notes):
                typer.echo(f"  {line}")
    names = [f"{i.name} on {i.device}" for i in found.items if i.outcome == found.outcome]
    if found.outcome == "fail":
        raise GateFailedError("E5010", f"worse than the gates allow: {', '.join(names)}", "see the lines above")
    if found.outcome == "inconclusive":
        hint = "measure more samples or launches, or score more pictures"
        raise InconclusiveError("EA060", f"not decided: {', '.join(names)}", hint)


def _named(path: Path) -> Named:
    from distilledge.pipeline.comparable import Named
    from distilledge.pipeline.result_file import read_result

    found = read_result(path)
    return Named(found.release or (path.parent.name if path.name == "result.json" else path.stem), found)


def _inside(place: Path) -> list[Path]:
    """A file itself; of a folder the results that lie in it."""
    if not place.is_dir():
        return [place]
    mark = '"kind": "distilledge result"'
    return [path for path in sorted(place.rglob("*.json")) if mark in path.read_text(encoding="utf-8")[:200]]
