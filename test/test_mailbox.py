# SPDX-License-Identifier: Apache-2.0
"""The keep-newest slot and its worker, in step by events."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from xmodal_seg.nodes.mailbox import Mailbox, Worker

LONG_S = 20.0  # never waited for when all is well


def test_the_newest_item_is_kept_and_the_others_are_counted() -> None:
    mailbox: Mailbox[int] = Mailbox()
    assert [mailbox.put(item) for item in (1, 2, 3)] == [0, 1, 1]
    assert mailbox.take(0) == (3,)
    assert mailbox.take(0) is None
    assert mailbox.dropped == 2


def test_none_is_an_item_too() -> None:
    mailbox: Mailbox[None] = Mailbox()
    mailbox.put(None)
    assert mailbox.take(0) == (None,)


def test_clear_drops_what_waits() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    mailbox.clear()
    assert mailbox.take(0) is None
    assert mailbox.dropped == 1


def test_a_closed_mailbox_takes_nothing_until_it_is_opened() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    mailbox.close()
    assert mailbox.put(2) == 1
    assert mailbox.take() is None
    assert mailbox.dropped == 2
    mailbox.open()
    assert mailbox.put(3) == 0
    assert mailbox.take() == (3,)


class Bench:
    """A worker whose handler reports each item and waits to be let on."""

    def __init__(self) -> None:
        self.begun: queue.Queue[object] = queue.Queue()
        self.let_on = threading.Semaphore(0)
        self.errors: queue.Queue[Exception] = queue.Queue()
        self.worker: Worker[object] = Worker(name="bench", handler=self.handle, on_error=self.errors.put)

    def handle(self, item: object) -> None:
        self.begun.put(item)
        assert self.let_on.acquire(timeout=LONG_S)
        if isinstance(item, Exception):
            raise item


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.worker.start()
    yield bench
    bench.let_on.release(100)
    assert bench.worker.stop(timeout_s=LONG_S)


def test_while_busy_only_the_newest_waits(bench: Bench) -> None:
    bench.worker.put("first")
    assert bench.begun.get(timeout=LONG_S) == "first"
    for item in ("second", "third", "fourth"):
        bench.worker.put(item)
    bench.let_on.release()
    assert bench.begun.get(timeout=LONG_S) == "fourth"
    assert bench.worker.dropped == 2


def test_idle_means_that_nothing_is_in_work_and_nothing_waits(bench: Bench) -> None:
    assert bench.worker.is_idle
    bench.worker.put("first")
    bench.begun.get(timeout=LONG_S)
    assert not bench.worker.is_idle
    bench.worker.put("second")
    bench.let_on.release(2)
    assert bench.worker.stop(timeout_s=LONG_S)
    assert bench.worker.is_idle
    waiting: Worker[int] = Worker(name="not started", handler=print, on_error=print)
    waiting.put(1)
    assert not waiting.is_idle


def test_an_exception_is_reported_and_the_next_item_handled(bench: Bench) -> None:
    error = RuntimeError("one bad frame")
    bench.worker.put(error)
    assert bench.begun.get(timeout=LONG_S) is error
    bench.let_on.release()
    assert bench.errors.get(timeout=LONG_S) is error
    bench.worker.put("next")
    assert bench.begun.get(timeout=LONG_S) == "next"
    assert bench.worker.handled == 1


def test_an_error_report_that_fails_does_not_end_the_worker() -> None:
    begun: queue.Queue[int] = queue.Queue()

    def handle(item: int) -> None:
        begun.put(item)
        raise RuntimeError("handler")

    def report(error: Exception) -> None:
        raise RuntimeError("report") from error

    worker = Worker(name="bench", handler=handle, on_error=report)
    worker.start()
    for item in (1, 2):
        worker.put(item)
        assert begun.get(timeout=LONG_S) == item
    assert worker.stop(timeout_s=LONG_S)


def test_the_heartbeat_tells_since_when_an_item_is_worked_on(bench: Bench) -> None:
    assert bench.worker.busy_since is None
    before = time.monotonic()
    bench.worker.put("slow")
    bench.begun.get(timeout=LONG_S)
    assert bench.worker.busy_since is not None
    assert before <= bench.worker.busy_since <= time.monotonic()
    bench.let_on.release()
    assert bench.worker.stop(timeout_s=LONG_S)
    assert bench.worker.busy_since is None


def test_stop_drops_what_waits_and_says_when_work_does_not_end(bench: Bench) -> None:
    bench.worker.put("endless")
    bench.begun.get(timeout=LONG_S)
    bench.worker.put("waiting")
    assert not bench.worker.stop(timeout_s=0)
    with pytest.raises(RuntimeError, match="bench: still works on the item"):
        bench.worker.start()
    bench.let_on.release()
    assert bench.worker.stop(timeout_s=LONG_S)
    assert bench.begun.empty()
    assert bench.worker.put("late") == 1


def test_start_and_stop_can_be_repeated(bench: Bench) -> None:
    bench.worker.start()  # runs already
    for item in ("one", "two"):
        assert bench.worker.stop(timeout_s=LONG_S)
        assert not bench.worker.is_alive
        bench.worker.start()
        bench.worker.put(item)
        assert bench.begun.get(timeout=LONG_S) == item
        bench.let_on.release()


def test_stop_before_start() -> None:
    assert Bench().worker.stop(timeout_s=0)


def test_an_idle_worker_holds_no_item() -> None:
    class Item:
        pass

    done: queue.Queue[None] = queue.Queue()
    worker: Worker[Item] = Worker(name="bench", handler=lambda item: done.put(None), on_error=lambda error: None)
    worker.start()
    item = Item()
    released = threading.Event()
    weakref.finalize(item, released.set)
    worker.put(item)
    done.get(timeout=LONG_S)
    del item
    gc.collect()
    assert released.wait(LONG_S)
    assert worker.stop(timeout_s=LONG_S)
