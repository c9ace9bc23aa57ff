# SPDX-License-Identifier: Apache-2.0
"""Merge LoRA into the image backbone's weights: python training/merge_lora.py runs/x/last --out runs/x/merged

The new checkpoint has a plain frozen backbone, which the online adapter accepts and which costs no time for modules.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xmodal_seg.training.lora_merging import merge_lora
from xmodal_seg.training.programs import run_program


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint, such as a run's last or best")
    parser.add_argument("--bank", help="default: the checkpoint's default bank")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    arguments = parser.parse_args(argv)
    try:
        content_hash = merge_lora(arguments.checkpoint, arguments.out, bank=arguments.bank)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments.out}: {content_hash[:12]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_program(main))
