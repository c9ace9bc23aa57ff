# SPDX-License-Identifier: Apache-2.0
"""Prepared data against what is known of them: frames of every split, class histograms and published weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xmodal_seg.training.data.assembly import Preparation
from xmodal_seg.training.data.class_merges import find_merge, merge_table
from xmodal_seg.training.data.class_weights import (
    PUBLISHED_WEIGHTS,
    PublishedWeights,
    class_weights,
    compare_weights,
)
from xmodal_seg.training.data.prepared import merge_raw_histogram
from xmodal_seg.training.data.splits import KnownCount, compare_counts, count_splits, split_rule


def make_report(preparation: Preparation, *, known: Mapping[str, KnownCount], whole: bool) -> dict[str, Any]:
    """Counts, class weights, damaged files, and what is not as it should be, as `errors` and `warnings`.

    Args:
        known: frames that the splits of the full data set have.
        whole: whether this should be the full data set; only then is anything compared.
    """
    dataset = preparation.header.dataset
    counts = count_splits(dataset, preparation.frames_of)
    errors, warnings = compare_counts(counts, known) if whole else ([], [])
    weights = [_weights(preparation, published) for published in PUBLISHED_WEIGHTS if published.dataset == dataset]
    if whole and _is_papers(preparation):
        warnings += [sentence for entry in weights for sentence in entry["differences"]]
    return {
        "dataset": dataset,
        "frames": sum(preparation.frames_of.values()),
        "splits": counts,
        "class_weights": weights,
        "errors": errors,
        "warnings": warnings,
        "damaged": preparation.damaged,
        "frames_without_visible_points": preparation.empty,
    }


def _is_papers(preparation: Preparation) -> bool:
    """Points were counted as the published class weights were: those that the papers' one camera sees."""
    return preparation.header.points == "visible" and len(preparation.header.cameras) == 1


def _weights(preparation: Preparation, published: PublishedWeights) -> dict[str, Any]:
    """Points and weights of the classes over the splits that the published weights were counted over."""
    merge = find_merge(published.dataset, published.label_space)
    table = merge_table(merge, preparation.header.raw_classes, where=published.dataset)
    space = merge.label_space
    rules = [split_rule(published.dataset, split) for split in published.splits.split("+")]
    chosen = [sequence for sequence in preparation.histograms if any(rule(sequence) for rule in rules)]
    points = sum(
        (
            merge_raw_histogram(preparation.histograms[sequence], table, num_classes=space.num_classes)
            for sequence in chosen
        ),
        start=merge_raw_histogram({}, table, num_classes=space.num_classes),
    )
    rows = zip(space.class_names, points.tolist(), class_weights(points).tolist(), published.weights, strict=True)
    return {
        "splits": published.splits,
        "classes": [
            {"name": name, "points": count, "weight": round(weight, 4) if count else None, "published": expected}
            for name, count, weight, expected in rows
        ],
        "differences": compare_weights(points, published, class_names=space.class_names),
    }
