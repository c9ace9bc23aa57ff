# SPDX-License-Identifier: Apache-2.0
"""Time of every stage of one frame through the node's own code: `python test/benchmark/bench_frame.py [--device cuda]`.

Clouds of 35,000 and 120,000 points, one and six cameras of 1600x900 px. Medians in ms; on a CPU one thread. The stages
besides JPEG decoding and the networks have a budget: 25 ms for one camera and 120,000 points on one core. On a CPU the
times are the process's own, so that a neighbour on the machine does not count.
"""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
import torch
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Header

sys.path.insert(0, str(Path(__file__).parents[1]))
from node_harness import make_cloud, make_image, make_info

from xmodal_seg.config import ImageBackboneSettings, ModelSettings
from xmodal_seg.devices import resolve_device
from xmodal_seg.geometry import project_frame
from xmodal_seg.inference import decide, untrained_settings
from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.messages import calibration_from_camera_info, decode_cloud, decode_image
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.nodes.conversions import labelled_cloud_message
from xmodal_seg.pairing import NearestPairing
from xmodal_seg.preprocess import prepare, resize_image
from xmodal_seg.structures import Batch, CameraView, Frame
from xmodal_seg.voxels import voxelize

IMAGE_SIZE = (900, 1600)
BUDGETED = ("convert in", "pair", "prepare", "decide", "convert out", "publish")
MODELS = ("demo", "paper")


def run(
    *,
    device: str = "cpu",
    models: tuple[str, ...] = ("demo",),
    points: tuple[int, ...] = (35_000, 120_000),
    cameras: tuple[int, ...] = (1, 6),
    repeats: int = 15,
) -> list[dict[str, Any]]:
    """One row per model, number of points and number of cameras; times in ms."""
    target = resolve_device(device)
    rows = []
    for name in models:
        model = SegmentationModel(settings=model_settings(name)).to(target).eval()
        for num_points in points:
            for num_cameras in cameras:
                times = measure(model, target, num_points=num_points, num_cameras=num_cameras, repeats=repeats)
                budget = sum(times[stage] for stage in BUDGETED)
                rows.append(
                    {
                        "networks": name,
                        "points": num_points,
                        "cameras": num_cameras,
                        **times,
                        "besides networks": budget,
                    }
                )
    return rows


def model_settings(name: str) -> ModelSettings:
    """demo: the small untrained model; paper: ViT-L with patch 16 and the full 3D net, random weights."""
    if name == "demo":
        return untrained_settings()
    backbone = ImageBackboneSettings(name="naflexvit_large_patch16_radio_v3.c_radio", weights="none")
    return ModelSettings(num_classes=NUSCENES_6.num_classes, image_backbone=backbone)


def measure(
    model: SegmentationModel, device: torch.device, *, num_points: int, num_cameras: int, repeats: int
) -> dict[str, float]:
    """Median ms of each stage."""
    clock = partial(median_ms, repeats=repeats, device=device)
    cloud = spread_cloud(num_points)
    images = [make_image(number, size=IMAGE_SIZE) for number in range(num_cameras)]
    jpegs = [to_jpeg(image) for image in images]
    info = make_info(0, size=IMAGE_SIZE, focal_px=1260.0)
    decoded = decode_cloud(cloud, intensity_range=(0, 255))
    views = tuple(
        CameraView(
            name=str(number),
            image=decode_image(image),
            calibration=calibration_from_camera_info(info, camera_T_lidar=camera_pose(number), rectified=True),
        )
        for number, image in enumerate(images)
    )
    frame = Frame(points=decoded.points, intensity=decoded.intensity, cameras=views)
    settings = model.settings.preprocess.model_copy(update={"point_scope": "all"})
    make_batch = partial(prepare, [frame], settings=settings, image_size=model.image_size)
    batch = make_batch().to(device)
    points = torch.from_numpy(frame.points)
    zeros, ones = torch.zeros(num_points, dtype=torch.int64), torch.ones(num_points, 1)
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node("benchmark", context=context)
    publisher = node.create_publisher(PointCloud2, "benchmark", 1)
    node.create_subscription(PointCloud2, "benchmark", lambda _: None, 1)
    with torch.inference_mode():
        predictions = model(batch)
        labels, probability = decide(predictions, batch, num_points=num_points, threshold=0.0)
        make_message = partial(
            labelled_cloud_message,
            header=Header(),
            points=frame.points,
            labels=labels,
            probability=probability,
            palette=NUSCENES_6.palette(),
        )
        message = make_message()
        times = {
            "jpeg": clock(lambda: [decode_image(jpeg) for jpeg in jpegs]),
            "convert in": clock(lambda: decode_cloud(cloud, intensity_range=(0, 255))),
            "pair": clock(partial(pair, cloud, images, info)),
            "prepare": clock(make_batch),
            "  project": clock(lambda: project_frame(frame)),
            "  resize": clock(lambda: [resize_image(view.image, model.image_size) for view in views]),
            "  voxelise": clock(
                lambda: voxelize(points, zeros, ones, voxel_size=settings.voxel_size, max_cells=settings.max_cells)
            ),
            **model_times(model, batch, repeats=repeats, device=device),
            "decide": clock(lambda: decide(predictions, batch, num_points=num_points, threshold=0.0)),
            "convert out": clock(make_message),
            "publish": clock(lambda: publisher.publish(message)),
        }
    node.destroy_node()
    rclpy.shutdown(context=context)
    return times


