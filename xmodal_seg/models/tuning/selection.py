# SPDX-License-Identifier: Apache-2.0
"""Which modules are on: scores made comparable between types, the best of all, and few changes at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

ModuleType = Literal["spatial", "semantic", "frequency"]


class ModuleKey(NamedTuple):
    """A module of the backbone."""

    layer: int  # of its block
    type: ModuleType


def normalise(scores: Mapping[ModuleKey, float]) -> dict[ModuleKey, float]:
    """Divide by the sum over the layers of the same type: a type with more parameters has larger gradients as a whole.

    Raises ValueError for a type whose scores are all zero or not finite.
    """
    totals = {
        of_type: math.fsum(score for key, score in scores.items() if key.type == of_type)
        for of_type in dict.fromkeys(key.type for key in scores)
    }
    for of_type, total in totals.items():
        if not (math.isfinite(total) and total > 0):
            raise ValueError(
                f"tuning: expected the {of_type} modules to have Fisher information in some layer, got {total} in all; "
                "the frames that are scored need labelled points that a camera sees"
            )
    return {key: score / totals[key.type] for key, score in scores.items()}


def select(
    scores: Mapping[ModuleKey, float], *, top_k: int, former: Collection[ModuleKey], max_swaps: int
) -> frozenset[ModuleKey]:
    """The `top_k` modules with the highest scores, at most `max_swaps` of them not in `former`.

    `former` are the modules that were on; where these are not `top_k` of them there is nothing to hold on to. The best
    newcomers replace the worst of the former. Equal scores go by layer and type.
    """
    ranking = sorted(scores, key=lambda key: (-scores[key], key))
    best = ranking[:top_k]
    if len(former) != top_k:
        return frozenset(best)
    incoming = [key for key in best if key not in former][:max_swaps]
    leaving = [key for key in reversed(ranking) if key in former and key not in best][: len(incoming)]
    return (frozenset(former) - frozenset(leaving)) | frozenset(incoming)
