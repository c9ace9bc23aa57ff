# SPDX-License-Identifier: Apache-2.0
"""What the lighting estimate of one image costs on one core: CPU time in ms, median and 95th percentile. `estimate` is
the whole `LightingEstimator.update` of a decoded picture; `decode` is the JPEG in full, `decode small` at a quarter.
Goal: at most 3 ms for the estimate of a 1600x900 picture.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import numpy as np
from light_pictures import day_picture

from xmodal_seg.lighting import LightingEstimator
from xmodal_seg.lighting_features import image_facts
from xmodal_seg.messages import decode_image, decode_small_image

SIZES = ((900, 1600), (375, 1242), (480, 640))
REPEATS = 200


class Jpeg:
    """A CompressedImage without ROS."""

    def __init__(self, image: np.ndarray) -> None:
        self.format = "rgb8; jpeg compressed bgr8"
        self.data = cv2.imencode(".jpg", image[..., ::-1])[1].ravel()


def run(*, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """One row for each image size."""
    cv2.setNumThreads(1)
    return [measure(size, repeats) for size in SIZES]


def measure(size: tuple[int, int], repeats: int) -> dict[str, Any]:
    images = [day_picture(seed, size=size) for seed in range(4)]
    jpegs = [Jpeg(image) for image in images]
    small = [decode_small_image(jpeg) for jpeg in jpegs]
    estimator, small_estimator = LightingEstimator(), LightingEstimator()
    steps: dict[str, Callable[[int], object]] = {
        "features": lambda i: image_facts(images[i % 4]),
        "estimate": lambda i: estimator.update("front", images[i % 4], i * 10**8),
        "decode": lambda i: decode_image(jpegs[i % 4]),
        "decode small": lambda i: decode_small_image(jpegs[i % 4]),
        "estimate of small": lambda i: small_estimator.update("front", small[i % 4], i * 10**8),
    }
    row: dict[str, Any] = {"image": f"{size[1]}x{size[0]}"}
    for name, step in steps.items():
        times_ms = timed(step, repeats)
        row[name] = float(np.median(times_ms))
        if name == "estimate":
            row["estimate p95"] = float(np.percentile(times_ms, 95))
    return row


def timed(step: Callable[[int], object], repeats: int) -> list[float]:
    """CPU time of each call in ms, without the first five."""
    times_ms = []
    for number in range(repeats + 5):
        start_s = time.process_time()
        step(number)
        times_ms.append((time.process_time() - start_s) * 1e3)
    return times_ms[5:]


if __name__ == "__main__":
    for found in run():
        print(found)
