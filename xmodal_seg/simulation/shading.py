# SPDX-License-Identifier: Apache-2.0
"""Light on surfaces: sun with cast shadows, sky, street lamps, head-lamps, reflections, glowing things, haze.

One shadow ray is cast for a pixel: towards the sun while it shines, else towards the lamp that gives it most light.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import facades, noise, sky
from xmodal_seg.simulation.camera import Surfaces
from xmodal_seg.simulation.light import Light
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.scene import Scene
from xmodal_seg.simulation.textures import COOL_WINDOW, WARM_WINDOW, WINDOW_GLOW
from xmodal_seg.simulation.weather import Weather

SKY_LEVEL, SKY_UPWARD = 0.60, 0.40  # share of the sky's light on a wall, and what an upward surface has beyond it
GROUND_BOUNCE = 0.10  # share of sky and sun that the ground throws up
LEAF_SPREAD = 0.25  # share of sunlight that leaves scatter whichever way they look
SHADOW_LIFT_M = 0.03
SHADOW_REACH_M = 120.0
LAMP_REACH_M = 26.0
LAMP_POWER = 1.3  # on a surface 1 m below; about 0.03 on the road
SODIUM = np.array([1.0, 0.62, 0.25], np.float32)
LED = np.array([0.95, 1.0, 1.05], np.float32)
HEAD_POWER = 1.8
HEAD_COLOUR = np.array([1.0, 0.95, 0.85], np.float32)
HEAD_REACH_M = 60.0
HEAD_SEEN_M = 70.0  # other vehicles further away light nothing
BEAM_EDGE_COSINE = 0.72  # of the angle from its axis at which a low beam ends
BEAM_CUT_OFF, BEAM_CUT_OFF_WIDTH = 0.035, 0.05  # rise over distance at which it is dark above, and how softly
BEAM_STRAY = 0.03  # share that goes above the cut-off
BEAM_ROUGHNESS = 0.2  # share of it that does not depend on the angle at which it falls on a surface
MAX_HEAD_LAMPS = 6
GLOSS = {Material.GLASS: 0.08, Material.CAR_PAINT: 0.045, Material.METAL: 0.06}
WET_GROUND = (Material.ASPHALT, Material.MARKING, Material.PAVING, Material.CONCRETE, Material.SHADE)
WET_DARKENING = 0.45
GLOW: dict[Material, float] = {
    Material.STREET_LAMP: 0.9,
    Material.HEAD_LAMP: 1.6,
    Material.TAIL_LAMP: 0.10,
    Material.SIGNAL_LAMP: 0.12,
    Material.LIT_SIGN: 0.035,
}


@dataclass(frozen=True, kw_only=True)
class Lamps:
    """The lamps near a camera, in the coordinates of the scene."""

    street: NDArray[np.float32]  # (L, 3)
    warmth: float  # 0 white, 1 sodium
    heads: NDArray[np.float32]  # (V, 3) of other vehicles
    headings: NDArray[np.float32]  # (V, 3)
    own: NDArray[np.float32]  # (3,) between the own head-lamps
    own_heading: NDArray[np.float32]  # (3,)


def radiance(surfaces: Surfaces, scene: Scene, light: Light, weather: Weather, lamps: Lamps) -> NDArray[np.float32]:
    """(H * W, 3) linear light that reaches the camera."""
    light = light.veiled(weather.cover)
    image = sky.radiance(surfaces.directions, light)
    albedo = _wetted(surfaces, weather)
    leaving = albedo * _irradiance(surfaces, scene, light, lamps)
    leaving = _reflecting(leaving, surfaces, light, weather)
    leaving += _emitted(surfaces, light)
    image[surfaces.pixel] = leaving
    return _hazy(image, surfaces, light, weather, lamps)


def _wetted(surfaces: Surfaces, weather: Weather) -> NDArray[np.float32]:
    if weather.wet == 0:
        return surfaces.albedo
    albedo = surfaces.albedo.copy()
    for material in WET_GROUND:
        if material in surfaces.by_material:
            albedo[surfaces.by_material[material]] *= np.float32(1 - WET_DARKENING * weather.wet)
    return albedo


def _irradiance(surfaces: Surfaces, scene: Scene, light: Light, lamps: Lamps) -> NDArray[np.float32]:
    """(M, 3) light that falls on each surface."""
    up = surfaces.normal[:, 2:3]
    sky_light = light.sky_light()
    total = sky_light * (np.float32(SKY_LEVEL) + np.float32(SKY_UPWARD) * up)
    total += (np.float32(GROUND_BOUNCE) * (sky_light + light.sun_light() * max(0.0, light.sun_direction()[2]))) * (
        np.float32(0.5) - np.float32(0.5) * up
    )
    sun = light.sun_light()
    if sun.max() > 1e-3:
        total += _sun(surfaces, scene, light)[:, None] * sun
    if light.lamp_level > 0 and len(lamps.street):
        tint = lamps.warmth * SODIUM + (1 - lamps.warmth) * LED
        shadows = sun.max() <= 1e-3
        total += (light.lamp_level * _street_lamps(surfaces, scene, lamps.street, shadows=shadows))[:, None] * tint
    if light.head_lamp_level > 0:
        total += (light.head_lamp_level * _head_lamps(surfaces, lamps))[:, None] * HEAD_COLOUR
    return total


def _sun(surfaces: Surfaces, scene: Scene, light: Light) -> NDArray[np.float32]:
    """(M,) cosine to the sun, 0 in shadow; leaves let some light through."""
    towards = light.sun_direction()
    cosine = surfaces.normal @ towards
    leaves = surfaces.by_material.get(Material.LEAVES)
    if leaves is not None:
        cosine[leaves] = LEAF_SPREAD + (1 - LEAF_SPREAD) * cosine[leaves]
    lit = np.flatnonzero(cosine > 0)
    origins = surfaces.point[lit] + np.float32(SHADOW_LIFT_M) * surfaces.normal[lit]
    blocked = scene.blocked(origins, np.broadcast_to(towards, origins.shape), SHADOW_REACH_M)
    result = np.zeros_like(cosine)
    result[lit] = np.where(blocked, 0, cosine[lit])
    return result


def _street_lamps(
    surfaces: Surfaces, scene: Scene, heads: NDArray[np.float32], *, shadows: bool
) -> NDArray[np.float32]:
    """(M,) light of all street lamps; the strongest of each pixel is dropped where it is blocked."""
    total = np.zeros(len(surfaces.pixel), np.float32)
    best, strongest = np.full(len(total), -1, np.int32), np.zeros(len(total), np.float32)
    for i, head in enumerate(heads):
        near = _around(surfaces.point, head, LAMP_REACH_M)
        if not len(near):
            continue
        away = head - surfaces.point[near]
        square = np.einsum("ni,ni->n", away, away)
        inverse = 1 / np.sqrt(square + np.float32(0.05))
        cosine = np.maximum(np.einsum("ni,ni->n", surfaces.normal[near], away) * inverse, 0)
        down = np.clip(away[:, 2] * inverse + np.float32(0.12), 0, 1)
        window = np.clip(1 - square / LAMP_REACH_M**2, 0, 1)
        value = LAMP_POWER * (cosine * np.float32(0.9) + np.float32(0.1)) * down * window / (square + 1)
        total[near] += value
        stronger = value > strongest[near]
        best[near[stronger]], strongest[near[stronger]] = i, value[stronger]
    if shadows:
        _drop_blocked(total, best, strongest, surfaces, scene, heads)
    return total


def _around(points: NDArray[np.float32], middle: NDArray[np.float32], reach: float) -> NDArray[np.int64]:
    """Rows of points in the square of half width `reach` m around `middle`."""
    return np.flatnonzero((np.abs(points[:, 0] - middle[0]) < reach) & (np.abs(points[:, 1] - middle[1]) < reach))


def _drop_blocked(
    total: NDArray[np.float32],
    best: NDArray[np.int32],
    strongest: NDArray[np.float32],
    surfaces: Surfaces,
    scene: Scene,
    heads: NDArray[np.float32],
) -> None:
    lit = np.flatnonzero(strongest > 2e-4)
    origins = surfaces.point[lit] + np.float32(SHADOW_LIFT_M) * surfaces.normal[lit]
    away = heads[best[lit]] - origins - np.array([0, 0, 0.35], np.float32)  # from below the lamp's own housing
    reach = np.sqrt(np.einsum("ni,ni->n", away, away))
    blocked = scene.blocked(origins, away / np.maximum(reach, 1e-3)[:, None], reach - np.float32(0.1))
    total[lit[blocked]] -= strongest[lit[blocked]]


def _head_lamps(surfaces: Surfaces, lamps: Lamps) -> NDArray[np.float32]:
    """(M,) light of the own low beam and of the nearest other vehicles'."""
    total = _beam(surfaces, lamps.own, lamps.own_heading)
    distance = np.linalg.norm(lamps.heads - surfaces.eye, axis=1)
    for i in np.argsort(distance, kind="stable")[:MAX_HEAD_LAMPS]:
        if distance[i] < HEAD_SEEN_M:
            total += _beam(surfaces, lamps.heads[i], lamps.headings[i])
    return total


