# SPDX-License-Identifier: Apache-2.0
"""Labelled frames that come with a deployment, for the gate: a folder of safetensors files and an index.

Choose them from every condition in which the robot shall adapt: a gate that knows the day alone cannot see what is lost
at night. `xmodal-seg labelled-frames` does so from a bag. Images are kept as PNG, so that nothing is lost. A checkpoint
may carry such a folder inside its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from xmodal_seg.structures import Calibration, CameraView, Frame
from xmodal_seg.tensor_files import Tensors, read_tensors, write_tensors, write_text

FORMAT = 1
INDEX_FILE = "labelled_frames.json"
FOLDER = "labelled_frames"  # inside a checkpoint's folder


def save_labelled_frames(folder: str | Path, frames: Sequence[Frame], *, label_space: str) -> None:
    """Write `frames`, whose classes are those of `label_space`; ValueError for none, or for one without labels."""
    if not frames or any(frame.labels is None for frame in frames):
        raise ValueError(f"{folder}: expected one or more frames, all with labels, got {len(frames)} frames")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, frame in enumerate(frames):
        entries.append(
            {
                "values": write_tensors(path, f"frame_{number:03d}", _tensors(frame)),
                "stamp_ns": frame.stamp_ns,
                "frame_id": frame.frame_id,
                "cameras": [_camera_facts(camera) for camera in frame.cameras],
            }
        )
    index = {"format": FORMAT, "label_space": label_space, "frames": entries}
    write_text(path / INDEX_FILE, json.dumps(index, indent=1) + "\n")


def gate_frames(folder: str | Path | None, *, checkpoint: Path | None, label_space: str) -> list[Frame]:
    """The frames of `folder`; without one those that come inside the folder `checkpoint`; without those none.

    Raises ValueError as `load_labelled_frames` does.
    """
    if folder:
        return load_labelled_frames(folder, label_space=label_space)
    if checkpoint is not None and (checkpoint / FOLDER).is_dir():
        return load_labelled_frames(checkpoint / FOLDER, label_space=label_space)
    return []


def load_labelled_frames(folder: str | Path, *, label_space: str) -> list[Frame]:
    """Read them back; ValueError for a folder without them, for another format or label space, and for damage."""
    path = Path(folder) / INDEX_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: no labelled frames here, expected a folder with {INDEX_FILE}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged: not valid JSON ({error})") from error
    if index.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {index.get('format')}")
    if index.get("label_space") != label_space:
        raise ValueError(f"{path}: expected the classes of {label_space}, got those of {index.get('label_space')}")
    return [_frame(path.parent, entry) for entry in index["frames"]]


def _tensors(frame: Frame) -> Tensors:
    assert frame.labels is not None
    tensors = {"points": torch.from_numpy(frame.points), "labels": torch.from_numpy(frame.labels)}
    if frame.intensity is not None:
        tensors["intensity"] = torch.from_numpy(frame.intensity)
    for number, camera in enumerate(frame.cameras):
        calibration = camera.calibration
        _, png = cv2.imencode(".png", cv2.cvtColor(camera.image, cv2.COLOR_RGB2BGR))
        tensors[f"image_{number}"] = torch.from_numpy(png.reshape(-1).copy())
        tensors[f"camera_matrix_{number}"] = torch.from_numpy(calibration.camera_matrix)
        tensors[f"camera_T_lidar_{number}"] = torch.from_numpy(calibration.camera_T_lidar)
        if calibration.distortion is not None:
            tensors[f"distortion_{number}"] = torch.from_numpy(calibration.distortion)
    return tensors


def _camera_facts(camera: CameraView) -> dict[str, Any]:
    model = camera.calibration.distortion_model
    return {"name": camera.name, "stamp_ns": camera.stamp_ns, "distortion_model": model}


def _frame(folder: Path, entry: dict[str, Any]) -> Frame:
    tensors = read_tensors(folder, entry["values"], device=torch.device("cpu"))
    values = {name: tensor.numpy() for name, tensor in tensors.items()}
    cameras = tuple(_camera(values, number, facts) for number, facts in enumerate(entry["cameras"]))
    return Frame(
        points=values["points"],
        labels=values["labels"],
        intensity=values.get("intensity"),
        cameras=cameras,
        stamp_ns=entry["stamp_ns"],
        frame_id=entry["frame_id"],
    )


def _camera(values: dict[str, Any], number: int, facts: dict[str, Any]) -> CameraView:
    pixels = cv2.imdecode(values[f"image_{number}"], cv2.IMREAD_COLOR)
    assert pixels is not None, "the file's hash was right, so this is the PNG that was written"
    image = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    calibration = Calibration(
        camera_matrix=values[f"camera_matrix_{number}"],
        camera_T_lidar=values[f"camera_T_lidar_{number}"],
        image_size=(image.shape[0], image.shape[1]),
        distortion=values.get(f"distortion_{number}"),
        distortion_model=facts["distortion_model"],
    )
    return CameraView(
        name=facts["name"],
        image=np.ascontiguousarray(image, dtype=np.uint8),
        calibration=calibration,
        stamp_ns=facts["stamp_ns"],
    )
