# SPDX-License-Identifier: Apache-2.0
"""Which head could teach the fused one: who is right where the two differ, on labelled target frames.

    python training/report_teachers.py runs/mlp [RUN ...] [--part val]

For the last checkpoint of each run and each teacher (2D, 3D): percent of the labelled points in view where teacher and
fused head differ, where of these the teacher is right and where the fused head is, and mIoU in percent of the teacher,
of the fused head and of the mean of their probabilities. Guidance has little to give where that mean is worse than the
fused head alone; run it on a model without guidance, such as `mlp`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from xmodal_seg.structures import Head
from xmodal_seg.training.programs import run_program
from xmodal_seg.training.run import TargetPart, compare_run_heads
from xmodal_seg.training.teachers import HeadComparison

HEADER = (
    "| run | teacher | differ | teacher right | fused right | mIoU teacher | mIoU fused | mIoU mean |",
    "|---|---|---|---|---|---|---|---|",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--part", choices=get_args(TargetPart), default="val", help="of the target's frames (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    try:
        print("\n".join(HEADER))
        for run in arguments.runs:
            for teacher, comparison in compare_run_heads(run, part=arguments.part).items():
                print(row_of(str(run), teacher, comparison), flush=True)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def row_of(run: str, teacher: Head, comparison: HeadComparison) -> str:
    counts = (comparison.num_differ, comparison.num_teacher_right, comparison.num_student_right)
    shares = [100 * count / max(comparison.num_points, 1) for count in counts]
    scores = [each.mean_iou() for each in (comparison.teacher, comparison.student, comparison.average)]
    return f"| {run} | {teacher} | {' | '.join(f'{value:.1f}' for value in (*shares, *scores))} |"


if __name__ == "__main__":
    raise SystemExit(run_program(main))
