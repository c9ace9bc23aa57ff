# SPDX-License-Identifier: Apache-2.0
"""Scores of modules made comparable, and the choice of those that are on."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from xmodal_seg.models.tuning.selection import ModuleKey, normalise, select

TYPES = ("spatial", "semantic", "frequency")
KEYS = [ModuleKey(layer, of_type) for layer in range(4) for of_type in TYPES]


def scores_of(seed: int) -> dict[ModuleKey, float]:
    rng = random.Random(seed)
    scale = {"spatial": 1e-6, "semantic": 1.0, "frequency": 1e5}
    return {key: scale[key.type] * rng.random() for key in KEYS}


def test_scores_sum_to_one_in_each_type_whatever_its_scale() -> None:
    raw = scores_of(0)
    scores = normalise(raw)
    for of_type in TYPES:
        of_this = {key: value for key, value in scores.items() if key.type == of_type}
        assert math.fsum(of_this.values()) == pytest.approx(1, abs=1e-12)
        assert len(of_this) == 4
    first, second = ModuleKey(0, "spatial"), ModuleKey(3, "spatial")
    assert scores[first] / scores[second] == pytest.approx(raw[first] / raw[second])


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_type_without_information_is_refused(value: float) -> None:
    scores = {**scores_of(0), **{ModuleKey(layer, "semantic"): value for layer in range(4)}}
    with pytest.raises(ValueError, match=r"the semantic modules to have Fisher information .* got (0|nan|inf)"):
        normalise(scores)


@pytest.mark.parametrize("top_k", [1, 5, 12])
def test_the_first_selection_takes_exactly_the_best(top_k: int) -> None:
    scores = normalise(scores_of(1))
    selected = select(scores, top_k=top_k, former=KEYS, max_swaps=1)
    assert len(selected) == top_k
    left = [scores[key] for key in KEYS if key not in selected]
    assert not left or min(scores[key] for key in selected) >= max(left)


@pytest.mark.parametrize("max_swaps", [1, 2, 5])
def test_later_selections_swap_few_and_the_clearest_first(max_swaps: int) -> None:
    before, after = normalise(scores_of(1)), normalise(scores_of(6))
    former = select(before, top_k=5, former=KEYS, max_swaps=max_swaps)
    best = select(after, top_k=5, former=[], max_swaps=1)
    assert len(best - former) == 3  # what the seeds were chosen for

    selected = select(after, top_k=5, former=former, max_swaps=max_swaps)

    swaps = min(max_swaps, 3)
    assert len(selected) == 5
    assert len(selected - former) == len(former - selected) == swaps
    assert selected - former <= best
    new = sorted((after[key] for key in best - former), reverse=True)[:swaps]
    gone = sorted(after[key] for key in former - best)[:swaps]
    assert sorted((after[key] for key in selected - former), reverse=True) == new
    assert sorted(after[key] for key in former - selected) == gone
    assert (selected == best) == (max_swaps >= 3)


def test_exactly_k_over_many_rounds_and_the_same_again_changes_nothing() -> None:
    selected = frozenset(KEYS)
    for seed in range(30):
        selected = select(normalise(scores_of(seed)), top_k=4, former=selected, max_swaps=2)
        assert len(selected) == 4
    settled = normalise(scores_of(99))
    for _ in range(3):
        selected = select(settled, top_k=4, former=selected, max_swaps=2)
    assert select(settled, top_k=4, former=selected, max_swaps=2) == selected


def test_equal_scores_go_by_layer_and_type_and_not_by_their_order() -> None:
    equal = dict.fromkeys(KEYS, 0.25)
    expected = frozenset(sorted(KEYS)[:5])
    for order in itertools.islice(itertools.permutations(KEYS), 0, 2000, 400):
        assert select({key: equal[key] for key in order}, top_k=5, former=KEYS, max_swaps=1) == expected
