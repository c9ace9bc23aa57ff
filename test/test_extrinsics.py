# SPDX-License-Identifier: Apache-2.0
"""Camera poses from tf2, which only a ROS installation has: a stand-in for it with the same names."""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

from geometry_msgs.msg import TransformStamped

from xmodal_seg.nodes.extrinsics import TfExtrinsics

pytestmark = pytest.mark.ros
STAMP_NS = 1_500_000_000_000_000_001


class TransformError(Exception):
    pass


class Buffer:
    """Knows the transform from the `late`-th question on."""

    late = 0

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []

    def lookup_transform(self, target: str, source: str, stamp: Any) -> TransformStamped:
        self.asked.append((target, source, stamp.nanoseconds))
        if len(self.asked) <= self.late:
            raise TransformError("extrapolation into the future")
        message = TransformStamped()
        message.header.frame_id, message.child_frame_id = target, source
        message.transform.translation.x = 1.5
        message.transform.rotation.z = message.transform.rotation.w = np.sqrt(0.5)  # a quarter turn about z
        return message


class Listener:
    def __init__(self, buffer: Buffer, node: Any) -> None:
        pass


@pytest.fixture
def tf2(monkeypatch: pytest.MonkeyPatch) -> type[Buffer]:
    module: Any = ModuleType("tf2_ros")
    buffer = type("BufferOfOneTest", (Buffer,), {})
    module.Buffer, module.TransformListener, module.TransformException = buffer, Listener, TransformError
    monkeypatch.setitem(sys.modules, "tf2_ros", module)
    return buffer


def test_the_pose_is_the_one_that_takes_points_of_the_lidar_to_the_camera(tf2: type[Buffer]) -> None:
    extrinsics = TfExtrinsics(node=None)
    pose = extrinsics.lookup("camera", "lidar", STAMP_NS, deadline_s=time.monotonic())
    np.testing.assert_allclose(pose, [[0, -1, 0, 1.5], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-12)
    extrinsics.lookup("/camera", "/lidar", STAMP_NS, deadline_s=time.monotonic())
    assert extrinsics._buffer.asked == [("camera", "lidar", STAMP_NS)] * 2


def test_a_transform_that_is_late_is_waited_for(tf2: type[Buffer]) -> None:
    tf2.late = 2
    extrinsics = TfExtrinsics(node=None)
    extrinsics.lookup("camera", "lidar", STAMP_NS, deadline_s=time.monotonic() + 60)
    assert len(extrinsics._buffer.asked) == 3


def test_a_transform_that_does_not_come_names_both_frames(tf2: type[Buffer]) -> None:
    tf2.late = 10**9
    extrinsics = TfExtrinsics(node=None)
    with pytest.raises(ValueError, match="no transform from 'lidar' to 'camera': extrapolation into the future"):
        extrinsics.lookup("camera", "lidar", STAMP_NS, deadline_s=time.monotonic())
