# SPDX-License-Identifier: Apache-2.0
"""Waits of the segmentation node where a bag is replayed slower than it was recorded.

It waits by the wall clock, since a paused bag must not hold what has come. But what came 50 ms after its stamp when it
was recorded comes 200 ms after it at a quarter of the speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from annotated_types import Le

WAITS = ("camera_timeout_ms", "transform_timeout_s")
_NODE_NAMES = ("xmodal_seg", "*", "**")  # last words of the keys that name the node in a parameter file


def longer_waits(rate: float, *, params_file: Path | None = None) -> dict[str, float]:
    """WAITS of the node at `rate` times the recorded speed; empty at full speed and above, where its own are right.

    Args:
        params_file: the node's parameter file; what it does not state is the default.

    Raises ValueError for a rate of 0 and less, and for a parameter file that cannot be read.
    """
    from xmodal_seg.nodes.segmentation_settings import SegmentationNodeSettings

    if rate <= 0:
        raise ValueError(f"rate: expected more than 0, got {rate:g}")
    if rate >= 1:
        return {}
    stated = {} if params_file is None else _stated(params_file)
    waits = {}
    for name in WAITS:
        field = SegmentationNodeSettings.model_fields[name]
        longest = next(bound.le for bound in field.metadata if isinstance(bound, Le))
        waits[name] = min(stated.get(name, field.default) / rate, float(longest))  # type: ignore[arg-type]
    return waits


def _stated(params_file: Path) -> dict[str, float]:
    """Those of WAITS that a parameter file states; the last entry counts, as for ROS."""
    try:
        content = yaml.safe_load(params_file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"params_file: expected a readable YAML file, got {params_file}: {reason}") from error
    stated: dict[str, float] = {}
    for parameters in _parameters_of_node(content):
        for name in set(WAITS) & parameters.keys():
            if not isinstance(parameters[name], int | float):
                raise ValueError(f"{params_file}: {name}: expected a number, got {parameters[name]!r}")
            stated[name] = parameters[name]
    return stated


def _parameters_of_node(content: Any) -> Iterator[dict[str, Any]]:
    """Every `ros__parameters` of the segmentation node; keys are node names, or namespaces with more keys inside."""
    for key, inner in content.items() if isinstance(content, dict) else ():
        if not isinstance(inner, dict):
            continue
        if "ros__parameters" in inner and str(key).rpartition("/")[2] in _NODE_NAMES:
            yield inner["ros__parameters"] or {}
        else:
            yield from _parameters_of_node(inner)
