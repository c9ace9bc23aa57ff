# SPDX-License-Identifier: Apache-2.0
"""The adapter as a whole: what it serves in each mode, what each guard prevents, and that it is the same every time."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_drive import DARK, HELD_OUT, Drive
from adaptation_parts import (
    CPU,
    DAY,
    NIGHT,
    SETTINGS,
    VERSION,
    Light,
    make_segmenter,
    make_settings,
    score,
    stream_frame,
)
from helpers import full_disk

from xmodal_seg.adaptation.adapter import OnlineAdapter
from xmodal_seg.adaptation.driving import AdapterThread
from xmodal_seg.checkpoint import bank_state
from xmodal_seg.config import HeadSettings, ImageBackboneSettings
from xmodal_seg.inference import Segmenter
from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.models.segmenter import SegmentationModel

DARK_LABELLED = [stream_frame(7000 + number, seed=2, brightness=0.5) for number in range(6)]
# The guards of the method removed: what is left is the paper's loss, source-free.
BARE = {"reference_weight": 0.0, "pseudo_label_weight": 0.0, "pull_back": 0.0, "cross_modal_weight": 1.0}


def test_on_learns_judges_publishes_and_serves() -> None:
    drive = Drive()
    drive.go(24)
    status = drive.adapter.status()

    assert status.mode == "on"
    assert status.steps >= 15
    assert status.publications == len(drive.events("published")) >= 3
    assert drive.versions[0] == VERSION
    assert drive.versions[-1].startswith(f"{VERSION}+default-day.")
    assert 0 < status.distance < 0.05
    assert status.sure_agreement > 0.99
    assert status.guidance == pytest.approx(0.8)
    assert "steps" in status.values()
    assert drive.adapter.num_adapted == 2 * (24 + 8 + 9 + 9)


@pytest.mark.parametrize("mode", ["off", "select", "shadow"])
def test_other_modes_serve_the_deployed_weights(mode: str) -> None:
    drive = Drive(mode=mode)
    drive.go(20)
    assert drive.state() == drive.deployed
    assert set(drive.versions) == {VERSION}
    assert (drive.adapter.status().publications > 0) == (mode == "shadow")


def test_statistics_of_the_served_model_stay_bit_by_bit() -> None:
    drive = Drive()
    model = drive.segmenter.model_of("default")
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    drive.go(20)
    assert drive.state() != drive.deployed
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


def test_the_same_drive_gives_the_same_weights() -> None:
    drives = [Drive(), Drive(), Drive(seed=1)]
    for drive in drives:
        drive.go(16)
    assert drives[0].state() == drives[1].state() != drives[2].state()
    assert drives[0].versions == drives[1].versions


@pytest.mark.slow
def test_the_bare_loss_collapses_at_night_and_the_guards_prevent_it() -> None:
    """Same stream, same number of steps, lambda = 0 as the estimator gives it in the dark.

    The gate lets half a point go on the packaged frames; other frames scatter about that. No number of strikes ends the
    guarded drive, so that both take as many steps.
    """
    quick = {"num_frames": 1, "learning_rate": 1e-3, "ema_decay": 0.9}
    bare = Drive(experiment=True, steps_per_turn=14, gate={"enabled": False}, step={**quick, **BARE})
    guarded = Drive(steps_per_turn=14, step={**quick, "learning_rate": 1e-4}, labelled=DARK_LABELLED, max_strikes=99)
    shipped = score(bare.segmenter, DARK)
    for drive in (bare, guarded):
        drive.go(35, lights=NIGHT, brightness=0.5)
    assert bare.adapter.status().steps == guarded.adapter.status().steps > 400
    assert guarded.adapter.status().publications > 10
    assert bare.served(DARK) < shipped - 10
    assert guarded.served(DARK) > shipped - 1


@pytest.mark.slow
def test_the_gate_alone_keeps_a_collapse_from_being_served() -> None:
    """The bare loss behind the gate, with packaged frames: strikes are counted, and the adapter gives up serving."""
    step = {**BARE, "num_frames": 1, "learning_rate": 1e-3, "ema_decay": 0.9}
    drive = Drive(experiment=True, steps_per_turn=14, step=step, labelled=DARK_LABELLED, max_strikes=2)
    shipped = score(drive.segmenter, DARK)
    drive.go(50, lights=NIGHT, brightness=0.5)
    assert len(drive.events("rejected")) >= 2
    assert drive.events("gave_up")
    assert drive.adapter.mode == "shadow"
    assert drive.served(DARK) == shipped
    assert drive.state() == drive.deployed


def test_a_strike_halves_the_rate_and_goes_back() -> None:
    drive = Drive(gate={"max_distance": 1e-9}, max_strikes=99)
    drive.go(16)
    status = drive.adapter.status()
    assert status.strikes >= 2
    assert status.learning_rate == 1e-4 / 2**status.strikes
    assert status.publications == 0
    assert drive.state() == drive.deployed


def test_weights_that_become_no_numbers_are_never_served() -> None:
    drive = Drive()
    drive.go(12)
    drive.adapter.serve(drive.segmenter)
    served = drive.state()
    (learner,) = drive.adapter._turns.learners.values()
    poisoned = {name: torch.full_like(tensor, float("nan")) for name, tensor in learner.reference.items()}
    learner.restart(poisoned)
    drive.go(1)
    assert drive.adapter.status().rejected_steps == 1
    assert drive.events("rejected")[-1].text.endswith("a weight is not a number")
    assert learner.is_finite()  # it goes on from what is served
    learner.since_judged = 99
    learner._average = {name: tensor.clone() for name, tensor in poisoned.items()}
    drive.adapter._turns._judge(learner.bin)
    assert drive.events("rejected")[-1].text.endswith("a weight is not a number")
    drive.adapter.serve(drive.segmenter)
    assert drive.state() == served
    drive.go(8)
    assert all(torch.isfinite(t).all() for t in bank_state(drive.segmenter.model_of("default")).values())
    assert drive.adapter.status().steps > 0


def test_the_learner_starts_over_from_time_to_time() -> None:
    drive = Drive(reset_every_steps=12)
    drive.go(16)
    assert drive.events("reset")[0].text.startswith("default-day: back to the reference (12 steps)")
    assert drive.versions[-1] == VERSION or drive.versions[-1].startswith(f"{VERSION}+")
    assert VERSION in drive.versions[drive.events("reset")[0].frame :]


def test_dropped_frames_change_nothing_but_the_count() -> None:
    drive = Drive()
    for number in range(40):
        if number % 3:
            drive.number = number
            drive.go(1)
    assert drive.adapter.status().publications > 1
    assert not drive.events("paused")


def test_missed_deadlines_pause() -> None:
    drive = Drive(guards={"deadline_ms": 50.0})
    frame = stream_frame(0)
    labelled = drive.segmenter.predict(frame, keep=True)
    assert drive.adapter.observe(frame, labelled, lights=DAY, latency_ms=80.0) == ("missed_deadlines",)


def test_each_condition_has_its_own_learner_and_version() -> None:
    drive = Drive(banks=("day", "night"))
    drive.go(14)
    drive.segmenter.use_bank("night")
    drive.go(16, lights=NIGHT)
    drive.segmenter.use_bank("day")
    drive.go(2, lights=NIGHT | {"front": Light(condition="twilight", guidance=0.5)})

    assert [version.split(".")[0] for version in (drive.versions[13], drive.versions[29])] == [
        f"{VERSION}+day",
        f"{VERSION}+night",
    ]
    assert drive.versions[-1] == VERSION  # nothing was learned about this bank at dusk
    assert {str(bin) for bin in drive.adapter._turns.learners} >= {"day", "night"}


def test_services(tmp_path: Path) -> None:
    drive = Drive(state_folder=tmp_path, state={"save_every_publications": 0})
    with pytest.raises(ValueError, match="no frame with a known light"):
        drive.adapter.rollback()
    with pytest.raises(ValueError, match="nothing was published yet"):
        drive.adapter.save()
    drive.go(18)
    version = drive.adapter.status().version
    assert drive.adapter.save() == [f"{version}: generation 1 of default-day"]
    older = drive.adapter.rollback()
    assert older != version
    drive.adapter.serve(drive.segmenter)
    assert drive.segmenter.model_version == f"{VERSION}+{older}"
    drive.adapter.reset()
    drive.adapter.serve(drive.segmenter)
    assert drive.state() == drive.deployed
    drive.go(10)
    assert drive.state() != drive.deployed
    drive.adapter.enable("off")
    drive.go(1)
    assert drive.state() == drive.deployed
    with pytest.raises(ValueError, match="no folder for states was given"):
        Drive().adapter.save()


def test_a_restart_takes_up_the_newest_whole_state_and_judges_it_first(tmp_path: Path) -> None:
    first = Drive(state_folder=tmp_path)
    first.go(24)
    saved = first.state()
    steps = first.adapter._publisher.newest(first.adapter._intake.bin).steps

    second = Drive(state_folder=tmp_path, labelled=HELD_OUT[:3], memory={"min_frames": 99})
    second.go(3)

    assert second.events("restored")[0].text.endswith("to be judged before it serves")
    name = first.adapter.status().version
    assert second.events("published")[0].text == f"{name} after {steps} steps"
    second.adapter.serve(second.segmenter)
    assert second.state() == saved
    assert second.segmenter.model_version == f"{VERSION}+{name}"
    assert not second.events("saved")  # it is on disk already


def test_a_damaged_state_is_told_and_the_older_one_taken(tmp_path: Path) -> None:
    first = Drive(state_folder=tmp_path)
    first.go(24)
    newest = sorted(tmp_path.rglob("generation_*.json"))[-1]
    newest.write_text(newest.read_text()[:-20])

    second = Drive(state_folder=tmp_path, labelled=HELD_OUT[:2], memory={"min_frames": 99})
    second.go(2)

    assert "not valid JSON" in second.events("state_damaged")[0].text
    number = int(newest.stem.removeprefix("generation_"))
    assert f"generation {number - 1} " in second.events("restored")[0].text


def test_a_state_that_the_gate_refuses_does_not_serve(tmp_path: Path) -> None:
    first = Drive(state_folder=tmp_path)
    first.go(24)

    second = Drive(state_folder=tmp_path, labelled=HELD_OUT[:2], memory={"min_frames": 99}, gate={"max_distance": 1e-9})
    second.go(3)

    assert second.events("rejected")
    assert second.state() == second.deployed


def test_where_the_gate_refuses_the_newest_state_an_older_one_serves(tmp_path: Path) -> None:
    first = Drive(state_folder=tmp_path)
    first.go(24)
    bin = first.adapter._intake.bin
    store = first.adapter._archive._stores["default"]
    good = {name: value.clone() for name, value in first.adapter._publisher.newest(bin).values.items()}
    broken = {name: value + 2.0 for name, value in good.items()}
    numbers = [store.save(bin, broken, steps=77, metrics={}) for _ in range(2)]

    second = Drive(state_folder=tmp_path, labelled=HELD_OUT[:3], memory={"min_frames": 99})
    second.go(3)

    rejected, restored = second.events("rejected"), second.events("restored")
    assert [event.text.split(": ")[1] for event in rejected] == [f"generation {number}" for number in numbers[::-1]]
    assert len(restored) == 3
    assert f"generation {numbers[0] - 1} " in restored[-1].text
    second.adapter.serve(second.segmenter)
    assert second.state() == first.state()
    assert second.adapter.status().strikes == 0


class Restarted:
    """A drive that keeps states, and what a restart makes of it; the gate has packaged frames to judge them by."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.drive = Drive(state_folder=folder, **settings)

    def again(self, **settings: Any) -> Drive:
        """One that takes up what there is, and learns nothing."""
        return Drive(state_folder=self.folder, labelled=HELD_OUT[:3], memory={"min_frames": 99}, **settings)

    def serves_the_shipped_weights(self) -> bool:
        """After a restart, whatever was saved before."""
        second = self.again()
        second.go(3)
        second.adapter.serve(second.segmenter)
        return second.state() == second.deployed and not second.events("restored")


