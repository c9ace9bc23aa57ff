# SPDX-License-Identifier: Apache-2.0
"""A drive as a folder of plain files that are read without unpacking.

    drive.json                  settings of the drive and the version of this format
    000000/frame.json           stamp_ns, frame_id, cameras with calibration, world_T_lidar, light, weather
    000000/points.npy           (N, 3) float32 m, LiDAR axes
    000000/intensity.npy        (N,) float32, absent for points sampled from a depth image
    000000/raw_labels.npy       (N,) uint8 RawClass; mapped onto a label space when read
    000000/instances.npy        (N,) int32, 0 where a thing is not counted
    000000/rings.npy            (N,) uint8
    000000/offsets_s.npy        (N,) float32 firing time after the stamp
    000000/<camera>.jpg         as the camera sent it
    000000/<camera>_class.png, <camera>_instance.npy, <camera>_depth.npy   with ground truth images only

A frame's folder gets its name when it is complete, so writing may be stopped at any time and taken up again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.labels import NUSCENES_6, LabelSpace
from xmodal_seg.simulation.drive import CameraTruth, DriveSettings, Sample
from xmodal_seg.simulation.imaging import decode
from xmodal_seg.simulation.light import Light
from xmodal_seg.simulation.raw_classes import train_ids
from xmodal_seg.simulation.weather import Weather
from xmodal_seg.structures import Calibration, CameraView, Frame
from xmodal_seg.tensor_files import write_text

FORMAT = "xmodal_seg drive"
VERSION = 1
INDEX = "drive.json"


def prepare_folder(path: str | Path, settings: DriveSettings, *, with_truth: bool = False) -> list[int]:
    """Make or take up the folder of a drive; returns the frames that are still missing.

    Raises ValueError if `path` holds another drive, or files that are no drive.
    """
    path = Path(path)
    index = {"format": FORMAT, "version": VERSION, "with_truth": with_truth, "settings": _json(settings)}
    if (path / INDEX).is_file():
        found = _read_index(path)
        if found != index:
            raise ValueError(f"{path}: holds a drive with other settings; choose another folder or remove it")
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: expected a new or empty folder, or one with {INDEX}")
    else:
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / INDEX, json.dumps(index, indent=1) + "\n")
    return [number for number in range(settings.num_frames) if not (path / _name(number)).is_dir()]


def write_samples(path: str | Path, samples: Iterable[Sample]) -> Iterator[int]:
    """Write samples into a prepared folder; yields the index of each once it is complete."""
    for sample in samples:
        final = Path(path) / _name(sample.index)
        partial = final.with_name(f".{final.name}.{os.getpid()}")
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        _write_sample(partial, sample)
        partial.rename(final)
        yield sample.index


def _write_sample(folder: Path, sample: Sample) -> None:
    frame = sample.frame
    arrays: dict[str, NDArray[Any] | None] = {
        "points": frame.points,
        "intensity": frame.intensity,
        "raw_labels": sample.raw_labels,
        "instances": sample.instances,
        "rings": sample.rings,
        "offsets_s": sample.offsets_s,
    }
    for name, values in arrays.items():
        if values is not None:
            np.save(folder / f"{name}.npy", values)
    for view, jpeg in zip(frame.cameras, sample.jpegs, strict=True):
        (folder / f"{view.name}.jpg").write_bytes(jpeg)
    for view, truth in zip(frame.cameras, sample.truths, strict=False):
        cv2.imwrite(str(folder / f"{view.name}_class.png"), truth.raw_class)
        np.save(folder / f"{view.name}_instance.npy", truth.instance)
        np.save(folder / f"{view.name}_depth.npy", truth.depth)
    (folder / "frame.json").write_text(json.dumps(_facts(sample), indent=1) + "\n", encoding="utf-8")


def _facts(sample: Sample) -> dict[str, Any]:
    return {
        "stamp_ns": sample.frame.stamp_ns,
        "frame_id": sample.frame.frame_id,
        "world_T_lidar": sample.world_T_lidar.tolist(),
        "light": _json(sample.light),
        "condition": sample.light.condition,
        "weather": _json(sample.weather),
        "cameras": [
            {
                "name": view.name,
                "stamp_ns": view.stamp_ns,
                "image_size": list(view.calibration.image_size),
                "camera_matrix": view.calibration.camera_matrix.tolist(),
                "camera_T_lidar": view.calibration.camera_T_lidar.tolist(),
            }
            for view in sample.frame.cameras
        ],
    }


class DriveFolder:
    """A written drive, read frame by frame; point arrays are mapped, not copied, until they are used.

    Raises ValueError for a folder that holds no drive.
    """

    def __init__(self, path: str | Path, *, label_space: LabelSpace = NUSCENES_6) -> None:
        self.path = Path(path)
        if not (self.path / INDEX).is_file():
            raise ValueError(f"{self.path}: expected a folder with {INDEX}, as xmodal-seg simulate --out writes it")
        index = _read_index(self.path)
        if (index.get("format"), index.get("version")) != (FORMAT, VERSION):
            raise ValueError(
                f"{self.path / INDEX}: expected format {FORMAT!r} version {VERSION}, "
                f"got {index.get('format')!r} version {index.get('version')}"
            )
        self.settings = DriveSettings.model_validate(index["settings"])
        self.indices = [n for n in range(self.settings.num_frames) if (self.path / _name(n)).is_dir()]
        self._train_ids = train_ids(label_space)

    def __len__(self) -> int:
        """Frames that are there; fewer than `settings.num_frames` if writing was stopped."""
        return len(self.indices)

    def frame(self, number: int) -> Frame:
        """The `number`-th frame that is there, with images, and labels in the label space."""
        folder = self._folder(number)
        facts = self._facts(number)
        raw = np.load(folder / "raw_labels.npy", mmap_mode="r")
        has_intensity = (folder / "intensity.npy").is_file()
        return Frame(
            points=np.load(folder / "points.npy", mmap_mode="r"),
            intensity=np.load(folder / "intensity.npy", mmap_mode="r") if has_intensity else None,
            labels=self._train_ids[raw],
            cameras=tuple(_read_view(folder, camera) for camera in facts["cameras"]),
            stamp_ns=facts["stamp_ns"],
            frame_id=facts["frame_id"],
        )

    def sample(self, number: int) -> Sample:
        """The frame with everything that was written about it."""
        folder, frame, facts = self._folder(number), self.frame(number), self._facts(number)
        names = [view.name for view in frame.cameras]
        return Sample(
            index=self.indices[number],
            frame=frame,
            raw_labels=np.load(folder / "raw_labels.npy", mmap_mode="r"),
            instances=np.load(folder / "instances.npy", mmap_mode="r"),
            rings=np.load(folder / "rings.npy", mmap_mode="r"),
            offsets_s=np.load(folder / "offsets_s.npy", mmap_mode="r"),
            world_T_lidar=np.array(facts["world_T_lidar"]),
            light=Light.model_validate(facts["light"]),
            weather=Weather.model_validate(facts["weather"]),
            jpegs=tuple((folder / f"{name}.jpg").read_bytes() for name in names),
            truths=tuple(_read_truth(folder, name) for name in names if (folder / f"{name}_class.png").is_file()),
        )

    def __iter__(self) -> Iterator[Frame]:
        return (self.frame(number) for number in range(len(self)))

    def _folder(self, number: int) -> Path:
        return self.path / _name(self.indices[number])

    def _facts(self, number: int) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self._folder(number) / "frame.json").read_text(encoding="utf-8"))
        return facts


def _read_view(folder: Path, facts: dict[str, Any]) -> CameraView:
    height, width = facts["image_size"]
    return CameraView(
        name=facts["name"],
        image=decode((folder / f"{facts['name']}.jpg").read_bytes()),
        calibration=Calibration(
            camera_matrix=np.array(facts["camera_matrix"]),
            camera_T_lidar=np.array(facts["camera_T_lidar"]),
            image_size=(height, width),
        ),
        stamp_ns=facts["stamp_ns"],
    )


def _read_truth(folder: Path, name: str) -> CameraTruth:
    return CameraTruth(
        raw_class=np.asarray(cv2.imread(str(folder / f"{name}_class.png"), cv2.IMREAD_UNCHANGED), np.uint8),
        instance=np.load(folder / f"{name}_instance.npy", mmap_mode="r"),
        depth=np.load(folder / f"{name}_depth.npy", mmap_mode="r"),
    )


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / INDEX}: not valid JSON: {error}") from error
    return index


def _json(settings: Any) -> dict[str, Any]:
    values: dict[str, Any] = settings.model_dump(mode="json")
    return values


def _name(number: int) -> str:
    return f"{number:06d}"
