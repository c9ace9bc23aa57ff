# SPDX-License-Identifier: Apache-2.0
"""Frames -> rosbag2: points, images, camera infos, transforms and ground truth, and labelled clouds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.bag_files import BagWriter, Storage, typestore
from xmodal_seg.geometry import invert_rigid
from xmodal_seg.labels import IGNORE_INDEX, UNLABELED, LabelSpace
from xmodal_seg.messages import LABELLED_FIELDS, labelled_points_array
from xmodal_seg.structures import Calibration, CameraView, Frame
from xmodal_seg.transforms import pose_from_matrix

ImageFormat = Literal["jpeg", "png"]

GROUND_TRUTH_TOPIC = "/ground_truth/points"
CONDITION_TOPIC = "/ground_truth/condition"  # std_msgs/String: day, twilight or night, from its moment on
LABELLED_TOPIC = "/xmodal_seg/points"
JPEG_QUALITY = 92

_FLOAT32, _UINT8 = 7, 2  # sensor_msgs/PointField.datatype


def write_bag(
    path: str | Path,
    frames: Iterable[Frame],
    *,
    points_topic: str = "/points",
    camera_topic: str = "/{camera}/image",
    label_topic: str | None = GROUND_TRUTH_TOPIC,
    label_space: LabelSpace | None = None,
    lidar_frame: str = "lidar",
    image_format: ImageFormat = "jpeg",
    storage: Storage = "mcap",
    overwrite: bool = False,
    condition_of: Callable[[Frame], str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write frames as a robot would have recorded them; returns their number. The bag appears when it is complete.

    Per frame: PointCloud2 (x y z, intensity if known), for each camera `<camera_topic>/compressed` and `camera_info`
    beside it, /tf_static when a camera is new or its place has changed, and on `label_topic` the ground truth, if the
    frame has labels, as a cloud with a uint8 `label` (UNLABELED where unknown). With `condition_of` also the frame's
    condition on CONDITION_TOPIC.

    Args:
        camera_topic: image topic with {camera} for the camera's name, without `/compressed`.
        label_space: the classes of the labels, written beside them as latched JSON.
        lidar_frame: frame_id of the points where a frame does not name its own.
        progress: called with the number of frames written so far.

    Raises ValueError if the bag exists (unless `overwrite`) and for two frames with one stamp.
    """
    if image_format not in ("jpeg", "png"):
        raise ValueError(f"image_format: expected jpeg or png, got {image_format!r}")
    stamps: set[int] = set()
    with BagWriter(path, storage=storage, overwrite=overwrite) as bag:
        cameras = _CameraWriter(bag, topic=camera_topic, image_format=image_format)
        for frame in frames:
            if frame.stamp_ns in stamps:
                raise ValueError(f"two frames have the stamp {frame.stamp_ns} ns; a bag tells frames apart by it")
            if label_topic is not None and frame.labels is not None and label_space is not None and not stamps:
                write_label_space(bag, label_topic, label_space, frame.stamp_ns)
            stamps.add(frame.stamp_ns)
            frame_id = frame.frame_id or lidar_frame
            cameras.write_transforms(frame, frame_id)
            bag.write(points_topic, frame.stamp_ns, points_message(frame, frame_id))
            if label_topic is not None and frame.labels is not None:
                bag.write(label_topic, frame.stamp_ns, ground_truth_message(frame, frame_id))
            if condition_of is not None:
                text = _type("std_msgs/msg/String")(data=condition_of(frame))
                bag.write(CONDITION_TOPIC, frame.stamp_ns, text)
            for view in frame.cameras:
                cameras.write(view)
            if progress is not None:
                progress(len(stamps))
    return len(stamps)


def points_message(frame: Frame, frame_id: str) -> Any:
    """PointCloud2 with x y z and, if the frame has it, intensity; all float32."""
    columns = [frame.points] if frame.intensity is None else [frame.points, frame.intensity[:, None]]
    names = ("x", "y", "z", "intensity")
    data = np.ascontiguousarray(np.concatenate(columns, axis=1), dtype="<f4")
    fields = [(name, 4 * number, _FLOAT32) for number, name in enumerate(names[: data.shape[1]])]
    return _cloud_message(data, fields, stamp_ns=frame.stamp_ns, frame_id=frame_id)


def ground_truth_message(frame: Frame, frame_id: str) -> Any:
    """PointCloud2 with x y z and the frame's labels as uint8, UNLABELED for IGNORE_INDEX."""
    assert frame.labels is not None
    data = np.zeros(frame.num_points, dtype=[("xyz", "<f4", 3), ("label", "u1"), ("padding", "u1", 3)])
    data["xyz"] = frame.points
    data["label"] = np.where(frame.labels == IGNORE_INDEX, UNLABELED, frame.labels)
    fields = [("x", 0, _FLOAT32), ("y", 4, _FLOAT32), ("z", 8, _FLOAT32), ("label", 12, _UINT8)]
    return _cloud_message(data, fields, stamp_ns=frame.stamp_ns, frame_id=frame_id)


def labelled_message(
    frame: Frame, labels: NDArray[np.uint8], probability: NDArray[np.float32], label_space: LabelSpace
) -> Any:
    """The cloud that the segmentation node publishes for a frame: x y z label probability rgb."""
    data = labelled_points_array(
        points=frame.points, labels=labels, probability=probability, palette=label_space.palette()
    )
    fields = [(field.name, field.offset, field.datatype) for field in LABELLED_FIELDS]
    return _cloud_message(data, fields, stamp_ns=frame.stamp_ns, frame_id=frame.frame_id)


