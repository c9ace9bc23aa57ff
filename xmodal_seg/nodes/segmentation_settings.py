# SPDX-License-Identifier: Apache-2.0
"""Parameters of the segmentation node. What the checkpoint fixes (classes, voxel size, image size) is not here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from xmodal_seg.config import PointScope, Settings
from xmodal_seg.devices import Precision
from xmodal_seg.lighting_state import BankSettings
from xmodal_seg.nodes.adaptation_settings import NodeAdaptationSettings

DYNAMIC: dict[str, Any] = {"dynamic": True}


class SegmentationNodeSettings(Settings):
    """Everything is read at start; the fields marked dynamic can be changed while the node runs."""

    autostart: bool = Field(
        default=False,
        description="configure and activate at start, without a lifecycle manager (the launch file: true)",
    )

    cameras: list[str] = Field(default=["front"], description="names of the cameras; ['']: LiDAR alone, 3D head only")
    image_topics: list[str] = Field(
        default=[], description="image topic of each camera, in the order of cameras; empty: <camera>/image"
    )
    camera_info_topics: list[str] = Field(
        default=[], description="CameraInfo topic of each camera; empty: camera_info in the image topic's namespace"
    )
    points_topic: str = Field(default="points", description="PointCloud2 input")
    image_transport: Literal["raw", "compressed"] = Field(
        default="raw", description="compressed: sensor_msgs/CompressedImage on <image topic>/compressed"
    )
    image_decoder: Literal["auto", "cv_bridge", "builtin"] = Field(
        default="auto", description="auto: built in; cv_bridge is an error where it is not installed"
    )
    images_rectified: Literal["auto", "yes", "no"] = Field(
        default="auto", description="yes: project through P; no: through K and D; auto: yes for topics image_rect*"
    )
    intensity_min: float = Field(
        default=0.0, description="LiDAR intensity that the model sees as 0; the shipped one takes none"
    )
    intensity_max: float = Field(
        default=255.0, description="LiDAR intensity that the model sees as 1; the shipped one takes none"
    )
    reliability: Literal["best_effort", "reliable"] = Field(
        default="best_effort", description="QoS of images and points; best_effort hears every publisher"
    )

    camera_info_durability: Literal["volatile", "transient_local"] = Field(
        default="volatile", description="transient_local: for drivers that publish CameraInfo once, latched"
    )

    use_camera_info: bool = Field(
        default=True, description="intrinsics from CameraInfo; false: from calibration_file, which must then hold them"
    )
    calibration_file: str = Field(
        default="", description="YAML with camera_T_lidar by camera frame_id, and optionally intrinsics; empty: none"
    )
    transforms: Literal["auto", "tf", "topic", "file"] = Field(
        default="auto",
        description="where extrinsics come from: tf2, the topic /static_transforms, calibration_file; "
        "auto: the file if given, else tf2 if installed, else the topic",
    )
    lidar_frame: str = Field(default="", description="overrides the frame_id of the points; empty: as received")
    camera_frames: list[str] = Field(
        default=[], description="overrides the frame_id of each camera, in the order of cameras; empty: as received"
    )
    transform_timeout_s: float = Field(
        default=0.2, ge=0, le=10, description="how long a sweep waits for a transform that has not arrived yet, s"
    )

    sync_policy: Literal["nearest", "approximate"] = Field(
        default="nearest",
        description="nearest: own nearest-stamp pairing; approximate: message_filters (must be installed), for which a "
        "sweep without all of its images is lost, and camera_timeout_ms and stamp_offsets_ms do not exist",
    )
    sync_tolerance_ms: float = Field(
        default=60.0, gt=0, le=10_000, description="largest stamp difference of an image and its sweep, ms"
    )
    camera_timeout_ms: float = Field(
        default=150.0, gt=0, le=60_000, description="a sweep goes on without a camera after waiting this long, ms"
    )
    stamp_offsets_ms: list[float] = Field(
        default=[], description="camera stamp minus LiDAR stamp of each camera, ms; empty: 0"
    )
    jump_threshold_s: float = Field(
        default=0.15,
        gt=0,
        le=3600,
        description="stamps that go back by more than this are a bag loop or a set clock: what waits goes out, s",
    )

    checkpoint: str = Field(
        default="",
        description="checkpoint folder, or the name of a shipped one; empty: nuscenes",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    precision: Precision = Field(
        default="float32",
        description="of image network and fusion; bfloat16 suits a GPU and a large image network",
    )
    point_scope: PointScope = Field(
        default="all", description="all: points that no camera sees are labelled by the 3D head; visible: left 255"
    )
    num_threads: int = Field(default=0, ge=0, le=256, description="torch threads on a CPU; 0: torch's own choice")

    lighting_topic: str = Field(
        default="lighting",
        description="estimates of the lighting node: the weight bank follows the light; empty: serve the default bank",
    )
    bank: BankSettings = BankSettings()
    adaptation: NodeAdaptationSettings = NodeAdaptationSettings()

    min_probability: float = Field(
        default=0.0, ge=0, le=1, json_schema_extra=DYNAMIC, description="less probable labels are published as 255"
    )
    overlay_radius_px: int = Field(
        default=2, ge=0, le=20, json_schema_extra=DYNAMIC, description="radius of the points on the overlay, px"
    )
    warn_frame_time_ms: float = Field(
        default=100.0, gt=0, json_schema_extra=DYNAMIC, description="diagnostics WARN above this time per frame, ms"
    )
    error_frame_time_ms: float = Field(
        default=1000.0, gt=0, json_schema_extra=DYNAMIC, description="diagnostics ERROR above this time per frame, ms"
    )
    warn_input_age_ms: float = Field(
        default=300.0,
        gt=0,
        json_schema_extra=DYNAMIC,
        description="diagnostics WARN if inputs are older at publishing, or from the future, ms",
    )
    error_input_age_ms: float = Field(
        default=2000.0,
        gt=0,
        json_schema_extra=DYNAMIC,
        description="diagnostics ERROR if inputs are older or as far ahead, ms",
    )
    warn_drop_share: float = Field(
        default=0.2, ge=0, le=1, json_schema_extra=DYNAMIC, description="diagnostics WARN if more sweeps were dropped"
    )
    error_drop_share: float = Field(
        default=0.9, ge=0, le=1, json_schema_extra=DYNAMIC, description="diagnostics ERROR if more sweeps were dropped"
    )
    stale_after_s: float = Field(
        default=2.0,
        gt=0,
        json_schema_extra=DYNAMIC,
        description="diagnostics STALE if no sweep came for this long, ERROR if none that came was labelled, s",
    )
    diagnostics_period_s: float = Field(default=1.0, gt=0, le=60, description="how often diagnostics are published, s")

    @field_validator("cameras")
    @classmethod
    def _drop_empty(cls, names: list[str]) -> list[str]:
        """[""] means none: a ROS parameter list that is empty has no type, so launch files cannot write it."""
        return [] if names == [""] else names

    @model_validator(mode="after")
    def _check(self) -> SegmentationNodeSettings:
        if len(set(self.cameras)) != len(self.cameras) or not all(self.cameras):
            raise ValueError(f"cameras: expected different, non-empty names, got {self.cameras}")
        for name in ("image_topics", "camera_info_topics", "camera_frames", "stamp_offsets_ms"):
            values = getattr(self, name)
            if values and len(values) != len(self.cameras):
                raise ValueError(
                    f"{name}: expected one entry for each of the {len(self.cameras)} cameras, got {len(values)}"
                )
        for topic in self.image_topics:
            if topic.endswith("/compressed") and self.image_transport == "raw":
                raise ValueError(f"image_transport: expected compressed for the image topic {topic!r}, got raw")
        for name in ("frame_time_ms", "input_age_ms", "drop_share"):
            warn, error = getattr(self, f"warn_{name}"), getattr(self, f"error_{name}")
            if warn > error:
                raise ValueError(f"warn_{name}: expected at most error_{name} ({error:g}), got {warn:g}")
        if self.intensity_max <= self.intensity_min:
            raise ValueError(
                f"intensity_max: expected more than intensity_min ({self.intensity_min:g}), got {self.intensity_max:g}"
            )
        if self.sync_policy == "approximate" and any(self.stamp_offsets_ms):
            raise ValueError("stamp_offsets_ms: sync_policy approximate knows no offsets; use nearest")
        if not self.calibration_file and (self.transforms == "file" or not self.use_camera_info):
            raise ValueError("calibration_file: needed by transforms=file and by use_camera_info=false, but not given")
        if self.adaptation.learns and not (self.cameras and self.lighting_topic):
            raise ValueError(
                f"adaptation.mode: {self.adaptation.mode} needs cameras and lighting_topic, from which lambda comes, "
                f"got {self.cameras} and {self.lighting_topic!r}"
            )
        return self

    def image_topic(self, number: int) -> str:
        """Topic of camera `number`, without the /compressed of a compressed transport."""
        topic = self.image_topics[number] if self.image_topics else f"{self.cameras[number]}/image"
        return topic.removesuffix("/compressed")

    def subscribed_image_topic(self, number: int) -> str:
        """The same with it."""
        suffix = "/compressed" if self.image_transport == "compressed" else ""
        return f"{self.image_topic(number)}{suffix}"

    def camera_info_topic(self, number: int) -> str:
        if self.camera_info_topics:
            return self.camera_info_topics[number]
        namespace, slash, _ = self.image_topic(number).rpartition("/")
        return f"{namespace}{slash}camera_info"

    def is_rectified(self, topic: str) -> bool:
        """Whether the images on `topic`, its name after remapping, are rectified."""
        if self.images_rectified == "auto":
            return topic.removesuffix("/compressed").rpartition("/")[2].startswith("image_rect")
        return self.images_rectified == "yes"

    def stamp_offset_ns(self, number: int) -> int:
        return round(self.stamp_offsets_ms[number] * 1e6) if self.stamp_offsets_ms else 0
