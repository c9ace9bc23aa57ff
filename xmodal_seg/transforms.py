# SPDX-License-Identifier: Apache-2.0
"""A tree of coordinate frames, for machines without tf2 and for bags read without ROS.

The convention is ROS's: a transform stored for (parent, child) is `parent_T_child`, the pose of the child in the
parent, and maps child coordinates to parent coordinates. `lookup(target, source)` gives `target_T_source`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xmodal_seg.geometry import invert_rigid

Matrix = NDArray[np.float64]


@dataclass
class _Edge:
    """How a child sits in its parent: one pose when static, else poses by stamp in rising order."""

    parent: str
    static: bool
    stamps_ns: list[int] = field(default_factory=list)
    matrices: list[Matrix] = field(default_factory=list)


class TransformTree:
    """Transforms between frames by name and time; safe to use from several threads.

    A static transform holds for all times and the last one given wins. Moving ones are interpolated between the two
    nearest stamps; outside the known span the nearest one serves if it is at most `max_extrapolation_ns` away.
    Samples older than `history_ns` before the newest one of their frame are dropped (None keeps all).
    """

    def __init__(self, *, max_extrapolation_ns: int = 100_000_000, history_ns: int | None = 10_000_000_000) -> None:
        self._max_extrapolation_ns = max_extrapolation_ns
        self._history_ns = history_ns
        self._edges: dict[str, _Edge] = {}  # by child
        self._lock = threading.Lock()

    def add(self, parent: str, child: str, matrix: ArrayLike, stamp_ns: int = 0, static: bool = False) -> None:
        """Store `parent_T_child`, (4, 4) in metres.

        Raises ValueError for an empty frame name, a frame that is its own parent and a matrix that is not rigid.
        """
        parent, child = frame_name(parent), frame_name(child)
        where = f"transform {parent!r} -> {child!r}"
        if not parent or not child:
            raise ValueError(f"{where}: expected two frame names, got an empty one")
        if parent == child:
            raise ValueError(f"{where}: a frame cannot be its own parent")
        rigid = check_rigid(matrix, where=where)
        with self._lock:
            edge = self._edges.get(child)
            if edge is None or edge.parent != parent or edge.static != static:
                edge = self._edges[child] = _Edge(parent=parent, static=static)
            if static:
                edge.stamps_ns, edge.matrices = [stamp_ns], [rigid]
            else:
                self._insert(edge, stamp_ns, rigid)

    def add_message(self, message: Any, *, static: bool) -> None:
        """Store a `geometry_msgs/TransformStamped` (of rclpy, rosbags or any look-alike)."""
        stamp = message.header.stamp
        move, turn = message.transform.translation, message.transform.rotation
        parent, child = message.header.frame_id, message.child_frame_id
        matrix = matrix_from_pose(
            (move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w), where=f"transform {parent!r} -> {child!r}"
        )
        self.add(parent, child, matrix, stamp.sec * 1_000_000_000 + stamp.nanosec, static)

    def lookup(self, target: str, source: str, stamp_ns: int | None = None) -> Matrix:
        """`target_T_source` (4, 4) at `stamp_ns` (None: the newest); maps source coordinates to target coordinates.

        Raises ValueError naming both frames when one is unknown, when nothing connects them, and when a moving
        transform between them is not known at that time.
        """
        target, source = frame_name(target), frame_name(source)
        with self._lock:
            if target == source:
                return np.eye(4)
            try:
                return self._lookup(target, source, stamp_ns)
            except ValueError as error:
                raise ValueError(f"no transform from {source!r} to {target!r}: {error}") from error

    def frames(self) -> tuple[str, ...]:
        """The names of all frames, sorted."""
        with self._lock:
            return self._frames()

    def clear(self) -> None:
        """Forget the moving transforms, as a jump in time demands; static ones stay."""
        with self._lock:
            self._edges = {child: edge for child, edge in self._edges.items() if edge.static}

    def _lookup(self, target: str, source: str, stamp_ns: int | None) -> Matrix:
        known = self._frames()
        missing = [repr(name) for name in (source, target) if name not in known]
        if missing:
            raise ValueError(f"{' and '.join(missing)} not known; known frames: {', '.join(known) or 'none'}")
        target_chain, source_chain = self._chain(target), self._chain(source)
        shared = next((name for name in source_chain if name in target_chain), None)
        if shared is None:
            raise ValueError(
                f"nothing connects them ({source!r} hangs under {source_chain[-1]!r}, "
                f"{target!r} under {target_chain[-1]!r})"
            )
        shared_T_source = self._compose(source_chain[: source_chain.index(shared)], stamp_ns)
        shared_T_target = self._compose(target_chain[: target_chain.index(shared)], stamp_ns)
        return invert_rigid(shared_T_target) @ shared_T_source

    def _insert(self, edge: _Edge, stamp_ns: int, matrix: Matrix) -> None:
        position = bisect_left(edge.stamps_ns, stamp_ns)
        if position < len(edge.stamps_ns) and edge.stamps_ns[position] == stamp_ns:
            edge.matrices[position] = matrix
            return
        edge.stamps_ns.insert(position, stamp_ns)
        edge.matrices.insert(position, matrix)
        if self._history_ns is not None:
            first_kept = bisect_left(edge.stamps_ns, edge.stamps_ns[-1] - self._history_ns)
            del edge.stamps_ns[:first_kept], edge.matrices[:first_kept]

    def _frames(self) -> tuple[str, ...]:
        return tuple(sorted(self._edges.keys() | {edge.parent for edge in self._edges.values()}))

    def _chain(self, frame: str) -> list[str]:
        """`frame` and its ancestors, nearest first."""
        chain = [frame]
        while (edge := self._edges.get(chain[-1])) is not None:
            if edge.parent in chain:
                raise ValueError(f"the frames {', '.join(repr(name) for name in chain)} form a loop")
            chain.append(edge.parent)
        return chain

    def _compose(self, children: list[str], stamp_ns: int | None) -> Matrix:
        """Pose of the first child in the parent of the last."""
        matrix = np.eye(4)
        for child in children:
            matrix = self._at(child, stamp_ns) @ matrix
        return matrix

    def _at(self, child: str, stamp_ns: int | None) -> Matrix:
        edge = self._edges[child]
        if edge.static or stamp_ns is None:
            return edge.matrices[-1]
        position = bisect_left(edge.stamps_ns, stamp_ns)
        if 0 < position < len(edge.stamps_ns):
            before_ns, after_ns = edge.stamps_ns[position - 1], edge.stamps_ns[position]
            fraction = (stamp_ns - before_ns) / (after_ns - before_ns)
            return interpolate(edge.matrices[position - 1], edge.matrices[position], fraction)
        nearest = min(position, len(edge.stamps_ns) - 1)
        distance_ns = abs(edge.stamps_ns[nearest] - stamp_ns)
        if distance_ns > self._max_extrapolation_ns:
            raise ValueError(
                f"{edge.parent!r} -> {child!r} is known {distance_ns / 1e9:.3f} s away from {stamp_ns / 1e9:.3f} s; "
                f"at most {self._max_extrapolation_ns / 1e9:.3f} s are bridged"
            )
        return edge.matrices[nearest]


def frame_name(name: str) -> str:
    """A frame's name without the leading slash that ROS 1 wrote."""
    return name.removeprefix("/")


