# SPDX-License-Identifier: Apache-2.0
"""Drive through a simulated street and write what the sensors see, with exact labels, as a folder or as a bag.

The same arguments give the same drive on every machine. A folder that is written already in part is taken up again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from xmodal_seg.simulation.drive import DriveSettings

Item = TypeVar("Item")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("what to write (one of these)")
    out.add_argument("--out", metavar="FOLDER", help="a folder of plain files, see xmodal_seg/simulation/folder.py")
    out.add_argument(
        "--bag",
        metavar="FOLDER",
        help="a rosbag2 (mcap): /points, /<camera>/image/compressed, /<camera>/camera_info, /tf_static, "
        "/ground_truth/points with a uint8 label and /ground_truth/condition",
    )
    out.add_argument("--contact-sheet", metavar="FILE", help="a PNG of places, lights, weathers and rigs; nothing else")
    out.add_argument("--list", action="store_true", help="print the names of places, rigs, lights and weathers")

    drive = parser.add_argument_group("the drive")
    drive.add_argument("--seed", type=int, default=0, help="another number is another street (default: %(default)s)")
    drive.add_argument("--frames", type=int, default=100, help="number of frames (default: %(default)s)")
    drive.add_argument("--fps", type=float, default=2.0, help="frames a second (default: %(default)s)")
    drive.add_argument("--place", default="usa", help="a name, or random:<number> (default: %(default)s)")
    drive.add_argument(
        "--light",
        default="noon",
        help="a name, sun:<degrees of elevation>, or several joined by > that are passed at equal distances, such as "
        "'noon>dusk>night' (default: %(default)s)",
    )
    drive.add_argument("--weather", default="clear", help="a name (default: %(default)s)")

    rig = parser.add_argument_group("the sensors")
    rig.add_argument("--rig", default="nuscenes", help="a name (default: %(default)s)")
    rig.add_argument("--scale", type=float, default=1.0, help="of the images, above 0 to 1 (default: %(default)s)")
    rig.add_argument("--columns", type=int, help="firings of a turn of each LiDAR (default: the rig's)")
    rig.add_argument("--beams", type=int, help="beams of each LiDAR, at most the rig's (default: all)")
    rig.add_argument("--points", type=int, help="points sampled from a depth image (rig vkitti; default: 10000)")
    rig.add_argument("--front-only", action="store_true", help="first camera, and the rays that it may see")

    how = parser.add_argument_group("how")
    how.add_argument(
        "--label-space",
        default="nuscenes_6",
        help="of the labels in a bag: nuscenes_6, semantic_kitti_10 or virtual_kitti_6; a folder keeps the raw classes "
        "(default: %(default)s)",
    )
    how.add_argument(
        "--truth-images", action="store_true", help="class, instance and depth images beside (folder only)"
    )
    how.add_argument("--jobs", type=int, default=1, help="processes; the result is the same (default: %(default)s)")
    how.add_argument("--overwrite", action="store_true", help="replace an existing bag")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xmodal-seg simulate", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """0 when all is written; ValueError, one sentence, for what is wrong with the arguments."""
    chosen = [name for name in ("out", "bag", "contact_sheet") if getattr(arguments, name)]
    if len(chosen) + arguments.list != 1:
        raise ValueError("expected one of --out, --bag, --contact-sheet and --list")
    if arguments.list:
        print(_names())
    elif arguments.contact_sheet:
        from xmodal_seg.simulation.contact_sheet import write_contact_sheet

        write_contact_sheet(arguments.contact_sheet)
        print(arguments.contact_sheet)
    elif arguments.out:
        _write_folder(arguments)
    else:
        _write_bag(arguments)
    return 0


def settings_of(arguments: argparse.Namespace) -> DriveSettings:
    """The drive that the arguments describe. Raises ValueError for a name or number that does not fit."""
    from xmodal_seg.config import parse_settings
    from xmodal_seg.simulation.drive import DriveSettings
    from xmodal_seg.simulation.light import schedule_named
    from xmodal_seg.simulation.places import place_named
    from xmodal_seg.simulation.rigs import rig_named
    from xmodal_seg.simulation.weather import weather_named

    rig = rig_named(arguments.rig).scaled(
        image=arguments.scale,
        columns=arguments.columns,
        beams=arguments.beams,
        points=arguments.points,
        front_only=arguments.front_only,
    )
    numbers = {"seed": arguments.seed, "num_frames": arguments.frames, "fps": arguments.fps}
    duration = parse_settings(DriveSettings, numbers, where="the drive").duration
    return DriveSettings(
        **numbers,
        place=place_named(arguments.place),
        rig=rig,
        light=schedule_named(arguments.light, duration),
        weather=weather_named(arguments.weather),
    )


def _write_folder(arguments: argparse.Namespace) -> None:
    from xmodal_seg.simulation.folder import prepare_folder, write_samples
    from xmodal_seg.simulation.parallel import rendered

    settings = settings_of(arguments)
    missing = prepare_folder(arguments.out, settings, with_truth=arguments.truth_images)
    samples = rendered(settings, indices=missing, with_truth=arguments.truth_images, jobs=arguments.jobs)
    for _ in _tracked(write_samples(arguments.out, samples), len(missing)):
        pass
    print(f"{arguments.out}: {settings.num_frames} frames, {len(missing)} of them new")


def _write_bag(arguments: argparse.Namespace) -> None:
    from xmodal_seg.bags import write_bag
    from xmodal_seg.simulation.drive import FIRST_STAMP_NS
    from xmodal_seg.simulation.parallel import rendered
    from xmodal_seg.simulation.raw_classes import label_space_named

    settings, label_space = settings_of(arguments), label_space_named(arguments.label_space)
    samples = rendered(settings, label_space=label_space, jobs=arguments.jobs)
    frames = (sample.frame for sample in _tracked(samples, settings.num_frames))
    number = write_bag(
        arguments.bag,
        frames,
        label_space=label_space,
        overwrite=arguments.overwrite,
        condition_of=lambda frame: settings.light.at((frame.stamp_ns - FIRST_STAMP_NS) / 1e9).condition,
    )
    print(f"{arguments.bag}: {number} frames")


def _tracked(items: Iterable[Item], total: int) -> Iterator[Item]:
    from rich.progress import track

    yield from track(items, description="simulating", total=total)


def _names() -> str:
    from xmodal_seg.simulation.light import LIGHTS
    from xmodal_seg.simulation.places import PLACES
    from xmodal_seg.simulation.rigs import RIGS
    from xmodal_seg.simulation.weather import WEATHERS

    names = {
        "places": [*PLACES, "random:<number>"],
        "rigs": RIGS,
        "lights": [*LIGHTS, "sun:<degrees>"],
        "weathers": WEATHERS,
    }
    return "\n".join(f"{kind}: {', '.join(values)}" for kind, values in names.items())
