# SPDX-License-Identifier: Apache-2.0
"""Stamps and transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.transforms import matrix_from_pose


def stamp_ns(msg: Any) -> int:
    """The stamp of a message's header, ns."""
    return int(msg.header.stamp.sec) * 1_000_000_000 + int(msg.header.stamp.nanosec)


def check_same_frame(image: Any, info: Any) -> None:
    """ValueError naming both frames if the CameraInfo is of another camera than the image."""
    image_frame, info_frame = image.header.frame_id, info.header.frame_id
    if image_frame and info_frame and image_frame != info_frame:
        raise ValueError(
            f"the camera_info is of frame {info_frame!r} while the image is of {image_frame!r}: that of another camera?"
        )


def transform_matrix(msg: Any) -> NDArray[np.float64]:
    """(4, 4) `parent_T_child` of a TransformStamped: header.frame_id is the parent, child_frame_id the child.

    The quaternion is normalised. Raises ValueError for a quaternion of length 0 and for entries that are not finite.
    """
    move, turn = msg.transform.translation, msg.transform.rotation
    return matrix_from_pose(
        (move.x, move.y, move.z),
        (turn.x, turn.y, turn.z, turn.w),
        where=f"transform {msg.header.frame_id!r} -> {msg.child_frame_id!r}",
    )
