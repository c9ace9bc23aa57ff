# SPDX-License-Identifier: Apache-2.0
"""Labelled frames in flat arrays that are mapped into memory: no decoding, nothing held in RAM, cheap to share.

A folder holds `store.json` (name, what the labels are, fingerprint, cameras, where it comes from) and .npy arrays:
`points` (T, 3), `labels` (T,) uint8 and optionally `intensity` (T,) over all T points of all frames; `first` (F + 1,),
where each frame begins; `stamps` (F,); and for each camera its images (F, H, W, 3), `camera_matrix` (F, 3, 3) and
`camera_T_lidar` (F, 4, 4). store.json is written last: a folder without it is not a store. The fingerprint is a hash
of the arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from xmodal_seg.labels import IGNORE_INDEX, LabelSpace
from xmodal_seg.structures import Calibration, CameraView, Frame
from xmodal_seg.training.data.prepared import write_array, write_text

INDEX_FILE = "store.json"
FORMAT = 1


class FrameStore:
    """The frames of a store, by index.

    Args:
        folder: of the store.
        label_space: what the labels become.
        table: (256,) stored label -> train id; None for a store whose labels are train ids already.
        labels: what the stored labels must be; the name of the label space if None.

    Raises ValueError if the folder holds no store, one of another format, or other labels.
    """

    def __init__(
        self,
        folder: Path,
        *,
        label_space: LabelSpace,
        table: NDArray[np.int64] | None = None,
        labels: str | None = None,
    ) -> None:
        index = read_index(folder)
        expected = labels or label_space.name
        if index["labels"] != expected:
            raise ValueError(f"{folder / INDEX_FILE}: expected labels of {expected}, got {index['labels']}")
        self.folder = folder
        self.name: str = index["name"]
        self.fingerprint: str = index["fingerprint"]
        self.label_space = label_space
        self._table = _train_ids(label_space) if table is None else table
        self._num_frames: int = index["num_frames"]
        self._cameras: list[str] = index["cameras"]
        self._has_intensity: bool = index["has_intensity"]

    def __len__(self) -> int:
        return self._num_frames

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} frames, asked for {index}")
        here = self._rows(index)
        return Frame(
            points=np.array(self._arrays["points"][here]),
            intensity=np.array(self._arrays["intensity"][here]) if self._has_intensity else None,
            labels=self.labels(index),
            cameras=tuple(self._view(name, index) for name in self._cameras),
            stamp_ns=int(self._arrays["stamps"][index]),
            frame_id="lidar",
        )

    def labels(self, index: int) -> NDArray[np.int64]:
        return self._table[self._arrays["labels"][self._rows(index)]]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_arrays"}

    def _rows(self, index: int) -> slice:
        first, last = (int(row) for row in self._arrays["first"][index : index + 2])
        return slice(first, last)

    def _view(self, camera: str, index: int) -> CameraView:
        image = np.asarray(self._arrays[f"{camera}_images"][index])
        calibration = Calibration(
            camera_matrix=np.array(self._arrays[f"{camera}_matrix"][index]),
            camera_T_lidar=np.array(self._arrays[f"{camera}_T_lidar"][index]),
            image_size=(image.shape[0], image.shape[1]),
        )
        return CameraView(
            name=camera, image=image, calibration=calibration, stamp_ns=int(self._arrays["stamps"][index])
        )

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {path.stem: np.load(path, mmap_mode="r") for path in self.folder.glob("*.npy")}


@dataclass(frozen=True, kw_only=True)
class StoredFrame:
    """A frame to be written, with labels as they shall be stored."""

    frame: Frame
    labels: NDArray[np.uint8]  # (N,)


def write_frame_store(
    folder: Path,
    frames: Iterable[StoredFrame],
    *,
    num_frames: int,
    name: str,
    labels: str,
    origin: dict[str, Any] | None = None,
) -> None:
    """Write `num_frames` frames, all with the same cameras and image sizes; rectified images only.

    Args:
        frames: at least that many; the rest is not asked for.
        name: of the data set.
        labels: name of what the labels are: a label space (with UNLABELED), or raw classes.
        origin: how the frames were made; kept in store.json.

    Raises ValueError for fewer frames, a distorted image, or cameras that differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder=folder, num_frames=num_frames)
    # stderr: what a program prints on stdout may be kept as a file
    numbers = track(range(num_frames), description=f"{name}: {num_frames} frames", console=Console(stderr=True))
    for index, stored in zip(numbers, frames, strict=False):
        writer.add(index, stored)
    cameras, has_intensity = writer.finish()
    index_values = {
        "format": FORMAT,
        "name": name,
        "labels": labels,
        "fingerprint": _hash_arrays(folder),
        "num_frames": num_frames,
        "cameras": cameras,
        "has_intensity": has_intensity,
        "origin": origin or {},
    }
    write_text(folder / INDEX_FILE, json.dumps(index_values, indent=1) + "\n")


