# SPDX-License-Identifier: Apache-2.0
"""Linear probe of image backbones on simulated drives, against the same network with random weights.

    python training/probe_image_backbone.py --backbone runs/stand_in/stand_in.json \
        --source usa/noon --target usa/night --target singapore/noon
    python training/probe_image_backbone.py --backbone xmodal_seg/assets/stand_in.json --shift sim_vkitti_semkitti

Fitted on the source, tested on the source (other streets) and on each target; then fitted on each target's own labels.
With --shift these are the two domains of a recipe, size small, at most 1,600 points of a frame.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from xmodal_seg.config import ImageBackboneSettings, parse_settings
from xmodal_seg.models.image_backbone import FrozenViT
from xmodal_seg.structures import Batch
from xmodal_seg.training.data.tasks import open_domains
from xmodal_seg.training.probe import ProbeDomain, ProbeResult, ProbeSettings, domain_frames, probe, shift_frames
from xmodal_seg.training.programs import run_program
from xmodal_seg.training.recipe import compose

RECIPES = Path(__file__).parent / "recipes"
FIRST_COLUMNS = ("backbone", "fitted_on", "tested_on", "frames", "test_frames", "miou")
Frames = tuple[ProbeSettings, dict[str, list[Batch]], dict[str, list[Batch]]]  # to fit on and to test on, by domain


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backbone", type=Path, action="append", required=True, help=".json that the pre-training wrote"
    )
    parser.add_argument("--source", help="place/light,light...; default dev_a by day")
    parser.add_argument("--target", action="append", help="default: dev_a/night and dev_b by day")
    parser.add_argument("--shift", help="a file of recipes/shifts, in place of --source and --target")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of its recipe"
    )
    parser.add_argument("--frames", type=int, default=96, help="to fit on, of each domain")
    parser.add_argument("--test-frames", type=int, default=64)
    parser.add_argument("--no-random", action="store_true", help="leave the same networks with random weights out")
    parser.add_argument("--csv", type=Path, help="add the results to this file")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        backbones = _backbones(arguments.backbone, with_random=not arguments.no_random)
        settings, fit, test = _shift(arguments) if arguments.shift else _places(arguments)
        header = [*FIRST_COLUMNS, *settings.label_space.class_names]
        _check_csv(arguments.csv, header)
        results = _run(backbones, settings, fit, test)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    console.print(_table(results))
    if arguments.csv is not None:
        _append(arguments.csv, header, results, arguments)
    return 0


def _backbones(files: Sequence[Path], *, with_random: bool) -> dict[str, FrozenViT]:
    """By name: each exported network, and the same with random weights."""
    backbones = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"--backbone: found no {file}")
        values = json.loads(file.read_text(encoding="utf-8"))["image_backbone"]
        settings = parse_settings(ImageBackboneSettings, values, where=str(file))
        weights = str(file.parent / settings.weights)
        backbones[file.stem] = FrozenViT(settings=settings.model_copy(update={"weights": weights}))
        if with_random:
            torch.manual_seed(0)
            backbones[f"{file.stem}, random weights"] = FrozenViT(
                settings=settings.model_copy(update={"weights": "none"})
            )
    return backbones


def _shift(arguments: argparse.Namespace) -> Frames:
    if arguments.source or arguments.target:
        raise ValueError("--shift: has its own domains, so it does not go with --source and --target")
    recipe = compose(RECIPES, shift=arguments.shift, method="ours", size="small", overrides=arguments.overrides)
    domains = open_domains(recipe)
    fit, test = shift_frames(domains, recipe, fit=arguments.frames, test=arguments.test_frames)
    fit, test = ({f"{arguments.shift}: {name}": batches for name, batches in part.items()} for part in (fit, test))
    return ProbeSettings(label_space=domains.label_space), fit, test


def _places(arguments: argparse.Namespace) -> Frames:
    if arguments.overrides:
        raise ValueError("--set: changes the recipe of --shift, which was not given")
    settings = ProbeSettings()
    source = ProbeDomain.parse(arguments.source or "dev_a/noon,afternoon")
    targets = [ProbeDomain.parse(text) for text in arguments.target or ["dev_a/night", "dev_b/noon,afternoon"]]
    domains = [source, *targets]
    jobs = [(part, domain) for domain in domains for part in ("fit", "test")]
    frames: dict[str, dict[str, list[Batch]]] = {"fit": {}, "test": {}}
    for part, domain in track(jobs, description="frames"):
        number = arguments.frames if part == "fit" else arguments.test_frames
        frames[part][str(domain)] = domain_frames(domain, part, number, settings)
    return settings, frames["fit"], frames["test"]


def _run(
    backbones: dict[str, FrozenViT], settings: ProbeSettings, fit: dict[str, list[Batch]], test: dict[str, list[Batch]]
) -> list[ProbeResult]:
    """The first domain is the source."""
    source, *targets = fit
    pairs = [(source, domain) for domain in fit] + [(target, target) for target in targets]
    results = []
    for name in track(backbones, description="probes"):
        results += probe(name, backbones[name], fit, test, settings, pairs=pairs)
    return results


def _table(results: Sequence[ProbeResult]) -> Table:
    """A row for each pair of domains, a column for each backbone; the classes are in the CSV."""
    backbones = list(dict.fromkeys(result.backbone for result in results))
    scores = {(r.fitted_on, r.tested_on, r.backbone): r.miou for r in results}
    table = Table("fitted on", "tested on", *backbones, title="Linear probe, mIoU in percent")
    for pair in dict.fromkeys((r.fitted_on, r.tested_on) for r in results):
        table.add_row(*pair, *(f"{scores[pair[0], pair[1], name]:.1f}" for name in backbones))
    return table


def _check_csv(path: Path | None, header: Sequence[str]) -> None:
    if path is None or not path.exists():
        return
    if path.read_text(encoding="utf-8").splitlines()[:1] != [",".join(header)]:
        raise ValueError(f"--csv: {path} has other columns, perhaps other classes: name another file")


def _append(path: Path, header: Sequence[str], results: Sequence[ProbeResult], arguments: argparse.Namespace) -> None:
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(header)
        for result in results:
            numbers = [f"{value:.2f}" for value in (result.miou, *result.iou)]
            first = [result.backbone, result.fitted_on, result.tested_on, arguments.frames, arguments.test_frames]
            writer.writerow([*first, *numbers])


if __name__ == "__main__":
    raise SystemExit(run_program(main))
