# SPDX-License-Identifier: Apache-2.0
"""The default coefficients of the lighting estimator: simulated pictures on disk, their variations, fit and check."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xmodal_seg.config import Settings
from xmodal_seg.lighting_features import FEATURES, image_facts
from xmodal_seg.lighting_health import image_faults
from xmodal_seg.lighting_model import LightingCoefficients, QualityLimits, fit_weights, save_coefficients
from xmodal_seg.simulation import imaging
from xmodal_seg.simulation.dice import Dice, generator
from xmodal_seg.simulation.lit_views import LitViewSettings, lit_pictures
from xmodal_seg.training.lighting_variations import FAILURES, failed, varied

INDEX = "lights.csv"
JPEG_QUALITY = 95
DAY_DEGREES, NIGHT_DEGREES = 3.0, -8.0  # sun elevation of darkness 0 and 1
# What physics says of the sign of each weight. A fitted weight of the other sign is a quirk of the simulator (its skies
# seldom burn out, its shadows are too clean), so the feature is left out. 0 leaves it out from the start: after
# striding, the texture of real surfaces measures as noise, and simulated surfaces have too little of it.
SIGNS = {
    "level_p10": -1,
    "level_p50": -1,
    "level_p90": -1,
    "dark_share": 1,
    "bright_share": -1,
    "saturated_share": -1,  # what burns out over a large part of a picture is a sky
    "lamp_ratio": 1,
    "coverage": -1,
    "bright_area": -1,
    "dark_area": -1,
    "lamp_extent": -1,
    "detail_share": -1,
    "dark_detail": -1,
    "noise": 0,
    "chroma": -1,
    "warmth": 1,
    "sky_ratio": -1,
}


class DefaultsSettings(Settings):
    """How the coefficients are fitted."""

    variations: int = Field(default=3, gt=0, description="of each picture, besides the picture itself")
    ridge: float = Field(default=0.1, gt=0, description="large: weights that fit the simulator alone are worthless")
    held_out: float = Field(default=0.2, gt=0, lt=1, description="share of the streets for the check")
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """n measured pictures."""

    features: NDArray[np.float64]  # (n, F)
    elevation: NDArray[np.float64]  # (n,) degrees
    street: NDArray[np.int64]  # (n,)
    weight: NDArray[np.float64]  # (n,) a picture counts as much as all its variations together

    def target(self) -> NDArray[np.float64]:
        """(n,) darkness that is taught."""
        return darkness_of_sun(self.elevation)


def darkness_of_sun(elevation: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where the simulator says day, 1 where it says night, linear between."""
    return np.clip((DAY_DEGREES - elevation) / (DAY_DEGREES - NIGHT_DEGREES), 0.0, 1.0)


def render_street(folder: Path, street: int, settings: LitViewSettings) -> None:
    """Writes the pictures of one street below `folder`, with an index written last; nothing if it is there."""
    target = folder / f"street_{street}"
    if (target / INDEX).is_file():
        return
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, picture in enumerate(lit_pictures(street, settings)):
        name = f"{number:04d}.jpg"
        (target / name).write_bytes(imaging.encode(picture.image, JPEG_QUALITY))
        rows.append((name, picture.view, f"{picture.light.sun_elevation:.3f}", picture.light.lamps))
    partial = target / f"{INDEX}.part"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "view", "sun_elevation", "lamps"))
        writer.writerows(rows)
    partial.replace(target / INDEX)


def make_defaults(folder: Path, streets: Sequence[int], out: Path, *, settings: DefaultsSettings, command: str) -> str:
    """Fit on the pictures of `streets` below `folder`, write the file `out`, return a report."""
    pictures = list(_pictures(folder, streets))
    measured = measure(pictures, settings)
    limits, limit_report = quality_limits(pictures, settings)
    num_held = max(1, round(settings.held_out * len(streets)))
    held = np.isin(measured.street, list(streets)[-num_held:])
    check = fit(measured, ~held, settings, limits)
    report = _report(check, measured, held)
    coefficients = fit(measured, np.ones(len(held), bool), settings, limits).model_copy(
        update={
            "provenance": {
                "source": "simulated pictures alone (xmodal_seg.simulation.lit_views)",
                "command": command,
                "streets": len(streets),
                "pictures": len(pictures),
                "rows": len(held),
                "ridge": settings.ridge,
                "seed": settings.seed,
                "held_out_streets": num_held,
                **report,
            }
        }
    )
    save_coefficients(out, coefficients)
    weights = "\n".join(
        f"  {name:<16}{weight:+.3f}" for name, weight in zip(FEATURES, coefficients.weights, strict=True)
    )
    checks = "\n".join(f"  {name}: {value}" for name, value in report.items())
    return f"wrote {out}\nweights\n{weights}\nlimits\n{limit_report}\non held-out streets\n{checks}"


