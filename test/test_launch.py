# SPDX-License-Identifier: Apache-2.0
"""The launch files for real: `ros2 launch` on the built package. Skipped where launch_ros is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytest.importorskip("launch_ros", reason="launch_ros is missing: it comes with a ROS installation, not from PyPI")

from ament_index_python.packages import get_package_share_directory
from diagnostic_msgs.msg import DiagnosticArray
from helpers import make_calibration, make_frame
from launch import LaunchContext
from lifecycle_msgs.srv import GetState
from light_pictures import day_picture
from node_harness import save_tiny_checkpoint
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2

from xmodal_seg.bags import write_bag
from xmodal_seg.nodes.lighting_messages import read_lighting
from xmodal_seg.nodes.runner import GPU_LOST
from xmodal_seg.structures import CameraView, Frame

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.usefixtures("large_data")]
LAUNCH = Path(__file__).parents[1] / "launch"
NUM_SWEEPS = 5
HEIGHT, WIDTH = 61, 83  # the lighting node refuses images below 16 px
TIMEOUT_S = 120.0
NODES = ("xmodal_seg", "lighting")


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "drive"
    write_bag(path, [daylight_frame(number) for number in range(NUM_SWEEPS)], label_topic=None)
    return path


def daylight_frame(number: int) -> Frame:
    stamp_ns = 1_700_000_000 * 10**9 + number * 10**8
    camera = CameraView(
        name="front",
        image=day_picture(number, size=(HEIGHT, WIDTH)),
        calibration=make_calibration(height=HEIGHT, width=WIDTH),
        stamp_ns=stamp_ns,
    )
    return replace(make_frame(num_points=300 + number, stamp_ns=stamp_ns), cameras=(camera,))


@pytest.fixture(scope="module")
def two_camera_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "two"
    write_bag(path, [make_frame(num_cameras=2)], label_topic=None)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@contextmanager
def launched(*arguments: str, log: Path) -> Iterator[subprocess.Popen]:
    """`ros2 launch` in a session of its own; SIGINT at the end of the block, and nothing may be left of it."""
    with log.open("w") as output:
        # Away from the repository: from there `launch` would be the folder of launch files.
        process = subprocess.Popen(
            ["ros2", "launch", "xmodal_seg", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=log.parent,
        )
    try:
        yield process
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
        _, alive = psutil.wait_procs(children, timeout=10)
        for child in alive:
            child.kill()
        assert not alive, f"left behind: {alive}"


def run_to_its_end(*arguments: str, folder: Path) -> tuple[int, str]:
    """`ros2 launch` that ends by itself, and leaves nothing behind; its exit code and what it said."""
    process = subprocess.run(
        ["ros2", "launch", "xmodal_seg", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, cwd=folder
    )
    left = [child for child in psutil.process_iter(["cwd"]) if child.info["cwd"] == str(folder)]
    for child in left:
        child.kill()
    assert not left, f"left behind: {left}"
    return process.returncode, process.stdout + process.stderr


def ended_cleanly(output: str) -> set[str]:
    """The executables that launch saw end with exit code 0."""
    return set(re.findall(r"\[(\w+)-\d+\]: process has finished cleanly", output))


def load_launch_module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.launch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["seg", "replay"])
def test_show_args_lists_every_argument(name: str, tmp_path: Path) -> None:
    code, output = run_to_its_end(f"{name}.launch.py", "--show-args", folder=tmp_path)
    assert code == 0
    for argument in load_launch_module(name).ARGUMENTS:
        assert f"'{argument}'" in output


class Listener:
    """Hears what the launched nodes publish and asks for their lifecycle states."""

    def __init__(self, context: object) -> None:
        self.node = Node("listener", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.clouds: list[PointCloud2] = []
        self.lighting: list[DiagnosticArray] = []
        self.diagnosed: dict[str, dict[str, str]] = {}  # by status
        self.node.create_subscription(PointCloud2, "/xmodal_seg/points", self.clouds.append, 50)
        self.node.create_subscription(DiagnosticArray, "/lighting", self.lighting.append, 50)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._note, 10)
        self._clients = {name: self.node.create_client(GetState, f"/{name}/get_state") for name in NODES}

    def spin_until(self, condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
        """Spin while the launch runs; its output is the reason where what is waited for does not happen."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{self.diagnosed}\n{log.read_text()}"
            self.executor.spin_once(timeout_sec=0.1)

    def is_active(self, name: str) -> bool:
        if not self._clients[name].service_is_ready():
            return False
        future = self._clients[name].call_async(GetState.Request())
        self.executor.spin_until_future_complete(future, timeout_sec=1.0)
        return future.done() and future.result().current_state.label == "active"

    def segmentation(self) -> dict[str, str]:
        return self.diagnosed.get("xmodal_seg: segmentation", {})

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()

    def _note(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.diagnosed[status.name] = {value.key: value.value for value in status.values}


@pytest.fixture
def listener(ros_context: object) -> Iterator[Listener]:
    listener = Listener(ros_context)
    yield listener
    listener.close()


def test_replay_labels_every_sweep_of_the_bag_estimates_its_light_and_ends_with_sigint(
    listener: Listener, bag: Path, checkpoint: Path, tmp_path: Path
) -> None:
    log = tmp_path / "launch.log"
    arguments = [f"bag:={bag}", f"checkpoint:={checkpoint}", "device:=cpu", "pace:=true"]
    with launched("replay.launch.py", *arguments, log=log) as process:
        listener.spin_until(lambda: all(listener.is_active(name) for name in NODES), process, log)
        listener.spin_until(lambda: len(listener.clouds) >= NUM_SWEEPS, process, log)
        listener.spin_until(lambda: listener.segmentation().get("frames") == str(NUM_SWEEPS), process, log)
        listener.spin_until(lambda: bool(listener.lighting), process, log)
    output = log.read_text()
    assert process.returncode == 0, output
    assert [cloud.width for cloud in listener.clouds] == [300 + i for i in range(NUM_SWEEPS)], output
    assert "lidar_only_frames" not in listener.segmentation(), "the transforms did not arrive"
    (light,) = read_lighting(listener.lighting[0])
    assert light.name == "front"
    assert light.darkness < 0.5, "a picture of a day"
    assert ended_cleanly(output) == {"segmentation_node", "lighting_node", "play_bag_node"}, output
    assert "[WARN]" not in output, output
    assert "Traceback" not in output, output


@pytest.mark.parametrize(
    ("lighting", "executables"),
    [("true", {"segmentation_node", "lighting_node"}), ("false", {"segmentation_node"})],
)
def test_seg_starts_lighting_beside_segmentation_unless_told_not_to(
    lighting: str, executables: set[str], listener: Listener, checkpoint: Path, tmp_path: Path
) -> None:
    log = tmp_path / "launch.log"
    arguments = [f"checkpoint:={checkpoint}", "device:=cpu", f"lighting:={lighting}"]
    with launched("seg.launch.py", *arguments, log=log) as process:
        names = NODES if lighting == "true" else ("xmodal_seg",)
        listener.spin_until(lambda: all(listener.is_active(name) for name in names), process, log)
        assert ("lighting" in listener.node.get_node_names()) == (lighting == "true")
    output = log.read_text()
    assert process.returncode == 0, output
    assert ended_cleanly(output) == executables, output
    assert "Traceback" not in output, output


def test_wrong_coefficients_end_the_lighting_node_with_one_sentence_and_segmentation_goes_on(
    listener: Listener, checkpoint: Path, tmp_path: Path
) -> None:
    log = tmp_path / "launch.log"
    arguments = [f"checkpoint:={checkpoint}", "device:=cpu", "lighting_coefficients:=/nowhere.yaml"]
    with launched("seg.launch.py", *arguments, log=log) as process:
        listener.spin_until(lambda: "exit code 1" in log.read_text(), process, log)
        listener.spin_until(lambda: listener.is_active("xmodal_seg"), process, log)
    output = log.read_text()
    said = [line for line in output.splitlines() if line.startswith("[lighting_node-") and "INFO" not in line]
    assert len(said) == 1, output
    assert "/nowhere.yaml" in said[0]
    assert "[lighting_node-2]: process has died" in output
    assert ended_cleanly(output) == {"segmentation_node"}, output


def test_a_segmentation_node_that_lost_its_gpu_is_started_again() -> None:
    seg = load_launch_module("seg")
    otherwise = [seg.Shutdown(reason="the end")]
    again = {"group": seg.Group({}, {}), "after": lambda code: code == GPU_LOST, "otherwise": otherwise}
    ended = seg.start_again(lambda: seg.OpaqueFunction(function=print), **again)
    for code, is_shutdown, expected in (
        (GPU_LOST, False, seg.TimerAction),
        (GPU_LOST, True, seg.Shutdown),
        (0, False, seg.Shutdown),
        (1, False, seg.Shutdown),
    ):
        (action,) = ended(SimpleNamespace(returncode=code), SimpleNamespace(is_shutdown=is_shutdown))
        assert type(action) is expected
    assert seg.GPU_LOST == GPU_LOST


GROUP = """
from launch import LaunchDescription
from launch.actions import GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import PushRosNamespace, SetRemap

def generate_launch_description():
    seg = IncludeLaunchDescription(PythonLaunchDescriptionSource({path!r}), launch_arguments=[("lighting", "false")])
    return LaunchDescription([GroupAction([PushRosNamespace("robot1"), SetRemap("/in", "/out"), seg])])
"""
# Writes down how it was started, and loses its GPU the first time.
STAND_IN = """#!/bin/sh
echo "$FASTDDS_BUILTIN_TRANSPORTS $*" >> {starts}
[ $(wc -l < {starts}) -gt 1 ] || exit 75
"""


def test_a_node_that_is_started_again_is_in_the_same_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, starts = tmp_path / "prefix", tmp_path / "starts"
    for folder in ("lib/xmodal_seg", "share/ament_index/resource_index/packages"):
        (prefix / folder).mkdir(parents=True)
    (prefix / "share/ament_index/resource_index/packages/xmodal_seg").touch()
    (prefix / "share/xmodal_seg").symlink_to(get_package_share_directory("xmodal_seg"))
    (prefix / "lib/xmodal_seg/segmentation_node").write_text(STAND_IN.format(starts=starts))
    (prefix / "lib/xmodal_seg/segmentation_node").chmod(0o755)
    (tmp_path / "group.launch.py").write_text(GROUP.format(path=str(LAUNCH / "seg.launch.py")))
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.pathsep.join([str(prefix), os.environ["AMENT_PREFIX_PATH"]]))
    monkeypatch.delenv("FASTDDS_BUILTIN_TRANSPORTS")

    done = subprocess.run(
        ["ros2", "launch", str(tmp_path / "group.launch.py")], capture_output=True, text=True, timeout=TIMEOUT_S
    )

    assert starts.is_file(), done.stdout + done.stderr
    first, second = (re.sub(r"/tmp/launch_params_\S+", "", line) for line in starts.read_text().splitlines())
    assert first == second
    assert first.startswith("LARGE_DATA ")
    assert "__ns:=/robot1" in first
    assert "/in:=/out" in first


