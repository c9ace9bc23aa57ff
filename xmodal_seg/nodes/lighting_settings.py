# SPDX-License-Identifier: Apache-2.0
"""Parameters of the lighting node."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from xmodal_seg.config import Settings
from xmodal_seg.lighting import LightingSettings


class LightingNodeSettings(Settings):
    """Everything is read at start; `estimator.*` can be changed while the node runs."""

    autostart: bool = Field(
        default=False,
        description="configure and activate at start, without a lifecycle manager (the launch file: true)",
    )
    cameras: list[str] = Field(default=["front"], description="names of the cameras; [''] none")
    image_topics: list[str] = Field(
        default=[], description="image topic of each camera, in the order of cameras; empty: <camera>/image"
    )
    image_transport: Literal["raw", "compressed"] = Field(
        default="raw", description="compressed: sensor_msgs/CompressedImage on <image topic>/compressed"
    )
    reliability: Literal["best_effort", "reliable"] = Field(
        default="best_effort", description="QoS of images and points; best_effort hears every publisher"
    )
    points_topic: str = Field(
        default="points", description="PointCloud2 whose health counts: few returns lower the confidence; empty: none"
    )
    fix_topic: str = Field(
        default="", description="NavSatFix: the sun's elevation becomes a weak prior (needs astral); empty: none"
    )
    exposure_topics: list[str] = Field(
        default=[], description="flir_camera_msgs/ImageMetaData of each camera, in the order of cameras; empty: none"
    )
    coefficients: str = Field(
        default="", description="YAML of `xmodal-seg calibrate-lighting`; empty: the ones shipped with the package"
    )
    max_rate_hz: float = Field(default=10.0, gt=0, le=1000, description="images of a camera that are looked at, 1/s")
    diagnostics_period_s: float = Field(default=1.0, gt=0, le=60, description="between two messages on /diagnostics, s")
    estimator: LightingSettings = LightingSettings()

    @field_validator("cameras")
    @classmethod
    def _none(cls, names: list[str]) -> list[str]:
        """[""] means none: a ROS parameter list that is empty has no type, so launch files cannot write it."""
        return [] if names == [""] else names

    @model_validator(mode="after")
    def _check(self) -> LightingNodeSettings:
        if len(set(self.cameras)) != len(self.cameras) or not all(self.cameras):
            raise ValueError(f"cameras: expected different, non-empty names, got {self.cameras}")
        for name in ("image_topics", "exposure_topics"):
            values = getattr(self, name)
            if values and len(values) != len(self.cameras):
                raise ValueError(
                    f"{name}: expected one entry for each of the {len(self.cameras)} cameras, got {len(values)}"
                )
        return self

    def image_topic(self, number: int) -> str:
        """Topic of camera `number` as it is subscribed to."""
        topic = self.image_topics[number] if self.image_topics else f"{self.cameras[number]}/image"
        topic = topic.removesuffix("/compressed")
        return f"{topic}/compressed" if self.image_transport == "compressed" else topic
