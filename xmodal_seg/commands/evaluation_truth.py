# SPDX-License-Identifier: Apache-2.0
"""Ground truth for the sweeps of a bag from the label files of a data set, where the bag carries none itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from xmodal_seg.labels import LabelSpace
    from xmodal_seg.structures import Frame

LabelFormat = Literal["semantic_kitti", "nuscenes"]
LABEL_FORMATS: tuple[LabelFormat, ...] = ("semantic_kitti", "nuscenes")

_STAMP_TOLERANCE_NS = 1_000_000  # nuScenes stamps are in microseconds


class KittiLabels:
    """SemanticKITTI's `NNNNNN.label` files: the n-th file, by name, belongs to the n-th sweep of the bag.

    Raises ValueError if there are not as many files as sweeps: nothing else tells which belongs to which.
    """

    def __init__(self, folder: str | Path, *, label_space: LabelSpace, num_sweeps: int) -> None:
        from xmodal_seg.training.data.class_merges import find_merge, merge_table
        from xmodal_seg.training.data.raw_classes import SEMANTIC_KITTI_CLASSES

        self._files = sorted(Path(folder).glob("*.label"))
        if len(self._files) != num_sweeps:
            raise ValueError(
                f"{folder}: expected a .label file for each of the {num_sweeps} sweeps of the bag, "
                f"found {len(self._files)}"
            )
        merge = find_merge("semantic_kitti", label_space.name)
        self._classes: Mapping[int, str] = SEMANTIC_KITTI_CLASSES
        self._table = merge_table(merge, SEMANTIC_KITTI_CLASSES, where=str(folder))

    def added_to(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames with their labels. Raises ValueError for a file with another number of points than its sweep."""
        from xmodal_seg.training.data.sources import read_rows

        for frame, path in zip(frames, self._files, strict=True):
            raw = (read_rows(path, "<u4", 1)[:, 0] & 0xFFFF).astype(np.int64)  # the upper half is the instance
            yield _labelled(frame, raw, self._classes, self._table, path)


class NuScenesLabels:
    """nuScenes-lidarseg's files, found by the stamp of the sweep in the tables of the download.

    Sweeps between key frames have no file and come back without labels. Raises ValueError for a download without its
    tables.
    """

    def __init__(self, root: str | Path, *, label_space: LabelSpace, version: str | None = None) -> None:
        from xmodal_seg.training.data.class_merges import find_merge, merge_table
        from xmodal_seg.training.data.nuscenes import DEFAULT_VERSION, NuScenesSource

        source = NuScenesSource(root, version=version or _version_in(Path(root)) or DEFAULT_VERSION)
        missing = source.missing_tables()
        if missing:
            raise ValueError(f"{root}: expected a nuScenes download with lidarseg; it lacks {', '.join(missing)}")
        self._root = Path(root)
        self._classes = source.raw_classes()
        self._table = merge_table(find_merge("nuscenes", label_space.name), self._classes, where=str(root))
        frames = source.frames()
        self._stamps_ns = np.array(sorted(frame.stamp_ns for frame in frames), dtype=np.int64)
        self._files = {frame.stamp_ns: frame.labels for frame in frames}

    def added_to(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames, those of key frames with labels. Raises ValueError if no sweep of the bag is a key frame."""
        from xmodal_seg.training.data.sources import read_rows

        num_found = 0
        for frame in frames:
            stamp_ns = self._nearest(frame.stamp_ns)
            if stamp_ns is None:
                yield replace(frame, labels=None)
                continue
            num_found += 1
            path = self._root / self._files[stamp_ns]
            yield _labelled(frame, read_rows(path, "u1", 1)[:, 0].astype(np.int64), self._classes, self._table, path)
        if not num_found:
            raise ValueError(f"{self._root}: none of the bag's sweeps has the stamp of a key frame of this download")

    def _nearest(self, stamp_ns: int) -> int | None:
        if not len(self._stamps_ns):
            return None
        nearest = int(self._stamps_ns[np.abs(self._stamps_ns - stamp_ns).argmin()])
        return nearest if abs(nearest - stamp_ns) <= _STAMP_TOLERANCE_NS else None


def _labelled(
    frame: Frame, raw: NDArray[np.int64], classes: Mapping[int, str], table: NDArray[np.int64], path: Path
) -> Frame:
    from xmodal_seg.training.data.raw_classes import check_raw_labels

    if len(raw) != frame.num_points:
        raise ValueError(
            f"{path}: expected a label for each of the {frame.num_points} points of the sweep at "
            f"{frame.stamp_ns / 1e9:.3f} s, got {len(raw)}"
        )
    check_raw_labels(raw, classes, where=str(path))
    return replace(frame, labels=table[raw])


def _version_in(root: Path) -> str | None:
    """The one folder of tables in a download, if there is one."""
    found = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())
    return found[0] if len(found) == 1 else None
