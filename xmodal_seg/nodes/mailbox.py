# SPDX-License-Identifier: Apache-2.0
"""A slot that keeps only the newest item, and the thread that works on what lies in it.

Callbacks put and return at once; when work is slower than input, old input is dropped instead of queued.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)


class Mailbox(Generic[T]):
    """A slot for one item; `dropped` counts the items that were replaced before they were taken."""

    def __init__(self) -> None:
        self._filled = threading.Condition()
        self._item: tuple[T] | None = None
        self._is_open = True
        self.dropped = 0

    def put(self, item: T) -> int:
        """Leaves `item` in the slot; how many (0 or 1) were dropped: the one it replaces, or itself when closed."""
        with self._filled:
            num_dropped = int(self._item is not None or not self._is_open)
            self.dropped += num_dropped
            if self._is_open:
                self._item = (item,)
                self._filled.notify()
            return num_dropped

    def take(self, timeout_s: float | None = None) -> tuple[T] | None:
        """The item as a tuple of one, as soon as there is one; None after `timeout_s` or when closed."""
        with self._filled:
            self._filled.wait_for(lambda: self._item is not None or not self._is_open, timeout_s)
            item, self._item = self._item, None
            return item

    def clear(self) -> None:
        """Drops what lies in the slot."""
        with self._filled:
            self.dropped += int(self._item is not None)
            self._item = None

    @property
    def is_empty(self) -> bool:
        return self._item is None

    @property
    def is_open(self) -> bool:
        return self._is_open

    def open(self) -> None:
        """Takes items again."""
        with self._filled:
            self._is_open = True

    def close(self) -> None:
        """Drops what lies in the slot, takes nothing more and wakes who waits."""
        with self._filled:
            self.dropped += int(self._item is not None)
            self._item, self._is_open = None, False
            self._filled.notify_all()


class Worker(Generic[T]):
    """A thread that calls `handler` with the newest item; an exception goes to `on_error` and the next item is taken.

    `busy_since` is for a watchdog: when the present item was begun, in seconds of `time.monotonic()`, None while idle.
    A worker can be started again after it was stopped.
    """

    def __init__(self, *, name: str, handler: Callable[[T], None], on_error: Callable[[Exception], None]) -> None:
        self.mailbox: Mailbox[T] = Mailbox()
        self.busy_since: float | None = None
        self.handled = 0  # items, with those that raised
        self._name, self._handler, self._on_error = name, handler, on_error
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Items that were replaced before their turn."""
        return self.mailbox.dropped

    @property
    def is_idle(self) -> bool:
        """Nothing is in work and nothing waits."""
        return self.busy_since is None and self.mailbox.is_empty

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def put(self, item: T) -> int:
        """Hands over `item`; how many (0 or 1) were dropped for it."""
        return self.mailbox.put(item)

    def start(self) -> None:
        """Starts the thread; nothing when it runs already. Raises RuntimeError while a stop has yet to take effect."""
        if self.is_alive:
            if not self.mailbox.is_open:
                raise RuntimeError(f"{self._name}: still works on the item it had when it was stopped")
            return
        self.mailbox.open()
        # A daemon: work that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self, *, timeout_s: float) -> bool:
        """Drops what waits and lets the present item end; False when it still runs after `timeout_s`."""
        self.mailbox.close()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.is_alive

    def _run(self) -> None:
        while (item := self.mailbox.take()) is not None:
            self.busy_since = time.monotonic()
            self._handle(item[0])
            self.handled += 1
            self.busy_since = None
            del item  # an idle worker holds no images

    def _handle(self, item: T) -> None:
        try:
            self._handler(item)
        except Exception as error:
            try:
                self._on_error(error)
            except Exception:
                _LOGGER.exception("%s: reporting an error failed", self._name)
