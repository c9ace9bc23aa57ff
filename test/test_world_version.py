# SPDX-License-Identifier: Apache-2.0
"""Frames of this version of the simulated world, as every machine must find them: results are compared by version.

After a change that shows here, raise `WORLD_VERSION` in simulation/drive.py and write the new values with
`python test/test_world_version.py`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("embreex", reason="needs the extra 'sim'")

from xmodal_seg.simulation import (
    WORLD_VERSION,
    Drive,
    DriveSettings,
    place_named,
    rig_named,
    schedule_named,
    weather_named,
)

VALUES = Path(__file__).parent / "world_version.npz"
PARTS = ("points_mm", "labels", "image")  # (N, 3) int32, (N,) uint8 raw classes, (H, W, 3) uint8
SAME_POINT_MM = 2.0  # 1, and what rounding to millimetres on both sides makes of it
DRIVES = {
    "usa, nuScenes, noon": ("usa", "nuscenes", "noon", "clear"),
    "singapore, nuScenes, night": ("singapore", "nuscenes", "night", "clear"),
    "germany, KITTI, overcast": ("germany", "kitti", "overcast", "clear"),
    "ingolstadt, A2D2, morning": ("ingolstadt", "a2d2", "morning", "clear"),
    "virtual, VirtualKITTI, drizzle": ("virtual", "vkitti", "sunset", "drizzle"),
    "usa, nuScenes, dark, rain": ("usa", "nuscenes", "dark", "rain"),
}
SCALES = {
    "nuscenes": {"image": 0.06, "columns": 180},
    "kitti": {"image": 0.08, "columns": 180, "beams": 16},
    "a2d2": {"image": 0.04, "columns": 90},
    "vkitti": {"image": 0.08, "points": 900},
}


def test_values_are_of_this_version() -> None:
    with np.load(VALUES) as stored:
        assert int(stored["world_version"]) == WORLD_VERSION


def test_points_are_those_of_this_version() -> None:
    """At least 99.9 % of the points are there, within 1 mm and with the same class, as promised between machines."""
    shares = {}
    for name in DRIVES:
        expected, found = stored_arrays(name), rendered(name)
        shares[name] = (same_points(expected, found), max(len(expected["labels"]), len(found["labels"])))
    same, number = (sum(values) for values in zip(*shares.values(), strict=True))
    assert same >= 0.999 * number, shares


@pytest.mark.parametrize("name", DRIVES)
def test_images_are_those_of_this_version(name: str) -> None:
    """Within 2 grey levels, but for a pixel in a thousand: an edge may fall on either side."""
    expected, found = stored_arrays(name)["image"].astype(int), rendered(name)["image"].astype(int)
    assert (np.abs(found - expected) <= 2).all(axis=2).mean() >= 0.999


def same_points(expected: dict[str, NDArray], found: dict[str, NDArray]) -> int:
    """How many expected points have a found one in their place, of the same class."""
    places = [torch.from_numpy(arrays["points_mm"]).double() for arrays in (expected, found)]
    distances = torch.cdist(*places, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.min(dim=1)
    is_same = torch.from_numpy(found["labels"])[nearest.indices] == torch.from_numpy(expected["labels"])
    return int((is_same & (nearest.values <= SAME_POINT_MM)).sum())


def stored_arrays(name: str) -> dict[str, NDArray]:
    with np.load(VALUES) as stored:
        return {part: stored[f"{name}/{part}"] for part in PARTS}


@cache
def rendered(name: str) -> dict[str, NDArray]:
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
    sample = Drive(settings).sample(2)
    points_mm = np.round(1000 * sample.frame.points).astype(np.int32)
    image = sample.frame.cameras[0].image
    return dict(zip(PARTS, (points_mm, sample.raw_labels.astype(np.uint8), image), strict=True))


def main() -> None:
    arrays = {f"{name}/{part}": values for name in DRIVES for part, values in rendered(name).items()}
    np.savez_compressed(VALUES, world_version=np.array(WORLD_VERSION), **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
