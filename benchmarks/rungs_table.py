"""What the rows of rungs.py say: which file the ladder would take, the bars, and the table of docs/int8.md."""

from __future__ import annotations

import common

TAUGHT = {"qat": "teacher", "qat-own": "student", "qat-labels": "none"}
"""File -> ``compress.qat.teacher``."""
FILES = ("fp32", "ptq", "calibration", "ranges", "equalise", "bias", "islands", *TAUGHT, "surgery", "w8a16")
LADDER = ("ptq", "calibration", "ranges", "equalise", "bias", "islands", "qat", "surgery")
"""Int8 arithmetic, in the order of the climb; ``qat`` with the teacher's answers."""
AGREEMENT = 0.98
"""At which the ladder stops where the validation split is too small to decide."""
MAX_DROP, MAX_SIZE = 0.5, 0.3
TABLE, END = "<!-- table of rungs -->", "<!-- /table of rungs -->"


def marked(rows: list[common.Row]) -> None:
    """``final``: what the ladder would take, by its rule and the validation split.

    Within the budget of ``MAX_DROP`` the first that agrees in ``AGREEMENT`` of the pictures, else the one that agrees
    most; if none is within it, the one that agrees most of all.
    """
    fp32 = next(row for row in rows if row["file"] == "fp32")
    made = [row for row in rows if "value" in row and row["file"] in LADDER]
    within = [row for row in made if row["validation_drop"] <= MAX_DROP] or made
    enough = [row for row in within if row["agreement"] >= AGREEMENT]
    final = enough[0] if enough else max(within, key=lambda row: (row["agreement"], -row["kl"]), default=None)
    for row in rows:
        row["final"] = row is final
        if "size_bytes" in row:
            row["size_share"] = row["size_bytes"] / fp32["size_bytes"]


def bars(rows: list[common.Row]) -> list[common.Row]:
    """Of the file the ladder would take; point estimates, the intervals stand in the rows."""
    made = []
    for row in (r for r in rows if r["final"]):
        where = f"{row['recipe']} {row['runtime']}: {row['file']}"
        made.append(common.bar(f"{where} below fp32, points", row["drop_fp32"], MAX_DROP))
        made.append(common.bar(f"{where}, share of fp32's size", row["size_share"], MAX_SIZE))
    return made


def filled(page: str, results: common.Row) -> str:
    """The page with the table between its markers."""
    head, _, rest = page.partition(TABLE)
    return f"{head}{TABLE}\n{markdown(results)}\n{END}{rest.partition(END)[2]}"


def markdown(results: common.Row) -> str:
    titles = "recipe | runtime | file | metric, % (95 %) | below fp32, points (95 %) | same answers, validation, %"
    titles += " | KL | p50 over fp32 | size over fp32 | as its network, %"
    lines = [f"| {titles} |", "|---|---|---|---|---|" + "---:|" * 5]
    for row in results["rows"]:
        cells = [row["recipe"], row["runtime"], f"**{row['file']}**" if row["final"] else row["file"]]
        if "value" not in row:
            lines.append(f"| {' | '.join([*cells, row['how'], *'------'])} |")
            continue
        cells += [interval(row, "value", 1), interval(row, "drop_fp32", 2), f"{100 * row['agreement']:.1f}"]
        cells += [f"{row['kl']:.4f}", f"{row['p50_ratio']:.2f}" if "p50_ratio" in row else "-"]
        cells += [f"{row['size_share']:.2f}", f"{100 * row['twin']:.1f}" if "twin" in row else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(row: common.Row, name: str, digits: int) -> str:
    return f"{row[name]:.{digits}f} ({row[name + '_low']:.{digits}f} to {row[name + '_high']:.{digits}f})"
