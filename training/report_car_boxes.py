# SPDX-License-Identifier: Apache-2.0
"""From simulation to reality: what a checkpoint says inside and outside the labelled vehicles of real KITTI frames.

    python training/report_car_boxes.py --kitti FOLDER [--checkpoint FOLDER] [--bank day] [--pictures FOLDER]
    python training/report_car_boxes.py --kitti FOLDER --every-beam 2 --every-column 2    # a sparser LiDAR

FOLDER holds calib, image_2, label_2 and velodyne of KITTI's object frames. Of the points that the camera sees: the
share labelled vehicle inside the boxes of cars, vans, trucks and trams (to be high) and outside of them (to be low),
for each head and the ensemble. Points in boxes of `Misc` and in `DontCare` regions count neither way. Road and walls
within a box count as inside, so 100 % is out of reach.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from xmodal_seg.inference import Segmenter
from xmodal_seg.labels import UNLABELED, LabelSpace
from xmodal_seg.preprocess import prepare
from xmodal_seg.structures import Frame
from xmodal_seg.training.data.kitti_object import frame_names, read_object_frame
from xmodal_seg.training.programs import run_program
from xmodal_seg.visualize import camera_overlay, write_png

VEHICLE_CLASSES = ("vehicle", "car", "truck")
TITLES = {"2d": "2D (linear)", "fused": "2D (fused)", "3d": "3D", "ensemble": "2D3D"}
SHARES = ("inside", "outside")
COLUMN_DEG, BEAM_DEG = 0.1728, 0.42  # of KITTI's HDL-64E; the lower beams lie a little closer


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    try:
        print("\n".join(report(arguments)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def report(arguments: argparse.Namespace) -> list[str]:
    """The lines of the table; ValueError for what is wrong with frames or checkpoint."""
    names = frame_names(arguments.kitti)
    segmenter = Segmenter.load(arguments.checkpoint, device=arguments.device)
    if arguments.bank is not None:
        segmenter.use_bank(arguments.bank)
    vehicles = vehicle_labels(segmenter.label_space)
    counts: dict[str, dict[str, NDArray[np.int64]]] = defaultdict(lambda: {share: np.zeros(2, int) for share in SHARES})
    for name in track(names, description="frames", console=Console(stderr=True)):
        labelled = read_object_frame(arguments.kitti, name)
        kept = sparser(labelled.frame.points, every_beam=arguments.every_beam, every_column=arguments.every_column)
        labelled = labelled.select(kept)
        for head, labels in labels_by_head(segmenter, labelled.frame).items():
            is_vehicle = np.isin(labels, vehicles)
            for share, rows in zip(SHARES, (labelled.in_vehicle, labelled.outside), strict=True):
                counts[head][share] += (is_vehicle[rows].sum(), rows.sum())
            if arguments.pictures is not None:
                save_overlay(arguments.pictures / f"{name}_{head}.png", labelled.frame, labels, segmenter.label_space)
    title = f"{segmenter.description}; {len(names)} frames"
    return [title, "", "| head | inside | points | outside | points |", "|---|---|---|---|---|", *rows_of(counts)]


def sparser(points: NDArray[np.float32], *, every_beam: int, every_column: int) -> NDArray[np.bool_]:
    """(N,) points of (N, 3) that a LiDAR with fewer beams and columns would have; the files do not tell either."""
    azimuth = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    elevation = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    column, beam = np.floor(azimuth / COLUMN_DEG).astype(int), np.floor(elevation / BEAM_DEG).astype(int)
    return (column % every_column == 0) & (beam % every_beam == 0)


def labels_by_head(segmenter: Segmenter, frame: Frame) -> dict[str, NDArray[np.uint8]]:
    """(N,) labels by main head and `ensemble`; UNLABELED where the camera sees nothing."""
    model = segmenter.model_of(segmenter.bank)
    settings = model.settings.preprocess.model_copy(update={"point_scope": "visible"})
    batch = prepare([frame], settings=settings, image_size=model.image_size).to(segmenter.device)
    with torch.inference_mode():
        predictions = model(batch)
    found = {}
    for head, scores in {**predictions.main, "ensemble": predictions.ensemble()}.items():
        labels = np.full(frame.num_points, UNLABELED, dtype=np.uint8)
        labels[batch.point_index.cpu().numpy()] = scores.argmax(dim=1).cpu().numpy()
        found[str(head)] = labels
    return found


def vehicle_labels(space: LabelSpace) -> list[int]:
    """Train ids of what drives; ValueError for classes without any."""
    found = [number for number, name in enumerate(space.class_names) if name in VEHICLE_CLASSES]
    if not found:
        raise ValueError(f"{space.name}: expected a class of {', '.join(VEHICLE_CLASSES)}, it has none")
    return found


def rows_of(counts: dict[str, dict[str, NDArray[np.int64]]]) -> list[str]:
    rows = []
    for head, title in TITLES.items():
        if head in counts:
            cells = [f"{100 * said / max(number, 1):.1f} % | {number:,}" for said, number in counts[head].values()]
            rows.append(f"| {title} | {' | '.join(cells)} |")
    return rows


def save_overlay(path: Path, frame: Frame, labels: NDArray[np.uint8], space: LabelSpace) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, camera_overlay(frame, frame.cameras[0], labels, space))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kitti", required=True, type=Path, metavar="FOLDER", help="KITTI's object frames")
    parser.add_argument("--checkpoint", help="folder, or the name of a shipped one (default: nuscenes)")
    parser.add_argument("--bank", help="default: the checkpoint's default")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--every-beam", type=int, default=1, metavar="N", help="leave out all beams but each N-th")
    parser.add_argument("--every-column", type=int, default=1, metavar="N", help="leave out all columns but each N-th")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also write an overlay for each frame and head")
    arguments = parser.parse_args(argv)
    if min(arguments.every_beam, arguments.every_column) < 1:
        parser.error("--every-beam, --every-column: expected 1 or more")
    return arguments


if __name__ == "__main__":
    raise SystemExit(run_program(main))
