# SPDX-License-Identifier: Apache-2.0
"""A simulated world: procedural streets seen by a ray-cast LiDAR and cameras, with exact labels (extra `sim`).

    from xmodal_seg.simulation import DriveSettings, drive_frames, place_named, rig_named, schedule_named

    rig = rig_named("nuscenes").scaled(image=0.25, columns=1000)
    settings = DriveSettings(seed=1, num_frames=20, fps=2.0, rig=rig, place=place_named("usa"),
                             light=schedule_named("noon>dusk>night", 10.0))
    for frame in drive_frames(settings):  # structures.Frame with labels in NUSCENES_6
        ...

`Drive(settings).sample(i)` renders any frame alone, with raw classes, instances, rings and, on demand, class, instance
and depth images; `parallel.rendered` does so in several processes, `folder` writes drives and reads them back,
`pretext` makes views without classes. The same settings give the same bytes on one machine, and the same layout, poses
and classes on all.
"""

from xmodal_seg.simulation.drive import (
    WORLD_VERSION,
    CameraTruth,
    Drive,
    DriveSettings,
    Sample,
    drive_frames,
    drive_samples,
)
from xmodal_seg.simulation.light import LIGHTS, Light, LightSchedule, random_light, schedule_named
from xmodal_seg.simulation.places import PLACES, Place, place_named, random_place
from xmodal_seg.simulation.raw_classes import RawClass, label_space_named, train_ids
from xmodal_seg.simulation.rigs import RIGS, Rig, rig_named
from xmodal_seg.simulation.weather import WEATHERS, Weather, weather_named

__all__ = [
    "LIGHTS",
    "PLACES",
    "RIGS",
    "WEATHERS",
    "WORLD_VERSION",
    "CameraTruth",
    "Drive",
    "DriveSettings",
    "Light",
    "LightSchedule",
    "Place",
    "RawClass",
    "Rig",
    "Sample",
    "Weather",
    "drive_frames",
    "drive_samples",
    "label_space_named",
    "place_named",
    "random_light",
    "random_place",
    "rig_named",
    "schedule_named",
    "train_ids",
    "weather_named",
]