def measure(pictures: Sequence[tuple[NDArray[np.uint8], float, int]], settings: DefaultsSettings) -> Measured:
    """Every picture (image, sun elevation, street) and its variations."""
    features, elevation, street, weight = [], [], [], []
    for number, (image, degrees, seed) in enumerate(pictures):
        dice = Dice(settings.seed, "lighting variations", number)
        draw = generator(settings.seed, "lighting noise", number)
        for variation in range(settings.variations + 1):
            features.append(image_facts(image if variation == 0 else varied(image, dice, draw)).features)
            weight.append(1.0 if variation == 0 else 1.0 / settings.variations)
            elevation.append(degrees)
            street.append(seed)
    return Measured(
        features=np.stack(features),
        elevation=np.array(elevation),
        street=np.array(street),
        weight=np.array(weight),
    )


def fit(
    measured: Measured, rows: NDArray[np.bool_], settings: DefaultsSettings, limits: QualityLimits
) -> LightingCoefficients:
    """Coefficients from the chosen rows."""
    features = measured.features[rows]
    plain = LightingCoefficients(
        mean=tuple(features.mean(axis=0)),
        scale=tuple(np.maximum(features.std(axis=0), 1e-3)),
        weights=(0.0,) * len(FEATURES),
        bias=0.0,
        limits=limits,
    )
    z, target, share = plain.standardized(features), measured.target()[rows], measured.weight[rows]
    signs = np.array([SIGNS[name] for name in FEATURES])
    kept = signs != 0
    weights = np.zeros(len(FEATURES))
    while True:
        weights[:] = 0.0
        weights[kept], bias = fit_weights(z[:, kept], target, ridge=settings.ridge, sample_weight=share)
        wrong = weights * signs < 0
        if not wrong.any():
            break
        kept &= np.arange(len(FEATURES)) != int(np.argmax(np.where(wrong, np.abs(weights), -1.0)))
    # The ridge spreads the weight over features that say the same, which is wanted, and flattens the slope, which is
    # not: slope and bias are set by the pictures as they were taken.
    taken = share == 1.0
    slope, bias = fit_weights((z[taken] @ weights)[:, None], target[taken], ridge=1e-6)
    return plain.model_copy(update={"weights": tuple(float(w) for w in slope[0] * weights), "bias": bias})


def quality_limits(
    pictures: Sequence[tuple[NDArray[np.uint8], float, int]], settings: DefaultsSettings
) -> tuple[QualityLimits, str]:
    """Limits that catch nearly all made failures, a quarter of the way to healthy pictures, and what they catch.

    The share of saturated pixels is set by the failures alone: simulated skies seldom saturate, real ones often do.
    """
    healthy = [image_facts(image) for image, _, _ in pictures[::3]]
    draw = generator(settings.seed, "failures")
    broken = {kind: [image_facts(failed(kind, image, draw)) for image, _, _ in pictures[1::7]] for kind in FAILURES}
    black = _between([f.peak_level for f in broken["black"]], [f.peak_level for f in healthy])
    blocked = _between([f.sharpness for f in broken["blocked"]], [f.sharpness for f in healthy])
    over = float(np.quantile([f.saturated_share for f in broken["over-exposed"]], 0.03))
    limits = QualityLimits(black_peak=round(black, 5), over_share=round(over, 3), blocked_sharpness=round(blocked, 3))
    caught = {kind: np.mean([bool(image_faults(f, limits)) for f in facts]) for kind, facts in broken.items()}
    false_alarms = float(np.mean([bool(image_faults(f, limits)) for f in healthy]))
    lines = [f"  {limits}", *(f"  {kind} caught: {share:.3f}" for kind, share in caught.items())]
    return limits, "\n".join([*lines, f"  false alarms on healthy pictures: {false_alarms:.4f}"])


def _between(low: list[float], high: list[float]) -> float:
    """A quarter of the way, in logarithms, from nearly the highest of `low` to nearly the lowest of `high`."""
    first, last = np.log(np.quantile(low, 0.97) + 1e-4), np.log(np.quantile(high, 0.01) + 1e-4)
    return float(np.exp(first + 0.25 * max(0.0, last - first)))


def _report(check: LightingCoefficients, measured: Measured, held: NDArray[np.bool_]) -> dict[str, float]:
    darkness = 1 / (1 + np.exp(-check.logit(measured.features[held])))
    elevation = measured.elevation[held]
    day, night = elevation > DAY_DEGREES, elevation < NIGHT_DEGREES
    return {
        "held_out_day_accuracy": round(float((darkness[day] < 0.5).mean()), 4),
        "held_out_night_accuracy": round(float((darkness[night] > 0.5).mean()), 4),
        "held_out_day_sure": round(float((darkness[day] < 0.2).mean()), 4),
        "held_out_night_sure": round(float((darkness[night] > 0.8).mean()), 4),
        "held_out_twilight_mean": round(float(darkness[~day & ~night].mean()), 4),
    }


def _pictures(folder: Path, streets: Sequence[int]) -> list[tuple[NDArray[np.uint8], float, int]]:
    found = []
    for street in streets:
        with (folder / f"street_{street}" / INDEX).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                image = cv2.imread(str(folder / f"street_{street}" / row["file"]), cv2.IMREAD_COLOR)
                if image is None:
                    raise ValueError(f"{folder}/street_{street}/{row['file']}: expected a picture")
                found.append((np.asarray(image[..., ::-1], np.uint8, order="C"), float(row["sun_elevation"]), street))
    return found
