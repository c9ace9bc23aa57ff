# SPDX-License-Identifier: Apache-2.0
"""Malformed and odd messages through the node's intake: pairing, decoding and calibration, as the worker does it.

Every sweep ends in a Frame, with or without its camera, or in a ValueError that names the field; nothing else.
"""

from __future__ import annotations

from array import array
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

from hypothesis import given
from hypothesis import strategies as st
from test_messages_fuzz import camera_infos, clouds, compressed_images, fuzz, images, outcome

from xmodal_seg.messages import decode_image
from xmodal_seg.nodes.frame_assembly import FrameAssembler
from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings
from xmodal_seg.pairing import NearestPairing
from xmodal_seg.structures import Frame

pytestmark = [pytest.mark.slow, pytest.mark.ros]
CLOUD_FIELDS = ("fields", "point_step", "row_step", "data", "height", "width", "is_bigendian")


class FixedExtrinsics:
    """A camera in the LiDAR's origin, known at once."""

    def lookup(self, camera_frame: str, lidar_frame: str, stamp_ns: int, *, deadline_s: float) -> np.ndarray:
        return np.eye(4)

    def clear(self) -> None:
        pass

    def close(self) -> None:
        pass


def stamped(message: SimpleNamespace, stamp_ns: int, frame_id: str) -> SimpleNamespace:
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    message.header = SimpleNamespace(stamp=stamp, frame_id=frame_id)
    return message


def sound_info() -> SimpleNamespace:
    """Without these few cameras would be whole, since each message beside them is wrong more often than not."""
    return SimpleNamespace(
        height=480,
        width=640,
        distortion_model="plumb_bob",
        d=array("d", [0.0] * 5),
        k=np.array([500.0, 0, 319.5, 0, 500, 239.5, 0, 0, 1]),
        r=np.eye(3).reshape(-1),
        p=np.array([500.0, 0, 319.5, 0, 0, 500, 239.5, 0, 0, 0, 1, 0]),
        binning_x=0,
        binning_y=0,
        roi=SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False),
    )


def test_every_sweep_ends_in_a_frame_or_a_named_error() -> None:
    outcomes: Counter[str] = Counter()
    settings = SegmentationNodeSettings(cameras=["front"])
    assemble = FrameAssembler(
        settings=settings,
        rectified=[False] * len(settings.cameras),
        extrinsics=FixedExtrinsics(),
        calibration_file=None,
        decode_image=decode_image,
    )

    @fuzz(3000)
    @given(
        cloud=clouds(),
        image=st.one_of(images(), images(), compressed_images()),
        info=st.one_of(camera_infos(), st.builds(sound_info)),
        stamps=st.tuples(*[st.integers(0, 80_000_000)] * 3),
        frames=st.tuples(*[st.sampled_from(["front", "front", ""])] * 2),
        fits=st.sampled_from([True, True, True, False]),
    )
    def check(
        cloud: Any, image: Any, info: Any, stamps: tuple[int, int, int], frames: tuple[str, str], fits: bool
    ) -> None:
        if fits and hasattr(image, "height"):
            info.height, info.width = image.height, image.width
        pairing = NearestPairing(
            cameras=["front"], tolerance_ns=60_000_000, timeout_ns=10, jump_threshold_ns=150_000_000
        )
        pairs = pairing.add_info("front", stamps[2], stamped(info, stamps[2], frames[1]), now_ns=0)
        pairs += pairing.add_image("front", stamps[1], stamped(image, stamps[1], frames[0]), now_ns=0)
        pairs += pairing.add_cloud(stamps[0], stamped(cloud, stamps[0], "lidar"), now_ns=0)
        pairs += pairing.poll(20)
        assert len(pairs) == 1
        assembled = outcome(lambda: assemble(pairs[0]), CLOUD_FIELDS)
        if isinstance(assembled, str):
            outcomes["refused sweep"] += 1
            return
        assert isinstance(assembled.frame, Frame)
        assert len(assembled.frame.cameras) + len(assembled.problems) == 1
        outcomes["without camera" if assembled.problems else "whole"] += 1

    check()
    assert min(outcomes[name] for name in ("refused sweep", "without camera", "whole")) >= 20, outcomes
