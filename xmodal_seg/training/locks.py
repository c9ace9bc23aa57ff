# SPDX-License-Identifier: Apache-2.0
"""One process makes what several need, and the others wait and then use it; or nobody else may be at it at all."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LOG = logging.getLogger(__name__)
_RETRY_S = 0.2
_held: set[Path] = set()  # folders that this process holds


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
def alone(folder: Path, *, patience_s: float = 10.0) -> Iterator[None]:
    """Hold `folder`; ValueError if another process still holds it after `patience_s`, in which a killed one may end.

    Unlike the other lock, this one is the process's own: workers that outlive it for a moment do not hold it, and the
    process may ask for it again within the block. Where the file system knows no locks, a warning says so.
    """
    path = folder.resolve()
    if path in _held:
        yield
        return
    with _opened(path / ".lock") as file:
        _hold(file, folder, end_s=time.monotonic() + patience_s)
        _held.add(path)
        try:
            yield
        finally:
            _held.remove(path)


def _hold(file: IO[str], folder: Path, *, end_s: float) -> None:
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() > end_s:
                raise ValueError(f"{folder}: another process is training here") from error
            time.sleep(_RETRY_S)
        except OSError as error:
            _LOG.warning("%s: not held while it trains, let nobody else do so here (%s)", folder, error)
            return
        else:
            return


def _opened(lock: Path) -> IO[str]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock.open("w")
