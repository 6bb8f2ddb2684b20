"""The rules of CONTRIBUTING.md that a machine can hold: layers, packages, sizes, names, what must never be written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

LAYERS = {"models": 0, "targets": 1, "pipeline": 2}
"""A layer imports itself and those below it."""
ONDEVICE = "targets/ondevice/"
TRAVELS_WITH = {"numpy", "PIL", "tokenizers", "onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "psutil"}
"""What the files of ``targets/ondevice`` may import beside the standard library and each other."""
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 330, 60
LONGER: dict[str, str] = {}
"""``path:function`` -> why it is longer than 60 lines."""
SPEAKERS = {
    "pipeline/cli": "the command line",
    "pipeline/progress.py": "its progress lines",
    "pipeline/data/pictures.py": "its child processes answer on stdout",
    "pipeline/training/many.py": "its processes, one for each GPU, answer on stdout",
    ONDEVICE: "programs of their own",
}
BANNED_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common_utils.py"}
BANNED_CLASS = re.compile(r"(Manager|Handler|Helper|Engine|Utils)$")
FLOORS = {"torch": "2.10", "onnx": "1.21", "mlflow-skinny": "3"}
"""Below these are known holes: weights_only (CVE-2026-24747), traversal by external data, MLflow's own."""
PLACES = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|opt|Users|mnt)/[\w.-]+")
HOSTS = re.compile(r"[p]ypi\.org|[p]ythonhosted\.org|--(?:extra-)?index-url|--find-links")


