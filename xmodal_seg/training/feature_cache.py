# SPDX-License-Identifier: Apache-2.0
"""Feature maps of the frozen image backbone on disk, of every image as it is and mirrored.

Right as long as training shows the backbone nothing else: recipes with colour jitter, random crops or a trainable image
network are refused by `Recipe`. Maps are float16 (a relative error of 5e-4) and belong to one backbone, image size
and data set, whose hashes name their folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from xmodal_seg.checkpoint import backbone_state
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.preprocess import resize_image
from xmodal_seg.tensor_files import hash_tensors
from xmodal_seg.training.data.dataset import FrameDataset
from xmodal_seg.training.data.prepared import write_text
from xmodal_seg.training.locks import locked
from xmodal_seg.training.recipe_settings import RESULTS_VERSION

INDEX_FILE = "features.json"  # written last
MAPS_FILE = "maps.npy"


class FeatureCache:
    """The stored maps of one data set; `maps` gives those of a frame."""

    def __init__(self, plain: Path, mirrored: Path | None) -> None:
        self._files = [folder / MAPS_FILE for folder in (plain, mirrored) if folder is not None]

    def maps(self, index: int, *, flips: Sequence[bool]) -> torch.Tensor:
        """(cameras, D, h, w) float16; each camera's image as it is, or mirrored where `flips` says so."""
        return torch.from_numpy(np.stack([self._arrays[flip][index, camera] for camera, flip in enumerate(flips)]))

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files}

    @cached_property
    def _arrays(self) -> list[NDArray[np.float16]]:
        return [np.load(file, mmap_mode="r") for file in self._files]


def open_feature_cache(
    root: Path,
    *,
    model: SegmentationModel,
    dataset: FrameDataset,
    image_size: tuple[int, int],
    fingerprint: str,
    mirrored: bool,
) -> FeatureCache:
    """The cache of `dataset` below `root`, made first where it is missing.

    Args:
        model: with a frozen image backbone, on the device that shall compute.
        image_size: (height, width) px of the images at the backbone.
        fingerprint: of the data.
        mirrored: of the mirror images too.

    Raises:
        ValueError: a backbone that is trained, frames with different numbers of cameras, or a disk that is too small.
    """
    backbone = model.image_backbone
    if backbone is None or not backbone.frozen:
        raise ValueError("feature_cache: the image backbone is trained, so its features change with every step")
    job = _Job(model=model, dataset=dataset, image_size=image_size)
    folders = []
    for mirror in (False, True)[: 1 + mirrored]:
        folder = root / _key(job, fingerprint=fingerprint, mirror=mirror)
        with locked(folder):
            if not (folder / INDEX_FILE).is_file():
                _fill(folder, job, mirror=mirror)
        folders.append(folder)
    return FeatureCache(folders[0], folders[1] if mirrored else None)


@dataclass(frozen=True, kw_only=True)
class _Job:
    model: SegmentationModel
    dataset: FrameDataset
    image_size: tuple[int, int]


def _key(job: _Job, *, fingerprint: str, mirror: bool) -> str:
    settings = job.model.settings.image_backbone.model_dump(mode="json", exclude={"weights", "feature_norm", "tuning"})
    facts = {
        "versions": [RESULTS_VERSION, version("timm")],
        "backbone": hash_tensors(backbone_state(job.model)),
        "settings": settings,
        "image_size": job.image_size,
        "data": [job.dataset.name, fingerprint, len(job.dataset)],
        "mirror": mirror,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _fill(folder: Path, job: _Job, *, mirror: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MAPS_FILE).unlink(missing_ok=True)  # of a run that was killed
    stored: np.memmap | None = None
    dataset = job.dataset
    what = f"image features of {dataset.name}{', mirrored' if mirror else ''}"
    for index in track(range(len(dataset)), description=what, console=Console(stderr=True)):
        maps = _maps(job, index, mirror=mirror)
        if stored is None:
            _check_room(folder, needed=len(dataset) * maps.nbytes, what=what)
            stored = open_memmap(folder / MAPS_FILE, mode="w+", dtype=np.float16, shape=(len(dataset), *maps.shape))
        if maps.shape != stored.shape[1:]:
            raise ValueError(
                f"feature_cache: frame {index} of {dataset.name} has {len(maps)} cameras, the first has "
                f"{stored.shape[1]}; switch feature_cache off"
            )
        stored[index] = maps
    assert stored is not None, "a data set has frames"
    stored.flush()
    facts = {"data": dataset.name, "mirror": mirror, "frames": len(dataset)}
    write_text(folder / INDEX_FILE, json.dumps(facts) + "\n")


def _check_room(folder: Path, *, needed: int, what: str) -> None:
    """The file is sparse at first, and a memory map that finds the disk full kills the process without a word."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"feature_cache: the {what} take {needed / 1e9:.3g} GB, but {folder} has {free / 1e9:.3g} GB left; choose "
            "another data.root or switch feature_cache off"
        )


def _maps(job: _Job, index: int, *, mirror: bool) -> NDArray[np.float16]:
    """(cameras, D, h, w) of one frame."""
    backbone = job.model.image_backbone
    assert backbone is not None
    images = torch.stack([resize_image(camera.image, job.image_size) for camera in job.dataset[index].cameras])
    images = images.to(next(backbone.parameters()).device)
    with torch.inference_mode():
        maps = backbone(images.flip(-1) if mirror else images)
    return maps.half().cpu().numpy()
