"""The report of a hand-made run: complete, offline, and inert whatever the classes are called."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import CLASSES, MadeRun

from distilledge.pipeline.compress.ledger import CalibrationAudit, Ledger, Tried
from distilledge.pipeline.recipe import Budget, Recipe
from distilledge.pipeline.record import ExportResult
from distilledge.pipeline.report import figures, svg
from distilledge.pipeline.report.content import collect
from distilledge.pipeline.report.html import page
from distilledge.pipeline.report.ladder import short
from distilledge.pipeline.report.markdown import markdown
from distilledge.pipeline.report.markup import Markup, el
from distilledge.pipeline.report.table import columns, csv_text, rows, terminal
from distilledge.pipeline.report.vocabulary import ReportContent
from distilledge.pipeline.report.write import write
from distilledge.pipeline.stats import Estimate
from distilledge.targets.scheme import LayerError

EVIL = "<img src=x onerror=alert(1)>"
EVIL_CLASSES = (EVIL, "</style><script>alert(2)</script>", "a\"b' | `c` [x](http://evil.example)", "pit", "ok", "dent")
RECIPE = Recipe(name="made", budgets={"default": Budget(max_drop_points=3.0, max_drop_points_fp32=3.0)})


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> ReportContent:
    return collect(MadeRun(tmp_path_factory.mktemp("run"), RECIPE).everything())


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> ReportContent:
    return collect(MadeRun(tmp_path_factory.mktemp("evil"), RECIPE, classes=EVIL_CLASSES).everything())


class Elements(HTMLParser):
    """Collects every element with its attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def text(self) -> str:
        return " ".join(self.words)


def test_four_files_are_written(content, tmp_path: Path):
    write(content, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "benchmarks.csv", "report.html", "report.json", "report.md",
    ]  # fmt: skip
    kept = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert ReportContent.model_validate(kept) == content
    write(content, tmp_path / "out")  # again, over the old ones


def test_teacher_is_the_first_row_of_the_same_table(content):
    table = rows(content)
    assert [r.file.role for r in table] == ["teacher"] * 3 + ["student"] * 9
    assert all(len(r.cells) == len(columns(content)) for r in table)
    assert [r.file.name for r in table if r.file.shipped] == [
        f"student {r} w8a8" for r in ("onnx", "openvino", "tflite")
    ]


def test_numbers_of_the_table(content):
    teacher = content.files[0]
    shipped = next(f for f in content.files if f.name == "student onnx w8a8")
    assert teacher.metric.value == pytest.approx(97, abs=2)
    assert teacher.drop is None
    assert shipped.drop.value == pytest.approx(teacher.metric.value - shipped.metric.value)
    assert shipped.faster_than_teacher.low <= teacher.p50.value / shipped.p50.value <= shipped.faster_than_teacher.high
    assert shipped.faster_than_fp32.value == pytest.approx(0.13 / 0.07, rel=0.05)
    assert shipped.end_to_end_p50.value > shipped.p50.value + 1
    assert shipped.p99.value > shipped.p90.value > shipped.p50.value
    assert shipped.spread_ms[50] == pytest.approx(shipped.p50.value, rel=0.01)
    assert (shipped.size_mb, len(shipped.launch_medians_ms)) == (3.6, 3)
    assert content.outcome == "pass"
    assert "not worse than the teacher" in content.headlines[0].text


def test_what_the_teacher_was_worth(content):
    worth = content.teacher_worth
    assert worth.gain.value == pytest.approx(worth.student.value - worth.control.value)
    assert worth.gain.low > 0
    assert worth.p_value < 0.05
    assert worth.only_student > worth.only_control


def test_pictures_on_which_they_disagree(content):
    found = content.gallery
    assert 0 < len(found.shown) <= 24
    assert found.teacher_right + found.student_right + found.both_wrong >= len(found.shown)
    assert all(d.teacher != d.student for d in found.shown)
    pictures = [d.picture for d in found.shown if d.picture]
    assert pictures  # 240 of 600 lie on disk
    assert all(base64.b64decode(p.split(",")[1]).startswith(b"\xff\xd8") for p in pictures)


