# SPDX-License-Identifier: Apache-2.0
"""Packaged frames come back as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import make_frame

from xmodal_seg.adaptation.labelled_frames import (
    FOLDER,
    INDEX_FILE,
    gate_frames,
    load_labelled_frames,
    save_labelled_frames,
)
from xmodal_seg.structures import Frame


def frames() -> list[Frame]:
    first = make_frame(num_points=31, num_cameras=2, stamp_ns=5, seed=1)
    bent = replace(
        first.cameras[1].calibration, distortion=np.array([0.1, -0.2, 0.01, 0.0]), distortion_model="plumb_bob"
    )
    first = replace(first, cameras=(first.cameras[0], replace(first.cameras[1], calibration=bent)))
    return [first, replace(make_frame(num_points=17, num_cameras=0, seed=2), intensity=None)]


def test_frames_come_back_bit_by_bit(tmp_path: Path) -> None:
    given = frames()
    save_labelled_frames(tmp_path, given, label_space="five")

    found = load_labelled_frames(tmp_path, label_space="five")

    assert len(found) == 2
    assert found[1].intensity is None
    for one, other in zip(given, found, strict=True):
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert (one.stamp_ns, one.frame_id, len(one.cameras)) == (other.stamp_ns, other.frame_id, len(other.cameras))
        for camera, again in zip(one.cameras, other.cameras, strict=True):
            assert (camera.name, camera.stamp_ns) == (again.name, again.stamp_ns)
            np.testing.assert_array_equal(camera.image, again.image)
            for name in ("camera_matrix", "camera_T_lidar", "distortion", "distortion_model"):
                np.testing.assert_array_equal(getattr(camera.calibration, name), getattr(again.calibration, name))


def test_what_cannot_be_packaged_or_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one or more frames, all with labels, got 0 frames"):
        save_labelled_frames(tmp_path, [], label_space="five")
    with pytest.raises(ValueError, match="all with labels"):
        save_labelled_frames(tmp_path, [replace(frames()[0], labels=None)], label_space="five")
    with pytest.raises(ValueError, match="no labelled frames here"):
        load_labelled_frames(tmp_path, label_space="five")
    save_labelled_frames(tmp_path, frames(), label_space="five")
    with pytest.raises(ValueError, match="expected the classes of six, got those of five"):
        load_labelled_frames(tmp_path, label_space="six")
    (path,) = tmp_path.glob("frame_001.*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged or changed"):
        load_labelled_frames(tmp_path, label_space="five")
    (tmp_path / INDEX_FILE).write_text(json.dumps({})[:-1])
    with pytest.raises(ValueError, match="not valid JSON"):
        load_labelled_frames(tmp_path, label_space="five")


def test_the_gate_takes_the_folder_that_is_named_before_that_of_the_checkpoint(tmp_path: Path) -> None:
    both, second = frames(), frames()[1:]
    save_labelled_frames(tmp_path / "named", both, label_space="five")
    checkpoint = tmp_path / "checkpoint"
    assert gate_frames("", checkpoint=checkpoint, label_space="five") == []
    assert gate_frames(None, checkpoint=None, label_space="five") == []

    save_labelled_frames(checkpoint / FOLDER, second, label_space="five")

    assert len(gate_frames("", checkpoint=checkpoint, label_space="five")) == 1
    assert len(gate_frames(tmp_path / "named", checkpoint=checkpoint, label_space="five")) == 2
    with pytest.raises(ValueError, match="classes of six"):
        gate_frames("", checkpoint=checkpoint, label_space="six")
