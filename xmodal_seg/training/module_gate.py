# SPDX-License-Identifier: Apache-2.0
"""Which modules of a tuned image backbone are trained: scored and selected anew every so many steps of a run.

When is a function of the step and what is on is a buffer of the model, so that a resumed run needs nothing else.
"""

from __future__ import annotations

from pathlib import Path

import torch
from lightning_fabric import Fabric

from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.models.tuning.selection import ModuleKey, normalise, select
from xmodal_seg.models.tuning.tuned_vit import TunedViT
from xmodal_seg.training.fisher import (
    Labels,
    frame_information,
    ground_truth,
    mean_information,
    own_labels,
    sampled_labels,
)
from xmodal_seg.training.processes import sum_over_processes
from xmodal_seg.training.sampler import label_seed
from xmodal_seg.training.selection_log import SelectionLog
from xmodal_seg.training.streams import DomainStream


class ModuleGate:
    """Called before every step of a run; a scoring costs a forward and a backward pass of each of its frames.

    All modules are on until the first scoring, after `warmup` steps, and from then on `top_k`. The optimiser skips a
    module that is off and keeps its averages, with which it goes on when the module comes back.

    Args:
        model: with a tuned image backbone, whose settings say how and when; its selection is taken up.
        frames: one frame at a time, of the domain that is scored on.
        fabric: of the run; its processes share the frames of a scoring.
        folder: of the run, for the log of scores and selections.
        step: that the run has reached.
        seed: of the run, for labels that are drawn.
    """

    def __init__(
        self, *, model: SegmentationModel, frames: DomainStream, fabric: Fabric, folder: Path, step: int, seed: int
    ) -> None:
        assert isinstance(model.image_backbone, TunedViT)
        self._model, self._backbone = model, model.image_backbone
        self._settings = model.settings.image_backbone.tuning
        self._frames, self._fabric, self._seed = frames, fabric, seed
        self._log = SelectionLog(folder) if fabric.global_rank == 0 else None
        self._backbone.select(self._backbone.selection())
        if self._log is not None:
            self._log.forget_from(step)

    def before_step(self, step: int) -> None:
        """Score and select, if it is time. Raises ValueError where the frames give no information."""
        number, rest = divmod(step - self._settings.warmup, self._settings.every)
        if number < 0 or rest:
            return
        scores = normalise(self._scores(number))
        selected = select(
            scores,
            top_k=self._settings.top_k,
            former=self._backbone.selection(),
            max_swaps=self._settings.max_swaps,
        )
        self._backbone.select(selected)
        if self._log is not None:
            self._log.add(step, scores, selected)

    def finish(self) -> None:
        """Draw the log."""
        if self._log is not None:
            self._log.draw()

    def _scores(self, number: int) -> dict[ModuleKey, float]:
        """Mean information of the frames of scoring `number`, over all processes; the model is left as it was."""
        samples, mode = self._settings.samples, self._model.training
        self._model.eval()  # running statistics: a frame's gradient must not depend on its company, nor leave a trace
        try:
            with self._backbone.all_on():
                rows = [self._information(number * samples + i) if self._is_mine(i) else None for i in range(samples)]
        finally:
            self._model.train(mode)
        keys = list(self._backbone.modules_by_key())
        none = torch.zeros(len(keys), dtype=torch.float64)
        table = torch.stack([none if row is None else row for row in rows])
        return mean_information(keys, sum_over_processes(self._fabric, table.to(self._fabric.device)))

    def _is_mine(self, sample: int) -> bool:
        return sample % self._fabric.world_size == self._fabric.global_rank

    def _information(self, number: int) -> torch.Tensor:
        data = self._frames.batch(number).to(self._fabric.device)
        return frame_information(self._model, data, labels=self._labels(number), autocast=self._fabric.autocast)

    def _labels(self, number: int) -> Labels:
        if self._settings.scored_on == "target_sampled_labels":
            return sampled_labels(torch.Generator().manual_seed(label_seed(number=number, seed=self._seed)))
        return ground_truth if self._settings.scored_on == "source_labels" else own_labels
