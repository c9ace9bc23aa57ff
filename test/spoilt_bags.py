# SPDX-License-Identifier: Apache-2.0
"""Bags in which single messages have been changed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from xmodal_seg.bag_files import BagWriter, open_bag


def spoil(source: Path, target: Path, *, topic: str, numbers: Collection[int], change: Callable[[Any], None]) -> Path:
    """A copy of the bag in which `change` was applied to the messages of `topic` with these numbers, from 0."""
    number = 0
    with BagWriter(target) as writer, open_bag(source) as bag:
        for message in bag.messages():
            latched = bag.topics[message.topic].latched
            if message.topic == topic and number in numbers:
                decoded = message.decode()
                change(decoded)
                writer.write(topic, message.stamp_ns, decoded, latched=latched)
            else:
                writer.write_raw(message.topic, message.msgtype, message.stamp_ns, message.data, latched=latched)
            number += message.topic == topic
    return target


def cut_off(message: Any) -> None:
    """An image or a cloud whose last bytes are missing."""
    message.data = message.data[:-40]
