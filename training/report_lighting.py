# SPDX-License-Identifier: Apache-2.0
"""What the lighting estimator says of pictures, and of made versions of them: darkened, tunnel, garage, glare.

python training/report_lighting.py --images FOLDER ... --out report.csv [--contact-sheet report.png]
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.lighting import CameraLighting, LightingEstimator
from xmodal_seg.lighting_calibration import PICTURES, read_picture
from xmodal_seg.lighting_model import load_coefficients
from xmodal_seg.training.programs import run_program

Image = NDArray[np.uint8]
GAMMA = 2.2
READ_NOISE = 0.004


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders or files")
    parser.add_argument("--coefficients", help="default: the shipped ones")
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    parser.add_argument("--contact-sheet", type=Path, help="a picture of all versions with what was said")
    arguments = parser.parse_args(argv)
    try:
        coefficients = load_coefficients(arguments.coefficients)
        rows, tiles = [], []
        for path in picture_paths(arguments.images):
            image = read_picture(path)
            for version, make in VERSIONS.items():
                changed = make(image)
                light = LightingEstimator(coefficients=coefficients).update("camera", changed, 0)
                rows.append((path.name, version, light))
                tiles.append(tile(changed, version, light))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    write(arguments.out, rows)
    if arguments.contact_sheet is not None:
        lines = [np.hstack(tiles[i : i + len(VERSIONS)]) for i in range(0, len(tiles), len(VERSIONS))]
        cv2.imwrite(str(arguments.contact_sheet), np.vstack(lines)[..., ::-1])
    for version in VERSIONS:
        said = [light for _, other, light in rows if other == version]
        conditions = ", ".join(f"{sum(s.condition == c for s in said)} {c}" for c in ("day", "twilight", "night"))
        darkness = np.median([light.darkness for light in said])
        confidence = np.median([light.confidence for light in said])
        print(f"{version:<16}{conditions}; median darkness {darkness:.2f}, confidence {confidence:.2f}")
    return 0


def picture_paths(sources: Sequence[Path]) -> list[Path]:
    """The files, and all pictures below the folders. Raises ValueError where there is none."""
    found = [
        path
        for source in sources
        for path in ([source] if source.is_file() else sorted(source.rglob("*")))
        if path.suffix.lower() in PICTURES
    ]
    if not found:
        raise ValueError(f"--images: expected pictures in {', '.join(map(str, sources))}, got none")
    return found


def darkened(image: Image, share: float) -> Image:
    """`share` of the light, with the noise of an amplified sensor."""
    draw = np.random.default_rng(0)
    light = (image / 255.0) ** GAMMA * share + draw.normal(0, READ_NOISE, image.shape)
    return to_pixels(light)


def tunnel(image: Image) -> Image:
    """Dark all around, rows of warm lamps above, and the bright exit in the middle."""
    height, width = image.shape[:2]
    light = (image / 255.0) ** GAMMA * 0.04 * np.array([1.1, 0.85, 0.55])
    for i in range(1, 7):
        for side in (-1, 1):
            centre = int(width / 2 + side * width * 0.5 / i**1.2), int(height / 2 - height * 0.45 / i**1.2)
            cv2.circle(light, centre, max(1, height // (30 * i)), (1.2, 0.9, 0.5), -1)
    top, left = slice(height * 9 // 20, height * 11 // 20), slice(width * 19 // 40, width * 21 // 40)
    light[top, left] = (image[top, left] / 255.0) ** GAMMA * 3
    return to_pixels(cv2.GaussianBlur(light, (0, 0), 1.5) + np.random.default_rng(0).normal(0, READ_NOISE, light.shape))


def garage(image: Image) -> Image:
    """Even, dim, greenish light and little contrast."""
    light = 0.03 + 0.08 * (image / 255.0) ** GAMMA * np.array([0.9, 1.0, 0.8])
    return to_pixels(light + np.random.default_rng(0).normal(0, READ_NOISE, light.shape))


def glare(image: Image) -> Image:
    """A low sun straight ahead: a burnt-out disc with a wide halo."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x - width / 2, y - height / 3) / height
    halo = 2.0 * np.exp(-((distance / 0.18) ** 2)) + 0.6 * np.exp(-distance / 0.35)
    return to_pixels((image / 255.0) ** GAMMA + halo[..., None])


def cropped(image: Image) -> Image:
    """Without the upper third."""
    return np.ascontiguousarray(image[image.shape[0] // 3 :])


VERSIONS: dict[str, Callable[[Image], Image]] = {
    "as it is": lambda image: image,
    "cropped": cropped,
    "darkened 1/8": lambda image: darkened(image, 1 / 8),
    "darkened 1/64": lambda image: darkened(image, 1 / 64),
    "tunnel": tunnel,
    "garage": garage,
    "glare": glare,
}


def to_pixels(light: NDArray[np.float64]) -> Image:
    return np.round(255 * np.clip(light, 0, 1) ** (1 / GAMMA)).astype(np.uint8)


def tile(image: Image, version: str, light: CameraLighting) -> Image:
    """A small picture with the verdict written on it."""
    small = np.asarray(cv2.resize(image, (240, 135), interpolation=cv2.INTER_AREA), np.uint8)
    lines = (
        version,
        f"{light.condition} D {light.darkness:.2f} c {light.confidence:.2f}",
        " ".join(light.reasons)[:32],
    )
    for number, line in enumerate(lines):
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 0), 1)):
            cv2.putText(small, line, (4, 14 + 15 * number), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thickness)
    return small


def write(path: Path, rows: Sequence[tuple[str, str, CameraLighting]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "version", "condition", "darkness", "lambda", "confidence", "reliability", "reasons"))
        for name, version, light in rows:
            numbers = (light.darkness, light.guidance, light.confidence, light.reliability)
            said = [f"{number:.3f}" for number in numbers]
            writer.writerow((name, version, light.condition, *said, "; ".join(light.reasons)))


if __name__ == "__main__":
    raise SystemExit(run_program(main))
