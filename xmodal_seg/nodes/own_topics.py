# SPDX-License-Identifier: Apache-2.0
"""Topics of a bag that the running nodes publish anew, told by name and type; no ROS import.

`ros2 bag record -a` beside the nodes records them too. Played again, each sweep would have two answers under one stamp,
and the node would hear two lights.
"""

from __future__ import annotations

from collections.abc import Mapping

from xmodal_seg.bag_files import Topic

SEGMENTATION_NODE, LIGHTING_NODE = "xmodal_seg", "lighting"
_OF_EVERY_NODE = ("/diagnostics", "/rosout", "/parameter_events")
# A common word, which robots may use for topics of their own: below it only what the lighting node has there.
_BELOW_LIGHTING = ("lambda", "transition_event")
_LIGHTING_TYPE = "diagnostic_msgs/msg/DiagnosticArray"


def own_topics(topics: Mapping[str, Topic]) -> list[str]:
    """Names of those topics, in whatever namespace the nodes were, and of what every node publishes."""
    return [name for name, topic in topics.items() if _is_own(name, topic.msgtype)]


def _is_own(name: str, msgtype: str) -> bool:
    *namespace, last = name.split("/")
    if name in _OF_EVERY_NODE or SEGMENTATION_NODE in namespace:
        return True
    if last == LIGHTING_NODE:
        return msgtype == _LIGHTING_TYPE
    return namespace[-1:] == [LIGHTING_NODE] and last in _BELOW_LIGHTING
