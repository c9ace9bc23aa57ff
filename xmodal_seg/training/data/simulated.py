# SPDX-License-Identifier: Apache-2.0
"""Domains of the simulated world, rendered once into frame stores and shared by all recipes that ask for the same.

A part of a task (the source's training frames, the target's test frames ...) consists of short drives, each with its
own seed; the seeds of the parts are disjoint, so no street of one part appears in another.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from xmodal_seg.config import Settings, parse_settings
from xmodal_seg.geometry import project_frame
from xmodal_seg.labels import IGNORE_INDEX
from xmodal_seg.simulation.drive import WORLD_VERSION, Drive, DriveSettings
from xmodal_seg.simulation.light import schedule_named
from xmodal_seg.simulation.places import place_named
from xmodal_seg.simulation.raw_classes import label_space_named, train_ids
from xmodal_seg.simulation.rigs import Rig, rig_named
from xmodal_seg.simulation.thermal import thermal
from xmodal_seg.simulation.weather import weather_named
from xmodal_seg.structures import NO_CAMERA
from xmodal_seg.training.data.dataset import Domains
from xmodal_seg.training.data.frame_store import FrameStore, StoredFrame, write_frame_store
from xmodal_seg.training.locks import locked
from xmodal_seg.training.recipe_settings import DataSettings

RAW_LABELS = "simulation_raw"
# A part's drives have the seeds from here on; parts of other data sets must start elsewhere.
_FIRST_SEED = {"source_train": 100_000, "target_train": 200_000, "target_val": 300_000, "target_test": 400_000}


class RigScale(Settings):
    """`Rig.scaled`: fewer pixels and rays."""

    image: float = Field(default=1.0, gt=0, le=1)
    columns: int | None = None
    beams: int | None = None
    points: int | None = None
    front_only: bool = True


class DomainSettings(Settings):
    """What the drives of a domain are drawn from, by the names that `xmodal-seg simulate` knows."""

    places: tuple[str, ...] = Field(min_length=1)
    rig: str
    scale: RigScale = RigScale()
    lights: tuple[str, ...] = Field(default=("noon",), min_length=1)
    weathers: tuple[str, ...] = Field(default=("clear",), min_length=1)
    appearance: Literal["visible", "thermal"] = Field(
        default="visible", description="thermal: false colours, as of a camera that no network was trained for"
    )

    def facts(self) -> dict[str, Any]:
        """What names a rendered part: without the appearance where it is the usual one."""
        return self.model_dump(mode="json", exclude={"appearance"} if self.appearance == "visible" else set())


class NumFrames(Settings):
    """Frames of each part."""

    source_train: int = Field(gt=0)
    target_train: int = Field(gt=0)
    target_val: int = Field(gt=0)
    target_test: int = Field(gt=0)


class SimulatedOptions(Settings):
    """data.options of the reader 'simulated'."""

    label_space: str
    source: DomainSettings
    target: DomainSettings
    frames: NumFrames
    frames_per_drive: int = Field(default=8, gt=0)
    fps: float = Field(default=0.5, gt=0, description="frames a second; at 0.5 they lie some 15 m apart")
    visible_only: bool = Field(default=True, description="leave out points that no camera sees")
    num_processes: int | None = Field(default=None, gt=0, description="that render; all processors if None")


def world_fingerprint(data: DataSettings) -> str:
    """Of the settings and of the world's version, not of the bytes: nothing is rendered for it.

    Bytes differ between machines by a few grey levels and points, and a table may be made on several.

    Raises ValueError for unknown options.
    """
    options = parse_settings(SimulatedOptions, data.options, where="data.options")
    parts = "\n".join(_part_name(part, options) for part in NumFrames.model_fields)
    return hashlib.sha256(f"{parts}\n{options.label_space}".encode()).hexdigest()[:16]


def open_world(data: DataSettings) -> Domains:
    """The domains of a recipe, rendered below data.root/worlds where they are missing.

    Raises ValueError for a name that the simulation does not know, before anything is rendered.
    """
    options = parse_settings(SimulatedOptions, data.options, where="data.options")
    _check_names(options)
    label_space = label_space_named(options.label_space)
    table = np.full(256, IGNORE_INDEX, dtype=np.int64)
    of_raw = train_ids(label_space)
    table[: of_raw.size] = of_raw
    stores = {}
    for part in NumFrames.model_fields:
        folder = _rendered(data.root / "worlds", part, options)
        stores[part] = FrameStore(folder, label_space=label_space, table=table, labels=RAW_LABELS)
    return Domains(**stores, fingerprint=world_fingerprint(data))


def _check_names(options: SimulatedOptions) -> None:
    """Of both domains all names, since a drive draws one of each and the target is rendered last."""
    where = "data.options"
    try:
        label_space_named(options.label_space)
        for side in ("source", "target"):
            where = f"data.options.{side}"
            domain: DomainSettings = getattr(options, side)
            _rig(domain)
            for place in domain.places:
                place_named(place)
            for light in domain.lights:
                schedule_named(light, 0.0)
            for weather in domain.weathers:
                weather_named(weather)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _rendered(root: Path, part: str, options: SimulatedOptions) -> Path:
    """The folder of a part's store, rendered first if it is not there."""
    domain, num_frames = _domain(part, options), getattr(options.frames, part)
    folder = root / _part_name(part, options)
    with locked(folder):
        if not (folder / "store.json").is_file():
            write_frame_store(
                folder,
                _frames(part, domain, options, num_frames),
                num_frames=num_frames,
                name=folder.name.replace(f"{part}_", f"{part} "),
                labels=RAW_LABELS,
                origin=_facts(part, options),
            )
    return folder


