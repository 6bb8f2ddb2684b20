"""Units chosen by a recipe, where operations ran, and the flags of that: real runtimes on small files."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
from made_files import onnx_chain, openvino_chain, tflite_chain

from distilledge.models.errors import DeviceError, UsageError
from distilledge.pipeline import profile as kept
from distilledge.pipeline.recipe import Measure, Recipe, Units
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.recipe_file import load_recipe
from distilledge.pipeline.recipe_units import OpenvinoDevice, Provider, TfliteUnit
from distilledge.pipeline.record import ExportResult, RunRecord, StageRecord
from distilledge.pipeline.steps import steps
from distilledge.targets.base import Exported
from distilledge.targets.devices.base import refusal
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.measure import Candidate, measure
from distilledge.targets.ondevice import placement_tflite, units
from distilledge.targets.ondevice.litert_profile import rows
from distilledge.targets.ondevice.placement import _onnx_layers, profile
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.runtimes import import_runtime
from distilledge.targets.ondevice.session import open_session
from distilledge.targets.placement import File, with_placement
from distilledge.targets.placement import profile as profile_on
from distilledge.targets.samples import pictures
from distilledge.targets.units import Placement, UnitShare, unit_flags

NAMES = {"onnx": Provider, "openvino": OpenvinoDevice, "tflite": TfliteUnit}
SUMMARY = """
============ Run Order ============
        [node type]    [start]    [first]   [avg ms]        [%]     [cdf%]   [mem KB] [times called]   [Name]
   Delegate/Convolution (NHWC, QU8) IGEMM      0.000      0.157      0.150    15.453%    15.453%      0.000     6   [Delegate]:0
   AVERAGE_POOL_2D      0.000      0.005      0.003     0.329%    98.086%      0.000              3   [Builtin]:27

============ Top by Computation Time ============
   AVERAGE_POOL_2D      0.000      0.005      0.003     0.329%    98.086%      0.000              3   [Builtin]:27
"""  # noqa: E501


def times(found: dict[str, Any]) -> dict[str, tuple[int, float | None]]:
    return {unit["unit"]: (unit["operations"], unit["share"]) for unit in found["units"]}


@pytest.mark.parametrize("runtime", NAMES)
def test_a_recipe_knows_the_units_that_workers_know(runtime: str) -> None:
    assert get_args(NAMES[runtime]) == units.UNITS[runtime]
    assert set(units.DEFAULTS[runtime]) <= set(units.UNITS[runtime])
    assert Units().names(runtime) == units.DEFAULTS[runtime]
    assert Units().request(runtime) is None


def test_onnxruntime_knows_every_provider_by_its_name() -> None:
    assert set(units.PROVIDERS.values()) <= set(onnxruntime.get_all_providers())


@pytest.mark.parametrize(
    "name", [n for n, p in units.PROVIDERS.items() if p not in onnxruntime.get_available_providers()]
)
def test_a_provider_that_is_not_there_is_no_cpu(name: str, tmp_path: Path) -> None:
    """ONNX Runtime itself would warn, and compute on the CPU."""
    path = onnx_chain(tmp_path / "m.onnx", ["Exp"])
    with pytest.raises(units.MissingUnitError, match=f"has no {name} .*it has cpu"):
        open_session(str(path), "onnx", 1, on={"names": [name, "cpu"]})


@pytest.mark.parametrize(
    ("runtime", "request_", "words"),
    [
        ("openvino", {"names": ["npu"]}, "OpenVINO finds no NPU; it has cpu"),
        ("tflite", {"names": ["delegate"], "library": "libnone.so"}, "the delegate libnone.so cannot be loaded"),
        ("onnx", {"names": ["quantum"]}, "knows no unit 'quantum'; choose from cpu, xnnpack"),
    ],
)
def test_a_missing_unit_is_exit_6(runtime: str, request_: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Through a real worker: ``load`` and ``profile`` alike."""
    make = {"openvino": openvino_chain, "tflite": tflite_chain, "onnx": lambda p: onnx_chain(p, ["Exp"])}[runtime]
    path = make(tmp_path / ("m.xml" if runtime == "openvino" else f"m.{runtime}"))
    with pytest.raises(DeviceError, match=words) as caught:
        profile_on(File("m", (path,), runtime, units=request_), LocalDevice())
    assert caught.value.code == "E6050"
    assert "measure.units" in caught.value.hint


