# SPDX-License-Identifier: Apache-2.0
"""One process makes what several need; the others wait and then use it."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOG = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path`.lock; the operating system lets go of it when the process ends, however it ends."""
    lock = path.with_name(f"{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.warning("waiting for %s, which another process is making", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
