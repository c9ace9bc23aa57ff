# SPDX-License-Identifier: Apache-2.0
"""Linear probe: what a frozen image backbone lets one linear layer tell about LiDAR points, here and elsewhere.

Features are read at the projected points as in the model, standardised on the training points, and classified by
multinomial logistic regression.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from xmodal_seg.config import PreprocessSettings
from xmodal_seg.labels import IGNORE_INDEX, NUSCENES_6, LabelSpace
from xmodal_seg.metrics import ConfusionMatrix
from xmodal_seg.models.image_backbone import ImageBackbone
from xmodal_seg.models.lifting import lift
from xmodal_seg.preprocess import prepare
from xmodal_seg.simulation.drive import Drive, DriveSettings
from xmodal_seg.simulation.light import schedule_named
from xmodal_seg.simulation.places import place_named
from xmodal_seg.simulation.rigs import NUSCENES, Rig
from xmodal_seg.structures import Batch
from xmodal_seg.training.data.dataset import Domains, log_class_weights
from xmodal_seg.training.recipe import Recipe

FRAMES_PER_DRIVE = 8
FPS = 0.5
FIRST_SEED = {"fit": 700_000, "test": 800_000}  # of the drives; no other part of the project uses these
SPREAD_FLOOR = 1e-4


@dataclass(frozen=True, kw_only=True)
class ProbeDomain:
    """A place under one or more lights, which the drives take in turn."""

    place: str
    lights: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> ProbeDomain:
        """'usa/noon,overcast'. Raises ValueError for another form or an unknown place or light."""
        place, slash, lights = text.partition("/")
        if not slash:
            raise ValueError(f"domain: expected place/light or place/light,light, got {text!r}")
        place_named(place)
        for light in lights.split(","):
            schedule_named(light, 0.0)
        return cls(place=place, lights=tuple(lights.split(",")))

    def __str__(self) -> str:
        return f"{self.place}/{','.join(self.lights)}"


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """What frames the probe sees, and how it is fitted."""

    rig: Rig = field(default_factory=lambda: NUSCENES.scaled(image=0.25, columns=600, front_only=True))
    image_size: tuple[int, int] = (224, 400)  # of the model's input
    label_space: LabelSpace = NUSCENES_6
    max_points: int = 2000  # of a frame, drawn at random
    iterations: int = 300
    lr: float = 1e-2


@dataclass(frozen=True, kw_only=True)
class PointFeatures:
    """Labelled points of many frames."""

    feats: torch.Tensor  # (P, D) float32
    labels: torch.Tensor  # (P,) int64 in [0, K)


def domain_frames(domain: ProbeDomain, part: str, num_frames: int, settings: ProbeSettings) -> list[Batch]:
    """`num_frames` frames of drives that no other part contains, each as a batch of its own."""
    batches = []
    preprocess = PreprocessSettings(voxel_size=0.1, max_cells=2048, image_size=settings.image_size)
    for number in range(0, num_frames, FRAMES_PER_DRIVE):
        drive = number // FRAMES_PER_DRIVE
        frames = min(FRAMES_PER_DRIVE, num_frames - number)
        rendered = Drive(
            DriveSettings(
                seed=FIRST_SEED[part] + drive,
                num_frames=frames,
                fps=FPS,
                place=place_named(domain.place),
                rig=settings.rig,
                light=schedule_named(domain.lights[drive % len(domain.lights)], frames / FPS),
            ),
            label_space=settings.label_space,
        )
        batches += [prepare([rendered.sample(i).frame], settings=preprocess) for i in range(frames)]
    return batches


def shift_frames(
    domains: Domains, recipe: Recipe, *, fit: int, test: int
) -> tuple[dict[str, list[Batch]], dict[str, list[Batch]]]:
    """Frames to fit on and to test on of `source` and `target`, each a batch of its own, as the recipe prepares them.

    The target's are from its training and test parts; the source has no test part, so its last frames are for that.
    Raises ValueError where there are fewer frames.
    """
    source, num = domains.source_train, len(domains.source_train)
    ranges = {
        ("fit", "source"): (source, range(fit), recipe.data.image_size_source),
        ("test", "source"): (source, range(num - test, num), recipe.data.image_size_source),
        ("fit", "target"): (domains.target_train, range(fit), recipe.data.image_size_target_train),
        ("test", "target"): (domains.target_test, range(test), None),
    }
    if fit + test > num or fit > len(domains.target_train) or test > len(domains.target_test):
        raise ValueError(
            f"shift: expected {fit} frames to fit on and {test} to test on, got {num} of the source, "
            f"{len(domains.target_train)} and {len(domains.target_test)} of the target"
        )
    found: dict[str, dict[str, list[Batch]]] = {"fit": {}, "test": {}}
    for (part, name), (dataset, rows, image_size) in ranges.items():
        preprocess = recipe.model.preprocess
        if image_size is not None:
            preprocess = preprocess.model_copy(update={"image_size": image_size})
        found[part][name] = [prepare([dataset[row]], settings=preprocess) for row in rows]
    return found["fit"], found["test"]


def point_features(backbone: ImageBackbone, batches: Iterable[Batch], *, max_points: int) -> PointFeatures:
    """Features at the labelled points, at most `max_points` of each batch, the same for every backbone."""
    feats, labels = [], []
    for number, batch in enumerate(batches):
        assert batch.labels is not None
        known = np.flatnonzero((batch.labels != IGNORE_INDEX).numpy())
        rows = torch.from_numpy(np.random.default_rng(number).permutation(known)[:max_points])
        image_size = (batch.images.shape[2], batch.images.shape[3])
        with torch.no_grad():
            feature_map = backbone(batch.images)
        feats.append(lift(feature_map, batch.uv[rows], batch.image_index[rows], image_size, mode=backbone.lift_mode))
        labels.append(batch.labels[rows])
    return PointFeatures(feats=torch.cat(feats).float(), labels=torch.cat(labels))


class LinearProbe:
    """Multinomial logistic regression on standardised features, fitted by Adam over all points at once.

    Raises ValueError where a class has no point to learn from and for labels outside [0, K).
    """

    def __init__(
        self, data: PointFeatures, *, label_space: LabelSpace, iterations: int = 300, lr: float = 1e-2
    ) -> None:
        K = label_space.num_classes
        if not bool(((data.labels >= 0) & (data.labels < K)).all()):
            raise ValueError(f"probe: expected labels from 0 to {K - 1}")
        counts = np.bincount(data.labels.numpy(), minlength=K)
        if (counts == 0).any():
            missing = [label_space.class_names[i] for i in np.flatnonzero(counts == 0)]
            raise ValueError(f"probe: no point of {', '.join(missing)} to fit on; take more frames")
        self.num_classes = K
        self._mean, self._std = data.feats.mean(0), data.feats.std(0).clamp(min=SPREAD_FLOOR)
        self._layer = torch.nn.Linear(data.feats.shape[1], K)
        torch.nn.init.zeros_(self._layer.weight)
        torch.nn.init.zeros_(self._layer.bias)
        weights = torch.tensor(log_class_weights(counts), dtype=torch.float32)
        feats = self._standardised(data.feats)
        optimizer = torch.optim.Adam(self._layer.parameters(), lr=lr)
        for _ in range(iterations):
            optimizer.zero_grad()
            functional.cross_entropy(self._layer(feats), data.labels, weight=weights).backward()
            optimizer.step()

    def _standardised(self, feats: torch.Tensor) -> torch.Tensor:
        return (feats - self._mean) / self._std

    def predict(self, feats: torch.Tensor) -> torch.Tensor:
        """(P, D) -> (P,) train ids."""
        with torch.no_grad():
            return self._layer(self._standardised(feats)).argmax(1)

    def score(self, data: PointFeatures) -> ConfusionMatrix:
        matrix = ConfusionMatrix(num_classes=self.num_classes)
        matrix.update(data.labels, self.predict(data.feats))
        return matrix


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Score of a probe on one domain."""

    backbone: str
    fitted_on: str
    tested_on: str
    miou: float  # percent
    iou: tuple[float, ...]  # percent, by class


def probe(
    name: str,
    backbone: ImageBackbone,
    fit: dict[str, list[Batch]],
    test: dict[str, list[Batch]],
    settings: ProbeSettings,
    *,
    pairs: Sequence[tuple[str, str]],
) -> list[ProbeResult]:
    """Fit on the frames `fit[a]` and score on `test[b]` for each pair (a, b)."""

    def read(batches: list[Batch]) -> PointFeatures:
        return point_features(backbone, batches, max_points=settings.max_points)

    tests = {domain: read(batches) for domain, batches in test.items()}
    results = []
    for source in dict.fromkeys(a for a, _ in pairs):
        classifier = LinearProbe(
            read(fit[source]), label_space=settings.label_space, iterations=settings.iterations, lr=settings.lr
        )
        for target in (b for a, b in pairs if a == source):
            matrix = classifier.score(tests[target])
            results.append(
                ProbeResult(
                    backbone=name,
                    fitted_on=source,
                    tested_on=target,
                    miou=matrix.mean_iou(),
                    iou=tuple(100 * float(value) for value in matrix.iou()),
                )
            )
    return results
