# SPDX-License-Identifier: Apache-2.0
"""Labelled clouds as they came, on the disk: a long drive's, of 3 MB each, are more than fits into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xmodal_seg.bag_files import RawMessage
from xmodal_seg.bag_writing import LABELLED_TOPIC
from xmodal_seg.nodes.playback import header_stamp_ns

CLOUD_TYPE = "sensor_msgs/msg/PointCloud2"


@dataclass(frozen=True)
class _Place:
    """Where an answer lies in the file, bytes."""

    begin: int
    size: int


class Answers:
    """Serialised clouds in order of arrival, in a nameless file in `folder` that is gone with this object."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # read long after it was written
        self._end = 0
        self._arrived: list[tuple[int, _Place]] = []  # by stamp, ns
        self._newest: dict[int, _Place] = {}

    def __len__(self) -> int:
        """How many came, those that came again included."""
        return len(self._arrived)

    @property
    def num_stamps(self) -> int:
        """How many sweeps were answered."""
        return len(self._newest)

    def add(self, data: bytes) -> None:
        """Raises ValueError if the disk does not take it."""
        try:
            self._file.seek(self._end)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise ValueError(f"{self._folder}: expected room for the nodes' answers, got: {error.strerror}") from error
        place = _Place(begin=self._end, size=len(data))
        self._end += place.size
        self._arrived.append((header_stamp_ns(data), place))
        self._newest[self._arrived[-1][0]] = place

    def cloud(self, stamp_ns: int) -> Any | None:
        """The decoded answer to the sweep with this stamp, the last of several; None without one.

        Raises ValueError for bytes that are no cloud.
        """
        place = self._newest.get(stamp_ns)
        if place is None:
            return None
        return RawMessage(topic=LABELLED_TOPIC, msgtype=CLOUD_TYPE, stamp_ns=stamp_ns, data=self._read(place)).decode()

    def firsts(self) -> Iterator[tuple[int, bytes]]:
        """Stamp in ns and the first answer with it, in order of arrival; read one by one."""
        seen: set[int] = set()
        for stamp_ns, place in self._arrived:
            if stamp_ns not in seen:
                seen.add(stamp_ns)
                yield stamp_ns, self._read(place)

    def _read(self, place: _Place) -> bytes:
        self._file.seek(place.begin)
        return self._file.read(place.size)
