# SPDX-License-Identifier: Apache-2.0
"""One time for cameras whose clocks differ; no ROS import."""

from __future__ import annotations

from collections.abc import Collection

from xmodal_seg.lighting_state import is_jump

_SAME_CLOCK_NS = 2_000_000_000  # stamps this near are of one clock, in disorder


class CameraTime:
    """Goes on as the cameras' stamps do, however far apart their clocks are; that of the first camera is its clock.

    A camera whose stamps jump is left out until they fit again: it may have two drivers, or its clock was set. Once
    those of all cameras have jumped, as where a bag loops, time itself has. Not thread-safe.
    """

    def __init__(self) -> None:
        self.newest_ns: int | None = None  # None before the first image
        self._ahead_ns: dict[str, int] = {}  # by camera: its clock, against the first camera's
        self._astray: set[str] = set()

    def update(self, camera: str, stamp_ns: int, *, heard: Collection[str]) -> int:
        """The time after an image of `camera`; `heard` are the cameras that send, this one among them."""
        if self.newest_ns is None:
            self.newest_ns = stamp_ns
        time_ns = stamp_ns - self._ahead_ns.setdefault(camera, _clock_ahead_ns(stamp_ns - self.newest_ns))
        if not is_jump(self.newest_ns, time_ns):
            self._astray.discard(camera)
            self.newest_ns = max(self.newest_ns, time_ns)
            return self.newest_ns
        self._astray.add(camera)
        if self._astray.issuperset(heard):
            self._astray.clear()
            # A camera that is silent now may come back on either side of the jump: its clock is learned anew.
            self._ahead_ns = {name: self._ahead_ns[name] for name in heard}
            self.newest_ns = time_ns
        return self.newest_ns


def _clock_ahead_ns(ahead_ns: int) -> int:
    """By how much a clock is ahead whose first stamp is; 0 for the same clock, so that its stamps stay as they are."""
    return 0 if abs(ahead_ns) <= _SAME_CLOCK_NS else ahead_ns
