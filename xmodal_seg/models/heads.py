# SPDX-License-Identifier: Apache-2.0
"""Heads: linear classifiers on point features; main heads speak, mimicry heads only learn to agree with a teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from xmodal_seg.config import HeadSettings
from xmodal_seg.structures import Head


class LinearHead(nn.Linear):
    """(P, D) -> (P, K) float32 logits, in float32 under autocast as well: losses and softmax need the digits.

    The logits lie class by class in memory, as `sum_of_softmax` reads them.
    """

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_type=feats.device.type, enabled=False):
            return torch.addmm(self.bias[:, None], self.weight, feats.float().t()).t()


class Heads(nn.Module):
    """The classifiers that `HeadSettings` names, on features of width `widths[head]`.

    With mimic_head_per 'student' all pairs of a student share one classifier, hence one tensor of logits.
    """

    def __init__(self, *, settings: HeadSettings, widths: Mapping[Head, int], num_classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.main = nn.ModuleDict({head: LinearHead(widths[head], num_classes) for head in settings.main})
        # classifier -> the head whose features it reads
        self._students = {self._mimic_key(pair): pair[0] for pair in settings.mimic}
        self.mimic = nn.ModuleDict({key: LinearHead(widths[head], num_classes) for key, head in self._students.items()})

    def forward(
        self, feats: Mapping[Head, torch.Tensor], *, visible: torch.Tensor, num_points: int
    ) -> tuple[dict[Head, torch.Tensor], dict[tuple[Head, Head], torch.Tensor]]:
        """Main logits by head and mimicry logits by (student, teacher), each (P, K).

        Args:
            feats: by head; '3d' (P, C) of all points, '2d' and 'fused' (Pv, D) of the visible ones.
            visible: (Pv,) int64 rows of the visible points; the other rows of '2d' and 'fused' logits are zero.
            num_points: P.
        """

        def classify(classifier: nn.Module, head: Head) -> torch.Tensor:
            logits = classifier(feats[head])
            if head == "3d" or visible.shape[0] == num_points:
                return logits
            return logits.new_zeros(logits.shape[1], num_points).index_copy(1, visible, logits.t()).t()

        main: dict[Head, torch.Tensor] = {head: classify(self.main[head], head) for head in self.settings.main}
        mimic = {key: classify(self.mimic[key], head) for key, head in self._students.items()}
        return main, {pair: mimic[self._mimic_key(pair)] for pair in self.settings.mimic}

    def parameters_of(self, head: Head) -> list[nn.Parameter]:
        """Parameters of the main head and of the mimicry heads on the features of `head`."""
        modules = [self.main[head]] if head in self.main else []
        modules += [self.mimic[key] for key, student in self._students.items() if student == head]
        return [parameter for module in modules for parameter in module.parameters()]

    def _mimic_key(self, pair: tuple[Head, Head]) -> str:
        student, teacher = pair
        return student if self.settings.mimic_head_per == "student" else f"{student}_from_{teacher}"