def test_a_reset_outlives_a_restart(tmp_path: Path) -> None:
    world = Restarted(tmp_path)
    world.drive.go(24)
    assert not world.serves_the_shipped_weights()
    world.drive.adapter.reset()
    assert world.serves_the_shipped_weights()


def test_a_reset_reaches_banks_that_have_not_served_yet(tmp_path: Path) -> None:
    first = Drive(banks=("day", "night"), state_folder=tmp_path)
    first.segmenter.use_bank("night")
    first.go(20, lights=NIGHT)
    assert first.events("saved")

    second = Drive(banks=("day", "night"), state_folder=tmp_path, labelled=HELD_OUT[:3])
    second.go(1)
    second.adapter.reset()
    second.segmenter.use_bank("night")
    deployed = second.state()
    second.go(4, lights=NIGHT)
    second.adapter.serve(second.segmenter)

    assert not second.events("restored")
    assert second.state() == deployed


def test_a_rollback_outlives_a_restart(tmp_path: Path) -> None:
    world = Restarted(tmp_path)
    world.drive.go(24)
    name = world.drive.adapter.rollback()
    world.drive.adapter.serve(world.drive.segmenter)
    second = world.again()
    second.go(3)
    second.adapter.serve(second.segmenter)
    assert second.state() == world.drive.state() != second.deployed
    assert second.segmenter.model_version == f"{VERSION}+{name}"
    assert second.adapter.rollback() == "reference"
    assert world.serves_the_shipped_weights()


