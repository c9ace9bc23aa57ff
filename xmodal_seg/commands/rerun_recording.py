# SPDX-License-Identifier: Apache-2.0
"""A recording of an evaluation for the rerun viewer: images, labelled sweeps, ground truth, curves."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import numpy as np

from xmodal_seg.bag_evaluation import ScoredFrame
from xmodal_seg.labels import IGNORE_INDEX, UNLABELED, LabelSpace

_JPEG_QUALITY = 75
_POINT_RADIUS_M = 0.06


class RerunRecording:
    """Writes FILE.rrd while frames are added; use as a context manager.

    Entities: `cameras/<name>`, `truth`, `labels/<mode>`, `miou/<mode>`, `guidance`, on the timeline `bag`. Raises
    ValueError where rerun-sdk is not installed.
    """

    def __init__(self, path: str | Path, *, label_space: LabelSpace) -> None:
        if find_spec("rerun") is None:
            raise ValueError("--rerun: rerun-sdk is not installed; pip install 'xmodal_seg[viz]'")
        import rerun

        self._rerun = rerun
        self._stream = rerun.RecordingStream("xmodal_seg")
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        self._stream.save(path)
        classes = [
            (class_id, name, colour)
            for class_id, (name, colour) in enumerate(zip(label_space.class_names, label_space.colours, strict=True))
        ]
        context = rerun.AnnotationContext([*classes, (UNLABELED, "unlabeled", (128, 128, 128))])
        self._stream.log("/", context, static=True)
        self._stream.log("/", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        self._first_mode: str | None = None

    def __enter__(self) -> RerunRecording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.flush()
        self._stream.disconnect()

    def add(self, mode: str, scored: ScoredFrame) -> None:
        """The frame as `mode` labelled it; what all modes have in common is written with the first one."""
        self._first_mode = self._first_mode or mode
        self._stream.set_time("bag", timestamp=np.datetime64(scored.score.stamp_ns, "ns"))
        if mode == self._first_mode:
            self._add_inputs(scored)
        self._add_points(f"labels/{mode}", scored, scored.labels)
        if scored.score.num_scored:
            self._stream.log(f"miou/{mode}", self._rerun.Scalars(scored.score.confusion.mean_iou()))

    def _add_inputs(self, scored: ScoredFrame) -> None:
        for view in scored.frame.cameras:
            image = self._rerun.Image(view.image).compress(jpeg_quality=_JPEG_QUALITY)
            self._stream.log(f"cameras/{view.name}", image)
        if scored.frame.labels is not None:
            truth = np.where(scored.frame.labels == IGNORE_INDEX, UNLABELED, scored.frame.labels)
            self._add_points("truth", scored, truth)
        if scored.score.light.guidance is not None:
            self._stream.log("guidance", self._rerun.Scalars(scored.score.light.guidance))

    def _add_points(self, entity: str, scored: ScoredFrame, labels: np.ndarray) -> None:
        points = scored.frame.points
        finite = np.isfinite(points).all(axis=1)
        self._stream.log(
            entity,
            self._rerun.Points3D(
                points[finite], class_ids=labels[finite].astype(np.uint16), radii=_POINT_RADIUS_M, show_labels=False
            ),
        )
