# SPDX-License-Identifier: Apache-2.0
"""Adaptation in the segmentation node, over DDS: services, parameters, diagnostics, and serving whatever happens."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from node_harness import Harness, make_transform, save_tiny_checkpoint
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger
from tiny_world import tiny_frame

from xmodal_seg.adaptation.adapter import OnlineAdapter
from xmodal_seg.adaptation.driving import AdapterThread
from xmodal_seg.adaptation.events import EventLog
from xmodal_seg.adaptation.labelled_frames import save_labelled_frames
from xmodal_seg.inference import Segmenter
from xmodal_seg.labels import NUSCENES_6
from xmodal_seg.nodes.adaptation_link import AdaptationLink
from xmodal_seg.nodes.adaptation_settings import NodeAdaptationSettings
from xmodal_seg.nodes.lighting_messages import lighting_message

pytestmark = pytest.mark.ros
START_NS = 1_700_000_000 * 10**9
PERIOD_NS = 100_000_000
_REST_S = 0.03
# A turn for every frame, little in memory, and a gate that these random weights pass.
QUICK = {
    "adaptation.period_frames": 1,
    "adaptation.min_interval_s": 0.0,
    "adaptation.memory.min_gap_s": 0.25,
    "adaptation.memory.min_frames": 2,
    "adaptation.memory.min_probes": 1,
    "adaptation.memory.probe_every": 2,
    "adaptation.memory.points_per_frame": 64,
    "adaptation.guards.settle_frames": 0,
    "adaptation.guards.max_agreement_drop": 1.0,
    "adaptation.gate.every_steps": 2,
    "adaptation.gate.publish_sure_agreement": 0.0,
    "adaptation.gate.reject_sure_agreement": 0.0,
    "adaptation.gate.min_agreement": 0.0,
    "adaptation.gate.max_marginal_kl": 10.0,
    "adaptation.gate.max_class_loss": 1.0,
    "adaptation.gate.max_labelled_loss": 100.0,
}


class Drive(Harness):
    """The node, fed with sweeps and with the light, its services and its status of adaptation."""

    def __init__(self, checkpoint: Path, **parameters: Any) -> None:
        super().__init__(checkpoint, **{**QUICK, **parameters})
        self.number = 0
        self.states: list[DiagnosticStatus] = []
        self.served: list[str] = []
        self.lighting = self.peer.create_publisher(DiagnosticArray, "lighting", 10)
        self.peer.create_subscription(DiagnosticArray, "/diagnostics", self._note, 10)
        self.enabling = self.peer.create_client(SetBool, "xmodal_seg/adaptation/enable")
        self.others = {
            name: self.peer.create_client(Trigger, f"xmodal_seg/adaptation/{name}")
            for name in ("reset", "save", "rollback")
        }

    def begin(self) -> Drive:
        self.start()
        self.transforms.publish(make_transform())
        self.wait_for_subscriptions()
        return self

    def wait_for_subscriptions(self) -> None:
        heard = (self.points, self.image, self.info, self.lighting)
        self.spin_until(lambda: all(each.get_subscription_count() for each in heard), "subscriptions")

    def go(self, *, lit: bool = True) -> None:
        """One sweep, labelled."""
        stamp_ns = START_NS + self.number * PERIOD_NS
        if lit:
            camera = {"name": "front", "darkness": 0.1, "guidance": 0.8, "confidence": 1.0, "condition": "day"}
            rest = {"reasons": (), "reliability": 1.0, "image_darkness": 0.1, "stamp_ns": stamp_ns}
            light = SimpleNamespace(**camera, **rest)
            self.lighting.publish(
                lighting_message([light], node_name="lighting", stamp_ns=stamp_ns, min_confidence=0.5)
            )
        count = len(self.clouds)
        self.send(stamp_ns, seed=self.number)
        self.number += 1
        self.wait_for_clouds(count + 1)

    def go_until(self, condition: Callable[[dict[str, str]], bool], *, lit: bool = True) -> dict[str, str]:
        """Drive on until the diagnostics say so; their values."""
        self.states.clear()
        for _ in range(200):
            self.go(lit=lit)
            self.rest()
            if self.states and condition(self.values()):
                return self.values()
        raise AssertionError(f"not within 200 frames; {self.states[-1:]}")

    def rest(self) -> None:
        """Until the next sweep the processor is the adapter's."""
        end_s = time.monotonic() + _REST_S
        while time.monotonic() < end_s:
            self.executor.spin_once(timeout_sec=_REST_S / 4)

    def values(self) -> dict[str, str]:
        return {value.key: value.value for value in self.states[-1].values}

    def ask(self, name: str, **request: Any) -> Any:
        """The answer of a service."""
        client = self.enabling if name == "enable" else self.others[name]
        self.spin_until(client.service_is_ready, f"the service {name}")
        answer = client.call_async(SetBool.Request(**request) if name == "enable" else Trigger.Request())
        self.spin_until(answer.done, f"the answer of {name}")
        return answer.result()

    def wait_for_state(self, word: str) -> DiagnosticStatus:
        self.states.clear()
        self.spin_until(lambda: any(word in state.message for state in self.states), f"the state {word!r}")
        return self.states[-1]

    def _note(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(": adaptation"):
                self.states.append(status)
            elif status.name.endswith(": segmentation"):
                self.served += [value.value for value in status.values if value.key == "model"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def flat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that cannot adapt."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("flat") / "checkpoint", with_3d=False)


@pytest.fixture
def drive(checkpoint: Path) -> Iterator[Callable[..., Drive]]:
    drives: list[Drive] = []

    def make(folder: Path = checkpoint, **parameters: Any) -> Drive:
        drives.append(Drive(folder, **parameters))
        return drives[-1]

    yield make
    for made in drives:
        made.close()


def test_what_is_learned_is_served_saved_taken_back_and_forgotten(drive: Callable[..., Drive], tmp_path: Path) -> None:
    save_labelled_frames(tmp_path / "labelled", [tiny_frame(3)], label_space=NUSCENES_6.name)
    folders = {"adaptation.state_folder": str(tmp_path / "state"), "adaptation.labelled_frames": f"{tmp_path}/labelled"}
    node = drive(**folders, **{"adaptation.state.save_every_publications": 0}).begin()
    node.go()
    assert node.wait_for_state("select").level == b"\x00"
    assert node.values()["frames"] == "0"

    answer = node.ask("save")
    assert (answer.success, answer.message) == (False, "save: nothing was published yet")
    assert "no frame with a known light" in node.ask("rollback").message

    answer = node.ask("enable", data=True)
    assert (answer.success, answer.message) == (True, "adaptation.mode is on")
    assert node.node.settings.adaptation.mode == "on"
    values = node.go_until(lambda values: int(values["publications"]) >= 2)
    assert values["mode"] == "on"
    assert int(values["steps"]) >= 4
    assert float(values["lambda"]) == pytest.approx(0.8)
    assert 0 <= float(values["agreement"]) <= 1
    assert float(values["marginal shift"]) == pytest.approx(0, abs=0.1)
    assert float(values["labelled_loss"]) < 100
    assert values["strikes"] == "0"
    assert ": " in values["newest event"]
    node.go_until(lambda _: "+default-day." in node.served[-1])

    answer = node.ask("save")
    assert answer.success
    assert "generation 1 of default-day" in answer.message
    assert len(list((tmp_path / "state").rglob("generation_*.json"))) == 1
    assert node.ask("rollback").message.endswith(" is on offer")
    assert node.ask("reset").success

    assert node.ask("enable", data=False).message == "adaptation.mode is select"
    node.served.clear()
    node.go_until(lambda values: values["mode"] == "select" and bool(node.served) and "+" not in node.served[-1])


def test_a_failing_adapter_leaves_the_node_serving_and_can_be_enabled_again(drive: Callable[..., Drive]) -> None:
    node = drive(**{"adaptation.mode": "shadow"}).begin()
    adapter = node.node._require_configured().adaptation.adapter
    node.go_until(lambda values: values["mode"] == "shadow" and int(values["steps"]) >= 1)
    before_forward = adapter.before_forward

    def fail() -> None:
        raise RuntimeError("out of luck")

    adapter.before_forward = fail
    values = node.go_until(lambda values: values["mode"] == "select")
    state = node.states[-1]
    assert state.level == b"\x01"
    assert state.message == "select instead of shadow: failed: RuntimeError: out of luck"
    assert values["asked for"] == "shadow"
    assert "adaptation: failed: RuntimeError" in node.wait_for_status("adaptation").message
    node.go()

    adapter.before_forward = before_forward
    steps = int(values["steps"])
    assert node.ask("enable", data=True).success
    node.go_until(lambda values: values["mode"] == "on" and int(values["steps"]) > steps)
    assert node.ask("enable", data=True).success  # again, in the mode that it has


def test_a_mode_that_was_written_without_quotes_can_be_enabled_again(drive: Callable[..., Drive]) -> None:
    node = drive(**{"adaptation.mode": True}).begin()
    adapter = node.node._require_configured().adaptation.adapter
    assert adapter.mode == "on"
    for _ in range(2):  # the second time the parameter is a word
        adapter.fail(RuntimeError("out of luck"))
        assert adapter.mode == "select"
        answer = node.ask("enable", data=True)
        assert (answer.success, answer.message) == (True, "adaptation.mode is on")
        assert adapter.mode == "on"
    modes = [event.text for event in adapter.events.newest if event.kind == "mode"]
    assert modes == ["select", "on"] * 2
    assert node.ask("enable", data=False).success
    assert adapter.mode == "select"


def test_sweeps_go_on_and_services_answer_while_a_turn_lasts(drive: Callable[..., Drive], tmp_path: Path) -> None:
    node = drive(**{"adaptation.mode": "shadow", "adaptation.state_folder": str(tmp_path)}).begin()
    node.go_until(lambda values: int(values["publications"]) >= 2)
    adapter = node.node._require_configured().adaptation.adapter
    goes_on, is_in = threading.Event(), threading.Event()

    def wait() -> None:
        is_in.set()
        goes_on.wait(30)

    adapter.before_forward = wait
    node.go_until(lambda _: is_in.is_set())
    for _ in range(5):
        node.go()
    assert node.ask("save").success
    assert node.ask("rollback").message.endswith(" is on offer")
    assert node.ask("reset").message == "back to the reference"
    assert list(tmp_path.rglob("generation_*.json")) == []
    assert node.node.set_parameters([Parameter("adaptation.mode", value="off")])[0].successful
    assert node.wait_for_state("off")
    assert node.values()["version"] == "reference"
    goes_on.set()


def test_services_answer_while_the_processor_is_never_free(drive: Callable[..., Drive]) -> None:
    node = drive(**{"adaptation.mode": "on"}).begin()
    node.go_until(lambda values: "+default-day." in node.served[-1])
    configured = node.node._require_configured()
    configured.adaptation._thread._idle = lambda: False
    assert node.ask("reset").message == "back to the reference"
    node.served.clear()
    node.go_until(lambda _: bool(node.served) and "+" not in node.served[-1])
    assert node.ask("rollback").message.endswith("nothing was published, the reference is served already")


def test_a_model_that_cannot_adapt_says_so_and_serves(drive: Callable[..., Drive], flat_checkpoint: Path) -> None:
    node = drive(flat_checkpoint, point_scope="visible").begin()
    node.go()
    assert "adaptation needs the main head" in node.wait_for_state("not possible").message
    for name, request in (("enable", {"data": True}), ("reset", {}), ("save", {}), ("rollback", {})):
        answer = node.ask(name, **request)
        assert not answer.success
        assert "adaptation needs the main head 'fused'" in answer.message
    refused = node.node.set_parameters([Parameter("adaptation.mode", value="shadow")])[0]
    assert "adaptation needs the main head 'fused'" in refused.reason
    assert node.node.settings.adaptation.mode == "select"
    node.go()


def test_a_mode_that_learns_is_refused_at_configuration_for_such_a_model(
    drive: Callable[..., Drive], flat_checkpoint: Path
) -> None:
    node = drive(flat_checkpoint, point_scope="visible", **{"adaptation.mode": "on"})
    assert node.node.trigger_configure().name == "FAILURE"
    answer = node.ask("enable", data=True)
    assert (answer.success, answer.message) == (False, "adaptation: the node is not configured yet")
    assert node.node.set_parameters([Parameter("adaptation.mode", value="off")])[0].successful
    assert node.node.trigger_configure().name == "SUCCESS"


def test_labelled_frames_that_are_not_there_fail_the_configuration(drive: Callable[..., Drive], tmp_path: Path) -> None:
    assert drive(**{"adaptation.labelled_frames": str(tmp_path)}).node.trigger_configure().name == "FAILURE"


def test_thresholds_act_at_once_and_what_is_fixed_is_refused(drive: Callable[..., Drive]) -> None:
    node = drive(**{"adaptation.mode": "shadow"}).begin()
    assert node.go_until(lambda values: bool(values["paused"]), lit=False)["paused"] == "low_confidence"
    assert node.wait_for_state("paused").message == "shadow, paused: low_confidence"
    node.go_until(lambda values: values["paused"] == "")

    def set_to(name: str, value: Any) -> bool:
        return node.node.set_parameters([Parameter(f"adaptation.{name}", value=value)])[0].successful

    assert set_to("guards.max_desync_s", 0.001)
    node.go_until(lambda values: values["paused"] == "desync")
    assert not set_to("step.learning_rate", 1e-5)
    assert not node.node.has_parameter("adaptation.guards.min_movement_m")  # no odometry comes to the node
    assert not set_to("gate.reject_sure_agreement", 1.0)  # above publish_sure_agreement
    assert set_to("guards.max_desync_s", 0.1)
    assert set_to("gate.max_distance", 1e-9)
    node.go_until(lambda values: values["strikes"] != "0")
    assert set_to("mode", "off")
    node.go_until(lambda values: values["mode"] == "off")


def test_its_thread_lives_from_activation_to_deactivation(drive: Callable[..., Drive]) -> None:
    def threads() -> int:
        return sum(thread.name == "adaptation" for thread in threading.enumerate())

    node = drive(**{"adaptation.mode": "shadow"}).begin()
    assert threads() == 1
    steps = int(node.go_until(lambda values: int(values["steps"]) > 0)["steps"])
    assert node.node.trigger_deactivate().name == "SUCCESS"
    assert threads() == 0
    assert node.node.trigger_activate().name == "SUCCESS"
    node.wait_for_subscriptions()
    assert int(node.go_until(lambda values: int(values["steps"]) > steps)["frames"]) > 0
    assert node.node.trigger_deactivate().name == "SUCCESS"
    assert node.node.trigger_cleanup().name == "SUCCESS"
    assert not node.ask("reset").success


def test_cleanup_frees_the_adapters_models_before_the_cache_is_emptied(drive: Callable[..., Drive]) -> None:
    node = drive(**{"adaptation.mode": "shadow"}).begin()
    node.go_until(lambda values: int(values["steps"]) > 0)
    configured = node.node._require_configured()
    model = weakref.ref(configured.adaptation.adapter._parts["default"].base)
    close, is_freed = configured.segmenter.close, list[bool]()

    def observed_close() -> None:
        is_freed.append(model() is None)
        close()

    configured.segmenter.close = observed_close
    del configured
    gc.disable()
    try:
        assert node.node.trigger_deactivate().name == "SUCCESS"
        assert node.node.trigger_cleanup().name == "SUCCESS"
    finally:
        gc.enable()
    assert is_freed == [True]


@pytest.mark.parametrize("lacking", [{"lighting_topic": ""}, {"cameras": [""]}])
def test_learning_needs_cameras_and_light(checkpoint: Path, lacking: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"adaptation\.mode: shadow needs cameras and lighting_topic"):
        Harness(checkpoint, **{"adaptation.mode": "shadow"}, **lacking)


class BrokenAdapter(OnlineAdapter):
    """Fails where inference meets it."""

    def serve(self, segmenter: Segmenter) -> str | None:
        raise RuntimeError("serve")

    def observe(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("observe")


def test_errors_in_the_thread_of_inference_end_the_learning_only(checkpoint: Path) -> None:
    segmenter = Segmenter.load(checkpoint, device="cpu")
    settings = NodeAdaptationSettings(mode="on")
    link = AdaptationLink(segmenter=segmenter, settings=settings, idle=lambda: True)
    link._adapter = BrokenAdapter(segmenter=segmenter, settings=settings)
    link.serve()
    assert not link.is_learning
    frame = tiny_frame(5)
    link.observe(frame, segmenter.predict(frame), lights={}, latency_ms=1.0)
    said, problems = link.news(now_s=0.0)
    assert said == ["mode: select", "mode: select"]
    assert problems == ["failed: RuntimeError: serve", "failed: RuntimeError: observe"]
    assert link.news(now_s=0.0) == ([], [])


def test_what_comes_often_is_told_now_and_then(checkpoint: Path) -> None:
    link = AdaptationLink(
        segmenter=Segmenter.load(checkpoint, device="cpu"), settings=NodeAdaptationSettings(), idle=lambda: True
    )
    told: list[str] = []
    for number in range(180):
        link.adapter.events.add("sensors_disagree", str(number))
        told += link.news(now_s=float(number))[0]
    assert told == ["sensors disagree: 0", "sensors disagree: 60", "sensors disagree: 120"]


def test_a_lasting_disagreement_is_a_warning_while_it_learns(checkpoint: Path) -> None:
    link = AdaptationLink(
        segmenter=Segmenter.load(checkpoint, device="cpu"),
        settings=NodeAdaptationSettings(mode="shadow"),
        idle=lambda: True,
    )
    adapter = link.adapter
    status = replace(adapter.status(), disagreement="they do not fit", paused=("sensors_disagree",))
    adapter.status = lambda: status  # type: ignore[method-assign]
    said = link.status(name="adaptation")
    assert (said.level, said.message) == (b"\x01", "shadow, paused: sensors_disagree: they do not fit")
    adapter.events.add("disagreement_lasts", "they do not fit")
    assert link.news(now_s=0.0) == ([], ["disagreement lasts: they do not fit"])
    adapter.enable("select")
    status = replace(status, mode="select")
    link._asked = "select"
    assert link.status(name="adaptation").level == b"\x00"


def test_a_disk_that_refuses_is_a_warning_for_as_long(checkpoint: Path) -> None:
    link = AdaptationLink(
        segmenter=Segmenter.load(checkpoint, device="cpu"),
        settings=NodeAdaptationSettings(mode="on"),
        idle=lambda: True,
    )
    adapter, status = link.adapter, link.adapter.status()
    for mode, head in (("on", "on: "), ("shadow", "shadow instead of on: it fell back; ")):
        said_by_adapter = replace(status, mode=mode, disk="not saved: it is full")
        adapter.status = lambda each=said_by_adapter: each  # type: ignore[method-assign]
        said = link.status(name="adaptation")
        assert (said.level, said.message) == (b"\x01", f"{head}not saved: it is full")
    adapter.status = lambda: status  # type: ignore[method-assign]
    assert link.status(name="adaptation").level == b"\x00"


def test_a_thread_that_has_yet_to_stop_is_not_started_again(checkpoint: Path) -> None:
    goes_on, is_in = threading.Event(), threading.Event()
    adapter = OnlineAdapter(
        segmenter=Segmenter.load(checkpoint, device="cpu"), settings=NodeAdaptationSettings(mode="shadow")
    )

    def wait() -> list[Any]:
        is_in.set()
        goes_on.wait(10)
        return []

    adapter.step_if_due = wait  # type: ignore[method-assign]
    thread = AdapterThread(adapter, device=torch.device("cpu"), idle=lambda: True, num_threads=1, min_interval_s=0.0)
    thread.start()
    assert is_in.wait(10)
    assert not thread.stop(timeout_s=0.01)
    with pytest.raises(RuntimeError, match="still at the turn"):
        thread.start()
    goes_on.set()
    assert thread.stop(timeout_s=10)


def test_events_are_told_once_even_when_old_ones_are_gone() -> None:
    log = EventLog()
    log.add("mode", "on")
    number, events = log.after(0)
    assert (number, [event.text for event in events]) == (1, ["on"])
    for text in range(600):
        log.add("held", str(text))
    number, events = log.after(number)
    assert (number, len(events), events[-1].text) == (601, 500, "599")
    assert log.after(number) == (601, ())
