# SPDX-License-Identifier: Apache-2.0
"""Turns: what the adapter's thread does, which is to learn, to have the gate judge, and to publish or to go back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from xmodal_seg.adaptation.bank_parts import BankParts
from xmodal_seg.adaptation.events import EventLog
from xmodal_seg.adaptation.frames import Bin, ReferredFrame, reference_predictions, referred
from xmodal_seg.adaptation.gate import NOT_FINITE, Judgement
from xmodal_seg.adaptation.intake import Arrival, Intake
from xmodal_seg.adaptation.learner import Learner, StepReport
from xmodal_seg.adaptation.memory import FrameMemory
from xmodal_seg.adaptation.parameters import are_finite
from xmodal_seg.adaptation.publisher import Publisher
from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.adaptation.state import Generation, StateStore
from xmodal_seg.tensor_files import Tensors


class Turns:
    """Memory, learners and judgements of all bins. Not thread-safe.

    `gave_up` becomes True after too many strikes: the owner is to stop serving what was learned.
    """

    def __init__(
        self,
        *,
        parts: Mapping[str, BankParts],
        stores: Mapping[str, StateStore],
        publisher: Publisher,
        settings: AdaptationSettings,
        device: torch.device,
        events: EventLog,
        breathe: Callable[[], None],
    ) -> None:
        self.memory = FrameMemory(settings=settings.memory)
        self.learners: dict[Bin, Learner] = {}
        self.last_step: StepReport | None = None
        self.last_judgement: Judgement | None = None
        self.gave_up = False
        self._parts = parts
        self._stores = stores
        self._publisher = publisher
        self._settings = settings
        self._device = device
        self._events = events
        self._breathe = breathe
        self._untried: dict[Bin, list[Generation]] = {}  # the first is taken up from disk and not judged yet
        self._generator = torch.Generator().manual_seed(settings.seed + 1)

    def apply(self, settings: AdaptationSettings) -> None:
        """Other settings of turns and gates; those of steps, memory and state stay as they were."""
        self._settings = settings
        for parts in self._parts.values():
            parts.gate.apply(settings.gate)

    def forgive(self) -> None:
        """No strikes in any bin."""
        for learner in self.learners.values():
            learner.forgive()

    def take_in(self, arrival: Arrival, intake: Intake) -> None:
        """Let the reference speak about a frame that was set aside and, unless its sensors disagree, remember it."""
        if arrival.ready is not None:
            torch.cuda.current_stream(self._device).wait_event(arrival.ready)
        sample, parts = arrival.sample, self._parts[arrival.sample.bin.bank]
        self._breathe()
        # Copying to the CPU waits for this stream, so that no tensor is given back while it is still being read.
        frame = referred(parts.base, parts.reference, sample).to("cpu")
        said = reference_predictions(frame, ensemble_heads=parts.base.settings.heads.ensemble)
        if intake.confirm(sample.bin, said):
            self.memory.add(frame)

    def turn(self, bin: Bin) -> list[StepReport]:
        """The steps of one turn, with the judgements that fall due; none while there are too few frames."""
        self.gave_up = False
        learner = self._learner(bin)
        while bin in self._untried and self._can_judge(bin):
            self._judge(bin)
        reports: list[StepReport] = []
        while len(reports) < self._settings.steps_per_turn and self.memory.is_ready(bin) and not self.gave_up:
            reports.append(self._step(learner))
            if learner.since_judged >= self._settings.gate.every_steps and self._can_judge(bin):
                self._judge(bin)
            if learner.since_reset >= self._settings.reset_every_steps:
                self.reset(bin, why=f"{learner.since_reset} steps")
        return reports

    def reset(self, bin: Bin, *, why: str) -> None:
        """Learn on from the reference, and offer it."""
        learner = self.learners[bin]
        learner.forgive()
        learner.restart(learner.reference)
        learner.since_reset = 0
        self._untried.pop(bin, None)
        self._publisher.withdraw(bin)
        self._events.add("reset", f"{bin}: back to the reference ({why})")

    def rollback(self, bin: Bin) -> str:
        """Offer the version before the newest one, and learn on from it; ValueError where nothing was published."""
        version = self._publisher.roll_back(bin)
        if bin in self.learners:
            self.learners[bin].restart(self._offered(bin))
        name = "reference" if version is None else version.name
        self._events.add("rolled_back", f"{bin}: {name} is on offer")
        return name

    def save(self, bin: Bin) -> str:
        """Write what is on offer; a sentence about it."""
        version = self._publisher.newest(bin)
        assert version is not None, "there is something to save"
        step = self.last_step
        facts = {"version": version.name, "guidance": None if step is None else step.guidance}
        number = self._stores[bin.bank].save(
            bin, version.values, steps=version.steps, metrics=version.metrics, facts=facts
        )
        self._events.add("saved", f"{version.name} as generation {number} of {bin}")
        return f"{version.name}: generation {number} of {bin}"

    def _step(self, learner: Learner) -> StepReport:
        drawn = self.memory.draw(learner.bin, self._settings.step.num_frames, generator=self._generator)
        report = learner.step([frame.to(self._device) for frame in drawn])
        self.last_step = report
        if not report.accepted:
            text = f"{learner.bin}: loss {report.loss:.3g}, gradient norm {report.gradient_norm:.3g}"
            self._events.add("step_rejected", text)
            if not learner.is_finite():  # no step would ever be accepted again
                self._strike(learner, NOT_FINITE)
        return report

    def _learner(self, bin: Bin) -> Learner:
        """That of the bin; a new one takes up the newest whole generation from disk."""
        if bin in self.learners:
            return self.learners[bin]
        parts = self._parts[bin.bank]

        def guidance(frame: ReferredFrame) -> torch.Tensor:
            return parts.guidance(frame, settings=self._settings)

        learner = Learner(
            base=parts.base,
            parameters=parts.parameters,
            settings=self._settings.step,
            bin=bin,
            guidance=guidance,
            breathe=self._breathe,
        )
        self.learners[bin] = learner
        if bin.bank in self._stores:
            self._restore(learner, self._stores[bin.bank])
        return learner

    def _restore(self, learner: Learner, store: StateStore) -> None:
        generations, notes = store.generations(learner.bin, expected=learner.reference)
        for note in notes:
            self._events.add("state_damaged", note)
        if generations:
            self._take_up(learner, generations)

    def _take_up(self, learner: Learner, generations: list[Generation]) -> None:
        """Learn on from the first; the older ones wait, should the gate refuse it."""
        newest = generations[0]
        learner.restart({name: value.to(self._device) for name, value in newest.values.items()})
        learner.inherited = newest.steps
        self._untried[learner.bin] = generations
        text = f"{learner.bin}: generation {newest.number} ({newest.steps} steps), to be judged before it serves"
        self._events.add("restored", text)

    def _can_judge(self, bin: Bin) -> bool:
        """What came from disk may be judged by packaged frames alone, before the drive has given any."""
        has_labelled = bin in self._untried and self._parts[bin.bank].gate.has_labelled
        return has_labelled or self.memory.num_probes(bin) >= self._settings.memory.min_probes

    def _judge(self, bin: Bin) -> None:
        """Ask the gate about the candidate, and do as it says."""
        learner = self.learners[bin]
        values = learner.candidate
        if self._settings.gate.enabled:
            judgement = self._ask(bin, values)
        else:
            judgement = Judgement(verdict="publish", reasons=(), metrics={}) if are_finite(values) else NOT_FINITE
        self.last_judgement = judgement
        learner.since_judged = 0
        restored = self._untried.pop(bin, [])
        if judgement.verdict == "publish":
            self._publish(learner, values, judgement)
        elif judgement.verdict == "hold":
            self._events.add("held", f"{bin}: {'; '.join(judgement.reasons)}")
        elif len(restored) > 1:
            self._events.add("rejected", f"{bin}: generation {restored[0].number}: {'; '.join(judgement.reasons)}")
            self._take_up(learner, restored[1:])
        else:
            self._strike(learner, judgement)

    def _ask(self, bin: Bin, values: Tensors) -> Judgement:
        parts = self._parts[bin.bank]
        return parts.gate.judge(
            values,
            reference=parts.reference,
            probes=self.memory.probes(bin),
            other_probes=self.memory.other_probes(bin),
        )

    def _publish(self, learner: Learner, values: Tensors, judgement: Judgement) -> None:
        bin, steps = learner.bin, learner.inherited + learner.accepted
        version = self._publisher.offer(bin, values, metrics=judgement.metrics, steps=steps)
        self._events.add("published", f"{version.name} after {version.steps} steps")
        every = self._settings.state.save_every_publications
        if self._stores and every and version.number % every == 0:
            try:
                self.save(bin)
            except OSError as error:  # a full disk must not end the learning
                self._events.add("state_failed", f"{bin}: {error}")

    def _strike(self, learner: Learner, judgement: Judgement) -> None:
        """Back to what is on offer, or to the reference where that fails by now as well, at half the rate."""
        bin = learner.bin
        self._events.add("rejected", f"{bin}: {'; '.join(judgement.reasons)}")
        if self._publisher.newest(bin) is not None and self._ask(bin, self._offered(bin)).verdict == "reject":
            self._publisher.withdraw(bin)
            self._events.add("rolled_back", f"{bin}: what was served fails as well, the reference is on offer")
        learner.strike(self._offered(bin))
        if learner.strikes >= self._settings.max_strikes:
            for each in self.learners:
                self._publisher.withdraw(each)
            learner.forgive()
            learner.restart(learner.reference)
            self.gave_up = True
            self._events.add(
                "gave_up", f"{bin}: {self._settings.max_strikes} strikes, the reference serves from now on"
            )

    def _offered(self, bin: Bin) -> Tensors:
        return {name: value.to(self._device) for name, value in self._publisher.values(bin).items()}
