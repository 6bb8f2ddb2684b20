"""Why an int8 file is slower than its float file: which operations take the time, and what can be done about it."""

from __future__ import annotations

from collections import defaultdict

from distilledge.models.base import Value
from distilledge.targets.units import Profile, storms

SHOWN = 4
"""Kinds of operations named."""
SURGERY = "student.surgery={activation: relu6, squeeze_excite: drop}"
CUTTABLE = ("swish", "sigmoid", "silu", "gelu", "logistic", "mish")
"""Of an operation's name: activations that runtimes compute in float between two conversions, or by tables."""


class TimeShare(Value):
    """All operations of one kind, as the runtime runs them."""

    type: str
    operations: int
    share: float
    """Of the time under the runtime's profiler, 0..1."""


class Slowness(Value):
    """Read back where a file was refused for being slower than float."""

    shares: tuple[TimeShare, ...]
    """Longest first; empty where the runtime gave no times."""
    conversions: float | None
    """Share of the time in operations that only turn float into int8 or back; None without times."""
    fix: str

    @property
    def words(self) -> str:
        named = [f"{s.type} x{s.operations} {100 * s.share:.0f} %" for s in self.shares[:SHOWN]]
        spent = f"of its time: {', '.join(named)}" if named else "no times from the runtime's profiler"
        between = "" if self.conversions is None else f"; conversions {100 * self.conversions:.0f} %"
        return f"{spent}{between}. {self.fix}"


def slowness(profile: Profile, float_operations: tuple[str, ...], *, islands: bool) -> Slowness:
    """What takes the time in a file that is slower than float. ``float_operations``: types with counts, as exported."""
    spent: dict[str, list[float]] = defaultdict(list)
    for layer in profile.layers:
        if layer.share is not None:
            spent[layer.type] += [layer.share, *[0.0] * (layer.calls - 1)]
    shares = [TimeShare(type=kind, operations=len(each), share=sum(each)) for kind, each in spent.items()]
    return Slowness(
        shares=tuple(sorted(shares, key=lambda s: -s.share)),
        conversions=profile.placement.boundary_share,
        fix=fix(profile, float_operations, islands=islands),
    )


def fix(profile: Profile, float_operations: tuple[str, ...], *, islands: bool) -> str:
    """One sentence: the first that applies of cutting, fewer islands, and float."""
    kinds = [*float_operations, *(layer.type for layer in profile.layers)]
    if any(word in kind.lower() for kind in kinds for word in CUTTABLE):
        return f"Try {SURGERY}"
    if islands and storms(profile.placement):
        return "Try fewer islands: each costs a conversion before and behind it"
    return "The int8 operations themselves are no faster here: try float16, another runtime, or the board it is for"
