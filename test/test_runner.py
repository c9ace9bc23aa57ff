# SPDX-License-Identifier: Apache-2.0
"""A node's process ends, even where its middleware never would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

from xmodal_seg.commands.processes import child
from xmodal_seg.nodes.runner import GPU_LOST

# PyDLL keeps the interpreter's lock while it sleeps, as rclpy does while it destroys a node.
MODULE = """
import ctypes
import sys
from rclpy.node import Node
from xmodal_seg.nodes import runner

class Hanging(Node):
    def destroy_node(self):
        print("taken down", flush=True)
        ctypes.PyDLL(None).sleep(60)

runner._TAKE_DOWN_S = 1
sys.exit(runner.run_node(lambda: Hanging("hanging"), argv=None, finished=lambda _: True))
"""


LOST = """
import ctypes
import sys
from rclpy.node import Node
from xmodal_seg.nodes import runner

def finished(node):
    raise runner.GpuLostError("the GPU is lost to this process: CUDA error")

def close(node):
    if "stuck" in sys.argv:
        raise RuntimeError("CUDA error: nothing can be freed either")

class Lost(Node):
    def destroy_node(self):
        ctypes.PyDLL(None).sleep(60)

runner._TAKE_DOWN_S = 1
make = (lambda: Lost("lost")) if "hanging" in sys.argv else (lambda: Node("lost"))
on_start = (lambda _: False) if "not started" in sys.argv else (lambda _: True)
sys.exit(runner.run_node(make, argv=None, on_start=on_start, finished=finished, close=close))
"""


@pytest.mark.ros
@pytest.mark.parametrize("arguments", [[], ["stuck"], ["hanging"]])
def test_a_node_that_lost_its_gpu_ends_with_a_code_that_launch_knows(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "lost_node.py").write_text(LOST)
    command = [sys.executable, str(tmp_path / "lost_node.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == GPU_LOST, done.stderr
    assert done.stderr.startswith("xmodal_seg: the GPU is lost to this process: CUDA error")
    assert "Traceback" not in done.stderr


@pytest.mark.ros
def test_a_node_that_could_not_start_keeps_its_exit_code_where_the_middleware_hangs(tmp_path: Path) -> None:
    (tmp_path / "lost_node.py").write_text(LOST)
    command = [sys.executable, str(tmp_path / "lost_node.py"), "hanging", "not started"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1


@pytest.mark.ros
def test_a_middleware_that_hangs_when_all_is_done_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "hanging_node.py").write_text(MODULE)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    with child("hanging_node", [], log=tmp_path / "log.txt", environment=environment) as process:
        assert process._process.wait(45) == -signal.SIGALRM
        assert process.exit_code() == 0
    assert "taken down" in (tmp_path / "log.txt").read_text()
