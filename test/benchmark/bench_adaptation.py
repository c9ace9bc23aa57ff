# SPDX-License-Identifier: Apache-2.0
"""What adaptation costs inference: `python test/benchmark/bench_adaptation.py [--device cuda] [--networks paper]`.

At the step rate of the drives in training/results/adaptation: `--networks shipped --points 3000 --rate-hz 1
--adaptation training/recipes/adaptation/drive.yaml`. Memory over many frames: `--frames 10000 --points 500 --rate-hz 20
--rounds 1`.

Frames arrive at a fixed rate and are labelled with adaptation off and on, in turns, in one process. Latency of
`serve`, `predict` and `observe` together, p50, p95 and p99 in ms of wall time; steps taken meanwhile; resident memory
after a tenth of the frames and at the end. On a CPU the adapter steps only between frames.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from xmodal_seg.adaptation.adapter import OnlineAdapter
from xmodal_seg.adaptation.driving import AdapterThread
from xmodal_seg.adaptation.labelled_frames import gate_frames
from xmodal_seg.adaptation.settings import AdaptationSettings, GuardSettings, MemorySettings, Mode
from xmodal_seg.config import ImageBackboneSettings, ModelSettings, load_settings
from xmodal_seg.devices import resolve_device
from xmodal_seg.inference import Segmenter, untrained_settings
from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.structures import Calibration, CameraView, Frame

IMAGE_SIZE = (900, 1600)
NETWORKS = ("demo", "paper", "shipped")
DIFFERENT_FRAMES = 7
_NS = 10**9


@dataclass(frozen=True, kw_only=True)
class SteadyLight:
    """A camera in good light."""

    guidance: float = 0.8
    condition: str = "day"
    confidence: float = 1.0


def run(
    *,
    device: str = "cpu",
    networks: str = "demo",
    frames: int = 200,
    num_points: int = 20_000,
    rate_hz: float = 2.0,
    period_frames: int = 10,
    adaptation: Path | None = None,
    rounds: int = 2,
) -> list[dict[str, Any]]:
    """A row for each mode and round; `period_frames` frames between two steps, unless a file of settings says more."""
    target = resolve_device(device)
    segmenter = make_segmenter(target, networks)
    segmenter.warm_up(num_cameras=1)
    drive = [make_frame(number, num_points=num_points) for number in range(DIFFERENT_FRAMES)]
    memory, guards = MemorySettings(min_frames=4), GuardSettings(settle_frames=0)
    settings = AdaptationSettings(period_frames=period_frames, memory=memory, guards=guards)
    if adaptation is not None:
        settings = load_settings(AdaptationSettings, adaptation)
    rows = []
    for number in range(rounds):
        modes: tuple[Mode, ...] = ("off", "on") if number % 2 == 0 else ("on", "off")
        for mode in modes:
            of_mode = settings.model_copy(update={"mode": mode})
            rows.append({"mode": mode, **measure(segmenter, of_mode, drive, target, frames=frames, rate_hz=rate_hz)})
    return rows


def measure(
    segmenter: Segmenter,
    settings: AdaptationSettings,
    drive: list[Frame],
    device: torch.device,
    *,
    frames: int,
    rate_hz: float,
) -> dict[str, Any]:
    """Latencies and memory over `frames` frames at `rate_hz`."""
    packaged = gate_frames(None, checkpoint=segmenter.folder, label_space=segmenter.label_space.name)
    adapter = OnlineAdapter(segmenter=segmenter, settings=settings, labelled=packaged)
    busy = [False]
    thread = AdapterThread(
        adapter, device=device, idle=lambda: not busy[0], num_threads=settings.num_threads, min_interval_s=0.0
    )
    if adapter.is_learning:
        thread.start()
    process, latencies_ms, memory_mb = psutil.Process(), [], []
    start_s = time.monotonic()
    for number in range(frames):
        due_s = start_s + number / rate_hz
        time.sleep(max(0.0, due_s - time.monotonic()))
        busy[0] = True
        began_s = time.perf_counter()
        frame = at_time(drive[number % len(drive)], number)
        adapter.serve(segmenter)
        labelled = segmenter.predict(frame, keep=adapter.is_learning)
        adapter.observe(frame, labelled, lights={"front": SteadyLight()})
        latencies_ms.append((time.perf_counter() - began_s) * 1e3)
        busy[0] = False
        memory_mb.append(process.memory_info().rss / 1e6)
    thread.stop(timeout_s=60)
    status = adapter.status()
    adapter.enable("off")
    adapter.serve(segmenter)  # the next round starts from the deployed weights
    p50, p95, p99 = np.percentile(latencies_ms[frames // 10 :], [50, 95, 99])
    return {
        "frames": frames,
        "p50 ms": float(p50),
        "p95 ms": float(p95),
        "p99 ms": float(p99),
        "steps": status.steps,
        "publications": status.publications,
        "dropped": status.dropped,
        "MB at a tenth": memory_mb[frames // 10],
        "MB at the end": memory_mb[-1],
    }


def make_segmenter(device: torch.device, networks: str) -> Segmenter:
    """demo: the small untrained model; paper: ViT-L with patch 16 and the full 3D net, random weights; shipped."""
    if networks == "shipped":
        return Segmenter.load(None, device=str(device))
    settings = untrained_settings()
    if networks == "paper":
        backbone = ImageBackboneSettings(name="naflexvit_large_patch16_radio_v3.c_radio", weights="none")
        settings = ModelSettings(num_classes=NUSCENES_6.num_classes, image_backbone=backbone)
    torch.manual_seed(0)
    return Segmenter(
        models={"default": SegmentationModel(settings=settings)},
        label_space=NUSCENES_6,
        device=device,
        bank="default",
        model_version="benchmark",
        trained=False,
    )


def make_frame(number: int, *, num_points: int) -> Frame:
    """A plain with walls at another distance in each frame, so that the vehicle moves."""
    generator = np.random.default_rng(number)
    azimuth = generator.uniform(-np.pi, np.pi, num_points)
    elevation = np.deg2rad(generator.uniform(-24, 4, num_points))
    wall_m = 12.0 + 6.0 * number
    distance = np.minimum(1.8 / np.maximum(np.sin(-elevation), 1e-3), wall_m)
    points = np.stack(
        [
            distance * np.cos(elevation) * np.cos(azimuth),
            distance * np.cos(elevation) * np.sin(azimuth),
            distance * np.sin(elevation),
        ],
        axis=1,
    ).astype(np.float32)
    height, width = IMAGE_SIZE
    calibration = Calibration(
        camera_matrix=np.array([[1260.0, 0, (width - 1) / 2], [0, 1260.0, (height - 1) / 2], [0, 0, 1]]),
        camera_T_lidar=np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
        image_size=IMAGE_SIZE,
    )
    image = generator.integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8)
    view = CameraView(name="front", image=image, calibration=calibration)
    return Frame(points=points, intensity=np.zeros(num_points, np.float32), cameras=(view,))


def at_time(frame: Frame, number: int) -> Frame:
    """The frame with the stamp of the `number`-th second."""
    stamp_ns = (1 + number) * _NS
    return replace(frame, stamp_ns=stamp_ns, cameras=tuple(replace(view, stamp_ns=stamp_ns) for view in frame.cameras))


def main(argv: list[str] | None = None) -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", choices=NETWORKS, default="demo")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--rate-hz", type=float, default=2.0)
    parser.add_argument("--period-frames", type=int, default=10)
    parser.add_argument("--adaptation", type=Path, metavar="FILE", help="settings of the adapter, but for its mode")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = run(
        device=arguments.device,
        networks=arguments.networks,
        frames=arguments.frames,
        num_points=arguments.points,
        rate_hz=arguments.rate_hz,
        period_frames=arguments.period_frames,
        adaptation=arguments.adaptation,
        rounds=arguments.rounds,
    )
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        cells = (f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values())
        print("| " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