def read_index(folder: Path) -> dict[str, Any]:
    """What store.json says. Raises ValueError where there is none, or one of another format."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: no frame store here ({INDEX_FILE} is missing)")
    index = dict(json.loads(path.read_text(encoding="utf-8")))
    if index["format"] != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {index['format']}")
    return index


class _Writer:
    """Images go to disk at once; points, which are few, at the end."""

    def __init__(self, *, folder: Path, num_frames: int) -> None:
        self._folder, self._num_frames = folder, num_frames
        self._images: dict[str, np.memmap] = {}
        self._frames: list[Frame] = []
        self._labels: list[NDArray[np.uint8]] = []

    def add(self, index: int, stored: StoredFrame) -> None:
        frame = stored.frame
        if stored.labels.shape != (frame.num_points,):
            raise ValueError(
                f"{self._folder}: frame {index} has {frame.num_points} points and {stored.labels.size} labels"
            )
        names = [camera.name for camera in frame.cameras]
        if self._frames and names != list(self._images):
            raise ValueError(f"{self._folder}: frame {index} has the cameras {names}, the first {list(self._images)}")
        for camera in frame.cameras:
            if camera.calibration.distortion_model != "none":
                raise ValueError(f"{self._folder}: camera {camera.name!r} is distorted; rectify its images first")
            self._images_of(camera)[index] = camera.image
        self._frames.append(replace(frame, cameras=tuple(map(_without_image, frame.cameras))))
        self._labels.append(stored.labels)

    def finish(self) -> tuple[list[str], bool]:
        """Write what is left; names of the cameras, and whether there is intensity."""
        if len(self._frames) < self._num_frames:
            raise ValueError(f"{self._folder}: expected {self._num_frames} frames, got {len(self._frames)}")
        frames = self._frames
        self._write("points", np.concatenate([frame.points for frame in frames]))
        self._write("labels", np.concatenate(self._labels))
        self._write("first", np.cumsum([0, *(frame.num_points for frame in frames)], dtype=np.int64))
        self._write("stamps", np.array([frame.stamp_ns for frame in frames], dtype=np.int64))
        for number, name in enumerate(self._images):
            self._images[name].flush()
            views = [frame.cameras[number].calibration for frame in frames]
            self._write(f"{name}_matrix", np.stack([view.camera_matrix for view in views]))
            self._write(f"{name}_T_lidar", np.stack([view.camera_T_lidar for view in views]))
        intensity = [frame.intensity for frame in frames if frame.intensity is not None]
        if len(intensity) == len(frames):
            self._write("intensity", np.concatenate(intensity).astype(np.float32))
        return list(self._images), len(intensity) == len(frames)

    def _images_of(self, camera: CameraView) -> np.memmap:
        if camera.name not in self._images:
            path = self._folder / f"{camera.name}_images.npy"
            shape = (self._num_frames, *camera.image.shape)
            self._images[camera.name] = open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        return self._images[camera.name]

    def _write(self, name: str, array: NDArray[Any]) -> None:
        write_array(self._folder / f"{name}.npy", array)


def _without_image(camera: CameraView) -> CameraView:
    """The same view with an image that takes no memory; the real one is on disk."""
    return replace(camera, image=np.broadcast_to(np.uint8(0), camera.image.shape))


def _train_ids(label_space: LabelSpace) -> NDArray[np.int64]:
    table = np.full(256, IGNORE_INDEX, dtype=np.int64)
    table[: label_space.num_classes] = np.arange(label_space.num_classes)
    return table


def _hash_arrays(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.npy")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]
