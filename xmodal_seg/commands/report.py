# SPDX-License-Identifier: Apache-2.0
"""What comes out of labelling a bag: counts, mIoU against ground truth, one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_seg.geometry import project_frame
from xmodal_seg.labels import LabelSpace
from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.structures import NO_CAMERA, Frame
from xmodal_seg.visualize import class_counts, summary_panel, write_png

UNTRAINED = "UNTRAINED weights: the labels mean nothing"


class LabelReport:
    """Adds up labelled frames; the picture is of frame number `shown`."""

    def __init__(self, *, label_space: LabelSpace, truth_space: LabelSpace | None, trained: bool, shown: int) -> None:
        self._label_space = label_space
        self._trained = trained
        self._shown = shown
        self._num_frames = self._num_points = 0
        self._counts = dict.fromkeys((*label_space.class_names, "unlabeled"), 0)
        # Comparing is meaningful only if both speak of the same classes.
        self._comparable = truth_space is not None and truth_space.class_names == label_space.class_names
        # Points that no camera sees have the 3D head alone: two tasks of different difficulty.
        self._seen, self._unseen = (ConfusionMatrix(num_classes=label_space.num_classes) for _ in range(2))
        self._picture: tuple[Frame, NDArray[np.uint8]] | None = None

    def add(self, frame: Frame, labels: NDArray[np.uint8]) -> None:
        """`labels` (N,) of the frame's points, UNLABELED where nothing is said."""
        if self._num_frames <= self._shown:
            self._picture = (frame, labels)
        self._num_frames += 1
        self._num_points += frame.num_points
        for name, count in class_counts(labels, self._label_space).items():
            self._counts[name] += count
        if self._comparable and frame.labels is not None:
            seen = project_frame(frame).camera_index != NO_CAMERA
            self._seen.update(frame.labels[seen], labels[seen])
            self._unseen.update(frame.labels[~seen], labels[~seen])

    def metrics(self) -> dict[str, Any]:
        """Numbers for metrics.json; mIoU in percent, None without comparable ground truth."""
        counts = self._seen.counts + self._unseen.counts
        confusion = ConfusionMatrix(num_classes=self._seen.num_classes, counts=counts)
        iou = zip(self._label_space.class_names, confusion.iou(), strict=True)
        known = {name: round(100 * float(value), 1) for name, value in iou if not np.isnan(value)}
        return {
            "frames": self._num_frames,
            "points": self._num_points,
            "points_per_class": self._counts,
            "miou": _miou(confusion),
            "miou_seen_by_a_camera": _miou(self._seen),
            "miou_seen_by_none": _miou(self._unseen),
            "iou_per_class": known or None,
        }

    def write(self, out: Path, *, title: str, details: dict[str, Any]) -> None:
        """metrics.json with `details` besides, and summary.png if there was a frame."""
        text = json.dumps({**self.metrics(), **details}, indent=2)
        (out / "metrics.json").write_text(text + "\n", encoding="utf-8")
        if self._picture is not None:
            frame, labels = self._picture
            title = f"{title}   frame {min(self._shown, self._num_frames - 1)}, stamp {frame.stamp_ns / 1e9:.3f} s"
            warning = "" if self._trained else UNTRAINED
            write_png(
                out / "summary.png", summary_panel(frame, labels, self._label_space, title=title, warning=warning)
            )


def _miou(confusion: ConfusionMatrix) -> float | None:
    """Percent; None without a point of known class."""
    return round(confusion.mean_iou(), 1) if int(confusion.counts.sum()) else None
