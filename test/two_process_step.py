# SPDX-License-Identifier: Apache-2.0
"""One training step in each process that torchrun starts; the first one saves gradients and running statistics.

Arguments: folder of the tiny world, file to write.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_world import tiny_recipe

from xmodal_seg.training.data.tasks import open_domains
from xmodal_seg.training.processes import average_buffers
from xmodal_seg.training.trainer import Trainer, build_fabric, build_model

# Two frames a process; dropout would draw other numbers in another order.
SETTINGS = {"optim": {"batch_size": 4}, "model": {"fusion": {"dropout": 0.0}}, "precision": "32-true"}


def main() -> None:
    torch.set_num_threads(1)
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    recipe = tiny_recipe(root, **SETTINGS)
    fabric = build_fabric(recipe)
    trainer = Trainer(
        recipe=recipe, domains=open_domains(recipe), model=build_model(recipe), out=out.parent / "run", fabric=fabric
    )
    source, target = trainer.batches(0)
    trainer.train_step(source, target)
    average_buffers(fabric, trainer.model)
    scores = trainer.validate()
    if fabric.global_rank == 0:
        gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        statistics = {name: b for name, b in trainer.model.named_buffers() if b.is_floating_point()}
        counts = {name: matrix.counts for name, matrix in scores.items()}
        torch.save({"gradients": gradients, "statistics": statistics, "counts": counts}, out)
    fabric.barrier()


if __name__ == "__main__":
    main()
