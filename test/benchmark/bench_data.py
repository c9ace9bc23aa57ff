# SPDX-License-Identifier: Apache-2.0
"""Data sets on one core: `python test/benchmark/bench_data.py`.

Full-size synthetic frames in the layout of each download, files in the page cache. `prepare`: frames per second of one
process of training/prepare_*.py (VirtualKITTI: six images each). `load`: samples per second of one process as training
sees them with the recipe of `--size full`: read, augmented, projected, resized, voxelised. `step`: source and target
half of one frame each with that recipe, forward and backward, on this core and without the foundation model, whose maps
are given; `load / step`: the time to load two frames over the time of the step. `jitter` is the part of a load that
alters the image's colours; `in float`: the same pixel by pixel instead of by tables, as it was done before. CPU time,
best of three.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))  # the miniatures

import cv2
import numpy as np
import torch
from miniatures import Scene, make_a2d2, make_nuscenes, make_semantic_kitti, make_virtual_kitti
from programs import ROOT
from rich.console import Console
from rich.table import Table

from xmodal_seg.training import transforms
from xmodal_seg.training.data.a2d2 import A2D2Source
from xmodal_seg.training.data.dataset import FixedSubset, FrameDataset
from xmodal_seg.training.data.nuscenes import NuScenesSource
from xmodal_seg.training.data.preparation import prepare_frames
from xmodal_seg.training.data.prepared_dataset import open_dataset
from xmodal_seg.training.data.semantic_kitti import SemanticKittiSource
from xmodal_seg.training.data.sources import Source
from xmodal_seg.training.data.virtual_kitti import VirtualKittiSource
from xmodal_seg.training.recipe import Recipe, compose
from xmodal_seg.training.steps import source_step, target_step
from xmodal_seg.training.streams import DomainBatch, DomainStream, InputSettings
from xmodal_seg.training.trainer import build_model
from xmodal_seg.training.transforms import CameraParams, apply, jitter_colours, make_params

NUM_FRAMES = 12
REPEATS = 3
# Data set -> recipe it is trained with, and as which domain.
ROLES = {
    "nuscenes": ("nuscenes_usa_singapore", "source"),
    "semantic_kitti": ("a2d2_semantic_kitti", "target"),
    "virtual_kitti": ("virtual_kitti_semantic_kitti", "source"),
    "a2d2": ("a2d2_semantic_kitti", "source"),
}
# The width of the paper's foundation model; its one layer is never run.
THIN_VFM = "model.image_backbone={kind: timm, name: vit_large_patch16_224, weights: none, model_args: {depth: 1}}"


def run() -> list[dict[str, Any]]:
    """One row per data set."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        return [measure(name, source, Path(folder)) for name, source in make_sources(Path(folder)).items()]


