# SPDX-License-Identifier: Apache-2.0
"""Which frame belongs to which split, by the rules of the benchmark, and how many frames each split has.

Source of the rules: valeoai/xmuda_journal, the splits.py and preprocess.py of each data set. A rule looks only at the
sequence's name and, for nuScenes, at where and how the scene was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from xmodal_seg.training.data.raw_classes import DatasetName


@dataclass(frozen=True, kw_only=True)
class SequenceInfo:
    """What a split rule may look at."""

    name: str  # such as scene-0061, 08, 0001, 20180810_142822
    location: str = ""  # nuScenes: of the scene's log, such as singapore-onenorth
    description: str = ""  # nuScenes: of the scene, such as "Night, pedestrians"


@dataclass(frozen=True, kw_only=True)
class KnownCount:
    """Frames of a split in the full data set, and how far that number can be trusted.

    `computed`: follows from published code or official totals, so another number is an error.
    `remembered`: no primary source was read again; another number is a warning.
    """

    frames: int
    source: Literal["computed", "remembered"]


Rule = Callable[[SequenceInfo], bool]


def _numbers(text: str) -> frozenset[int]:
    """`4-6 9` -> {4, 5, 6, 9}."""
    ends = [part.split("-") for part in text.split()]
    return frozenset(number for end in ends for number in range(int(end[0]), int(end[-1]) + 1))


# nuScenes' official 700 train and 150 val scenes; the benchmark tests on the official val scenes.
NUSCENES_TRAIN = _numbers(
    "1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 202-204 206-214 "
    "218-220 222 224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 410-459 461-465 467-469 471-472 "
    "474-480 499-502 504-515 517-518 525-539 541-546 566 568 570-578 580 582-600 639-679 681 683-689 695-698 700-701 "
    "703-719 726-728 730-731 733-741 744 746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813 815-817 "
    "819-822 847-856 858 860-866 868-873 875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-992 994-1025 "
    "1044-1058 1074-1102 1104-1110"
)
NUSCENES_TEST = _numbers(
    "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 "
    "777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"
)
# Held out of the target's train scenes; the sources have no val split.
NUSCENES_VAL_NIGHT = _numbers("1044-1058")
NUSCENES_VAL_SINGAPORE = _numbers(
    "4-11 45-54 347-349 356-359 786-787 789-792 847-856 858 860-866 975-984 988-991 1044 1106-1110"
)

SEMANTIC_KITTI_TRAIN = ("00", "01", "02", "03", "04", "05", "06", "09", "10")
SEMANTIC_KITTI_HIDDEN_TEST = ("11", "12", "13", "14", "15", "16", "17", "18", "19", "20", "21")
VIRTUAL_KITTI_TRAIN = ("0001", "0002", "0006", "0018", "0020")
A2D2_TRAIN = (
    "20180810_142822",
    "20180925_101535",
    "20180925_112730",
    "20180925_124435",
    "20180925_135056",
    "20181008_095521",
    "20181016_082154",
    "20181016_125231",
    "20181107_132300",
    "20181107_132730",
    "20181107_133258",
    "20181107_133445",
    "20181108_084007",
    "20181108_091945",
    "20181108_103155",
    "20181108_123750",
    "20181108_141609",
    "20181204_135952",
    "20181204_154421",
    "20181204_170238",
)
A2D2_TEST = ("20180807_145028",)
# The download has two more sequences, 20181016_095036 and 20181204_191844, without LiDAR.

_NOTHING: frozenset[int] = frozenset()


def _scene_number(sequence: SequenceInfo) -> int:
    digits = sequence.name.removeprefix("scene-")
    if not digits.isdigit():
        raise ValueError(f"expected a scene of nuScenes such as scene-0061, got {sequence.name!r}")
    return int(digits)


def _is_usa(sequence: SequenceInfo) -> bool:
    return "boston" in sequence.location


def _is_singapore(sequence: SequenceInfo) -> bool:
    return "singapore" in sequence.location


def _is_night(sequence: SequenceInfo) -> bool:
    return "night" in sequence.description.lower()


def _is_day(sequence: SequenceInfo) -> bool:
    return not _is_night(sequence)


def _scene_rule(
    sequence: SequenceInfo, *, scenes: Collection[int], domain: Rule | None = None, without: Collection[int] = _NOTHING
) -> bool:
    number = _scene_number(sequence)
    return number in scenes and number not in without and (domain is None or domain(sequence))


def _name_rule(sequence: SequenceInfo, *, names: Collection[str]) -> bool:
    return sequence.name in names


def _scenes(scenes: Collection[int], *, domain: Rule | None = None, without: Collection[int] = _NOTHING) -> Rule:
    return partial(_scene_rule, scenes=scenes, domain=domain, without=without)


def _names(names: Collection[str]) -> Rule:
    return partial(_name_rule, names=frozenset(names))


SPLITS: dict[DatasetName, dict[str, Rule]] = {
    "nuscenes": {
        "train_usa": _scenes(NUSCENES_TRAIN, domain=_is_usa),
        "test_usa": _scenes(NUSCENES_TEST, domain=_is_usa),
        "train_singapore": _scenes(NUSCENES_TRAIN, domain=_is_singapore, without=NUSCENES_VAL_SINGAPORE),
        "val_singapore": _scenes(NUSCENES_TRAIN & NUSCENES_VAL_SINGAPORE, domain=_is_singapore),
        "test_singapore": _scenes(NUSCENES_TEST, domain=_is_singapore),
        "train_day": _scenes(NUSCENES_TRAIN, domain=_is_day),
        "test_day": _scenes(NUSCENES_TEST, domain=_is_day),
        "train_night": _scenes(NUSCENES_TRAIN, domain=_is_night, without=NUSCENES_VAL_NIGHT),
        "val_night": _scenes(NUSCENES_TRAIN & NUSCENES_VAL_NIGHT, domain=_is_night),
        "test_night": _scenes(NUSCENES_TEST, domain=_is_night),
        "official_train": _scenes(NUSCENES_TRAIN),
        "official_val": _scenes(NUSCENES_TEST),
    },
    "semantic_kitti": {
        "train": _names(SEMANTIC_KITTI_TRAIN),
        "val": _names(("07",)),
        "test": _names(("08",)),
        "hidden_test": _names(SEMANTIC_KITTI_HIDDEN_TEST),
    },
    "virtual_kitti": {"train": _names(VIRTUAL_KITTI_TRAIN)},
    "a2d2": {
        "train": _names(A2D2_TRAIN),
        "test": _names(A2D2_TEST),
    },
}

KNOWN_COUNTS: dict[DatasetName, dict[str, KnownCount]] = {
    "nuscenes": {
        "official_train": KnownCount(frames=28130, source="computed"),
        "official_val": KnownCount(frames=6019, source="computed"),
        "train_usa": KnownCount(frames=15695, source="computed"),
        "test_usa": KnownCount(frames=3090, source="remembered"),
        "train_singapore": KnownCount(frames=9665, source="remembered"),
        "val_singapore": KnownCount(frames=2770, source="remembered"),
        "test_singapore": KnownCount(frames=2929, source="remembered"),
        "train_day": KnownCount(frames=24745, source="computed"),
        "test_day": KnownCount(frames=5417, source="remembered"),
        "train_night": KnownCount(frames=2779, source="remembered"),
        "val_night": KnownCount(frames=606, source="remembered"),
        "test_night": KnownCount(frames=602, source="remembered"),
    },
    "semantic_kitti": {
        "train": KnownCount(frames=18029, source="computed"),
        "val": KnownCount(frames=1101, source="computed"),
        "test": KnownCount(frames=4071, source="computed"),
    },
    "virtual_kitti": {"train": KnownCount(frames=2126, source="computed")},
    "a2d2": {
        "train": KnownCount(frames=27695, source="remembered"),
        "test": KnownCount(frames=942, source="remembered"),
    },
}


def split_rule(dataset: DatasetName, split: str) -> Rule:
    """The rule of a split. Raises ValueError for one the data set does not have."""
    rules = SPLITS[dataset]
    if split not in rules:
        raise ValueError(f"split of {dataset}: expected one of {', '.join(rules)}, got {split!r}")
    return rules[split]


def count_splits(dataset: DatasetName, sequences: Mapping[SequenceInfo, int]) -> dict[str, int]:
    """Frames of each split, from the frames of each sequence."""
    return {
        split: sum(frames for sequence, frames in sequences.items() if rule(sequence))
        for split, rule in SPLITS[dataset].items()
    }


def compare_counts(counts: Mapping[str, int], known: Mapping[str, KnownCount]) -> tuple[list[str], list[str]]:
    """Errors and warnings, one sentence for each split that has not its known number of frames."""
    errors: list[str] = []
    warnings: list[str] = []
    for split, expected in known.items():
        found = counts.get(split, 0)
        if found != expected.frames:
            sentence = f"split {split}: expected {expected.frames} frames ({expected.source}), got {found}"
            (errors if expected.source == "computed" else warnings).append(sentence)
    return errors, warnings
