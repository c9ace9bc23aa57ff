# SPDX-License-Identifier: Apache-2.0
"""Tasks opened from recipes, subsets that stay the same, and the simulated domains."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_world import NUM_FRAMES, tiny_recipe, write_tiny_world

from xmodal_seg.labels import NUSCENES_6, VIRTUAL_KITTI_6
from xmodal_seg.training.data.dataset import Domains, FixedSubset, class_counts, log_class_weights
from xmodal_seg.training.data.frame_store import FrameStore
from xmodal_seg.training.data.simulated import DomainSettings
from xmodal_seg.training.data.tasks import PARTS, open_domains

needs_sim = pytest.mark.skipif(
    importlib.util.find_spec("embreex") is None, reason="the simulated world needs the extra `sim`"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_tiny_world(folder)
    return folder


def test_four_parts_share_a_label_space(root: Path) -> None:
    domains = open_domains(tiny_recipe(root, data={"max_points": None}))
    assert [len(getattr(domains, part)) for part in PARTS] == list(NUM_FRAMES.values())
    assert domains.label_space is NUSCENES_6
    assert domains.fingerprint == open_domains(tiny_recipe(root)).fingerprint


def test_subset_is_the_same_at_every_visit(root: Path) -> None:
    whole = open_domains(tiny_recipe(root, data={"max_points": None})).source_train
    subset = FixedSubset(whole, max_points=40)
    frame = subset[2]
    assert frame.num_points == 40
    np.testing.assert_array_equal(frame.points, subset[2].points)
    np.testing.assert_array_equal(frame.labels, subset.labels(2))
    rows = {tuple(point) for point in whole[2].points}
    assert all(tuple(point) in rows for point in frame.points)
    assert FixedSubset(whole, max_points=1000)[2].num_points == whole[2].num_points
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        FixedSubset(whole, max_points=0)


def test_class_weights_by_hand(root: Path) -> None:
    dataset = open_domains(tiny_recipe(root)).source_train
    counts = class_counts(dataset)
    labels = np.concatenate([dataset.labels(index) for index in range(len(dataset))])
    assert counts.tolist() == [int((labels == k).sum()) for k in range(6)]
    weights = log_class_weights(np.array([100, 0, 300]))
    smallest = np.log(5 * 400 / 300)
    np.testing.assert_allclose(weights, (np.log(5 * 400 / 100) / smallest, 1.0, 1.0))
    with pytest.raises(ValueError, match="no labelled point"):
        log_class_weights(np.zeros(3, dtype=np.int64))


def test_parts_that_do_not_fit_are_refused(root: Path) -> None:
    stores: dict[str, Any] = {part: FrameStore(root / "tiny" / part, label_space=NUSCENES_6) for part in PARTS}

    class Other:
        name, label_space = "other", VIRTUAL_KITTI_6

        def __len__(self) -> int:
            return 0

    with pytest.raises(ValueError, match="must share one label space, got nuscenes_6, virtual_kitti_6"):
        Domains(**{**stores, "target_val": Other()}, fingerprint="x")
    Other.label_space = NUSCENES_6
    with pytest.raises(ValueError, match="data set 'other' has no frames"):
        Domains(**{**stores, "target_val": Other()}, fingerprint="x")


def simulated(root: Path, label_space: str = "nuscenes_6", **target: Any) -> Any:
    """A recipe with two frames a part, small and coarse."""
    scale = {"image": 0.05, "columns": 90}
    options = {
        "label_space": label_space,
        "source": {"places": ["dev_a"], "rig": "nuscenes", "scale": scale},
        "target": {"places": ["dev_b"], "rig": "nuscenes", "scale": scale, "lights": ["night"], **target},
        "frames": dict.fromkeys(PARTS, 2),
        "frames_per_drive": 1,
        "num_processes": 1,
    }
    return tiny_recipe(root, data={"reader": "simulated", "options": options, "max_points": None})


@needs_sim
def test_simulated_domains_are_rendered_once_and_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    domains = open_domains(simulated(tmp_path))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    again = open_domains(simulated(tmp_path))
    assert again.fingerprint == domains.fingerprint
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    frames = [getattr(domains, part)[index] for part in PARTS for index in range(2)]
    assert len({frame.points.tobytes() for frame in frames}) == 8  # no street twice
    assert all((frame.labels >= 0).any() for frame in frames)
    day, night = frames[0].cameras[0].image, frames[2].cameras[0].image
    assert day.mean() > 2 * night.mean()
    assert "rendered by another version" not in caplog.text
    # The same sweeps serve another merge of the classes, without rendering anew.
    kitti = open_domains(simulated(tmp_path, label_space="virtual_kitti_6"))
    assert written.keys() == set(tmp_path.rglob("*.npy"))
    np.testing.assert_array_equal(kitti.source_train[1].points, domains.source_train[1].points)
    assert kitti.fingerprint != domains.fingerprint


@needs_sim
def test_thermal_pictures_show_the_same_streets_and_leave_other_worlds_their_names(tmp_path: Path) -> None:
    visible = open_domains(simulated(tmp_path, lights=["noon"]))
    folders = {path.name for path in (tmp_path / "worlds").iterdir() if path.is_dir()}
    usual = open_domains(simulated(tmp_path, lights=["noon"], appearance="visible"))
    assert usual.fingerprint == visible.fingerprint

    warm = open_domains(simulated(tmp_path, lights=["noon"], appearance="thermal"))

    assert warm.fingerprint != visible.fingerprint
    new = {path.name for path in (tmp_path / "worlds").iterdir() if path.is_dir()} - folders
    assert {name.rsplit("_", 1)[0] for name in new} == {"target_train", "target_val", "target_test"}
    np.testing.assert_array_equal(warm.target_val[1].points, visible.target_val[1].points)
    np.testing.assert_array_equal(warm.target_val[1].labels, visible.target_val[1].labels)
    seen, felt = (domains.target_val[1].cameras[0].image.astype(float) for domains in (visible, warm))
    assert np.corrcoef(seen.mean(axis=2).ravel(), felt.mean(axis=2).ravel())[0, 1] < -0.7
    assert DomainSettings(places=("a",), rig="b").facts() == {
        "places": ["a"],
        "rig": "b",
        "scale": {"image": 1.0, "columns": None, "beams": None, "points": None, "front_only": True},
        "lights": ["noon"],
        "weathers": ["clear"],
    }


@needs_sim
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"places": ["dev_b", "atlantis"]}, "data.options.target: place: expected one of .* got 'atlantis'"),
        ({"rig": "hubble"}, "data.options.target: rig: expected one of"),
        ({"lights": ["noon", "disco"]}, "data.options.target: light: expected one of"),
        ({"weathers": ["clear", "frogs"]}, "data.options.target: weather: expected one of"),
        ({"label_space": "mine_3"}, "data.options: label space: expected one of"),
        ({"place": "dev_b"}, "data.options: target.place"),
    ],
)
def test_bad_options_of_the_simulation_are_named_early(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_domains(simulated(tmp_path, **changes))
    assert not list(tmp_path.iterdir())
