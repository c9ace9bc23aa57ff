# SPDX-License-Identifier: Apache-2.0
"""The device that a model runs on: which one, in which precision, and whether it is still there."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]

# Linux's names of an NVIDIA card and of a Jetson's GPU.
_DRIVER_FILES = ("/dev/nvidia0", "/dev/nvhost-gpu")
# CUDA's words, as torch and spconv pass them on, for errors after which a process can do nothing more on its GPU.
_LOST = re.compile(
    "illegal memory access|illegal address|illegal instruction|misaligned address|invalid program counter|"
    "hardware stack error|unspecified launch failure|device-side assert|the launch timed out|uncorrectable|"
    "GPU is lost|fallen off the bus|device is unavailable|no CUDA-capable device is detected|busy or unavailable|"
    "context is destroyed|operation not supported on global/shared address space|"
    r"CUDA (driver )?error: unknown error|\b999 unknown error",
    re.IGNORECASE,
)
_MANY_FAILURES = 3


def resolve_device(name: str) -> torch.device:
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> a device that is there; ValueError otherwise."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name!r} asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    return device


def unused_gpu() -> str | None:
    """A sentence where this machine has an NVIDIA GPU that torch cannot use, and 'auto' therefore means the CPU."""
    is_there = any(Path(file).exists() for file in _DRIVER_FILES)
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.cuda.is_available() or not is_there or is_hidden:
        return None
    if torch.version.cuda is None:
        return f"there is a GPU, but torch {torch.__version__} is built without CUDA: the CPU computes"
    return (
        f"there is a GPU, but torch {torch.__version__}, built for CUDA {torch.version.cuda}, cannot use it (is the "
        "driver too old for it?): the CPU computes"
    )


def device_name(device: torch.device) -> str:
    """The maker's name of a GPU, or of the processor where Linux tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def is_lost(error: Exception) -> bool:
    """Whether the error ends all further work of this process on the GPU; out of memory does not."""
    return isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


def can_compute(device: torch.device) -> bool:
    """Whether a device still does the least that can be asked of it; one whose memory is full does."""
    try:
        torch.ones(1, device=device).item()  # waits for it
    except RuntimeError as error:
        return "out of memory" in str(error)
    return True


class GpuWatch:
    """Tells from work that failed whether the GPU is lost to this process. Not thread-safe.

    Where the words of an error do not say so, as those of cuBLAS and cuDNN do not, it is tried after three failures in
    a row.

    Args:
        probe: whether the device still computes.
    """

    def __init__(self, *, probe: Callable[[], bool]) -> None:
        self._probe = probe
        self._failures = 0  # since the last success

    def succeeded(self) -> None:
        """Work was done."""
        self._failures = 0

    def failed(self, error: Exception) -> bool:
        """Work has failed; True if the GPU is lost. A ValueError is about what came in, and says nothing of it."""
        if isinstance(error, RuntimeError):
            self._failures += 1
        return is_lost(error) or (self._failures >= _MANY_FAILURES and not self._probe())
