# SPDX-License-Identifier: Apache-2.0
"""Items of a reading process, packed into one tensor and unpacked again."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from helpers import make_frame, tiny_settings
from torch.utils.data import Dataset

from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.training.packing import pack, unpack
from xmodal_seg.training.streams import DomainBatch, InputSettings, loader, make_batch

CPU = torch.device("cpu")


def batch_of(num_points: int) -> DomainBatch:
    inputs = InputSettings.of(SegmentationModel(settings=tiny_settings()))
    return make_batch([make_frame(num_points=num_points)], [0], inputs=inputs)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, DomainBatch) or hasattr(expected, "voxel_coords"):
        for field in fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    else:
        assert found == expected


def test_a_batch_comes_back_as_it_was() -> None:
    batch = batch_of(157)
    packed = pack((batch, None))
    found, nothing = unpack(packed)
    assert nothing is None
    assert_same(found, batch)
    assert found.batch.voxel_coords.is_contiguous()


def test_tensors_of_any_kind_share_one_memory() -> None:
    items = {
        "odd": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 3, dtype=torch.int64),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "strided": torch.arange(12, dtype=torch.int32).view(3, 4).t(),
        "half": torch.tensor([1.5], dtype=torch.float16),
        "word": "as it is",
    }
    found = unpack(pack(items))
    for name, expected in items.items():
        assert_same(found[name], expected)
    storages = {found[name].untyped_storage().data_ptr() for name in items if name != "word"}
    assert len(storages) == 1


class Batches(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, item: int) -> tuple[DomainBatch, DomainBatch | None]:
        return batch_of(100 + item), None if item == 1 else batch_of(50)


def test_reading_processes_send_what_this_one_would_read() -> None:
    read_here = list(loader(Batches(), num_workers=0, device=CPU))
    read_there = list(loader(Batches(), num_workers=1, device=CPU))
    assert len(read_there) == 3
    tensors = [value for value in vars(read_there[0][0].batch).values() if isinstance(value, torch.Tensor)]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    for here, there in zip(read_here, read_there, strict=True):
        assert_same(there[0].batch.labels, here[0].batch.labels)
        assert_same(there[0], here[0])
        assert_same(there[1], here[1])