def model_times(model: SegmentationModel, batch: Batch, *, repeats: int, device: torch.device) -> dict[str, float]:
    """The whole model and its three networks, each network by itself on the inputs it has within the model."""
    inputs: dict[str, tuple[Any, dict[str, Any]]] = {}
    parts = {"2d": model.image_backbone, "3d": model.point_backbone, "fusion": model.fusion}
    hooks = [
        part.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: inputs.update({name: (args, kwargs)}), with_kwargs=True
        )
        for name, part in parts.items()
        if part is not None
    ]
    model(batch)
    for hook in hooks:
        hook.remove()
    times = {"model": median_ms(lambda: model(batch), repeats=repeats, device=device)}
    for name, (args, kwargs) in inputs.items():
        part = parts[name]
        assert part is not None
        times[f"  {name}"] = median_ms(partial(part, *args, **kwargs), repeats=repeats, device=device)
    return times


def median_ms(function: Callable[[], Any], *, repeats: int, device: torch.device) -> float:
    """Median over `repeats` calls after two that do not count: CPU time of the process, on a GPU wall time."""
    now_s = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for number in range(repeats + 2):
        start_s = now_s()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 2:
            times.append((now_s() - start_s) * 1e3)
    return float(np.median(times))


def pair(cloud: Any, images: list[Any], info: Any) -> None:
    """One sweep and its images through the pairing."""
    cameras = [str(number) for number in range(len(images))]
    pairing = NearestPairing(cameras=cameras, tolerance_ns=50_000_000, timeout_ns=100_000_000, jump_threshold_ns=10**9)
    pairing.add_cloud(0, cloud, now_ns=0)
    for camera, image in zip(cameras, images, strict=True):
        pairing.add_info(camera, 0, info, now_ns=0)
        ready = pairing.add_image(camera, 0, image, now_ns=0)
    assert len(ready) == 1


def spread_cloud(num_points: int) -> Any:
    """A sweep-like cloud: beams on a ground plane and walls out to 60 m, all around."""
    generator = np.random.default_rng(1)
    message = make_cloud(0, num_points=num_points)
    azimuth = generator.uniform(-np.pi, np.pi, num_points)
    elevation = np.deg2rad(generator.uniform(-24, 4, num_points))
    distance = np.minimum(1.8 / np.maximum(np.sin(-elevation), 1e-3), generator.uniform(8, 60, num_points))
    values = np.frombuffer(bytes(message.data), np.float32).reshape(-1, 4).copy()
    values[:, 0] = distance * np.cos(elevation) * np.cos(azimuth)
    values[:, 1] = distance * np.cos(elevation) * np.sin(azimuth)
    values[:, 2] = distance * np.sin(elevation)
    data = array("B")
    data.frombytes(values.tobytes())
    message.data = data
    return message


def camera_pose(number: int) -> np.ndarray:
    """(4, 4) camera_T_lidar of one of six cameras, 60 degrees apart."""
    angle = np.deg2rad(60.0 * number)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, sine, 0, 0], [-sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return np.array([[0.0, -1, 0, 0], [0, 0, -1, 0.1], [1, 0, 0, 0], [0, 0, 0, 1]]) @ turn


def to_jpeg(image: Any) -> CompressedImage:
    """The same picture, smoothed as a real one is, as JPEG."""
    pixels = cv2.GaussianBlur(np.frombuffer(bytes(image.data), np.uint8).reshape(*IMAGE_SIZE, 3), (0, 0), 3)
    _, encoded = cv2.imencode(".jpg", pixels)
    data = array("B")
    data.frombytes(encoded.tobytes())
    return CompressedImage(format="rgb8; jpeg compressed bgr8", data=data)


def main(argv: list[str] | None = None) -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["demo"])
    parser.add_argument("--points", type=int, nargs="+", default=[35_000, 120_000])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 6])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = run(
        device=arguments.device,
        models=tuple(arguments.models),
        points=tuple(arguments.points),
        cameras=tuple(arguments.cameras),
        repeats=arguments.repeats,
    )
    names = [f"{row['networks']}, {row['points'] // 1000}k points, {row['cameras']} cameras" for row in rows]
    print("| ms | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for stage in list(rows[0])[3:]:
        print(f"| {stage.replace('  ', '- ')} | " + " | ".join(f"{row.get(stage, 0.0):.1f}" for row in rows) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
