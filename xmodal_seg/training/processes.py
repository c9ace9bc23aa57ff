# SPDX-License-Identifier: Apache-2.0
"""Several training processes: one common mean loss, one gradient, one set of running statistics.

Each process computes its share of every loss, divided by the weight of all shares together; the gradients are then
added up. This equals one process with all the frames, except that batch norm sees each share by itself. The rule for
running statistics: each process updates its own from its own share, and before the model is scored or saved they are
replaced by their mean over the processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from xmodal_seg.models.fixed_norm import FixedNorm


def sum_over_processes(fabric: Fabric, tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all processes, in each of them."""
    if fabric.world_size > 1:
        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)  # Fabric's own waits for all processes first, with the CPU
    return tensor


def sum_gradients(fabric: Fabric, parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes in place; a parameter without one counts as zero."""
    if fabric.world_size == 1:
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [cast(torch.Tensor, parameter.grad) for parameter in parameters]
    # One message instead of one for each of about a hundred tensors.
    total = sum_over_processes(fabric, _flatten_dense_tensors(gradients))
    for gradient, summed in zip(gradients, _unflatten_dense_tensors(total, gradients), strict=True):
        gradient.copy_(summed)


def average_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Replace running statistics by their mean over all processes; fixed ones are equal and stay as they are."""
    running = (module for module in model.modules() if not isinstance(module, FixedNorm))
    buffers = [buffer for module in running for buffer in module.buffers(recurse=False) if buffer.is_floating_point()]
    if fabric.world_size == 1 or not buffers:
        return
    total = sum_over_processes(fabric, _flatten_dense_tensors(buffers))
    for buffer, summed in zip(buffers, _unflatten_dense_tensors(total, buffers), strict=True):
        buffer.copy_(summed / fabric.world_size)
