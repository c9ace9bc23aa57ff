# SPDX-License-Identifier: Apache-2.0
"""The layouts of sensor messages: clouds, images, camera infos and transforms to numpy, and labelled points back.

Nothing here imports ROS. A message is anything with the attributes of its ROS type, so the messages of rclpy (`data` is
an `array.array('B')`) and those of rosbags (`data` is a numpy array) are read by the same code. Nothing that is
returned shares memory with the message. Every malformed message ends in a ValueError that begins with the field that is
wrong.
"""

from xmodal_seg.messages.camera_info import calibration_from_camera_info
from xmodal_seg.messages.clouds import (
    INTENSITY_FIELDS,
    LABELLED_DTYPE,
    LABELLED_FIELDS,
    Cloud,
    PointFieldSpec,
    decode_cloud,
    decode_cloud_labels,
    labelled_points_array,
)
from xmodal_seg.messages.headers import check_same_frame, stamp_ns, transform_matrix
from xmodal_seg.messages.images import IMAGE_ENCODINGS, decode_image, decode_small_image

__all__ = [
    "IMAGE_ENCODINGS",
    "INTENSITY_FIELDS",
    "LABELLED_DTYPE",
    "LABELLED_FIELDS",
    "Cloud",
    "PointFieldSpec",
    "calibration_from_camera_info",
    "check_same_frame",
    "decode_cloud",
    "decode_cloud_labels",
    "decode_image",
    "decode_small_image",
    "labelled_points_array",
    "stamp_ns",
    "transform_matrix",
]
