# SPDX-License-Identifier: Apache-2.0
"""Predictions in the official files, read back and checked by the rules of the official validators."""

import json
from pathlib import Path

import numpy as np
import pytest
from miniatures import Scene, make_nuscenes, make_semantic_kitti, make_virtual_kitti, run_prepare
from tiny_world import tiny_recipe, write_tiny_world

from xmodal_seg.labels import NUSCENES_6, SEMANTIC_KITTI_10, UNLABELED, VIRTUAL_KITTI_6
from xmodal_seg.training.data.class_merges import find_merge, merge_table
from xmodal_seg.training.data.dataset import FixedSubset
from xmodal_seg.training.data.prepared_dataset import open_dataset
from xmodal_seg.training.data.raw_classes import SEMANTIC_KITTI_CLASSES
from xmodal_seg.training.data.tasks import open_domains
from xmodal_seg.training.official_formats import NUSCENES_CHALLENGE_CLASSES, OfficialWriter, official_ids

NUM_POINTS = 211
# learning_map of semantic-kitti.yaml: the raw ids that the evaluation counts as no class.
KITTI_NOT_COUNTED = {0, 1, 52, 99}


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    make_semantic_kitti(tmp_path / "kitti", {"00": 1, "08": 2}, num_points=NUM_POINTS)
    assert run_prepare("semantic_kitti", tmp_path / "kitti", tmp_path / "prepared", "--partial") == 0
    return tmp_path / "prepared"


@pytest.fixture
def nuscenes(tmp_path: Path) -> Path:
    scenes = (Scene("scene-0012", "singapore-queenstown", "Left"), Scene("scene-0061", "singapore-onenorth", "Truck"))
    make_nuscenes(tmp_path / "nuscenes", scenes, num_points=NUM_POINTS)
    flags = ("--partial", "--cameras", "all", "--points", "all")
    assert run_prepare("nuscenes", tmp_path / "nuscenes", tmp_path / "prepared", *flags) == 0
    return tmp_path / "prepared"


@pytest.mark.parametrize("space", [SEMANTIC_KITTI_10, VIRTUAL_KITTI_6], ids=lambda space: space.name)
def test_kitti_files_merge_back_to_the_predictions(space, kitti: Path, tmp_path: Path) -> None:
    dataset = open_dataset(kitti, split="test", label_space=space.name)
    rng = np.random.default_rng(0)
    table = merge_table(find_merge("semantic_kitti", space.name), SEMANTIC_KITTI_CLASSES, where="test")
    writer = OfficialWriter(dataset, tmp_path / "official")
    for index in range(2):
        labels = rng.integers(0, space.num_classes, dataset.points(index).size)
        labels[:3] = UNLABELED, -100, 0
        path = writer.write(index, labels)
        assert path == tmp_path / "official" / "sequences" / "08" / "predictions" / f"{index:06d}.label"
        official = np.fromfile(path, dtype="<u4")
        assert official.size == NUM_POINTS  # one per point of the sweep, not of the camera's view
        seen = dataset.points(index)["sweep_index"]
        np.testing.assert_array_equal(table[official[seen[2:]]], labels[2:])
        assert (official[seen[:2]] == 0).all()
        unseen = np.setdiff1d(np.arange(NUM_POINTS), seen)
        assert unseen.size
        assert (official[unseen] == 0).all()


def test_every_kitti_class_is_written_as_one_that_is_counted() -> None:
    for space in (SEMANTIC_KITTI_10, VIRTUAL_KITTI_6):
        assert not KITTI_NOT_COUNTED & set(official_ids("semantic_kitti", space.class_names))


def test_nuscenes_files_pass_the_validators_rules(nuscenes: Path, tmp_path: Path) -> None:
    """nuscenes-devkit, eval/lidarseg/validate_submission.py: every sweep, every point, ids 1 to 16, five booleans."""
    rng = np.random.default_rng(0)
    for split, part in (("test_singapore", "val"), ("train_singapore", "train")):
        dataset = open_dataset(nuscenes, split=split)
        writer = OfficialWriter(dataset, tmp_path / "official")
        for index in range(len(dataset)):
            labels = rng.integers(0, 6, dataset.points(index).size)
            path = writer.write(index, labels)
            assert path == tmp_path / "official" / "lidarseg" / part / f"{dataset.frame_name(index)[1]}_lidarseg.bin"
            official = np.fromfile(path, dtype=np.uint8)
            assert official.size == NUM_POINTS
            assert ((official > 0) & (official < len(NUSCENES_CHALLENGE_CLASSES))).all()
            names = np.array([NUSCENES_CHALLENGE_CLASSES[value] for value in official])
            for train_id, name in enumerate(NUSCENES_6.class_names):
                assert set(names[labels == train_id]) == {"car" if name == "vehicle" else name}
        meta = json.loads((tmp_path / "official" / part / "submission.json").read_text())["meta"]
        assert set(meta) == {"use_camera", "use_lidar", "use_radar", "use_map", "use_external"}
        assert all(isinstance(value, bool) for value in meta.values())


def test_errors(kitti: Path, tmp_path: Path) -> None:
    dataset = open_dataset(kitti, split="test")
    with pytest.raises(ValueError, match=r"labels of frame 0: expected \(\d+,\), got \(3,\)"):
        OfficialWriter(dataset, tmp_path).write(0, np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match=r"official files need every point, and data\.max_points leaves"):
        OfficialWriter(FixedSubset(dataset, max_points=5), tmp_path)
    write_tiny_world(tmp_path / "world")
    world = open_domains(tiny_recipe(tmp_path / "world", data={"max_points": None})).target_test
    with pytest.raises(ValueError, match=r"only what training/prepare_\*.py wrote has an official format"):
        OfficialWriter(world, tmp_path)
    make_virtual_kitti(tmp_path / "vkitti", {"0002": 1})
    assert run_prepare("virtual_kitti", tmp_path / "vkitti", tmp_path / "v", "--partial") == 0
    with pytest.raises(
        ValueError, match=r"virtual_kitti/train: has no official format; nuscenes and semantic_kitti have"
    ):
        OfficialWriter(open_dataset(tmp_path / "v", split="train"), tmp_path)
