# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from xmodal_seg.transforms import (
    TransformTree,
    check_rigid,
    interpolate,
    matrix_from_pose,
    pose_from_matrix,
)

SECOND = 1_000_000_000


def pose(x: float = 0.0, y: float = 0.0, z: float = 0.0, *, yaw: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:2, :2] = ((np.cos(yaw), -np.sin(yaw)), (np.sin(yaw), np.cos(yaw)))
    matrix[:3, 3] = (x, y, z)
    return matrix


def random_pose(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    matrix[:3, 3] = rng.normal(size=3)
    return matrix


def test_lookup_maps_points_from_source_to_target() -> None:
    tree = TransformTree()
    tree.add("base", "lidar", pose(1, 0, 2), static=True)
    origin_of_lidar = tree.lookup("base", "lidar") @ (0, 0, 0, 1)
    np.testing.assert_allclose(origin_of_lidar, (1, 0, 2, 1))


def test_lookup_works_in_both_directions() -> None:
    tree = TransformTree()
    tree.add("lidar", "camera", random_pose(1), static=True)
    np.testing.assert_allclose(tree.lookup("lidar", "camera"), random_pose(1))
    np.testing.assert_allclose(tree.lookup("camera", "lidar"), np.linalg.inv(random_pose(1)), atol=1e-12)


def test_chain_through_a_shared_ancestor_is_composed() -> None:
    tree = TransformTree()
    tree.add("base", "mast", random_pose(1), static=True)
    tree.add("mast", "lidar", random_pose(2), static=True)
    tree.add("base", "camera", random_pose(3), static=True)
    tree.add("camera", "camera_optical", random_pose(4), static=True)
    expected = np.linalg.inv(random_pose(3) @ random_pose(4)) @ random_pose(1) @ random_pose(2)
    np.testing.assert_allclose(tree.lookup("camera_optical", "lidar"), expected, atol=1e-12)
    np.testing.assert_allclose(tree.lookup("lidar", "lidar"), np.eye(4))


def test_names_with_a_leading_slash_are_the_same_frames() -> None:
    tree = TransformTree()
    tree.add("/base", "/lidar", pose(3), static=True)
    np.testing.assert_allclose(tree.lookup("base", "/lidar"), pose(3))
    assert tree.frames() == ("base", "lidar")


def test_last_static_transform_wins_and_a_child_can_move_to_another_parent() -> None:
    tree = TransformTree()
    tree.add("base", "lidar", pose(1), stamp_ns=7, static=True)
    tree.add("base", "lidar", pose(2), stamp_ns=3, static=True)
    np.testing.assert_allclose(tree.lookup("base", "lidar", 7), pose(2))
    tree.add("mast", "lidar", pose(5), static=True)
    np.testing.assert_allclose(tree.lookup("mast", "lidar"), pose(5))
    with pytest.raises(ValueError, match=r"'base' not known"):
        tree.lookup("base", "lidar")


def test_moving_transform_is_interpolated_between_stamps() -> None:
    tree = TransformTree()
    tree.add("base", "head", pose(0, yaw=0.2), stamp_ns=1 * SECOND)
    tree.add("base", "head", pose(8, yaw=0.6), stamp_ns=3 * SECOND)
    tree.add("base", "head", pose(4, yaw=1.0), stamp_ns=2 * SECOND)  # out of order
    np.testing.assert_allclose(tree.lookup("base", "head", 2 * SECOND), pose(4, yaw=1.0), atol=1e-12)
    np.testing.assert_allclose(tree.lookup("base", "head", int(1.25 * SECOND)), pose(1, yaw=0.4), atol=1e-12)
    np.testing.assert_allclose(tree.lookup("base", "head"), pose(8, yaw=0.6), atol=1e-12)


def test_outside_the_known_span_the_nearest_serves_only_if_close() -> None:
    tree = TransformTree(max_extrapolation_ns=SECOND // 10)
    tree.add("base", "head", pose(1), stamp_ns=5 * SECOND)
    np.testing.assert_allclose(tree.lookup("base", "head", 5 * SECOND + SECOND // 10), pose(1))
    with pytest.raises(ValueError, match=r"from 'head' to 'base'.* 0\.200 s away from 4\.800 s"):
        tree.lookup("base", "head", 5 * SECOND - SECOND // 5)


def test_same_stamp_replaces_and_old_samples_are_dropped() -> None:
    tree = TransformTree(max_extrapolation_ns=0, history_ns=2 * SECOND)
    tree.add("base", "head", pose(1), stamp_ns=0)
    tree.add("base", "head", pose(2), stamp_ns=0)
    np.testing.assert_allclose(tree.lookup("base", "head", 0), pose(2))
    tree.add("base", "head", pose(3), stamp_ns=3 * SECOND)
    with pytest.raises(ValueError, match=r"3\.000 s away"):
        tree.lookup("base", "head", 0)


def test_clear_keeps_static_transforms_only() -> None:
    tree = TransformTree()
    tree.add("base", "lidar", pose(1), static=True)
    tree.add("base", "head", pose(1), stamp_ns=5)
    tree.clear()
    assert tree.frames() == ("base", "lidar")


def test_missing_and_unconnected_frames_are_named() -> None:
    tree = TransformTree()
    with pytest.raises(ValueError, match=r"from 'lidar' to 'camera': 'lidar' and 'camera' not known; .*: none"):
        tree.lookup("camera", "lidar")
    tree.add("base", "lidar", pose(1), static=True)
    tree.add("world", "camera", pose(1), static=True)
    with pytest.raises(ValueError, match=r"from 'lidar' to 'camera': nothing connects them .*'base'.*'world'"):
        tree.lookup("camera", "lidar")


def test_a_loop_is_an_error_not_an_endless_walk() -> None:
    tree = TransformTree()
    tree.add("a", "b", pose(1), static=True)
    tree.add("b", "a", pose(1), static=True)
    with pytest.raises(ValueError, match=r"from 'a' to 'b': .*form a loop"):
        tree.lookup("b", "a")


@pytest.mark.parametrize(
    ("parent", "child", "matrix", "reason"),
    [
        ("", "lidar", np.eye(4), "empty"),
        ("lidar", "/lidar", np.eye(4), "own parent"),
        ("base", "lidar", np.eye(3), r"'base' -> 'lidar': expected a finite \(4, 4\)"),
        ("base", "lidar", np.full((4, 4), np.nan), "finite"),
        ("base", "lidar", np.diag((1.0, 1.0, -1.0, 1.0)), "a rotation and a translation"),
        ("base", "lidar", np.diag((2.0, 2.0, 2.0, 1.0)), "a rotation and a translation"),
        ("base", "lidar", np.diag((1.0, 1.0, 1.0, 2.0)), "a rotation and a translation"),
    ],
)
def test_bad_transforms_are_refused(parent: str, child: str, matrix: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TransformTree().add(parent, child, matrix)


def message(parent: str, child: str, move: tuple, turn: tuple) -> SimpleNamespace:
    return SimpleNamespace(
        header=SimpleNamespace(frame_id=parent, stamp=SimpleNamespace(sec=1, nanosec=500_000_000)),
        child_frame_id=child,
        transform=SimpleNamespace(
            translation=SimpleNamespace(x=move[0], y=move[1], z=move[2]),
            rotation=SimpleNamespace(x=turn[0], y=turn[1], z=turn[2], w=turn[3]),
        ),
    )


def test_messages_are_added_with_their_stamp() -> None:
    tree = TransformTree(max_extrapolation_ns=0)
    tree.add_message(message("base", "head", (1, 2, 3), (0, 0, 2, 2)), static=False)
    np.testing.assert_allclose(tree.lookup("base", "head", 1_500_000_000), pose(1, 2, 3, yaw=np.pi / 2), atol=1e-12)


def test_message_with_a_zero_quaternion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'base' -> 'head': .*quaternion"):
        TransformTree().add_message(message("base", "head", (1, 2, 3), (0, 0, 0, 0)), static=True)


@pytest.mark.parametrize("seed", range(5))
def test_pose_and_matrix_are_inverse_of_each_other(seed: int) -> None:
    matrix = random_pose(seed)
    np.testing.assert_allclose(matrix_from_pose(*pose_from_matrix(matrix)), matrix, atol=1e-12)


@pytest.mark.parametrize("diagonal", [(1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
def test_half_turns_survive_the_quaternion(diagonal: tuple[int, int, int]) -> None:
    matrix = np.diag((*diagonal, 1)).astype(float)
    np.testing.assert_allclose(matrix_from_pose(*pose_from_matrix(matrix)), matrix, atol=1e-12)


def test_interpolation_takes_the_short_way_and_its_ends() -> None:
    first, second = pose(0, yaw=np.radians(170)), pose(2, yaw=np.radians(-170))
    np.testing.assert_allclose(interpolate(first, second, 0.5), pose(1, yaw=np.pi), atol=1e-9)
    np.testing.assert_allclose(interpolate(first, second, 0.0), first, atol=1e-9)
    np.testing.assert_allclose(interpolate(first, first, 0.3), first, atol=1e-9)


def test_check_rigid_names_its_place() -> None:
    with pytest.raises(ValueError, match=r"calibration\.yaml: expected"):
        check_rigid(np.zeros((4, 4)), where="calibration.yaml")


def test_reading_while_another_thread_writes() -> None:
    tree = TransformTree(history_ns=50)
    tree.add("base", "head", pose(0), stamp_ns=0)
    writer = threading.Thread(target=lambda: [tree.add("base", "head", pose(i), stamp_ns=i) for i in range(2000)])
    writer.start()
    while writer.is_alive():
        x = tree.lookup("base", "head")[0, 3]
        assert 0 <= x < 2000
    writer.join()
    assert tree.lookup("base", "head")[0, 3] == 1999