def check_rigid(matrix: ArrayLike, *, where: str) -> Matrix:
    """`matrix` as (4, 4) float64; ValueError starting with `where` unless it is a rotation and a translation."""
    rigid = np.array(matrix, dtype=np.float64)
    if rigid.shape != (4, 4) or not np.isfinite(rigid).all():
        raise ValueError(f"{where}: expected a finite (4, 4) matrix, got shape {rigid.shape}: {rigid.tolist()}")
    rotation = rigid[:3, :3]
    orthonormal = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) and np.linalg.det(rotation) > 0
    if not orthonormal or not np.array_equal(rigid[3], (0, 0, 0, 1)):
        raise ValueError(f"{where}: expected a rotation and a translation, got {rigid.tolist()}")
    return rigid


def interpolate(first: Matrix, second: Matrix, fraction: float) -> Matrix:
    """The pose `fraction` of the way from `first` to `second`: straight line and constant turn (slerp)."""
    start, start_turn = pose_from_matrix(first)
    end, end_turn = pose_from_matrix(second)
    cosine = float(start_turn @ end_turn)
    if cosine < 0:  # a quaternion and its negative are one rotation: go the short way
        cosine, end_turn = -cosine, -end_turn
    angle = np.arccos(min(cosine, 1.0))
    # Below a few microradians sin(angle) loses all digits and the straight mix is exact.
    if angle < 1e-6:
        turn = start_turn + fraction * (end_turn - start_turn)
    else:
        turn = np.sin((1 - fraction) * angle) * start_turn + np.sin(fraction * angle) * end_turn
    return matrix_from_pose(start + fraction * (end - start), turn)


def matrix_from_pose(translation: ArrayLike, quaternion: ArrayLike, *, where: str = "pose") -> Matrix:
    """(4, 4) of a translation (3,) m and a quaternion (x, y, z, w) of any length.

    Raises ValueError starting with `where` for a quaternion of length zero or a value that is not finite.
    """
    turn = np.asarray(quaternion, dtype=np.float64)
    move = np.asarray(translation, dtype=np.float64)
    norm = float(np.linalg.norm(turn))
    if not np.isfinite(norm) or norm < 1e-9 or not np.isfinite(move).all():
        raise ValueError(
            f"{where}: expected a finite translation and a quaternion that is not zero, "
            f"got {move.tolist()} and {turn.tolist()}"
        )
    x, y, z, w = turn / norm
    matrix = np.eye(4)
    matrix[:3, :3] = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    matrix[:3, 3] = move
    return matrix


def pose_from_matrix(matrix: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Translation (3,) m and unit quaternion (x, y, z, w) of a rigid (4, 4)."""
    r = matrix[:3, :3]
    # 4 q q^T written with the entries of R: its largest column is q up to length, which is sound for every rotation
    # (the usual w-first formula divides by zero at half turns).
    outer = np.array(
        (
            (1 + r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]),
            (r[0, 1] + r[1, 0], 1 - r[0, 0] + r[1, 1] - r[2, 2], r[1, 2] + r[2, 1], r[0, 2] - r[2, 0]),
            (r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], 1 - r[0, 0] - r[1, 1] + r[2, 2], r[1, 0] - r[0, 1]),
            (r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], 1 + r[0, 0] + r[1, 1] + r[2, 2]),
        )
    )
    column = outer[:, int(np.argmax(np.diag(outer)))]
    quaternion = column / np.linalg.norm(column)
    return matrix[:3, 3].copy(), quaternion if quaternion[3] >= 0 else -quaternion
