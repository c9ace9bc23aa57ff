# SPDX-License-Identifier: Apache-2.0
"""Turns: what the adapter's thread does, which is to learn, to have the gate judge, and to publish or to go back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from xmodal_seg.adaptation.archive import Archive
from xmodal_seg.adaptation.bank_parts import BankParts
from xmodal_seg.adaptation.events import EventLog
from xmodal_seg.adaptation.frames import Bin, reference_predictions, referred
from xmodal_seg.adaptation.gate import NOT_FINITE, Judgement
from xmodal_seg.adaptation.intake import Arrival, Intake
from xmodal_seg.adaptation.learner import Learner, StepReport
from xmodal_seg.adaptation.memory import FrameMemory
from xmodal_seg.adaptation.parameters import are_finite
from xmodal_seg.adaptation.publisher import Publisher, Term, Version
from xmodal_seg.adaptation.settings import AdaptationSettings
from xmodal_seg.adaptation.state import Generation
from xmodal_seg.tensor_files import Tensors


class Turns:
    """Memory, learners and judgements of all bins. Not thread-safe, but for `save`.

    Others may take versions back at the publisher while a turn lasts: it ends with the step that it is in, offers
    nothing more, and `take_up_withdrawals` before the next one lets its learner follow.

    `gave_up` becomes True after too many strikes: the owner is to stop serving what was learned.
    """

    def __init__(
        self,
        *,
        parts: Mapping[str, BankParts],
        publisher: Publisher,
        archive: Archive,
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
        self._publisher = publisher
        self._archive = archive
        self._settings = settings
        self._device = device
        self._events = events
        self._breathe = breathe
        self._terms: dict[Bin, Term] = {}  # in which each learner's values belong
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

    def take_up_withdrawals(self) -> None:
        """Let every learner go on from what is on offer, where others have taken something back."""
        for bin, learner in self.learners.items():
            term, former = self._publisher.term(bin), self._terms[bin]
            if term.resets != former.resets:
                self._back_to_reference(learner)
            elif term != former:
                self._back_to_offered(learner)
            self._terms[bin] = term

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
        while bin in self._untried and self._can_judge(bin) and not self._is_over(bin):
            self._judge(bin)
        reports: list[StepReport] = []
        while len(reports) < self._settings.steps_per_turn and self.memory.is_ready(bin):
            if self.gave_up or self._is_over(bin):
                break
            reports.append(self._step(learner))
            if learner.since_judged >= self._settings.gate.every_steps and self._can_judge(bin):
                self._judge(bin)
            if learner.since_reset >= self._settings.reset_every_steps:
                self.reset(bin, why=f"{learner.since_reset} steps")
        return reports

    def reset(self, bin: Bin, *, why: str) -> None:
        """Learn on from the reference, and offer it."""
        self._back_to_reference(self.learners[bin])
        self._withdraw(bin)
        self._events.add("reset", f"{bin}: back to the reference ({why})")

    def save(self, version: Version) -> str | None:
        """Write a version; a sentence about it, None where it is on offer no more. May be called from any thread.

        Raises as `Archive.save`.
        """
        step = self.last_step
        number = self._archive.save(version, facts={"guidance": None if step is None else step.guidance})
        if number is None:
            return None
        self._events.add("saved", f"{version.name} as generation {number} of {version.bin}")
        return f"{version.name}: generation {number} of {version.bin}"

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
        self._terms[bin] = self._publisher.term(bin)  # before the disk is read
        learner = Learner(
            base=parts.base,
            parameters=parts.parameters,
            settings=self._settings.step,
            bin=bin,
            guidance=partial(parts.guidance, settings=self._settings),
            breathe=self._breathe,
        )
        self.learners[bin] = learner
        self._restore(learner)
        return learner

    def _restore(self, learner: Learner) -> None:
        generations, notes = self._archive.generations(learner.bin, expected=learner.reference)
        for note in notes:
            self._events.add("state_damaged", note)
        if generations:
            self._take_up(learner, generations)

    def _take_up(self, learner: Learner, generations: list[Generation]) -> None:
        """Learn on from the first; the older ones wait, should the gate refuse it."""
        newest = generations[0]
        learner.restart(self._on_device(newest.values), steps=newest.steps)
        learner.since_reset = newest.steps  # else a robot that is started every morning would never be reset
        self._untried[learner.bin] = generations
        text = f"{learner.bin}: generation {newest.number} ({newest.steps} steps), to be judged before it serves"
        self._events.add("restored", text)

    def _is_over(self, bin: Bin) -> bool:
        """Whether somebody has taken back what the present turn goes on from."""
        return self._publisher.term(bin) != self._terms[bin]

    def _can_judge(self, bin: Bin) -> bool:
        """What came from disk may be judged by packaged frames alone, before the drive has given any."""
        has_labelled = bin in self._untried and self._parts[bin.bank].gate.has_labelled
        return has_labelled or self._has_probes(bin)

    def _has_probes(self, bin: Bin) -> bool:
        return self.memory.num_probes(bin) >= self._settings.memory.min_probes

    def _judge(self, bin: Bin) -> None:
        """Ask the gate about the candidate, and do as it says."""
        learner = self.learners[bin]
        values = learner.candidate
        if self._settings.gate.enabled:
            judgement = self._ask(bin, values)
        else:
            judgement = Judgement(verdict="publish", reasons=(), metrics={}) if are_finite(values) else NOT_FINITE
        if self._is_over(bin):
            return
        self.last_judgement = judgement
        learner.since_judged = 0
        restored = self._untried.pop(bin, [])
        if judgement.verdict == "publish":
            is_unchanged = bool(restored) and learner.steps_behind == restored[0].steps
            self._publish(learner, values, judgement, generation=restored[0] if is_unchanged else None)
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
            compares_labelled=not self._has_probes(bin),
        )

    def _publish(
        self, learner: Learner, values: Tensors, judgement: Judgement, *, generation: Generation | None
    ) -> None:
        """Offer the values, and keep them on disk; `generation` is what holds them there already."""
        bin = learner.bin
        version = self._publisher.offer(
            bin,
            values,
            metrics=judgement.metrics,
            steps=learner.steps_behind,
            term=self._terms[bin],
            number=None if generation is None else generation.version_number,
        )
        if version is None:
            return
        self._events.add("published", f"{version.name} after {version.steps} steps")
        every = self._settings.state.save_every_publications
        if generation is not None:
            self._archive.restored(version, generation)
        elif self._archive.is_kept and every and version.number % every == 0:
            try:
                self.save(version)
            except (OSError, ValueError) as error:  # a full or damaged disk must not end the learning
                self._events.add("state_failed", f"{bin}: {error}")

    def _strike(self, learner: Learner, judgement: Judgement) -> None:
        """Back to what is on offer, or to the reference where that fails by now as well, at half the rate."""
        bin = learner.bin
        self._events.add("rejected", f"{bin}: {'; '.join(judgement.reasons)}")
        offered = self._publisher.newest(bin)
        if offered is not None and self._ask(bin, self._on_device(offered.values)).verdict == "reject":
            self._withdraw(bin)
            self._events.add("rolled_back", f"{bin}: what was served fails as well, the reference is on offer")
        values, steps = self._offered(learner)
        learner.strike(values, steps=steps)
        if learner.strikes >= self._settings.max_strikes:
            self._give_up(bin)

    def _give_up(self, bin: Bin) -> None:
        """Trust nothing that was learned in any bin: the reference is on offer, in learners, and after a restart."""
        for learner in self.learners.values():
            self._back_to_reference(learner)
            self._publisher.withdraw(learner.bin)
        self._take_off_disk(self._archive.remove_all, of="every bank")
        self.gave_up = True
        text = f"{bin}: {self._settings.max_strikes} strikes, from now on the reference serves in every bank"
        self._events.add("gave_up", text)

    def _back_to_reference(self, learner: Learner) -> None:
        learner.forgive()
        learner.restart(learner.reference)
        learner.since_reset = 0
        self._untried.pop(learner.bin, None)

    def _back_to_offered(self, learner: Learner) -> None:
        values, steps = self._offered(learner)
        learner.restart(values, steps=steps)

    def _withdraw(self, bin: Bin) -> None:
        """Offer the reference in this bin, after a restart too."""
        self._publisher.withdraw(bin)
        self._take_off_disk(lambda: self._archive.remove([bin]), of=str(bin))

    def _take_off_disk(self, remove: Callable[[], None], *, of: str) -> None:
        try:
            remove()
        except (OSError, ValueError) as error:
            self._events.add("state_failed", f"{of}: {error}")

    def _offered(self, learner: Learner) -> tuple[Tensors, int]:
        """What is on offer in the learner's bin, and the steps behind it."""
        version = self._publisher.newest(learner.bin)
        return (learner.reference, 0) if version is None else (self._on_device(version.values), version.steps)

    def _on_device(self, values: Tensors) -> Tensors:
        return {name: value.to(self._device) for name, value in values.items()}