def test_a_lighting_node_that_is_killed_is_started_again(listener: Listener, checkpoint: Path, tmp_path: Path) -> None:
    log = tmp_path / "launch.log"
    with launched("seg.launch.py", f"checkpoint:={checkpoint}", "device:=cpu", log=log) as process:
        for node in NODES:
            listener.spin_until(lambda node=node: listener.is_active(node), process, log)
        (lighting,) = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if any("lighting_node" in word for word in child.cmdline())
        ]
        lighting.kill()
        listener.spin_until(lambda: "exit code -9" in log.read_text(), process, log)
        listener.spin_until(lambda: "[lighting_node-3]: process started" in log.read_text(), process, log)
        listener.spin_until(lambda: listener.is_active("lighting"), process, log)
    assert ended_cleanly(log.read_text()) == {"segmentation_node", "lighting_node"}


def test_replay_asks_an_executable_of_the_package_what_the_bag_has(two_camera_bag: Path) -> None:
    nothing = dict.fromkeys(("points_topic", "cameras", "image_topics"), "")
    given = {**nothing, "bag": str(two_camera_bag), "cameras": "camera_1", "rate": "0.5"}
    found = load_launch_module("replay").look_into_bag(LaunchContext(), given)
    assert (found["cameras"], found["image_topics"]) == ("camera_1", "/camera_1/image")
    assert float(found["camera_timeout_ms"]) == 300


