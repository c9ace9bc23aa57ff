# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag are the nodes' own; compared with what the nodes really publish."""

from __future__ import annotations

from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

from node_harness import save_tiny_checkpoint
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter

from xmodal_seg.bag_files import Topic
from xmodal_seg.nodes.lighting_node import LightingNode
from xmodal_seg.nodes.own_topics import LIGHTING_NODE, SEGMENTATION_NODE, own_topics
from xmodal_seg.nodes.segmentation_node import SegmentationNode
from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings


def as_in_a_bag(types: dict[str, str]) -> dict[str, Topic]:
    return {
        name: Topic(name=name, msgtype=msgtype, num_messages=1, latched=False, depth=0)
        for name, msgtype in types.items()
    }


def publications(node: LifecycleNode) -> dict[str, str]:
    """Type by topic of everything that a configured node publishes."""
    assert node.trigger_configure().name == "SUCCESS"
    found = node.get_publisher_names_and_types_by_node(node.get_name(), node.get_namespace())
    return {name: types[0] for name, types in found}


@pytest.mark.ros
@pytest.mark.parametrize("namespace", ["/", "/van"])
def test_everything_that_the_nodes_publish_is_their_own(namespace: str, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint")
    context = rclpy.Context()
    rclpy.init(context=context)
    overrides = [Parameter("checkpoint", value=str(checkpoint)), Parameter("device", value="cpu")]
    cli_args = ["--ros-args", "-r", f"__ns:={namespace}"]
    nodes = [
        SegmentationNode(context=context, parameter_overrides=overrides, cli_args=cli_args),
        LightingNode(context=context, cli_args=cli_args),
    ]
    try:
        assert [node.get_name() for node in nodes] == [SEGMENTATION_NODE, LIGHTING_NODE]
        for node in nodes:
            published = publications(node)
            assert len(published) > 4
            assert own_topics(as_in_a_bag(published)) == list(published)
    finally:
        for node in nodes:
            node.trigger_cleanup()
            node.destroy_node()
        rclpy.shutdown(context=context)
    assert SegmentationNodeSettings().lighting_topic == LIGHTING_NODE


def test_what_a_robot_publishes_is_not() -> None:
    others = {
        "/points": "sensor_msgs/msg/PointCloud2",
        "/front/image": "sensor_msgs/msg/Image",
        "/tf_static": "tf2_msgs/msg/TFMessage",
        "/static_transforms": "geometry_msgs/msg/TransformStamped",
        "/ground_truth/points": "sensor_msgs/msg/PointCloud2",
        "/lighting": "std_msgs/msg/Bool",
        "/lighting/head_lamps": "std_msgs/msg/Float32",
        "/xmodal_seg": "std_msgs/msg/String",
        "/van/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    }
    assert own_topics(as_in_a_bag(others)) == []
