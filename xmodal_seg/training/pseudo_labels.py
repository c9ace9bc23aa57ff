# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: what a trained model says about the target's training frames, kept where it is sure.

A folder holds `pseudo_labels.json`, `first.npy` (F + 1,), where each frame begins, and for the ensemble and for every
main head `<name>_labels.npy` (T,) uint8 with UNLABELED and `<name>_probability.npy` (T,) float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal_seg.labels import IGNORE_INDEX, UNLABELED
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Head, Predictions, sum_of_softmax
from xmodal_seg.training.data.dataset import FrameDataset
from xmodal_seg.training.data.prepared import write_array, write_text
from xmodal_seg.training.evaluation import ENSEMBLE
from xmodal_seg.training.steps import predict
from xmodal_seg.training.streams import DomainBatch, EvaluationBatches

INDEX_FILE = "pseudo_labels.json"
FORMAT = 1
MAX_THRESHOLD = 0.9
_CHUNK_POINTS = 1 << 22
Teacher = Literal["ensemble", "own_head"]


class PseudoLabelStore:
    """Refined pseudo-labels of a data set, by frame.

    Args:
        folder: what `make_pseudo_labels` has written.
        heads: of the model to be taught.
        teacher: 'ensemble' gives all heads the same labels; 'own_head' each those of its own kind (xMUDA).
        fingerprint, num_frames: of the data they shall teach.

    Raises ValueError if the folder has none, or those of other data or of other heads.
    """

    def __init__(
        self, folder: Path, *, heads: Iterable[Head], teacher: Teacher, fingerprint: str, num_frames: int
    ) -> None:
        index = read_index(folder)
        self.content_hash = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()[:16]
        if (index["data"], index["num_frames"]) != (fingerprint, num_frames):
            raise ValueError(
                f"data.pseudo_labels: {folder} holds labels of {index['num_frames']} frames of other data "
                f"({index['data']}); expected {num_frames} frames of {fingerprint}"
            )
        self._folder = folder
        self._names = {head: ENSEMBLE if teacher == "ensemble" else head for head in heads}
        for name in self._names.values():
            if name not in index["thresholds"]:
                raise ValueError(f"data.pseudo_labels: {folder} has none of {name}, only {list(index['thresholds'])}")
        # One more entry, for UNLABELED points, whose probability of 0 is below every threshold.
        self._thresholds = {name: np.array([*index["thresholds"][name], 2.0]) for name in set(self._names.values())}

    def labels(self, index: int) -> dict[Head, NDArray[np.int64]]:
        """For each head (N,) train ids, IGNORE_INDEX where the label is below its class's threshold."""
        refined = {name: self._refined(name, index) for name in self._thresholds}
        return {head: refined[name] for head, name in self._names.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_arrays"}

    def _refined(self, name: str, index: int) -> NDArray[np.int64]:
        first, last = self._arrays["first"][index : index + 2]
        labels = self._arrays[f"{name}_labels"][first:last]
        probability = self._arrays[f"{name}_probability"][first:last]
        return refine(labels, probability, self._thresholds[name])

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {path.stem: np.load(path, mmap_mode="r") for path in self._folder.glob("*.npy")}


def class_thresholds(
    labels: NDArray[np.uint8], probability: NDArray[np.float32], *, num_classes: int
) -> NDArray[np.float64]:
    """(K,) min(lower median of the class's probabilities over the whole data set, 0.9); 0.9 for an absent class.

    Source: xMUDA's refinement, which credits BDL (Li, Yuan and Vasconcelos, 2019).
    """
    thresholds = np.full(num_classes, MAX_THRESHOLD)
    for train_id in range(num_classes):
        of_class = probability[labels == train_id]
        if of_class.size:
            middle = (of_class.size - 1) // 2
            of_class.partition(middle)
            thresholds[train_id] = min(float(of_class[middle]), MAX_THRESHOLD)
    return thresholds


def refine(
    labels: NDArray[np.uint8], probability: NDArray[np.float32], thresholds: NDArray[np.float64]
) -> NDArray[np.int64]:
    """(N,) train ids, IGNORE_INDEX below the threshold; `thresholds` (K + 1,), the last one for UNLABELED."""
    train_ids = np.minimum(labels, thresholds.size - 1).astype(np.int64)
    return np.where(probability >= thresholds[train_ids], train_ids, IGNORE_INDEX)


def make_pseudo_labels(
    model: SegmentationModel,
    dataset: FrameDataset,
    batches: EvaluationBatches,
    *,
    folder: Path,
    fingerprint: str,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    items: Iterable[DomainBatch] | None = None,
) -> dict[str, float]:
    """Label every frame of `dataset`, in eval mode and unaltered; the share of points kept, by name, percent.

    Args:
        model: usually of the last checkpoint, so that the target's validation labels have no say.
        batches: of the data set, all of them.
        folder: receives the store.
        fingerprint: of the data, kept with the labels.
        items: the same batches through a loader with workers.
    """
    sizes: list[int] = []
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    with _AnswerFiles(folder) as files:
        for indices, data in zip(batches.indices, items or (batches[i] for i in range(len(batches))), strict=True):
            with torch.inference_mode(), autocast():
                moved = data.to(device)
                probs = probabilities(predict(model, moved))
            num_points = [dataset.labels(index).size for index in indices]
            for name, values in probs.items():
                files.append(name, *_by_point(values, moved, num_points))
            sizes.extend(num_points)
        return _write(folder, files, sizes, num_classes=model.settings.num_classes, fingerprint=fingerprint)


def probabilities(predictions: Predictions) -> dict[str, torch.Tensor]:
    """(P, K) of the ensemble and of every main head; zero where a head has nothing to say."""
    probs: dict[str, torch.Tensor] = {ENSEMBLE: predictions.ensemble()}
    for head, logits in predictions.main.items():
        of_head = sum_of_softmax([logits])
        probs[head] = of_head if head == "3d" else of_head * predictions.visible[:, None]
    return probs


class _AnswerFiles:
    """Labels and probabilities of every point, name by name, on disk while they come: of SemanticKITTI's training part
    they would fill 10 GB of memory. A context manager; its temporary files go when it ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, tuple[BinaryIO, BinaryIO]] = {}

    def __enter__(self) -> _AnswerFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for name, files in self._files.items():
            for file, path in zip(files, self._paths(name), strict=True):
                file.close()
                path.unlink(missing_ok=True)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def append(self, name: str, labels: NDArray[np.uint8], probability: NDArray[np.float32]) -> None:
        if name not in self._files:
            labels_path, probability_path = self._paths(name)
            self._files[name] = labels_path.open("wb"), probability_path.open("wb")
        labels_file, probability_file = self._files[name]
        labels_file.write(labels.tobytes())
        probability_file.write(probability.tobytes())

    def arrays(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """All labels and probabilities of a name, mapped."""
        for file in self._files[name]:
            file.flush()
        labels_path, probability_path = self._paths(name)
        return np.memmap(labels_path, dtype=np.uint8, mode="r"), np.memmap(probability_path, dtype=np.float32, mode="r")

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self._folder / f".{name}_labels.raw", self._folder / f".{name}_probability.raw"


def _by_point(
    probs: torch.Tensor, data: DomainBatch, num_points: list[int]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(N,) label and (N,) probability of every point of the batch's frames, in their order."""
    first = np.cumsum([0, *num_points])
    best, train_ids = (tensor.cpu().numpy() for tensor in probs.max(dim=1))
    rows = first[data.batch.frame_index.cpu().numpy()] + data.batch.point_index.cpu().numpy()
    labels, probability = np.full(first[-1], UNLABELED, dtype=np.uint8), np.zeros(first[-1], dtype=np.float32)
    labels[rows] = np.where(best > 0, train_ids, UNLABELED)
    probability[rows] = best
    return labels, probability


def _write(
    folder: Path, files: _AnswerFiles, sizes: list[int], *, num_classes: int, fingerprint: str
) -> dict[str, float]:
    (folder / INDEX_FILE).unlink(missing_ok=True)  # what was made before counts no more, should this be interrupted
    write_array(folder / "first.npy", np.cumsum([0, *sizes], dtype=np.int64))
    thresholds, kept = {}, {}
    for name in files.names:
        labels, probability = files.arrays(name)
        of_class = class_thresholds(labels, probability, num_classes=num_classes)
        write_array(folder / f"{name}_labels.npy", labels)
        write_array(folder / f"{name}_probability.npy", probability)
        thresholds[name] = of_class.tolist()
        kept[name] = _kept_percent(labels, probability, np.append(of_class, 2.0))
    values = {
        "format": FORMAT,
        "data": fingerprint,
        "num_frames": len(sizes),
        "thresholds": thresholds,
        "kept_percent": kept,
    }
    write_text(folder / INDEX_FILE, json.dumps(values, indent=1) + "\n")
    return kept


def _kept_percent(
    labels: NDArray[np.uint8], probability: NDArray[np.float32], thresholds: NDArray[np.float64]
) -> float:
    kept = 0
    for first in range(0, labels.size, _CHUNK_POINTS):
        part = slice(first, first + _CHUNK_POINTS)
        kept += int((refine(labels[part], probability[part], thresholds) != IGNORE_INDEX).sum())
    return 100 * kept / labels.size


def read_index(folder: Path) -> dict[str, Any]:
    """What a folder of pseudo-labels says of itself; ValueError if it holds none."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise ValueError(
            f"data.pseudo_labels: {folder} holds none ({INDEX_FILE} is missing); make them with make_pseudo_labels.py"
        )
    index = json.loads(path.read_text(encoding="utf-8"))
    if index.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {index.get('format')}")
    return dict(index)
