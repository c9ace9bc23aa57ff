# SPDX-License-Identifier: Apache-2.0
"""Segmenter: Frame -> a label and a probability for every point, on a device; no ROS, no training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal_seg.checkpoint import SHIPPED_CHECKPOINTS, Checkpoint, bank_state, load_checkpoint
from xmodal_seg.config import (
    FusionSettings,
    ImageBackboneSettings,
    ModelSettings,
    PointBackboneSettings,
    PointScope,
    PreprocessSettings,
)
from xmodal_seg.devices import Precision, resolve_device
from xmodal_seg.labels import NUSCENES_6, UNLABELED, LabelSpace
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.preprocess import prepare
from xmodal_seg.structures import Batch, Calibration, CameraView, Frame, Predictions, true_rows
from xmodal_seg.tensor_files import check_finite, copy_tensors

DEFAULT_CHECKPOINT = "nuscenes"
_UNTRAINED_SEED = 0
# On a GPU as dense as a real sweep: spconv measures its kernels on the first one that it sees, and keeps to its choice.
_WARM_UP_SWEEP = {"cuda": {"beams": 64, "columns": 1875}, "cpu": {"beams": 16, "columns": 225}}
_LEAST_PROBABILITY = 1e-6  # of the best class, which softmax never goes below; an all-zero row: nothing is said


@dataclass(frozen=True, kw_only=True)
class SeenFrame:
    """What the model was given: the rest of it can run again without the image backbone."""

    batch: Batch
    feats_2d: torch.Tensor  # (Pv, D) as `SegmentationModel.image_feats` gives them


@dataclass(frozen=True, kw_only=True)
class LabelledFrame:
    """What the model says about each point of a frame, in the frame's order and number."""

    labels: NDArray[np.uint8]  # (N,) train id, UNLABELED where nothing can be said
    probability: NDArray[np.float32]  # (N,) of that label, 0 where UNLABELED
    bank: str  # which weights spoke
    model_version: str
    num_left_out: int  # points that are not finite, too far away, or outside the point scope
    times_ms: dict[str, float]  # prepare, model, decide
    seen: SeenFrame | None = None  # where `predict` was asked to keep it


