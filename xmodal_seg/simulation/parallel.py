# SPDX-License-Identifier: Apache-2.0
"""Samples of a drive rendered by several processes; the result does not depend on their number."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

from xmodal_seg.labels import NUSCENES_6, LabelSpace
from xmodal_seg.simulation.drive import Drive, DriveSettings, Sample

CHUNK = 12  # consecutive frames of one task: they share the blocks of street around them
WAITING = 2  # tasks a process may be ahead, so that memory stays bounded

_drive: Drive | None = None


def rendered(
    settings: DriveSettings,
    *,
    indices: Sequence[int] | None = None,
    label_space: LabelSpace = NUSCENES_6,
    with_truth: bool = False,
    jobs: int = 1,
) -> Iterator[Sample]:
    """The samples `indices` of a drive (default: all), in that order, from `jobs` processes.

    Raises ValueError for fewer than one job.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    wanted = list(range(settings.num_frames)) if indices is None else list(indices)
    if jobs == 1 or len(wanted) <= 1:
        drive = Drive(settings, label_space=label_space, with_truth=with_truth)
        return (drive.sample(index) for index in wanted)
    return _in_processes(settings, wanted, label_space, with_truth, jobs)


def _in_processes(
    settings: DriveSettings, wanted: list[int], label_space: LabelSpace, with_truth: bool, jobs: int
) -> Iterator[Sample]:
    size = max(1, min(CHUNK, -(-len(wanted) // jobs)))
    chunks = deque(wanted[start : start + size] for start in range(0, len(wanted), size))
    futures: deque[Future[list[Sample]]] = deque()
    # Spawned, not forked: embree and the caller may hold threads.
    pool = ProcessPoolExecutor(
        max_workers=min(jobs, len(chunks)),
        mp_context=get_context("spawn"),
        initializer=_start,
        initargs=(settings, label_space, with_truth),
    )
    with pool:
        try:
            while chunks or futures:
                while chunks and len(futures) < jobs * WAITING:
                    futures.append(pool.submit(_render, chunks.popleft()))
                yield from futures.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start(settings: DriveSettings, label_space: LabelSpace, with_truth: bool) -> None:
    global _drive
    _drive = Drive(settings, label_space=label_space, with_truth=with_truth)


def _render(indices: list[int]) -> list[Sample]:
    assert _drive is not None
    return [_drive.sample(index) for index in indices]
