# SPDX-License-Identifier: Apache-2.0
"""Frames of this version of the simulated world, as every machine must find them: results are compared by version.

After a change that shows here, raise `WORLD_VERSION` in simulation/drive.py and write the new values with
`python test/test_world_version.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra 'sim'")

from xmodal_seg.simulation import (
    WORLD_VERSION,
    Drive,
    DriveSettings,
    Sample,
    place_named,
    rig_named,
    schedule_named,
    weather_named,
)

VALUES = Path(__file__).parent / "world_version.json"
GRID = (3, 5)  # blocks of an image whose mean is kept
DRIVES = {
    "usa, nuScenes, noon": ("usa", "nuscenes", "noon", "clear"),
    "singapore, nuScenes, night": ("singapore", "nuscenes", "night", "clear"),
    "germany, KITTI, overcast": ("germany", "kitti", "overcast", "clear"),
    "ingolstadt, A2D2, morning": ("ingolstadt", "a2d2", "morning", "clear"),
    "virtual, VirtualKITTI, drizzle": ("virtual", "vkitti", "sunset", "drizzle"),
}
SCALES = {
    "nuscenes": {"image": 0.06, "columns": 180},
    "kitti": {"image": 0.08, "columns": 180, "beams": 16},
    "a2d2": {"image": 0.04, "columns": 90},
    "vkitti": {"image": 0.08, "points": 900},
}


@pytest.mark.parametrize("name", DRIVES)
def test_frames_are_those_of_this_version(name: str) -> None:
    """99.9 % of the labels, and grey levels within two, as promised between machines."""
    stored = json.loads(VALUES.read_text())
    assert stored["world_version"] == WORLD_VERSION
    expected, found = stored["frames"][name], summary(rendered(name))
    classes = {*expected["points_by_class"], *found["points_by_class"]}
    off = sum(abs(expected["points_by_class"].get(c, 0) - found["points_by_class"].get(c, 0)) for c in classes)
    assert off <= 0.002 * sum(expected["points_by_class"].values())
    np.testing.assert_allclose(found["grey"], expected["grey"], atol=2)
    np.testing.assert_allclose(found["mean_range_m"], expected["mean_range_m"], atol=0.02)


def rendered(name: str) -> Sample:
    place, rig, light, weather = DRIVES[name]
    settings = DriveSettings(
        seed=100_000,
        num_frames=3,
        fps=0.5,
        place=place_named(place),
        rig=rig_named(rig).scaled(**SCALES[rig]),
        light=schedule_named(light, 4.0),
        weather=weather_named(weather),
    )
    return Drive(settings).sample(2)


def summary(sample: Sample) -> dict[str, Any]:
    """What is compared: points of each raw class, their mean distance, and the means of the first image's blocks."""
    classes, counts = np.unique(sample.raw_labels, return_counts=True)
    image = sample.frame.cameras[0].image.mean(axis=2)
    grey = [block.mean() for rows in np.array_split(image, GRID[0]) for block in np.array_split(rows, GRID[1], axis=1)]
    return {
        "points_by_class": {str(c): int(n) for c, n in zip(classes, counts, strict=True)},
        "mean_range_m": round(float(np.linalg.norm(sample.frame.points, axis=1).mean()), 4),
        "grey": [round(float(value), 2) for value in grey],
    }


def main() -> None:
    frames = {name: summary(rendered(name)) for name in DRIVES}
    VALUES.write_text(json.dumps({"world_version": WORLD_VERSION, "frames": frames}, indent=1) + "\n")


if __name__ == "__main__":
    main()