def test_below_rate_1_the_segmentation_node_waits_longer(
    listener: Listener, bag: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "node.yaml").write_text("/**/xmodal_seg: {ros__parameters: {camera_timeout_ms: 400.0}}")
    log = tmp_path / "launch.log"
    arguments = [f"bag:={bag}", f"checkpoint:={checkpoint}", "device:=cpu", "lighting:=false", "rate:=0.5"]
    arguments += [f"params_file:={tmp_path / 'node.yaml'}"]
    client = listener.node.create_client(GetParameters, "/xmodal_seg/get_parameters")
    with launched("replay.launch.py", *arguments, log=log) as process:
        listener.spin_until(client.service_is_ready, process, log)
        asked = client.call_async(GetParameters.Request(names=["camera_timeout_ms", "transform_timeout_s"]))
        listener.spin_until(asked.done, process, log)
    assert [value.double_value for value in asked.result().values] == [800.0, 0.4]


def test_a_bag_that_cannot_be_read_ends_with_one_sentence(tmp_path: Path) -> None:
    code, output = run_to_its_end("replay.launch.py", f"bag:={tmp_path / 'none'}", folder=tmp_path)
    assert code != 0
    (said,) = [line for line in output.splitlines() if "[INFO]" not in line]
    assert said.endswith(f"xmodal-seg replay-arguments: no bag at {tmp_path / 'none'}: no such file or folder")