def test_operations_and_time_of_an_onnx_file(tmp_path: Path) -> None:
    found = profile(str(onnx_chain(tmp_path / "m.onnx", ["Exp", "QDQ", "Exp"])), "onnx")
    assert times(found) == {"cpu": (5, pytest.approx(1))}
    assert [layer["name"] for layer in found["layers"]] == ["cast", "Exp1", "q2", "dq2", "Exp3"]
    assert [layer["precision"] for layer in found["layers"]] == ["f32", "f32", "u8", "f32", "f32"]
    assert (found["boundaries"], found["partitions"], found["untimed"]) == (2, 1, "")
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1)
    assert min(layer["microseconds"] for layer in found["layers"]) > 0


def test_nothing_falls_back_to_the_cpu_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider of the stock wheel that takes none of these operations stands for a unit that leaves them."""
    monkeypatch.setitem(units.PROVIDERS, "idle", "AzureExecutionProvider")
    monkeypatch.setitem(units.UNITS, "onnx", (*units.UNITS["onnx"], "idle"))
    path = str(onnx_chain(tmp_path / "m.onnx", ["Exp"]))
    found = profile(path, "onnx", on={"names": ["idle", "cpu"]})
    assert times(found) == {"cpu": (2, pytest.approx(1))}
    assert found["partitions"] == 0
    with pytest.raises(units.RefusedUnitError, match="add cpu behind it"):
        open_session(path, "onnx", 1, on={"names": ["idle"]})


def test_refused_is_exit_6() -> None:
    error = refusal({"ok": False, "kind": "refused", "text": "cuda: no kernel", "op": "load"})
    assert isinstance(error, DeviceError)
    assert error.code == "E6051"


def test_openvino_reports_its_nodes(tmp_path: Path) -> None:
    path = str(openvino_chain(tmp_path / "m.xml"))
    found = profile(path, "openvino")
    assert list(times(found)) == ["cpu"]
    assert "Softmax" in [layer["type"] for layer in found["layers"]]
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1)
    chosen_by_openvino = profile(path, "openvino", on={"names": ["auto"]})
    assert list(times(chosen_by_openvino)) == ["cpu"], "there is nothing else here"


def test_what_xnnpack_leaves_is_found_and_timed(tmp_path: Path) -> None:
    path = tflite_chain(tmp_path / "m.tflite")
    found = profile(str(path), "tflite")
    counts = {unit: operations for unit, (operations, _) in times(found).items()}
    assert counts == {"xnnpack": 2, "builtin": 2}
    assert found["partitions"] == 2
    assert found["executed"] == 4
    builtin = [layer for layer in found["layers"] if layer["unit"] == "builtin"]
    assert [(layer["name"], layer["precision"]) for layer in builtin] == [("CAST 1", "i64"), ("CAST 2", "f32")]
    assert sum(share or 0 for _, share in times(found).values()) == pytest.approx(1)

    whole = profile(str(tflite_chain(tmp_path / "w.tflite", casts=False)), "tflite")
    assert times(whole) == {"xnnpack": (2, pytest.approx(1))}
    assert whole["partitions"] == 1


def test_builtin_kernels_alone(tmp_path: Path) -> None:
    path = str(tflite_chain(tmp_path / "m.tflite"))
    found = profile(path, "tflite", on={"names": ["builtin"]})
    assert times(found) == {"builtin": (4, pytest.approx(1))}
    interpreter = units.interpreter(import_runtime("tflite"), path, 1, units.Units(("builtin",)))
    interpreter.allocate_tensors()
    assert "DELEGATE" not in [node["op_name"] for node in interpreter._get_ops_details()]


def test_a_profiler_that_fails_leaves_the_shares_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a guess: the operations are counted all the same."""
    program = tmp_path / "fails.py"
    program.write_text("raise SystemExit('LiteRtCreateEnvironment: status 3')\n")
    monkeypatch.setattr(placement_tflite, "PROGRAM", program)
    found = profile(str(tflite_chain(tmp_path / "m.tflite")), "tflite")
    assert times(found) == {"xnnpack": (2, None), "builtin": (2, None)}
    assert (found["runs"], found["microseconds"]) == (0, None)
    assert "status 3" in found["untimed"]


def test_rows_of_a_summary() -> None:
    """Of real lines of LiteRT 2.3; the second table repeats the first."""
    assert rows(SUMMARY) == [
        ("Delegate/Convolution (NHWC, QU8) IGEMM", 0, 900.0, 6),
        ("AVERAGE_POOL_2D", 27, 9.0, 3),
    ]


