# SPDX-License-Identifier: Apache-2.0
"""Child processes that never outlive the program that started them."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_STOP_TIMEOUT_S = 15.0
# Domain 0 is where robots are; above 101 a domain's ports reach into Linux's ephemeral ones.
_DOMAINS = range(1, 101)


class Child:
    """A Python module run as a program, in a session of its own; its output goes to a file."""

    def __init__(self, module: str, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        self.name = module.rpartition(".")[2]
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # a Ctrl-C in the terminal reaches only the parent, which stops it in order
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; 0 also for a node that was done and whose middleware had to be cut off (SIGALRM)."""
        return _meant(self._process.poll())

    def stop(self) -> int:
        """SIGINT, as Ctrl-C; SIGKILL to its whole group if it does not end. Returns the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):  # also what it may have started itself
            os.killpg(self._process.pid, signal.SIGKILL)
        return _meant(self._process.wait()) or 0

    def last_lines(self, count: int = 5) -> str:
        """The end of what it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(lines[-count:]) or "(it printed nothing)"


@contextmanager
def child(module: str, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Iterator[Child]:
    """Run `python -m module arguments`; it is stopped when the block ends, however it ends."""
    process = Child(module, arguments, log=log, environment=environment)
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Within the block SIGINT and SIGTERM are only noted; the function given raises KeyboardInterrupt once one came.

    An exception at any line could hit between the start of a child and the note of its existence, and leave it alone.
    The end of the block raises too.
    """
    noted: list[int] = []

    def check() -> None:
        if noted:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, lambda n, _: noted.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    check()


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_running(children: Sequence[Child]) -> None:
    """ValueError with the end of its log for one that has ended."""
    for process in children:
        if process.exit_code() is not None:
            raise ValueError(
                f"{process.name} ended early with exit code {process.exit_code()}:\n{process.last_lines()}"
            )


def free_domain() -> int:
    """A ROS domain that nobody uses on this machine: DDS's first unicast port of it is free.

    Drawn at random, since what a killed program left in shared memory can disturb the next one in its domain.
    Raises ValueError if there is none.
    """
    for domain in random.SystemRandom().sample(_DOMAINS, len(_DOMAINS)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.bind(("", 7410 + 250 * domain))
            return domain
    raise ValueError("every ROS domain from 1 to 100 is in use on this machine")


def _meant(code: int | None) -> int | None:
    return 0 if code == -signal.SIGALRM else code
