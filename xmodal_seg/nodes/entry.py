# SPDX-License-Identifier: Apache-2.0
"""Entry points of the executables; light, so that Ctrl-C ends in order even while torch is being imported."""

from __future__ import annotations

import os
import signal

from xmodal_seg.openmp import sleep_while_waiting


def segmentation_node() -> int:
    """`ros2 run xmodal_seg segmentation_node`."""
    _begin()
    from xmodal_seg.nodes.segmentation_node import main

    return main()


def lighting_node() -> int:
    """`ros2 run xmodal_seg lighting_node`."""
    _begin()
    from xmodal_seg.nodes.lighting_node import main

    return main()


def play_bag_node() -> int:
    """`ros2 run xmodal_seg play_bag_node`."""
    _begin()
    from xmodal_seg.nodes.play_bag_node import main

    return main()


def _begin() -> None:
    """What must happen before torch is imported. A signal ends it quietly: there is nothing to close before the node
    exists, whose runner replaces these handlers.
    """
    sleep_while_waiting()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
