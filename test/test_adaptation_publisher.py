# SPDX-License-Identifier: Apache-2.0
"""Publishing: whole versions only, put in between frames, and taken back."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from adaptation_parts import VERSION, make_segmenter, stream_frame

from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.parameters import adapted_parameters
from xmodal_seg.adaptation.publisher import Publisher
from xmodal_seg.checkpoint import bank_state
from xmodal_seg.tensor_files import Tensors, hash_tensors

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

    def name(self, number: int, value: float, bin: Bin = NIGHT) -> str:
        """As it is served under."""
        return f"{VERSION}+{bin}.{number}-{hash_tensors(self.filled(value))[:8]}"

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

    assert world.publisher.serve(world.segmenter, NIGHT) == world.name(1, 2.0)

    assert same(world.served(), world.filled(2.0))
    assert world.segmenter.model_version == world.name(1, 2.0)
    assert world.publisher.serve(world.segmenter, NIGHT) is None
    now = bank_state(world.model)
    assert {name for name in everything if not torch.equal(everything[name], now[name])} == set(world.reference)


def test_each_bin_has_its_own_version(world: World) -> None:
    world.offer(2.0)
    world.offer(3.0, DUSK)

    assert world.publisher.serve(world.segmenter, DUSK) == world.name(1, 3.0, DUSK)
    assert same(world.served(), world.filled(3.0))
    assert world.publisher.serve(world.segmenter, NIGHT) == world.name(1, 2.0)
    assert same(world.served(), world.filled(2.0))


def test_the_reference_comes_back_bit_by_bit(world: World) -> None:
    for back in (
        lambda: world.publisher.roll_back(NIGHT),
        lambda: world.publisher.withdraw(NIGHT),
        lambda: world.publisher.reset(),
        lambda: world.publisher.set_serving(False),
    ):
        world.offer(2.0)
        world.publisher.serve(world.segmenter, NIGHT)
        back()
        assert world.publisher.serve(world.segmenter, NIGHT) == VERSION
        assert same(world.served(), world.reference)
    world.publisher.set_serving(True)
    assert world.publisher.serve(world.segmenter, NIGHT) == world.name(4, 2.0)


def test_a_name_belongs_to_its_values(world: World) -> None:
    world.offer(2.0)
    other, again = World(), World()
    other.offer(3.0)
    again.offer(2.0)
    names = [each.publisher.serve(each.segmenter, NIGHT) for each in (world, other, again)]
    assert names[0] == names[2] != names[1]


def test_a_number_goes_on_after_a_restart(world: World) -> None:
    world.publisher.offer(NIGHT, world.filled(2.0), metrics={}, steps=1, number=4)
    assert world.publisher.serve(world.segmenter, NIGHT) == world.name(4, 2.0)
    world.offer(3.0)
    assert world.publisher.serve(world.segmenter, NIGHT) == world.name(5, 3.0)


def test_what_was_learned_before_others_took_something_back_is_not_offered(world: World) -> None:
    world.offer(2.0)
    world.offer(3.0)
    for take_back in (lambda: world.publisher.roll_back(NIGHT), world.publisher.reset):
        term, of_dusk = world.publisher.term(NIGHT), world.publisher.term(DUSK)
        take_back()
        newest = world.publisher.newest(NIGHT)
        assert world.publisher.offer(NIGHT, world.filled(4.0), metrics={}, steps=1, term=term) is None
        assert world.publisher.newest(NIGHT) is newest
        assert (world.publisher.term(DUSK) == of_dusk) == (newest is not None)  # a reset is everywhere
    now = world.publisher.term(NIGHT)
    assert world.publisher.offer(NIGHT, world.filled(4.0), metrics={}, steps=1, term=now) is not None
    world.publisher.withdraw(NIGHT)
    assert world.publisher.term(NIGHT) == now  # by the one that offers


def test_rollback_goes_one_version_back(world: World) -> None:
    world.offer(2.0)
    world.offer(3.0)
    version = world.publisher.roll_back(NIGHT)
    assert version is not None
    assert (version.number, version.bin) == (1, NIGHT)
    world.offer(4.0)
    assert world.publisher.serve(world.segmenter, NIGHT) == world.name(3, 4.0)  # a number is never given twice
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
    """This thread offers and takes back without a pause; what another labels meanwhile is what its version says."""
    frame, stopping = stream_frame(3), threading.Event()
    values = [shifted(world.reference, seed) for seed in range(7)]
    said: list[tuple[str, bytes]] = []
    swaps: list[str] = []

    def infer() -> None:
        while not stopping.is_set():
            name = world.publisher.serve(world.segmenter, NIGHT)
            labelled = world.segmenter.predict(frame)
            said.append((labelled.model_version, labelled.probability.tobytes()))
            swaps.extend([] if name is None else [name])

    inference = threading.Thread(target=infer)
    inference.start()
    deadline_s, number = time.monotonic() + 60, 0
    while (len(swaps) < 60 or len(said) < 300) and time.monotonic() < deadline_s:
        number += 1
        world.publisher.offer(NIGHT, values[number % 7], metrics={}, steps=1)
        if number % 5 == 0:
            world.publisher.roll_back(NIGHT)
        if number % 17 == 0:
            world.publisher.reset()
        time.sleep(0.0003)
    stopping.set()
    inference.join()

    other = World()
    expected = {VERSION: other.segmenter.predict(frame).probability.tobytes()}
    for each in values:
        digest = hash_tensors(each)[:8]
        other.segmenter.install_bank("night", each, model_version=digest)
        expected[digest] = other.segmenter.predict(frame).probability.tobytes()
    assert len(set(expected.values())) == 8  # so that a mixture, or another version than the named one, would show
    assert len(swaps) >= 60
    assert {name == VERSION for name, _ in said} == {True, False}
    wrong = [name for name, labels in said if labels != expected[name.rpartition("-")[2]]]
    assert wrong == []


def shifted(reference: Tensors, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: value + 0.5 * torch.randn(value.shape, generator=generator) for name, value in reference.items()}
