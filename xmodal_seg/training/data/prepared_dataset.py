# SPDX-License-Identifier: Apache-2.0
"""Read what training/prepare_*.py has written (`prepared` has the format): index -> Frame, by split."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.labels import LabelSpace
from xmodal_seg.structures import Calibration, CameraView, Frame
from xmodal_seg.training.data.class_merges import find_merge, merge_table
from xmodal_seg.training.data.image_files import read_image
from xmodal_seg.training.data.prepared import CAMERAS_FILE, FRAMES_FILE, HEADER_FILE, POINTS_FOLDER, Header
from xmodal_seg.training.data.raw_classes import DatasetName
from xmodal_seg.training.data.splits import SPLITS, split_rule

_MAX_OPEN_SHARDS = 64  # each holds a file descriptor, of which a process has some thousand


class PreparedDataset:
    """One split of prepared data: index -> Frame with labels in a label space.

    Files are opened on first use and mapped, so that a data set costs nothing to send to a worker process. With k
    variants every frame stands in the data set k times, once with each: a uniform draw of an index draws both.

    Args:
        folder: what training/prepare_*.py has written.
        split: a name of `SPLITS`, several joined with `+` (no frame twice), or `all`.
        label_space: name of one into which the data set is merged; its first one if None.
        cameras: names of the cameras to load; None for all that were prepared.
        variants: of the images; None for all of them.
        image_root: where the images are now, if they were moved.

    Raises ValueError for a name that is not there.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        split: str,
        label_space: str | None = None,
        cameras: Sequence[str] | None = None,
        variants: Sequence[str] | None = None,
        image_root: str | Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.header = Header.read(self.folder)
        self.split = split
        merge = find_merge(self.header.dataset, label_space)
        self._table = merge_table(merge, self.header.raw_classes, where=str(self.folder / HEADER_FILE))
        self._label_space = merge.label_space
        self._cameras = _positions("camera", cameras, self.header.cameras, self.folder)
        self._variants = _chosen("image variant", variants, self.header.variants, self.folder)
        self._image_root = self.folder / self.header.image_root if image_root is None else Path(image_root)
        self.frame_numbers = self._select_frames()

    @property
    def label_space(self) -> LabelSpace:
        return self._label_space

    @property
    def name(self) -> str:
        return f"{self.header.dataset}/{self.split}"

    def __len__(self) -> int:
        return len(self.frame_numbers) * max(1, len(self._variants))

    def __getitem__(self, index: int) -> Frame:
        """The frame with its images read and its labels merged. Raises ValueError naming an image that is damaged."""
        number, variant = self._locate(index)
        row = self._frames[number]
        points = self.points(index)
        intensity = points["intensity"].astype(np.float32) if self.header.has_intensity else None
        return Frame(
            points=np.ascontiguousarray(points["xyz"]),
            intensity=intensity,
            labels=self._table[points["raw_label"]],
            cameras=self._views(number, variant),
            stamp_ns=int(row["stamp_ns"]),
            frame_id="lidar",
        )

    def labels(self, index: int) -> NDArray[np.int64]:
        """(N,) train ids of a frame, without reading its images."""
        return self._table[self.points(index)["raw_label"]]

    def points(self, index: int) -> NDArray[Any]:
        """(N,) rows of `POINT_DTYPE`, mapped."""
        row = self._frames[self._locate(index)[0]]
        first = int(row["first"])
        return self._shard(int(row["shard"]))[first : first + int(row["num_points"])]

    def frame_name(self, index: int) -> tuple[str, str]:
        """Sequence, and the frame's name in it."""
        row = self._frames[self._locate(index)[0]]
        return self.header.sequences[int(row["sequence"])].name, row["name"].decode()

    def num_sweep_points(self, index: int) -> int:
        """Points of the whole sweep, those included that were left out."""
        return int(self._frames[self._locate(index)[0]]["num_sweep_points"])

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("_frames", "_camera_rows", "_shards")
        return {name: value for name, value in vars(self).items() if name not in mapped}

    def _locate(self, index: int) -> tuple[int, str | None]:
        """Row of frames.npy, and the image variant."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, asked for {index}")
        index %= len(self)
        if not self._variants:
            return int(self.frame_numbers[index]), None
        position, variant = divmod(index, len(self._variants))
        return int(self.frame_numbers[position]), self._variants[variant]

    def _select_frames(self) -> NDArray[np.int64]:
        chosen = np.zeros(len(self.header.sequences), dtype=bool)
        for split in self.split.split("+"):
            if split == "all":
                chosen[:] = True
                continue
            rule = split_rule(self.header.dataset, split)
            chosen |= np.array([rule(sequence) for sequence in self.header.sequences], dtype=bool)
        return np.flatnonzero(chosen[self._frames["sequence"]])

    def _views(self, number: int, variant: str | None) -> tuple[CameraView, ...]:
        views = []
        for position in self._cameras:
            row = self._camera_rows[number, position]
            if not row["present"]:
                continue
            path = row["image"].decode()
            calibration = Calibration(
                camera_matrix=row["camera_matrix"].copy(),
                camera_T_lidar=row["camera_T_lidar"].copy(),
                image_size=(int(row["image_size"][0]), int(row["image_size"][1])),
            )
            views.append(
                CameraView(
                    name=self.header.cameras[position],
                    image=self._read_image(path.format(variant=variant)),
                    calibration=calibration,
                    stamp_ns=int(row["stamp_ns"]),
                )
            )
        return tuple(views)

    def _read_image(self, path: str) -> NDArray[np.uint8]:
        if not self._image_root.is_dir():
            raise ValueError(
                f"{self.folder}: its images were in {self._image_root}, which is gone; "
                "prepare it again with the new --root and --moved"
            )
        return read_image(self._image_root / path)

    @cached_property
    def _frames(self) -> NDArray[Any]:
        return np.load(self.folder / FRAMES_FILE, mmap_mode="r")

    @cached_property
    def _camera_rows(self) -> NDArray[Any]:
        return np.load(self.folder / CAMERAS_FILE, mmap_mode="r")

    @cached_property
    def _shards(self) -> dict[int, NDArray[Any]]:
        return {}

    def _shard(self, number: int) -> NDArray[Any]:
        if number not in self._shards:
            path = self.folder / POINTS_FOLDER / self.header.shards[number]
            if not path.is_file():
                raise ValueError(f"{path}: missing; prepare the data again")
            if len(self._shards) >= _MAX_OPEN_SHARDS:
                self._shards.pop(next(iter(self._shards)))
            self._shards[number] = np.load(path, mmap_mode="r")
        return self._shards[number]


def open_dataset(
    folder: str | Path,
    *,
    split: str,
    label_space: str | None = None,
    cameras: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    dataset: DatasetName | None = None,
) -> PreparedDataset:
    """A split of prepared data, by names as they stand in a recipe.

    Raises ValueError if the folder holds another data set than `dataset`, or a split without frames.
    """
    opened = PreparedDataset(folder, split=split, label_space=label_space, cameras=cameras, variants=variants)
    if dataset is not None and opened.header.dataset != dataset:
        raise ValueError(f"{folder}: expected prepared {dataset}, found {opened.header.dataset}")
    if not len(opened):
        available = ", ".join(name for name in SPLITS[opened.header.dataset] if _has_frames(folder, name))
        raise ValueError(f"{folder}: the split {split!r} has no frames; splits that have: {available or 'none'}")
    return opened


def _has_frames(folder: str | Path, split: str) -> bool:
    return len(PreparedDataset(folder, split=split)) > 0


def histogram(dataset: PreparedDataset) -> NDArray[np.int64]:
    """(K,) points of each class over a split; reads labels only."""
    counts = np.zeros(dataset.label_space.num_classes, dtype=np.int64)
    step = max(1, len(dataset.header.variants))
    for index in range(0, len(dataset), step):
        labels = dataset.labels(index)
        counts += np.bincount(labels[labels >= 0], minlength=counts.size)
    return counts


def _positions(what: str, names: Sequence[str] | None, known: Sequence[str], folder: Path) -> list[int]:
    return [known.index(name) for name in _chosen(what, names, known, folder)]


def _chosen(what: str, names: Sequence[str] | None, known: Sequence[str], folder: Path) -> tuple[str, ...]:
    for name in names or ():
        if name not in known:
            raise ValueError(f"{folder}: has no {what} {name!r}; prepared were {', '.join(known) or 'none'}")
    return tuple(known if names is None else names)
