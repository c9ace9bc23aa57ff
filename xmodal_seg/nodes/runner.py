# SPDX-License-Identifier: Apache-2.0
"""Spin a node until SIGINT or SIGTERM and end in order."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn, TypeVar

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

_WAKE_S = 0.1
_IMPATIENT_AFTER_S = 2.0
_TAKE_DOWN_S = 10


NodeT = TypeVar("NodeT", bound=Node)
GPU_LOST = 75  # exit code, EX_TEMPFAIL of sysexits.h: the same process cannot go on, a new one may


class GpuLostError(RuntimeError):
    """Nothing more can be computed in this process; `run_node` ends it with GPU_LOST, so that it is started again."""


def run_node(
    make_node: Callable[[], NodeT],
    *,
    argv: Sequence[str] | None,
    on_start: Callable[[NodeT], bool] = lambda _: True,
    finished: Callable[[NodeT], bool] = lambda _: False,
    close: Callable[[NodeT], None] = lambda _: None,
) -> int:
    """Make, spin and close a node; returns 0 on an orderly end.

    Else the process ends here: with exit code 1 if the node could not be made or started, or with GPU_LOST. It leaves
    without the middleware's goodbye, which might hang and cost the code.

    rclpy's own signal handlers are left out: they end the context while a worker may still publish. Here a signal
    interrupts the start or ends the spinning, `close` then stops the workers, and the context goes last. A second
    signal, some seconds later, ends the process at once. Where the middleware hangs when all is done, SIGALRM does.

    Args:
        make_node: may raise ValueError or a ParameterException, which become one sentence on stderr.
        on_start: called before spinning; False ends with exit code 1 (it has said why).
        finished: asked between callbacks; True ends with exit code 0, GpuLostError with GPU_LOST.
        close: stops what the node started.
    """
    stop = _Stop()
    node: NodeT | None = None
    code = 0
    try:
        rclpy.init(args=list(argv) if argv is not None else None, signal_handler_options=SignalHandlerOptions.NO)
        node = make_node()
        if on_start(node):
            _spin(node, stop, finished)
        else:
            code = 1
    except GpuLostError as error:
        print(f"xmodal_seg: {error}", file=sys.stderr)
        code = GPU_LOST
    except (ValueError, ParameterException, RuntimeError) as error:
        if node is not None and not isinstance(error, ValueError):
            raise
        print(f"xmodal_seg: {str(error).splitlines()[0]}", file=sys.stderr)
        code = 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        stop.closing()
        _end(node, close, code=code)
    return code


def leave(code: int) -> NoReturn:
    """End this process at once with an exit code that means something.

    What hangs or crashes on the way out would cost the code: a middleware that locks up, CUDA without its GPU.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody may be reading any more
            stream.flush()
    os._exit(code)


class _Stop:
    """SIGINT and SIGTERM: the first interrupts the start or ends the spinning, one that comes later the process.

    Ctrl-C on `ros2 launch` reaches a node twice, from the terminal and from launch, so what comes at once after the
    first does not count.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first_s = 0.0
        self.spinning = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def closing(self) -> None:
        """From here on no signal interrupts; an impatient one ends the process."""
        if not self.requested:
            self.requested, self._first_s = True, time.monotonic()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            if time.monotonic() - self._first_s > _IMPATIENT_AFTER_S:
                os._exit(128 + number)
            return
        self.requested, self._first_s = True, time.monotonic()
        if not self.spinning:
            raise KeyboardInterrupt


def _spin(node: NodeT, stop: _Stop, finished: Callable[[NodeT], bool]) -> None:
    stop.spinning = True  # before the executor: one that is interrupted while it is made complains when it is freed
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stop.requested and not finished(node):
            executor.spin_once(timeout_sec=_WAKE_S)
    finally:
        stop.spinning = False
        executor.shutdown()


def _end(node: NodeT | None, close: Callable[[NodeT], None], *, code: int) -> None:
    if node is not None:
        try:
            close(node)
        except RuntimeError as error:
            # A worker in a computation that does not end: taking the interpreter down under it would abort.
            print(f"xmodal_seg: {error}", file=sys.stderr)
            leave(code)
    if code:
        leave(code)
    _cut_off_after(_TAKE_DOWN_S)
    if node is not None:
        node.destroy_node()
    rclpy.try_shutdown()
    signal.alarm(0)


def _cut_off_after(seconds: int) -> None:
    """Let SIGALRM end the process if what follows hangs.

    Fast DDS 3.2 sometimes locks itself up while it closes its TCP connections, and rclpy waits for it with the
    interpreter's lock held, so that no thread and no signal handler of Python could do this.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