def test_giving_up_outlives_a_restart(tmp_path: Path) -> None:
    world = Restarted(tmp_path, max_strikes=1)
    world.drive.go(24)
    assert world.drive.events("saved")
    world.drive.adapter.apply(make_settings(max_strikes=1, gate={"every_steps": 5, "min_agreement": 1.0}))
    (learner,) = world.drive.adapter._turns.learners.values()
    learner.restart({name: value + 2.0 for name, value in learner.reference.items()})
    world.drive.go(7)
    assert world.drive.events("gave_up")
    assert world.serves_the_shipped_weights()


def test_giving_up_takes_back_what_every_light_has_taught(tmp_path: Path) -> None:
    """Also what is on disk of a bank that has not served since the start, and what waits in other learners."""
    night = Drive(banks=("day", "night"), state_folder=tmp_path)
    night.segmenter.use_bank("night")
    night.go(20, lights=NIGHT)
    assert night.events("saved")

    drive = Drive(banks=("day", "night"), state_folder=tmp_path, max_strikes=1)
    dusk = {"front": Light(condition="twilight", guidance=0.5)}
    drive.go(14)
    drive.go(14, lights=dusk)
    day, twilight = drive.adapter._turns.learners.values()
    assert day.steps_behind > 0
    drive.adapter.apply(make_settings(max_strikes=1, gate={"every_steps": 5, "min_agreement": 1.0}))
    twilight.restart({name: value + 2.0 for name, value in twilight.reference.items()})
    while not drive.events("gave_up"):
        drive.go(1, lights=dusk)

    assert drive.adapter.mode == "shadow"
    for learner in (day, twilight):
        assert all(torch.equal(learner.live[name], learner.reference[name]) for name in learner.reference)
        assert (learner.steps_behind, learner.since_reset, learner.strikes) == (0, 0, 0)
    assert drive.adapter._publisher.offered() == []
    assert list(tmp_path.rglob("generation_*")) == []
    drive.adapter.enable("on")
    drive.go(5)
    drive.segmenter.use_bank("night")
    drive.go(4, lights=NIGHT)
    assert not drive.events("restored")


