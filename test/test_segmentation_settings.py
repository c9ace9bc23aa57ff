# SPDX-License-Identifier: Apache-2.0
"""Settings of the segmentation node: topics, what is rectified, what does not go together."""

from __future__ import annotations

import pytest

from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings


@pytest.mark.parametrize(
    ("images_rectified", "topic", "rectified"),
    [
        ("auto", "/front/image", False),
        ("auto", "/cam/image_rect_color", True),
        ("auto", "/cam/image_rect/compressed", True),
        ("auto", "/image_rect/raw", False),
        ("yes", "/front/image", True),
        ("no", "/cam/image_rect", False),
    ],
)
def test_rectified_images_are_told_by_their_topic_unless_said_otherwise(
    images_rectified: str, topic: str, rectified: bool
) -> None:
    settings = SegmentationNodeSettings.model_validate({"images_rectified": images_rectified})
    assert settings.is_rectified(topic) == rectified


@pytest.mark.parametrize("given", ["/cam/image_rect", "/cam/image_rect/compressed"])
def test_compressed_images_are_heard_beside_the_raw_ones(given: str) -> None:
    settings = SegmentationNodeSettings(image_topics=[given], image_transport="compressed")
    assert settings.image_topic(0) == "/cam/image_rect"
    assert settings.subscribed_image_topic(0) == "/cam/image_rect/compressed"
    assert settings.camera_info_topic(0) == "/cam/camera_info"


def test_a_compressed_topic_is_not_taken_for_a_raw_one() -> None:
    with pytest.raises(ValueError, match="image_transport: expected compressed for the image topic '/b/x/compressed'"):
        SegmentationNodeSettings(cameras=["a", "b"], image_topics=["/a/x", "/b/x/compressed"])


def test_message_filters_know_no_offsets() -> None:
    assert SegmentationNodeSettings(sync_policy="approximate", stamp_offsets_ms=[0.0])
    with pytest.raises(ValueError, match="stamp_offsets_ms: sync_policy approximate knows no offsets"):
        SegmentationNodeSettings(sync_policy="approximate", stamp_offsets_ms=[5.0])


def test_limits_of_dropped_sweeps_are_in_order() -> None:
    with pytest.raises(ValueError, match="warn_drop_share: expected at most error_drop_share"):
        SegmentationNodeSettings(warn_drop_share=0.8, error_drop_share=0.5)
