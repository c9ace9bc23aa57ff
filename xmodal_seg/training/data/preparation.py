# SPDX-License-Identifier: Apache-2.0
"""Download -> prepared format: parallel over processes, resumable, idempotent; a damaged file costs its frame only.

Work is cut into shards of consecutive frames. A shard is done when its report `points/<shard>.json` is there; what is
done and whole is not done again, so a second run finishes an interrupted one, and a third changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.geometry import project_frame
from xmodal_seg.structures import NO_CAMERA, Calibration, CameraView, Frame
from xmodal_seg.training.data.assembly import Preparation, assemble
from xmodal_seg.training.data.image_files import check_image, write_png
from xmodal_seg.training.data.prepared import (
    FORMAT,
    FRAMES_PER_SHARD,
    POINT_DTYPE,
    POINTS_FOLDER,
    raw_histogram,
    write_parts,
    write_text,
)
from xmodal_seg.training.data.sources import Source, SourceFrame, SweepPoints

Scope = Literal["visible", "all"]
OPTIONS_FILE = "options.json"
IMAGES_FOLDER = "images"


@dataclass(frozen=True, kw_only=True)
class _Shard:
    number: int
    frames: tuple[SourceFrame, ...]
    key: str  # of the frames and options; another key means other content

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


def prepare_frames(
    source: Source,
    frames: Sequence[SourceFrame],
    out: Path,
    *,
    scope: Scope = "visible",
    workers: int = 1,
    overwrite: bool = False,
    moved: bool = False,
    progress: Callable[[int], None] = lambda num_frames: None,
) -> Preparation:
    """Prepare `frames` of `source` into the folder `out`.

    Args:
        scope: visible keeps the points that one of the source's cameras sees.
        workers: processes; 1 works in this one.
        moved: the download that `out` was made from is now where `source` is; what is done stays done.
        progress: called with the number of frames of each shard that is finished.

    Raises:
        ValueError: `out` was prepared with other options, or no frame is left.
        RuntimeError: a worker process died (out of memory); what is done stays done.
    """
    options = _options(source, scope)
    _check_options(out, {**options, "root": str(source.root.resolve())}, overwrite=overwrite, moved=moved)
    shards = _make_shards(frames, options, source.variants)
    todo = [shard for shard in shards if overwrite or not _is_done(out, shard, own_images=source.rectifies)]
    progress(sum(len(shard.frames) for shard in shards) - sum(len(shard.frames) for shard in todo))
    for num_frames in _run(todo, source, out, scope=scope, workers=workers):
        progress(num_frames)
    reports = [json.loads(_report_path(out, shard).read_text(encoding="utf-8")) for shard in shards]
    names = [_points_path(out, shard).name for shard in shards]
    made = assemble(out, source=source, scope=scope, shards=names, reports=reports)
    _remove_stale(out, shards)
    return replace(made, num_shards_done_before=len(shards) - len(todo))


def prepare_shard(source: Source, shard: _Shard, out: Path, *, scope: Scope) -> int:
    """Write the points and the report of one shard; returns its number of frames."""
    rows: list[dict[str, Any]] = []
    parts: list[NDArray[Any]] = []
    damaged: list[str] = []
    empty: list[str] = []
    first = 0
    for frame in shard.frames:
        try:
            part, row = _prepare_frame(source, frame, out, scope=scope)
        except ValueError as error:
            damaged.append(" ".join(str(error).split()))
            continue
        if not len(part):
            empty.append(f"{frame.sequence}/{frame.name}")
            continue
        rows.append({**row, "first": first, "histogram": raw_histogram(part)})
        parts.append(part)
        first += len(part)
    write_parts(_points_path(out, shard), parts, dtype=POINT_DTYPE)
    content = hashlib.sha256()
    for part in parts:
        content.update(part.tobytes())
    report = {"key": shard.key, "content": content.hexdigest(), "rows": rows, "damaged": damaged, "empty": empty}
    write_text(_report_path(out, shard), json.dumps(report))
    return len(shard.frames)


def visible_points(frame: Frame) -> NDArray[np.int64]:
    """Rows of the points that a camera sees."""
    return np.flatnonzero(project_frame(frame).camera_index != NO_CAMERA)


def _prepare_frame(
    source: Source, frame: SourceFrame, out: Path, *, scope: Scope
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The kept points, and what frames.npy and cameras.npy say of the frame."""
    sweep = source.read_points(frame)
    calibrations, images = [], []
    for camera in frame.cameras if len(sweep.points) else ():
        image_size, image = _check_images(source, frame, camera, out)
        calibrations.append(camera.calibration(image_size))
        images.append(image)
    kept = _kept_rows(sweep, calibrations, scope)
    points = np.zeros(kept.size, dtype=POINT_DTYPE)
    points["xyz"] = sweep.points[kept]
    points["sweep_index"] = kept
    points["raw_label"] = sweep.raw_labels[kept]
    if sweep.intensity is not None:
        points["intensity"] = sweep.intensity[kept]
    own_stamp_ns = sweep.stamp_ns
    cameras = [
        {
            "name": camera.name,
            "camera_matrix": calibration.camera_matrix.tolist(),
            "camera_T_lidar": calibration.camera_T_lidar.tolist(),
            "image_size": list(calibration.image_size),
            "stamp_ns": camera.stamp_ns if own_stamp_ns is None else own_stamp_ns,
            "image": image,
        }
        for camera, calibration, image in zip(frame.cameras, calibrations, images, strict=False)
    ]
    return points, {
        "sequence": frame.sequence,
        "name": frame.name,
        "stamp_ns": frame.stamp_ns if own_stamp_ns is None else own_stamp_ns,
        "num_points": int(kept.size),
        "num_sweep_points": len(sweep.points),
        "cameras": cameras,
    }


