# SPDX-License-Identifier: Apache-2.0
"""Which frames a step sees depends on seed, domain and step alone."""

from __future__ import annotations

import numpy as np
import pytest

from xmodal_seg.training.sampler import batch_indices, dropout_seed, frame_rng


def test_an_epoch_visits_every_frame_once_and_the_next_in_another_order() -> None:
    epochs = []
    for epoch in (0, 1):
        steps = [
            batch_indices(num_frames=17, batch_size=5, step=epoch * 3 + i, seed=1, domain="source") for i in range(3)
        ]
        epochs.append(np.concatenate(steps).tolist())
        assert len(set(epochs[-1])) == 15  # two frames fill no batch
        assert set(epochs[-1]) <= set(range(17))
    assert epochs[0] != epochs[1]


def test_domains_and_seeds_differ_and_calls_do_not() -> None:
    def draw(seed: int, domain: str) -> list[int]:
        return batch_indices(num_frames=30, batch_size=9, step=4, seed=seed, domain=domain).tolist()  # type: ignore[arg-type]

    assert draw(0, "source") == draw(0, "source")
    assert draw(0, "source") != draw(0, "target")
    assert draw(0, "source") != draw(1, "source")


def test_few_frames_fill_a_batch_by_repetition() -> None:
    batch = batch_indices(num_frames=3, batch_size=7, step=0, seed=0, domain="target")
    assert batch.size == 7
    assert set(batch.tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="at least one frame"):
        batch_indices(num_frames=0, batch_size=7, step=0, seed=0, domain="target")


def test_random_numbers_of_places_steps_and_processes_differ() -> None:
    draws = {
        float(frame_rng(step=step, slot=slot, seed=seed, domain=domain).random())
        for step in range(3)
        for slot in range(3)
        for seed in range(2)
        for domain in ("source", "target")
    }
    assert len(draws) == 36
    assert len({dropout_seed(step=step, seed=0, rank=rank) for step in range(5) for rank in range(2)}) == 10
