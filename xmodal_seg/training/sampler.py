# SPDX-License-Identifier: Apache-2.0
"""Which frames a step sees: a pure function of seed, domain and step, so a resumed run needs nothing but its step."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Domain = Literal["source", "target"]
# Numbers that set the random streams apart.
_FRAMES: dict[Domain, int] = {"source": 1, "target": 2}
_ORDER: dict[Domain, int] = {"source": 3, "target": 4}
_DROPOUT, _LABELS = 5, 6


def batch_indices(*, num_frames: int, batch_size: int, step: int, seed: int, domain: Domain) -> NDArray[np.int64]:
    """(batch_size,) frames of a step. Each epoch visits every frame once, less those that fill no batch.

    A data set smaller than a batch is repeated within it.
    """
    if num_frames < 1 or batch_size < 1:
        raise ValueError(f"expected at least one frame and one per batch, got {num_frames} and {batch_size}")
    if num_frames < batch_size:
        return np.resize(_permutation(num_frames, step, seed, domain), batch_size)
    epoch, number = divmod(step, num_frames // batch_size)
    return _permutation(num_frames, epoch, seed, domain)[number * batch_size : (number + 1) * batch_size]


def frame_rng(*, step: int, slot: int, seed: int, domain: Domain) -> np.random.Generator:
    """The generator that alters the frame in place `slot` of the batch of `step`, over all processes."""
    return np.random.default_rng((seed, _FRAMES[domain], step, slot))


def dropout_seed(*, step: int, seed: int, rank: int) -> int:
    """What torch is seeded with at the start of a step."""
    return int(np.random.SeedSequence((seed, _DROPOUT, step, rank)).generate_state(1, np.uint32)[0])


def label_seed(*, number: int, seed: int) -> int:
    """Of the labels drawn for frame `number` of all that are scored."""
    return int(np.random.SeedSequence((seed, _LABELS, number)).generate_state(1, np.uint32)[0])


@lru_cache(maxsize=8)
def _permutation(num_frames: int, epoch: int, seed: int, domain: Domain) -> NDArray[np.int64]:
    permutation = np.random.default_rng((seed, _ORDER[domain], epoch)).permutation(num_frames)
    permutation.setflags(write=False)
    return permutation
