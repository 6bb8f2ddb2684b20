"""The calibration auditor: what static int8 is calibrated on must be the training set's, cover it, and be enough."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from distilledge.models.errors import RejectedError
from distilledge.pipeline.compress.ledger import CalibrationAudit
from distilledge.pipeline.record import Sample
from distilledge.targets.ranges import Observed


def check_own(chosen: Sequence[Sample], others: Sequence[Sample]) -> None:
    """Raise ``RejectedError`` where a calibration picture is not of train (or of a target, without labels), or is one
    of ``others`` by content.
    """
    foreign = [s.path for s in chosen if s.split not in ("train", "target")]
    if foreign:
        what = f"calibration pictures that are not of the training split: {foreign[0]} and {len(foreign) - 1} more"
        raise RejectedError("E3060", what, "run again without the store's data stage: distilledge run --work NEW")
    held = {s.sha256: s.path for s in others}
    for sample in chosen:
        if sample.sha256 in held:
            raise RejectedError(
                "E3061",
                f"a calibration picture is also held out: {sample.path} is {held[sample.sha256]}",
                "remove the duplicate; `distilledge plan` names leaks",
            )


def audit(chosen: Sequence[Sample], classes: Sequence[str], seen: Mapping[str, Observed]) -> CalibrationAudit:
    """``seen``: what was observed of each float tensor on ``chosen``, row by row. ``classes``: none where a sample has
    several."""
    counts = Counter(classes[s.label] for s in chosen if classes and s.label >= 0)
    shifts = {name: shift for name, found in seen.items() if (shift := half_shift(found)) is not None}
    worst = max(shifts, key=lambda name: shifts[name], default=None)
    return CalibrationAudit(
        pictures=len(chosen),
        per_class={name: counts[name] for name in classes},
        missing=tuple(name for name in classes if counts and not counts[name]),
        manifest_sha256=hashlib.sha256("\n".join(sorted(s.sha256 for s in chosen)).encode()).hexdigest(),
        instability=float(np.median(list(shifts.values()))) if shifts else None,
        unstable_tensor=worst,
        worst=shifts[worst] if worst else None,
    )


def half_shift(seen: Observed) -> float | None:
    """|log2| of the ratio of a tensor's widths on the rows of even and of odd number; None without two widths."""
    widths = [float(seen.high[k::2].max() - seen.low[k::2].min()) for k in (0, 1) if len(seen.low) > k]
    if len(widths) < 2 or min(widths) <= 0:
        return None
    return float(abs(np.log2(widths[0] / widths[1])))
