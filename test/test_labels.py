# SPDX-License-Identifier: Apache-2.0
"""Label spaces refuse what cannot be right, and raw ids map by table."""

import pytest

from xmodal_seg.labels import IGNORE_INDEX, LABEL_SPACES, UNLABELED_COLOUR, LabelSpace

COLOURS = ((1, 2, 3), (4, 5, 6))
SPACE = LabelSpace(name="two", class_names=("car", "road"), colours=COLOURS)


@pytest.mark.parametrize(
    ("names", "colours", "message"),
    [
        ((), (), "1 to 254 classes"),
        (tuple(str(i) for i in range(255)), COLOURS, "1 to 254 classes"),
        (("car", "car"), COLOURS, "must differ"),
        (("car", "road"), COLOURS[:1], "one colour per class"),
        (("car", "road"), ((1, 2, 3), (4, 5, 256)), "colour of 'road'"),
    ],
)
def test_bad_label_spaces_are_refused(names: tuple, colours: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSpace(name="bad", class_names=names, colours=colours)


def test_palette_is_grey_beyond_the_classes() -> None:
    palette = SPACE.palette()
    assert palette[:2].tolist() == [list(colour) for colour in COLOURS]
    assert (palette[2:] == UNLABELED_COLOUR).all()


def test_raw_ids_outside_every_group_are_ignored() -> None:
    table = SPACE.train_id_table({"road": [1, 4], "car": [0]}, num_raw=6)
    assert table.tolist() == [0, 1, IGNORE_INDEX, IGNORE_INDEX, 1, IGNORE_INDEX]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"tree": [1]}, "no class 'tree'"),
        ({"car": [9]}, "outside"),
        ({"car": [1], "road": [1]}, "must be in one group"),
    ],
)
def test_bad_groups_are_refused(groups: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPACE.train_id_table(groups, num_raw=6)


def test_shipped_spaces_have_distinct_colours() -> None:
    for space in LABEL_SPACES.values():
        assert len(set(space.colours)) == space.num_classes