class Source(NamedTuple):
    path: str
    """From the root, with slashes."""
    text: str
    tree: ast.Module


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[str]:
    """What git keeps, and what is about to be added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git does not answer here")
    return [name for name in listed.splitlines() if (root / name).is_file()]


@pytest.fixture(scope="module")
def sources(root: Path) -> list[Source]:
    """Python files of the three layers."""
    paths = [p for layer in LAYERS for p in sorted((root / layer).rglob("*.py"))]
    read = [(p.relative_to(root).as_posix(), p.read_text(encoding="utf-8")) for p in paths]
    found = [Source(path, text, ast.parse(text, path)) for path, text in read]
    assert len(found) > 20
    return found


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module, wherever the import stands; ``from a import b`` also gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_layers_point_one_way(sources: list[Source]) -> None:
    wrong = []
    for source in sources:
        own = LAYERS[source.path.split("/")[0]]
        for name, line in imports(source.tree):
            parts = name.split(".")
            if name.startswith("."):
                wrong.append(f"{source.path}:{line}: relative import")
            elif parts[0] == "distilledge" and LAYERS[parts[1]] > own:
                wrong.append(f"{source.path}:{line}: imports {name}")
            elif parts[0] in LAYERS and source.path.split("/")[1] != "ondevice":
                wrong.append(f"{source.path}:{line}: put `distilledge.` before {name}")
    assert wrong == []


def test_nothing_imports_the_command_line(sources: list[Source]) -> None:
    others = [source for source in sources if not source.path.startswith("pipeline/cli")]
    wrong = [s.path for s in others for name, _ in imports(s.tree) if name.startswith("distilledge.pipeline.cli")]
    assert wrong == []


def test_what_travels_to_the_device_needs_nothing_of_ours(sources: list[Source]) -> None:
    there = [s for s in sources if s.path.startswith(ONDEVICE)]
    own = {Path(s.path).stem for s in there}
    wrong = []
    for source in there:
        for name, line in imports(source.tree):
            top = name.split(".")[0]
            inside = name.startswith("distilledge.targets.ondevice") or top in own
            if not (inside or top in sys.stdlib_module_names or top in TRAVELS_WITH):
                wrong.append(f"{source.path}:{line}: imports {name}")
    assert len(there) > 1
    assert wrong == []


def test_models_read_no_recipe_and_no_runtime(sources: list[Source]) -> None:
    runtimes = {"onnx", "onnxruntime", "openvino", "nncf", "ai_edge_litert", "litert_torch", "ruamel"}
    models = [s for s in sources if s.path.startswith("models/")]
    wrong = [
        f"{s.path}:{line}: {name}" for s in models for name, line in imports(s.tree) if name.split(".")[0] in runtimes
    ]
    assert wrong == []


def test_only_the_command_line_prints_or_exits(sources: list[Source]) -> None:
    """Beside ``SPEAKERS``; what a module says otherwise goes through logging or its result."""
    wrong = []
    for source in sources:
        calls = [n for n in ast.walk(source.tree) if isinstance(n, ast.Call)]
        named = {(ast.unparse(n.func), n.lineno) for n in calls}
        wrong += [
            f"{source.path}:{line}: {name}" for name, line in named if name in ("print", "sys.exit", "exit", "quit")
        ]
    assert [w for w in wrong if not w.startswith(tuple(SPEAKERS))] == []


def test_packages_are_the_folders_on_disk(root: Path) -> None:
    declared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {p.parent.relative_to(root).as_posix() for layer in LAYERS for p in (root / layer).rglob("__init__.py")}
    assert sorted(declared) == sorted("distilledge." + f.replace("/", ".") for f in folders)
    loose = {p.parent.relative_to(root).as_posix() for layer in LAYERS for p in (root / layer).rglob("*.py")}
    assert loose == folders
    assert not (root / "tests" / "__init__.py").exists()


def test_every_data_file_travels_in_the_wheel(root: Path, tracked: list[str]) -> None:
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = [(package.replace("distilledge.", "").replace(".", "/"), p) for package, ps in data.items() for p in ps]
    carried = {p.relative_to(root).as_posix() for folder, pattern in patterns for p in (root / folder).glob(pattern)}
    files = {name for name in tracked if name.split("/")[0] in LAYERS and not name.endswith(".py")}
    assert carried >= files, f"not in package-data: {sorted(files - carried)}"


def test_types_are_checked_by_the_import_name(root: Path) -> None:
    assert {p.name: p.resolve() for p in (root / ".typing" / "distilledge").iterdir()} == {n: root / n for n in LAYERS}


def test_files_and_functions_are_short(sources: list[Source]) -> None:
    long = [f"{s.path}: {n} lines" for s in sources if (n := s.text.count("\n")) > MOST_LINES]
    for source in sources:
        functions = (n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        for node in functions:
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MOST_LINES_OF_A_FUNCTION and f"{source.path}:{node.name}" not in LONGER:
                long.append(f"{source.path}:{node.lineno}: {node.name} has {lines} lines")
    assert long == []


def test_names_say_what_a_thing_is(sources: list[Source], tracked: list[str]) -> None:
    wrong = [name for name in tracked if Path(name).name in BANNED_NAMES]
    for source in sources:
        classes = (n for n in ast.walk(source.tree) if isinstance(n, ast.ClassDef))
        wrong += [f"{source.path}: class {n.name}" for n in classes if BANNED_CLASS.search(n.name)]
    assert wrong == []


def test_functions_take_few_arguments_and_no_catch_all(sources: list[Source]) -> None:
    """At most six by position beside self; ``**kwargs`` of our own nowhere."""
    wrong = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                place = f"{source.path}:{node.lineno}: {node.name}"
                commands = source.path.startswith("pipeline/cli")  # typer reads a command's parameters
                wrong += [f"{place} takes **{node.args.kwarg.arg}"] if node.args.kwarg else []
                taken = [a for a in node.args.args if a.arg not in ("self", "cls")]
                wrong += [f"{place} takes {len(taken)}"] if len(taken) > 6 and not commands else []
    assert wrong == []


def test_no_place_or_host_of_one_machine_is_written_down(root: Path, tracked: list[str]) -> None:
    wrong = []
    for name in tracked:
        if name.startswith("tests/test_layout") or Path(name).suffix in {".png", ".jpg", ".tflite", ".onnx", ".npz"}:
            continue
        text = (root / name).read_text(encoding="utf-8", errors="replace")
        wrong += [f"{name}: {found}" for found in (*PLACES.findall(text), *HOSTS.findall(text))]
    assert len(tracked) > 30
    assert wrong == []


def test_dangerous_calls_are_absent(sources: list[Source]) -> None:
    """S5. By syntax tree, so that ``model.eval()`` and words in text do not count; our own worker has no exception."""
    wrong = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and (found := dangerous(node)):
                wrong.append(f"{source.path}:{node.lineno}: {found}")
    assert wrong == []


def dangerous(call: ast.Call) -> str | None:
    """What is wrong with a call, or None."""
    name = ast.unparse(call.func)
    given = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name in {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.load", "tempfile.mktemp"}:
        return name
    if name.endswith(".extractall"):
        return "extractall"
    if given.get("shell") == "True" or given.get("trust_remote_code") == "True":
        return "shell or trust_remote_code"
    if given.get("weights_only") == "False":
        return "weights_only=False"
    loads = name in {"torch.load", "numpy.load", "np.load"}
    return "allow_pickle" if loads and given.get("allow_pickle") == "True" else None


@pytest.mark.parametrize(
    ("code", "is_dangerous"),
    [
        ("eval('1')", True),
        ("model.eval()", False),
        ("pickle.load(f)", True),
        ("torch.load(f, weights_only=False)", True),
        ("torch.load(f, weights_only=True)", False),
        ("archive.extractall(out)", True),
        ("subprocess.run(c, shell=True)", True),
        ("AutoModel.from_pretrained(n, trust_remote_code=True)", True),
    ],
)
def test_the_search_for_dangerous_calls_finds_them(code: str, is_dangerous: bool) -> None:
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert (dangerous(call) is not None) == is_dangerous


def test_dependencies_have_lower_bounds_and_the_floors_that_security_asks_for(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = [r for name, rs in project["optional-dependencies"].items() for r in rs if not r.startswith("distilledge")]
    needs = [Requirement(text) for text in (*project["dependencies"], *extras)]
    lower = {n.name: [s.version for s in n.specifier if s.operator == ">="] for n in needs}
    assert [name for name, bounds in lower.items() if len(bounds) != 1] == []
    assert {name: Version(lower[name][0]) >= Version(floor) for name, floor in FLOORS.items()} == dict.fromkeys(
        FLOORS, True
    )


def test_constraints_pin_each_dependency_within_its_bounds(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert [line for line in lines if "@" in line or "/" in line] == []
    for need in map(Requirement, project["dependencies"]):
        pin = pins[need.name.lower().replace(".", "-")]
        assert need.specifier.contains(pin), f"{need} against {pin}"
    assert (root / "pipeline" / "constraints.txt").read_text() == (root / "constraints.txt").read_text()