def _part_name(part: str, options: SimulatedOptions) -> str:
    """A part's folder: `<part>_<hash of what it is rendered from>`."""
    facts = json.dumps(_facts(part, options), sort_keys=True)
    return f"{part}_{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def _facts(part: str, options: SimulatedOptions) -> dict[str, Any]:
    return {
        "world": WORLD_VERSION,
        "part": part,
        "domain": _domain(part, options).facts(),
        "num_frames": getattr(options.frames, part),
        "frames_per_drive": options.frames_per_drive,
        "fps": options.fps,
        "visible_only": options.visible_only,
    }


def _domain(part: str, options: SimulatedOptions) -> DomainSettings:
    return options.source if part.startswith("source") else options.target


def _frames(part: str, domain: DomainSettings, options: SimulatedOptions, num_frames: int) -> Iterator[StoredFrame]:
    num_drives = -(-num_frames // options.frames_per_drive)
    jobs = [(domain, options, _FIRST_SEED[part] + number) for number in range(num_drives)]
    processes = min(options.num_processes or os.cpu_count() or 1, num_drives)
    if processes == 1:
        for job in jobs:
            yield from _drive_frames(job)
        return
    # Spawned, not forked: the parent may hold threads of torch.
    with ProcessPoolExecutor(max_workers=processes, mp_context=get_context("spawn")) as pool:
        for frames in pool.map(_drive_frames, jobs):
            yield from frames


def _drive_frames(job: tuple[DomainSettings, SimulatedOptions, int]) -> list[StoredFrame]:
    domain, options, seed = job
    drive = Drive(_drive_settings(domain, options, seed=seed))
    stored = []
    for index in range(len(drive)):
        sample = drive.sample(index)
        frame, labels = sample.frame, sample.raw_labels
        if options.visible_only:
            seen = project_frame(frame).camera_index != NO_CAMERA
            frame, labels = frame.select(seen), labels[seen]
        if domain.appearance == "thermal":
            cameras = tuple(replace(camera, image=thermal(camera.image)) for camera in frame.cameras)
            frame = replace(frame, cameras=cameras)
        stored.append(StoredFrame(frame=frame, labels=labels))
    return stored


def _drive_settings(domain: DomainSettings, options: SimulatedOptions, *, seed: int) -> DriveSettings:
    """A drive: its place, light and weather drawn by its seed."""
    rng = np.random.default_rng(seed)

    def draw(names: tuple[str, ...]) -> str:
        return names[int(rng.integers(len(names)))]

    duration = (options.frames_per_drive - 1) / options.fps
    return DriveSettings(
        seed=seed,
        num_frames=options.frames_per_drive,
        fps=options.fps,
        place=place_named(draw(domain.places)),
        rig=_rig(domain),
        light=schedule_named(draw(domain.lights), duration),
        weather=weather_named(draw(domain.weathers)),
    )


def _rig(domain: DomainSettings) -> Rig:
    scale: dict[str, Any] = domain.scale.model_dump()
    return rig_named(domain.rig).scaled(**scale)