IDLE_DELEGATE = """
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
typedef struct Delegate { void *data; int (*prepare)(void *, struct Delegate *); void *rest[6]; } Delegate;
static int prepare(void *context, Delegate *delegate) { return 0; }
Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
    for (size_t i = 0; i < count; i++)
        if (!strcmp(keys[i], "refuse")) { report("asked to refuse"); return NULL; }
    Delegate *made = calloc(1, sizeof(Delegate) + 64);
    made->prepare = prepare;
    return made;
}
void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
"""


@pytest.fixture
def idle_delegate(tmp_path: Path) -> Path:
    """A delegate's library that loads, and takes no operation."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "idle.c", tmp_path / "libidle.so"
    source.write_text(IDLE_DELEGATE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def test_a_delegate_that_takes_nothing_is_seen(idle_delegate: Path, tmp_path: Path) -> None:
    path = str(tflite_chain(tmp_path / "m.tflite"))
    request = {"names": ["delegate"], "library": str(idle_delegate)}
    alone = profile(path, "tflite", on=request)
    assert times(alone) == {"builtin": (4, None)}
    assert "delegates" in alone["untimed"]
    both = profile(path, "tflite", on={**request, "names": ["delegate", "xnnpack"]})
    assert times(both) == {"xnnpack": (2, None), "builtin": (2, None)}
    with pytest.raises(units.MissingUnitError, match="asked to refuse"):
        open_session(path, "tflite", 1, on={**request, "options": {"delegate": {"refuse": "1"}}})


def placed(
    chosen: str, shares: dict[str, tuple[int, float | None]], boundaries: int = 0, share: float | None = 0.0
) -> Placement:
    return Placement(
        chosen=(chosen,),
        units=tuple(UnitShare(unit=name, operations=n, share=s) for name, (n, s) in shares.items()),
        partitions=1,
        executed=100,
        boundaries=boundaries,
        boundary_share=share,
        microseconds=None if None in [s for _, s in shares.values()] else 900.0,
        runs=9,
    )


@pytest.mark.parametrize(
    ("placement", "flags"),
    [
        (placed("xnnpack", {"xnnpack": (97, 0.96), "builtin": (3, 0.04)}), ()),
        (placed("xnnpack", {"xnnpack": (97, 0.94), "builtin": (3, 0.06)}), ("PARTIAL_DELEGATION",)),
        (placed("xnnpack", {"xnnpack": (91, None), "builtin": (9, None)}), ()),
        (placed("xnnpack", {"xnnpack": (89, None), "builtin": (11, None)}), ("PARTIAL_DELEGATION",)),
        (placed("cuda", {"cpu": (100, 1.0)}), ("PARTIAL_DELEGATION",)),
        (placed("auto", {"gpu": (100, 1.0)}), ()),
        (placed("auto", {"cpu": (100, 1.0)}), ("PARTIAL_DELEGATION",)),
        (placed("cpu", {"cpu": (100, 1.0)}, 15, 0.09), ()),
        (placed("cpu", {"cpu": (100, 1.0)}, 16, 0.01), ("QUANTIZE_STORM",)),
        (placed("cpu", {"cpu": (100, None)}, 3, None), ()),
        (placed("cpu", {"cpu": (100, 1.0)}, 3, 0.11), ("QUANTIZE_STORM",)),
    ],
)
def test_flags(placement: Placement, flags: tuple[str, ...]) -> None:
    assert unit_flags(placement, slower_than_float=False) == flags
    assert unit_flags(placement, slower_than_float=True) == (*flags, "SLOWER_THAN_FLOAT")
    assert unit_flags(None, slower_than_float=False) == ()


def test_flags_of_real_files(tmp_path: Path) -> None:
    """A file that goes in and out of float is a storm, one that XNNPACK takes half of is partial."""
    device = LocalDevice()
    storm = profile_on(File("s", (onnx_chain(tmp_path / "s.onnx", ["Exp", "QDQ"] * 4),), "onnx"), device)
    plain = profile_on(File("p", (onnx_chain(tmp_path / "p.onnx", ["Exp"] * 4),), "onnx"), device)
    partial = profile_on(File("t", (tflite_chain(tmp_path / "t.tflite"),), "tflite"), device)
    found = [unit_flags(p.placement, slower_than_float=False) for p in (storm, plain, partial)]
    assert found == [("QUANTIZE_STORM",), (), ("PARTIAL_DELEGATION",)]


def test_third_party_files(shared: Path) -> None:
    """Ready-made int8 files: LiteRT's XNNPACK takes nearly all of them, and only pools and softmaxes stay outside."""
    models = shared / "data" / "edge-models"
    if not models.is_dir():
        pytest.skip(f"no {models}")
    for name in ("mlperf-tiny/vww_96_int8.tflite", "mlperf-tiny/pretrainedResnet_large_int8.tflite"):
        found = profile_on(File(name, (models / name,), "tflite"), LocalDevice())
        assert unit_flags(found.placement, slower_than_float=False) == ()
        assert found.placement.partitions == 2
        outside = {layer.type for layer in found.layers if layer.unit == "builtin"}
        assert outside == {"AVERAGE_POOL_2D", "SOFTMAX"}
        assert found.placement.runs > 0, found.placement.untimed


