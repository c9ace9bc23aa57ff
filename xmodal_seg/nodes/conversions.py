# SPDX-License-Identifier: Apache-2.0
"""Results to ROS messages, and the choice of an image decoder.

Messages are read by `xmodal_seg.messages`, which needs no ROS.
"""

from __future__ import annotations

import importlib
import json
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import Header, String

from xmodal_seg.labels import UNLABELED, LabelSpace
from xmodal_seg.messages import (
    IMAGE_ENCODINGS,
    LABELLED_DTYPE,
    LABELLED_FIELDS,
    decode_image,
    labelled_points_array,
    transform_matrix,
)

__all__ = [
    "DecoderChoice",
    "diagnostic_status",
    "image_message",
    "label_info_message",
    "label_info_type",
    "labelled_cloud_message",
    "make_image_decoder",
    "transform_matrix",
]

DecoderChoice = Literal["auto", "cv_bridge", "builtin"]
Level = Literal["OK", "WARN", "ERROR", "STALE"]
_IMAGE_CHANNELS = {"mono8": 1, "rgb8": 3}


def labelled_cloud_message(
    *,
    header: Header,
    points: NDArray[np.float32],
    labels: NDArray[np.uint8],
    probability: NDArray[np.float32],
    palette: NDArray[np.uint8],
) -> PointCloud2:
    """An unorganised PointCloud2 of LABELLED_FIELDS: `points` in their order, with the header of the input."""
    data = array("B", [0]) * (len(points) * LABELLED_DTYPE.itemsize)
    labelled_points_array(
        points=points, labels=labels, probability=probability, palette=palette, out=np.frombuffer(data, dtype=np.uint8)
    )
    return PointCloud2(
        header=header,
        height=1,
        width=len(points),
        fields=[
            PointField(name=field.name, offset=field.offset, datatype=field.datatype, count=field.count)
            for field in LABELLED_FIELDS
        ],
        is_bigendian=False,
        point_step=LABELLED_DTYPE.itemsize,
        row_step=len(data),
        data=data,
        is_dense=bool(np.isfinite(points).all()),
    )


def image_message(image: NDArray[np.uint8], *, encoding: Literal["rgb8", "mono8"], header: Header) -> Image:
    """An Image of (H, W, 3) RGB or (H, W) grey pixels."""
    num_channels = _IMAGE_CHANNELS[encoding]
    if image.dtype != np.uint8 or image.ndim != (3 if num_channels > 1 else 2) or image.shape[2:] not in ((), (3,)):
        raise ValueError(f"image: expected uint8 pixels for {encoding}, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    return Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=width * num_channels,
        data=_array(image),
    )


def diagnostic_status(
    *, name: str, level: Level, message: str, values: Mapping[str, Any] | None = None, hardware_id: str = ""
) -> DiagnosticStatus:
    """A DiagnosticStatus whose values are written with `str`."""
    return DiagnosticStatus(
        level=getattr(DiagnosticStatus, level),
        name=name,
        message=message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=str(value)) for key, value in (values or {}).items()],
    )


def label_info_type() -> type:
    """vision_msgs/LabelInfo where it is installed, else std_msgs/String."""
    vision_msgs = _optional("vision_msgs.msg")
    return String if vision_msgs is None else vision_msgs.LabelInfo


def label_info_message(label_space: LabelSpace, *, header: Header) -> Any:
    """The class names by id, as a message of `label_info_type`.

    As a String it is JSON with the field names of LabelInfo, and with each class's colour and the id of unlabelled
    points besides.
    """
    vision_msgs = _optional("vision_msgs.msg")
    if vision_msgs is not None:
        classes = [
            vision_msgs.VisionClass(class_id=class_id, class_name=name)
            for class_id, name in enumerate(label_space.class_names)
        ]
        return vision_msgs.LabelInfo(header=header, class_map=classes)
    class_map = [
        {"class_id": class_id, "class_name": name, "colour": list(colour)}
        for class_id, (name, colour) in enumerate(zip(label_space.class_names, label_space.colours, strict=True))
    ]
    return String(data=json.dumps({"name": label_space.name, "unlabeled": UNLABELED, "class_map": class_map}))


def make_image_decoder(choice: DecoderChoice) -> Callable[[Any], NDArray[np.uint8]]:
    """A function from Image or CompressedImage to (H, W, 3) uint8 RGB.

    auto: the built-in decoder, and cv_bridge, where it is installed, for raw encodings that the built-in one lacks.
    Raises ValueError when cv_bridge is asked for and cannot be imported.
    """
    if choice == "builtin":
        return decode_image
    cv_bridge = _optional("cv_bridge")
    if cv_bridge is None:
        if choice == "cv_bridge":
            raise ValueError(
                "image_decoder: cv_bridge cannot be imported (its packages need NumPy 1); use auto or builtin"
            )
        return decode_image
    decode_by_bridge = _bridge_decoder(cv_bridge.CvBridge())
    if choice == "cv_bridge":
        return decode_by_bridge

    def decode(msg: Any) -> NDArray[np.uint8]:
        is_builtin = hasattr(msg, "format") or msg.encoding in IMAGE_ENCODINGS
        return decode_image(msg) if is_builtin else decode_by_bridge(msg)

    return decode


def _bridge_decoder(bridge: Any) -> Callable[[Any], NDArray[np.uint8]]:
    def decode(msg: Any) -> NDArray[np.uint8]:
        convert = bridge.compressed_imgmsg_to_cv2 if hasattr(msg, "format") else bridge.imgmsg_to_cv2
        try:
            return np.ascontiguousarray(convert(msg, desired_encoding="rgb8"))
        except Exception as error:  # cv_bridge raises its own, OpenCV's, NumPy's and Boost's errors for a bad message
            raise ValueError(f"encoding, size or data: cv_bridge cannot convert the image: {error}") from error

    return decode


def _optional(name: str) -> Any | None:
    """The module, or None where it is missing or, built against NumPy 1, fails under NumPy 2."""
    try:
        return importlib.import_module(name)
    except (ImportError, AttributeError, SystemError):
        return None


def _array(values: NDArray[Any]) -> array[int]:
    # rclpy takes an array('B') as it is; a numpy array it would copy element by element, 170 ms for a cloud.
    data = array("B")
    data.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return data
