# SPDX-License-Identifier: Apache-2.0
"""What changing weights between frames costs: `python test/benchmark/bench_banks.py [--frames 40]`.

One bank throughout, another bank for every frame, and a bank with tensors installed before every frame (all of them,
or the affine of its norms); the four take turns frame by frame.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_world import tiny_frame

from xmodal_seg.checkpoint import bank_state
from xmodal_seg.inference import Segmenter, untrained_settings
from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.models.segmenter import SegmentationModel


def run(*, frames: int = 40, num_points: int = 20_000) -> list[dict[str, Any]]:
    """Median and 95th percentile of change and frame, ms."""
    segmenter, norms, full = _two_banks()
    others = {"day": "night", "night": "day"}
    changes: dict[str, Callable[[], None]] = {
        "none": lambda: None,
        "another bank": lambda: segmenter.use_bank(others[segmenter.bank]),
        f"install {_count(norms):,} numbers": lambda: segmenter.install_bank("day", norms, model_version="b"),
        f"install {_count(full):,} numbers": lambda: segmenter.install_bank("day", full, model_version="b"),
    }
    frame = replace(tiny_frame(0, num_points=num_points), labels=None)
    segmenter.warm_up(num_cameras=1)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in changes}
    for _ in range(frames):
        for name, change in changes.items():
            start_s = time.perf_counter()
            change()
            changed_s = time.perf_counter()
            segmenter.predict(frame)
            times[name].append(((changed_s - start_s) * 1e3, (time.perf_counter() - changed_s) * 1e3))
    return [
        {
            "change": name,
            "change p50 ms": float(np.percentile(np.array(values)[:, 0], 50)),
            "change p95 ms": float(np.percentile(np.array(values)[:, 0], 95)),
            "frame p50 ms": float(np.percentile(np.array(values)[:, 1], 50)),
            "frame p95 ms": float(np.percentile(np.array(values)[:, 1], 95)),
        }
        for name, values in times.items()
    ]


def _two_banks() -> tuple[Segmenter, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A segmenter of two banks around one backbone; affine of the norms of a bank, and all of it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    day = SegmentationModel(settings=untrained_settings())
    night = SegmentationModel(settings=untrained_settings(), image_backbone=day.image_backbone)
    segmenter = Segmenter(
        models={"day": day, "night": night},
        label_space=NUSCENES_6,
        device=device,
        bank="day",
        model_version="a",
        trained=False,
    )
    full = {name: tensor.clone() for name, tensor in bank_state(day).items()}
    affine = {
        f"{name}.{kind}"
        for name, module in day.named_modules()
        if isinstance(module, torch.nn.BatchNorm1d)
        for kind in ("weight", "bias")
    }
    return segmenter, {name: tensor for name, tensor in full.items() if name in affine}, full


def _count(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--frames", type=int, default=40)
    torch.set_num_threads(1)
    for row in run(frames=parser.parse_args(argv).frames):
        name, *times = row.items()
        print(f"{name[1]:<24}", *(f"{key} {value:.3f}" for key, value in times), sep="  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
