# SPDX-License-Identifier: Apache-2.0
"""Every class of the four data sets and where it goes; the tables are of the published merges, by raw id."""

import numpy as np
import pytest
from miniatures import NUSCENES_CATEGORIES

from xmodal_seg.labels import IGNORE_INDEX, NUSCENES_6, SEMANTIC_KITTI_10, VIRTUAL_KITTI_6, LabelSpace
from xmodal_seg.training.data.class_merges import MERGES, find_merge, merge_table
from xmodal_seg.training.data.raw_classes import (
    A2D2_CLASSES,
    A2D2_COLOURS,
    A2D2_UNMATCHED,
    SEMANTIC_KITTI_CLASSES,
    VIRTUAL_KITTI_CLASSES,
    ColourTable,
    DatasetName,
    check_raw_labels,
    rgb_from_hex,
)

IGNORED = "ignored"

# (data set, raw classes, label space, merged class -> raw ids)
NUSCENES_GROUPS = {
    "vehicle": {14, 15, 16, 17, 18, 21, 22, 23},
    "driveable_surface": {24},
    "sidewalk": {26},
    "terrain": {27},
    "manmade": {28},
    "vegetation": {30},
    # 19 ambulance, 20 police, 25 flat.other, 29 static.other, 31 ego
    IGNORED: {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 19, 20, 25, 29, 31},
}
KITTI_10_GROUPS = {
    "car": {10, 252},
    "truck": {18, 258},
    "bike": {11, 15, 31, 32, 253, 255},
    "person": {30, 254},
    "road": {40, 60},
    "parking": {44},
    "sidewalk": {48},
    "building": {50},
    "nature": {70, 71, 72},
    "other_objects": {51, 80, 81, 99},
    IGNORED: {0, 1, 13, 16, 20, 49, 52, 256, 257, 259},
}
KITTI_6_GROUPS = {
    "vegetation_terrain": {70, 71, 72},
    "building": {50},
    "road": {40, 60},
    "object": {51, 80, 81, 99},
    "truck": {18, 258},
    "car": {10, 252},
    IGNORED: {0, 1, 11, 13, 15, 16, 20, 30, 31, 32, 44, 48, 49, 52, 253, 254, 255, 256, 257, 259},
}
VKITTI_GROUPS = {
    "vegetation_terrain": {0, 1, 2},
    "building": {3},
    "road": {4},
    "object": {6, 7, 8, 9},
    "truck": {10},
    "car": {11},
    IGNORED: {5, 12, 13, 99},
}
# By position in class_list.json.
A2D2_GROUPS = {
    "car": {0, 1, 2, 3, 46},
    "truck": {11, 12, 13},
    "bike": {4, 5, 6, 7, 14, 15, 16},
    "person": {8, 9, 10},
    "road": {50, 33, 28, 36, 42, 40, 49, 47},
    "parking": {44},
    "sidewalk": {45, 27},
    "building": {52},
    "nature": {43},
    "other_objects": {35, 17, 18, 19, 20, 21, 22, 25, 26, 29, 30, 34, 37, 39, 41, 48, 38},
    IGNORED: {51, 23, 24, 31, 32, 53, 54, A2D2_UNMATCHED},
}
TABLES = [
    ("nuscenes", dict(enumerate(NUSCENES_CATEGORIES)), NUSCENES_6, NUSCENES_GROUPS),
    ("semantic_kitti", SEMANTIC_KITTI_CLASSES, SEMANTIC_KITTI_10, KITTI_10_GROUPS),
    ("semantic_kitti", SEMANTIC_KITTI_CLASSES, VIRTUAL_KITTI_6, KITTI_6_GROUPS),
    ("virtual_kitti", VIRTUAL_KITTI_CLASSES, VIRTUAL_KITTI_6, VKITTI_GROUPS),
    ("a2d2", A2D2_CLASSES, SEMANTIC_KITTI_10, A2D2_GROUPS),
]


@pytest.mark.parametrize(("dataset", "raw_classes", "space", "groups"), TABLES, ids=lambda v: getattr(v, "name", ""))
def test_every_raw_class_goes_where_the_benchmark_says(
    dataset: DatasetName, raw_classes: dict[int, str], space: LabelSpace, groups: dict[str, set[int]]
) -> None:
    table = merge_table(find_merge(dataset, space.name), raw_classes, where="test")
    assert set().union(*groups.values()) == set(raw_classes)
    for name, raw_ids in groups.items():
        expected = IGNORE_INDEX if name == IGNORED else space.class_names.index(name)
        assert {raw_id: table[raw_id] for raw_id in raw_ids} == dict.fromkeys(raw_ids, expected)


def test_every_class_of_a_label_space_has_raw_classes() -> None:
    for merges in MERGES.values():
        for merge in merges:
            assert set(merge.groups) == set(merge.label_space.class_names)


def test_ids_do_not_matter_only_names_do() -> None:
    # The annotator instructions print 25 for sidewalk and 26 for terrain; the shipped tables say otherwise.
    raw_classes = dict(enumerate(reversed(NUSCENES_CATEGORIES)))
    table = merge_table(find_merge("nuscenes"), raw_classes, where="test")
    for raw_id, name in raw_classes.items():
        merged = [merged for merged, names in find_merge("nuscenes").groups.items() if name in names]
        assert table[raw_id] == (NUSCENES_6.class_names.index(merged[0]) if merged else IGNORE_INDEX)


def test_a2d2_has_55_colours_of_one_class_each() -> None:
    assert len(A2D2_COLOURS) == 55
    assert len(set(A2D2_COLOURS.values())) == 55
    named = {"#800000": "Car 4", "#8000ff": "Dashed line", "#93fdc2": "Nature object", "#352e52": "Rain dirt"}
    assert {colour: A2D2_COLOURS[colour] for colour in named} == named


def test_colour_table() -> None:
    colours = {rgb_from_hex(colour): raw_id for raw_id, colour in enumerate(A2D2_COLOURS)}
    table = ColourTable(colours, default=A2D2_UNMATCHED)
    image = np.array([[list(colour) for colour in colours], [[c[0], c[1], c[2] ^ 1] for c in colours]], dtype=np.uint8)
    np.testing.assert_array_equal(table.raw_ids(image)[0], np.arange(55))
    np.testing.assert_array_equal(table.raw_ids(image)[1], np.full(55, A2D2_UNMATCHED))


def test_a_wrong_label_names_the_point_and_the_file() -> None:
    labels = np.array([10, 40, 41, 40], dtype=np.uint16)
    with pytest.raises(ValueError, match=r"000000.label: 1 of 4 points .* point 2 has 41"):
        check_raw_labels(labels, SEMANTIC_KITTI_CLASSES, where="000000.label")
    check_raw_labels(labels[:2], SEMANTIC_KITTI_CLASSES, where="000000.label")


def test_errors() -> None:
    with pytest.raises(ValueError, match="expected one of semantic_kitti_10, virtual_kitti_6, got 'nuscenes_6'"):
        find_merge("semantic_kitti", "nuscenes_6")
    with pytest.raises(ValueError, match=r"category.json: has no class 'flat.sidewalk'"):
        merge_table(
            find_merge("nuscenes"),
            {number: name for number, name in enumerate(NUSCENES_CATEGORIES) if name != "flat.sidewalk"},
            where="category.json",
        )
    with pytest.raises(ValueError, match="such as #ff8000, got '#ff80'"):
        rgb_from_hex("#ff80")
