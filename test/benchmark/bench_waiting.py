# SPDX-License-Identifier: Apache-2.0
"""One sweep labelled on a CPU beside other programs, by how OpenMP's threads wait for one another:
`python test/benchmark/bench_waiting.py`.

Wall time in ms of `Segmenter.predict` with the shipped weights (20,000 points, one camera), with nothing else running
and with one busy process per core. Spins before a thread sleeps, by GOMP_SPINCOUNT: 300,000 is libgomp's own default,
1,000 what our programs set (`xmodal_seg/openmp.py`), 0 sleeps at once. Each row has processes of its own, since libgomp
reads its environment once; rows with the same neighbours alternate, so that each sees the same machine. It takes
about six minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SPINS = (300_000, 1_000, 0)
_BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]):  # ends with a benchmark that is killed
    for _ in range(100_000): pass
"""


def rows(*, rounds: int = 2, repeats: int = 8) -> Iterator[dict[str, Any]]:
    """One row per neighbour, number of threads and spin count, as soon as it is measured."""
    cores = len(os.sched_getaffinity(0))
    for num_busy in (0, cores):
        with busy_processes(num_busy):
            for threads in (1, cores):
                spins = SPINS if threads > 1 else SPINS[-1:]
                times: dict[int, list[float]] = {spin: [] for spin in spins}
                for _ in range(rounds):
                    for spin in spins:
                        times[spin] += measured_apart(threads=threads, spin=spin, repeats=repeats)
                for spin, values in times.items():
                    yield {
                        "busy processes": num_busy,
                        "threads": threads,
                        "spins": spin,
                        "median ms": statistics.median(values),
                        "slowest ms": max(values),
                    }


def run() -> list[dict[str, Any]]:
    return list(rows())


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY, str(os.getpid())]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measured_apart(*, threads: int, spin: int, repeats: int) -> list[float]:
    """`measure` in a new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": str(spin)}
    command = [sys.executable, __file__, "--json", str(repeats)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def measure(repeats: int) -> list[float]:
    """Wall times in ms of one sweep, after one that is not counted; at most about ten seconds."""
    import numpy as np

    from xmodal_seg.inference import Segmenter
    from xmodal_seg.structures import Calibration, CameraView, Frame

    generator = np.random.default_rng(0)
    points = generator.uniform((2, -15, -2), (40, 15, 2), size=(20_000, 3)).astype(np.float32)
    calibration = Calibration(
        camera_matrix=np.array([[400.0, 0, 399.5], [0, 400.0, 224.5], [0, 0, 1]]),
        camera_T_lidar=np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
        image_size=(450, 800),
    )
    image = generator.integers(0, 255, size=(450, 800, 3), dtype=np.uint8)
    camera = CameraView(name="front", image=image, calibration=calibration)
    frame = Frame(points=points, intensity=np.zeros(len(points), dtype=np.float32), cameras=(camera,))
    segmenter = Segmenter.load(None, device="cpu")
    segmenter.predict(frame)
    times: list[float] = []
    began_s = time.perf_counter()
    while len(times) < repeats and (not times or time.perf_counter() - began_s < 10):
        start_s = time.perf_counter()
        segmenter.predict(frame)
        times.append((time.perf_counter() - start_s) * 1e3)
    return times


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=int, metavar="REPEATS", help="measure in this process and print JSON")
    arguments = parser.parse_args(argv)
    if arguments.json:
        print(json.dumps(measure(arguments.json)))
        return 0
    for row in rows(rounds=arguments.rounds):
        print("  ".join(f"{name} {value:,.0f}" for name, value in row.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
