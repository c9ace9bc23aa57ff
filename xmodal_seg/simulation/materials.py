# SPDX-License-Identifier: Apache-2.0
"""Surface kinds: what they send back to a LiDAR; how they look is in `textures.py`."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Material(IntEnum):
    PAINT = 0  # plain matt colour
    ASPHALT = 1
    MARKING = 2  # retro-reflecting paint on the road
    PAVING = 3  # slabs
    CONCRETE = 4
    GRASS = 5
    SOIL = 6
    FACADE = 7  # wall with windows, by style
    BRICK = 8
    ROOF = 9
    GLASS = 10
    CAR_PAINT = 11
    RUBBER = 12
    METAL = 13
    LEAVES = 14
    BARK = 15
    SIGN = 16  # retro-reflecting sheet
    STREET_LAMP = 17
    HEAD_LAMP = 18
    TAIL_LAMP = 19
    SIGNAL_LAMP = 20
    CLOTH = 21
    SHADE = 22  # the dark ground under a vehicle
    LIT_SIGN = 23  # shop signs that glow at night


NUM_MATERIALS = len(Material)

# Diffuse reflectance near 900 nm (where leaves and cloth are bright) and the share of pulses that never come back
# because the surface is a mirror to them.
_NEAR_INFRARED: dict[Material, tuple[float, float]] = {
    Material.PAINT: (0.40, 0.02),
    Material.ASPHALT: (0.14, 0.02),
    Material.MARKING: (0.75, 0.0),
    Material.PAVING: (0.32, 0.01),
    Material.CONCRETE: (0.36, 0.01),
    Material.GRASS: (0.45, 0.01),
    Material.SOIL: (0.30, 0.01),
    Material.FACADE: (0.42, 0.01),
    Material.BRICK: (0.38, 0.01),
    Material.ROOF: (0.30, 0.02),
    Material.GLASS: (0.10, 0.75),
    Material.CAR_PAINT: (0.30, 0.12),
    Material.RUBBER: (0.06, 0.05),
    Material.METAL: (0.45, 0.06),
    Material.LEAVES: (0.50, 0.03),
    Material.BARK: (0.35, 0.01),
    Material.SIGN: (1.00, 0.0),
    Material.STREET_LAMP: (0.30, 0.30),
    Material.HEAD_LAMP: (0.60, 0.20),
    Material.TAIL_LAMP: (0.80, 0.05),
    Material.SIGNAL_LAMP: (0.30, 0.10),
    Material.CLOTH: (0.50, 0.01),
    Material.SHADE: (0.14, 0.02),
    Material.LIT_SIGN: (0.40, 0.05),
}


def reflectances() -> NDArray[np.float32]:
    """(NUM_MATERIALS,) diffuse reflectance for the LiDAR."""
    return np.array([_NEAR_INFRARED[material][0] for material in Material], np.float32)


def mirror_losses() -> NDArray[np.float32]:
    """(NUM_MATERIALS,) share of pulses lost to mirror reflection."""
    return np.array([_NEAR_INFRARED[material][1] for material in Material], np.float32)
