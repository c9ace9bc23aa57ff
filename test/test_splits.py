# SPDX-License-Identifier: Apache-2.0
"""Every split rule on examples, the sizes of the scene lists, and the known frame counts against official totals."""

import numpy as np
import pytest

from xmodal_seg.training.data.class_weights import (
    PUBLISHED_WEIGHTS,
    PublishedWeights,
    class_weights,
    compare_weights,
)
from xmodal_seg.training.data.splits import (
    KNOWN_COUNTS,
    NUSCENES_TEST,
    NUSCENES_TRAIN,
    NUSCENES_VAL_NIGHT,
    NUSCENES_VAL_SINGAPORE,
    SPLITS,
    KnownCount,
    SequenceInfo,
    compare_counts,
    count_splits,
    split_rule,
)

SINGAPORE, BOSTON = "singapore-onenorth", "boston-seaport"

# (data set, sequence, the splits it is in)
EXAMPLES = [
    ("nuscenes", SequenceInfo(name="scene-0161", location=BOSTON, description="Car"), "train_usa train_day"),
    ("nuscenes", SequenceInfo(name="scene-0103", location=BOSTON, description="Many peds"), "test_usa test_day"),
    ("nuscenes", SequenceInfo(name="scene-0061", location=SINGAPORE, description="x"), "train_singapore train_day"),
    # Held out of Singapore's train, but not of day's: the source has no val.
    ("nuscenes", SequenceInfo(name="scene-0004", location=SINGAPORE, description="x"), "val_singapore train_day"),
    (
        "nuscenes",
        SequenceInfo(name="scene-0012", location="singapore-queenstown", description=""),
        "test_singapore test_day",
    ),
    (
        "nuscenes",
        SequenceInfo(name="scene-0992", location=SINGAPORE, description="NIGHT, rain"),
        "train_singapore train_night",
    ),
    ("nuscenes", SequenceInfo(name="scene-1044", location=SINGAPORE, description="Night"), "val_singapore val_night"),
    ("nuscenes", SequenceInfo(name="scene-1045", location=SINGAPORE, description="Night"), "train_singapore val_night"),
    (
        "nuscenes",
        SequenceInfo(name="scene-1059", location=SINGAPORE, description="At night"),
        "test_singapore test_night",
    ),
    # On the val list, but not of the domain: neither held out nor held.
    ("nuscenes", SequenceInfo(name="scene-1110", location=BOSTON, description="x"), "train_usa train_day"),
    # Of the official test set.
    ("nuscenes", SequenceInfo(name="scene-0077", location=SINGAPORE, description="x"), ""),
    *(("semantic_kitti", SequenceInfo(name=f"{n:02d}"), "train") for n in (0, 1, 2, 3, 4, 5, 6, 9, 10)),
    ("semantic_kitti", SequenceInfo(name="07"), "val"),
    ("semantic_kitti", SequenceInfo(name="08"), "test"),
    *(("semantic_kitti", SequenceInfo(name=f"{n}"), "hidden_test") for n in range(11, 22)),
    *(("virtual_kitti", SequenceInfo(name=name), "train") for name in ("0001", "0002", "0006", "0018", "0020")),
    ("a2d2", SequenceInfo(name="20180807_145028"), "test"),
    ("a2d2", SequenceInfo(name="20180810_142822"), "train"),
    ("a2d2", SequenceInfo(name="20181204_170238"), "train"),
    ("a2d2", SequenceInfo(name="20181016_095036"), ""),
    ("a2d2", SequenceInfo(name="20181204_191844"), ""),
]


@pytest.mark.parametrize(("dataset", "sequence", "splits"), EXAMPLES, ids=lambda v: getattr(v, "name", ""))
def test_a_sequence_is_in_these_splits(dataset: str, sequence: SequenceInfo, splits: str) -> None:
    found = {name for name, rule in SPLITS[dataset].items() if rule(sequence) and not name.startswith("official")}
    assert found == set(splits.split())


def test_scene_lists() -> None:
    assert (len(NUSCENES_TRAIN), len(NUSCENES_TEST)) == (700, 150)
    assert (len(NUSCENES_VAL_SINGAPORE), len(NUSCENES_VAL_NIGHT)) == (69, 15)
    assert not NUSCENES_TRAIN & NUSCENES_TEST
    assert NUSCENES_VAL_SINGAPORE <= NUSCENES_TRAIN
    assert NUSCENES_VAL_NIGHT <= NUSCENES_TRAIN
    assert len([s for s in EXAMPLES if s[0] == "semantic_kitti" and s[2] == "train"]) == 9


