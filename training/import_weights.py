# SPDX-License-Identifier: Apache-2.0
"""Bring the 3D network of a published xMUDA checkpoint into this project's layout:

python training/import_weights.py model_3d_065000.pth --label-space nuscenes_6 --out runs/xmuda_3d
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xmodal_seg.checkpoint import save_checkpoint
from xmodal_seg.labels import LABEL_SPACES
from xmodal_seg.training.programs import run_program
from xmodal_seg.training.weight_import import build_model, import_xmuda


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="model_3d_*.pth of xMUDA (valeoai/xmuda_journal)")
    parser.add_argument(
        "--label-space", required=True, choices=sorted(LABEL_SPACES), help="the classes it was trained on"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    arguments = parser.parse_args(argv)
    label_space = LABEL_SPACES[arguments.label_space]
    try:
        model = build_model(import_xmuda(arguments.checkpoint), label_space=label_space)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    metadata = {"trained": True, "imported_from": arguments.checkpoint.name, "architecture": "xMUDA's 3D network"}
    save_checkpoint(arguments.out, model, label_space=label_space, metadata=metadata)
    print(f"{arguments.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {label_space.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_program(main))
