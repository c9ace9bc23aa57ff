# SPDX-License-Identifier: Apache-2.0
"""What a training run reads: the batches of its steps, and the frames of statistics, selection and validation."""

from __future__ import annotations

from dataclasses import dataclass

from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.training.data.dataset import Domains, FrameDataset
from xmodal_seg.training.feature_statistics import MAX_FRAMES
from xmodal_seg.training.recipe import Recipe
from xmodal_seg.training.sampler import Domain
from xmodal_seg.training.streams import (
    DomainStream,
    EvaluationBatches,
    FeatureMaps,
    InputSettings,
    PseudoLabels,
    TrainingSteps,
)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the batches come from beside the data sets; None where the recipe has no use for it."""

    source_features: FeatureMaps | None = None
    target_features: FeatureMaps | None = None
    validation_features: FeatureMaps | None = None
    pseudo_labels: PseudoLabels | None = None
    pseudo_labels_hash: str = ""


class RunStreams:
    """The streams of a recipe for one process of `world_size`, which has a share of each batch."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        domains: Domains,
        model: SegmentationModel,
        sources: Sources,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._recipe, self._domains, self._model, self._sources = recipe, domains, model, sources
        self._rank, self._world_size = rank, world_size
        self._source_is_labelled = recipe.data.labelled == "source"

    @property
    def supervised(self) -> FrameDataset:
        """The frames whose labels are learned: the source's, or for a target-only run the target's."""
        return self._domains.source_train if self._source_is_labelled else self._domains.target_train

    def steps(self, *, start: int = 0, stop: int) -> TrainingSteps:
        """The batches of the steps from `start` to `stop`."""
        recipe = self._recipe
        source = self._stream(
            "source", self.supervised, keep_labels=True, feature_maps=self._supervised_features, share_of_batch=True
        )
        target = self._stream(
            "target",
            self._domains.target_train,
            keep_labels=False,
            feature_maps=self._sources.target_features,
            pseudo_labels=self._sources.pseudo_labels,
            share_of_batch=True,
        )
        return TrainingSteps(source=source, target=target if recipe.uses_target else None, start=start, stop=stop)

    def frames_to_score(self, *, on_source: bool) -> DomainStream:
        """Frames one by one, the same in every process, for the Fisher information of modules."""
        dataset = self.supervised if on_source else self._domains.target_train
        return self._stream("source" if on_source else "target", dataset, keep_labels=on_source, share_of_batch=False)

    def for_statistics(self) -> EvaluationBatches:
        """Unaltered frames of the labelled domain, evenly chosen; the same in every process."""
        return EvaluationBatches(
            dataset=self.supervised,
            inputs=self._inputs(of_source=self._source_is_labelled),
            batch_size=self._recipe.evaluation.batch_size,
            feature_maps=self._supervised_features,
            every=-(-len(self.supervised) // MAX_FRAMES),
        )

    def for_validation(self) -> EvaluationBatches:
        """This process's share of the target's validation part."""
        return EvaluationBatches(
            dataset=self._domains.target_val,
            inputs=InputSettings.of(self._model),
            batch_size=self._recipe.evaluation.batch_size,
            feature_maps=self._sources.validation_features,
            rank=self._rank,
            world_size=self._world_size,
        )

    @property
    def _supervised_features(self) -> FeatureMaps | None:
        return self._sources.source_features if self._source_is_labelled else self._sources.target_features

    def _inputs(self, *, of_source: bool) -> InputSettings:
        data = self._recipe.data
        return InputSettings.of(
            self._model, image_size=data.image_size_source if of_source else data.image_size_target_train
        )

    def _stream(
        self,
        domain: Domain,
        dataset: FrameDataset,
        *,
        keep_labels: bool,
        share_of_batch: bool,
        feature_maps: FeatureMaps | None = None,
        pseudo_labels: PseudoLabels | None = None,
    ) -> DomainStream:
        """Altered frames; without `share_of_batch` one at a time, and all of them in every process."""
        data = self._recipe.data
        of_source = domain == "source" and self._source_is_labelled
        return DomainStream(
            dataset=dataset,
            domain=domain,
            inputs=self._inputs(of_source=of_source),
            augment=data.augment_source if of_source else data.augment_target,
            batch_size=self._recipe.optim.batch_size if share_of_batch else 1,
            seed=self._recipe.seed,
            keep_labels=keep_labels,
            feature_maps=feature_maps,
            pseudo_labels=pseudo_labels,
            rank=self._rank if share_of_batch else 0,
            world_size=self._world_size if share_of_batch else 1,
        )
