# SPDX-License-Identifier: Apache-2.0
"""One process makes what several need, and the others wait and then use it; or nobody else may be at it at all."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LOG = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path`.lock; the operating system lets go of it when the process ends, however it ends."""
    with _opened(path.with_name(f"{path.name}.lock")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.warning("waiting for %s, which another process is making", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder`; ValueError if another process holds it.

    Unlike the other lock, this one is the process's own: workers that outlive it for a moment do not hold it.
    """
    with _opened(folder / ".lock") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"{folder}: another process is training here") from error
        yield


def _opened(lock: Path) -> IO[str]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock.open("w")
