# SPDX-License-Identifier: Apache-2.0
"""A transform that does not come costs its camera, and time only now and then."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

from node_harness import CAMERA_FRAME, LIDAR_FRAME, make_cloud, make_image, make_info

from xmodal_seg.messages import decode_image
from xmodal_seg.nodes import frame_assembly
from xmodal_seg.nodes.frame_assembly import FrameAssembler
from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings
from xmodal_seg.pairing import Pair, PairedImage

pytestmark = pytest.mark.ros
TIMEOUT_S = 5.0


class Transforms:
    """Notes how long each lookup may wait, and does not."""

    def __init__(self) -> None:
        self.known = False
        self.patience_s: list[float] = []
        self.stamps_ns: list[int] = []

    def lookup(self, camera_frame: str, lidar_frame: str, stamp_ns: int, *, deadline_s: float) -> np.ndarray:
        assert (camera_frame, lidar_frame) == (CAMERA_FRAME, LIDAR_FRAME)
        self.patience_s.append(deadline_s - time.monotonic())
        self.stamps_ns.append(stamp_ns)
        if not self.known:
            raise ValueError("no transform")
        return np.eye(4)

    def clear(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_view_is_stamped_by_the_clock_of_its_sweep() -> None:
    transforms = Transforms()
    transforms.known = True
    assemble = FrameAssembler(
        settings=SegmentationNodeSettings(cameras=["rear", "front"], stamp_offsets_ms=[-7.0, 250.0]),
        rectified=[False, False],
        extrinsics=transforms,
        calibration_file=None,
        decode_image=decode_image,
    )
    stamp_ns, taken_ns = 10**12, 10**12 + 3_000_000
    image_ns = taken_ns + 250_000_000
    image = PairedImage(stamp_ns=image_ns, image=make_image(image_ns), info=make_info(image_ns), info_exact=True)
    pair = Pair(stamp_ns=stamp_ns, cloud=make_cloud(stamp_ns), images={"front": image}, missing=(), reason="")
    frame = assemble(pair).frame
    assert (frame.stamp_ns, [view.stamp_ns for view in frame.cameras]) == (stamp_ns, [taken_ns])
    assert transforms.stamps_ns == [stamp_ns]  # the points' time, at which they are projected


def test_a_missing_transform_is_waited_for_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = Transforms()
    assemble = FrameAssembler(
        settings=SegmentationNodeSettings(cameras=["front"], transform_timeout_s=TIMEOUT_S),
        rectified=[False],
        extrinsics=transforms,
        calibration_file=None,
        decode_image=decode_image,
    )

    def used_cameras() -> list[str]:
        image = PairedImage(stamp_ns=0, image=make_image(0), info=make_info(0), info_exact=True)
        pair = Pair(stamp_ns=0, cloud=make_cloud(0), images={"front": image}, missing=(), reason="")
        return [camera.name for camera in assemble(pair).frame.cameras]

    def waits() -> list[bool]:
        told = [patience_s > TIMEOUT_S / 2 for patience_s in transforms.patience_s]
        transforms.patience_s.clear()
        return told

    assert [used_cameras() for _ in range(5)] == [[]] * 5
    assert waits() == [True, True, True, False, False]
    monkeypatch.setattr(frame_assembly, "_WAIT_AGAIN_S", 0.0)
    assert used_cameras() == []
    assert waits() == [True]
    monkeypatch.undo()
    transforms.known = True
    assert [used_cameras() for _ in range(2)] == [["front"]] * 2
    assert waits() == [False, True]  # once it is there, a late one is waited for as before
    transforms.known = False
    used_cameras()
    transforms.known = True
    used_cameras()
    assert waits() == [True, True]  # one that moves and came too late once
