"""Search: what fits is found first, what does not is never trained, the rest goes through successive halving.

Everything is in the store by its fingerprint: timings, rounds, half-finished trainings. A killed search goes on by the
same command. Judged on the validation split; the test split stays for ``run`` with the winner.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from distilledge.models.errors import GateFailedError
from distilledge.pipeline.chain import Chain, Report
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_models
from distilledge.pipeline.recipe_text import recipe_to_yaml
from distilledge.pipeline.run import run_step
from distilledge.pipeline.search.candidates import Candidate, candidates, class_count, recipe_of
from distilledge.pipeline.search.finals import points_of, stopped_points
from distilledge.pipeline.search.fit import Ground, fit, standing
from distilledge.pipeline.search.fits import FitResult, by_candidate, of_candidate
from distilledge.pipeline.search.halving import Corner, Judged, front, schedule
from distilledge.pipeline.search.report import write
from distilledge.pipeline.search.result import Looked, Point, SearchResult
from distilledge.pipeline.search.rounds import halve
from distilledge.pipeline.steps import steps
from distilledge.pipeline.store import atomic_write, run_lock

WINNER = "winner.yaml"
Told = Callable[[str], None]
Rounds = dict[Candidate, list[Judged]]


def search(recipe: Recipe, work: Path, *, command: str, report: Report, told: Told) -> tuple[SearchResult, Path]:
    """Leave search.json, search.html, search.md and winner.yaml in ``work/searches/NAME``, which is returned.

    Raises ``UsageError`` for a student that cannot be taught, ``GateFailedError`` where none fits before the trainings
    or none of the finished ones after, and what the stages raise.
    """
    for one in candidates(recipe):
        check_models(recipe_of(recipe, one))
    directory = work / "searches" / recipe.name
    directory.mkdir(parents=True, exist_ok=True)
    with run_lock(directory):
        (directory / WINNER).unlink(missing_ok=True)
        with standing(recipe, work, class_count(recipe)) as ground:
            found = fit(ground, told)
        chains = _chains(recipe, _admitted(recipe, found), ground, report)
        planned = schedule(recipe.student.training.epochs, recipe.search.rounds, recipe.search.eta)
        rounds = halve(chains, planned, recipe.search.eta, told)
        points = _points(chains, rounds, planned, found, ground)
        best, why = winner(points)
        result = SearchResult(
            recipe=recipe,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            device=found.card,
            pictures=len(next(iter(chains.values())).samples("validation")),
            schedule=planned,
            fits=found.rows,
            looked=_looked(recipe, found, rounds, planned),
            points=points,
            winner=best,
            winner_why=why,
        )
        write(result, directory)
        if best is None:
            raise GateFailedError("E5042", why, f"see {directory / 'search.html'}, or widen `budgets`")
        atomic_write(directory / WINNER, winning_recipe(result, best))
    return result, directory


def _admitted(recipe: Recipe, found: FitResult) -> list[Candidate]:
    outcomes = {c: of_candidate(r, climbs=recipe.compress.climb) for c, r in by_candidate(found.rows).items()}
    admitted = [one for one, outcome in outcomes.items() if outcome != "over"]
    if not admitted:
        raise GateFailedError(
            "E5041",
            f"no student fits, none was trained: {'; '.join(_reasons(found))}",
            "name smaller ones or smaller sizes under `search`, or widen `budgets`",
        )
    return admitted


def _reasons(found: FitResult) -> list[str]:
    return [f"{r.candidate.name} {r.runtime} {r.precision}: {r.why}" for r in found.rows if r.outcome == "over"]


def _chains(recipe: Recipe, admitted: list[Candidate], ground: Ground, report: Report) -> dict[Candidate, Chain]:
    """A chain for each student, without a control; all have the same data."""
    chains: dict[Candidate, Chain] = {}
    for one in admitted:
        own = recipe_of(recipe, one)
        alone = own.model_copy(update={"distill": own.distill.model_copy(update={"control": False})})
        chain = chains[one] = Chain(alone, ground.store, steps(alone, ground.card), report)
        first = next(iter(chains.values()))
        if chain is first:
            run_step(chain, chain.steps[0])
        chain.done["data"] = first.done["data"]
    return chains


def _points(
    chains: dict[Candidate, Chain], rounds: Rounds, planned: tuple[int, ...], found: FitResult, ground: Ground
) -> tuple[Point, ...]:
    """Of finished students their own files, of the others what is known; the best trade-offs of each runtime marked."""
    finished = {one: chains[one] for one, judged in rounds.items() if len(judged) == len(planned)}
    made = list(points_of(finished, found.rows, ground))
    made += stopped_points(chains, {c: r for c, r in rounds.items() if c not in finished}, found.rows)
    best: set[int] = set()
    for runtime in {point.runtime for point in made}:
        own = [i for i, point in enumerate(made) if point.runtime == runtime]
        corners = [Corner(made[i].metric.value, made[i].p50.value, made[i].size_mb) for i in own]
        best |= {own[i] for i in front(corners)}
    return tuple(point.model_copy(update={"front": i in best}) for i, point in enumerate(made))


def winner(points: tuple[Point, ...]) -> tuple[tuple[str, int] | None, str]:
    """Of the finished students whose shipped files keep the budgets, the one that answers best, and why.

    By the worst runtime: a certain fit before an undecided one, then the metric, then the smaller p50. None where every
    one of them breaks a limit.
    """
    shipped: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        if point.ships:
            shipped.setdefault((point.model, point.size), []).append(point)
    keeping = {key: own for key, own in shipped.items() if all(p.outcome != "over" for p in own)}
    if not keeping:
        names = ", ".join(f"{model} {size}" for model, size in shipped)
        return None, f"every student that was trained to the end breaks a budget: {names}"

    def key(one: tuple[str, int]) -> tuple[float, ...]:
        own = keeping[one]
        undecided = any(p.outcome == "inconclusive" for p in own)
        return (undecided, -min(p.metric.value for p in own), max(p.p50.value for p in own))

    best = min(keeping, key=key)
    own = keeping[best]
    words = f"{min(p.metric.value for p in own):.2f} points in its worst runtime, of {len(keeping)} within budget"
    if any(p.outcome == "inconclusive" for p in own):
        words += "; whether it keeps every budget is not decided"
    return best, words


def winning_recipe(result: SearchResult, best: tuple[str, int]) -> str:
    """A complete recipe: every field, with those that were set on the command line."""
    recipe, (model, size) = result.recipe, best
    own = recipe_of(recipe, Candidate(model, size))
    named = own.model_copy(update={"name": f"{recipe.name[:57]}-winner", "smoke": {}})
    head = f"# The winner of `{result.command}`: {model} at {size} px, {result.winner_why}.\n"
    found = "# Its teacher and student are in the store of that search: `distilledge run` trains them not again.\n"
    return head + found + recipe_to_yaml(named)


def _looked(recipe: Recipe, found: FitResult, rounds: Rounds, planned: tuple[int, ...]) -> tuple[Looked, ...]:
    return tuple(
        Looked(
            model=one.model,
            size=one.size,
            outcome=of_candidate(rows, climbs=recipe.compress.climb),
            why=tuple(f"{r.runtime} {r.precision}: {r.why}" for r in rows if r.why),
            rounds=tuple(rounds.get(one, ())),
            kept=len(rounds.get(one, ())) == len(planned),
        )
        for one, rows in by_candidate(found.rows).items()
    )
