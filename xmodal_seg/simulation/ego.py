# SPDX-License-Identifier: Apache-2.0
"""The drive of the vehicle that carries the sensors: where it is at any moment, without stepping through time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.places import Place
from xmodal_seg.simulation.street import Street

KNOT_S = 5.0
STOP_SHARE = 0.08


class EgoMotion:
    """Speed is piecewise linear between knots of 5 s, with a stop now and then; the lane is kept with a little sway."""

    def __init__(self, place: Place, seed: int, duration: float, start: float = 0.0) -> None:
        dice = Dice(seed, place.model_seed, "ego")
        num_knots = int(duration // KNOT_S) + 3
        speeds = [0.0 if dice.chance(STOP_SHARE) else dice.between(place.speed) for _ in range(num_knots)]
        self._speeds = np.array([dice.between(place.speed), *speeds[1:]])
        steps = (self._speeds[1:] + self._speeds[:-1]) / 2 * KNOT_S
        self._s = start + np.concatenate([[0.0], np.cumsum(steps)])
        forward = -1 if place.traffic_side == "right" else 1
        self.d = forward * (place.lanes - 0.5) * place.lane_width
        self._sway = [dice.uniform(0, 6.28) for _ in range(4)]

    @property
    def length(self) -> float:
        """m driven when the last knot is reached."""
        return float(self._s[-1])

    def s(self, t: ArrayLike) -> NDArray[np.float64]:
        """m along the street at t s; also a little before 0, where the first speed is carried on."""
        t = np.asarray(t, float)
        knot = np.clip((t // KNOT_S).astype(int), 0, len(self._speeds) - 2)
        rest = t - knot * KNOT_S
        gain = (self._speeds[knot + 1] - self._speeds[knot]) / KNOT_S
        return self._s[knot] + self._speeds[knot] * rest + gain * rest * np.maximum(rest, 0) / 2

    def poses(self, street: Street, t: ArrayLike) -> NDArray[np.float64]:
        """(T, 4, 4) world_T_vehicle at each moment: road heading and slope, sway in the lane, a soft suspension."""
        t = np.atleast_1d(np.asarray(t, float))
        s = self.s(t)
        a, b, c, d = self._sway
        sway = 0.18 * np.sin(s / 19.0 + a) + 0.10 * np.sin(s / 7.3 + b)
        yaw = street.heading(s) + 0.18 / 19.0 * np.cos(s / 19.0 + a) + 0.10 / 7.3 * np.cos(s / 7.3 + b)
        pitch = -street.slope(s) + 0.005 * np.sin(s / 2.3 + c)
        roll = 0.006 * np.sin(s / 3.1 + d)
        poses = np.zeros((len(t), 4, 4))
        poses[:, :3, :3] = _rotations(yaw, pitch, roll)
        poses[:, :3, 3] = street.point(s, self.d + sway)
        poses[:, 3, 3] = 1.0
        return poses


def _rotations(yaw: NDArray[np.float64], pitch: NDArray[np.float64], roll: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, 3, 3) Rz(yaw) Ry(pitch) Rx(roll)."""
    cz, sz, cy, sy, cx, sx = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return np.moveaxis(np.array(rows), 2, 0)