def test_every_part_is_in_the_page(content):
    text = Elements(page(content)).text()
    for words in (
        "SYNTHETIC", "All files, teacher first", "Accuracy against latency", "What the teacher was worth",
        "What each precision cost and gained", "Softmax x1", "Where the answers differ", "expected calibration error",
        "Pictures on which teacher and student disagree", "Parity ladder", "Training", "Data and audit", "not an image",
        "two pictures look alike", "validation accuracy",
        "Measurement conditions", "Made CPU", "Provenance", "distilledge run made", "Every check of every file",
    ):  # fmt: skip
        assert words in text, words


def test_real_data_is_not_called_synthetic(tmp_path: Path):
    real = collect(MadeRun(tmp_path, RECIPE).everything(synthetic=False))
    assert "SYNTHETIC" not in page(real) + markdown(real) + terminal(real)


def test_an_image_element_as_class_name_is_inert(evil):
    """ROBUSTNESS S9."""
    html = page(evil)
    elements = Elements(html)
    assert {tag for tag, _ in elements.found} >= {"svg", "table", "img"}
    assert not {"script", "iframe", "link", "object", "embed", "base", "form", "a"} & {tag for tag, _ in elements.found}
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes
        if tag == "img":
            assert attributes["src"].startswith("data:image/jpeg;base64,")
    assert sum(tag == "style" for tag, _ in elements.found) == 1
    assert EVIL in elements.text()  # shown as the words they are
    assert EVIL not in html


def test_the_page_fetches_nothing_and_runs_nothing(evil):
    html = page(evil)
    (policy,) = [a["content"] for tag, a in Elements(html).found if a.get("http-equiv") == "Content-Security-Policy"]
    style = html.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    fetching = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
    for tag, attributes in Elements(html).found:
        for name in fetching & set(attributes):
            assert attributes[name].startswith("data:"), (tag, name)
    assert not re.search(r"url\(|@import|@font-face", style)


