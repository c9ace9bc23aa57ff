# SPDX-License-Identifier: Apache-2.0
"""How the threads of torch's operations wait for one another on a CPU."""

from __future__ import annotations

import os


def sleep_while_waiting() -> None:
    """For programs that share their cores with others; before torch is first imported, when libgomp reads it.

    By default a waiting thread spins for milliseconds before it sleeps. Where its partner's core is taken by another
    program, every small operation then costs a slice of the scheduler, and a sweep seconds
    (`test/benchmark/bench_waiting.py`, from which the number is). libgomp spins less by itself for more threads than
    cores, but it counts its own alone. What the user has set stays; children inherit it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
