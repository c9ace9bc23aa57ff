# SPDX-License-Identifier: Apache-2.0
"""Frames a second of the simulated world, by rig, light and weather.

    python test/benchmark/bench_simulation.py

Images with shadows. `frames_per_s`: one process after its first frame, with processor time beside wall time, because
the latter suffers from neighbours. `two_processes_frames_per_s`: 60 frames by two processes, their start counted.
"""

from __future__ import annotations

import time
from typing import Any

from xmodal_seg.simulation import Drive, DriveSettings, Rig, place_named, rig_named, schedule_named, weather_named
from xmodal_seg.simulation.parallel import rendered

NUM_FRAMES = 20
NUM_FRAMES_TWO_PROCESSES = 60
FPS = 2.0
CASES: tuple[tuple[str, str, str, str, Rig], ...] = (
    ("nuscenes 400x225, 32 x 1000", "usa", "noon", "clear", rig_named("nuscenes").scaled(image=0.25, columns=1000)),
    ("nuscenes 400x225, 32 x 1000", "usa", "night", "clear", rig_named("nuscenes").scaled(image=0.25, columns=1000)),
    ("nuscenes 400x225, 32 x 1000", "usa", "night", "rain", rig_named("nuscenes").scaled(image=0.25, columns=1000)),
    (
        "nuscenes 400x225, front sector",
        "singapore",
        "noon",
        "clear",
        rig_named("nuscenes").scaled(image=0.25, columns=1000, front_only=True),
    ),
    (
        "nuscenes 6 x 400x225, 32 x 1000",
        "singapore",
        "noon",
        "clear",
        rig_named("nuscenes_surround").scaled(image=0.25, columns=1000),
    ),
    ("kitti 621x188, 64 x 1000", "germany", "noon", "clear", rig_named("kitti").scaled(image=0.5, columns=1000)),
    ("a2d2 480x302, 5 x 16 x 900", "ingolstadt", "noon", "clear", rig_named("a2d2").scaled(image=0.25, columns=900)),
    ("vkitti 621x188, 10,000 points", "virtual", "noon", "clear", rig_named("vkitti").scaled(image=0.5)),
)


def run(num_frames: int = NUM_FRAMES) -> list[dict[str, Any]]:
    """A row for each case: frames a second after the first frame, the first frame's time, points of a frame."""
    rows = []
    for name, place, light, weather, rig in CASES:
        settings = DriveSettings(
            seed=1,
            num_frames=num_frames + 1,
            fps=FPS,
            place=place_named(place),
            rig=rig,
            light=schedule_named(light, num_frames / FPS),
            weather=weather_named(weather),
        )
        rows.append(
            {
                "case": name,
                "place": place,
                "light": light,
                "weather": weather,
                **_measured(settings),
                **_two_processes(settings),
            }
        )
    return rows


def _measured(settings: DriveSettings) -> dict[str, Any]:
    start = time.perf_counter()
    drive = Drive(settings)
    drive.sample(0)
    first_s = time.perf_counter() - start
    wall, processor = time.perf_counter(), time.process_time()
    num_points = sum(drive.sample(index).frame.num_points for index in range(1, len(drive)))
    number = len(drive) - 1
    return {
        "frames_per_s": round(number / (time.perf_counter() - wall), 2),
        "frames_per_processor_s": round(number / (time.process_time() - processor), 2),
        "first_frame_s": round(first_s, 2),
        "points": num_points // number,
    }


def _two_processes(settings: DriveSettings) -> dict[str, float]:
    longer = settings.model_copy(update={"num_frames": NUM_FRAMES_TWO_PROCESSES})
    start = time.perf_counter()
    number = sum(1 for _ in rendered(longer, jobs=2))
    return {"two_processes_frames_per_s": round(number / (time.perf_counter() - start), 2)}


def main() -> None:
    for row in run():
        print(
            f"{row['case']:32s} {row['place']:10s} {row['light']:6s} {row['weather']:6s} "
            f"{row['frames_per_s']:6.2f} frames/s, {row['frames_per_processor_s']:6.2f} per processor second, "
            f"{row['two_processes_frames_per_s']:6.2f} frames/s by two processes; "
            f"first {row['first_frame_s']:.2f} s; {row['points']:,} points"
        )


if __name__ == "__main__":
    main()