def make_sources(folder: Path) -> dict[str, Source]:
    """Downloads with as many points and pixels as the real ones."""
    root = {name: folder / name for name in ROLES}
    scenes = [Scene(f"scene-{number:04d}", "boston-seaport", "Car") for number in range(161, 161 + NUM_FRAMES // 2)]
    make_nuscenes(root["nuscenes"], scenes, cameras=("CAM_FRONT",), num_points=34_688, scale=10)
    make_semantic_kitti(root["semantic_kitti"], {"00": NUM_FRAMES}, num_points=120_000, scale=10)
    make_virtual_kitti(root["virtual_kitti"], {"0001": NUM_FRAMES})
    make_a2d2(root["a2d2"], {"20180810_142822": NUM_FRAMES}, num_points=12_000, scale=8)
    return {
        "nuscenes": NuScenesSource(root["nuscenes"]),
        "semantic_kitti": SemanticKittiSource(root["semantic_kitti"], partial=True),
        "virtual_kitti": VirtualKittiSource(root["virtual_kitti"], partial=True),
        "a2d2": A2D2Source(root["a2d2"], partial=True),
    }


def measure(name: str, source: Source, folder: Path) -> dict[str, Any]:
    frames = [frame for frame in source.frames() if not frame.name.endswith("009000")]
    out = folder / f"{name}_prepared"
    prepare_s = best(lambda: prepare_frames(source, frames, out, overwrite=True)) / len(frames)
    recipe, dataset = open_with_recipe(name, out)
    stream, model_step = make_stream(recipe, dataset, role=ROLES[name][1])
    load_s = best(lambda: [stream.batch(step) for step in range(len(frames))]) / len(frames)
    step_s = best(model_step)
    jitter_s, float_s = time_jitter(stream)
    with patch.object(transforms, "jitter_colours", jitter_in_float):
        load_in_float_s = best(lambda: [stream.batch(step) for step in range(len(frames))]) / len(frames)
    sizes = [dataset[index].num_points for index in range(len(frames))]
    return {
        "data set": name,
        "points per frame": round(sum(sizes) / len(sizes)),
        "prepare, frames/s": 1 / prepare_s,
        "load, samples/s": 1 / load_s,
        "load, ms/sample": 1000 * load_s,
        "in float": 1000 * load_in_float_s,
        "jitter, ms": 1000 * jitter_s,
        "jitter in float": 1000 * float_s,
        "step of 1 + 1, ms": 1000 * step_s,
        "load / step": 2 * load_s / step_s,
        "MB/frame": sum(file.stat().st_size for file in (out / "points").glob("*.npy")) / len(frames) / 1e6,
    }


def open_with_recipe(name: str, folder: Path) -> tuple[Recipe, FrameDataset]:
    shift, role = ROLES[name]
    recipe = compose(ROOT / "training" / "recipes", shift=shift, method="ours", size="full", overrides=[THIN_VFM])
    options = recipe.data.options[role]
    dataset = open_dataset(folder, split=options["train"], label_space=recipe.data.options["label_space"])
    max_points = options.get("max_points")
    return recipe, dataset if max_points is None else FixedSubset(dataset, max_points=max_points)


def make_stream(recipe: Recipe, dataset: FrameDataset, *, role: str) -> tuple[DomainStream, Callable[[], Any]]:
    """Batches of one frame, and a whole step on the first of them."""
    data, model = recipe.data, build_model(recipe)
    from_source = role == "source"
    stream = DomainStream(
        dataset=dataset,
        domain="source",
        inputs=InputSettings.of(
            model, image_size=data.image_size_source if from_source else data.image_size_target_train
        ),
        augment=data.augment_source if from_source else data.augment_target,
        batch_size=1,
        seed=0,
        keep_labels=True,
    )
    batch = stream.batch(0).batch
    height, width = (side // 16 for side in batch.images.shape[-2:])
    example = DomainBatch(batch=batch, feature_map=torch.randn(1, 1024, height, width))

    def step() -> None:
        source_step(model.train(), example, losses=recipe.losses).loss.backward()
        target_step(model, example, losses=recipe.losses).loss.backward()

    return stream, step


def time_jitter(stream: DomainStream) -> tuple[float, float]:
    """Seconds of jitter_colours, and of the same in float, on an image as the recipe crops it."""
    frame, rng = stream.dataset[0], np.random.default_rng(0)
    params = make_params(frame, settings=stream.augment, rng=rng)
    plain = replace(params, cameras=tuple(CameraParams(crop=camera.crop) for camera in params.cameras))
    image, camera = apply(frame, plain).cameras[0].image, params.cameras[0]
    return best(lambda: jitter_colours(image, camera)), best(lambda: jitter_in_float(image, camera))


def jitter_in_float(image: np.ndarray, params: CameraParams) -> np.ndarray:
    """What jitter_colours does, without tables."""
    values = image.astype(np.float32) * params.brightness
    np.clip(values, 0, 255, out=values)
    mean = float(cv2.cvtColor(values, cv2.COLOR_RGB2GRAY).mean())
    values = np.clip(mean + params.contrast * (values - mean), 0, 255)
    grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)[..., None]
    return np.rint(np.clip(grey + params.saturation * (values - grey), 0, 255)).astype(np.uint8)


def best(work: Callable[[], Any]) -> float:
    """Shortest time of this core in s; others at work on the machine do not count."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> int:
    rows = run()
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else f"{value}" for value in row.values()))
    Console(width=200).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