def exported(path: Path, runtime: str = "onnx") -> Exported:
    return Exported(
        runtime=runtime, precision="fp32", files=(path.name,), sha256=(placement_hash(path),), size_bytes=1,
        input_shape=(1, 1), classes=("a",), input_spec=InputSpec(8, 8).to_dict(), versions={}, recipe="",
        seconds=0.0,
    )  # fmt: skip


def placement_hash(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_measurement_keeps_its_placement_whatever_the_profiler_does(tmp_path: Path) -> None:
    from test_measure import measurement

    path = onnx_chain(tmp_path / "m.onnx", ["Exp"])
    good = Candidate(name="student w", role="student", directory=str(tmp_path), exported=exported(path))
    timed = measurement("fp32", 5).model_copy(update={"name": "student w", "int8_slower_than_float": True})
    unasked = timed.model_copy(update={"name": "student v"})
    found, other = with_placement([timed, unasked], [good], LocalDevice(), 1, {})
    assert other == unasked
    assert found.placement is not None
    assert [u.operations for u in found.placement.units] == [2]
    assert found.unit_flags == ("SLOWER_THAN_FLOAT",)

    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    broken = good.model_copy(update={"exported": exported(tmp_path / "broken.onnx")})
    (found,) = with_placement([timed], [broken], LocalDevice(), 1, {})
    assert found.placement is not None
    assert found.placement.units == ()
    assert "the runtime failed in profile" in found.placement.untimed


def write_recipe(folder: Path, units_: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(f"schema: 1\nname: r\nmeasure:\n  units:\n    {units_}\n")
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("onnx: [xnnpak, cpu]", "did you mean `xnnpack`"),
        ("openvino: tpu", "one of cpu, gpu, npu, auto"),
        ("tflite: [gpu]", "one of xnnpack, builtin, delegate"),
        ("coreml: [cpu]", "choose from delegate, onnx, openvino, options, tflite"),
    ],
)
def test_an_unknown_unit_names_the_choices(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write_recipe(tmp_path, text))
    assert words in caught.value.hint, caught.value


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"onnx": ()}, "measure.units.onnx is empty"),
        ({"onnx": ("cpu", "cpu")}, "names a unit twice"),
        ({"tflite": ("builtin", "xnnpack")}, "builtin takes the rest"),
        ({"tflite": ("xnnpack", "delegate"), "delegate": "x"}, "comes before xnnpack"),
        ({"tflite": ("delegate",)}, "belong together"),
        ({"delegate": "libx.so"}, "belong together"),
        ({"options": {"cuda": {"device_id": "1"}}}, "cuda is of a unit that is not chosen"),
    ],
)
def test_units_that_contradict_each_other(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_recipe(Recipe(name="r", measure=Measure(units=Units(**fields))))


def test_units_enter_the_keys_only_where_they_are_chosen() -> None:
    """Measurements and answers made before there were units are found again."""

    def of(chosen: Units) -> dict[str, Any]:
        recipe = Recipe.model_validate({"name": "r", "data": {"synthetic": {}}, "measure": {"units": chosen}})
        return {step.name: step for step in steps(recipe, {"cpu_model": "x"})}

    default, gpu = of(Units()), of(Units(openvino="gpu"))
    assert "units" not in default["measure"].inputs["measure"]
    assert gpu["measure"].inputs["measure"]["units"]["openvino"] == "gpu"
    changed = {name for name, step in gpu.items() if step.fingerprint != default[name].fingerprint}
    assert changed == {"measure", "predict-student-openvino", "predict-teacher-openvino", "score", "gate"}
    assert gpu["predict-student-openvino"].inputs["units"]["names"] == ["gpu"]


def test_a_run_without_profiles_is_profiled_when_asked(tmp_path: Path) -> None:
    """As a measurement that an earlier version made."""
    (tmp_path / "store" / "e").mkdir(parents=True)
    (tmp_path / "store" / "m").mkdir()
    path = onnx_chain(tmp_path / "store" / "e" / "m.onnx", ["Exp"])
    result = ExportResult(role="student", runtime="onnx", files=(exported(path),))
    (path.parent / "value.json").write_text(result.model_dump_json())
    stages = tuple(
        StageRecord(name=name, fingerprint="0", path=f"store/{folder}", cached=True, seconds=0.0, inputs={})
        for name, folder in (("export-student-onnx", "e"), ("measure", "m"))
    )
    run = RunRecord(recipe=Recipe(name="r"), command="", work=str(tmp_path), created="", versions={}, stages=stages)
    taken = kept.profiles_of(run)
    assert [p.name for p in taken.items] == ["student onnx fp32"]
    words = kept.in_words(taken.items[0])
    assert words.startswith("student onnx fp32 (1 thread): cpu 2 operations 100.0 %; 1 partition; 0 of 2")
    assert {line.split()[1] for line in words.splitlines()[2:]} == {"Cast", "Exp"}
    kept.write_profiles(taken, tmp_path / "store" / "m")
    assert kept.profiles_of(run) == taken


def test_a_measurement_on_a_unit_that_is_not_there_is_no_measurement(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "p.png")
    path = onnx_chain(tmp_path / "m.onnx", ["Exp"])
    one = Candidate(
        name="student",
        role="student",
        directory=str(tmp_path),
        exported=exported(path),
        units={"names": ["cuda", "cpu"]},
    )
    settings: dict[str, Any] = {"threads": 1, "samples": 1, "min_seconds": 0, "launches": 1, "warmup": 1}
    with pytest.raises(DeviceError) as caught:
        measure([one], LocalDevice(), inputs=pictures([tmp_path / "p.png"]), end_to_end=0, quick=True, **settings)
    assert caught.value.code == "E6050", caught.value


def test_the_report_shows_where_files_ran(tmp_path: Path) -> None:
    from made_run import MadeRun

    from distilledge.pipeline.report.content import collect
    from distilledge.pipeline.report.html import page
    from distilledge.pipeline.report.markdown import markdown

    run = MadeRun(tmp_path, Recipe(name="r"))
    record = run.everything(runtimes=("onnx",))
    assert "Where it runs" not in page(collect(record)), "nothing was read back"
    found = profile_on(
        File("student onnx w8a8", (onnx_chain(tmp_path / "m.onnx", ["Exp", "QDQ"]),), "onnx"), LocalDevice()
    )
    kept.write_profiles(kept.Profiles(items=(found,)), record.directory("measure"))
    content = collect(record)
    html, text = page(content), markdown(content)
    for shown in (html, text.replace("\\", "")):
        assert "Where it runs" in shown
        assert "QUANTIZE_STORM" in shown
    assert "Longest layers of student onnx w8a8" in html
    assert html.count("s-onnx") > page(collect(record).model_copy(update={"profiles": ()})).count("s-onnx")
    assert json.loads(content.model_dump_json())["profiles"][0]["layers"]


def test_a_flag_is_an_alarm_of_the_verdict() -> None:
    from made_run import measurement

    from distilledge.pipeline.gate import _unit_alarms

    place = placed("xnnpack", {"xnnpack": (97, 0.41), "builtin": (20, 0.59)})
    flags = unit_flags(place, slower_than_float=True)
    timed = measurement("tflite", "w8a8", "student", median_ms=2.0, placement=place, unit_flags=flags)
    (alarm,) = _unit_alarms(timed)
    assert alarm.startswith("PARTIAL_DELEGATION: xnnpack 97 operations 41.0 %, builtin 20 operations 59.0 %")


def test_a_branch_that_is_seldom_taken_has_its_mean_time() -> None:
    arguments = {"op_name": "Exp", "provider": "CPUExecutionProvider", "node_index": "1"}
    trace = [{"cat": "Node", "name": "e_kernel_time", "dur": 50, "args": arguments}]
    (layer,) = _onnx_layers(trace, 3)
    assert layer.microseconds == 10


def test_the_page_holds_the_recorded_results(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    script = importlib.import_module("placement")
    recorded = json.loads((root / "benchmarks" / "results" / "placement.json").read_text(encoding="utf-8"))
    assert not recorded["conditions"]["quick"]
    table = script.markdown(recorded["rows"])
    assert table in (root / "docs" / "runtimes.md").read_text(encoding="utf-8"), "run placement.py --markdown"
    assert table.count("QUANTIZE_STORM") >= 1
