# SPDX-License-Identifier: Apache-2.0
import hashlib

import pytest
import torch
from helpers import full_disk

from xmodal_seg.tensor_files import (
    check_tensors,
    copy_tensors,
    hash_tensors,
    read_tensors,
    write_tensor_file,
    write_tensors,
    write_text,
)

TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4).t(),  # not contiguous
    "half": torch.tensor([0.1, -2.0]).half(),
    "steps": torch.tensor(7),
    "empty": torch.zeros(0, 5),
}
CPU = torch.device("cpu")


def test_written_tensors_come_back_bit_equal(tmp_path):
    entry = write_tensors(tmp_path, "bank_day", TENSORS)

    assert [path.name for path in tmp_path.iterdir()] == [entry["file"]]
    assert entry["sha256"] == hashlib.sha256((tmp_path / entry["file"]).read_bytes()).hexdigest()
    assert entry["file"] == f"bank_day.{entry['sha256'][:12]}.safetensors"
    assert (tmp_path / entry["file"]).stat().st_mode & 0o777 == 0o644  # others may read a shipped checkpoint
    read = read_tensors(tmp_path, entry, device=CPU)
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_file_that_is_no_tensor_file_is_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"junk")
    entry = {"file": "x.safetensors", "sha256": hashlib.sha256(b"junk").hexdigest()}
    with pytest.raises(ValueError, match=r"x\.safetensors: could not be read to cpu"):
        read_tensors(tmp_path, entry, device=CPU)


def test_a_disk_without_room_is_told_and_nothing_is_left_on_it(tmp_path):
    with full_disk(), pytest.raises(OSError, match="File too large") as caught:
        write_tensors(tmp_path, "bank_day", TENSORS)
    assert str(tmp_path / "bank_day") in str(caught.value)
    with full_disk(), pytest.raises(OSError, match=r"stand_in\.safetensors"):
        write_tensor_file(tmp_path / "stand_in.safetensors", TENSORS)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_text(tmp_path / "index.json", 300 * "x")
    assert list(tmp_path.iterdir()) == []


def test_write_text_replaces_in_one_step(tmp_path):
    path = tmp_path / "index.json"
    write_text(path, "first")
    reader = path.open()
    write_text(path, "second, and longer")

    assert reader.read() == "first"
    reader.close()
    assert path.read_text() == "second, and longer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.json"]


def test_hash_sees_names_types_shapes_and_values_but_not_order():
    reference = hash_tensors(TENSORS)

    assert hash_tensors(dict(reversed(TENSORS.items()))) == reference
    changed = [
        {**TENSORS, "half": torch.tensor([0.1, -2.5]).half()},
        {**TENSORS, "half": torch.tensor([0.1, -2.0]).bfloat16()},
        {**TENSORS, "weight": TENSORS["weight"].reshape(2, 6)},
        {("heavy" if name == "weight" else name): tensor for name, tensor in TENSORS.items()},
    ]
    assert all(hash_tensors(tensors) != reference for tensors in changed)


def test_copy_crosses_float_types_and_checks_first():
    target = {name: torch.zeros_like(tensor, dtype=tensor.dtype) for name, tensor in TENSORS.items()}
    copy_tensors({**TENSORS, "weight": TENSORS["weight"].half()}, target, where="here")
    assert torch.equal(target["weight"], TENSORS["weight"])

    with pytest.raises(ValueError, match=r"there: .*of another form steps \(float32 \(\), expected int64 \(\)\)"):
        check_tensors({**TENSORS, "steps": torch.tensor(7.0)}, TENSORS, where="there")
