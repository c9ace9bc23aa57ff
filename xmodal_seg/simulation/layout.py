# SPDX-License-Identifier: Apache-2.0
"""What stands where along a street: a plan of every block of 30 m, drawn from (seed, block) alone.

A block can be planned without its neighbours, so a drive may start anywhere and two processes may share it.
"""

from __future__ import annotations

from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.places import Place
from xmodal_seg.simulation.planning import Draft, plan_corner, plan_side
from xmodal_seg.simulation.plans import BLOCK_M, FIRST_BLOCK, BlockPlan, Side, SideProfile


class Layout:
    """Plans of the blocks of one street."""

    def __init__(self, place: Place, seed: int, length: float) -> None:
        self.place = place
        self.seed = seed
        self.road = place.lanes * place.lane_width + place.shoulder  # half width of the carriageway
        self._stretch_of, self._crossings = _stretches(place, seed, int(length // BLOCK_M) + 12)

    def block(self, index: int) -> BlockPlan:
        dice = Dice(self.seed, self.place.model_seed, "block", index)
        draft = Draft(self.place, dice, index * BLOCK_M, self.road)
        crossing = index in self._crossings
        sides: dict[Side, SideProfile] = {side: self.profile(index, side) for side in (-1, 1)}
        for side, profile in sides.items():
            if crossing:
                plan_corner(draft, side, profile)
            else:
                plan_side(draft, side, profile, index)
        return BlockPlan(
            index=index,
            crossing=crossing,
            sides=sides,
            placements=tuple(draft.placements),
            houses=tuple(draft.houses),
        )

    def profile(self, index: int, side: Side) -> SideProfile:
        """Curb and widths last for a stretch, so that the strips run on; what they face changes block by block."""
        stretch = Dice(self.seed, self.place.model_seed, "stretch", self._stretch_of.get(index, 0), side + 1)
        dice = Dice(self.seed, self.place.model_seed, "facing", index, side + 1)
        place = self.place
        return SideProfile(
            parking=stretch.choice(list(place.parking), list(place.parking.values())),
            curb=stretch.between(place.curb),
            sidewalk=stretch.between(place.sidewalk),
            verge=stretch.between(place.verge) if stretch.chance(place.verge_share) else 0.0,
            yard=stretch.between(place.yard),
            edge=stretch.choice(list(place.edges), list(place.edges.values())),
            facing=dice.choice(list(place.facing), list(place.facing.values())),
        )


def _stretches(place: Place, seed: int, num_blocks: int) -> tuple[dict[int, int], set[int]]:
    """Which stretch each block belongs to, and which blocks are crossings."""
    dice = Dice(seed, place.model_seed, "stretches")
    stretch_of: dict[int, int] = {}
    crossings: set[int] = set()
    block, stretch = FIRST_BLOCK, 0
    while block < num_blocks:
        length = dice.integer(place.stretch[0], place.stretch[1] + 1)
        stretch_of.update(dict.fromkeys(range(block, block + length + 1), stretch))
        crossings.add(block + length)
        block, stretch = block + length + 1, stretch + 1
    return stretch_of, crossings
