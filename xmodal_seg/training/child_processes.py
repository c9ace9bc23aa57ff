# SPDX-License-Identifier: Apache-2.0
"""Processes that must not outlive the one that began them."""

from __future__ import annotations

import os
import threading
import time

_PERIOD_S = 1.0


def end_with(parent: int) -> None:
    """End this process soon after the process `parent` has, however that was killed.

    torch's readers of data notice by themselves only if it happens after they have begun to wait.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PERIOD_S)
    os._exit(1)
