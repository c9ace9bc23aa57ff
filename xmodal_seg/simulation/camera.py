# SPDX-License-Identifier: Apache-2.0
"""What a camera's rays meet: geometry, classes and reflectance of every pixel, before any light falls on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation import textures
from xmodal_seg.simulation.facades import interpolated
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.meshes import turned
from xmodal_seg.simulation.rigs import CameraUnit
from xmodal_seg.simulation.scene import Scene


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """The M pixels of an image (height, width) that show something, in row-major order, and the rays of all pixels."""

    image_size: tuple[int, int]
    directions: NDArray[np.float32]  # (H * W, 3) unit, world
    eye: NDArray[np.float32]  # (3,) m
    forward: NDArray[np.float32]  # (3,) unit, optical axis
    pixel: NDArray[np.int64]  # (M,) flat pixel index
    distance: NDArray[np.float32]  # (M,) m along the ray
    point: NDArray[np.float32]  # (M, 3) m
    normal: NDArray[np.float32]  # (M, 3) unit, towards the camera
    albedo: NDArray[np.float32]  # (M, 3) reflectance with texture
    tex: NDArray[np.float32]  # (M, 2)
    raw_class: NDArray[np.uint8]  # (M,)
    instance: NDArray[np.int32]  # (M,)
    style: NDArray[np.int32]  # (M,)
    by_material: dict[Material, NDArray[np.int64]]  # rows of each material
    facade_styles: NDArray[np.float32]

    def image(self, values: NDArray[np.generic], *, empty: float = 0) -> NDArray[np.generic]:
        """(H, W, ...) of values (M, ...), `empty` where the sky is."""
        full = np.full((self.directions.shape[0], *values.shape[1:]), empty, values.dtype)
        full[self.pixel] = values
        return full.reshape(*self.image_size, *values.shape[1:])

    def depth(self) -> NDArray[np.float32]:
        """(M,) m along the optical axis."""
        return self.distance * (self.directions[self.pixel] @ self.forward)


def pixel_rays(camera: CameraUnit) -> NDArray[np.float32]:
    """(H * W, 3) unit directions in optical axes through the pixel centres."""
    height, width = camera.image_size
    matrix = camera.matrix()
    x = (np.arange(width) - matrix[0, 2]) / matrix[0, 0]
    y = (np.arange(height) - matrix[1, 2]) / matrix[1, 1]
    rays = np.stack([*np.meshgrid(x, y), np.ones((height, width))], axis=-1).reshape(-1, 3)
    return (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)


def look(
    camera: CameraUnit,
    rays: NDArray[np.float32],
    world_T_camera: NDArray[np.float64],
    scene: Scene,
    *,
    facade_styles: NDArray[np.float32],
    contrast: float,
) -> Surfaces:
    """Cast `rays` (of `pixel_rays`) from a pose in the coordinates of the scene."""
    directions = turned(rays, world_T_camera[:3, :3])
    eye = world_T_camera[:3, 3].astype(np.float32)
    hits = scene.cast(np.broadcast_to(eye, directions.shape), directions)
    pixel = np.flatnonzero(hits.met)
    face, bary, distance = hits.face[pixel], hits.bary[pixel], hits.distance[pixel]
    seen = directions[pixel]
    point = eye + distance[:, None] * seen
    normal = _facing(interpolated(scene.look_up("normals", face), bary), seen)
    tex = interpolated(scene.look_up("tex", face), bary)
    by_material = textures.groups(scene.look_up("material", face))
    instance, style = scene.look_up("instance", face), scene.look_up("style", face)
    albedo = textures.textured(
        scene.look_up("colour", face),
        by_material,
        tex=tex,
        point=point,
        distance=distance,
        instance=instance,
        style=style,
        facade_styles=facade_styles,
        contrast=contrast,
        texel=1.0 / camera.focal,
    )
    return Surfaces(
        image_size=camera.image_size,
        directions=directions,
        eye=eye,
        forward=world_T_camera[:3, 2].astype(np.float32),
        pixel=pixel,
        distance=distance,
        point=point,
        normal=normal,
        albedo=albedo,
        tex=tex,
        raw_class=scene.look_up("raw_class", face),
        instance=instance,
        style=style,
        by_material=by_material,
        facade_styles=facade_styles,
    )


def _facing(normal: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit normals turned towards the camera."""
    normal /= np.maximum(np.sqrt(np.einsum("ni,ni->n", normal, normal)), np.float32(1e-6))[:, None]
    away = np.einsum("ni,ni->n", normal, seen) > 0
    normal[away] *= -1
    return normal
