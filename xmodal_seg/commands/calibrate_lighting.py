# SPDX-License-Identifier: Apache-2.0
"""Fit the lighting estimator to labelled pictures: a folder with day/, night/ (and twilight/), a CSV with the columns
file and label, or bags of one condition each. Writes coefficients (YAML) for the lighting node's parameter
`coefficients`, a reliability curve (PNG) and every picture's verdict (CSV).

Without --group-by the coefficients are for the very cameras of the pictures. With it, which needs several cameras, they
are for others like them: they then leave the given ones only as far as groups that were left out bear it."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmodal_seg.lighting_calibration import Labelled, Pool, Verdict
    from xmodal_seg.lighting_model import LightingCoefficients


_FITTED = ("fitted", "probe, fitted")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", nargs="*", default=[], metavar="PATH", help="folders or CSV files")
    parser.add_argument("--bag", nargs=2, action="append", default=[], metavar=("LABEL", "BAG"), help="e.g. night DIR")
    parser.add_argument("--every-s", type=float, default=2.0, help="of a bag, one picture in this time, s")
    parser.add_argument("--start", metavar="YAML", help="coefficients to stay near (default: the shipped ones)")
    parser.add_argument(
        "--group-by",
        choices=["none", "size", "folder"],
        default="none",
        help="leave each out in turn; fit for other cameras",
    )
    parser.add_argument("--crop-top", type=float, default=0.0, help="share cut off the top of each picture")
    parser.add_argument(
        "--probe",
        metavar="CHECKPOINT",
        help="also judge by a linear probe on pooled features of this checkpoint's frozen image backbone "
        "(folder, or the name of a shipped one: nuscenes)",
    )
    parser.add_argument("--evaluate-only", action="store_true", help="judge by --start as it is, fit nothing")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the results go")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xmodal-seg calibrate-lighting", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    from xmodal_seg.lighting_calibration import (
        OWN_RIDGE,
        choose_ridge,
        fit_coefficients,
        group_function,
        judge,
        leave_one_group_out,
    )
    from xmodal_seg.lighting_model import load_coefficients, save_coefficients

    if arguments.every_s <= 0:
        raise ValueError(f"--every-s: expected more than 0, got {arguments.every_s:g}")
    start = load_coefficients(arguments.start)
    pictures = _pictures(arguments)
    judged = {"as given" if arguments.start else "shipped": judge(pictures, start)}
    left_out, fitted = None, None
    if not arguments.evaluate_only:
        ridge = OWN_RIDGE
        if arguments.group_by != "none":
            _check_groups(pictures, arguments.group_by)
            group_of = group_function(arguments.group_by)
            left_out = leave_one_group_out(pictures, group_of=group_of, start=start)
            ridge = choose_ridge(pictures, group_of=group_of, start=start)
        fitted = _with_provenance(fit_coefficients(pictures, start=start, ridge=ridge), pictures, ridge=ridge)
        judged["fitted"] = judge(pictures, fitted)
        if left_out is not None:
            judged[f"one {arguments.group_by} left out"] = left_out
    if arguments.probe:
        judged |= _probed(pictures, group=arguments.group_by, start=start)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    if fitted is not None:
        save_coefficients(out / "lighting.yaml", fitted)
    reports = [_report(title, verdicts, out) for title, verdicts in judged.items()]
    if left_out is not None:
        reports.append(_by_group(left_out, arguments.group_by))
    print("\n\n".join(reports))
    print(f"\nwritten: {out}/" + ("" if arguments.evaluate_only else "lighting.yaml, ") + "*.png, *.csv")
    return 0


def _check_groups(pictures: list[Labelled], group: str) -> None:
    from xmodal_seg.lighting_calibration import group_function

    groups = {group_function(group)(picture) for picture in pictures}  # type: ignore[arg-type]  # argparse has checked it
    if len(groups) < 2:
        raise ValueError(
            f"--group-by {group}: expected pictures of two or more {group}s, got only {groups.pop()}; leave --group-by "
            "out to fit to the cameras of the pictures"
        )


def _probed(pictures: list[Labelled], *, group: str, start: LightingCoefficients) -> dict[str, list[Verdict]]:
    from xmodal_seg.lighting_calibration import group_function
    from xmodal_seg.lighting_probe import fit_probe, judge_by_probe, probe_left_out

    judged = {"probe, fitted": judge_by_probe(pictures, fit_probe(pictures), limits=start.limits)}
    if group != "none":
        group_of = group_function(group)  # type: ignore[arg-type]  # argparse has checked it
        judged[f"probe, one {group} left out"] = probe_left_out(pictures, group_of=group_of, limits=start.limits)
    return judged


def _pictures(arguments: argparse.Namespace) -> list[Labelled]:
    from xmodal_seg.lighting_calibration import read_labelled

    pool = _pooling(arguments.probe) if arguments.probe else None
    asked: dict[str, Any] = {"crop_top": arguments.crop_top, "pool": pool}
    pictures = [found for source in arguments.images for found in read_labelled(source, **asked)]
    for label, bag in arguments.bag:
        pictures += _bag_pictures(bag, label, every_s=arguments.every_s, **asked)
    if not pictures:
        raise ValueError("--images, --bag: expected labelled pictures, got none")
    return pictures


def _pooling(checkpoint: str) -> Pool:
    from xmodal_seg.checkpoint import load_checkpoint
    from xmodal_seg.lighting_probe import pooling

    return pooling(load_checkpoint(checkpoint).build_model().eval())


def _bag_pictures(path: str, label: str, *, every_s: float, crop_top: float, pool: Pool | None) -> list[Labelled]:
    from rich.progress import track

    from xmodal_seg.bag_files import open_bag
    from xmodal_seg.lighting_calibration import labelled_picture
    from xmodal_seg.messages import decode_image, stamp_ns

    pictures = []
    with open_bag(path) as bag:
        topics = [name for name, topic in bag.topics.items() if topic.msgtype.endswith(("/Image", "/CompressedImage"))]
        if not topics:
            raise ValueError(f"{path}: expected a topic of images, got none")
        last_ns: dict[str, int] = {}
        total = sum(bag.topics[name].num_messages for name in topics)
        for raw in track(bag.messages(topics), description=f"reading {Path(path).name}", total=total):
            if raw.topic in last_ns and raw.stamp_ns - last_ns[raw.topic] < every_s * 1e9:
                continue
            last_ns[raw.topic] = raw.stamp_ns
            message = raw.decode()
            name = f"{path}{raw.topic}/{stamp_ns(message)}"
            pictures.append(labelled_picture(decode_image(message), label, name=name, crop_top=crop_top, pool=pool))
    return pictures


def _with_provenance(
    coefficients: LightingCoefficients, pictures: list[Labelled], *, ridge: float
) -> LightingCoefficients:
    counts = {label: sum(picture.label == label for picture in pictures) for label in ("day", "twilight", "night")}
    provenance = {"source": "xmodal-seg calibrate-lighting", "pictures": len(pictures), "ridge": ridge, **counts}
    return coefficients.model_copy(update={"provenance": provenance})


def _report(title: str, verdicts: list[Verdict], out: Path) -> str:
    """Text of one set of verdicts; writes its CSV and its reliability curve."""
    from xmodal_seg.lighting_calibration import accuracy, calibration_error

    name = title.replace(",", "").replace(" ", "_")
    _write_csv(out / f"{name}.csv", verdicts)
    _draw(out / f"{name}.png", title, verdicts)
    wrong = [verdict for verdict in verdicts if verdict.is_right is False]
    sure = [verdict for verdict in verdicts if verdict.confidence >= 0.5]
    lines = [
        f"{title}: {100 * accuracy(verdicts):.1f} % of {len(verdicts)} right; of the {len(sure)} with a confidence of "
        f"0.5 or more {100 * accuracy(sure):.1f} %; expected calibration error {calibration_error(verdicts):.3f}"
        + (" (the pictures that it was fitted to, so no test)" if title in _FITTED else "")
    ]
    lines += [
        f"  wrong: {verdict.picture.name} ({verdict.picture.label}): darkness {verdict.darkness:.2f}, "
        f"confidence {verdict.confidence:.2f}{', ' + ', '.join(verdict.faults) if verdict.faults else ''}"
        for verdict in sorted(wrong, key=lambda verdict: -verdict.confidence)
    ]
    return "\n".join(lines)


def _by_group(verdicts: list[Verdict], group: str) -> str:
    from xmodal_seg.lighting_calibration import accuracy, group_function

    group_of = group_function(group)  # type: ignore[arg-type]  # argparse has checked it
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(group_of(verdict.picture), []).append(verdict)
    lines = [f"  {name}: {100 * accuracy(found):.1f} % of {len(found)}" for name, found in sorted(groups.items())]
    return "\n".join([f"by {group}:", *lines])


def _write_csv(path: Path, verdicts: list[Verdict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "label", "height", "width", "darkness", "confidence", "right", "faults"))
        for verdict in verdicts:
            picture = verdict.picture
            right = "" if verdict.is_right is None else int(verdict.is_right)
            numbers = f"{verdict.darkness:.4f}", f"{verdict.confidence:.4f}"
            faults = " ".join(verdict.faults)
            writer.writerow((picture.name, picture.label, *picture.image_size, *numbers, right, faults))


def _draw(path: Path, title: str, verdicts: list[Verdict]) -> None:
    """Reliability curve over a histogram of the darkness of both classes."""
    from matplotlib.figure import Figure

    from xmodal_seg.lighting_calibration import reliability

    figure = Figure(figsize=(6, 6), layout="constrained")
    curve_axes, count_axes = figure.subplots(2, 1, height_ratios=(2, 1), sharex=True)
    curve = reliability(verdicts)
    curve_axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="ideal")
    curve_axes.plot(curve[:, 0], curve[:, 1], marker="o", color="tab:blue", label=title)
    for x, y, count in curve:
        curve_axes.annotate(f"{count:.0f}", (x, y), textcoords="offset points", xytext=(6, -10), fontsize=8)
    curve_axes.set(ylabel="share that is night", ylim=(-0.05, 1.05), title="Reliability of the darkness")
    curve_axes.legend()
    for label, colour in (("day", "tab:orange"), ("twilight", "tab:purple"), ("night", "tab:blue")):
        darkness = [verdict.darkness for verdict in verdicts if verdict.picture.label == label]
        if darkness:
            name = f"{label} ({len(darkness)})"
            count_axes.hist(darkness, bins=20, range=(0, 1), alpha=0.6, color=colour, label=name)
    count_axes.set(xlabel="darkness", ylabel="pictures", xlim=(0, 1))
    count_axes.legend()
    figure.savefig(path, dpi=110)
