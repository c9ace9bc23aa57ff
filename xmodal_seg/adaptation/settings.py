# SPDX-License-Identifier: Apache-2.0
"""Settings of continued adaptation; the defaults are cautious, and what is known to be dangerous is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from xmodal_seg.config import Settings

# YAML, and with it `ros2 param set` and `--ros-args -p`, reads on and off without quotes as true and false.
_WORDS = BeforeValidator(lambda value: {True: "on", False: "off"}[value] if isinstance(value, bool) else value)
Mode = Literal["off", "select", "shadow", "on"]
WrittenMode = Annotated[Mode, _WORDS]
Scope = Literal["point_norms", "fusion_norms"]
DYNAMIC: dict[str, Any] = {"dynamic": True}  # a node may change it while it runs
LIBRARY_ONLY: dict[str, Any] = {"parameter": False}  # no node has what it is about

# Below this lambda the 3D net teaches the fused head and the fused head teaches the 3D net: without an anchor the two
# follow each other anywhere.
CLOSED_LOOP_BELOW = 0.25


class StepSettings(Settings):
    """One optimiser step: what it changes, what it minimises."""

    adapted: tuple[Scope, ...] = Field(
        default=("point_norms", "fusion_norms"), description="scale and shift of the 3D net's and the fusion's norms"
    )
    learning_rate: float = Field(default=1e-4, gt=0, le=1e-3, description="of Adam; halved by each strike")
    num_frames: int = Field(default=4, ge=1, le=64, description="frames of one step")
    cross_modal_weight: float = Field(default=0.1, ge=0, description="of L_align + L_guide(lambda)")
    reference_weight: float = Field(default=1.0, ge=0, description="of KL(reference || adapted) on the main heads")
    pseudo_label_weight: float = Field(default=0.1, ge=0, description="of cross-entropy with filtered pseudo-labels")
    pull_back: float = Field(default=0.01, ge=0, lt=1, description="share of the way back to the reference, every step")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="of the candidate, an average over steps")
    max_gradient_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    spike_factor: float = Field(
        default=20.0, gt=1, description="a gradient this many times the running median is dropped with its step"
    )
    min_guidance: float = Field(default=0.0, ge=0, le=1, description="lambda is never taken lower")
    point_guidance_span: float = Field(
        default=0.0, ge=0, le=0.5, description="how far lambda of a point may leave its camera's; 0: no such guidance"
    )
    norm_statistics: Literal["frozen", "moving"] = Field(
        default="frozen", description="moving: batch-norm statistics follow the stream (an experiment only)"
    )


class MemorySettings(Settings):
    """Which frames are kept to adapt on, for each bank and condition."""

    capacity: int = Field(default=32, ge=1, le=4096, description="frames to adapt on")
    probe_capacity: int = Field(default=32, ge=1, le=4096, description="frames held out for the gate")
    probe_every: int = Field(default=4, ge=2, description="each n-th frame kept is held out")
    min_frames: int = Field(default=8, ge=1, description="no step with fewer frames to adapt on")
    min_probes: int = Field(default=4, ge=1, description="nothing is published with fewer held-out frames")
    points_per_frame: int = Field(default=4096, ge=64, description="points the losses see; a quarter may be unseen")
    min_gap_s: float = Field(default=0.5, ge=0, description="between two frames that are kept")


class GateSettings(Settings):
    """What a candidate must show on held-out frames, against the frozen reference, before it is served."""

    enabled: bool = Field(default=True, description="false: everything finite is served (an experiment only)")
    every_steps: int = Field(
        default=20, json_schema_extra=DYNAMIC, ge=1, description="accepted steps between two judgements"
    )
    sure_probability: float = Field(
        default=0.9, json_schema_extra=DYNAMIC, gt=0, lt=1, description="the reference is sure of a point above this"
    )
    publish_sure_agreement: float = Field(
        default=0.99, json_schema_extra=DYNAMIC, ge=0, le=1, description="least agreement where it is sure"
    )
    reject_sure_agreement: float = Field(
        default=0.98, json_schema_extra=DYNAMIC, ge=0, le=1, description="below: a strike"
    )
    min_agreement: float = Field(
        default=0.95, json_schema_extra=DYNAMIC, ge=0, le=1, description="least agreement on all points"
    )
    max_marginal_kl: float = Field(
        default=0.02, json_schema_extra=DYNAMIC, ge=0, description="KL of the shares of the classes"
    )
    max_class_loss: float = Field(
        default=0.5, json_schema_extra=DYNAMIC, gt=0, le=1, description="share that a class may lose"
    )
    watched_share: float = Field(
        default=0.01, json_schema_extra=DYNAMIC, ge=0, lt=1, description="rarer classes are not watched"
    )
    max_labelled_loss: float = Field(
        default=0.5, json_schema_extra=DYNAMIC, ge=0, description="mIoU points lost on the packaged labelled frames"
    )
    max_distance: float = Field(
        default=0.5, json_schema_extra=DYNAMIC, gt=0, description="largest change of a single number"
    )

    @model_validator(mode="after")
    def _check(self) -> GateSettings:
        if self.reject_sure_agreement > self.publish_sure_agreement:
            raise ValueError(
                f"reject_sure_agreement ({self.reject_sure_agreement}) must not be above publish_sure_agreement "
                f"({self.publish_sure_agreement})"
            )
        return self


class GuardSettings(Settings):
    """When the stream is not to be learned from."""

    min_confidence: float = Field(
        default=0.5, json_schema_extra=DYNAMIC, ge=0, le=1, description="of the lighting estimate of a camera"
    )
    max_desync_s: float = Field(
        default=0.1,
        json_schema_extra=DYNAMIC,
        ge=0,
        description="largest difference of an image's and the sweep's stamp",
    )
    max_gap_s: float = Field(
        default=10.0, json_schema_extra=DYNAMIC, gt=0, description="a longer silence is a jump of the clock"
    )
    settle_frames: int = Field(
        default=10, json_schema_extra=DYNAMIC, ge=0, description="good frames before learning goes on after any trouble"
    )
    deadline_ms: float = Field(
        default=0.0,
        json_schema_extra=DYNAMIC,
        ge=0,
        description="p95 of the time in which a frame is labelled and published, what it waited before not counted; "
        "above this learning pauses; 0: never",
    )
    min_movement_m: float = Field(
        default=1.0,
        json_schema_extra=LIBRARY_ONLY,
        ge=0,
        description="where odometry is given, which the nodes do not take: travelled since the last frame kept",
    )
    min_range_change: float = Field(
        default=0.02,
        json_schema_extra=DYNAMIC,
        ge=0,
        description="movement since the last frame kept: median relative change of the sweep's ranges",
    )
    parked_after_s: float = Field(
        default=5.0, json_schema_extra=DYNAMIC, ge=0, description="without movement since the last frame that was kept"
    )
    max_agreement_drop: float = Field(
        default=0.2,
        json_schema_extra=DYNAMIC,
        gt=0,
        le=1,
        description="2D and 3D heads agreeing this much less than at the best level so far: a sensor fault",
    )
    min_usual_frames: int = Field(
        default=8, json_schema_extra=DYNAMIC, ge=1, description="frames before what is usual is known"
    )


class StateSettings(Settings):
    """What survives a restart."""

    keep: int = Field(default=5, ge=1, le=1000, description="generations kept, besides the best")
    save_every_publications: int = Field(default=1, ge=0, description="0: only when asked")


class AdaptationSettings(Settings):
    """Everything that continued adaptation needs to know."""

    mode: WrittenMode = Field(
        default="off",
        json_schema_extra=DYNAMIC,
        description="off; select: banks follow the light; shadow: adapts and reports, serves nothing; on: serves",
    )
    seed: int = Field(default=0, ge=0, description="of the points and frames that are drawn")
    period_frames: int = Field(default=10, ge=1, description="frames between two turns of the adapter")
    steps_per_turn: int = Field(default=1, ge=1, le=1000, description="optimiser steps of a turn")
    min_interval_s: float = Field(default=1.0, ge=0, description="between two turns of the adapter's thread")
    num_threads: int = Field(default=1, ge=1, le=256, description="torch threads of the adapter on a CPU")
    reset_every_steps: int = Field(default=1000, ge=1, description="accepted steps, then back to the reference")
    max_strikes: int = Field(default=3, ge=1, description="then every bank is back at the reference and serving ends")
    experiment: bool = Field(default=False, description="allow what is refused as dangerous: for ablations only")
    step: StepSettings = StepSettings()
    memory: MemorySettings = MemorySettings()
    gate: GateSettings = GateSettings()
    guards: GuardSettings = GuardSettings()
    state: StateSettings = StateSettings()

    @model_validator(mode="after")
    def _refuse_what_collapses(self) -> AdaptationSettings:
        if self.experiment:
            return self
        step = self.step
        if step.min_guidance < CLOSED_LOOP_BELOW and step.reference_weight < 1:
            raise ValueError(
                f"step.reference_weight: lambda may fall below {CLOSED_LOOP_BELOW} (step.min_guidance is "
                f"{step.min_guidance}), where adaptation collapses without a reference term of at least 1, "
                f"got {step.reference_weight}"
            )
        if step.norm_statistics != "frozen":
            raise ValueError("step.norm_statistics: moving statistics collapse on a driving stream; use frozen")
        if not self.gate.enabled:
            raise ValueError("gate.enabled: nothing is served unjudged; false needs experiment: true")
        return self
