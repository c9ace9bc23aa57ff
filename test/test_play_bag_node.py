# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal_seg.bag_files import BagWriter, open_bag
from xmodal_seg.bags import write_bag
from xmodal_seg.structures import Calibration, CameraView, Frame

rclpy = pytest.importorskip("rclpy")

from geometry_msgs.msg import TransformStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, PointCloud2
from std_msgs.msg import String

from xmodal_seg.nodes.play_bag_node import PlayBagNode
from xmodal_seg.nodes.playback import NOBODY_LISTENED, Pace, Timeline

FIRST_NS = 1_000_000_000_000
PERIOD_NS = 100_000_000
DEADLINE_S = 60.0


def frame(number: int, *, place: float = 0.0) -> Frame:
    rng = np.random.default_rng(number)
    stamp_ns = FIRST_NS + number * PERIOD_NS
    camera_T_lidar = np.array([[0.0, -1, 0, place], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    calibration = Calibration(
        camera_matrix=np.array([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]]),
        camera_T_lidar=camera_T_lidar,
        image_size=(13, 17),
    )
    image = rng.integers(0, 256, (13, 17, 3), dtype=np.uint8)
    return Frame(
        points=rng.normal(size=(31 + number, 3)).astype(np.float32),
        cameras=(CameraView(name="front", image=image, calibration=calibration, stamp_ns=stamp_ns + 5_000_000),),
        labels=np.zeros(31 + number, dtype=np.int64),
        stamp_ns=stamp_ns,
    )


@pytest.fixture(scope="module")
def bag_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("play") / "bag"
    write_bag(path, [frame(0), frame(1), frame(2, place=0.5)], image_format="png")
    return path


class Bench:
    """A listener and players in one context."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("listener", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.players: list[PlayBagNode] = []
        self.heard: dict[str, list[Any]] = {}

    def listen(self, kind: type, topic: str, *, latched: bool = False, raw: bool = False) -> None:
        qos = QoSProfile(
            depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        )
        self.heard[topic] = []
        self.node.create_subscription(kind, topic, self.heard[topic].append, qos, raw=raw)

    def player(self, bag: Path | str, *arguments: str, remap: tuple[str, ...] = ()) -> PlayBagNode:
        parameters = [f"bag:={bag}", "rate:=100.0", *arguments]
        cli_args = ["--ros-args", *(part for p in parameters for part in ("-p", p))]
        cli_args += [part for rule in remap for part in ("-r", rule)]
        player = PlayBagNode(context=self.context, cli_args=cli_args)
        self.players.append(player)
        self.executor.add_node(player)
        return player

    def spin_until(self, condition: Callable[[], bool], *, what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen"
            self.executor.spin_once(timeout_sec=0.05)

    def play(self, player: PlayBagNode) -> None:
        player.start()
        self.spin_until(lambda: player.finished, what="the end of the bag")
        assert player.failure == ""

    def close(self) -> None:
        for player in self.players:
            player.close()
            player.destroy_node()
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def stamps(messages: list[Any]) -> list[int]:
    return [(m.header.stamp.sec * 10**9 + m.header.stamp.nanosec - FIRST_NS) // 1_000_000 for m in messages]


# --- timing, without ROS ---------------------------------------------------------------------------------------------


def test_timeline_runs_at_its_rate_and_stands_still_while_held() -> None:
    now_s = [50.0]
    timeline = Timeline(start_ns=7_000_000_000, rate=2.0, clock=lambda: now_s[0])
    assert timeline.now_ns() == 7_000_000_000
    now_s[0] += 1.5
    assert timeline.now_ns() == 10_000_000_000
    now_s[0] += 10.0
    timeline.hold(10.0)
    assert timeline.now_ns() == 10_000_000_000


def test_timeline_ticks_until_a_message_is_due() -> None:
    now_s, ticks = [0.0], []

    def tick(stamp_ns: int) -> None:
        ticks.append(stamp_ns)
        now_s[0] += 0.5

    timeline = Timeline(start_ns=0, rate=1000.0, clock=lambda: now_s[0])
    assert timeline.wait_until(1_400_000_000_000, stop=threading.Event(), tick=tick)
    assert ticks == [0, 500_000_000_000, 1_000_000_000_000]
    assert timeline.wait_until(5, stop=threading.Event(), tick=tick)  # late: no tick
    assert len(ticks) == 3


def test_a_stopped_timeline_does_not_wait() -> None:
    stop = threading.Event()
    stop.set()
    assert not Timeline(start_ns=0, rate=1.0).wait_until(10**15, stop=stop, tick=lambda _: None)


def test_pace_waits_for_the_answer_with_the_right_stamp() -> None:
    pace = Pace(timeout_s=DEADLINE_S)
    assert pace.wait()  # nothing sent
    pace.sent(5)
    pace.answered(4)
    waiter = threading.Thread(target=pace.wait)
    waiter.start()
    assert waiter.is_alive()
    pace.answered(5)
    waiter.join(DEADLINE_S)
    assert not waiter.is_alive()


def test_pace_gives_up_once_and_can_be_cancelled() -> None:
    pace = Pace(timeout_s=0.0)
    pace.sent(5)
    assert not pace.wait()
    assert pace.wait()
    patient = Pace(timeout_s=DEADLINE_S)
    patient.sent(5)
    patient.cancel()
    assert patient.wait()


# --- the node --------------------------------------------------------------------------------------------------------


@pytest.mark.ros
def test_every_message_arrives_as_recorded(bench: Bench, bag_path: Path) -> None:
    topics = {"/points": PointCloud2, "/front/image/compressed": CompressedImage, "/front/camera_info": CameraInfo}
    for topic, kind in topics.items():
        bench.listen(kind, topic, raw=True)
    bench.play(bench.player(bag_path, f"wait_for_topics:=[{', '.join(topics)}]"))
    with open_bag(bag_path) as bag:
        for topic in topics:
            recorded = [message.data for message in bag.messages([topic])]
            bench.spin_until(lambda t=topic: len(bench.heard[t]) >= 3, what=f"all of {topic}")
            assert [bytes(data) for data in bench.heard[topic]] == recorded


@pytest.mark.ros
def test_clock_follows_the_recording(bench: Bench, bag_path: Path) -> None:
    bench.listen(Clock, "/clock")
    bench.listen(PointCloud2, "/points")
    bench.play(bench.player(bag_path, "wait_for_topics:=[/points]"))
    last_ns = FIRST_NS + 2 * PERIOD_NS + 5_000_000
    times: list[int] = []

    def last_has_come() -> bool:
        times[:] = [m.clock.sec * 10**9 + m.clock.nanosec for m in bench.heard["/clock"]]
        return times[-1:] == [last_ns]

    bench.spin_until(last_has_come, what="the last message's time")
    assert times == sorted(times)
    assert times[0] >= FIRST_NS


@pytest.mark.ros
def test_static_transforms_reach_a_late_subscriber(bench: Bench, bag_path: Path) -> None:
    bench.play(bench.player(bag_path))
    bench.listen(TransformStamped, "/static_transforms", latched=True)
    heard = bench.heard["/static_transforms"]
    bench.spin_until(lambda: {m.child_frame_id for m in heard} == {"front_optical", "front_optical_1"}, what="both")
    assert {m.header.frame_id for m in heard} == {"lidar"}
    rotation = heard[0].transform.rotation
    assert np.linalg.norm([rotation.x, rotation.y, rotation.z, rotation.w]) == pytest.approx(1.0)


@pytest.mark.ros
def test_pace_holds_each_sweep_until_its_answer(bench: Bench, bag_path: Path) -> None:
    bench.listen(PointCloud2, "/points")
    player = bench.player(
        bag_path, "wait_for_topics:=[/points]", "pace_input:=/points", "pace_topic:=/answers", "rate:=1000.0"
    )
    answers = bench.node.create_publisher(PointCloud2, "/answers", 10)
    bench.spin_until(lambda: answers.get_subscription_count() > 0, what="the player's subscription")
    player.start()
    for number in range(3):
        bench.spin_until(lambda n=number: len(bench.heard["/points"]) > n, what=f"sweep {number}")
        for _ in range(5):  # the next one would come in this time
            bench.executor.spin_once(timeout_sec=0.02)
        assert len(bench.heard["/points"]) == number + 1
        assert not player.finished
        answers.publish(PointCloud2(header=bench.heard["/points"][-1].header))
    bench.spin_until(lambda: player.finished, what="the end")
    assert stamps(bench.heard["/points"]) == [0, 100, 200]


@pytest.mark.ros
def test_pace_goes_on_without_an_answer_after_its_timeout(bench: Bench, bag_path: Path) -> None:
    bench.listen(PointCloud2, "/points")
    bench.play(
        bench.player(
            bag_path,
            "wait_for_topics:=[/points]",
            "pace_topic:=/answers",
            "pace_timeout_s:=0.01",
        )
    )
    bench.spin_until(lambda: len(bench.heard["/points"]) == 3, what="three sweeps")


@pytest.mark.ros
def test_topics_can_be_chosen_remapped_and_started_later(bench: Bench, bag_path: Path) -> None:
    bench.listen(PointCloud2, "/roof")
    bench.listen(CameraInfo, "/front/camera_info")
    player = bench.player(
        bag_path,
        "topics:=[/points]",
        "wait_for_topics:=[/points]",
        "start_offset_s:=0.1",
        remap=("/points:=/roof",),
    )
    bench.play(player)
    bench.spin_until(lambda: len(bench.heard["/roof"]) == 2, what="two sweeps")
    assert stamps(bench.heard["/roof"]) == [100, 200]
    assert bench.heard["/front/camera_info"] == []


@pytest.fixture(scope="module")
def own_bag_path(bag_path: Path) -> Path:
    """As `ros2 bag record -a` takes it beside the running nodes: what they publish is in it as well."""
    path = bag_path.parent / "everything"
    with open_bag(bag_path) as given, BagWriter(path) as bag:
        for message in given.messages():
            bag.write_raw(message.topic, message.msgtype, message.stamp_ns, message.data)
            if message.topic == "/points":
                for topic in ("/xmodal_seg/points", "/answers"):
                    bag.write_raw(topic, message.msgtype, message.stamp_ns, message.data)
                bag.write_raw("/lighting", "diagnostic_msgs/msg/DiagnosticArray", message.stamp_ns, b"")
                bag.write_raw("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", message.stamp_ns, b"")
    return path


@pytest.mark.ros
def test_what_the_nodes_publish_themselves_is_left_out(
    bench: Bench, own_bag_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    player = bench.player(own_bag_path, "pace_topic:=/answers", "pace_input:=/points", "pace_timeout_s:=0.01")
    played = {topic.removeprefix("/") for topic, _ in player.get_publisher_names_and_types_by_node("play_bag", "/")}
    assert played >= {"points", "front/camera_info", "front/image/compressed"}
    assert not played & {"xmodal_seg/points", "answers", "lighting", "diagnostics"}
    bench.play(player)
    (line,) = [line for line in "".join(capfd.readouterr()).splitlines() if "left out" in line]
    assert line.endswith("(topics plays what it names): /xmodal_seg/points, /answers, /lighting, /diagnostics")


@pytest.mark.ros
def test_recorded_answers_stand_for_no_new_ones(bench: Bench, own_bag_path: Path) -> None:
    bench.listen(PointCloud2, "/points")
    pace = ("pace_topic:=/xmodal_seg/points", "pace_input:=/points")
    player = bench.player(own_bag_path, "wait_for_topics:=[/points]", *pace, "rate:=1000.0")
    player.start()
    bench.spin_until(lambda: bool(bench.heard["/points"]), what="the first sweep")
    for _ in range(10):  # the next one would come in this time
        bench.executor.spin_once(timeout_sec=0.02)
    assert len(bench.heard["/points"]) == 1


@pytest.mark.ros
def test_what_is_named_is_played_whatever_it_is(
    bench: Bench, own_bag_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.listen(PointCloud2, "/xmodal_seg/points")
    bench.play(bench.player(own_bag_path, "topics:=[/xmodal_seg/points]", "wait_for_topics:=[/xmodal_seg/points]"))
    bench.spin_until(lambda: len(bench.heard["/xmodal_seg/points"]) == 3, what="the recorded answers")
    assert "left out" not in "".join(capfd.readouterr())


@pytest.mark.ros
def test_a_bag_of_nothing_else_is_refused(bench: Bench, tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_raw("/xmodal_seg/points", "sensor_msgs/msg/PointCloud2", 5, b"")
    with pytest.raises(ValueError, match="publish anew; name in topics what to play: /xmodal_seg/points"):
        bench.player(tmp_path / "bag")


@pytest.mark.ros
def test_a_loop_jumps_back_until_it_is_stopped(bench: Bench, bag_path: Path) -> None:
    bench.listen(PointCloud2, "/points")
    player = bench.player(bag_path, "loop:=true", "wait_for_topics:=[/points]")
    player.start()
    bench.spin_until(lambda: len(bench.heard["/points"]) >= 7, what="the third pass")
    player.close()
    assert player.finished
    assert stamps(bench.heard["/points"])[:7] == [0, 100, 200, 0, 100, 200, 0]


@pytest.mark.ros
def test_types_that_are_not_installed_are_left_out(bench: Bench, tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_raw("/shape", "shape_msgs/msg/Plane", 5, b"\x00\x01\x00\x00" + bytes(32))
        bag.write_raw("/text", "std_msgs/msg/String", 6, b"\x00\x01\x00\x00\x03\x00\x00\x00hi\x00")
    bench.listen(String, "/text")
    player = bench.player(tmp_path / "bag", "wait_for_topics:=[/text]")
    bench.play(player)
    bench.spin_until(lambda: bool(bench.heard["/text"]), what="the text")
    assert bench.heard["/text"][0].data == "hi"


@pytest.mark.ros
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("bag:=/no/such/bag",), "no bag at /no/such/bag"),
        (("topics:=[/top]",), r"has no topic /top; it has /tf_static .*, /points "),
        (("wait_for_topics:=[/top]",), "has no topic /top"),
        (("topics:=[/points]", "wait_for_topics:=[/front/camera_info]"), "/front/camera_info is not among the topics"),
        (("wait_for_nodes:=[/listener]",), "expected wait_for_topics beside it"),
        (("wait_for_topics:=[/points]", "wait_for_nodes:=[listener]"), "begin with /, got 'listener'"),
        (("start_offset_s:=0.3",), r"start_offset_s: 0\.3 s is not within the bag's 0\.205 s"),
        (("pace_topic:=/answers", "pace_input:=/top"), "has no topic /top"),
        (("rate:=0.0",), "rate"),
    ],
)
def test_wrong_parameters_are_refused(bench: Bench, bag_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        bench.player(bag_path, *arguments)


@pytest.mark.ros
def test_empty_bag_is_refused(bench: Bench, tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag"):
        pass
    with pytest.raises(ValueError, match="holds no messages"):
        bench.player(tmp_path / "bag")


@pytest.mark.ros
def test_nobody_listening_ends_with_an_error(bench: Bench, bag_path: Path) -> None:
    player = bench.player(bag_path, "wait_for_topics:=[/points]", "wait_timeout_s:=0.01")
    player.start()
    bench.spin_until(lambda: player.finished, what="the end")
    assert player.failure == "nobody subscribed to /points in 0.01 s"


@pytest.mark.ros
def test_the_playback_begins_when_the_named_node_has_subscribed(bench: Bench, bag_path: Path) -> None:
    bench.listen(PointCloud2, "/roof")  # a light node beside the one that is waited for, and sooner
    slow = rclpy.create_node("slow", namespace="/van", context=bench.context)
    heard: list[PointCloud2] = []
    player = bench.player(
        bag_path, "wait_for_topics:=[/points]", "wait_for_nodes:=[/van/slow]", remap=("/points:=/roof",)
    )
    bench.executor.add_node(slow)
    player.start()
    for _ in range(10):  # it would have begun in this time
        bench.executor.spin_once(timeout_sec=0.05)
    assert bench.heard["/roof"] == []
    slow.create_subscription(PointCloud2, "/roof", heard.append, 100)
    bench.spin_until(lambda: len(heard) == 3, what="three sweeps at the slow node")
    slow.destroy_node()


@pytest.mark.ros
def test_a_named_node_that_does_not_come_ends_with_an_error(bench: Bench, bag_path: Path) -> None:
    bench.listen(PointCloud2, "/points")
    player = bench.player(bag_path, "wait_for_topics:=[/points]", "wait_for_nodes:=[/van/slow]", "wait_timeout_s:=0.5")
    player.start()
    bench.spin_until(lambda: player.finished, what="the end")
    assert player.failure == "/van/slow did not subscribe to /points in 0.5 s"
    assert bench.heard["/points"] == []


# --- the program -----------------------------------------------------------------------------------------------------


def program(*parameters: str) -> subprocess.Popen[str]:
    arguments = [part for parameter in parameters for part in ("-p", parameter)]
    return subprocess.Popen(
        [sys.executable, "-m", "xmodal_seg.nodes.play_bag_node", "--ros-args", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.ros
def test_wrong_bag_ends_with_one_sentence(tmp_path: Path) -> None:
    process = program(f"bag:={tmp_path}")
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert output.strip().splitlines() == [f"xmodal_seg: {tmp_path} is not a rosbag2 folder: no metadata.yaml in it"]


@pytest.mark.ros
def test_interrupt_ends_in_order(bag_path: Path) -> None:
    process = program(f"bag:={bag_path}", "rate:=0.0001")
    assert process.stdout is not None
    first_line = process.stdout.readline()
    assert "playing" in first_line
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert "Traceback" not in output


# As in test_runner: PyDLL keeps the interpreter's lock while it sleeps.
LOCKED_UP = """
import ctypes
import sys
from xmodal_seg.nodes import play_bag_node

play_bag_node.PlayBagNode.destroy_node = lambda self: ctypes.PyDLL(None).sleep(60)
sys.exit(play_bag_node.main())
"""


@pytest.mark.ros
def test_that_nobody_listened_is_told_although_the_middleware_is_locked_up(bag_path: Path) -> None:
    parameters = ["-p", f"bag:={bag_path}", "-p", "wait_for_topics:=[/points]", "-p", "wait_timeout_s:=0.2"]
    ended = subprocess.run(
        [sys.executable, "-c", LOCKED_UP, "--ros-args", *parameters], capture_output=True, text=True, timeout=50
    )
    assert "nobody subscribed to /points in 0.2 s" in ended.stdout + ended.stderr
    assert ended.returncode == NOBODY_LISTENED
