# SPDX-License-Identifier: Apache-2.0
"""Which device computes, what is said of a GPU that stands idle, and which errors end all work on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xmodal_seg import devices
from xmodal_seg.devices import is_lost, resolve_device, unused_gpu


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