class Segmenter:
    """The models of one or more banks on a device, ready for frames.

    All banks stay resident, so that changing between them costs nothing; models may share a frozen image backbone.
    Not thread-safe: one thread calls `predict`, `use_bank` and `install_bank`.
    """

    def __init__(
        self,
        *,
        models: Mapping[str, SegmentationModel],
        label_space: LabelSpace,
        device: torch.device,
        bank: str,
        model_version: str,
        trained: bool,
        point_scope: PointScope = "all",
        precision: Precision = "float32",
        folder: Path | None = None,
    ) -> None:
        """Serve `bank` first, one of the names of `models`, which differ in nothing but their weights.

        `precision` is that of image network and fusion; the 3D network and the heads' logits are float32 always.
        `folder` is that of the checkpoint, if the models are from one.

        Raises ValueError for another name, and if `point_scope` is 'all' and the model has no 3D head for points that
        no camera sees.
        """
        self._models = dict(models)
        self._bank = self._known(bank)
        model = self._models[bank]
        if point_scope == "all" and "3d" not in model.settings.heads.main:
            raise ValueError(
                "point_scope: 'all' needs a model with a 3d main head; this one labels visible points only"
            )
        self.label_space = label_space
        self.trained = trained
        self.folder = folder
        self._versions = dict.fromkeys(self._models, model_version)
        for each in self._models.values():
            each.to(device).eval()
        # Gathered once: to go through a whole model takes longer than to copy what adapts.
        self._tensors = {name: bank_state(each) for name, each in self._models.items()}
        self._device = device
        self._precision = precision
        self._settings = model.settings.preprocess.model_copy(update={"point_scope": point_scope})

    @classmethod
    def load(
        cls,
        path: str | Path | None,
        *,
        device: str = "auto",
        point_scope: PointScope = "all",
        precision: Precision = "float32",
    ) -> Segmenter:
        """From a checkpoint folder or the name of a shipped one; None: nuscenes, or an untrained model without it.

        Raises ValueError for a damaged checkpoint and for a device that is not there.
        """
        target = resolve_device(device)
        if path is None and DEFAULT_CHECKPOINT not in SHIPPED_CHECKPOINTS:
            return cls.untrained(device=target, point_scope=point_scope, precision=precision)
        checkpoint = load_checkpoint(path or DEFAULT_CHECKPOINT, device=target)
        return cls.from_checkpoint(checkpoint, device=target, point_scope=point_scope, precision=precision)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, *, device: torch.device, point_scope: PointScope, precision: Precision = "float32"
    ) -> Segmenter:
        """With all banks of a loaded checkpoint, the default one served first."""
        default = checkpoint.build_model()
        backbone = default.image_backbone
        shared = backbone if backbone is not None and backbone.frozen else None  # a tuned one differs between banks
        others = {
            name: checkpoint.build_model(bank=name, image_backbone=shared)
            for name in checkpoint.banks
            if name != checkpoint.default_bank
        }
        return cls(
            models={checkpoint.default_bank: default, **others},
            label_space=checkpoint.label_space,
            device=device,
            bank=checkpoint.default_bank,
            model_version=checkpoint.content_hash[:12],
            trained=bool(checkpoint.metadata.get("trained", False)),
            point_scope=point_scope,
            precision=precision,
            folder=checkpoint.path,
        )

    @classmethod
    def untrained(
        cls, *, device: torch.device, point_scope: PointScope = "all", precision: Precision = "float32"
    ) -> Segmenter:
        """A small model with random weights of a fixed seed: the whole path runs, the labels mean nothing."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_UNTRAINED_SEED)
            model = SegmentationModel(settings=untrained_settings())
        return cls(
            models={"untrained": model},
            label_space=NUSCENES_6,
            device=device,
            bank="untrained",
            model_version="untrained",
            trained=False,
            point_scope=point_scope,
            precision=precision,
        )

    @property
    def bank(self) -> str:
        """The bank that `predict` uses."""
        return self._bank

    @property
    def banks(self) -> tuple[str, ...]:
        """Every bank, the default one first."""
        return tuple(self._models)

    @property
    def model_version(self) -> str:
        """Which weights the bank in use holds."""
        return self._versions[self._bank]

    def use_bank(self, name: str) -> None:
        """Label the next frames with the bank `name`; ValueError for one that is not there."""
        self._bank = self._known(name)

    def install_bank(self, name: str, state: Mapping[str, torch.Tensor], *, model_version: str) -> None:
        """Replace tensors of the bank `name` before the next frame: all of them, or only those that differ.

        Raises ValueError, and leaves the bank as it is, for an unknown name, and for tensors that the model does not
        have, of another form or with values that are not finite.
        """
        target = self._tensors[self._known(name)]
        where = f"bank {name!r}, version {model_version}"
        check_finite(state, where=where)
        copy_tensors(state, {key: target[key] for key in target.keys() & state.keys()}, where=where)
        self._versions[name] = model_version

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self._device

    def model_of(self, bank: str) -> SegmentationModel:
        """The model that serves `bank`, to copy or to read; ValueError for an unknown name."""
        return self._models[self._known(bank)]

    @property
    def preprocess(self) -> PreprocessSettings:
        """How frames are prepared for the model."""
        return self._settings

    @property
    def description(self) -> str:
        """One line for logs: version, bank, classes, image network, device."""
        settings = self._model.settings
        others = [name for name in self.banks if name != self.bank]
        besides = f" (besides: {', '.join(others)})" if others else ""
        return (
            f"version {self.model_version}, bank {self.bank}{besides}, {self.label_space.name} "
            f"({self.label_space.num_classes} classes), {settings.image_backbone.name}, on {self._device}"
            f"{'' if self._precision == 'float32' else f' in {self._precision}'}"
        )

    def predict(self, frame: Frame, *, min_probability: float = 0.0, keep: bool = False) -> LabelledFrame:
        """Label every point of `frame`.

        Points that are not finite, that lie outside the voxel cube or whose label is less probable than
        `min_probability` are UNLABELED; so are points that no camera sees where point_scope is 'visible'. With `keep`
        the result carries what the model was given, for adaptation; a model without image backbone has nothing to keep.
        """
        start_s = time.perf_counter()
        batch = prepare([frame], settings=self._settings, image_size=self._model.image_size)
        batch = batch.to(self._device, non_blocking=True)
        prepared_s = time.perf_counter()
        with torch.inference_mode(), self._autocast():
            feats_2d = self._model.image_feats(batch) if keep and self._model.image_backbone is not None else None
            predictions = self._model(batch, feats_2d=feats_2d)
            self._synchronize()
            modelled_s = time.perf_counter()
            labels, probability = decide(predictions, batch, num_points=frame.num_points, threshold=min_probability)
        decided_s = time.perf_counter()
        return LabelledFrame(
            labels=labels,
            probability=probability,
            bank=self.bank,
            model_version=self.model_version,
            num_left_out=frame.num_points - batch.num_points,
            times_ms={
                "prepare": (prepared_s - start_s) * 1e3,
                "model": (modelled_s - prepared_s) * 1e3,
                "decide": (decided_s - modelled_s) * 1e3,
            },
            seen=None if feats_2d is None else SeenFrame(batch=batch, feats_2d=feats_2d),
        )

    def warm_up(self, *, num_cameras: int) -> None:
        """Label a made-up frame with every bank: kernels are chosen and memory is reserved before a real one comes."""
        served = self._bank
        for name in self.banks:
            self.use_bank(name)
            self.predict(_warm_up_frame(num_cameras, **_WARM_UP_SWEEP[self._device.type]))
        self.use_bank(served)

    def close(self) -> None:
        """Give the models' memory back, the GPU's too."""
        for model in self._models.values():
            model.to("cpu")
        self._models.clear()
        self._tensors.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _model(self) -> SegmentationModel:
        return self._models[self._bank]

    def _known(self, bank: str) -> str:
        if bank not in self._models:
            raise ValueError(f"no bank {bank!r}; the model has {', '.join(sorted(self._models))}")
        return bank

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._precision == "bfloat16")

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # not the adapter's stream beside it


def untrained_settings() -> ModelSettings:
    """A model small enough for a laptop's CPU; only its weights are missing."""
    return ModelSettings(
        num_classes=NUSCENES_6.num_classes,
        preprocess=PreprocessSettings(voxel_size=0.1, image_size=(224, 400)),
        image_backbone=ImageBackboneSettings(
            name="vit_tiny_patch16_224", weights="none", model_args={"depth": 4}, feature_norm="none"
        ),
        point_backbone=PointBackboneSettings(base_channels=8, num_levels=5),
        fusion=FusionSettings(hidden=64),
    )


