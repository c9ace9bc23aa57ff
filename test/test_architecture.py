# SPDX-License-Identifier: Apache-2.0
"""The directions of docs/architecture.md, read from the imports, and what importing a module may not do."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from packaging_facts import ROOT, ROS_ENDINGS, ROS_PACKAGES, is_ros

PACKAGE = "xmodal_seg"

# A file may import from its own layer and from those above it in this list.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("structures", "labels", "voxels", "losses", "tensor_files", "openmp", "devices"),
    ("geometry", "config", "metrics", "transforms", "faults"),
    ("preprocess", "models", "messages", "calibration_file", "pairing", "visualize"),
    ("checkpoint", "bag_files", "bag_topics", "bag_writing"),
    (
        "lighting_features",
        "lighting_model",
        "lighting_health",
        "lighting_state",
        "lighting",
        "lighting_calibration",
        "lighting_probe",
    ),
    ("inference", "bags", "simulation"),
    ("adaptation",),
    ("bag_evaluation", "evaluation_modes"),
    ("training",),
    ("nodes",),
    ("commands",),
)
LAYER_OF = {part: number for number, layer in enumerate(LAYERS) for part in layer}
# A robot needs nothing of these two, so only they themselves, and the commands when they are asked to, import them.
OFFLINE = ("training", "simulation")
ROS_PARTS = ("nodes",)  # the only ones that may import ROS
SPCONV_FILE = "models/point_backbone.py"
# Programs: what a person calls and reads. Everything else returns, raises or logs.
PROGRAMS = ("commands/", "nodes/runner.py", "nodes/reference.py", "training/data/prepare_program.py")


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement of a file of the package."""

    file: str  # relative to the package's folder
    line: int
    module: str  # dotted name of what is imported
    lazy: bool  # inside a function, or for type checkers only

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]

    @property
    def part(self) -> str | None:
        """First name under the package, None for what is not the package's own."""
        names = self.module.split(".")
        return names[1] if names[0] == PACKAGE and len(names) > 1 else None

    def __str__(self) -> str:
        return f"{PACKAGE}/{self.file}:{self.line} imports {self.module}"


def part_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def source_files() -> list[str]:
    folder = ROOT / PACKAGE
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


def module_name(file: str) -> str:
    return ".".join((PACKAGE, *Path(file).with_suffix("").parts)).removesuffix(".__init__")


def parse(file: str) -> ast.Module:
    return ast.parse((ROOT / PACKAGE / file).read_text(encoding="utf-8"), filename=file)


def imports_of(file: str) -> Iterator[Import]:
    yield from _imports_in(parse(file), file=file, lazy=False)


def _imports_in(node: ast.AST, *, file: str, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file}:{child.lineno}: imports are absolute here"
            names = _named_modules(str(child.module), [alias.name for alias in child.names])
        else:
            inner = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or _for_type_checkers(child)
            yield from _imports_in(child, file=file, lazy=inner)
            continue
        for name in names:
            yield Import(file=file, line=child.lineno, module=name, lazy=lazy)


def _named_modules(module: str, names: list[str]) -> list[str]:
    """The submodules among `names` of a `from module import names`, or `module` itself where they are its contents."""
    folder = ROOT.joinpath(*module.split("."))
    modules = [name for name in names if (folder / f"{name}.py").exists() or (folder / name).is_dir()]
    return [f"{module}.{name}" for name in modules] or [module]


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


ALL_IMPORTS = [found for file in source_files() for found in imports_of(file)]


def test_every_part_has_a_layer() -> None:
    parts = {part_of(file) for file in source_files()} - {"__init__"}
    assert parts <= LAYER_OF.keys(), "give the new part its place in LAYERS, and in docs/architecture.md"


def test_no_import_points_upwards() -> None:
    upwards = [
        str(found)
        for found in ALL_IMPORTS
        if found.part is not None and LAYER_OF[found.part] > LAYER_OF[part_of(found.file)]
    ]
    assert not upwards


def test_no_import_closes_a_circle() -> None:
    graph: dict[str, set[str]] = {module_name(file): set() for file in source_files()}
    for found in ALL_IMPORTS:
        if found.module in graph and not found.lazy:
            graph[module_name(found.file)].add(found.module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_only_commands_reach_for_the_offline_parts() -> None:
    wrong = [
        str(found)
        for found in ALL_IMPORTS
        if found.part in OFFLINE
        and part_of(found.file) not in OFFLINE
        and not (part_of(found.file) == "commands" and found.lazy)
    ]
    assert not wrong


def test_ros_stays_in_the_nodes() -> None:
    assert not [str(found) for found in ALL_IMPORTS if is_ros(found.root) and part_of(found.file) not in ROS_PARTS]


def test_commands_import_nodes_only_when_they_start_one() -> None:
    wrong = [
        str(found)
        for found in ALL_IMPORTS
        if found.part == "nodes" and part_of(found.file) not in ROS_PARTS and not found.lazy
    ]
    assert not wrong


def test_spconv_is_imported_late_and_in_one_file() -> None:
    spconv = [found for found in ALL_IMPORTS if found.root in ("spconv", "cumm")]
    assert {found.file for found in spconv} == {SPCONV_FILE}
    assert not [str(found) for found in spconv if not found.lazy]


def test_only_programs_print() -> None:
    printing = [
        f"{PACKAGE}/{file}:{node.lineno}"
        for file in source_files()
        if not file.startswith(PROGRAMS)
        for node in ast.walk(parse(file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


@pytest.mark.parametrize("folder", [PACKAGE, "launch", "training", "test"])
def test_every_file_names_its_licence(folder: str) -> None:
    nameless = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*.py")
        if path.stat().st_size > 0
        and not path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0\n")
    ]
    assert not nameless


def import_faults(modules: list[str], *, without_ros: bool, path: Path = ROOT) -> dict[str, list[str]]:
    """What goes wrong, by module, when a fresh interpreter imports them one after the other."""
    question = [modules, sorted(ROS_PACKAGES), ROS_ENDINGS] if without_ros else [modules, [], []]
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("import_watch.py"))],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))},
    )
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [module for module, _ in answers] == modules
    return {module: faults for module, faults in answers if faults}


def modules_of(*, nodes: bool) -> list[str]:
    files = [file for file in source_files() if not file.endswith("__main__.py")]
    return [module_name(file) for file in files if (part_of(file) in ROS_PARTS) == nodes]


def test_core_imports_without_ros_and_changes_nothing() -> None:
    assert import_faults(modules_of(nodes=False), without_ros=True) == {}


@pytest.mark.ros
def test_nodes_import_and_change_nothing() -> None:
    assert import_faults(modules_of(nodes=True), without_ros=False) == {}


def test_a_module_that_does_something_at_import_is_found(tmp_path: Path) -> None:
    deeds = {
        "good": "x = 1",
        "environment": "import os; os.environ['A_NEW_ONE'] = '1'",
        "threads": "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "log handlers": "import logging; logging.basicConfig()",
        "own log handlers": "import logging; logging.getLogger('xmodal_seg.x').addHandler(logging.NullHandler())",
        "random numbers": "import torch; torch.manual_seed(77)",
        "missing": "from sensor_msgs.msg import Image",
    }
    modules = {what: f"deed_{number}" for number, what in enumerate(deeds)}
    for what, code in deeds.items():
        (tmp_path / f"{modules[what]}.py").write_text(code + "\n", encoding="utf-8")
    faults = import_faults(list(modules.values()), without_ros=True, path=tmp_path)
    assert modules["good"] not in faults
    for what in list(deeds)[1:]:
        assert what in str(faults[modules[what]])
