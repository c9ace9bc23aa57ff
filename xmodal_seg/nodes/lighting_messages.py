# SPDX-License-Identifier: Apache-2.0
"""The topic `lighting`: estimates of the cameras as a DiagnosticArray, and read back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray

from xmodal_seg.lighting import CameraLighting
from xmodal_seg.lighting_state import CONDITIONS, Condition
from xmodal_seg.nodes.conversions import diagnostic_status

_COMMA = ", "


@dataclass(frozen=True, kw_only=True)
class ReportedLight:
    """What a message says about one camera."""

    name: str
    darkness: float
    guidance: float
    confidence: float
    condition: Condition
    reasons: tuple[str, ...] = ()


def lighting_message(
    cameras: Sequence[CameraLighting], *, node_name: str, stamp_ns: int, min_confidence: float
) -> DiagnosticArray:
    """One status for each camera, WARN where it is less sure than `min_confidence`.

    The stamp is an image's, by the first camera's clock.
    """
    message = DiagnosticArray()
    message.header.stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    for camera in cameras:
        said = f"{camera.condition}, lambda {camera.guidance:.2f}"
        message.status.append(
            diagnostic_status(
                name=f"{node_name}: {camera.name}",
                hardware_id=camera.name,
                level="OK" if camera.confidence >= min_confidence else "WARN",
                message=f"{said}: {', '.join(camera.reasons)}" if camera.reasons else said,
                values={
                    "lambda": f"{camera.guidance:.4f}",
                    "darkness": f"{camera.darkness:.4f}",
                    "confidence": f"{camera.confidence:.4f}",
                    "condition": camera.condition,
                    "reasons": _COMMA.join(camera.reasons),
                    "reliability": f"{camera.reliability:.4f}",
                    "image_darkness": f"{camera.image_darkness:.4f}",
                    "stamp_ns": camera.stamp_ns,
                },
            )
        )
    return message


def read_lighting(message: Any) -> tuple[ReportedLight, ...]:
    """The cameras of a message. Raises ValueError for a value that is missing or out of range."""
    return tuple(_camera(status) for status in message.status)


def _camera(status: Any) -> ReportedLight:
    values = {value.key: value.value for value in status.values}
    numbers = {key: _share(status.hardware_id, values, key) for key in ("darkness", "lambda", "confidence")}
    condition = values.get("condition", "")
    if condition not in CONDITIONS:
        raise ValueError(
            f"lighting of {status.hardware_id!r}: condition: expected one of {', '.join(CONDITIONS)}, got {condition!r}"
        )
    return ReportedLight(
        name=status.hardware_id,
        darkness=numbers["darkness"],
        guidance=numbers["lambda"],
        confidence=numbers["confidence"],
        condition=condition,
        reasons=tuple(values["reasons"].split(_COMMA)) if values.get("reasons") else (),
    )


def _share(camera: str, values: dict[str, str], key: str) -> float:
    try:
        number = float(values.get(key, ""))
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"lighting of {camera!r}: {key}: expected a number from 0 to 1, got {values.get(key)!r}")
    return number
