# SPDX-License-Identifier: Apache-2.0
"""A node's process ends, even where its middleware never would."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from xmodal_seg.commands.processes import child

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


@pytest.mark.ros
def test_a_middleware_that_hangs_when_all_is_done_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "hanging_node.py").write_text(MODULE)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    with child("hanging_node", [], log=tmp_path / "log.txt", environment=environment) as process:
        assert process._process.wait(45) == -signal.SIGALRM
        assert process.exit_code() == 0
    assert "taken down" in (tmp_path / "log.txt").read_text()
