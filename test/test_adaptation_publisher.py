# SPDX-License-Identifier: Apache-2.0
"""Publishing: whole versions only, put in between frames, and taken back."""

from __future__ import annotations

import threading

import pytest
import torch
from adaptation_parts import VERSION, make_segmenter

from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.parameters import adapted_parameters
from xmodal_seg.adaptation.publisher import Publisher
from xmodal_seg.checkpoint import bank_state
from xmodal_seg.inference import Segmenter
from xmodal_seg.tensor_files import Tensors

NIGHT, DUSK = Bin(bank="night", condition="night"), Bin(bank="night", condition="twilight")


class World:
    """A segmenter with two banks and a publisher of one of them."""

    def __init__(self) -> None:
        self.segmenter = make_segmenter("day", "night")
        self.segmenter.use_bank("night")
        self.model = self.segmenter.model_of("night")
        self.parameters = adapted_parameters(self.model, scopes=("fusion_norms",))
        self.reference = self.parameters.values(self.model)
        self.publisher = Publisher(references={"night": self.reference}, base_version=VERSION)

    def filled(self, value: float) -> Tensors:
        return {name: torch.full_like(tensor, value) for name, tensor in self.reference.items()}

    def offer(self, value: float, bin: Bin = NIGHT) -> None:
        self.publisher.offer(bin, self.filled(value), metrics={}, steps=1)

    def served(self) -> Tensors:
        return self.parameters.values(self.model)


@pytest.fixture
def world() -> World:
    return World()


def same(one: Tensors, other: Tensors) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def test_versions_come_into_the_model_when_it_is_asked_for(world: World) -> None:
    everything = {name: tensor.clone() for name, tensor in bank_state(world.model).items()}
    world.offer(2.0)
    assert same(world.served(), world.reference)

    assert world.publisher.serve(world.segmenter, NIGHT) == f"{VERSION}+night.1"

    assert same(world.served(), world.filled(2.0))
    assert world.segmenter.model_version == f"{VERSION}+night.1"
    assert world.publisher.serve(world.segmenter, NIGHT) is None
    now = bank_state(world.model)
    assert {name for name in everything if not torch.equal(everything[name], now[name])} == set(world.reference)


def test_each_bin_has_its_own_version(world: World) -> None:
    world.offer(2.0)
    world.offer(3.0, DUSK)

    assert world.publisher.serve(world.segmenter, DUSK) == f"{VERSION}+night-twilight.1"
    assert same(world.served(), world.filled(3.0))
    assert world.publisher.serve(world.segmenter, NIGHT) == f"{VERSION}+night.1"
    assert same(world.served(), world.filled(2.0))


def test_the_reference_comes_back_bit_by_bit(world: World) -> None:
    for back in (
        lambda: world.publisher.roll_back(NIGHT),
        lambda: world.publisher.withdraw(NIGHT),
        lambda: world.publisher.set_serving(False),
    ):
        world.offer(2.0)
        world.publisher.serve(world.segmenter, NIGHT)
        back()
        assert world.publisher.serve(world.segmenter, NIGHT) == VERSION
        assert same(world.served(), world.reference)
    world.publisher.set_serving(True)
    assert world.publisher.serve(world.segmenter, NIGHT) == f"{VERSION}+night.3"


def test_rollback_goes_one_version_back(world: World) -> None:
    world.offer(2.0)
    world.offer(3.0)
    version = world.publisher.roll_back(NIGHT)
    assert version is not None
    assert version.name == "night.1"
    world.offer(4.0)
    assert world.publisher.serve(world.segmenter, NIGHT) == f"{VERSION}+night.3"  # a number is never given twice
    world.publisher.withdraw(NIGHT)
    with pytest.raises(ValueError, match="nothing was published, the reference is served already"):
        world.publisher.roll_back(NIGHT)


def test_what_was_offered_cannot_be_changed_afterwards(world: World) -> None:
    values = world.filled(2.0)
    world.publisher.offer(NIGHT, values, metrics={}, steps=1)
    for tensor in values.values():
        tensor.fill_(9.0)
    world.publisher.serve(world.segmenter, NIGHT)
    assert same(world.served(), world.filled(2.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_never_published(world: World, bad: float) -> None:
    values = world.filled(2.0)
    next(iter(values.values()))[1] = bad
    with pytest.raises(ValueError, match="expected finite weights"):
        world.publisher.offer(NIGHT, values, metrics={}, steps=1)
    assert world.publisher.newest(NIGHT) is None
    assert world.publisher.serve(world.segmenter, NIGHT) is None


def test_no_frame_sees_half_of_a_version(world: World) -> None:
    """One thread offers and takes back without a pause, another serves between its frames."""
    stopping = threading.Event()

    def churn() -> None:
        number = 1.0
        while not stopping.is_set():
            world.offer(number)
            number += 1
            if number % 5 == 0:
                world.publisher.roll_back(NIGHT)
            if number % 17 == 0:
                world.publisher.withdraw(NIGHT)

    thread = threading.Thread(target=churn)
    thread.start()
    swaps = torn = 0
    for _ in range(1500):
        name = frame_on(world)
        values = {float(value) for tensor in world.served().values() for value in tensor.unique()}
        is_reference = same(world.served(), world.reference)
        swaps += name is not None
        torn += not is_reference and len(values) != 1
        expected = VERSION if is_reference else f"{VERSION}+night.{next(iter(values)):g}"
        assert world.segmenter.model_version == expected
    stopping.set()
    thread.join()
    assert torn == 0
    assert swaps > 50


def frame_on(world: World) -> str | None:
    segmenter: Segmenter = world.segmenter
    return world.publisher.serve(segmenter, NIGHT)
