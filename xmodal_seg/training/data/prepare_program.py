# SPDX-License-Identifier: Apache-2.0
"""What the four programs training/prepare_*.py share: check the download, prepare, check the result, or write a bag."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xmodal_seg.bags import write_bag
from xmodal_seg.training.data.assembly import Preparation
from xmodal_seg.training.data.class_merges import find_merge, merge_table
from xmodal_seg.training.data.class_weights import (
    PUBLISHED_WEIGHTS,
    PublishedWeights,
    class_weights,
    compare_weights,
)
from xmodal_seg.training.data.download_check import MISSING_FILE_LIST, IncompleteDownload, find_missing
from xmodal_seg.training.data.preparation import prepare_frames
from xmodal_seg.training.data.prepared import merge_raw_histogram, write_text
from xmodal_seg.training.data.sources import Source, SourceFrame, load_frame
from xmodal_seg.training.data.splits import KNOWN_COUNTS, KnownCount, compare_counts, count_splits, split_rule

REPORT_FILE = "report.json"


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
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--partial", action="store_true", help="prepare what is there; do not expect the full data set")
    parser.add_argument("--overwrite", action="store_true", help="prepare again what is done already")
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
        if args.bag is not None:
            return _write_bag(args, source)
        if args.out is None and not args.check_only:
            raise ValueError("--out: missing; where should the prepared data go?")
        frames = checked_frames(source, partial=args.partial, list_in=args.out)
        if args.check_only:
            print(f"{source.root}: complete, {len(frames)} frames")
            return 0
        preparation = _prepare(args, source, frames)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    known = KNOWN_COUNTS[source.dataset] if known_counts is None else known_counts
    return _report(args, preparation, known)


def checked_frames(source: Source, *, partial: bool, list_in: Path | None = None) -> list[SourceFrame]:
    """The frames of a download whose files are all there.

    Raises IncompleteDownload if tables are missing, or files of frames unless `partial`; the whole list is written
    to `list_in`/missing_files.txt.
    """
    if not source.root.is_dir():
        raise ValueError(f"--root {source.root}: no such folder")
    tables = source.missing_tables()
    frames = [] if tables else source.frames()
    missing = tables or find_missing(source.root, (file for frame in frames for file in frame.files(source.variants)))
    if missing and list_in is not None:
        list_in.mkdir(parents=True, exist_ok=True)
        write_text(list_in / MISSING_FILE_LIST, "\n".join(missing) + "\n")
    if tables or (missing and not partial):
        raise IncompleteDownload(source.root, missing)
    lost = set(missing)
    whole = [frame for frame in frames if lost.isdisjoint(frame.files(source.variants))]
    if not whole:
        raise ValueError(f"{source.root}: there is no complete frame here")
    if lost:
        print(f"{source.root}: {len(frames) - len(whole)} of {len(frames)} frames lack a file and are left out")
    source.raw_classes()
    return whole


def _prepare(args: argparse.Namespace, source: Source, frames: Sequence[SourceFrame]) -> Preparation:
    args.out.mkdir(parents=True, exist_ok=True)
    with _bar() as bar:
        task = bar.add_task(f"preparing {source.dataset}", total=len(frames))
        return prepare_frames(
            source,
            frames,
            args.out,
            scope=args.points,
            workers=args.workers,
            overwrite=args.overwrite,
            progress=lambda num_frames: bar.advance(task, num_frames),
        )


def _report(args: argparse.Namespace, preparation: Preparation, known: Mapping[str, KnownCount]) -> int:
    """Print and write what was made and how it compares; 1 if something is wrong."""
    dataset = preparation.header.dataset
    counts = count_splits(dataset, preparation.frames_of)
    errors, warnings = ([], []) if args.partial else compare_counts(counts, known)
    weights = [_weights(preparation, published) for published in PUBLISHED_WEIGHTS if published.dataset == dataset]
    if not args.partial and _is_papers(preparation):
        warnings += [sentence for entry in weights for sentence in entry["differences"]]
    report = {
        "dataset": dataset,
        "frames": sum(preparation.frames_of.values()),
        "splits": counts,
        "class_weights": weights,
        "errors": errors,
        "warnings": warnings,
        "damaged": preparation.damaged,
        "frames_without_visible_points": preparation.empty,
    }
    write_text(args.out / REPORT_FILE, json.dumps(report, indent=1) + "\n")
    _print_report(report, args.out)
    return 1 if errors or preparation.damaged else 0


def _is_papers(preparation: Preparation) -> bool:
    """Points were counted as the published class weights were: those that the papers' one camera sees."""
    return preparation.header.points == "visible" and len(preparation.header.cameras) == 1


def _weights(preparation: Preparation, published: PublishedWeights) -> dict[str, Any]:
    """Points and weights of the classes over the splits that the published weights were counted over."""
    merge = find_merge(published.dataset, published.label_space)
    table = merge_table(merge, preparation.header.raw_classes, where=published.dataset)
    space = merge.label_space
    rules = [split_rule(published.dataset, split) for split in published.splits.split("+")]
    chosen = [sequence for sequence in preparation.histograms if any(rule(sequence) for rule in rules)]
    points = sum(
        (
            merge_raw_histogram(preparation.histograms[sequence], table, num_classes=space.num_classes)
            for sequence in chosen
        ),
        start=merge_raw_histogram({}, table, num_classes=space.num_classes),
    )
    rows = zip(space.class_names, points.tolist(), class_weights(points).tolist(), published.weights, strict=True)
    return {
        "splits": published.splits,
        "classes": [
            {"name": name, "points": count, "weight": round(weight, 4) if count else None, "published": expected}
            for name, count, weight, expected in rows
        ],
        "differences": compare_weights(points, published, class_names=space.class_names),
    }


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
        for sentence in report["damaged"]:
            print(f"  {sentence}", file=sys.stderr)


def _write_bag(args: argparse.Namespace, source: Source) -> int:
    """A rosbag2 of one sequence: whole sweeps, the chosen cameras, ground truth."""
    if args.sequence is None:
        raise ValueError("--bag: which --sequence?")
    frames = [frame for frame in checked_frames(source, partial=args.partial) if frame.sequence == args.sequence]
    if not frames:
        names = ", ".join(sequence.name for sequence in source.sequences())
        raise ValueError(f"--sequence: expected one of {names}, got {args.sequence!r}")
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
