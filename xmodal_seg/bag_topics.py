# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag make frames, and what it says about its intensities and classes."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from xmodal_seg.bag_files import Bag, Topic
from xmodal_seg.bag_writing import CONDITION_TOPIC, GROUND_TRUTH_TOPIC, label_info_topic
from xmodal_seg.labels import LabelSpace
from xmodal_seg.messages import decode_cloud

POINTS_TYPE = "sensor_msgs/msg/PointCloud2"
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
INFO_TYPE = "sensor_msgs/msg/CameraInfo"
TF_TYPE = "tf2_msgs/msg/TFMessage"
TEXT_TYPE = "std_msgs/msg/String"
CONDITIONS = ("day", "twilight", "night")
INTENSITY_SWEEPS = 20  # looked at until one tells the scale of intensities


@dataclass(frozen=True, kw_only=True)
class CameraTopics:
    """Where one camera's messages are."""

    name: str
    image: str  # as recorded, with /compressed where it is
    camera_info: str
    rectified: bool  # project through P; else through K and D


@dataclass(frozen=True, kw_only=True)
class SensorTopics:
    """The topics of a bag that make frames."""

    points: str
    cameras: tuple[CameraTopics, ...]
    labels: str | None  # ground truth


def find_topics(
    bag: Bag,
    *,
    points_topic: str | None = None,
    cameras: Collection[str] | None = None,
    rectified: bool | None = None,
    label_topic: str | None = None,
) -> SensorTopics:
    """Which topics of a bag to read; what is not given is found.

    Points: the one PointCloud2 topic that does not carry labels. Cameras: every namespace with images and a
    `camera_info`, named after its last part; of several image topics in one namespace the most rectified serves.
    Labels: GROUND_TRUTH_TOPIC if the bag has it. Images on topics `image_rect*` count as rectified.

    Args:
        cameras: names or image topics to keep, in this order; empty for none.

    Raises ValueError listing the topics that exist when one is missing or the choice is open.
    """
    if label_topic is None and GROUND_TRUTH_TOPIC in bag.topics:
        label_topic = GROUND_TRUTH_TOPIC
    if label_topic is not None:
        bag.require(label_topic, [POINTS_TYPE])
    if points_topic is None:
        points_topic = find_points(bag)
    bag.require(points_topic, [POINTS_TYPE])
    return SensorTopics(points=points_topic, cameras=_find_cameras(bag, cameras, rectified), labels=label_topic)


def intensity_range_of(bag: Bag, points_topic: str) -> tuple[float, float]:
    """(0, 1) or (0, 255), whichever fits the first sweep that can be read and has points: sensors use either scale.

    What is wrong with other sweeps is left to those who read them.
    """
    for message in islice(bag.messages([points_topic]), INTENSITY_SWEEPS):
        try:
            intensity = decode_cloud(message.decode(), intensity_range=(0.0, 1e6)).intensity
        except ValueError:
            continue
        if intensity is None:
            break
        if intensity.size and intensity.max() > 0:
            return (0.0, 255.0) if float(intensity.max()) * 1e6 > 1.001 else (0.0, 1.0)
    return 0.0, 1.0


def read_label_space(bag: Bag, cloud_topic: str) -> LabelSpace | None:
    """The classes written beside a label cloud by `write_bag`; None where there are none."""
    topic = label_info_topic(cloud_topic)
    if topic not in bag.topics or bag.topics[topic].msgtype != TEXT_TYPE:
        return None
    for message in bag.messages([topic]):
        values = json.loads(message.decode().data)
        classes = values["class_map"]
        return LabelSpace(
            name=values["name"],
            class_names=tuple(entry["class_name"] for entry in classes),
            colours=tuple(tuple(entry["colour"]) for entry in classes),
        )
    return None


class Conditions:
    """The true condition along a bag, as CONDITION_TOPIC states it; each message holds until the next."""

    def __init__(self, changes: Sequence[tuple[int, str]]) -> None:
        """`changes`: (recorded ns, condition) in order. Raises ValueError for a word that is no condition."""
        for stamp_ns, condition in changes:
            if condition not in CONDITIONS:
                raise ValueError(
                    f"{CONDITION_TOPIC} at {stamp_ns / 1e9:.3f} s: expected one of {', '.join(CONDITIONS)}, "
                    f"got {condition!r}"
                )
        self._stamps_ns = [stamp_ns for stamp_ns, _ in changes]
        self._conditions = [condition for _, condition in changes]

    def at(self, stamp_ns: int) -> str | None:
        """The condition at `stamp_ns`; that of the first message before it; None where the bag states none."""
        if not self._stamps_ns:
            return None
        return self._conditions[max(bisect_right(self._stamps_ns, stamp_ns) - 1, 0)]


