# SPDX-License-Identifier: Apache-2.0
"""A recipe: everything that decides the result of a training run, as frozen settings read from YAML.

A recipe is composed of parts of three files, each laid over the former ones, and of `key=value` overrides:

    sizes/<size>.yaml      `recipe`: steps, rates, widths
    shifts/<shift>.yaml    `every_size`, then the part of that size: the data and what goes with them
    sizes/<size>.yaml      of `image_networks` the one that the method names
    shifts/<shift>.yaml    of `image_networks` that one in that size: what only rows with this network have there
    methods/<method>.yaml  `recipe`: heads, fusion and loss terms, a row of the tables
    shifts/<shift>.yaml    of `methods` the one of that name: what only this row has on this shift

A size that `extends` another has all of that one's parts below its own, in its file and in those of the shifts.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from xmodal_seg.config import given_value
from xmodal_seg.training.recipe_settings import Recipe

SIZES = ("small", "coarse", "full")
_OF_ONE_NETWORK = ("weights", "checkout", "model_args", "cells_per_patch")
_SHIFT_PARTS = ("every_size", "image_networks", "methods")


def compose(recipes: Path, *, shift: str, method: str, size: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a method on a shift in a size, from the folder `recipes`.

    Raises ValueError naming the file that is missing or the key that is wrong.
    """
    size_file, size_parts = _parts(recipes / "sizes", size, known=("recipe", "image_networks", "extends"))
    sizes = [size]
    if "extends" in size_parts:
        sizes.insert(0, size_parts["extends"])
        _, extended = _parts(recipes / "sizes", sizes[0], known=("recipe", "image_networks"))
        size_parts = merge(extended, size_parts)
    method_file, method_parts = _parts(recipes / "methods", method, known=("recipe", "image_network"))
    shift_file, shift_parts = _parts(recipes / "shifts", shift, known=(*_SHIFT_PARTS, *SIZES))
    for part in sizes:
        if part not in shift_parts:
            there = ", ".join(name for name in SIZES if name in shift_parts)
            raise ValueError(f"{shift_file}: has no part {part!r}; of the sizes it has {there or 'none'}")
    network = method_parts.get("image_network")
    networks = size_parts.get("image_networks") or {}
    if network not in networks:
        raise ValueError(f"{method_file}: image_network {network!r} is not in {size_file}: {', '.join(networks)}")
    layers = (
        size_parts.get("recipe"),
        shift_parts.get("every_size"),
        *(shift_parts[part] for part in sizes),
        networks[network],
        *(
            _of_network(shift_file, shift_parts.get("image_networks") or {}, size=part, network=network, known=networks)
            for part in sizes
        ),
        method_parts.get("recipe"),
        (shift_parts.get("methods") or {}).get(method),
    )
    values = merge({"name": method}, *(layer or {} for layer in layers))
    return parse_recipe(values, overrides=overrides, where=f"recipe {shift}, {method}, {size}")


def load_recipe(path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """A complete recipe from one file, such as the `recipe.yaml` beside every result."""
    return parse_recipe(read_mapping(path), overrides=overrides, where=str(path))


def parse_recipe(values: Mapping[str, Any], *, overrides: Sequence[str] = (), where: str) -> Recipe:
    """Validate; ValueError in one sentence that names each wrong key and the nearest one that exists.

    An override of `model.image_backbone.name` takes with it what belongs to the former network alone.
    """
    changes = merge(*(_override(text) for text in overrides))
    values = merge(_without_replaced_network(values, changes), changes)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{where}: {'; '.join(_reason(e) for e in error.errors())}") from error


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe: every value, defaults included."""
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def check_same_result(former: Recipe, present: Recipe, *, where: Path) -> None:
    """Raises ValueError, naming what differs, where the present recipe gives another result than that of a run."""
    if (former.result_hash(), former.seed) == (present.result_hash(), present.seed):
        return
    one, other = _flat(former.model_dump(mode="json")), _flat(present.model_dump(mode="json"))
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    differences = [f"{key} is {one.get(key)} there, {other.get(key)} here" for key in keys]
    raise ValueError(
        f"{where}: belongs to a run of another recipe ({'; '.join(differences[:3]) or 'other weights'}); choose "
        "another output folder, or remove this one"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def named_file(folder: Path, name: str) -> Path:
    """`folder/name.yaml`; ValueError with the nearest name if there is none."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ValueError(f"{folder}: no {name}.yaml{_nearest(name, known)}; there are {', '.join(known) or 'none'}")
    return path


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; ValueError naming the file otherwise. An empty file is an empty mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values or {}


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones: mappings are merged key by key, everything else is replaced."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            former = merged.get(key)
            merged[key] = merge(former, value) if isinstance(former, Mapping) and isinstance(value, Mapping) else value
    return merged


def _parts(folder: Path, name: str, *, known: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """A file of `folder` and the parts that it has; ValueError for a part with another name."""
    path = named_file(folder, name)
    parts = read_mapping(path)
    for part in parts:
        if part not in known:
            raise ValueError(f"{path}: {part}: unknown key{_nearest(part, known)}; expected {', '.join(known)}")
    return path, parts


def _of_network(
    path: Path, by_size: Mapping[str, Any], *, size: str, network: Any, known: Collection[str]
) -> Mapping[str, Any]:
    """The layer of a shift for one image network in one size; ValueError for an unknown size or network."""
    for part, expected in ((by_size, SIZES), (by_size.get(size) or {}, known)):
        for name in part:
            if name not in expected:
                nearest = _nearest(name, expected)
                raise ValueError(f"{path}: image_networks: {name}: unknown{nearest}; expected {', '.join(expected)}")
    return (by_size.get(size) or {}).get(network) or {}


def _without_replaced_network(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without the weights and arguments of an image network that `changes` replace by one of another name."""
    former, new = (
        model.get("image_backbone") if isinstance(model := of.get("model"), Mapping) else None
        for of in (values, changes)
    )
    if not isinstance(former, Mapping) or not isinstance(new, Mapping):
        return dict(values)
    if new.get("name", former.get("name")) == former.get("name"):
        return dict(values)
    if former.get("kind") == "unet" and "kind" not in new:
        raise ValueError(
            f"model.image_backbone.name: this row has xMUDA's U-Net, which has no place for {new['name']!r}; choose a "
            "method on a foundation model, or set model.image_backbone.kind too"
        )
    kept = {key: value for key, value in former.items() if key not in _OF_ONE_NETWORK}
    return {**values, "model": {**values["model"], "image_backbone": kept}}


def _override(text: str) -> dict[str, Any]:
    """'optim.lr.point=3e-3' -> {'optim': {'lr': {'point': 0.003}}}; values are YAML, floats may lack the dot."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set: expected key=value such as optim.steps=100, got {text!r}")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {key}: {value!r} is not valid YAML") from error
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def _reason(error: Any) -> str:
    """One pydantic error in words."""
    location = [part for part in error["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    key = ".".join(str(part) for part in location) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(str(location[-1]), _known_keys(location[:-1]))}"
    if error["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}{given_value(error)}"


def _known_keys(location: Sequence[Any]) -> list[str]:
    """Keys of the settings class at `location` of a recipe."""
    cls: type[BaseModel] = Recipe
    for part in location:
        annotation = cls.model_fields[part].annotation if part in cls.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        cls = annotation
    return sorted(cls.model_fields)


def _nearest(name: str, known: Collection[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
