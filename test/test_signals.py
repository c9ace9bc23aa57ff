# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C ends the executables in order, whenever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

from node_harness import save_tiny_checkpoint

pytestmark = [pytest.mark.ros, pytest.mark.slow]
PROGRAM = "import sys; from xmodal_seg.nodes.entry import segmentation_node; print('begun', flush=True); "
ENDINGS = {
    "importing": "begun",  # printed before torch is imported
    "active": "activate: done",
}


@pytest.mark.parametrize("moment", ENDINGS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_zero(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint")
    arguments = ["-p", "autostart:=true", "-p", f"checkpoint:={checkpoint}", "-p", "cameras:=['']"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM + "sys.exit(segmentation_node())", "--ros-args", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if ENDINGS[moment] in line:
            break
    if moment == "importing":
        # The handlers are set in the first lines of the entry point, before the imports that take seconds.
        while b"SigCgt" in (status := Path(f"/proc/{process.pid}/status").read_bytes()) and not catches(status, number):
            pass
    process.send_signal(number)
    process.send_signal(number)  # as Ctrl-C on `ros2 launch` does: from the terminal and from launch
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, "".join(said) + rest
    assert "Traceback" not in rest


def catches(status: bytes, number: signal.Signals) -> bool:
    """Whether a process has set a handler of its own for a signal (Python itself sets one for SIGINT)."""
    line = next(line for line in status.splitlines() if line.startswith(b"SigCgt"))
    caught = int(line.split()[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1) and bool(caught >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-p", "rat:=2.0"], "rat"),
        (["-p", "broken"], "broken"),
        (["--params-file", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: list[str], word: str) -> None:
    for executable in ("segmentation_node", "play_bag_node"):
        process = subprocess.run(
            [sys.executable, "-m", f"xmodal_seg.nodes.{executable}", "--ros-args", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert process.returncode == 1
        assert word in process.stderr
        assert "Traceback" not in process.stderr
