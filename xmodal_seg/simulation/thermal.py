# SPDX-License-Identifier: Apache-2.0
"""A picture as a thermal camera might show it: no physics, only an appearance far from every ordinary picture."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

BLUR_PX = 1.0  # thermal optics are soft


def thermal(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) RGB -> (H, W, 3) RGB: dark is warm, the bright sky is cold, in false colours from black to yellow."""
    warmth = 255 - cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    soft = cv2.GaussianBlur(warmth, (0, 0), BLUR_PX)
    coloured = cv2.applyColorMap(soft, cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(coloured[..., ::-1]).astype(np.uint8, copy=False)
