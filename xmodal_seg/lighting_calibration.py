# SPDX-License-Identifier: Apache-2.0
"""Fit the lighting estimator's coefficients to labelled pictures, and say how far they can be trusted.

The fit stays near coefficients that exist already (the shipped ones), so that a few dozen pictures are enough; means
and scales stay as they are. Accuracy is counted by darkness above or below 0.5, for pictures labelled day or night.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.lighting_features import ImageFacts, image_facts
from xmodal_seg.lighting_health import image_faults
from xmodal_seg.lighting_model import LightingCoefficients, QualityLimits, fit_weights, sigmoid

_JPEG_BEGINS, _JPEG_SCAN, _JPEG_ENDS = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
TARGETS = {"day": 0.0, "twilight": 0.5, "night": 1.0}
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
Group = Literal["none", "size", "folder"]
Pool = Callable[[NDArray[np.uint8]], NDArray[np.float64]]  # (H, W, 3) RGB -> (D,)
OWN_RIDGE = 0.1  # for the cameras of the pictures themselves
RIDGES = (0.02, 0.1, 0.5, 2.0, 10.0, 100.0)  # for other cameras: from nearly free coefficients to the given ones


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One labelled picture."""

    name: str  # path or topic and stamp
    label: str  # of TARGETS
    image_size: tuple[int, int]  # (height, width) px
    facts: ImageFacts
    pooled: NDArray[np.float64] | None = None  # (D,) of a foundation model, where a probe is asked for

    @property
    def target(self) -> float:
        return TARGETS[self.label]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What coefficients say about a labelled picture."""

    picture: Labelled
    darkness: float
    confidence: float  # 1 - entropy, 0 where the picture has a fault
    faults: tuple[str, ...]

    @property
    def is_right(self) -> bool | None:
        """None for twilight, which has no right side."""
        return None if self.picture.target == 0.5 else (self.darkness > 0.5) == (self.picture.target > 0.5)


def read_labelled(source: str | Path, *, crop_top: float = 0.0, pool: Pool | None = None) -> list[Labelled]:
    """Pictures of a folder with the subfolders day, night and perhaps twilight, or of a CSV with `file,label`.

    `crop_top` cuts that share off the top of each; `pool` gives their pooled features. Raises ValueError for a source
    without labelled pictures, an unknown label and a file that is no picture.
    """
    pairs = _pairs_of_csv(Path(source)) if Path(source).is_file() else _pairs_of_folder(Path(source))
    return [
        labelled_picture(read_picture(path), label, name=str(path), crop_top=crop_top, pool=pool)
        for path, label in pairs
    ]


def labelled_picture(
    image: NDArray[np.uint8], label: str, *, name: str, crop_top: float = 0.0, pool: Pool | None = None
) -> Labelled:
    """Measure one (H, W, 3) RGB picture."""
    if label not in TARGETS:
        raise ValueError(f"{name}: expected a label of {', '.join(TARGETS)}, got {label!r}")
    if not 0 <= crop_top < 1:
        raise ValueError(f"crop_top: expected a share from 0 to 1, got {crop_top:g}")
    height, width = image.shape[:2]
    seen = image[round(crop_top * height) :]
    pooled = None if pool is None else pool(seen)
    return Labelled(name=name, label=label, image_size=(height, width), facts=image_facts(seen), pooled=pooled)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB. Raises ValueError for a file that is no picture, and for a JPEG that was cut off."""
    data = path.read_bytes() if path.is_file() else b""
    # Some versions of OpenCV fill the rest with grey. Compressed data never hold this marker; a thumbnail before may.
    if data.startswith(_JPEG_BEGINS) and _JPEG_ENDS not in data[data.rfind(_JPEG_SCAN) :]:
        raise ValueError(f"{path}: the file ends before its picture does")
    how = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), how) if data else None
    if image is None:
        raise ValueError(f"{path}: expected a picture that OpenCV reads")
    return np.ascontiguousarray(image[..., ::-1])


