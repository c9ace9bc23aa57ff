# SPDX-License-Identifier: Apache-2.0
"""The launch files for real: `ros2 launch` on the built package. Skipped where launch_ros is missing."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytest.importorskip("launch_ros", reason="launch_ros is missing: it comes with a ROS installation, not from PyPI")

from diagnostic_msgs.msg import DiagnosticArray
from helpers import make_frame
from lifecycle_msgs.srv import GetState
from node_harness import save_tiny_checkpoint
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2

from xmodal_seg.bags import write_bag

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.usefixtures("large_data")]
LAUNCH = Path(__file__).parents[1] / "launch"
NUM_SWEEPS = 5


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "drive"
    frames = [make_frame(num_points=300 + i, stamp_ns=1_700_000_000 * 10**9 + i * 10**8) for i in range(NUM_SWEEPS)]
    write_bag(path, frames, label_topic=None)
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
    process = subprocess.run(
        ["ros2", "launch", "xmodal_seg", *arguments], capture_output=True, text=True, timeout=120, cwd=folder
    )
    return process.returncode, process.stdout + process.stderr


def load_launch_module(name: str) -> object:
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


def test_replay_reaches_active_by_itself_labels_the_bag_and_ends_with_sigint(
    ros_context: object, bag: Path, checkpoint: Path, tmp_path: Path
) -> None:
    listener = Node("listener", context=ros_context)
    clouds: list[PointCloud2] = []
    listener.create_subscription(PointCloud2, "/xmodal_seg/points", clouds.append, 50)
    diagnosed: dict[str, str] = {}

    def note(message: DiagnosticArray) -> None:
        diagnosed.update({value.key: value.value for value in message.status[0].values})

    listener.create_subscription(DiagnosticArray, "/diagnostics", note, 10)
    client = listener.create_client(GetState, "/xmodal_seg/get_state")
    executor = SingleThreadedExecutor(context=ros_context)
    executor.add_node(listener)
    log = tmp_path / "launch.log"
    states = []
    arguments = [f"bag:={bag}", f"checkpoint:={checkpoint}", "device:=cpu", "pace:=true"]
    with launched("replay.launch.py", *arguments, log=log) as process:
        deadline = time.monotonic() + 120
        while (
            len(clouds) < NUM_SWEEPS or "active" not in states or diagnosed.get("frames") != str(NUM_SWEEPS)
        ) and time.monotonic() < deadline:
            if client.service_is_ready():
                future = client.call_async(GetState.Request())
                executor.spin_until_future_complete(future, timeout_sec=1.0)
                states += [future.result().current_state.label] if future.result() else []
            executor.spin_once(timeout_sec=0.1)
            assert process.poll() is None, log.read_text()
    executor.shutdown()
    listener.destroy_node()
    assert process.returncode == 0, log.read_text()
    assert "active" in states
    assert [cloud.width for cloud in clouds] == [300 + i for i in range(NUM_SWEEPS)], log.read_text()
    assert "lidar_only_frames" not in diagnosed, "the transforms did not arrive"
    assert "Traceback" not in log.read_text()


def test_a_wrong_calibration_path_ends_with_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    _, output = run_to_its_end(
        "seg.launch.py", "calibration_file:=/nowhere.yaml", f"checkpoint:={checkpoint}", folder=tmp_path
    )
    said = [line for line in output.splitlines() if line.startswith("[segmentation_node-1]") and "INFO" not in line]
    assert len(said) == 1, output
    assert "calibration_file: no such file: /nowhere.yaml" in said[0]
    assert "exit code 1" in output


def test_a_wrong_flag_is_named(tmp_path: Path) -> None:
    code, output = run_to_its_end("seg.launch.py", "autostart:=perhaps", folder=tmp_path)
    assert code != 0
    assert "autostart: expected true or false, got 'perhaps'" in output
