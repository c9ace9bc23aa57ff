# SPDX-License-Identifier: Apache-2.0
"""What the four programs training/prepare_*.py share: check the download, prepare, check the result, or write a bag."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xmodal_seg.bags import write_bag
from xmodal_seg.training.data.assembly import Preparation
from xmodal_seg.training.data.class_merges import find_merge, merge_table
from xmodal_seg.training.data.download_check import MISSING_FILE_LIST, IncompleteDownload, find_missing
from xmodal_seg.training.data.preparation import prepare_frames
from xmodal_seg.training.data.prepare_report import make_report
from xmodal_seg.training.data.prepared import write_text
from xmodal_seg.training.data.sources import Source, SourceFrame, load_frame
from xmodal_seg.training.data.splits import KNOWN_COUNTS, KnownCount, count_splits

REPORT_FILE = "report.json"
INTERRUPTED = 130  # as a shell has it for SIGINT
_SENTENCES_SHOWN = 30


def make_parser(description: str) -> argparse.ArgumentParser:
    """The flags that all four programs have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--root", type=Path, required=True, help="folder of the extracted download; nothing is written there"
    )
    parser.add_argument("--out", type=Path, help="folder for the prepared data")
    parser.add_argument("--cameras", nargs="+", default=[], help="cameras, or all; the papers' one if not given")
    parser.add_argument(
        "--points", choices=("visible", "all"), default="visible", help="keep points that no camera sees?"
    )
    parser.add_argument("--workers", type=int, default=_usable_cores(), help="processes (default: %(default)s)")
    parser.add_argument("--partial", action="store_true", help="prepare what is there; do not expect the full data set")
    parser.add_argument("--overwrite", action="store_true", help="prepare again what is done already")
    parser.add_argument(
        "--moved", action="store_true", help="the download has moved to --root; what is done stays done"
    )
    parser.add_argument("--check-only", action="store_true", help="only look whether the download is complete")
    parser.add_argument("--bag", type=Path, help="write a rosbag2 of --sequence here, and prepare nothing")
    parser.add_argument("--sequence", help="sequence of --bag, such as scene-0061, 08, 0001, 20180810_142822")
    parser.add_argument("--label-space", help="classes of the bag's ground truth; the first merge if not given")
    return parser


def run(args: argparse.Namespace, source: Source, *, known_counts: Mapping[str, KnownCount] | None = None) -> int:
    """Do what the flags ask; 0 if everything is as it should be, else 1 with the reason on stderr.

    `known_counts`: frames that the splits of the full data set have; the published ones if None.
    """
    try:
        return _run(args, source, KNOWN_COUNTS[source.dataset] if known_counts is None else known_counts)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or args.out}: cannot be written or read: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is done stays done, and the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def _run(args: argparse.Namespace, source: Source, known: Mapping[str, KnownCount]) -> int:
    if args.bag is not None:
        return _write_bag(args, source)
    if args.out is None and not args.check_only:
        raise ValueError("--out: missing; where should the prepared data go?")
    frames = checked_frames(source, partial=args.partial, list_in=args.out)
    if args.check_only:
        print(f"{source.root}: complete, {len(frames)} frames")
        return 0
    return _report(args, _prepare(args, source, frames), known)


def checked_frames(
    source: Source, *, partial: bool, sequence: str | None = None, list_in: Path | None = None
) -> list[SourceFrame]:
    """The frames of a download, or of one sequence, whose files are all there.

    Raises IncompleteDownload if tables are missing, or files of frames unless `partial`; the whole list is written
    to `list_in`/missing_files.txt.
    """
    if not source.root.is_dir():
        raise ValueError(f"--root {source.root}: no such folder")
    tables = source.missing_tables()
    with Console(stderr=True).status(f"reading which frames {source.root} has") as status:
        frames = [] if tables else source.frames()
        if sequence is not None and not tables:
            frames = _of_sequence(source, frames, sequence)
        status.update(f"looking for the files of {len(frames)} frames")
        files = (file for frame in frames for file in frame.files(source.variants))
        missing = tables or find_missing(source.root, files)
    if list_in is not None:
        _write_missing(list_in, missing)
    if tables or (missing and not partial):
        hint = "docs/datasets.md shows how they should lie"
        if not tables and not partial:  # without tables nothing can be taken
            hint += "; --partial takes what is there"
        raise IncompleteDownload(source.root, missing, hint=hint)
    lost = set(missing)
    whole = [frame for frame in frames if lost.isdisjoint(frame.files(source.variants))]
    if not whole:
        raise ValueError(f"{source.root}: there is no complete frame here")
    if lost:
        print(f"{source.root}: {len(frames) - len(whole)} of {len(frames)} frames lack a file and are left out")
    # What these two would stumble over is better known before an hour's work than after it.
    source.raw_classes()
    count_splits(source.dataset, dict.fromkeys(source.sequences(), 0))
    return whole


