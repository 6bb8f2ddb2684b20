"""Ours beside the tools a user would pick instead: same checkpoint, same calibration data, one run.

    python benchmarks/tools.py --environments DIR     also Olive and optimum-intel, in environments made in DIR
    python benchmarks/tools.py --accuracy-only        no time is recorded: for a busy machine, where also
                                                      --set compress.max_slowdown=100, so that none decides
    python benchmarks/tools.py --markdown             the recorded results into docs/int8.md, nothing is run
    python benchmarks/tools.py --quick                one student, labelled so

Students come from the store of --work, or are trained first. Files that were made stay there too: timing them again is
a matter of minutes. Needs DISTILLEDGE_SHARED. All accuracies are of the test split; NNCF's accuracy control and our
ladder decide on validation. Bars: our file is not certainly less accurate than any of the others, and takes at most
1.03 of the time of the fastest that is not certainly less accurate than ours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import common
import images
import int8
import numpy as np
import text_recipes
from tools_made import TOOLS, Case, Part, SkippedError, Tool, environments

from distilledge.models.errors import DistilledgeError
from distilledge.pipeline import stats, stats_counts
from distilledge.pipeline.benchmark import samples_of
from distilledge.pipeline.builders import BUILDERS
from distilledge.pipeline.chain import Chain
from distilledge.pipeline.compress.judge import encoder_of
from distilledge.pipeline.compress.ladder import spread
from distilledge.pipeline.export import describe, finished
from distilledge.pipeline.outcomes import Outcomes
from distilledge.pipeline.recipe_compress import chosen
from distilledge.pipeline.recipe_file import load_recipe, schema_path
from distilledge.pipeline.record import ExportResult, Split
from distilledge.pipeline.run import device_card, run, silent
from distilledge.pipeline.steps import steps
from distilledge.pipeline.store import Store, Stored
from distilledge.targets import get
from distilledge.targets.base import Exported
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.measure import Candidate, measure, score
from distilledge.targets.ondevice.text import TextSpec, pad
from distilledge.targets.samples import reader

STUDENTS = ("x-sdd-tiny", "magnetic-tile-tiny", "x-sdd-lite0", "trec-tiny")
PLAIN, LADDER = "ours, plain", "ours, ladder"
MAX_RATIO = 1.03
SAMPLES, LAUNCHES = 1024, 4
PACKAGES = (*int8.PACKAGES, "transformers", "litert-torch")
NOTE = "Tools are called as their own pages say; every file is scored and timed by the same code, paired on test"


class Made(NamedTuple):
    tool: str
    directory: Path
    exported: Exported
    how: str
    seconds: float


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=STUDENTS)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="teacher.*: of texts only")
    parser.add_argument("--environments", type=Path, help="folder of the environments of Olive and optimum-intel")
    parser.add_argument("--accuracy-only", action="store_true")
    parser.add_argument("--made-only", action="store_true", help="only files that an earlier run made")
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    options = parser.parse_args()
    if options.markdown:
        page, results = int8.PAGE.read_text(encoding="utf-8"), json.loads((options.out / "tools.json").read_text())
        int8.PAGE.write_text(filled(page, results), encoding="utf-8")
        return
    if "DISTILLEDGE_SHARED" not in os.environ:
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    if options.environments is not None:
        environments(options.environments.absolute())
    rows = [row for name in (options.students[:1] if options.quick else options.students) for row in of(name, options)]
    label = "tools-quick" if options.quick else "tools"
    timed = {"controls": [], "note": NOTE, "timed": not options.accuracy_only}
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra=timed)
    common.finish_recipes(label, facts, rows, bars(rows), STUDENTS, out=options.out)


def of(name: str, options: argparse.Namespace) -> Iterator[common.Row]:
    """Rows of one student in every runtime."""
    texts = name in int8.TEXTS
    overrides = [change for change in options.set if texts or not change.startswith("teacher.")]
    plain, climbed = (chain_of(name, options.work, [*overrides, f"compress.climb={c}"]) for c in ("false", "true"))
    for export in plain.exports():
        if export.value.role != "student":
            continue
        case = case_of(plain, export, options)
        ladder = next(e for e in climbed.exports() if (e.value.role, e.value.runtime) == ("student", case.target.NAME))
        made = [ours(case, export), ours(case, ladder, ladder=True)]
        problems: dict[str, str] = {}
        for tool, by in TOOLS[case.target.NAME].items():
            if case.recipe.is_text in by.texts:
                try:
                    made.append(theirs(case, tool, by, only=options.made_only))
                except SkippedError as reason:
                    problems[tool] = f"skipped: {reason}"
                except Exception as error:  # another tool's, which is a result: it stands in its row
                    problems[tool] = f"failed: {str(error).strip().splitlines()[-1][:200]}"
                print(f"{name} {case.target.NAME} {tool}: {problems.get(tool, 'made')}", file=sys.stderr, flush=True)
        yield from table_rows(case, made, problems, timed=not options.accuracy_only)


def chain_of(name: str, work: Path, overrides: list[str]) -> Chain:
    """A recipe run up to its exports, with what it made."""
    recipe = load_recipe(schema_path().with_name(f"{name}.yaml"), overrides=overrides)
    run(recipe, work, until="export")
    chain = Chain(recipe, Store(work / "store"), steps(recipe, device_card(recipe)), silent)
    for step in chain.steps:
        if step.kind in ("data", "teacher", "student", "control", "pretrain", "export"):
            found = chain.store.lookup(step.kind, step.fingerprint, BUILDERS[step.kind][0])
            assert found is not None, step.name
            chain.done[step.name] = found
    return chain


def case_of(chain: Chain, export: Stored[ExportResult], options: argparse.Namespace) -> Case:
    target = get(export.value.runtime)
    trained = chain.done["student"]
    fp32 = next(file for file in export.value.files if file.precision == "fp32")
    read = reader(fp32.input_spec, export.path)
    own = chain.inputs("train", calibration=True)
    many = chain.recipe.compress.samples or len(own[0])
    held = {s.sha256 for split in ("validation", "test") for s in chain.samples(split)}
    clean = [row for s, row in zip(own[0], samples_of(*own).rows, strict=True) if s.sha256 not in held]
    validation = part_of(chain, "validation")
    validated = [read(row) for row in validation.inputs.rows]
    if chain.recipe.is_text:
        validated = [pad(ids, TextSpec.from_dict(fp32.input_spec)) for ids in validated]
    return Case(
        recipe=chain.recipe,
        target=target,
        deployable=describe(trained.value, target),
        fp32=fp32,
        directory=export.path.absolute(),
        calibration=[read(row)[None] for row in spread(clean, many)],
        validation=validation,
        validated=[array[None] for array in validated],
        test=part_of(chain, "test"),
        encoder=encoder_of(fp32, export.path),
        environments=options.environments.absolute() if options.environments else None,
        folder=(options.work / "tools" / chain.recipe.name / f"{target.NAME}-{fp32.sha256[0][:12]}").absolute(),
    )


def part_of(chain: Chain, split: Split) -> Part:
    given = chain.inputs(split)
    return Part(given[0], samples_of(*given), given[2])


def ours(case: Case, export: Stored[ExportResult], *, ladder: bool = False) -> Made:
    """The most compressed file that a recipe ships: of the ladder the one it took."""
    result = export.value
    if ladder:
        assert result.ledger is not None
        taken = result.ledger.tried[result.ledger.taken]
        file = next(f for f in result.files if f.precision == taken.precision)
        return Made(
            LADDER, export.path, file, f"{taken.rung}: {file.recipe}", sum(t.seconds for t in result.ledger.tried)
        )
    file = next(f for p in chosen(text=case.recipe.is_text) for f in result.files if f.precision == p)
    return Made(PLAIN, export.path, file, file.recipe, file.seconds)


def theirs(case: Case, tool: str, by: Tool, *, only: bool) -> Made:
    """Made once. ``only``: not now."""
    slug = "".join(c if c.isalnum() else "-" for c in tool)
    folder = case.folder / slug
    record = folder / "made.json"
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        return Made(tool, folder, Exported.model_validate(found["exported"]), found["how"], found["seconds"])
    if only:
        raise SkippedError("not made yet")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started, path = time.perf_counter(), folder / f"model{case.target.SUFFIX}"
    how = by.make(case, path)
    seconds = time.perf_counter() - started
    tokenizer = [Path(shutil.copy(case.directory / case.fp32.files[-1], folder))] if case.recipe.is_text else []
    exported = finished(case.target, [path, *tokenizer], by.precision, how, case.deployable, started)
    content = {"exported": exported.model_dump(mode="json"), "how": how, "seconds": seconds}
    record.write_text(json.dumps(content), encoding="utf-8")
    return Made(tool, folder, exported, how, seconds)


def table_rows(case: Case, made: list[Made], problems: dict[str, str], *, timed: bool) -> list[common.Row]:
    fp32 = Made("fp32", case.directory, case.fp32, "as exported", case.fp32.seconds)
    everything = [fp32, *made]
    candidates = [
        Candidate(name=m.tool.replace(",", ""), role="student", directory=str(m.directory), exported=m.exported)
        for m in everything
    ]
    found = [answered(case, one) for one in candidates]
    launches = times(case, candidates) if timed else [None] * len(candidates)
    where = {"recipe": case.recipe.name, "runtime": case.target.NAME, "samples": len(case.test.samples)}
    rows = []
    for one, outcome, taken in zip(everything, found, launches, strict=True):
        ratio = None if taken is None else stats.median_ratio(taken, launches[0] or [], seed=case.recipe.seed)
        rows.append(
            {
                **where,
                "tool": one.tool,
                "how": one.how,
                "precision": one.exported.precision,
                **judged(case, found[0], found[2], outcome),
                "p50_ratio": ratio.value if ratio else None,
                "size_share": one.exported.size_bytes / case.fp32.size_bytes,
                "seconds": one.seconds,
                "problem": None,
            }
        )
    return [*rows, *({**where, "tool": tool, "problem": what} for tool, what in problems.items())]


def answered(case: Case, candidate: Candidate) -> Outcomes:
    """Scored once for each file, by its content."""
    case.folder.mkdir(parents=True, exist_ok=True)
    kept = case.folder / f"{candidate.exported.sha256[0][:16]}.npy"
    if not kept.exists():
        with TemporaryDirectory(prefix="distilledge-tools-") as folder:
            made = score(candidate, LocalDevice(), inputs=case.test.inputs, out=Path(folder))
            shutil.copyfile(Path(folder) / made.logits, kept.with_suffix(".tmp"))
        kept.with_suffix(".tmp").replace(kept)
    return case.judged(case.test, np.load(kept))


def judged(case: Case, fp32: Outcomes, ladder: Outcomes, one: Outcomes) -> common.Row:
    """The metric in per cent; points below fp32, and below our ladder's file, paired."""
    metric, seed = case.recipe.metric, case.recipe.seed
    labels = np.asarray([s.label for s in case.test.samples], np.int64)
    groups = [s.group for s in case.test.samples]
    named = groups if any(groups) else None
    value = stats_counts.interval(one.counts, labels, metric=metric, groups=named, seed=seed)
    row: common.Row = {}
    for name, estimate, scale in (
        ("value", value, 100.0),
        ("drop_fp32", stats_counts.drop(fp32.counts, one.counts, labels, metric=metric, groups=named, seed=seed), 1.0),
        (
            "ours_below",
            stats_counts.drop(one.counts, ladder.counts, labels, metric=metric, groups=named, seed=seed),
            1.0,
        ),
    ):
        low, high = estimate.low, estimate.high
        row |= {name: scale * estimate.value, f"{name}_low": None if low is None else scale * low}
        row |= {f"{name}_high": None if high is None else scale * high}
    row["agreement"] = float(np.mean([a == b for a, b in zip(one.answers, fp32.answers, strict=True)]))
    return row


