# SPDX-License-Identifier: Apache-2.0
"""OnlineAdapter: guarded continued adaptation of a served model on the stream that it serves."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from xmodal_seg.adaptation.archive import Archive
from xmodal_seg.adaptation.bank_parts import BankParts, bank_parts
from xmodal_seg.adaptation.events import AdaptationStatus, EventLog
from xmodal_seg.adaptation.guards import Reason
from xmodal_seg.adaptation.intake import Intake
from xmodal_seg.adaptation.learner import StepReport
from xmodal_seg.adaptation.light import CameraLight
from xmodal_seg.adaptation.parameters import distance
from xmodal_seg.adaptation.publisher import Publisher
from xmodal_seg.adaptation.settings import AdaptationSettings, Mode
from xmodal_seg.adaptation.turns import Turns
from xmodal_seg.inference import LabelledFrame, Segmenter
from xmodal_seg.structures import Frame

_LEARNING: tuple[Mode, ...] = ("shadow", "on")


class _Breath:
    """Asked before each forward pass; an object of its own, so that what asks does not hold the adapter.

    With such a cycle only the garbage collector would free the models, and a GPU's memory with them, some time later.
    """

    def __init__(self) -> None:
        self.wait: Callable[[], None] | None = None

    def __call__(self) -> None:
        if self.wait is not None:
            self.wait()


class OnlineAdapter:
    """Learns from frames that were served, and offers what passes the gate.

    For every frame, the thread of inference calls `serve`, `Segmenter.predict(frame, keep=adapter.is_learning)` and
    `observe`; these are cheap. `step_if_due` does the work: in the adapter's own thread (`AdapterThread`) or, for a
    result that is the same every time, right after `observe` (`label_and_adapt`), since turns are counted in frames.
    The other methods may be called from any thread, and none of them waits for a turn to end: what is taken back is
    taken back at once, and the next turn goes on from there.

    Args:
        segmenter: holds the deployed weights in every bank; its models are copied, a frozen image backbone is shared.
        settings: of everything.
        labelled: packaged frames with ground truth for the gate; may be empty, then held-out frames alone judge.
        state_folder: what was learned is kept here and taken up again at start; None: nowhere.

    Raises ValueError for a model that cannot adapt this way, and for frames without labels.
    """

    def __init__(
        self,
        *,
        segmenter: Segmenter,
        settings: AdaptationSettings,
        labelled: Sequence[Frame] = (),
        state_folder: Path | None = None,
    ) -> None:
        self.events = EventLog()
        self._settings = settings
        self._breathe = _Breath()
        self._parts = _parts_of_banks(segmenter, settings=settings, labelled=labelled, breathe=self._breathe)
        self._publisher = Publisher(
            references={bank: parts.reference for bank, parts in self._parts.items()},
            base_version=segmenter.model_version,
        )
        self._archive = Archive(
            folder=state_folder,
            parents={bank: parts.parent for bank, parts in self._parts.items()},
            keep=settings.state.keep,
            publisher=self._publisher,
        )
        self._intake = Intake(settings=settings, device=segmenter.device, events=self.events)
        self._turns = Turns(
            parts=self._parts,
            publisher=self._publisher,
            archive=self._archive,
            settings=settings,
            device=segmenter.device,
            events=self.events,
            breathe=self._breathe,
        )
        self._lock = threading.Lock()  # of the turns; held for a whole one
        self._forgives = False  # strikes, at the beginning of the next turn
        self._mode: Mode = settings.mode
        self._publisher.set_serving(settings.mode == "on")

    @property
    def before_forward(self) -> Callable[[], None] | None:
        """Called before each forward pass; may wait while inference needs the processor."""
        return self._breathe.wait

    @before_forward.setter
    def before_forward(self, wait: Callable[[], None] | None) -> None:
        self._breathe.wait = wait

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def is_learning(self) -> bool:
        """Whether frames are wanted, with what the model saw of them."""
        return self._mode in _LEARNING

    @property
    def num_adapted(self) -> int:
        """How many numbers adapt, in each bank."""
        return next(iter(self._parts.values())).parameters.count

    def serve(self, segmenter: Segmenter) -> str | None:
        """Before a frame, in the thread of inference: install what is on offer; its name if something changed."""
        bin = self._intake.bin_of(segmenter.bank)
        return None if bin is None else self._publisher.serve(segmenter, bin)

    def observe(
        self,
        frame: Frame,
        labelled: LabelledFrame,
        *,
        lights: Mapping[str, CameraLight],
        latency_ms: float | None = None,
        moved_m: float | None = None,
    ) -> tuple[Reason, ...]:
        """After a frame, in the thread of inference: look at it, and set it aside where it is worth learning from.

        Args:
            frame: the input.
            labelled: the result, with what the model saw.
            lights: by the camera's name.
            latency_ms: time that inference took for the frame, without what it waited before; None: not measured,
                nothing is concluded from it.
            moved_m: driven since the last frame, by odometry; None: movement is judged by the sweeps themselves.

        Returns why learning pauses; empty where it does not, and where it is off.
        """
        if not self.is_learning:
            return ()
        return self._intake.observe(frame, labelled, lights=lights, latency_ms=latency_ms, moved_m=moved_m)

    def make_packaged_frame_ready(self) -> bool:
        """One of the bank in use, or else of another, for its gate; False where none is left, or none is wanted.

        For the thread of `step_if_due`, between its calls; a judgement that comes before makes the rest of its bank's.
        """
        with self._lock:
            settings, bin = self._settings, self._intake.bin
            if not self.is_learning or not (settings.gate.enabled or settings.step.point_guidance_span > 0):
                return False
            banks = sorted(self._parts, key=lambda bank: bin is None or bank != bin.bank)
            return any(self._parts[bank].packaged.make_one_ready() for bank in banks)

    def step_if_due(self) -> list[StepReport]:
        """Take in what was set aside and, when a turn is due and nothing speaks against it, learn; the steps taken."""
        with self._lock:
            self._take_up_changes()
            # Not until none waits: where frames come faster than they are taken in, no step would ever be made.
            for arrival in self._intake.take():
                self._turns.take_in(arrival, self._intake)
            bin = self._intake.begin_turn()
            if bin is None or not self.is_learning:
                return []
            reports = self._turns.turn(bin)
            if self._turns.gave_up and self._mode == "on":
                self._set_mode("shadow")
            return reports

    def enable(self, mode: Mode) -> None:
        """Change the mode without waiting; what serves follows before the next frame.

        Strikes are forgiven, and how far the sensors agree from now on is what is usual.
        """
        self._forgives = True
        self._intake.forget_usual()
        self._set_mode(mode)

    def apply(self, settings: AdaptationSettings) -> None:
        """Take over thresholds without waiting: those of the guards at once, those of the gate with the next turn.

        The mode is left as it is (`enable`), and so is what is fixed at the start: steps, memory, state.
        """
        self._settings = settings
        self._intake.apply(settings)

    def reset(self) -> None:
        """Back to the reference in every bank, after a restart too; the frames in memory stay.

        Raises ValueError where the disk refuses: what was saved may then come back with a restart.
        """
        self._publisher.reset()
        self.events.add("reset", "every bank: back to the reference (asked for)")
        try:
            self._archive.remove_all()
        except (OSError, ValueError) as error:
            raise ValueError(f"reset: the reference is on offer, but what was saved is not removed: {error}") from error

    def rollback(self) -> str:
        """Serve the version before the newest one of the present bin, and learn on from it; its name.

        What was taken back and saved is removed.

        Raises ValueError where nothing was published, and where the disk refuses: a restart may then bring back what
        was taken back.
        """
        bin = self._intake.bin
        if bin is None:
            raise ValueError("rollback: no frame with a known light has come yet")
        version = self._publisher.roll_back(bin)
        name = "reference" if version is None else version.name
        self.events.add("rolled_back", f"{bin}: {name} is on offer")
        try:
            self._archive.remove_newer(bin, version)
        except (OSError, ValueError) as error:
            raise ValueError(f"rollback: {name} is on offer, but what was saved is not removed: {error}") from error
        return name

    def save(self) -> list[str]:
        """Write what is on offer in every bin; a sentence for each.

        Raises ValueError without a folder for states and where nothing was published, OSError where the disk refuses.
        """
        if not self._archive.is_kept:
            raise ValueError("save: no folder for states was given")
        sentences = [self._turns.save(version) for version in self._publisher.offered()]
        written = [sentence for sentence in sentences if sentence is not None]
        if not written:
            raise ValueError("save: nothing was published yet")
        return written

    def fail(self, error: Exception) -> None:
        """Something unforeseen happened in the adapter: serve the reference and learn no more."""
        self.events.add("failed", f"{type(error).__name__}: {error}")
        self._set_mode("select")

    def status(self) -> AdaptationStatus:
        """How it stands; never waits for a turn to end."""
        bin, turns = self._intake.bin, self._turns
        step, judgement = turns.last_step, turns.last_judgement
        metrics = {} if judgement is None else judgement.metrics
        learners = list(turns.learners.values())
        learner = None if bin is None else turns.learners.get(bin)
        version = None if bin is None else self._publisher.newest(bin)
        return AdaptationStatus(
            mode=self._mode,
            bin="" if bin is None else str(bin),
            paused=self._intake.paused,
            frames=self.events.frames,
            steps=sum(each.accepted for each in learners),
            rejected_steps=sum(each.rejected for each in learners),
            publications=self._publisher.publications,
            version="reference" if version is None else version.name,
            strikes=0 if learner is None else learner.strikes,
            learning_rate=self._settings.step.learning_rate if learner is None else learner.learning_rate,
            guidance=math.nan if step is None else step.guidance,
            loss=math.nan if step is None else step.loss,
            sure_agreement=metrics.get("sure_agreement", math.nan),
            agreement=metrics.get("agreement", math.nan),
            marginal_kl=metrics.get("marginal_kl", math.nan),
            labelled_loss=metrics.get("labelled_loss", math.nan),
            distance=0.0 if version is None else distance(version.values, self._publisher.reference(version.bin)),
            num_frames=0 if bin is None else turns.memory.num_frames(bin),
            num_probes=0 if bin is None else turns.memory.num_probes(bin),
            dropped=self._intake.dropped,
            disagreement=self._intake.disagreement,
            disk=self._archive.trouble,
        )

    def _take_up_changes(self) -> None:
        self._turns.apply(self._settings)
        self._turns.take_up_withdrawals()
        if self._forgives:
            self._forgives = False
            self._turns.forgive()

    def _set_mode(self, mode: Mode) -> None:
        self._mode = mode
        self._publisher.set_serving(mode == "on")
        self.events.add("mode", mode)


def _parts_of_banks(
    segmenter: Segmenter,
    *,
    settings: AdaptationSettings,
    labelled: Sequence[Frame],
    breathe: Callable[[], None],
) -> dict[str, BankParts]:
    return {
        bank: bank_parts(segmenter, bank, settings=settings, labelled=labelled, breathe=breathe)
        for bank in segmenter.banks
    }
