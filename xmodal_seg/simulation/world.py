# SPDX-License-Identifier: Apache-2.0
"""The still part of the world: blocks of street turned into triangles, and the stretch of them around a vehicle."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.simulation.buildings import building
from xmodal_seg.simulation.ground import Ground
from xmodal_seg.simulation.layout import Layout
from xmodal_seg.simulation.library import Library
from xmodal_seg.simulation.materials import Material
from xmodal_seg.simulation.meshes import Colour, Mesh, concatenate, quads
from xmodal_seg.simulation.places import Place
from xmodal_seg.simulation.plans import BLOCK_M, FIRST_BLOCK, BlockPlan, HousePlan, Placement
from xmodal_seg.simulation.raw_classes import RawClass
from xmodal_seg.simulation.scene import RayTree
from xmodal_seg.simulation.street import Street

INSTANCES_PER_BLOCK = 1024
SHADE_HEIGHT_M = 0.012
KEPT_BLOCKS = 24
FIRST_MOVING_INSTANCE = 1 << 24


@dataclass(frozen=True, kw_only=True)
class BuiltBlock:
    mesh: Mesh  # relative to `origin`
    origin: NDArray[np.float64]  # (3,) m in the world
    lamps: NDArray[np.float64]  # (L, 3) m in the world


@dataclass(frozen=True, kw_only=True)
class Window:
    """The blocks around a vehicle as one ray tree, in coordinates relative to `origin`."""

    tree: RayTree
    origin: NDArray[np.float64]  # (3,)
    lamps: NDArray[np.float32]  # (L, 3) relative to origin


class World:
    """One street of one place. The same (place, seed) is the same street, wherever on it one begins."""

    def __init__(self, place: Place, seed: int, length: float) -> None:
        self.place = place
        self.street = Street(place, seed, length)
        self.layout = Layout(place, seed, length)
        self.library = Library(place)
        self.ground = Ground(place, self.street, self.layout.road, seed)
        self._blocks: OrderedDict[int, BuiltBlock] = OrderedDict()

    def window(self, s: float, *, behind: int, ahead: int) -> Window:
        """The still world around s; it changes only every second block, so that trees are built rarely."""
        middle = window_index(s) * 2
        blocks = [self.block(index) for index in range(middle - behind, middle + ahead + 1)]
        origin = self.street.point(middle * BLOCK_M)
        mesh = concatenate([block.mesh.moved(block.origin - origin) for block in blocks])
        lamps = np.concatenate([block.lamps for block in blocks]) - origin
        return Window(tree=RayTree(mesh), origin=origin, lamps=lamps.astype(np.float32))

    def block(self, index: int) -> BuiltBlock:
        if index not in self._blocks:
            self._blocks[index] = self._build(self.layout.block(index))
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(index)
        return self._blocks[index]

    def _build(self, plan: BlockPlan) -> BuiltBlock:
        origin = self.street.point(plan.start)
        first = (plan.index - 2 * FIRST_BLOCK) * INSTANCES_PER_BLOCK
        parts = [self.ground.block(plan, origin)]
        for i, placement in enumerate(plan.placements):
            parts.append(self._place(placement, origin).tagged(instance=first + i + 1))
            parts.append(self._shade(placement, origin))
        for i, house in enumerate(plan.houses):
            parts.append(self._house(house, origin).tagged(instance=first + len(plan.placements) + i + 1))
        return BuiltBlock(mesh=concatenate(parts), origin=origin, lamps=self._lamps(plan))

    def _place(self, placement: Placement, origin: NDArray[np.float64]) -> Mesh:
        mesh = self._template(placement)
        if placement.colour is not None:
            mesh = mesh.painted(placement.colour)
        position = self.street.point(placement.s, placement.d, placement.h) - origin
        yaw = float(self.street.heading(placement.s)) + placement.yaw
        return mesh.placed(yaw=yaw, position=position, scale=placement.scale)

    def _template(self, placement: Placement) -> Mesh:
        library, model, length = self.library, placement.model, placement.length
        match placement.kind:
            case "car":
                return library.car(model)
            case "truck":
                return library.truck(model)
            case "two_wheeler":
                return library.two_wheeler(model)
            case "tree":
                return library.tree(model)
            case "bush":
                return library.bush(model)
            case "hedge":
                return library.hedge(model, length)
            case "wall":
                return library.wall(model, length)
            case "fence":
                return library.fence(model, length)
            case "object":
                return library.street_object(model)
            case "sign":
                return library.sign(model)
            case "lamp":
                return library.lamp(length)
            case "signal":
                return library.signal(model, length)
            case "person":
                return library.pedestrian(model, 0)

    def _shade(self, placement: Placement, origin: NDArray[np.float64]) -> Mesh:
        if placement.kind not in ("car", "truck"):
            return concatenate([])
        size = (4.7, 1.9) if placement.kind == "car" else (8.5, 2.5)
        parking = abs(placement.d) > self.layout.road
        surface = self.ground.surface("parking" if parking else "road")
        shade = shade_under(size, surface.colour, surface.raw_class)
        position = self.street.point(placement.s, placement.d, placement.h + SHADE_HEIGHT_M) - origin
        return shade.placed(yaw=float(self.street.heading(placement.s)) + placement.yaw, position=position)

    def _house(self, house: HousePlan, origin: NDArray[np.float64]) -> Mesh:
        yaw = float(self.street.heading(house.s)) + (0.0 if house.side > 0 else np.pi)
        position = self.street.point(house.s, house.d, 0.1) - origin
        return building(house.plan).placed(yaw=yaw, position=position)

    def _lamps(self, plan: BlockPlan) -> NDArray[np.float64]:
        heads = [
            self.street.point(p.s, p.d + (p.length if p.yaw == 0 else -p.length), p.h + self.place.lamp_height - 0.15)
            for p in plan.placements
            if p.kind == "lamp"
        ]
        return np.array(heads).reshape(-1, 3)


def window_index(s: float) -> int:
    """Which window a vehicle at s looks at; equal indices mean the same window."""
    return round(s / (2 * BLOCK_M))


def shade_under(size: tuple[float, float], colour: Colour, raw_class: RawClass) -> Mesh:
    """The dark patch of ground under a vehicle of `size` (length, width) m; it is ground, not vehicle."""
    length, width = size[0] / 2 + 0.35, size[1] / 2 + 0.35
    corners = np.array([[(-length, -width, 0), (length, -width, 0), (length, width, 0), (-length, width, 0)]])
    tex = np.array([[(-1, -1), (1, -1), (1, 1), (-1, 1)]])
    return quads(corners, tex=tex, colour=colour, material=Material.SHADE, raw_class=raw_class)
