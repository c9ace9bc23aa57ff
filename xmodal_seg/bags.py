# SPDX-License-Identifier: Apache-2.0
"""rosbag2 -> Frames without ROS: pairs by stamp, matches calibrations, follows transforms.

The door to bags: `read_frames`, `write_bag`, and for those who want messages `open_bag` and `BagWriter`.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.bag_files import Bag, BagWriter, RawMessage, open_bag
from xmodal_seg.bag_topics import TF_TYPE, SensorTopics, find_topics, intensity_range_of
from xmodal_seg.bag_writing import write_bag
from xmodal_seg.calibration_file import CalibrationFile
from xmodal_seg.labels import IGNORE_INDEX, UNLABELED
from xmodal_seg.messages import (
    calibration_from_camera_info,
    check_same_frame,
    decode_cloud,
    decode_cloud_labels,
    decode_image,
    stamp_ns,
)
from xmodal_seg.pairing import NearestPairing, Pair
from xmodal_seg.structures import CameraView, Frame
from xmodal_seg.transforms import TransformTree

__all__ = ["BagWriter", "find_topics", "open_bag", "read_frames", "write_bag"]

logger = logging.getLogger(__name__)

DEFAULT_TOLERANCE_S = 0.06
# How long, in the bag's time, a sweep waits for what belongs to it: recorders may write a slow topic late.
_WAIT_NS = 1_000_000_000
_JUMP_NS = 1_000_000_000
# Where none of the first so many can be used, single messages are not at fault, and the rest of a bag takes hours.
_PATIENCE = 50

T = TypeVar("T")


def read_frames(
    path: str | Path,
    *,
    points_topic: str | None = None,
    cameras: Collection[str] | None = None,
    rectified: bool | None = None,
    intensity_range: tuple[float, float] | None = None,
    label_topic: str | None = None,
    tolerance_s: float = DEFAULT_TOLERANCE_S,
    calibration_file: CalibrationFile | None = None,
) -> Iterator[Frame]:
    """The frames of a bag, one per sweep, in order; none is dropped and the result does not depend on speed.

    A sweep gets of each camera the image nearest by stamp within `tolerance_s`, and goes without a camera that has
    none. The extrinsic is looked up in /tf_static and /tf by the frame_ids of the messages at the sweep's stamp, or in
    `calibration_file`. Topics as in `find_topics`.

    As in the node, an image that cannot be read or projected costs its sweep that camera, and a sweep that cannot be
    read is left out. The log says the first of each kind at once, and at the end how many there were.

    Args:
        intensity_range: what the sensor's smallest and largest intensity are; None: found by `intensity_range_of`.

    Raises ValueError naming the topic and what is wrong with it; also where not one sweep, or not one image of a
    camera, can be used.
    """
    with open_bag(path) as bag:
        topics = find_topics(
            bag, points_topic=points_topic, cameras=cameras, rectified=rectified, label_topic=label_topic
        )
        if intensity_range is None:
            intensity_range = intensity_range_of(bag, topics.points)
        yield from _FrameReader(
            bag, topics, tolerance_s=tolerance_s, intensity_range=intensity_range, calibration_file=calibration_file
        ).frames()


class _FrameReader:
    """Messages of a bag, in recorded order, to frames."""

    def __init__(
        self,
        bag: Bag,
        topics: SensorTopics,
        *,
        tolerance_s: float,
        intensity_range: tuple[float, float],
        calibration_file: CalibrationFile | None,
    ) -> None:
        self._bag = bag
        self._topics = topics
        self._cameras = {camera.name: camera for camera in topics.cameras}
        self._images = {camera.image: camera.name for camera in topics.cameras}
        self._infos = {camera.camera_info: camera.name for camera in topics.cameras}
        self._intensity_range = intensity_range
        self._calibration_file = calibration_file
        self._transforms = _read_transforms(bag)
        self._labels: dict[int, NDArray[np.int64]] = {}  # by stamp
        self._readings = _Readings(bag.path)
        self._pairing = NearestPairing(
            cameras=list(self._cameras),
            tolerance_ns=round(tolerance_s * 1e9),
            timeout_ns=_WAIT_NS,
            silent_after_clouds=10**9,
            jump_threshold_ns=_JUMP_NS,
            max_clouds=64,
            max_images=32,
            image_topics={camera.name: camera.image for camera in topics.cameras},
        )

    def frames(self) -> Iterator[Frame]:
        for pair in self._pairs():
            frame = self._frame(pair)
            if pair.reason:
                logger.warning("sweep at %.3f s: %s", pair.stamp_ns / 1e9, pair.reason)
            if frame is not None:
                yield frame
        self._readings.finish()

    def _pairs(self) -> Iterator[Pair]:
        """Sweeps with their images, and with their labels read before them."""
        waiting: deque[tuple[Pair, int]] = deque()  # with the time until which it waits for its labels
        for message in self._bag.messages(self._wanted()):
            waiting.extend((pair, message.stamp_ns + _WAIT_NS) for pair in self._take(message))
            while waiting and (self._has_labels(waiting[0][0]) or message.stamp_ns > waiting[0][1]):
                yield waiting.popleft()[0]
        yield from (pair for pair, _ in waiting)
        yield from self._pairing.reset()

    def _wanted(self) -> list[str]:
        labels = [self._topics.labels] if self._topics.labels is not None else []
        return [self._topics.points, *labels, *self._images, *self._infos, *_static_topics(self._bag)]

    def _take(self, message: RawMessage) -> list[Pair]:
        decoded, now_ns = message.decode(), message.stamp_ns
        if message.msgtype == TF_TYPE:
            for transform in decoded.transforms:
                self._transforms.add_message(transform, static=True)
        elif message.topic == self._topics.labels:
            self._labels[stamp_ns(decoded)] = _train_ids(decoded, message.topic)
        elif message.topic in self._images:
            return self._pairing.add_image(self._images[message.topic], stamp_ns(decoded), decoded, now_ns=now_ns)
        elif message.topic in self._infos:
            return self._pairing.add_info(self._infos[message.topic], stamp_ns(decoded), decoded, now_ns=now_ns)
        else:
            return self._pairing.add_cloud(stamp_ns(decoded), decoded, now_ns=now_ns)
        return []

    def _has_labels(self, pair: Pair) -> bool:
        return self._topics.labels is None or pair.stamp_ns in self._labels

    def _frame(self, pair: Pair) -> Frame | None:
        """None for a sweep that cannot be read."""
        labels = self._labels.pop(pair.stamp_ns, None)
        cloud = self._readings.attempt(
            self._topics.points,
            lambda: decode_cloud(pair.cloud, intensity_range=self._intensity_range),
            sweep_ns=pair.stamp_ns,
        )
        if cloud is None:
            return None
        if labels is not None and len(labels) != len(cloud.points):
            raise ValueError(
                f"bag {self._bag.path}, sweep at {pair.stamp_ns / 1e9:.3f} s: {self._topics.labels} has "
                f"{len(labels)} labels for {len(cloud.points)} points"
            )
        return Frame(
            points=cloud.points,
            intensity=cloud.intensity,
            labels=labels,
            cameras=self._views(pair),
            stamp_ns=pair.stamp_ns,
            frame_id=pair.cloud.header.frame_id,
        )

    def _views(self, pair: Pair) -> tuple[CameraView, ...]:
        """Of the cameras that can be used for this sweep."""
        views = [
            self._readings.attempt(
                f"camera {name!r} ({camera.image})", partial(self._view, name, pair), sweep_ns=pair.stamp_ns
            )
            for name, camera in self._cameras.items()
            if name in pair.images
        ]
        return tuple(view for view in views if view is not None)

    def _view(self, name: str, pair: Pair) -> CameraView:
        paired, lidar_frame = pair.images[name], pair.cloud.header.frame_id
        camera_frame = paired.info.header.frame_id or paired.image.header.frame_id
        if not paired.info_exact:
            check_same_frame(paired.image, paired.info)
        if self._calibration_file is not None:
            camera_T_lidar = self._calibration_file.camera_T_lidar(camera_frame)
        else:
            camera_T_lidar = self._transforms.lookup(camera_frame, lidar_frame, pair.stamp_ns)
        calibration = calibration_from_camera_info(
            paired.info, camera_T_lidar=camera_T_lidar, rectified=self._cameras[name].rectified
        )
        return CameraView(
            name=name, image=decode_image(paired.image), calibration=calibration, stamp_ns=paired.stamp_ns
        )


class _Readings:
    """Counts which sweeps and which images of each camera can be used, and keeps the first fault of each.

    One bad message among good ones is left out; where there are no good ones, its fault is that of the bag.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_read: Counter[str] = Counter()
        self._num_left_out: Counter[str] = Counter()
        self._first: dict[str, str] = {}  # fault, one sentence

    def attempt(self, what: str, read: Callable[[], T], *, sweep_ns: int) -> T | None:
        """What `read` returns, None if it raises ValueError; `what` names where its message is from.

        Raises ValueError with the first fault if none of the first _PATIENCE could be read.
        """
        try:
            result = read()
        except ValueError as error:
            self._leave_out(what, f"bag {self._path}, sweep at {sweep_ns / 1e9:.3f} s: {what}: {error}")
            return None
        self._num_read[what] += 1
        return result

    def finish(self) -> None:
        """Say how many were left out. Raises ValueError with the first fault of what could never be read."""
        for what, number in self._num_left_out.items():
            self._check(what, least=1)
            of = number + self._num_read[what]
            logger.warning("bag %s: %s: %d of %d could not be used and were left out", self._path, what, number, of)

    def _leave_out(self, what: str, sentence: str) -> None:
        if what not in self._first:
            self._first[what] = sentence
            logger.warning("%s; it is left out, and others like it", sentence)
        self._num_left_out[what] += 1
        self._check(what, least=_PATIENCE)

    def _check(self, what: str, *, least: int) -> None:
        """Raises ValueError where at least so many were left out and none could be read."""
        number = self._num_left_out[what]
        if number >= least and not self._num_read[what]:
            raise ValueError(f"{self._first[what]}; of {number} none can be used")


def _read_transforms(bag: Bag) -> TransformTree:
    """All moving transforms, and of the static ones the first of each frame: a recorder may catch them late.

    Static transforms that change within the bag are applied when the reader comes to them.
    """
    tree = TransformTree(history_ns=None)
    for topic in bag.topics.values():
        if topic.msgtype != TF_TYPE:
            continue
        static = topic.name in _static_topics(bag)
        transforms = [transform for message in bag.messages([topic.name]) for transform in message.decode().transforms]
        for transform in reversed(transforms) if static else transforms:
            tree.add_message(transform, static=static)
    return tree


def _static_topics(bag: Bag) -> list[str]:
    return [topic.name for topic in bag.topics.values() if topic.msgtype == TF_TYPE and "static" in topic.name]


def _train_ids(message: Any, topic: str) -> NDArray[np.int64]:
    try:
        labels = decode_cloud_labels(message)
    except ValueError as error:
        raise ValueError(f"{topic}: {error}") from error
    return np.where(labels == UNLABELED, IGNORE_INDEX, labels)
