# SPDX-License-Identifier: Apache-2.0
"""What the steps of a run cost: time and memory, in `costs.json` of its folder."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from xmodal_seg.training.data.prepared import write_text

COSTS_FILE = "costs.json"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5)


class RunCosts:
    """Measures the steps that this process makes of a run; a resumed run tells of those since it was resumed.

    `step_s`: median time of a step, s, without waiting for data. `step_cpu_s`: mean time of all processor cores in this
    process, s, scorings of a gate among it; other programs do not count, nor do the processes that read data.
    `peak_mb`: most memory of the GPU that was allocated; without one, most resident memory of this process, of which a
    part belongs to the libraries and to runs that it made before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._step_s: list[float] = []
        self._cpu_s = 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # elsewhere than on Linux the peak is that since the process began
                _CLEAR.write_text(_RESET_PEAK)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step."""
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        yield
        self._cpu_s += time.process_time() - start_cpu_s
        self._step_s.append(time.perf_counter() - start_s)

    def summary(self) -> dict[str, float]:
        """By name; nothing where no step was made."""
        if not self._step_s:
            return {}
        return {
            "steps": len(self._step_s),
            "step_s": round(statistics.median(self._step_s), 4),
            "step_cpu_s": round(self._cpu_s / len(self._step_s), 4),
            "peak_mb": round(self._peak_bytes() / 1e6),
        }

    def write(self, folder: Path) -> None:
        """Of a finished run; what an earlier process wrote stays where this one made no step."""
        if summary := self.summary():
            write_text(folder / COSTS_FILE, json.dumps(summary) + "\n")

    def _peak_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if _STATUS.exists():
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_costs(folder: Path) -> dict[str, float]:
    """Of a run; nothing where it was made before this was measured."""
    path = folder / COSTS_FILE
    if not path.is_file():
        return {}
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found