def _beam(surfaces: Surfaces, lamp: NDArray[np.float32], heading: NDArray[np.float32]) -> NDArray[np.float32]:
    """A low beam: wide to the sides, cut off above, brightest ahead."""
    total = np.zeros(len(surfaces.pixel), np.float32)
    near = _around(surfaces.point, lamp, HEAD_REACH_M)
    away = surfaces.point[near] - lamp
    square = np.einsum("ni,ni->n", away, away) + np.float32(1.0)
    inverse = 1 / np.sqrt(square)
    ahead = (away @ heading) * inverse
    rise = away[:, 2] * inverse - heading[2] * ahead
    spread = np.clip((ahead - np.float32(BEAM_EDGE_COSINE)) / np.float32(1 - BEAM_EDGE_COSINE), 0, 1)
    below = np.clip((np.float32(BEAM_CUT_OFF) - rise) / np.float32(BEAM_CUT_OFF_WIDTH), BEAM_STRAY, 1)
    cosine = np.abs(np.einsum("ni,ni->n", surfaces.normal[near], away)) * inverse
    scattered = cosine * np.float32(1 - BEAM_ROUGHNESS) + np.float32(BEAM_ROUGHNESS)
    total[near] = HEAD_POWER * spread**2 * below * scattered / square
    return total


