# SPDX-License-Identifier: Apache-2.0
"""Publishers of the segmentation node; what costs time is built only while somebody listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Float32, Header

from xmodal_seg.geometry import project_frame
from xmodal_seg.inference import LabelledFrame
from xmodal_seg.labels import LabelSpace
from xmodal_seg.nodes.conversions import (
    diagnostic_status,
    image_message,
    label_info_message,
    label_info_type,
    labelled_cloud_message,
)
from xmodal_seg.structures import Frame
from xmodal_seg.visualize import overlay, render_label_image

_RELIABLE = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


TIMES = ("assemble", "prepare", "model", "decide", "publish", "frame", "pipeline_latency")


class Outputs:
    """`~/points`, `~/served`, `~/overlay`, `~/label_image`, `~/label_info` and `~/debug/*_ms`.

    Overlay and label image are of the first of `cameras`. Reliable, so that both kinds of subscriber hear them.
    """

    def __init__(self, *, node: LifecycleNode, label_space: LabelSpace, cameras: Sequence[str]) -> None:
        self._node = node
        self._label_space = label_space
        self._palette = label_space.palette()
        self._points = node.create_lifecycle_publisher(PointCloud2, "~/points", _RELIABLE)
        self._served = node.create_lifecycle_publisher(DiagnosticArray, "~/served", _RELIABLE)
        self._overlay = node.create_lifecycle_publisher(Image, "~/overlay", _RELIABLE)
        self._label_image = node.create_lifecycle_publisher(Image, "~/label_image", _RELIABLE)
        self._label_info: Any = node.create_publisher(label_info_type(), "~/label_info", _LATCHED)
        self._debug: dict[str, Any] = {name: node.create_publisher(Float32, f"~/debug/{name}_ms", 10) for name in TIMES}
        self._first_camera = cameras[0] if cameras else None

    def announce_labels(self) -> None:
        """Publish the latched class names."""
        stamp = self._node.get_clock().now().to_msg()
        self._label_info.publish(label_info_message(self._label_space, header=Header(stamp=stamp)))

    def publish_served(self, header: Header, frame: Frame, labelled: LabelledFrame) -> None:
        """What labelled the sweep with this header: bank, version and cameras, under the sweep's stamp."""
        status = diagnostic_status(
            name=f"{self._node.get_name()}: served",
            level="OK",
            message=f"bank {labelled.bank}, version {labelled.model_version}",
            values={
                "bank": labelled.bank,
                "version": labelled.model_version,
                "cameras": ", ".join(view.name for view in frame.cameras),
            },
        )
        self._served.publish(DiagnosticArray(header=header, status=[status]))

    def publish_cloud(self, header: Header, frame: Frame, labelled: LabelledFrame) -> None:
        """The labelled cloud: the input's header, point count and order."""
        self._points.publish(
            labelled_cloud_message(
                header=header,
                points=frame.points,
                labels=labelled.labels,
                probability=labelled.probability,
                palette=self._palette,
            )
        )

    def publish_images(self, frame: Frame, labelled: LabelledFrame, *, headers: dict[str, Header], radius: int) -> None:
        """Overlay and label image of the first camera, if somebody listens and the sweep has one."""
        wants_overlay = self._overlay.get_subscription_count() > 0
        wants_labels = self._label_image.get_subscription_count() > 0
        if not (wants_overlay or wants_labels):
            return
        number = next((i for i, camera in enumerate(frame.cameras) if camera.name == self._first_camera), None)
        if number is None:  # not in this sweep
            return
        camera = frame.cameras[number]
        projection = project_frame(frame)
        seen = projection.camera_index == number
        uv, labels = projection.uv[seen], labelled.labels[seen]
        header = headers[camera.name]
        if wants_overlay:
            drawn = overlay(camera.image, uv, labels, self._palette, radius=radius)
            self._overlay.publish(image_message(drawn, encoding="rgb8", header=header))
        if wants_labels:
            drawn = render_label_image(uv, labels, image_size=camera.calibration.image_size, radius=radius)
            self._label_image.publish(image_message(drawn, encoding="mono8", header=header))

    def publish_times(self, times_ms: dict[str, float]) -> None:
        """`~/debug/<name>_ms` of each time."""
        for name, value in times_ms.items():
            self._debug[name].publish(Float32(data=float(value)))

    def close(self) -> None:
        """Destroy every publisher."""
        for publisher in (self._points, self._served, self._overlay, self._label_image):
            self._node.destroy_lifecycle_publisher(publisher)
        for publisher in (self._label_info, *self._debug.values()):
            self._node.destroy_publisher(publisher)
