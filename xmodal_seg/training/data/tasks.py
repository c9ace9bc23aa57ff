# SPDX-License-Identifier: Apache-2.0
"""Open the data of a recipe: the four parts of its adaptation task, by the reader that the recipe names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from xmodal_seg.config import Settings, parse_settings
from xmodal_seg.labels import LABEL_SPACES, LabelSpace
from xmodal_seg.training.data.dataset import Domains, FixedSubset
from xmodal_seg.training.data.frame_store import FrameStore
from xmodal_seg.training.recipe_settings import DataSettings, Recipe

PARTS = ("source_train", "target_train", "target_val", "target_test")


class StoreOptions(Settings):
    """data.options of the reader 'frame_stores': one store for each part below root/shift."""

    label_space: str


class PreparedSplits(Settings):
    """Where one domain's prepared data are, below data.root, and which splits serve for what."""

    folder: Path
    train: str = Field(description="split, or several joined with +")
    val: str | None = None
    test: str | None = None
    cameras: tuple[str, ...] | None = None
    variants: tuple[str, ...] | None = None
    max_points: int | None = Field(default=None, gt=0, description="a fixed random subset of each frame's points")


class PreparedOptions(Settings):
    """data.options of the reader 'prepared': data sets that training/prepare_*.py has written."""

    label_space: str
    source: PreparedSplits
    target: PreparedSplits


def open_domains(recipe: Recipe) -> Domains:
    """The data of a recipe, checked against its model; a simulated world that is not there yet is made.

    Raises ValueError naming what is missing or does not fit.
    """
    data = recipe.data
    domains = _READERS[data.reader](data)
    num_classes = domains.label_space.num_classes
    if recipe.model.num_classes != num_classes:
        raise ValueError(
            f"model.num_classes: {recipe.model.num_classes}, but the classes of {data.shift} "
            f"({domains.label_space.name}) are {num_classes}"
        )
    if data.max_points is None:
        return domains
    limited: dict[str, Any] = {part: FixedSubset(getattr(domains, part), max_points=data.max_points) for part in PARTS}
    return replace(domains, **limited)


def data_fingerprint(recipe: Recipe) -> str:
    """Of the data of a recipe, as `open_domains` has it; a simulated world is not rendered for it."""
    if recipe.data.reader == "simulated":
        from xmodal_seg.training.data.simulated import world_fingerprint  # needs the extra `sim`

        return world_fingerprint(recipe.data)
    return open_domains(recipe).fingerprint


def label_space_named(name: str, *, key: str) -> LabelSpace:
    """One of the label spaces; ValueError naming the recipe's key."""
    if name not in LABEL_SPACES:
        raise ValueError(f"{key}: no label space {name!r}; there are {', '.join(LABEL_SPACES)}")
    return LABEL_SPACES[name]


def open_stores(folder: Path, label_space: LabelSpace) -> Domains:
    """The four stores of a task below `folder`."""
    stores = {part: FrameStore(folder / part, label_space=label_space) for part in PARTS}
    fingerprint = _hash(*(store.fingerprint for store in stores.values()))
    return Domains(**stores, fingerprint=fingerprint)


def _frame_stores(data: DataSettings) -> Domains:
    options = parse_settings(StoreOptions, data.options, where="data.options")
    label_space = label_space_named(options.label_space, key="data.options.label_space")
    return open_stores(_below_root(data, data.shift), label_space)


def _simulated(data: DataSettings) -> Domains:
    from xmodal_seg.training.data.simulated import open_world  # needs the extra `sim`

    return open_world(data)


def _prepared(data: DataSettings) -> Domains:
    from xmodal_seg.training.data.prepared import Header
    from xmodal_seg.training.data.prepared_dataset import PreparedDataset, open_dataset

    options = parse_settings(PreparedOptions, data.options, where="data.options")

    def part(domain: str, splits: PreparedSplits, name: str) -> PreparedDataset | FixedSubset:
        split = getattr(splits, name)
        if split is None:
            raise ValueError(f"data.options.{domain}.{name}: missing")
        opened = open_dataset(
            _below_root(data, splits.folder),
            split=split,
            label_space=options.label_space,
            cameras=splits.cameras,
            variants=splits.variants,
        )
        return opened if splits.max_points is None else FixedSubset(opened, max_points=splits.max_points)

    parts = {
        "source_train": part("source", options.source, "train"),
        **{f"target_{name}": part("target", options.target, name) for name in ("train", "val", "test")},
    }
    contents = [Header.read(data.root / splits.folder).content for splits in (options.source, options.target)]
    return Domains(**parts, fingerprint=_hash(*contents, repr(options)))


def _below_root(data: DataSettings, name: Path | str) -> Path:
    """A folder of data; ValueError naming the recipe's key where it is missing."""
    folder = data.root / name
    if not folder.is_dir():
        raise ValueError(f"data.root: expected a folder {str(name)!r} with data in {data.root}, found none")
    return folder


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


_READERS: dict[str, Callable[[DataSettings], Domains]] = {
    "frame_stores": _frame_stores,
    "simulated": _simulated,
    "prepared": _prepared,
}