def write_label_space(bag: BagWriter, cloud_topic: str, label_space: LabelSpace, stamp_ns: int) -> None:
    """Class names and colours as latched JSON on `label_info` beside `cloud_topic`, as the segmentation node does."""
    class_map = [
        {"class_id": class_id, "class_name": name, "colour": list(colour)}
        for class_id, (name, colour) in enumerate(zip(label_space.class_names, label_space.colours, strict=True))
    ]
    text = json.dumps({"name": label_space.name, "unlabeled": UNLABELED, "class_map": class_map})
    bag.write(label_info_topic(cloud_topic), stamp_ns, _type("std_msgs/msg/String")(data=text), latched=True)


def label_info_topic(cloud_topic: str) -> str:
    """`label_info` in the namespace of a cloud."""
    return f"{cloud_topic.rpartition('/')[0]}/label_info"


class _CameraWriter:
    """Images, camera infos and transforms; a camera that moves on the robot gets a new frame_id each time."""

    def __init__(self, bag: BagWriter, *, topic: str, image_format: ImageFormat) -> None:
        if "{camera}" not in topic:
            raise ValueError(f"camera_topic: expected {{camera}} in it for the camera's name, got {topic!r}")
        self._bag = bag
        self._topic = topic
        self._format = image_format
        self._frame_ids: dict[str, str] = {}
        self._places: dict[str, NDArray[np.float64]] = {}
        self._num_moves: dict[str, int] = {}

    def write_transforms(self, frame: Frame, lidar_frame: str) -> None:
        """/tf_static with the cameras whose place is new, recorded before anything that needs it."""
        moved = [view for view in frame.cameras if self._has_moved(view)]
        if not moved:
            return
        recorded_ns = min([frame.stamp_ns, *(view.stamp_ns for view in frame.cameras)])
        transforms = []
        for view in moved:
            number = self._num_moves[view.name] = self._num_moves.get(view.name, -1) + 1
            self._frame_ids[view.name] = f"{view.name}_optical" + (f"_{number}" if number else "")
            self._places[view.name] = view.calibration.camera_T_lidar
            lidar_T_camera = invert_rigid(view.calibration.camera_T_lidar)
            transforms.append(_transform(lidar_T_camera, lidar_frame, self._frame_ids[view.name], recorded_ns))
        message = _type("tf2_msgs/msg/TFMessage")(transforms=transforms)
        self._bag.write("/tf_static", recorded_ns, message, latched=True)

    def write(self, view: CameraView) -> None:
        """The image and its CameraInfo."""
        topic = self._topic.format(camera=view.name)
        header = _header(view.stamp_ns, self._frame_ids[view.name])
        image = _type("sensor_msgs/msg/CompressedImage")(
            header=header, format=self._format, data=_encode(view.image, self._format)
        )
        self._bag.write(f"{topic}/compressed", view.stamp_ns, image)
        self._bag.write(
            f"{topic.rpartition('/')[0]}/camera_info", view.stamp_ns, _camera_info(view.calibration, header)
        )

    def _has_moved(self, view: CameraView) -> bool:
        before = self._places.get(view.name)
        return before is None or not np.array_equal(before, view.calibration.camera_T_lidar)


def _cloud_message(data: NDArray[Any], fields: list[tuple[str, int, int]], *, stamp_ns: int, frame_id: str) -> Any:
    point_step = data.nbytes // max(len(data), 1) if data.ndim > 1 else data.dtype.itemsize
    field_type = _type("sensor_msgs/msg/PointField")
    return _type("sensor_msgs/msg/PointCloud2")(
        header=_header(stamp_ns, frame_id),
        height=1,
        width=len(data),
        fields=[field_type(name=name, offset=offset, datatype=kind, count=1) for name, offset, kind in fields],
        is_bigendian=False,
        point_step=point_step,
        row_step=point_step * len(data),
        data=np.frombuffer(data.tobytes(), dtype=np.uint8),
        is_dense=False,
    )


def _camera_info(calibration: Calibration, header: Any) -> Any:
    matrix = calibration.camera_matrix
    distorted = calibration.distortion is not None and calibration.distortion.size > 0
    return _type("sensor_msgs/msg/CameraInfo")(
        header=header,
        height=calibration.image_size[0],
        width=calibration.image_size[1],
        distortion_model=calibration.distortion_model if distorted else "plumb_bob",
        d=np.asarray(calibration.distortion if distorted else np.zeros(5), dtype=np.float64),
        k=matrix.reshape(9).astype(np.float64),
        r=np.eye(3).reshape(9),
        p=np.hstack([matrix, np.zeros((3, 1))]).reshape(12).astype(np.float64),
        binning_x=0,
        binning_y=0,
        roi=_type("sensor_msgs/msg/RegionOfInterest")(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    )


def _transform(parent_T_child: NDArray[np.float64], parent: str, child: str, stamp_ns: int) -> Any:
    move, turn = pose_from_matrix(parent_T_child)
    return _type("geometry_msgs/msg/TransformStamped")(
        header=_header(stamp_ns, parent),
        child_frame_id=child,
        transform=_type("geometry_msgs/msg/Transform")(
            translation=_type("geometry_msgs/msg/Vector3")(*(float(value) for value in move)),
            rotation=_type("geometry_msgs/msg/Quaternion")(*(float(value) for value in turn)),
        ),
    )


def _encode(image: NDArray[np.uint8], image_format: ImageFormat) -> NDArray[np.uint8]:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if image_format == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    encoded, data = cv2.imencode(f".{image_format}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert encoded
    return np.asarray(data, dtype=np.uint8).reshape(-1)


def _header(stamp_ns: int, frame_id: str) -> Any:
    stamp = _type("builtin_interfaces/msg/Time")(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)
    return _type("std_msgs/msg/Header")(stamp=stamp, frame_id=frame_id)


def _type(name: str) -> Any:
    return typestore().types[name]