def read_conditions(bag: Bag) -> Conditions:
    """What the bag states on CONDITION_TOPIC, if anything. Raises ValueError for a topic of another type or word."""
    if CONDITION_TOPIC not in bag.topics:
        return Conditions([])
    bag.require(CONDITION_TOPIC, [TEXT_TYPE])
    return Conditions([(message.stamp_ns, message.decode().data) for message in bag.messages([CONDITION_TOPIC])])


def find_points(bag: Bag) -> str:
    """The one PointCloud2 topic that does not carry labels; ValueError listing the topics if it is not clear."""
    clouds = [topic.name for topic in bag.topics.values() if topic.msgtype == POINTS_TYPE and topic.num_messages]
    candidates = [name for name in clouds if not _carries_labels(bag, name)]
    if len(candidates) != 1:
        found = ", ".join(candidates) or "none"
        raise ValueError(
            f"bag {bag.path}: expected one topic of points, found {found}; "
            f"name one of its topics: {bag.describe_topics()}"
        )
    return candidates[0]


def _carries_labels(bag: Bag, topic: str) -> bool:
    first = next(bag.messages([topic])).decode()
    return any(field.name == "label" for field in first.fields)


def _find_cameras(bag: Bag, wanted: Collection[str] | None, rectified: bool | None) -> tuple[CameraTopics, ...]:
    found = _name_cameras(_all_cameras(bag))
    if wanted is None:
        by_namespace: dict[str, CameraTopics] = {}
        for camera in found:  # the preferred image topic of a namespace comes first
            if "depth" not in camera.image:
                by_namespace.setdefault(camera.camera_info, camera)
        chosen = tuple(by_namespace.values())
    else:
        chosen = tuple(_choose(bag, found, name) for name in wanted)
    for camera in chosen:
        bag.require(camera.camera_info, [INFO_TYPE])
    return chosen if rectified is None else tuple(replace(camera, rectified=rectified) for camera in chosen)


def _all_cameras(bag: Bag) -> list[Topic]:
    """Image topics with a camera_info beside them, in the bag's order of namespaces, the best of each first."""
    images = [topic for topic in bag.topics.values() if topic.msgtype in IMAGE_TYPES and topic.num_messages]
    images = [topic for topic in images if _info_topic(topic.name) in bag.topics]
    namespaces = list(dict.fromkeys(_namespace(topic.name) for topic in images))
    return sorted(images, key=lambda topic: (namespaces.index(_namespace(topic.name)), *_preference(topic)))


def _preference(topic: Topic) -> tuple[bool, bool, bool, str]:
    """Rectified before raw, colour before grey, uncompressed before compressed."""
    base = _base(topic.name).rpartition("/")[2]
    return not base.startswith("image_rect"), "mono" in base, topic.name != _base(topic.name), base


def _name_cameras(images: list[Topic]) -> list[CameraTopics]:
    """A camera is called like its namespace: the last part where that is enough, else all of it."""
    namespaces = dict.fromkeys(_namespace(topic.name) for topic in images)
    last_parts = [namespace.rpartition("/")[2] for namespace in namespaces]
    cameras = []
    for topic in images:
        namespace = _namespace(topic.name)
        name = namespace.rpartition("/")[2]
        if last_parts.count(name) > 1:
            name = namespace.strip("/").replace("/", "_")
        rectified = _base(topic.name).rpartition("/")[2].startswith("image_rect")
        cameras.append(
            CameraTopics(
                name=name or "camera", image=topic.name, camera_info=_info_topic(topic.name), rectified=rectified
            )
        )
    return cameras


def _choose(bag: Bag, cameras: list[CameraTopics], wanted: str) -> CameraTopics:
    for camera in cameras:
        if wanted in (camera.name, camera.image, _base(camera.image)):
            return camera
    known = ", ".join(f"{camera.name} ({camera.image})" for camera in cameras) or "none"
    raise ValueError(
        f"bag {bag.path} has no camera {wanted!r} with images and a camera_info beside them; it has {known}"
    )


def _base(image_topic: str) -> str:
    return image_topic.removesuffix("/compressed")


def _namespace(image_topic: str) -> str:
    return _base(image_topic).rpartition("/")[0]


def _info_topic(image_topic: str) -> str:
    return f"{_namespace(image_topic)}/camera_info"