def test_a2d2_has_20_train_sequences() -> None:
    dates = ["20180810_142822", "20180925_101535", "20180925_112730", "20180925_124435", "20180925_135056"]
    dates += ["20181008_095521", "20181016_082154", "20181016_125231", "20181107_132300", "20181107_132730"]
    dates += ["20181107_133258", "20181107_133445", "20181108_084007", "20181108_091945", "20181108_103155"]
    dates += ["20181108_123750", "20181108_141609", "20181204_135952", "20181204_154421", "20181204_170238"]
    assert all(split_rule("a2d2", "train")(SequenceInfo(name=name)) for name in dates)
    assert len(set(dates)) == 20


def test_known_counts_add_up() -> None:
    counts = {name: known.frames for name, known in KNOWN_COUNTS["nuscenes"].items()}
    for parts in (("usa", "singapore"), ("day", "night")):
        held_out = counts[f"val_{parts[1]}"]
        assert sum(counts[f"train_{part}"] for part in parts) + held_out == counts["official_train"] == 28130
        assert sum(counts[f"test_{part}"] for part in parts) == counts["official_val"] == 6019
    # Sequence lengths: KITTI odometry and VirtualKITTI.
    kitti = [4541, 1101, 4661, 801, 271, 2761, 1101, 1591, 1201]
    assert KNOWN_COUNTS["semantic_kitti"]["train"].frames == sum(kitti) == 18029
    assert KNOWN_COUNTS["virtual_kitti"]["train"].frames == 447 + 233 + 270 + 339 + 837 == 2126


def test_count_splits() -> None:
    frames_of = {SequenceInfo(name="07"): 5, SequenceInfo(name="00"): 2, SequenceInfo(name="04"): 3}
    assert count_splits("semantic_kitti", frames_of) == {"train": 5, "val": 5, "test": 0, "hidden_test": 0}


def test_a_computed_count_is_an_error_a_remembered_one_a_warning() -> None:
    known = {
        "train": KnownCount(frames=7, source="computed"),
        "val": KnownCount(frames=3, source="remembered"),
        "test": KnownCount(frames=2, source="computed"),
    }
    errors, warnings = compare_counts({"train": 6, "val": 4, "test": 2}, known)
    assert errors == ["split train: expected 7 frames (computed), got 6"]
    assert warnings == ["split val: expected 3 frames (remembered), got 4"]


def test_class_weights_are_the_published_formula() -> None:
    counts = np.array([700, 20, 0, 280])
    weights = class_weights(counts)
    expected = np.log(5 * 1000 / np.array([700, 20, 280]))
    np.testing.assert_allclose(weights[[0, 1, 3]], expected / expected[0])
    assert np.isinf(weights[2])


@pytest.mark.parametrize("published", PUBLISHED_WEIGHTS, ids=lambda p: p.splits)
def test_counts_that_belong_to_the_published_weights_agree(published: PublishedWeights) -> None:
    """A weight w_i = log(5 / share_i) / min: shares that sum to one are found by bisection, then disturbed."""
    weights = np.array(published.weights)
    low, high = np.log(5.0), 10.0
    for _ in range(100):
        smallest = (low + high) / 2
        low, high = (smallest, high) if (5 * np.exp(-weights * smallest)).sum() > 1 else (low, smallest)
    counts = np.rint(1e9 * 5 * np.exp(-weights * smallest)).astype(np.int64)
    names = [str(number) for number in range(len(weights))]
    assert compare_weights(counts, published, class_names=names) == []
    counts[-1] //= 2
    differences = compare_weights(counts, published, class_names=names)
    assert any(sentence.startswith(f"class {names[-1]} of {published.splits}: ") for sentence in differences)


def test_a_scene_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a scene of nuScenes such as scene-0061, got 'scene-x'"):
        count_splits("nuscenes", {SequenceInfo(name="scene-x", location=BOSTON): 1})


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split of virtual_kitti: expected one of train, got 'val'"):
        split_rule("virtual_kitti", "val")
