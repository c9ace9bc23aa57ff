# SPDX-License-Identifier: Apache-2.0
"""What setup.py says, read without installing anything, and which imports are ROS."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import setuptools  # noqa: F401  # also provides `distutils`, which Python 3.12 no longer has

ROOT = Path(__file__).parents[1]
# Besides these, a package of messages, told by the ending of its name.
ROS_PACKAGES = frozenset(
    {
        "ament_index_python",
        "cv_bridge",
        "launch",
        "launch_ros",
        "launch_testing",
        "message_filters",
        "rclpy",
        "rosbag2_py",
        "rosidl_runtime_py",
        "sensor_msgs_py",
        "std_srvs",
        "tf2_py",
        "tf2_ros",
    }
)
ROS_ENDINGS = ("_msgs", "_interfaces")


def is_ros(root: str) -> bool:
    """The top-level package `root` is one of ROS."""
    return root in ROS_PACKAGES or root.endswith(ROS_ENDINGS)


def read_setup(root: Path = ROOT) -> Any:
    """The setuptools Distribution that setup.py makes."""
    from distutils.core import run_setup

    with _inside(root):
        return run_setup("setup.py", stop_after="init")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """setup.py names its files relative to the folder that it stands in."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
