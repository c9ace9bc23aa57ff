# SPDX-License-Identifier: Apache-2.0
"""What a result was made with: installed versions and devices."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

PACKAGES = (
    "xmodal_seg",
    "torch",
    "spconv-cu120",
    "spconv-cu121",
    "spconv-cu124",
    "spconv-cu126",
    "spconv",
    "timm",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "rosbags",
    "rclpy",
)


def versions() -> dict[str, str]:
    """Python, the system and each of PACKAGES that is installed."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def devices() -> list[dict[str, Any]]:
    """The CPU, then every CUDA device that torch sees."""
    import torch

    found: list[dict[str, Any]] = [{"device": "cpu", "name": platform.machine(), "threads": torch.get_num_threads()}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "compute_capability": f"{properties.major}.{properties.minor}",
            }
        )
    return found
