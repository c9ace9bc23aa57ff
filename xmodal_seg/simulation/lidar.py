# SPDX-License-Identifier: Apache-2.0
"""LiDAR: rays fired one after the other while the car moves, and what comes back of them.

The stamp of a sweep is the moment at which the unit looks straight ahead (half of the turn lies before it). Every
column is fired from the pose the car has at its own time. Points are given in the LiDAR frame at the stamp, so the ego
motion is taken out, while things that move by themselves appear where they were when they were hit: rays meet them
where they are at the stamp, and the hit is moved on by their velocity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import facades, materials, noise
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.meshes import turned
from xmodal_seg.simulation.raw_classes import RawClass
from xmodal_seg.simulation.rigs import LidarUnit
from xmodal_seg.simulation.scene import Hits, Scene
from xmodal_seg.simulation.weather import Weather

JUST_ENOUGH = 0.1  # energy that is detected every second time: a tenth of white at twice the unit's `reach`
NEAREST_CLUTTER_M = 0.8
PANE_REFLECTANCE, PANE_MIRROR = 0.12, 0.7  # of window glass, and the share of pulses that it throws elsewhere
WET_LOSS = 0.55  # of a wet surface's reflectance
WET_MIRROR = 0.6  # share of pulses that wet ground throws forward at a grazing angle


@dataclass(frozen=True, kw_only=True)
class Returns:
    """What a unit saw in one sweep; N returns in firing order."""

    points: NDArray[np.float32]  # (N, 3) m in the frame of the points at the stamp
    intensity: NDArray[np.float32]  # (N,) in [0, 1]
    raw_class: NDArray[np.uint8]  # (N,) RawClass; NOTHING for rain and fog
    instance: NDArray[np.int32]  # (N,)
    ring: NDArray[np.uint8]  # (N,) beam, 0 the lowest
    offset_s: NDArray[np.float32]  # (N,) firing time after the stamp


@dataclass(frozen=True, kw_only=True)
class Firing:
    """The rays of one sweep in the unit's own axes."""

    directions: NDArray[np.float32]  # (C, E, 3) by column and beam
    offset_s: NDArray[np.float64]  # (C,) after the stamp

    @property
    def num_beams(self) -> int:
        return self.directions.shape[1]


def firing(unit: LidarUnit) -> Firing:
    """All rays of a turn (clockwise seen from above, backwards to backwards) that lie in the unit's sector."""
    turn = (np.arange(unit.num_columns) + 0.5) / unit.num_columns - 0.5
    azimuth = -360.0 * turn
    low, high = unit.sector
    kept = (azimuth >= low) & (azimuth <= high)
    azimuth, elevation = np.radians(azimuth[kept])[:, None], np.radians(unit.elevations)[None]
    flat = np.cos(elevation)
    directions = [
        flat * np.cos(azimuth),
        flat * np.sin(azimuth),
        np.broadcast_to(np.sin(elevation), (kept.sum(), flat.size)),
    ]
    return Firing(directions=np.stack(directions, axis=-1).astype(np.float32), offset_s=turn[kept] / unit.rate)


