# SPDX-License-Identifier: Apache-2.0
"""Entry points of the executables; light, so that Ctrl-C ends in order even while torch is being imported."""

from __future__ import annotations

import os
import signal


def segmentation_node() -> int:
    """`ros2 run xmodal_seg segmentation_node`."""
    _end_quietly_on_signal()
    from xmodal_seg.nodes.segmentation_node import main

    return main()


def lighting_node() -> int:
    """`ros2 run xmodal_seg lighting_node`."""
    _end_quietly_on_signal()
    from xmodal_seg.nodes.lighting_node import main

    return main()


def play_bag_node() -> int:
    """`ros2 run xmodal_seg play_bag_node`."""
    _end_quietly_on_signal()
    from xmodal_seg.nodes.play_bag_node import main

    return main()


def _end_quietly_on_signal() -> None:
    """There is nothing to close before the node exists; its runner replaces these handlers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