def test_a_periodic_reset_outlives_a_restart(tmp_path: Path) -> None:
    world = Restarted(tmp_path, reset_every_steps=12)
    while not world.drive.events("reset"):
        world.drive.go(1)
    assert world.drive.events("saved")
    assert world.serves_the_shipped_weights()


def test_steps_before_a_restart_count_towards_the_periodic_reset(tmp_path: Path) -> None:
    first = Drive(state_folder=tmp_path)
    first.go(24)
    steps = first.adapter._publisher.newest(first.adapter._intake.bin).steps

    second = Drive(state_folder=tmp_path, labelled=HELD_OUT[:3], reset_every_steps=steps + 3)
    while not second.events("reset"):
        second.go(1)
    assert second.adapter.status().steps == 3
    assert second.events("reset")[0].text.endswith(f"({steps + 3} steps)")


def test_where_the_disk_refuses_a_reset_it_is_said(tmp_path: Path) -> None:
    drive = Drive(state_folder=tmp_path)
    drive.go(16)
    (tmp_path / "removed.json").write_text("{")
    for act in (drive.adapter.rollback, drive.adapter.reset):
        with pytest.raises(ValueError, match=r"is on offer, but what was saved is not removed: .*damaged"):
            act()
    drive.adapter.serve(drive.segmenter)
    assert drive.state() == drive.deployed


