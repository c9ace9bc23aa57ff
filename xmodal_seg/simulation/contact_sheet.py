# SPDX-License-Identifier: Apache-2.0
"""One picture of the simulated world: places, lights, weathers and rigs, with ground truth and clouds from above."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.labels import IGNORE_INDEX, LABEL_SPACES, UNLABELED
from xmodal_seg.simulation import noise
from xmodal_seg.simulation.drive import Drive, DriveSettings, Sample
from xmodal_seg.simulation.light import schedule_named
from xmodal_seg.simulation.places import place_named
from xmodal_seg.simulation.raw_classes import train_ids
from xmodal_seg.simulation.rigs import rig_named
from xmodal_seg.simulation.weather import weather_named
from xmodal_seg.visualize import birds_eye_view

TILE = (180, 320)  # (height, width) px
COLUMNS = 4
EXTENT_M = 70.0
NUM_COLOURS = 256  # of the PNG: a picture for a README need not weigh megabytes


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One drive to show: its first camera, and on request its class image and its cloud."""

    place: str
    light: str = "noon"
    weather: str = "clear"
    rig: str = "nuscenes"
    seed: int = 0
    frame: int = 0
    with_truth: bool = False


SHOTS = (
    Shot(place="usa", seed=6, frame=3),
    Shot(place="usa", seed=6, frame=3, light="dusk"),
    Shot(place="usa", seed=6, frame=3, light="night"),
    Shot(place="usa", seed=6, frame=3, light="overcast", weather="fog"),
    Shot(place="singapore", seed=2, frame=4, light="overcast", weather="downpour"),
    Shot(place="singapore", seed=2, frame=4, light="night", weather="rain"),
    Shot(place="dev_a", seed=1, frame=2, light="morning"),
    Shot(place="dev_b", seed=5, frame=2, light="sunset"),
    Shot(place="singapore", seed=2, frame=4, with_truth=True),
    Shot(place="germany", seed=3, frame=2, rig="kitti", light="morning", with_truth=True),
    Shot(place="virtual", seed=1, frame=4, rig="vkitti", with_truth=True),
    Shot(place="ingolstadt", seed=4, frame=3, rig="a2d2", light="afternoon", with_truth=True),
)


def contact_sheet(shots: tuple[Shot, ...] = SHOTS) -> NDArray[np.uint8]:
    """(H, W, 3) RGB tiles with captions."""
    tiles = [tile for shot in shots for tile in _tiles(shot)]
    blank = np.full((*TILE, 3), 30, np.uint8)
    tiles += [blank] * (-len(tiles) % COLUMNS)
    return np.vstack([np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)])


def write_contact_sheet(path: str | Path, shots: tuple[Shot, ...] = SHOTS) -> None:
    """Write the sheet as a PNG with a palette. Raises ValueError if the file cannot be written."""
    from PIL import Image

    picture = Image.fromarray(contact_sheet(shots)).quantize(NUM_COLOURS, dither=Image.Dither.FLOYDSTEINBERG)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def _tiles(shot: Shot) -> list[NDArray[np.uint8]]:
    sample = _sample(shot)
    caption = " ".join(word for word in (shot.place, shot.light, shot.weather.replace("clear", ""), shot.rig) if word)
    tiles = [_captioned(sample.frame.cameras[0].image, caption)]
    if shot.with_truth:
        palette, labels = _labels(sample)
        cloud = birds_eye_view(sample.frame.points, labels, palette, extent_m=EXTENT_M, size_px=TILE[1], radius=1)
        middle = (TILE[1] - TILE[0]) // 2
        tiles.append(_captioned(_class_image(sample, palette), "classes"))
        tiles.append(_captioned(_instance_image(sample), "instances"))
        tiles.append(_captioned(cloud[middle : middle + TILE[0]], f"{sample.frame.num_points:,} points"))
    return tiles


def _sample(shot: Shot) -> Sample:
    rig = rig_named(shot.rig)
    width = rig.cameras[0].image_size[1]
    settings = DriveSettings(
        seed=shot.seed,
        num_frames=shot.frame + 1,
        fps=0.2,
        place=place_named(shot.place),
        rig=rig.scaled(image=min(1.0, 2 * TILE[1] / width)),
        light=schedule_named(shot.light, 1.0),
        weather=weather_named(shot.weather),
    )
    return Drive(settings, label_space=LABEL_SPACES["semantic_kitti_10"], with_truth=True).sample(shot.frame)


def _labels(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The ten-class palette and the points' labels in it."""
    assert sample.frame.labels is not None
    labels = np.where(sample.frame.labels == IGNORE_INDEX, UNLABELED, sample.frame.labels).astype(np.uint8)
    return LABEL_SPACES["semantic_kitti_10"].palette(), labels


def _class_image(sample: Sample, palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    table = train_ids(LABEL_SPACES["semantic_kitti_10"])
    table = np.where(table == IGNORE_INDEX, UNLABELED, table)
    return palette[table[sample.truths[0].raw_class]]


def _instance_image(sample: Sample) -> NDArray[np.uint8]:
    instance = sample.truths[0].instance
    shades = [(60 + 190 * noise.hashed(instance, np.full_like(instance, channel))) for channel in range(3)]
    return np.where((instance > 0)[..., None], np.stack(shades, axis=-1), 40).astype(np.uint8)


def _captioned(image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """The image fitted into a tile, with its caption in the lower left corner."""
    height, width = image.shape[:2]
    scale = min(TILE[0] / height, TILE[1] / width)
    size = (round(width * scale), round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    tile = np.full((*TILE, 3), 30, np.uint8)
    top, left = (TILE[0] - size[1]) // 2, (TILE[1] - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = small
    tile[TILE[0] - 18 :, : 12 + 7 * len(text)] //= 4
    at = (6, TILE[0] - 6)
    cv2.putText(tile, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.40, (255, 255, 255), 1, cv2.LINE_AA)
    return tile
