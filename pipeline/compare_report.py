"""A comparison as JUnit XML for a CI server and as a Markdown table for a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from distilledge.pipeline.comparable import Named
from distilledge.pipeline.compare import Comparison, Comparisons
from distilledge.pipeline.record import Check

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, escaped or not."""
SIGNS = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "❔ inconclusive"}


def junit(found: Comparisons) -> str:
    """A suite for each device, a case for each check: ``failure``, or ``error`` where it decides nothing."""
    root = ElementTree.Element("testsuites", name="distilledge compare")
    for device in dict.fromkeys(item.device for item in found.items):
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(device))
        for item in (i for i in found.items if i.device == device):
            _cases(suite, item)
        for attribute, tag in (("tests", "testcase"), ("failures", "testcase/failure"), ("errors", "testcase/error")):
            suite.set(attribute, str(len(suite.findall(tag))))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _cases(suite: ElementTree.Element, item: Comparison) -> None:
    where = _xml(f"{item.release}.{item.name}")
    for check in item.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=where, name=_xml(check.what))
        kind = {"fails": "failure", "inconclusive": "error"}.get(check.outcome)
        if kind:
            element = ElementTree.SubElement(case, kind, type=check.outcome, message=_xml(said(check)))
            element.text = _xml("; ".join(item.notes))
        else:
            ElementTree.SubElement(case, "system-out").text = _xml(said(check))
    if item.outcome == "inconclusive" and not any(c.outcome == "inconclusive" for c in item.checks):
        case = ElementTree.SubElement(suite, "testcase", classname=where, name="compared")
        text = _xml("; ".join((*item.flags, *item.notes)) or "nothing decides")
        ElementTree.SubElement(case, "error", type="inconclusive", message=text)


def _xml(text: str) -> str:
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def said(check: Check) -> str:
    """Such as ``p50 change (%): 1.20 [0.80, 1.60], limit 3``."""
    interval = "" if check.low is None or check.high is None else f" [{number(check.low)}, {number(check.high)}]"
    limit = "" if check.limit is None else f", limit {number(check.limit)}"
    value = check.note if check.note == "no value" else f"{number(check.value)}{interval}"
    note = f" ({check.note})" if check.note and check.note != "no value" else ""
    return f"{check.what}: {value}{limit}{note}"


def number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def markdown(found: Comparisons, results: Sequence[Named]) -> str:
    """A table with a row for each check that has a limit or a change, the verdict above."""
    names = " → ".join(_md(one.name) for one in results)
    conditions = results[-1].result
    cards = "; ".join(_md(f"{n}: {c.get('cpu_model')}") for n, c in conditions.devices.items())
    lines = [f"**{SIGNS[found.outcome]}** {names} ({_md(conditions.scenario)}; {cards})", ""]
    lines += ["| file | device | what | value | 95 % interval | limit | |", "|---|---|---|---:|---:|---:|---|"]
    lines += [_row(item, check) for item in found.items for check in item.checks]
    remarks = {
        f"{i.name} on {i.device}: {'; '.join((*i.flags, *i.notes))}": 0 for i in found.items if i.flags or i.notes
    }
    lines += ["", *(f"- {_md(remark)}" for remark in remarks)] if remarks else []
    return "\n".join(lines) + "\n"


def _row(item: Comparison, check: Check) -> str:
    interval = "" if check.low is None or check.high is None else f"{number(check.low)} to {number(check.high)}"
    limit = "" if check.limit is None else number(check.limit)
    signs = {"holds": "✅", "fails": "❌", "inconclusive": "❔", "no limit": ""}
    value = "" if check.note == "no value" else number(check.value)
    last = f"{signs[check.outcome]} {_md(check.note)}".strip()
    cells = (_md(item.name), _md(item.device), _md(check.what), value, interval, limit, last)
    return f"| {' | '.join(cells)} |"


def _md(text: str) -> str:
    """Inside a cell: nothing of it is markup, and no @ calls anybody."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("@", "&#64;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(escaped.split()))
