# SPDX-License-Identifier: Apache-2.0
"""Memory of the node over many frames: `python test/benchmark/bench_memory.py [--frames 2000]`.

Resident memory must stay flat within 2 % between a tenth of the frames, when caches are filled, and the end.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from node_harness import Harness, make_transform, save_tiny_checkpoint

START_NS, PERIOD_NS = 1_700_000_000 * 10**9, 100_000_000
LIMIT_PERCENT = 2.0


def run(*, frames: int = 2000, num_points: int = 20_000) -> list[dict[str, Any]]:
    """Resident MB after each tenth of the frames; points, image and CameraInfo of each go through DDS and the node."""
    os.environ.setdefault("FASTDDS_BUILTIN_TRANSPORTS", "LARGE_DATA")
    process = psutil.Process()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(save_tiny_checkpoint(Path(folder) / "checkpoint"), reliability="reliable").start()
        harness.transforms.publish(make_transform())
        for number in range(1, frames + 1):
            harness.send(START_NS + number * PERIOD_NS, num_points=num_points, seed=number % 7)
            harness.wait_for_clouds(1)
            harness.clouds.clear()
            harness.diagnostics.clear()
            if number % max(1, frames // 10) == 0:
                gc.collect()
                rows.append({"frames": number, "resident MB": process.memory_info().rss / 1e6})
        harness.close()
    return rows


def main(argv: list[str] | None = None) -> int:
    """Print the rows; 1 if memory grew by more than the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--frames", type=int, default=2000)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = run(frames=arguments.frames)
    for row in rows:
        print(f"{row['frames']:6d} frames  {row['resident MB']:8.1f} MB")
    growth = 100 * (rows[-1]["resident MB"] / rows[0]["resident MB"] - 1)
    print(
        f"growth from {rows[0]['frames']} to {rows[-1]['frames']} frames: {growth:+.2f} % (limit {LIMIT_PERCENT:g} %)"
    )
    return int(growth > LIMIT_PERCENT)


if __name__ == "__main__":
    sys.exit(main())