def times(case: Case, candidates: list[Candidate]) -> list[list[tuple[int, ...]]]:
    """Launches of each file, all interleaved."""
    try:
        found = measure(
            candidates,
            LocalDevice(),
            threads=1,
            samples=SAMPLES,
            min_seconds=0.0,
            launches=LAUNCHES,
            warmup=case.recipe.measure.warmup,
            end_to_end=0,
            quick=False,
            inputs=case.test.inputs,
        )
    except DistilledgeError as error:
        sys.exit(f"{case.recipe.name} {case.target.NAME}: {error}")
    return [[tuple(launch.latency_ns) for launch in m.launches] for m in found]


def bars(rows: list[common.Row]) -> list[common.Row]:
    found = []
    for where in dict.fromkeys((r["recipe"], r["runtime"]) for r in rows):
        own = [r for r in rows if (r["recipe"], r["runtime"]) == where and r["problem"] is None]
        ladder = next(r for r in own if r["tool"] == LADDER)
        others = [r for r in own if r["tool"] not in ("fp32", PLAIN, LADDER)]
        if not others:
            continue
        name = " ".join(where)
        most = max(r["ours_below_low"] if r["ours_below_low"] is not None else r["ours_below"] for r in others)
        found.append(common.bar(f"{name}: points that ours is certainly below the best tool", max(0.0, most), 0.0))
        sound = [r for r in others if r["p50_ratio"] is not None and (r["ours_below_high"] or 0.0) >= 0]
        if sound and ladder["p50_ratio"] is not None:
            fastest = min(r["p50_ratio"] for r in sound)
            found.append(common.bar(f"{name}: p50 over the fastest tool's", ladder["p50_ratio"] / fastest, MAX_RATIO))
    return found


def filled(page: str, results: common.Row) -> str:
    """The page with both tables between their markers."""
    page = images.between(page, "tools", markdown(results["rows"]))
    return images.between(page, "tools bars", text_recipes.bars_markdown(results["bars"]))


def markdown(rows: list[common.Row]) -> str:
    titles = ("recipe", "runtime", "tool", "precision", "metric, % (95 %)", "below fp32, points (95 %)")
    titles = (*titles, "ours below it, points (95 %)", "as fp32, %", "p50 over fp32", "size over fp32")
    lines = [f"| {' | '.join(titles)} |", "|---|---|---|---|---|---|---|---:|---:|---:|"]
    for row in rows:
        cells = [row["recipe"], row["runtime"], row["tool"]]
        if row["problem"]:
            lines.append(f"| {' | '.join([*cells, '-', row['problem'], *['-'] * 5])} |")
            continue
        cells += [row["precision"], int8.interval(row, "value", 1), int8.interval(row, "drop_fp32", 2)]
        cells += [int8.interval(row, "ours_below", 2), f"{100 * row['agreement']:.1f}"]
        cells += ["-" if row["p50_ratio"] is None else f"{row['p50_ratio']:.2f}", f"{row['size_share']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