def decide(
    predictions: Predictions, batch: Batch, *, num_points: int, threshold: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Argmax of the ensemble, put back at every point's own place in the frame."""
    seen = true_rows(predictions.visible)
    if len(seen) == batch.num_points:
        probability, labels = most_probable(predictions.seen_ensemble(None))
    else:  # most points: putting two columns together is cheaper than K
        probability, labels = most_probable(predictions.blind_ensemble())
        seen_probability, seen_labels = most_probable(predictions.seen_ensemble(seen))
        probability.index_copy_(0, seen, seen_probability)
        labels.index_copy_(0, seen, seen_labels)
    unsaid = ~(probability >= max(threshold, _LEAST_PROBABILITY))  # so written, it holds for NaN too
    if bool(unsaid.any()):
        probability.masked_fill_(unsaid, 0.0)
        labels.masked_fill_(unsaid, UNLABELED)
    if batch.num_points != num_points:  # some points of the frame are not in the batch
        labels = labels.new_full((num_points,), UNLABELED).index_copy_(0, batch.point_index, labels)
        probability = probability.new_zeros(num_points).index_copy_(0, batch.point_index, probability)
    return labels.cpu().numpy(), probability.cpu().numpy()


def most_probable(probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, K) -> the largest value of each row (P,) and its first column (P,) uint8.

    The same as `probs.max(dim=1)`, whose search for indices takes three times as long on a CPU: here the classes before
    the first of the largest are counted.
    """
    by_class = probs.t()
    best = by_class.amax(dim=0)
    is_before = by_class[0] < best
    train_ids = is_before.to(torch.uint8)
    for of_class in by_class[1:-1]:
        is_before &= of_class < best
        train_ids += is_before
    return best, train_ids


def _warm_up_frame(num_cameras: int, *, beams: int, columns: int) -> Frame:
    """A sweep over flat ground between the walls of a street, 24 m wide, and cameras that all look forward."""
    down = np.linspace(-0.05, 0.43, beams)[:, None]  # rad below the horizon
    azimuth = np.linspace(-np.pi, np.pi, columns, endpoint=False)
    to_walls_m = np.minimum(40 / np.abs(np.cos(azimuth)), 12 / np.maximum(np.abs(np.sin(azimuth)), 1e-6))
    to_ground_m = np.where(down > 0, 1.8 / np.tan(np.maximum(down, 1e-6)), np.inf)
    distance_m = np.minimum(to_walls_m, to_ground_m)
    xyz = (distance_m * np.cos(azimuth), distance_m * np.sin(azimuth), -distance_m * np.tan(down))
    points = np.stack(xyz, axis=-1).reshape(-1, 3).astype(np.float32)
    calibration = Calibration(
        camera_matrix=np.array([[200.0, 0, 159.5], [0, 200.0, 89.5], [0, 0, 1]]),
        camera_T_lidar=np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
        image_size=(180, 320),
    )
    image = np.zeros((180, 320, 3), dtype=np.uint8)
    cameras = tuple(CameraView(name=str(i), image=image, calibration=calibration) for i in range(num_cameras))
    return Frame(points=points, intensity=np.zeros(len(points), dtype=np.float32), cameras=cameras)