def _kept_rows(sweep: SweepPoints, calibrations: Sequence[Calibration], scope: Scope) -> NDArray[np.int64]:
    if scope == "all":
        return np.flatnonzero(np.isfinite(sweep.points).all(axis=1))
    # The projection looks at calibrations only; a view of one pixel saves the image.
    views = tuple(
        CameraView(
            name=str(number),
            image=np.broadcast_to(np.uint8(0), (*calibration.image_size, 3)),
            calibration=calibration,
        )
        for number, calibration in enumerate(calibrations)
    )
    return visible_points(Frame(points=sweep.points, cameras=views))


def _check_images(source: Source, frame: SourceFrame, camera: Any, out: Path) -> tuple[tuple[int, int], str]:
    """Size of the camera's image and its path for cameras.npy; every variant is opened, undistorted copies are made."""
    if source.rectifies:
        image = source.read_image(frame, camera)
        path = f"{IMAGES_FOLDER}/{Path(camera.image).with_suffix('.png')}"
        write_png(out / path, image)
        return (image.shape[0], image.shape[1]), path
    sizes = {check_image(source.root / camera.image.format(variant=variant)) for variant in source.variants or ("",)}
    if len(sizes) != 1:
        raise ValueError(f"{source.root / camera.image}: the variants of the image have different sizes: {sizes}")
    return sizes.pop(), camera.image


def _options(source: Source, scope: Scope) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dataset": source.dataset,
        "cameras": list(source.cameras),
        "points": scope,
    }


def _check_options(out: Path, options: Mapping[str, Any], *, overwrite: bool, moved: bool) -> None:
    """Remember the options of the first run; ValueError if a later one has others."""
    path = out / OPTIONS_FILE
    if path.is_file() and not overwrite:
        before = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in options if before.get(key) != options[key] and not (moved and key == "root")]
        if different:
            key = different[0]
            way_out = "choose another folder, or --overwrite" + (", or --moved if it moved" if key == "root" else "")
            raise ValueError(
                f"{out}: was prepared with {key} {before.get(key)}, now asked for {options[key]}; {way_out}"
            )
    (out / POINTS_FOLDER).mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(options, indent=1) + "\n")


def _make_shards(frames: Sequence[SourceFrame], options: Mapping[str, Any], variants: Sequence[str]) -> list[_Shard]:
    shards: list[_Shard] = []
    for first in range(0, len(frames), FRAMES_PER_SHARD):
        part = tuple(frames[first : first + FRAMES_PER_SHARD])
        content = [options, [_frame_key(frame, variants) for frame in part]]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        shards.append(_Shard(number=len(shards), frames=part, key=key))
    return shards


def _frame_key(frame: SourceFrame, variants: Sequence[str]) -> list[Any]:
    """What a frame is made from: files, stamps and calibrations, so that a corrected calib.txt is seen."""
    cameras = [
        [camera.stamp_ns, camera.camera_matrix.tolist(), camera.camera_T_lidar.tolist()] for camera in frame.cameras
    ]
    return [frame.sequence, frame.name, frame.stamp_ns, *frame.files(variants), cameras]


def _is_done(out: Path, shard: _Shard, *, own_images: bool) -> bool:
    """Done, of the same frames, and nothing in it was damaged (a repaired file is looked at again)."""
    if not _report_path(out, shard).is_file() or not _points_path(out, shard).is_file():
        return False
    report = json.loads(_report_path(out, shard).read_text(encoding="utf-8"))
    if report["key"] != shard.key or report["damaged"]:
        return False
    images = [camera["image"] for row in report["rows"] for camera in row["cameras"]] if own_images else []
    return all((out / image).is_file() for image in images)


def _run(shards: Sequence[_Shard], source: Source, out: Path, *, scope: Scope, workers: int) -> Iterator[int]:
    if workers <= 1 or len(shards) <= 1:
        for shard in shards:
            yield prepare_shard(source, shard, out, scope=scope)
        return
    # Neither fork (the progress bar has a thread) nor spawn (each worker would import everything anew).
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(source,)) as pool:
        try:
            yield from _in_any_order(pool, shards, out, scope=scope, limit=2 * workers)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed, most likely for want of memory; run again with fewer --workers "
                "(what is done stays done)"
            ) from error
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _in_any_order(
    pool: ProcessPoolExecutor, shards: Iterable[_Shard], out: Path, *, scope: Scope, limit: int
) -> Iterator[int]:
    """Results as they come; at most `limit` shards are on the way, so that an interrupt waits for few."""
    waiting: set[Future[int]] = set()
    for shard in shards:
        if len(waiting) >= limit:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
        waiting.add(pool.submit(_work, shard, out, scope))
    yield from (future.result() for future in waiting)


_worker_source: Source | None = None


def _start_worker(source: Source) -> None:
    global _worker_source
    _worker_source = source
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the first process's to handle


def _work(shard: _Shard, out: Path, scope: Scope) -> int:
    assert _worker_source is not None
    return prepare_shard(_worker_source, shard, out, scope=scope)


def _remove_stale(out: Path, shards: Sequence[_Shard]) -> None:
    """Shards of earlier runs with more frames."""
    names = {shard.name for shard in shards}
    for path in (out / POINTS_FOLDER).iterdir():
        if path.stem not in names:
            path.unlink()


def _points_path(out: Path, shard: _Shard) -> Path:
    return out / POINTS_FOLDER / f"{shard.name}.npy"


def _report_path(out: Path, shard: _Shard) -> Path:
    return out / POINTS_FOLDER / f"{shard.name}.json"