def fit_coefficients(
    pictures: Sequence[Labelled], *, start: LightingCoefficients, ridge: float
) -> LightingCoefficients:
    """Coefficients near `start` for these pictures, the classes weighted alike. ValueError without day or night.

    `ridge` is how near: 0.02 lets them go, 100 moves nothing.
    """
    targets = np.array([picture.target for picture in pictures])
    shares = class_shares(targets)
    z = start.standardized(np.stack([picture.facts.features for picture in pictures]))
    weights, bias = fit_weights(
        z,
        targets,
        ridge=ridge,
        prior=np.asarray(start.weights),
        prior_bias=start.bias,
        sample_weight=shares,
    )
    return start.model_copy(update={"weights": tuple(map(float, weights)), "bias": bias, "calibrated": True})


def class_shares(targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) weights by which every class counts alike. Raises ValueError where day or night is missing."""
    missing = [label for label in ("day", "night") if TARGETS[label] not in targets]
    if missing:
        raise ValueError(f"labelled pictures: expected some of day and some of night, got none of {missing[0]}")
    return np.array([1.0 / float((targets == target).sum()) for target in targets])


def judge(pictures: Sequence[Labelled], coefficients: LightingCoefficients) -> list[Verdict]:
    """What `coefficients` say about each picture."""
    darkness = [sigmoid(float(coefficients.logit(picture.facts.features))) for picture in pictures]
    return [verdict_of(*pair, limits=coefficients.limits) for pair in zip(pictures, darkness, strict=True)]


def verdict_of(picture: Labelled, darkness: float, *, limits: QualityLimits) -> Verdict:
    """A darkness in [0, 1] with the confidence that it leaves, which is 0 for a picture with a fault."""
    faults = image_faults(picture.facts, limits)
    return Verdict(picture=picture, darkness=darkness, confidence=0.0 if faults else certainty(darkness), faults=faults)


def choose_ridge(
    pictures: Sequence[Labelled], *, group_of: Callable[[Labelled], str], start: LightingCoefficients
) -> float:
    """The ridge of RIDGES for groups that are not among the pictures, by leaving each group out in turn.

    The largest one whose loss is not worse than the least by more than one standard error over the groups (Breiman et
    al., 1984): a few cameras are no reason to leave coefficients that hold for many. The largest, too, where leaving a
    group out leaves a class empty.
    """
    groups = np.array([group_of(picture) for picture in pictures])
    losses = []
    for ridge in RIDGES:
        try:
            verdicts = leave_one_group_out(pictures, group_of=group_of, start=start, ridge=ridge)
        except ValueError:  # no second group, or one that holds all pictures of a class
            return RIDGES[-1]
        bits = cross_entropy(verdicts)
        losses.append([bits[groups == group].mean() for group in np.unique(groups)])
    means = np.mean(losses, axis=1)
    best = int(np.argmin(means))
    error = float(np.std(losses[best], ddof=1)) / np.sqrt(len(losses[best]))
    return max(ridge for ridge, mean in zip(RIDGES, means, strict=True) if mean <= means[best] + error)


def cross_entropy(verdicts: Sequence[Verdict]) -> NDArray[np.float64]:
    """(n,) -log2 of what was given to the truth."""
    target = np.array([verdict.picture.target for verdict in verdicts])
    darkness = np.clip([verdict.darkness for verdict in verdicts], 1e-6, 1 - 1e-6)
    return np.asarray(-(target * np.log2(darkness) + (1 - target) * np.log2(1 - darkness)))


def leave_one_group_out(
    pictures: Sequence[Labelled],
    *,
    group_of: Callable[[Labelled], str],
    start: LightingCoefficients,
    ridge: float | None = None,
) -> list[Verdict]:
    """Each group judged by coefficients fitted on the others, in the order of `pictures`.

    Without `ridge` it is chosen anew among the others for each group, so the group that is judged has no say in it
    either. Raises ValueError as `leave_out` does.
    """

    def judge_by(kept: Sequence[Labelled], left: Sequence[Labelled]) -> list[Verdict]:
        chosen = choose_ridge(kept, group_of=group_of, start=start) if ridge is None else ridge
        return judge(left, fit_coefficients(kept, start=start, ridge=chosen))

    return leave_out(pictures, group_of=group_of, judge_by=judge_by)


def leave_out(
    pictures: Sequence[Labelled],
    *,
    group_of: Callable[[Labelled], str],
    judge_by: Callable[[Sequence[Labelled], Sequence[Labelled]], list[Verdict]],
) -> list[Verdict]:
    """`judge_by(others, group)` of each group, in the order of `pictures`.

    Raises ValueError for fewer than two groups, and for a group without which a class is missing.
    """
    groups = [group_of(picture) for picture in pictures]
    if len(set(groups)) < 2:
        raise ValueError(f"groups: expected two or more to leave one out, got {len(set(groups))}")
    for label in ("day", "night"):
        found = {group for picture, group in zip(pictures, groups, strict=True) if picture.label == label}
        if len(found) == 1:
            raise ValueError(f"groups: expected pictures of {label} in two or more, got all in {found.pop()}")
    verdicts: dict[int, Verdict] = {}
    for left_out in sorted(set(groups)):
        kept = [picture for picture, group in zip(pictures, groups, strict=True) if group != left_out]
        rows = [row for row, group in enumerate(groups) if group == left_out]
        verdicts |= dict(zip(rows, judge_by(kept, [pictures[row] for row in rows]), strict=True))
    return [verdicts[row] for row in range(len(pictures))]


def group_function(group: Group) -> Callable[[Labelled], str]:
    """How pictures are grouped: by their size (the same camera) or by the folder they lie in."""
    if group == "size":
        return lambda picture: f"{picture.image_size[1]}x{picture.image_size[0]}"
    return lambda picture: str(Path(picture.name).parent)


def certainty(darkness: float) -> float:
    """1 - entropy in bits."""
    p = min(max(darkness, 1e-9), 1 - 1e-9)
    return float(1 + p * np.log2(p) + (1 - p) * np.log2(1 - p))


def accuracy(verdicts: Sequence[Verdict]) -> float:
    """Share of the day and night pictures on the right side."""
    right = [verdict.is_right for verdict in verdicts if verdict.is_right is not None]
    return float(np.mean(right)) if right else float("nan")


def reliability(verdicts: Sequence[Verdict], *, num_bins: int = 8) -> NDArray[np.float64]:
    """(bins, 3) mean darkness, share that is night, and number, of equally wide bins of darkness without empty ones."""
    counted = [verdict for verdict in verdicts if verdict.is_right is not None]
    darkness = np.array([verdict.darkness for verdict in counted])
    night = np.array([verdict.picture.target for verdict in counted])
    bins = np.minimum((darkness * num_bins).astype(int), num_bins - 1)
    return np.array(
        [(darkness[bins == i].mean(), night[bins == i].mean(), (bins == i).sum()) for i in np.unique(bins)]
    ).reshape(-1, 3)


def calibration_error(verdicts: Sequence[Verdict]) -> float:
    """Expected calibration error: mean gap of darkness and share of nights, weighted by the pictures in a bin."""
    curve = reliability(verdicts)
    return float((np.abs(curve[:, 0] - curve[:, 1]) * curve[:, 2]).sum() / max(1.0, curve[:, 2].sum()))


def _pairs_of_folder(folder: Path) -> list[tuple[Path, str]]:
    if not folder.is_dir():
        raise ValueError(f"labelled pictures: no such folder or CSV: {folder}")
    found = [
        (path, label)
        for label in TARGETS
        for path in sorted((folder / label).rglob("*"))
        if path.suffix.lower() in PICTURES
    ]
    if not found:
        raise ValueError(f"{folder}: expected pictures in the subfolders {', '.join(TARGETS)}, got none")
    return found


def _pairs_of_csv(path: Path) -> list[tuple[Path, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path}: expected the columns file and label, got {', '.join(reader.fieldnames or ())}")
        found = [(path.parent / row["file"], row["label"]) for row in reader]
    if not found:
        raise ValueError(f"{path}: expected labelled pictures, got none")
    return found
