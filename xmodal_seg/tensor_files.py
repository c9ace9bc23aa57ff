# SPDX-License-Identifier: Apache-2.0
"""Named tensors on disk and in models: written in one step, hashed, compared key by key. safetensors, never pickle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

_MODE = 0o644  # a shipped or shared checkpoint has other readers
_HASH_DIGITS = 12  # of a file's hash in its name
_READ_BYTES = 1 << 24
_LISTED_KEYS = 4  # in an error message


def write_tensors(folder: Path, stem: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Write `<stem>.<hash>.safetensors` and return its {'file', 'sha256'}; tensors may live on any device.

    Raises OSError, and leaves nothing behind, where the disk refuses.
    """
    with _temporary(folder, stem) as temporary:
        _save(tensors, temporary, target=folder / stem)
        sha256 = _hash_file(temporary)
        target = folder / f"{stem}.{sha256[:_HASH_DIGITS]}.safetensors"
        _replace(temporary, target)
    return {"file": target.name, "sha256": sha256}


def write_tensor_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Replace the file in one step and return its SHA-256. Raises OSError where the disk refuses."""
    with _temporary(path.parent, path.name) as temporary:
        _save(tensors, temporary, target=path)
        sha256 = _hash_file(temporary)
        _replace(temporary, path)
    return sha256


def read_tensors(folder: Path, entry: Mapping[str, str], *, device: torch.device) -> Tensors:
    """The tensors of an entry that `write_tensors` gave; ValueError if the file is missing, changed or unreadable."""
    path = folder / entry["file"]
    if not path.is_file():
        raise ValueError(f"{path}: missing, though the checkpoint names it")
    sha256 = _hash_file(path)
    if sha256 != entry["sha256"]:
        raise ValueError(f"{path}: damaged or changed: expected the SHA-256 {entry['sha256']}, got {sha256}")
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: could not be read to {device}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Replace the file in one step: a reader sees the former text or this one, also after an OSError."""
    with _temporary(path.parent, path.name) as temporary:
        temporary.write_text(text, encoding="utf-8")
        _replace(temporary, path)


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, whatever their order and device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tensors(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Raise ValueError, naming the keys, unless both have the same keys and shapes (and integers where integers)."""
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    wrong = [
        f"{name} ({_form(given[name])}, expected {_form(tensor)})"
        for name, tensor in expected.items()
        if name in given and not _same_form(given[name], tensor)
    ]
    faults = [
        f"{what} {_listed(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another form", wrong))
        if keys
    ]
    if faults:
        raise ValueError(f"{where}: tensors do not fit the model: {'; '.join(faults)}")


def check_finite(tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Raise ValueError naming the tensors that hold NaN or infinity."""
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(f"{where}: expected finite values, got others in {_listed(broken)}")


def copy_tensors(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Copy values in place across devices and float types; ValueError, and nothing copied, where they do not fit."""
    check_tensors(source, target, where=where)
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


@contextmanager
def _temporary(folder: Path, name: str) -> Iterator[Path]:
    """A file to write before it gets its final name; gone afterwards, whatever happens."""
    path = folder / f".{name}.{os.getpid()}.tmp"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _save(tensors: Mapping[str, torch.Tensor], temporary: Path, *, target: Path) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    except SafetensorError as error:  # a class of its own, also for a disk that is full
        raise OSError(f"{target}: could not be written: {error}") from error
    temporary.chmod(_MODE)  # safetensors leaves it to its owner alone


def _replace(temporary: Path, target: Path) -> None:
    """Rename once the data is on the disk, so that a power cut cannot leave an empty file under the final name."""
    flush(temporary)
    os.replace(temporary, target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _same_form(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _LISTED_KEYS} more" if len(keys) > _LISTED_KEYS else ""
    return ", ".join(keys[:_LISTED_KEYS]) + more