def test_names_go_on_after_a_restart_and_belong_to_their_values(tmp_path: Path) -> None:
    first = Drive(state_folder=tmp_path)
    first.go(24)
    second = Drive(state_folder=tmp_path, labelled=HELD_OUT[:3], seed=5)
    second.go(24)
    names = [event.text.split()[0] for drive in (first, second) for event in drive.events("published")]
    number = len(first.events("published"))
    assert names[number] == names[number - 1]  # taken up
    assert len(set(names)) == len(names) - 1
    assert [int(name.split(".")[1].split("-")[0]) for name in names[number:]] == list(range(number, len(names)))


def test_a_state_is_not_judged_by_the_truth_of_the_packaged_frames_alone(tmp_path: Path) -> None:
    """Without frames held out, what it says of the packaged ones is compared with the reference as well."""
    first = Drive(state_folder=tmp_path)
    first.go(24)
    bin = first.adapter._intake.bin
    moved = {name: value + 0.4 for name, value in first.adapter._publisher.values(bin).items()}
    first.adapter.reset()
    first.adapter._archive._stores["default"].save(bin, moved, steps=77, metrics={})
    easy = {"max_labelled_loss": 100.0, "max_distance": 9.0, "every_steps": 5}

    second = Drive(state_folder=tmp_path, labelled=HELD_OUT[:3], memory={"min_frames": 99}, gate=easy)
    second.go(2)

    assert "packaged frames: " in second.events("rejected")[0].text
    second.adapter.serve(second.segmenter)
    assert second.state() == second.deployed


def test_a_version_counts_the_steps_behind_it(tmp_path: Path) -> None:
    drive = Drive(state_folder=tmp_path)
    drive.go(16)
    (learner,) = drive.adapter._turns.learners.values()
    before = [version.steps for version in drive.adapter._publisher._offered[learner.bin]]
    assert before == [5, 10]
    drive.adapter.rollback()
    drive.go(6)
    assert drive.events("published")[-1].text.endswith(" after 10 steps")  # 5 of the older one, 5 more
    drive.adapter.reset()
    drive.go(6)
    assert drive.events("published")[-1].text.endswith(" after 5 steps")
    accepted = drive.adapter.status().steps
    assert accepted > 20

    second = Drive(state_folder=tmp_path, labelled=HELD_OUT[:3])
    second.go(12)
    assert [event.text.split(" after ")[1] for event in second.events("published")][:2] == ["5 steps", "10 steps"]
    second.adapter.reset()
    second.go(6)
    assert second.events("published")[-1].text.endswith(" after 5 steps")


