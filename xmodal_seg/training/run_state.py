# SPDX-License-Identifier: Apache-2.0
"""What an interrupted run needs to go on as if nothing had happened, in one file that is replaced in one step.

Random generators are not among it: frames, their order and dropout are functions of seed, step and process.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from xmodal_seg.checkpoint import bank_state, load_bank
from xmodal_seg.models.segmenter import SegmentationModel

STATE_FILE = "state.pt"
FORMAT = 1


def save_state(
    path: Path, *, step: int, model: SegmentationModel, optimizer: Optimizer, scheduler: LRScheduler, recipe_hash: str
) -> None:
    """Write everything but the frozen backbone; a kill at any moment leaves the former file or this one, whole."""
    state = {
        "format": FORMAT,
        "recipe_hash": recipe_hash,
        "step": step,
        "model": {name: tensor.detach().cpu() for name, tensor in bank_state(model).items()},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, must survive a power cut
    finally:
        os.close(folder)


def load_state(
    path: Path, *, model: SegmentationModel, optimizer: Optimizer, scheduler: LRScheduler, recipe_hash: str
) -> int:
    """Put a run back where it was, and return how many steps it has made.

    Raises ValueError for a file that is damaged or of another recipe.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what it likes for a damaged file
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if state.get("format") != FORMAT or state["recipe_hash"] != recipe_hash:
        raise ValueError(
            f"{path}: belongs to a run of another recipe; choose another output folder, or remove this one"
        )
    load_bank(model, state["model"], where=str(path))
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return int(state["step"])
