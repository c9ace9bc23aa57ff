# SPDX-License-Identifier: Apache-2.0
"""setup.py, package.xml, CHANGELOG.rst and what a built wheel holds agree with each other and with the tree."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from packaging_facts import ROOT, is_ros, read_setup

from xmodal_seg.training.recipe import compose

PACKAGE = "xmodal_seg"
# rosdep itself needs the network and a ROS installation. These keys were looked up in ros/rosdistro at commit 8468e88
# (August 2026): the packages in the distribution files of Humble, Jazzy and Kilted, the python3-* keys in
# rosdep/python.yaml with a rule for Ubuntu. Look a new key up there before adding it: rosdep install stops at one
# that it does not know.
ROS_KEYS = {
    "cv_bridge",
    "diagnostic_msgs",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "launch_testing",
    "lifecycle_msgs",
    "message_filters",
    "rclpy",
    "ros2launch",
    "rosgraph_msgs",
    "sensor_msgs",
    "sensor_msgs_py",
    "std_msgs",
    "std_srvs",
    "tf2_msgs",
    "tf2_ros_py",
    "vision_msgs",
}
SYSTEM_KEYS = {"python3-hypothesis", "python3-numpy", "python3-opencv", "python3-pytest", "python3-yaml"}
# Packages whose module has another name, or which come with one that is declared.
PROVIDED_BY = {
    "ament_index_python": "launch_ros",
    "builtin_interfaces": "std_msgs",
    "rcl_interfaces": "rclpy",
    "tf2_ros": "tf2_ros_py",
}
# Distributions whose module has another name.
MODULE_OF = {"opencv_python_headless": "cv2", "pillow": "PIL", "pyyaml": "yaml", "rerun_sdk": "rerun"}
MODULE_OF |= {"spconv_cu120": "spconv", "spconv_cu126": "spconv"}


@pytest.fixture(scope="module")
def setup() -> Any:
    return read_setup()


@pytest.fixture(scope="module")
def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def text_of(manifest: ElementTree.Element, tag: str) -> str:
    found = manifest.findall(tag)
    assert len(found) == 1, f"package.xml: one <{tag}>"
    return (found[0].text or "").strip()


def keys_of(manifest: ElementTree.Element) -> list[str]:
    return [str(element.text) for element in manifest.iter() if element.tag.endswith("depend")]


def test_package_xml_agrees_with_setup(setup: Any, manifest: ElementTree.Element) -> None:
    assert manifest.get("format") == "3"
    assert text_of(manifest, "export/build_type") == "ament_python"
    assert text_of(manifest, "name") == setup.get_name() == PACKAGE
    assert text_of(manifest, "version") == setup.get_version()
    assert text_of(manifest, "license") == setup.get_license() == "Apache-2.0"
    assert text_of(manifest, "description") == setup.get_description()
    assert text_of(manifest, "maintainer") == setup.get_maintainer()
    assert manifest.find("maintainer").get("email") == setup.get_maintainer_email()  # type: ignore[union-attr]
    # colcon takes a package whose maintainer has no valid address for one without ROS, with no more than a warning.
    assert re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", setup.get_maintainer_email())


def test_every_rosdep_key_is_real(manifest: ElementTree.Element) -> None:
    keys = keys_of(manifest)
    assert set(keys) <= ROS_KEYS | SYSTEM_KEYS
    assert len(set(keys)) == len(keys)


def test_every_ros_package_that_is_imported_is_declared(manifest: ElementTree.Element) -> None:
    imported = {root for root in imported_roots(PACKAGE, "launch") if is_ros(root)}
    assert {"rclpy", "launch_ros"} <= imported
    assert {PROVIDED_BY.get(root, root) for root in imported} <= set(keys_of(manifest))


def test_every_library_that_is_imported_is_required(setup: Any) -> None:
    """Nothing is there only because something else happens to bring it."""
    lines = [*setup.install_requires, *(line for needed in setup.extras_require.values() for line in needed)]
    required = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("-", "_") for line in lines}
    modules = {MODULE_OF.get(name, name) for name in required} | {PACKAGE, *sys.stdlib_module_names}
    assert {root for root in imported_roots(PACKAGE) if not is_ros(root)} <= modules


def imported_roots(*folders: str) -> set[str]:
    """Top-level names of everything that the files below `folders` import, lazily too."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return {root for file in files for root in _imported_roots(ast.parse(file.read_text(encoding="utf-8")))}


