# SPDX-License-Identifier: Apache-2.0
"""Which device computes, what is said of a GPU that stands idle, and which errors end all work on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xmodal_seg import devices
from xmodal_seg.devices import GpuWatch, can_compute, is_lost, resolve_device, unused_gpu


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"device: .*'{name}'"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("cuda", "said"), [("13.2", "built for CUDA 13.2, cannot use it"), (None, "is built without CUDA")]
)
def test_a_gpu_that_torch_cannot_use_is_told(
    cuda: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(devices, "_DRIVER_FILES", (str(tmp_path / "nvidia0"),))
    assert unused_gpu() is None

    (tmp_path / "nvidia0").touch()
    assert said in str(unused_gpu())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert unused_gpu() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert unused_gpu() is None


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("CUDA error: unknown error\nCUDA kernel errors might"), True),
        (RuntimeError("CUDA driver error: unknown error"), True),
        (RuntimeError("cuda execution failed with error 999 unknown error"), True),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), True),
        (RuntimeError("CUDA error: context is destroyed"), True),
        (RuntimeError("CUDA error: operation not supported on global/shared address space"), True),
        (RuntimeError("decoder: unknown error"), False),
        (RuntimeError("CUDA error: operation not supported"), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("cuda execution failed with error 2 out of memory"), False),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), False),
        (RuntimeError("/io/all.cc(12)\ncuda execution failed with error 700 an illegal memory access"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("points: misaligned address"), False),
    ],
)
def test_errors_that_end_all_work_on_a_gpu(error: Exception, lost: bool) -> None:
    assert is_lost(error) == lost


class Probe:
    """Answers as it is told, and counts how often it is asked."""

    def __init__(self) -> None:
        self.answer = True
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.answer


VAGUE = RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")


def test_a_gpu_is_tried_after_three_failures_in_a_row() -> None:
    probe = Probe()
    watch = GpuWatch(probe=probe)
    assert not any([watch.failed(VAGUE), watch.failed(ValueError("points: damaged")), watch.failed(VAGUE)])
    watch.succeeded()
    assert not any([watch.failed(VAGUE), watch.failed(VAGUE)])
    assert probe.asked == 0
    assert not watch.failed(VAGUE)
    assert probe.asked == 1
    probe.answer = False
    assert watch.failed(VAGUE)


def test_words_that_are_clear_need_no_trial() -> None:
    probe = Probe()
    assert GpuWatch(probe=probe).failed(RuntimeError("CUDA error: misaligned address"))
    assert probe.asked == 0


@pytest.mark.parametrize(
    ("error", "computes"),
    [
        (None, True),
        (RuntimeError("CUDA error: invalid argument"), False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
    ],
)
def test_a_trial_asks_for_the_least(error: Exception | None, computes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones

    def allocate(*size: int, device: torch.device) -> torch.Tensor:
        if error is not None:
            raise error
        return ones(*size, device=device)

    monkeypatch.setattr(torch, "ones", allocate)
    assert can_compute(torch.device("cpu")) == computes
