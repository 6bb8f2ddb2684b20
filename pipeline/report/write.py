"""Writes a report's four files, each in one rename."""

from __future__ import annotations

from pathlib import Path

from distilledge.pipeline.disk import atomic_write
from distilledge.pipeline.report.html import page
from distilledge.pipeline.report.markdown import markdown
from distilledge.pipeline.report.table import csv_text
from distilledge.pipeline.report.vocabulary import ReportContent


def write(content: ReportContent, out: Path) -> None:
    """report.html, report.json, report.md and benchmarks.csv in ``out``; ``ResourceError`` when the disk is full."""
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "report.html", page(content))
    atomic_write(out / "report.json", content.model_dump_json(indent=1, by_alias=True))
    atomic_write(out / "report.md", markdown(content))
    atomic_write(out / "benchmarks.csv", csv_text(content))