def sweep(
    unit: LidarUnit,
    rays: Firing,
    *,
    poses: NDArray[np.float64],
    frame: NDArray[np.float64],
    scene: Scene,
    moving: NDArray[np.int32],
    velocities: NDArray[np.float32],
    weather: Weather,
    facade_styles: NDArray[np.float32],
    draw: np.random.Generator,
) -> Returns:
    """Fire `rays` from `poses` (C, 4, 4: world_T_unit of each column) into `scene` and keep what comes back.

    `frame` is world_T_frame (4, 4) of the frame the points are wanted in; `velocities` (M, 3) m/s belong to the
    instances `moving` (M,), which ascend.
    """
    C, E = rays.directions.shape[:2]
    nominal = np.einsum("cij,cej->cei", poses[:, :3, :3].astype(np.float32), rays.directions).reshape(-1, 3)
    origins = np.repeat(poses[:, :3, 3].astype(np.float32), E, axis=0)
    spread = unit.divergence * 1e-3 / 4  # a beam's width is four standard deviations
    directions = nominal + np.float32(spread) * noise.gaussian(3 * C * E, draw).reshape(-1, 3)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ray, distance, intensity, raw_class, instance = _returns(
        unit, scene, origins, directions, weather, facade_styles, draw
    )
    distance = distance + np.float32(unit.range_noise) * noise.gaussian(len(distance), draw)
    offset = rays.offset_s[ray // E].astype(np.float32)
    world = origins[ray] + distance[:, None] * nominal[ray]
    world += offset[:, None] * _velocity_of(instance, moving, velocities)
    inverse = np.linalg.inv(frame).astype(np.float32)
    return Returns(
        points=(turned(world, inverse[:3, :3]) + inverse[:3, 3]).astype(np.float32),
        intensity=intensity,
        raw_class=raw_class,
        instance=instance,
        ring=(ray % E).astype(np.uint8),
        offset_s=offset,
    )


def _velocity_of(
    instance: NDArray[np.int32], moving: NDArray[np.int32], velocities: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(N, 3) velocity of each hit thing, 0 for what stands still."""
    if not len(moving):
        return np.zeros((len(instance), 3), np.float32)
    row = np.minimum(np.searchsorted(moving, instance), len(moving) - 1)
    return velocities[row] * (moving[row] == instance)[:, None]


def _returns(
    unit: LidarUnit,
    scene: Scene,
    origins: NDArray[np.float32],
    directions: NDArray[np.float32],
    weather: Weather,
    facade_styles: NDArray[np.float32],
    draw: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8], NDArray[np.int32]]:
    """(ray, range, intensity, class, instance) of what comes back."""
    hits = scene.cast(origins, directions)
    energy, reflectance, mirror = _energy(unit, scene, hits, directions, weather, facade_styles)
    chance = energy**2 / (energy**2 + JUST_ENOUGH**2) * (1 - unit.dropout) * (1 - mirror)
    seen = (draw.random(len(directions), np.float32) < chance) & (hits.distance > unit.min_range)
    seen &= hits.distance < unit.max_range
    distance = hits.distance.copy()
    raw_class, instance = np.zeros(len(directions), np.uint8), np.zeros(len(directions), np.int32)
    met = np.flatnonzero(seen)
    raw_class[met] = scene.look_up("raw_class", hits.face[met])
    instance[met] = scene.look_up("instance", hits.face[met])
    intensity = np.clip(0.9 * reflectance * np.exp(-2 * weather.lidar_extinction() * np.minimum(distance, 200.0)), 0, 1)
    drops = _clutter(hits, weather, draw)
    near = drops < np.minimum(hits.distance, unit.max_range)
    distance[near], intensity[near] = drops[near], 0.02
    raw_class[near], instance[near] = RawClass.NOTHING, 0
    kept = np.flatnonzero(seen | near)
    return kept, distance[kept], intensity[kept].astype(np.float32), raw_class[kept], instance[kept]


def _clutter(hits: Hits, weather: Weather, draw: np.random.Generator) -> NDArray[np.float32]:
    """Range of the drop that each pulse comes back from, infinite for most."""
    share = weather.clutter_share()
    ranges = np.full(len(hits.face), np.inf, np.float32)
    if share > 0:
        struck = np.flatnonzero(draw.random(len(ranges), np.float32) < share)
        far = draw.standard_gamma(2.0, len(struck), dtype=np.float32) * np.float32(weather.clutter_range() / 2)
        ranges[struck] = NEAREST_CLUTTER_M + far
    return ranges


def _energy(
    unit: LidarUnit,
    scene: Scene,
    hits: Hits,
    directions: NDArray[np.float32],
    weather: Weather,
    facade_styles: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """(energy, reflectance seen, share lost to mirrors) of each ray; energy 0.4 is a tenth of white at `reach`."""
    N = len(hits.face)
    energy, reflectance, mirror = (np.zeros(N, np.float32) for _ in range(3))
    met = np.flatnonzero(hits.met)
    face = hits.face[met]
    material = scene.look_up("material", face)
    corners = scene.look_up("corners", face)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    cosine = np.abs(np.einsum("ni,ni->n", normal, directions[met]))
    luma = scene.look_up("colour", face) @ np.array([0.3, 0.5, 0.2], np.float32)
    base = materials.reflectances()[material] * (0.5 + np.minimum(luma, 1.0))
    retroreflects = np.isin(material, (Material.SIGN, Material.MARKING))  # whatever its colour
    base = np.where(retroreflects, materials.reflectances()[material], base)
    lost = materials.mirror_losses()[material]
    pane = facades.glass(scene, hits, met, material, facade_styles)
    base[pane], lost[pane] = PANE_REFLECTANCE, PANE_MIRROR
    ground = np.isin(material, (Material.ASPHALT, Material.MARKING, Material.PAVING, Material.SHADE))
    base = np.where(ground, base * (1 - WET_LOSS * weather.wet), base)
    lost = np.where(ground, np.maximum(lost, WET_MIRROR * weather.wet * (1 - cosine) ** 4), lost)
    distance = np.maximum(hits.distance[met], 1.0)
    air = np.exp(-2 * weather.lidar_extinction() * np.minimum(distance, 500.0))
    reflectance[met] = base * np.sqrt(cosine)
    energy[met] = 4 * base * cosine**0.7 * (unit.reach / distance) ** 2 * air
    mirror[met] = lost
    return energy, reflectance, mirror


def joined(parts: list[Returns]) -> Returns:
    """The returns of several units, one after the other."""
    return Returns(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})
