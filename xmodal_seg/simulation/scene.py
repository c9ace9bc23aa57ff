# SPDX-License-Identifier: Apache-2.0
"""Ray casting: one tree for what stands still, one for what moves, the nearer hit wins.

Building a tree costs more than casting a frame through it, so the large one lives for many frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation.meshes import Mesh

FAR_M = 1e6
Reach = float | NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What N rays met. `face` counts through the still mesh first, then through the moving one; -1 is open sky."""

    face: NDArray[np.int32]  # (N,)
    distance: NDArray[np.float32]  # (N,) m along a unit direction; FAR_M where nothing was met
    bary: NDArray[np.float32]  # (N, 2) weights of the second and third corner

    @property
    def met(self) -> NDArray[np.bool_]:
        return self.face >= 0


class RayTree:
    """An embree tree over one mesh. Raises ValueError where the extra `sim` is not installed."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._scene: Any = None
        if mesh.num_faces:
            self._scene = _build(mesh)

    def cast(self, origins: NDArray[np.float32], directions: NDArray[np.float32]) -> Hits:
        N = len(directions)
        if self._scene is None or N == 0:
            return Hits(
                face=np.full(N, -1, np.int32),
                distance=np.full(N, FAR_M, np.float32),
                bary=np.zeros((N, 2), np.float32),
            )
        result = self._scene.run(origins, directions, output=1)
        face = result["primID"]
        distance = np.where(face >= 0, result["tfar"], np.float32(FAR_M))
        return Hits(face=face, distance=distance, bary=np.stack([result["u"], result["v"]], axis=1))

    def blocked(self, origins: NDArray[np.float32], directions: NDArray[np.float32], reach: Reach) -> NDArray[np.bool_]:
        """(N,) something lies within `reach` m along the ray."""
        if self._scene is None or len(directions) == 0:
            return np.zeros(len(directions), bool)
        distances = np.full(len(directions), reach, np.float32)  # a number, or one for each ray
        return self._scene.run(origins, directions, dists=distances, query="OCCLUDED") == 0


class Scene:
    """The still and the moving part of the world at one moment."""

    def __init__(self, still: RayTree, moving: RayTree) -> None:
        self._still = still
        self._moving = moving

    def cast(self, origins: NDArray[np.float32], directions: NDArray[np.float32]) -> Hits:
        """What N rays meet first; origins and directions (N, 3) float32, directions of unit length."""
        origins, directions = _contiguous(origins), _contiguous(directions)
        still = self._still.cast(origins, directions)
        moving = self._moving.cast(origins, directions)
        nearer = np.flatnonzero(moving.distance < still.distance)
        still.face[nearer] = moving.face[nearer] + self._still.mesh.num_faces
        still.distance[nearer] = moving.distance[nearer]
        still.bary[nearer] = moving.bary[nearer]
        return still

    def blocked(self, origins: NDArray[np.float32], directions: NDArray[np.float32], reach: Reach) -> NDArray[np.bool_]:
        origins, directions = _contiguous(origins), _contiguous(directions)
        return self._still.blocked(origins, directions, reach) | self._moving.blocked(origins, directions, reach)

    def look_up(self, name: str, face: NDArray[np.int32]) -> NDArray[Any]:
        """The attribute `name` of Mesh at faces that were met (all >= 0)."""
        num_still = self._still.mesh.num_faces
        values = getattr(self._still.mesh, name)
        moving = np.flatnonzero(face >= num_still)
        if not len(moving):
            return values[face]
        if num_still == 0:
            return getattr(self._moving.mesh, name)[face]
        picked = values[np.minimum(face, num_still - 1)]
        picked[moving] = getattr(self._moving.mesh, name)[face[moving] - num_still]
        return picked


def _contiguous(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, np.float32)


def _build(mesh: Mesh) -> Any:
    try:
        from embreex import rtcore, rtcore_scene
        from embreex.mesh_construction import TriangleMesh
    except ImportError as error:
        raise ValueError("the simulated world needs the extra 'sim': pip install 'xmodal_seg[sim]'") from error
    scene = rtcore_scene.EmbreeScene(rtcore.EmbreeDevice(), robust=True)
    TriangleMesh(scene, np.ascontiguousarray(mesh.corners))
    return scene
