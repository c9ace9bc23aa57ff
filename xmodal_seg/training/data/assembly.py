# SPDX-License-Identifier: Apache-2.0
"""The last part of preparation: one index over all shards, and what was made in numbers."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.training.data.prepared import (
    CAMERAS_FILE,
    FRAME_DTYPE,
    FRAMES_FILE,
    Header,
    camera_dtype,
    write_array,
)
from xmodal_seg.training.data.sources import Source
from xmodal_seg.training.data.splits import SequenceInfo


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What preparation has made."""

    header: Header
    frames_of: dict[SequenceInfo, int]
    histograms: dict[SequenceInfo, dict[int, int]]  # points of each raw id
    damaged: tuple[str, ...]  # one sentence each, naming the file
    empty: tuple[str, ...]  # frames that no camera sees a point of
    num_shards_done_before: int


def assemble(
    out: Path, *, source: Source, scope: str, shards: Sequence[str], reports: Sequence[Mapping[str, Any]]
) -> Preparation:
    """Write the index files of a prepared folder from the reports of its shards.

    Args:
        shards: file names in points/.
        reports: of each shard, as `preparation.prepare_shard` writes them.

    Raises ValueError if no frame is left.
    """
    rows = [{**row, "shard": number} for number, report in enumerate(reports) for row in report["rows"]]
    if not rows:
        raise ValueError(f"{out}: no frame could be prepared" + _first_reason(reports))
    present = {row["sequence"] for row in rows}
    sequences = tuple(sequence for sequence in source.sequences() if sequence.name in present)
    header = Header(
        dataset=source.dataset,
        cameras=source.cameras,
        variants=source.variants,
        points=scope,
        has_intensity=source.has_intensity,
        raw_classes=dict(source.raw_classes()),
        sequences=sequences,
        image_root="." if source.rectifies else str(source.root.resolve()),
        shards=tuple(shards),
        content=_content_hash(reports),
    )
    write_array(out / FRAMES_FILE, _frame_array(rows, sequences))
    write_array(out / CAMERAS_FILE, _camera_array(rows, source.cameras))
    header.write(out)
    return _summary(header, rows, reports)


def _content_hash(reports: Sequence[Mapping[str, Any]]) -> str:
    """16 hex digits over points, labels, stamps, calibrations and which image belongs to them."""
    digest = hashlib.sha256()
    for report in reports:
        digest.update(json.dumps([report["content"], report["rows"]], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _frame_array(rows: Sequence[Mapping[str, Any]], sequences: Sequence[SequenceInfo]) -> NDArray[Any]:
    numbers = {sequence.name: number for number, sequence in enumerate(sequences)}
    array = np.zeros(len(rows), dtype=FRAME_DTYPE)
    for name in ("shard", "first", "num_points", "num_sweep_points", "stamp_ns"):
        array[name] = [row[name] for row in rows]
    array["sequence"] = [numbers[row["sequence"]] for row in rows]
    array["name"] = [row["name"].encode() for row in rows]
    return array


def _camera_array(rows: Sequence[Mapping[str, Any]], cameras: Sequence[str]) -> NDArray[Any]:
    longest = max(len(camera["image"].encode()) for row in rows for camera in row["cameras"])
    array = np.zeros((len(rows), len(cameras)), dtype=camera_dtype(longest))
    for number, row in enumerate(rows):
        for camera in row["cameras"]:
            target = array[number, cameras.index(camera["name"])]
            target["present"] = True
            for name in ("camera_matrix", "camera_T_lidar", "image_size", "stamp_ns"):
                target[name] = camera[name]
            target["image"] = camera["image"].encode()
    return array


def _summary(header: Header, rows: Iterable[Mapping[str, Any]], reports: Sequence[Mapping[str, Any]]) -> Preparation:
    by_name = {sequence.name: sequence for sequence in header.sequences}
    frames_of: dict[SequenceInfo, int] = defaultdict(int)
    histograms: dict[SequenceInfo, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        sequence = by_name[row["sequence"]]
        frames_of[sequence] += 1
        for raw_id, count in row["histogram"].items():
            histograms[sequence][int(raw_id)] += count
    return Preparation(
        header=header,
        frames_of=dict(frames_of),
        histograms={sequence: dict(counts) for sequence, counts in histograms.items()},
        damaged=tuple(sentence for report in reports for sentence in report["damaged"]),
        empty=tuple(name for report in reports for name in report["empty"]),
        num_shards_done_before=0,
    )


def _first_reason(reports: Sequence[Mapping[str, Any]]) -> str:
    damaged = [sentence for report in reports for sentence in report["damaged"]]
    return f"; the first of {len(damaged)} damaged files: {damaged[0]}" if damaged else ""
