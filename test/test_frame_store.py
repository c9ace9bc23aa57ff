# SPDX-License-Identifier: Apache-2.0
"""Frames written to a store come back as they were, in other processes and other label spaces too."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_world import stored, tiny_frame

from xmodal_seg.labels import IGNORE_INDEX, NUSCENES_6, VIRTUAL_KITTI_6
from xmodal_seg.structures import Frame
from xmodal_seg.training.data.frame_store import INDEX_FILE, FrameStore, StoredFrame, read_index, write_frame_store


def write(folder: Path, frames: list[Frame], **values: object) -> FrameStore:
    arguments: dict[str, object] = {"num_frames": len(frames), "name": "tiny", "labels": "nuscenes_6"}
    write_frame_store(folder, map(stored, frames), **{**arguments, **values})  # type: ignore[arg-type]
    return FrameStore(folder, label_space=NUSCENES_6)


def make_frames() -> list[Frame]:
    frames = [tiny_frame(seed, num_points=70 + 9 * seed) for seed in range(3)]
    return [replace(frame, intensity=np.linspace(0, 1, frame.num_points, dtype=np.float32)) for frame in frames]


def test_frames_come_back(tmp_path: Path) -> None:
    frames = make_frames()
    store = pickle.loads(pickle.dumps(write(tmp_path, frames)))
    assert len(store) == 3
    for index in (2, 0, 1):
        frame, expected = store[index], frames[index]
        np.testing.assert_array_equal(frame.points, expected.points)
        np.testing.assert_array_equal(frame.intensity, expected.intensity)
        np.testing.assert_array_equal(frame.labels, expected.labels)
        np.testing.assert_array_equal(store.labels(index), expected.labels)
        assert frame.stamp_ns == expected.stamp_ns
        camera, expected_camera = frame.cameras[0], expected.cameras[0]
        np.testing.assert_array_equal(camera.image, expected_camera.image)
        np.testing.assert_array_equal(camera.calibration.camera_T_lidar, expected_camera.calibration.camera_T_lidar)
        np.testing.assert_array_equal(camera.calibration.camera_matrix, expected_camera.calibration.camera_matrix)
    with pytest.raises(IndexError, match="has 3 frames, asked for 3"):
        store[3]


def test_labels_become_those_of_another_space(tmp_path: Path) -> None:
    frames = make_frames()
    write_frame_store(tmp_path, map(stored, frames), num_frames=3, name="tiny", labels="raw")
    table = np.full(256, IGNORE_INDEX, dtype=np.int64)
    table[[1, 4]] = (5, 0)
    store = FrameStore(tmp_path, label_space=VIRTUAL_KITTI_6, table=table, labels="raw")
    raw = frames[1].labels
    assert raw is not None
    np.testing.assert_array_equal(store.labels(1), np.where(raw == 1, 5, np.where(raw == 4, 0, IGNORE_INDEX)))


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    frames = make_frames()
    same = [write(tmp_path / name, frames, name=name).fingerprint for name in ("one", "other")]
    assert same[0] == same[1]
    image = frames[2].cameras[0].image.copy()
    image[0, 0, 0] ^= 1
    frames[2] = replace(frames[2], cameras=(replace(frames[2].cameras[0], image=image),))
    assert write(tmp_path / "changed", frames).fingerprint != same[0]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    frames = make_frames()
    with pytest.raises(ValueError, match="expected 5 frames, got 3"):
        write(tmp_path / "few", frames, num_frames=5)
    with pytest.raises(ValueError, match=r"no frame store here \(store.json is missing\)"):
        FrameStore(tmp_path / "few", label_space=NUSCENES_6)
    broken = [StoredFrame(frame=frames[0], labels=np.zeros(3, dtype=np.uint8))]
    with pytest.raises(ValueError, match="70 points and 3 labels"):
        write_frame_store(tmp_path / "labels", broken, num_frames=1, name="x", labels="raw")
    with pytest.raises(ValueError, match=r"frame 1 has the cameras \[\], the first \['front'\]"):
        write(tmp_path / "cameras", [frames[0], replace(frames[1], cameras=())])
    camera = frames[0].cameras[0]
    lens = replace(camera.calibration, distortion=np.zeros(5), distortion_model="plumb_bob")
    with pytest.raises(ValueError, match="camera 'front' is distorted"):
        write(tmp_path / "lens", [replace(frames[0], cameras=(replace(camera, calibration=lens),))])
    write(tmp_path, frames)
    with pytest.raises(ValueError, match="expected labels of virtual_kitti_6, got nuscenes_6"):
        FrameStore(tmp_path, label_space=VIRTUAL_KITTI_6)
    (tmp_path / INDEX_FILE).write_text('{"format": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match="expected format 1, got 0"):
        read_index(tmp_path)
