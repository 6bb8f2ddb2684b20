"""The quantization ladder in a report: what was tried, what it was calibrated on, which layers int8 costs most."""

from __future__ import annotations

from distilledge.pipeline.compress.ledger import CalibrationAudit, Ledger, Tried
from distilledge.pipeline.evidence import noun
from distilledge.pipeline.report.markup import Markup, el
from distilledge.pipeline.report.sections import NOTHING, folded, grid, section
from distilledge.pipeline.report.table import NONE, number
from distilledge.pipeline.report.vocabulary import ReportContent

TRIED = (
    "Runtime",
    "Rung",
    "How",
    "Points below fp32",
    "Same answers, %",
    "Gained",
    "Size, MB",
    "p50 over fp32",
    "Conversions",
    "Outcome",
    "Why",
)
LAYERS = ("Runtime", "Layer", "Kind", "SQNR, dB", "KL, nats")
LEFT = ("Rung", "How", "Outcome", "Why", "Layer", "Kind")
WORST = 12
"""Layers shown of each runtime."""
EXPLANATION = (
    "Each rung beside the student's fp32 file of the same runtime, on the validation split only; the first whose "
    "budget holds is shipped. Points and p50 have 95 % intervals; p50 is a quick look: the first table has the real."
)
SENSITIVITY = "One layer at a time in int8, all others in float: power of the logits over that of their error, and KL."


def section_of_ladder(content: ReportContent) -> Markup:
    if not content.ledgers:
        return NOTHING
    return section(
        "The quantization ladder",
        EXPLANATION,
        grid(TRIED, tried(content), left=LEFT),
        *(el("p", {"class": "soft"}, line) for line in [*trained(content), *audits(content)]),
        folded(
            "Which layers int8 costs most",
            el("p", {"class": "soft"}, SENSITIVITY),
            grid(LAYERS, layers(content), left=LEFT),
        ),
    )


def tried(content: ReportContent) -> list[list[str]]:
    """A line for each candidate, the shipped one marked."""
    return [
        _line(runtime, one, taken=index == ledger.taken)
        for runtime, ledger in content.ledgers
        for index, one in enumerate(ledger.tried)
    ]


def _line(runtime: str, one: Tried, *, taken: bool) -> list[str]:
    return [
        runtime,
        one.rung,
        one.recipe,
        str(number(one.drop, 2)),
        f"{100 * one.agreement:.1f}",
        NONE if one.gained is None else f"{100 * one.gained:+.1f}",
        f"{one.size_mb:.2f}",
        str(number(one.p50_ratio, 2)) if one.p50_ratio else NONE,
        str(one.conversions),
        f"{_fate(one, taken=taken)}: {one.outcome}",
        one.reason,
    ]


def trained(content: ReportContent) -> list[str]:
    """What rungs that train came to: how true each file is to its network, or why there is none."""
    twins = [(r, one.rung, one.twin) for r, ledger in content.ledgers for one in ledger.tried if one.twin is not None]
    lines = [
        f"{runtime} {rung}: the file answers as the network that the rung trained ({twin.of}) in "
        f"{100 * twin.agreement:.1f} % of the pictures; largest difference of a logit {twin.max_abs:.3g}."
        for runtime, rung, twin in twins
    ]
    return lines + [f"{runtime}: {note}." for runtime, ledger in content.ledgers for note in ledger.notes]


def _fate(one: Tried, *, taken: bool) -> str:
    """The best of those that fail is taken for the gate to judge: it is not shipped by that."""
    if not taken:
        return "refused"
    return "taken" if one.outcome == "fails" else "shipped"


def audits(content: ReportContent) -> list[str]:
    """What each ladder was calibrated on and decided by; one line where all agree."""
    return list(dict.fromkeys(_audit(runtime, ledger, noun(content.recipe)) for runtime, ledger in content.ledgers))


def _audit(runtime: str, ledger: Ledger, samples: str) -> str:
    found = ledger.audit
    counts = ", ".join(f"{name} {n}" for name, n in found.per_class.items())
    unlabelled = bool(found.per_class) and not any(found.per_class.values())
    where = "target's pictures without labels" if unlabelled else f"training split{f' ({counts})' if counts else ''}"
    words = (
        f"{runtime}: decided on {ledger.pictures:,} validation {samples}; calibrated on {found.pictures} of the "
        f"{where}, none of them in validation or test; manifest {found.manifest_sha256[:12]}."
    )
    words += f" Without a sample: {', '.join(found.missing)}." if found.missing else ""
    words += " Every class is covered." if counts and not unlabelled and not found.missing else ""
    return words + _stability(found)


def _stability(found: CalibrationAudit) -> str:
    if found.instability is None or found.worst is None or found.unstable_tensor is None:
        return ""
    times = [2**shift for shift in (found.instability, found.worst)]
    return (
        f" Ranges of two halves differ {times[0]:.2f}-fold (median), at most {times[1]:.2f}-fold "
        f"({short(found.unstable_tensor)})."
    )


def layers(content: ReportContent) -> list[list[str]]:
    return [
        [runtime, short(e.name), e.kind, f"{e.sqnr_db:.1f}", f"{e.kl:.2g}"]
        for runtime, ledger in content.ledgers
        for e in ledger.layers[:WORST]
    ]


def short(name: str) -> str:
    """LiteRT names a tensor by every module it went through: the last of them, and its last two parts."""
    last = [part for part in name.split(";") if len(part) > 1][-1:] or [name]
    parts = last[0].split("/")[-2:]
    return "/".join(part.removeprefix("torch.nn.modules.")[-60:] for part in parts)