def test_a_misspelt_argument_is_refused_and_one_of_another_launch_file_is_not() -> None:
    refuse_misspelt = load_launch_module("seg").refuse_misspelt
    refuse_misspelt(["bag", "rate", "start_offset", "calibration_file", "robot"])
    with pytest.raises(ValueError, match="no argument 'calibraton_file': did you mean 'calibration_file'"):
        refuse_misspelt(["device", "calibraton_file"])


def test_a_wrong_calibration_path_ends_with_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    _, output = run_to_its_end(
        "seg.launch.py", "calibration_file:=/nowhere.yaml", f"checkpoint:={checkpoint}", folder=tmp_path
    )
    said = [line for line in output.splitlines() if line.startswith("[segmentation_node-1]") and "INFO" not in line]
    assert len(said) == 1, output
    assert "calibration_file: no such file: /nowhere.yaml" in said[0]
    assert "exit code 1" in output


@pytest.mark.parametrize(
    ("file", "argument", "sentence"),
    [
        ("seg", "autostart:=perhaps", "autostart: expected true or false, got 'perhaps'"),
        ("seg", "lighting:=perhaps", "lighting: expected true or false, got 'perhaps'"),
        ("seg", "intensity_max:=bright", "intensity_max: expected a number, got 'bright'"),
        ("replay", "loop:=perhaps", "loop: expected true or false, got 'perhaps'"),
        ("replay", "pace:=perhaps", "pace: expected true or false, got 'perhaps'"),
        ("replay", "rate:=fast", "rate: expected a number, got 'fast'"),
    ],
)
def test_a_wrong_argument_is_named(file: str, argument: str, sentence: str, bag: Path, tmp_path: Path) -> None:
    arguments = [f"bag:={bag}", argument] if file == "replay" else [argument]
    code, output = run_to_its_end(f"{file}.launch.py", *arguments, folder=tmp_path)
    assert code != 0
    assert sentence in output