def _usable_cores() -> int:
    """Those that this process may run on, which on a shared machine are not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _of_sequence(source: Source, frames: Sequence[SourceFrame], sequence: str) -> list[SourceFrame]:
    chosen = [frame for frame in frames if frame.sequence == sequence]
    if not chosen:
        names = ", ".join(known.name for known in source.sequences())
        raise ValueError(f"--sequence: expected one of {names}, got {sequence!r}")
    return chosen


def _write_missing(folder: Path, missing: Sequence[str]) -> None:
    """The list of an earlier run goes away once nothing is missing."""
    path = folder / MISSING_FILE_LIST
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(missing) + "\n")
    else:
        path.unlink(missing_ok=True)


def _prepare(args: argparse.Namespace, source: Source, frames: Sequence[SourceFrame]) -> Preparation:
    args.out.mkdir(parents=True, exist_ok=True)
    steps: list[int] = []  # the first one: frames that were done before
    with _bar() as bar:
        task = bar.add_task(f"preparing {source.dataset}", total=len(frames))

        def progress(num_frames: int) -> None:
            steps.append(num_frames)
            bar.advance(task, num_frames)

        preparation = prepare_frames(
            source,
            frames,
            args.out,
            scope=args.points,
            workers=args.workers,
            overwrite=args.overwrite,
            moved=args.moved,
            progress=progress,
        )
    if steps[0]:
        print(f"{args.out}: {steps[0]} of {len(frames)} frames were done before (--overwrite does them again)")
    return preparation


def _report(args: argparse.Namespace, preparation: Preparation, known: Mapping[str, KnownCount]) -> int:
    """Print and write what was made and how it compares; 1 if something is wrong."""
    report = make_report(preparation, known=known, whole=not args.partial)
    write_text(args.out / REPORT_FILE, json.dumps(report, indent=1) + "\n")
    _print_report(report, args.out)
    return 1 if report["errors"] or preparation.damaged else 0


def _print_report(report: Mapping[str, Any], out: Path) -> None:
    print(f"{out}: {report['frames']} frames of {report['dataset']}")
    for split, count in report["splits"].items():
        print(f"  {split:16} {count:6} frames")
    for entry in report["class_weights"]:
        print(f"  points of {entry['splits']} and their class weights (published):")
        for row in entry["classes"]:
            print(f"    {row['name']:20} {row['points']:12}  {row['weight']} ({row['published']})")
    if report["frames_without_visible_points"]:
        print(f"  left out, no camera sees a point: {len(report['frames_without_visible_points'])} frames")
    for what in ("warnings", "errors"):
        for sentence in report[what]:
            print(f"{what[:-1]}: {sentence}", file=sys.stderr)
    if report["damaged"]:
        print(f"{len(report['damaged'])} frames were left out because of damaged files:", file=sys.stderr)
        _print_damaged(Counter(report["damaged"]), out)


def _print_damaged(sentences: Mapping[str, int], out: Path) -> None:
    """Each sentence once, with the number of its frames: a damaged table spoils a whole sequence."""
    for sentence, num_frames in islice(sentences.items(), _SENTENCES_SHOWN):
        print(f"  {sentence}{f' ({num_frames} frames)' if num_frames > 1 else ''}", file=sys.stderr)
    hidden = len(sentences) - _SENTENCES_SHOWN
    if hidden > 0:
        print(f"  and {hidden} more; {out / REPORT_FILE} has them all", file=sys.stderr)


def _write_bag(args: argparse.Namespace, source: Source) -> int:
    """A rosbag2 of one sequence: whole sweeps, the chosen cameras, ground truth."""
    if args.sequence is None:
        raise ValueError("--bag: which --sequence?")
    frames = checked_frames(source, partial=args.partial, sequence=args.sequence)
    if len(frames[0].cameras) != len(source.cameras):
        raise ValueError(f"--bag: {source.dataset} has each camera's sweeps apart, so one of --cameras at a time")
    merge = find_merge(source.dataset, args.label_space)
    table = merge_table(merge, source.raw_classes(), where=str(source.root))
    with _bar() as bar:
        task = bar.add_task(f"writing {args.bag}", total=len(frames))
        num_frames = write_bag(
            args.bag,
            (loaded for loaded in (load_frame(source, frame, table) for frame in frames) if loaded.num_points),
            label_space=merge.label_space,
            overwrite=args.overwrite,
            progress=lambda done: bar.update(task, completed=done),
        )
    print(f"{args.bag}: {num_frames} frames of {args.sequence}, classes {merge.label_space.name}")
    return 0


def _bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def main_of(
    description: str,
    make_source: Callable[[argparse.Namespace], Source],
    *,
    argv: Sequence[str] | None,
    add_arguments: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
    known_counts: Mapping[str, KnownCount] | None = None,
) -> int:
    """A whole program: parse, make the source, run."""
    parser = make_parser(description)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        source = make_source(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return run(args, source, known_counts=known_counts)