def _imported_roots(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_changelog_speaks_of_this_version(setup: Any) -> None:
    """catkin's form: sections from new to old, `Forthcoming` for what is not released yet."""
    text = (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")
    assert f"Changelog for package {PACKAGE}\n" in text
    titles = re.findall(r"^(Forthcoming|\d+\.\d+\.\d+ \(\d{4}-\d{2}-\d{2}\))\n-{5,}$", text, flags=re.MULTILINE)
    assert titles, "a section"
    released = [title.split()[0] for title in titles if title != "Forthcoming"]
    if released:
        assert released[0] == setup.get_version()
    else:
        assert setup.get_version() in text
    assert "Forthcoming" not in titles[1:]


def test_metadata_stands_in_setup_alone() -> None:
    """colcon builds no executables for a package whose pyproject.toml has a [project] table."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r"^\s*\[project", text, flags=re.MULTILINE)


def test_executables_go_where_ros_looks_for_them() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["develop"]["script_dir"] == f"$base/lib/{PACKAGE}"
    assert config["install"]["install_scripts"] == f"$base/lib/{PACKAGE}"
    assert (ROOT / "resource" / PACKAGE).is_file()


@pytest.mark.ros
def test_entry_points_can_be_called(setup: Any) -> None:
    for entry_point in setup.entry_points["console_scripts"]:
        module, _, function = entry_point.partition("=")[2].strip().partition(":")
        assert callable(getattr(importlib.import_module(module), function)), entry_point


def test_every_launch_and_config_file_is_installed(setup: Any) -> None:
    installed = {file: folder for folder, files in setup.data_files for file in files}
    tree = {
        path.relative_to(ROOT).as_posix()
        for folder in ("launch", "config")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {file for file in installed if file.startswith(("launch/", "config/"))} == tree
    assert tree, "launch and config files"
    for file in tree:
        assert installed[file] == f"share/{PACKAGE}/{Path(file).parent.as_posix()}"
    assert installed["package.xml"] == f"share/{PACKAGE}"
    assert installed[f"resource/{PACKAGE}"] == "share/ament_index/resource_index/packages"


def test_a_wheel_holds_everything(tmp_path: Path) -> None:
    source = _copy_of_sources(tmp_path / "source")
    setup = read_setup(source)
    version = setup.get_version()
    modules = {path.relative_to(source).as_posix() for path in (source / PACKAGE).rglob("*.py")}
    assets = {
        path.relative_to(source).as_posix() for path in (source / PACKAGE / "assets").rglob("*") if path.is_file()
    }
    data = {
        f"{PACKAGE}-{version}.data/data/{folder}/{Path(file).name}"
        for folder, files in setup.data_files
        for file in files
    }
    assert not [pattern for pattern in setup.package_data[PACKAGE] if "*" in pattern]  # old setuptools miss folders
    names = _names_in_wheel(source, folder=tmp_path)
    assert modules | assets | data | {f"{PACKAGE}/py.typed", f"{PACKAGE}-{version}.dist-info/entry_points.txt"} <= names
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("test/", "training/"))]


def test_shipped_weights_are_small() -> None:
    weights = (ROOT / PACKAGE / "assets").rglob("*.safetensors")
    assert 10e6 < sum(path.stat().st_size for path in weights) <= 16e6


@pytest.mark.parametrize("bank", ["day", "night"])
def test_kitti_banks_are_from_the_committed_recipes(bank: str) -> None:
    """Those of `nuscenes` are older than what a recipe's hash has been since."""
    checkpoint = ROOT / PACKAGE / "assets" / "checkpoints" / "kitti" / "checkpoint.json"
    told = json.loads(checkpoint.read_text(encoding="utf-8"))["metadata"]["banks"][bank]
    recipe = compose(
        ROOT / "training" / "recipes",
        shift=told["shift"],
        method=told["method"],
        size="small",
        overrides=[f"seed={told['seed']}"],
    )
    assert (recipe.result_hash(), recipe.optim.steps) == (told["recipe_hash"], told["steps"])


def _copy_of_sources(source: Path) -> Path:
    """A copy of the tree, so that the build writes nothing beside the sources."""
    source.mkdir()
    for name in (PACKAGE, "config", "launch", "resource", "test", "training"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "package.xml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


def _names_in_wheel(source: Path, *, folder: Path) -> set[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run([*command, "-w", str(folder), str(source)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())