def _reflecting(
    leaving: NDArray[np.float32], surfaces: Surfaces, light: Light, weather: Weather
) -> NDArray[np.float32]:
    """Mirror light of glass, paint and wet ground: Schlick's Fresnel term times the sky in the mirror direction."""
    rows, base = _glossy(surfaces, weather)
    if not len(rows):
        return leaving
    seen, normal = surfaces.directions[surfaces.pixel[rows]], surfaces.normal[rows]
    cosine = -np.einsum("ni,ni->n", seen, normal)
    mirrored = seen + 2 * cosine[:, None] * normal
    fresnel = base + (1 - base) * np.clip(1 - cosine, 0, 1) ** 5
    ground = np.flatnonzero(mirrored[:, 2] < 0)
    above = mirrored.copy()
    above[ground, 2] *= -1
    colour = sky.radiance(above, light)
    colour[ground] *= np.float32(0.25)
    # Near the horizon a street mirrors houses and trees rather than sky.
    colour *= np.float32(0.4) + np.float32(0.6) * np.clip(np.abs(mirrored[:, 2:]) * np.float32(2.5), 0, 1)
    leaving[rows] += np.minimum(fresnel[:, None] * colour, 4.0)
    return leaving


def _glossy(surfaces: Surfaces, weather: Weather) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows that mirror, and the share of light they mirror head-on."""
    rows, base = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for material, share in GLOSS.items():
        found = surfaces.by_material.get(material, rows[0])
        rows.append(found)
        base.append(np.full(len(found), share, np.float32))
    wall = surfaces.by_material.get(Material.FACADE, rows[0])
    panes = wall[_panes(surfaces, wall).glass]
    rows.append(panes)
    base.append(np.full(len(panes), GLOSS[Material.GLASS], np.float32))
    if weather.wet > 0:
        for material in WET_GROUND:
            found = surfaces.by_material.get(material, rows[0])
            puddle = np.clip(noise.at(surfaces.tex[found, 0], surfaces.tex[found, 1], 4.0) + 0.6, 0, 1)
            rows.append(found)
            base.append((0.02 + 0.05 * puddle).astype(np.float32) * np.float32(weather.wet))
    return np.concatenate(rows), np.concatenate(base)


def _panes(surfaces: Surfaces, wall: NDArray[np.int64]) -> facades.Panes:
    return facades.panes(surfaces.tex[wall], surfaces.style[wall], surfaces.instance[wall], surfaces.facade_styles)


def _emitted(surfaces: Surfaces, light: Light) -> NDArray[np.float32]:
    """(M, 3) light of lamps, signals, shop signs and lit windows."""
    total = np.zeros_like(surfaces.albedo)
    for material, power in GLOW.items():
        rows = surfaces.by_material.get(material)
        if rows is not None:
            total[rows] = power * _switched(material, surfaces.style[rows], light)[:, None] * surfaces.albedo[rows]
    wall = surfaces.by_material.get(Material.FACADE)
    if wall is not None and light.darkness > 0:
        found = _panes(surfaces, wall)
        mixed = (found.window * np.float32(97.0)) % np.float32(1.0)
        lit = found.glass & (mixed < light.windows)
        tint = np.where((found.window[lit] * 31 % 1 < 0.7)[:, None], WARM_WINDOW, COOL_WINDOW)
        strength = WINDOW_GLOW * light.darkness * (0.35 + 0.65 * (found.window[lit] * 53 % 1))
        total[wall[lit]] = strength[:, None].astype(np.float32) * tint
    return total


def _switched(material: Material, style: NDArray[np.int32], light: Light) -> NDArray[np.float32]:
    """How far each lamp is on; style 1 is a driving vehicle, 2 a braking one, 0 a parked one."""
    if material is Material.STREET_LAMP:
        return np.full(len(style), light.lamp_level, np.float32)
    if material is Material.LIT_SIGN:
        return np.full(len(style), light.darkness, np.float32)
    if material is Material.SIGNAL_LAMP:
        return np.full(len(style), 1.0 + 4.0 * (1 - light.darkness), np.float32)
    driving = (style > 0) * np.float32(light.head_lamp_level)
    if material is Material.TAIL_LAMP:
        return (driving + (style == 2) * np.float32(3.0 + 6.0 * (1 - light.darkness))).astype(np.float32)
    return driving.astype(np.float32)


def _hazy(
    image: NDArray[np.float32], surfaces: Surfaces, light: Light, weather: Weather, lamps: Lamps
) -> NDArray[np.float32]:
    """Air between: what is far takes the colour of the air; in fog the sky does as well."""
    extinction = weather.haze()
    clear = np.exp(-np.float32(extinction) * surfaces.distance)[:, None]
    air = _air_light(light, lamps, extinction)
    image[surfaces.pixel] = image[surfaces.pixel] * clear + (1 - clear) * air
    sky_rows = np.ones(len(image), bool)
    sky_rows[surfaces.pixel] = False
    up = np.clip(surfaces.directions[sky_rows, 2:3], 0.02, 1)
    through = np.exp(-np.float32(extinction * 120.0) / up) if weather.visibility < 2000 else np.exp(-0.03 / up)
    image[sky_rows] = image[sky_rows] * through + (1 - through) * air
    return image


def _air_light(light: Light, lamps: Lamps, extinction: float) -> NDArray[np.float32]:
    """(3,) colour of far air: sky light, and at night what the lamps put into the fog."""
    tint = lamps.warmth * SODIUM + (1 - lamps.warmth) * LED
    day = light.sky_light() * np.float32(0.85) + np.float32(0.12) * light.sun_light()
    return day + np.float32(light.lamp_level * min(0.02, 0.25 * extinction)) * tint