def test_markdown_is_inert_too(evil):
    text = markdown(evil)
    assert "<img" not in text
    assert "<script" not in text
    assert "[x](http" not in text
    for line in text.splitlines():
        if line.startswith("| a"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 5  # class, train, validation, test


def test_csv_holds_the_raw_numbers(content):
    lines = list(csv.DictReader(io.StringIO(csv_text(content))))
    assert len(lines) == 12
    assert lines[0]["role"] == "teacher"
    assert float(lines[0]["p50_ms_low"]) <= float(lines[0]["p50_ms"]) <= float(lines[0]["p50_ms_high"])
    assert lines[0]["drop_points"] == ""


def test_terminal_takes_what_report_json_holds(content):
    text = terminal(json.loads(content.model_dump_json(by_alias=True)))
    assert text == terminal(content)
    assert "student" in text
    assert "PASS: made" in text
    assert max(len(line) for line in text.splitlines()) <= 200


def test_a_run_without_control_verify_and_measure_is_still_reported(tmp_path: Path):
    run = MadeRun(tmp_path, RECIPE)
    run.data()
    run.training()
    exports = run.exports()
    run.scores(exports)
    run.stages = [s for s in run.stages if "control" not in s.name]
    content = collect(run.record())
    assert content.outcome == "inconclusive"
    assert content.teacher_worth is not None  # the control's answers are there
    html = page(content)
    assert "Not judged" in html
    assert "Parity ladder" not in html
    assert "Measurement conditions" not in html
    assert len(rows(content)) == 12
    markdown(content)
    terminal(content)


def test_a_target_that_was_left_out_is_named(tmp_path: Path):
    record = MadeRun(tmp_path, RECIPE).everything(runtimes=("onnx", "openvino"))
    failed = ExportResult(role="student", runtime="tflite", files=(), error="error[E4001] no <litert-torch>")
    content = collect(record.model_copy(update={"failed": (failed,)}))
    assert content.left_out == ("tflite: not exported: error[E4001] no <litert-torch>",)
    assert "Left out: tflite: not exported: error[E4001] no &lt;litert-torch&gt;" in page(content)


def test_groups_are_counted(tmp_path: Path):
    run = MadeRun(tmp_path, RECIPE)
    record = run.everything()
    run.data(group_size=6)
    content = collect(record)
    assert content.data.groups == 100
    wide, narrow = content.files[0].metric, collect_metric(tmp_path)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def collect_metric(tmp_path: Path):
    return collect(MadeRun(tmp_path / "alone", RECIPE).everything()).files[0].metric


@pytest.mark.parametrize("count", [2, 12, 40])
def test_figures_of_few_and_many_classes(tmp_path: Path, count: int):
    classes = tuple(f"class number {i} with a rather long name" for i in range(count))
    html = page(collect(MadeRun(tmp_path, RECIPE, classes=classes, pictures=20 * count).everything()))
    assert "NaN" not in html
    assert "nan" not in re.findall(r'(?:x|y|d|cx|cy|width|height)="([^"]*)"', html)


def test_markup_escapes_what_is_not_markup():
    assert el("p", {"title": '"<'}, "<b>", Markup("<i>")) == '<p title="&quot;&lt;">&lt;b&gt;<i></p>'
    assert el("img", {"src": "x"}) == '<img src="x">'


def test_ticks():
    assert svg.linear_ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert svg.log_ticks(0.9, 30) == pytest.approx([1, 2, 5, 10, 20])
    assert len(svg.log_ticks(2.1, 2.3)) >= 2
    assert svg.tick_text(0.30000000000000004) == "0.3"


def test_labels_do_not_overlap():
    frame = svg.Frame(600, 400, 40, 20, 20, 40)
    taken: list[svg.Box] = []
    for _ in range(6):
        assert svg.place_label(300, 200, 8, "student w8a8", taken, frame)
    assert not any(a.overlaps(b) for i, a in enumerate(taken) for b in taken[:i])


def test_the_front_holds_no_file_that_another_beats(content):
    corners = figures._front(content.files)
    metrics = [metric for _, metric in corners]
    assert metrics == sorted(metrics)
    assert [p50 for p50, _ in corners] == sorted(p50 for p50, _ in corners)
    assert len(CLASSES) == 6


def climbed(content: ReportContent, name: str = "conv") -> ReportContent:
    """With the ledger of one runtime: plain int8 refused, bias correction shipped."""
    refused = Tried(
        rung="ptq",
        recipe="plain",
        precision="w8a8",
        outcome="fails",
        reason="p50 over the fp32 file's 1.4, limit 1 (7 conversions between int8 and float)",
        drop=Estimate(value=4.2, low=1.0, high=8.0),
        agreement=0.887,
        answers=6,
        size_mb=0.31,
        p50_ratio=Estimate(value=1.4, low=1.3, high=1.5),
        conversions=7,
        seconds=2.0,
    )
    shipped = refused.model_copy(update={"rung": "bias", "outcome": "holds", "gained": 0.05, "reason": "every budget"})
    audit = CalibrationAudit(
        pictures=12,
        per_class=dict.fromkeys(CLASSES, 2),
        missing=(),
        manifest_sha256="ab" * 32,
        instability=0.0,
        unstable_tensor=name,
        worst=1.0,
    )
    ledger = Ledger(
        tried=(refused, shipped),
        taken=1,
        outcome="holds",
        pictures=239,
        limit=0.5,
        audit=audit,
        layers=(LayerError(name=name, kind="Conv", place=0, sqnr_db=24.7, kl=0.0038),),
    )
    return content.model_copy(update={"ledgers": (("onnx", ledger),)})


def test_the_ladder_is_told_rung_by_rung(content, tmp_path: Path):
    assert "quantization ladder" not in page(content) + markdown(content)
    found = climbed(content)
    for words in (
        "shipped: holds",
        "refused: fails",
        "7 conversions",
        "239 validation pictures",
        "abababababab",
        "2.00-fold",
    ):
        assert words in Elements(page(found)).text(), words
        assert words in markdown(found).replace("\\", ""), words
    assert "24.7" in Elements(page(found)).text()
    assert "<img src=x" not in page(climbed(content, "<img src=x>"))
    assert short("a/b/torch.nn.modules.conv.Conv2d_first;a/b/Outlier_model/torch.nn.modules.conv.Conv2d_last;1") == (
        "Outlier_model/conv.Conv2d_last"
    )
