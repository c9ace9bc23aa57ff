# SPDX-License-Identifier: Apache-2.0
"""When a recorded message is due, and waiting for whoever answers it; no ROS import."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

NOBODY_LISTENED = 3  # exit code of a player whose topics nobody subscribed to
_TICK_S = 0.025  # /clock goes on between messages, as `ros2 bag play --clock 40`


class Timeline:
    """The bag's time on the steady clock: starts at `start_ns`, runs `rate` times as fast, stands still while held."""

    def __init__(self, *, start_ns: int, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._start_ns = start_ns
        self._rate = rate
        self._clock = clock
        self._begin_s = clock()

    def now_ns(self) -> int:
        """The bag's time now."""
        return self._start_ns + round((self._clock() - self._begin_s) * self._rate * 1e9)

    def wait_until(self, stamp_ns: int, *, stop: threading.Event, tick: Callable[[int], None]) -> bool:
        """Sleep until the bag's time is `stamp_ns`; `tick` gets that time at 40 Hz. False if `stop` was set before."""
        while not stop.is_set():
            now_ns = self.now_ns()
            remaining_s = (stamp_ns - now_ns) / 1e9 / self._rate
            if remaining_s <= 0:
                return True
            tick(now_ns)
            stop.wait(min(remaining_s, _TICK_S))
        return False

    def hold(self, seconds: float) -> None:
        """The bag's time stood still for that long."""
        self._begin_s += seconds


class Pace:
    """Holds the playback until the last point cloud has been answered by a message with its stamp."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._condition = threading.Condition()
        self._open: int | None = None  # stamp without an answer
        self._cancelled = False

    def sent(self, stamp_ns: int) -> None:
        """A cloud is about to be published."""
        with self._condition:
            self._open = stamp_ns

    def answered(self, stamp_ns: int) -> None:
        """An answer has come."""
        with self._condition:
            if stamp_ns == self._open:
                self._open = None
                self._condition.notify_all()

    def wait(self) -> bool:
        """Wait for the answer to the last cloud. False if it did not come in time; then it is not waited for again."""
        with self._condition:
            come = self._condition.wait_for(lambda: self._open is None or self._cancelled, self._timeout_s)
            self._open = None
            return come

    def cancel(self) -> None:
        """End every wait, now and later."""
        with self._condition:
            self._cancelled = True
            self._condition.notify_all()


def header_stamp_ns(data: bytes) -> int:
    """Stamp of a serialised message that begins with a header: 4 bytes of CDR encoding, then sec and nanosec."""
    order = "<" if data[1] & 1 else ">"
    sec, nanosec = struct.unpack_from(f"{order}iI", data, 4)
    return int(sec) * 1_000_000_000 + int(nanosec)
