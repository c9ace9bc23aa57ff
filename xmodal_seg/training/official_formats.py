# SPDX-License-Identifier: Apache-2.0
"""Predictions in the files that the official evaluations of SemanticKITTI and nuScenes-lidarseg read.

A merged class is written as one of its raw classes, because what was merged cannot be told apart again; points about
which nothing was said get 0 (unlabeled, ignore). Labels of every point of a nuScenes sweep take data prepared with
`--points all --cameras all` and a model with point_scope all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal_seg.checkpoint import load_checkpoint
from xmodal_seg.labels import UNLABELED
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.training.data.dataset import FixedSubset, FrameDataset
from xmodal_seg.training.data.prepared import write_text
from xmodal_seg.training.data.prepared_dataset import PreparedDataset
from xmodal_seg.training.data.raw_classes import SEMANTIC_KITTI_CLASSES, DatasetName
from xmodal_seg.training.data.splits import SequenceInfo, split_rule
from xmodal_seg.training.evaluation import ENSEMBLE
from xmodal_seg.training.recipe import load_recipe
from xmodal_seg.training.run import set_up
from xmodal_seg.training.steps import predict
from xmodal_seg.training.streams import DomainBatch, EvaluationBatches
from xmodal_seg.training.trainer import BEST, RECIPE_FILE

# The 16 classes of the nuScenes-lidarseg challenge; nuscenes-devkit, eval/lidarseg/README.md.
NUSCENES_CHALLENGE_CLASSES = {
    0: "ignore",
    1: "barrier",
    2: "bicycle",
    3: "bus",
    4: "car",
    5: "construction_vehicle",
    6: "motorcycle",
    7: "pedestrian",
    8: "traffic_cone",
    9: "trailer",
    10: "truck",
    11: "driveable_surface",
    12: "other_flat",
    13: "sidewalk",
    14: "terrain",
    15: "manmade",
    16: "vegetation",
}
# Of a merged class the raw one that is written: the most frequent one that the evaluation counts.
_REPRESENTATIVES: dict[DatasetName, dict[str, str]] = {
    "nuscenes": {"vehicle": "car"},
    "semantic_kitti": {
        "bike": "bicycle",
        "nature": "vegetation",
        "vegetation_terrain": "vegetation",
        "other_objects": "fence",
        "object": "fence",
    },
}
_OFFICIAL_CLASSES: dict[DatasetName, Mapping[int, str]] = {
    "nuscenes": NUSCENES_CHALLENGE_CLASSES,
    "semantic_kitti": SEMANTIC_KITTI_CLASSES,
}


class OfficialWriter:
    """Writes one file per frame below `folder`.

    SemanticKITTI: `sequences/08/predictions/000000.label`, uint32 per point of the sweep. nuScenes:
    `lidarseg/val/<token>_lidarseg.bin`, uint8 per point, and `val/submission.json` (`train` for frames of its train
    scenes).

    Raises ValueError for a data set without an official format.
    """

    def __init__(self, dataset: FrameDataset, folder: Path) -> None:
        if isinstance(dataset, FixedSubset):
            raise ValueError(f"{dataset.name}: official files need every point, and data.max_points leaves some out")
        if not isinstance(dataset, PreparedDataset):
            raise ValueError(f"{dataset.name}: only what training/prepare_*.py wrote has an official format")
        if dataset.header.dataset not in _OFFICIAL_CLASSES:
            raise ValueError(f"{dataset.name}: has no official format; {' and '.join(_OFFICIAL_CLASSES)} have")
        self._dataset = dataset
        self._folder = folder
        self._ids = official_ids(dataset.header.dataset, dataset.label_space.class_names)
        self._scenes = {sequence.name: sequence for sequence in dataset.header.sequences}

    def write(self, index: int, labels: NDArray[np.integer]) -> Path:
        """The file of a frame.

        `labels` (N,): train id of each point of the prepared frame; UNLABELED or negative where nothing is said.
        Raises ValueError for another number of points.
        """
        points = self._dataset.points(index)
        if labels.shape != (len(points),):
            raise ValueError(f"labels of frame {index}: expected ({len(points)},), got {labels.shape}")
        said = (labels >= 0) & (labels < len(self._ids))
        official = np.zeros(self._dataset.num_sweep_points(index), dtype=np.int64)
        official[points["sweep_index"][said]] = self._ids[labels[said]]
        sequence, name = self._dataset.frame_name(index)
        path = self._nuscenes_path(sequence, name) if self._is_nuscenes else self._kitti_path(sequence, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        official.astype(np.uint8 if self._is_nuscenes else "<u4").tofile(path)
        return path

    @property
    def _is_nuscenes(self) -> bool:
        return self._dataset.header.dataset == "nuscenes"

    def _kitti_path(self, sequence: str, name: str) -> Path:
        return self._folder / "sequences" / sequence / "predictions" / f"{name}.label"

    def _nuscenes_path(self, sequence: str, name: str) -> Path:
        part = _nuscenes_part(self._scenes[sequence])
        submission = self._folder / part / "submission.json"
        if not submission.is_file():
            submission.parent.mkdir(parents=True, exist_ok=True)
            write_text(submission, json.dumps({"meta": _SUBMISSION_META}, indent=1) + "\n")
        return self._folder / "lidarseg" / part / f"{name}_lidarseg.bin"


_SUBMISSION_META = {
    "use_camera": True,
    "use_lidar": True,
    "use_radar": False,
    "use_map": False,
    "use_external": True,  # the foundation model's own training images
}


def official_ids(dataset: DatasetName, class_names: Iterable[str]) -> NDArray[np.int64]:
    """(K,) id in the official files for each class of a label space."""
    ids = {name: raw_id for raw_id, name in _OFFICIAL_CLASSES[dataset].items()}
    representatives = _REPRESENTATIVES[dataset]
    return np.array([ids[representatives.get(name, name)] for name in class_names], dtype=np.int64)


def write_predictions(
    model: SegmentationModel,
    batches: EvaluationBatches,
    folder: Path,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    items: Iterable[DomainBatch] | None = None,
) -> int:
    """Label every frame of `batches` with the model's ensemble and write the official files; returns their number.

    `items`: the same batches through a loader with workers.
    """
    writer = OfficialWriter(batches.dataset, folder)
    model.eval()
    num_files = 0
    for indices, data in zip(batches.indices, items or (batches[i] for i in range(len(batches))), strict=True):
        with torch.inference_mode(), autocast():
            probs = predict(model, data.to(device)).ensemble()
        best, train_ids = probs.max(dim=1)
        answers = torch.where(best > 0, train_ids, UNLABELED).cpu()
        for number, index in enumerate(indices):
            here = data.batch.frame_index == number
            labels = np.full(batches.dataset.labels(index).size, UNLABELED, dtype=np.int64)
            labels[data.batch.point_index[here].numpy()] = answers[here.cpu()].numpy()
            writer.write(index, labels)
            num_files += 1
    return num_files


def write_run_predictions(run: Path, folder: Path) -> int:
    """Official files of the target's test part by the best single checkpoint of a finished run; returns their number.

    Raises ValueError if there is no such run, or its target has no official format.
    """
    setup = set_up(load_recipe(run / RECIPE_FILE), single=True)
    batches = setup.batches(setup.domains.target_test)
    return write_predictions(
        load_checkpoint(run / BEST, device=setup.fabric.device).build_model(
            bank=ENSEMBLE, image_backbone=setup.frozen_backbone
        ),
        batches,
        folder,
        device=setup.fabric.device,
        autocast=setup.fabric.autocast,
        items=setup.items(batches, what="writing"),
    )


def _nuscenes_part(scene: SequenceInfo) -> str:
    """The official part that a scene belongs to; the benchmark tests on the official val scenes."""
    return "train" if split_rule("nuscenes", "official_train")(scene) else "val"