class HeldTurn:
    """A drive whose adapter is in the middle of a turn, and stays there while inference has the processor."""

    def __init__(self, drive: Drive, *, after: int) -> None:
        self.drive = drive
        self.goes_on, self.is_in = threading.Event(), threading.Event()
        self._left = after
        drive.adapter.before_forward = self._wait
        self._thread = threading.Thread(target=drive.adapter.step_if_due, daemon=True)
        frame = stream_frame(drive.number)
        drive.adapter.observe(frame, drive.segmenter.predict(frame, keep=True), lights=DAY)
        drive.number += 1
        self._thread.start()
        assert self.is_in.wait(20)

    def end(self) -> None:
        self.goes_on.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.drive.adapter.before_forward = None

    def _wait(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.is_in.set()
            assert self.goes_on.wait(20)


def in_time(act: Callable[[], Any]) -> Any:
    """What it returns; an AssertionError if it waits for something that does not come."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits for the turn"
    return found[0]


@pytest.mark.parametrize("after", [0, 1, 13, 24])
def test_what_is_taken_back_in_the_middle_of_a_turn_stays_away(tmp_path: Path, after: int) -> None:
    """A turn of many steps and judgements is held at some forward pass; nobody waits for it."""
    drive = Drive(state_folder=tmp_path, steps_per_turn=12, step={"num_frames": 1})
    drive.go(7)
    published = drive.adapter.status().publications
    assert published >= 4
    turn = HeldTurn(drive, after=after)
    version = drive.adapter.status().version
    assert in_time(drive.adapter.save) == [f"{version}: generation {len(drive.events('saved'))} of default-day"]
    older = in_time(drive.adapter.rollback)
    assert drive.adapter.status().version == older != version
    in_time(drive.adapter.reset)
    drive.adapter.serve(drive.segmenter)
    assert drive.state() == drive.deployed

    before = drive.adapter.status().publications
    turn.end()

    assert drive.adapter.status().publications == before
    assert drive.adapter.status().version == "reference"
    assert list(tmp_path.rglob("generation_*")) == []
    drive.go(1)
    assert drive.events("published")[-1].text.endswith(" after 10 steps")  # of the reference, in one turn


def test_a_rollback_in_the_middle_of_a_turn_learns_on_from_the_older_version() -> None:
    drive = Drive(steps_per_turn=12, step={"num_frames": 1})
    drive.go(7)
    turn = HeldTurn(drive, after=3)
    older = in_time(drive.adapter.rollback)
    turn.end()
    assert drive.adapter.status().version == older
    bin = drive.adapter._intake.bin
    steps, number = drive.adapter._publisher.newest(bin).steps, len(drive.events("published"))
    drive.go(1)
    assert drive.events("published")[number].text.endswith(f" after {steps + 5} steps")


def test_a_full_disk_does_not_end_the_learning(tmp_path: Path) -> None:
    drive = Drive(state_folder=tmp_path)
    with full_disk():
        drive.go(16)
    assert "File too large" in drive.events("state_failed")[0].text
    assert drive.adapter.status().disk.startswith("not saved: ")
    assert drive.versions[-1] != VERSION
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    drive.go(8)
    assert drive.events("saved")
    assert drive.adapter.status().disk == ""
    with full_disk(room_bytes=10), pytest.raises(ValueError, match="what was saved is not removed"):
        drive.adapter.reset()
    assert drive.adapter.status().disk.startswith("not removed: ")
    drive.adapter.reset()
    assert drive.adapter.status().disk == ""


def test_a_folder_that_cannot_be_made_does_not_end_the_learning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    drive = Drive(state_folder=tmp_path / "file")
    drive.go(16)
    assert drive.events("state_failed")
    assert drive.versions[-1] != VERSION


def test_guidance_by_point_stays_around_the_cameras() -> None:
    drive = Drive(labelled=HELD_OUT[:3], step={"point_guidance_span": 0.2})
    drive.go(12)
    memory = drive.adapter._turns.memory
    (frame,) = memory.draw(drive.adapter._intake.bin, 1, generator=torch.Generator())
    parts = drive.adapter._parts["default"]
    values = parts.guidance(frame, settings=make_settings(step={"point_guidance_span": 0.2}))
    assert 0.6 <= float(values.min()) < float(values.max()) <= 1.0
    assert drive.adapter.status().steps > 0
    with pytest.raises(ValueError, match="needs packaged labelled frames to calibrate on"):
        Drive(step={"point_guidance_span": 0.2})


def test_models_that_cannot_adapt_are_refused() -> None:
    def adapter_of(**changes: Any) -> OnlineAdapter:
        model = SegmentationModel(settings=SETTINGS.model_copy(update=changes)).eval()
        segmenter = Segmenter(
            models={"default": model},
            label_space=NUSCENES_6,
            device=CPU,
            bank="default",
            model_version=VERSION,
            trained=False,
        )
        return OnlineAdapter(segmenter=segmenter, settings=make_settings())

    no_mimics = HeadSettings(mimic=())
    with pytest.raises(
        ValueError, match=r"adaptation needs the main head 'fused' and a mimicry head \('3d', 'fused'\)"
    ):
        adapter_of(heads=no_mimics)
    with pytest.raises(ValueError, match="needs a model with a frozen image backbone"):
        adapter_of(image_backbone=ImageBackboneSettings(kind="unet", name="narrow", weights="none", width=5))
    assert adapter_of().num_adapted == 2 * (4 + 8 + 4 + 8 + 8 + 4 + 9 + 9)  # the real 3D net


def test_its_thread_waits_for_inference_and_keeps_its_threads_to_itself() -> None:
    drive = Drive()
    busy, before = [True], torch.get_num_threads()
    thread = AdapterThread(
        drive.adapter, device=CPU, idle=lambda: not busy[0], num_threads=before + 2, min_interval_s=0.0
    )

    def feed(frames: int) -> None:
        for _ in range(frames):
            drive.adapter.serve(drive.segmenter)
            frame = stream_frame(drive.number)
            drive.adapter.observe(frame, drive.segmenter.predict(frame, keep=True), lights=DAY)
            drive.number += 1
            time.sleep(0.02)

    thread.start()
    feed(6)
    assert drive.adapter.status().steps == 0
    assert drive.adapter.status().dropped > 0
    busy[0] = False
    deadline_s = time.monotonic() + 60
    while drive.adapter.status().publications < 2 and time.monotonic() < deadline_s:
        feed(2)
    assert thread.stop(timeout_s=20)
    assert drive.adapter.status().publications >= 2
    assert torch.get_num_threads() == before


def test_threads_that_begin_to_compute_later_do_not_inherit_its_number_of_threads() -> None:
    drive, before, seen = Drive(), torch.get_num_threads(), []
    thread = AdapterThread(drive.adapter, device=CPU, idle=lambda: True, num_threads=before + 2, min_interval_s=0.0)
    thread.start()
    inference = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    inference.start()
    inference.join()
    assert thread.stop(timeout_s=20)
    assert seen == [before]


def test_what_is_served_beside_the_adapters_thread_is_what_its_version_says() -> None:
    """The adapter publishes from its own thread, others take back; every frame is labelled by one whole version."""
    drive, frame = Drive(), HELD_OUT[0]
    values = {VERSION: drive.adapter._parts["default"].reference}
    offer = drive.adapter._publisher.offer

    def recorded(*args: Any, **kwargs: Any) -> Any:
        version = offer(*args, **kwargs)
        if version is not None:
            values[f"{VERSION}+{version.name}"] = version.values
        return version

    drive.adapter._publisher.offer = recorded  # type: ignore[method-assign]
    said: list[tuple[str, bytes]] = []
    stopping = threading.Event()

    def infer() -> None:
        while not stopping.is_set():
            drive.adapter.serve(drive.segmenter)
            labelled = drive.segmenter.predict(frame)
            said.append((labelled.model_version, labelled.probability.tobytes()))
            seen = stream_frame(drive.number)
            drive.adapter.observe(seen, drive.segmenter.predict(seen, keep=True), lights=DAY)
            drive.number += 1

    inference = threading.Thread(target=infer)
    thread = AdapterThread(drive.adapter, device=CPU, idle=lambda: True, num_threads=1, min_interval_s=0.0)
    thread.start()
    inference.start()
    deadline_s, taken_back = time.monotonic() + 60, 0
    while len({name for name, _ in said}) < 7 and time.monotonic() < deadline_s:
        time.sleep(0.05)
        if drive.adapter.status().publications >= 3 * (taken_back + 1):
            taken_back += 1
            drive.adapter.reset() if taken_back % 2 else drive.adapter.rollback()
    stopping.set()
    inference.join(20)
    assert thread.stop(timeout_s=20)

    other, expected = make_segmenter(trained=True), dict[str, bytes]()
    for name, tensors in values.items():
        other.install_bank("default", tensors, model_version=name)
        expected[name] = other.predict(frame).probability.tobytes()
    assert taken_back >= 1
    assert len({name for name, _ in said}) >= 7
    assert len(set(expected.values())) == len(expected)
    assert [name for name, labels in said if labels != expected[name]] == []


def test_an_adapter_that_is_dropped_frees_its_models_at_once() -> None:
    """Else they would keep a GPU's memory until the garbage collector happens to come by."""
    drive = Drive(labelled=HELD_OUT[:2], step={"point_guidance_span": 0.2})
    drive.go(14)
    thread = AdapterThread(drive.adapter, device=CPU, idle=lambda: True, num_threads=1, min_interval_s=0.0)
    thread.start()
    assert thread.stop(timeout_s=20)
    model = weakref.ref(drive.adapter._parts["default"].base)
    gc.disable()
    try:
        del drive, thread
        assert model() is None
    finally:
        gc.enable()


def test_an_error_in_the_thread_ends_serving_what_was_learned() -> None:
    drive = Drive()
    drive.go(14)
    assert drive.state() != drive.deployed

    def fail() -> bool:
        raise RuntimeError("no such luck")

    drive.adapter.step_if_due = fail  # type: ignore[method-assign, assignment]
    thread = AdapterThread(drive.adapter, device=CPU, idle=lambda: True, num_threads=1, min_interval_s=0.0)
    thread.start()
    thread._thread.join(10)
    assert drive.events("failed")[0].text == "RuntimeError: no such luck"
    drive.adapter.serve(drive.segmenter)
    assert drive.state() == drive.deployed
