# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, cast

import pytest
from helpers import wait_for

from xmodal_seg.commands import processes
from xmodal_seg.commands.meeting import NotMetError, playback_has_ended, until_heard, until_they_meet
from xmodal_seg.commands.processes import child, deferred_interrupts, environment_variables, free_domain
from xmodal_seg.nodes.playback import NOBODY_LISTENED


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(grandchild.pid, flush=True)
time.sleep(600)
"""


def test_children_and_grandchildren_end_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_seg.commands.processes._STOP_TIMEOUT_S", 0.1)
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    log = tmp_path / "log.txt"
    pids: list[int] = []

    def fail_beside_a_child() -> None:
        with child("stubborn", [], log=log, environment={"PYTHONPATH": str(tmp_path)}) as process:
            wait_for(lambda: log.read_text().endswith("\n"))
            pids.extend((process.pid, int(process.last_lines())))
            assert all(is_alive(pid) for pid in pids)
            raise RuntimeError("the block failed")

    with pytest.raises(RuntimeError, match="the block failed"):
        fail_beside_a_child()
    assert not is_alive(pids[0])
    wait_for(lambda: not is_alive(pids[1]))


def test_environment_is_put_back() -> None:
    os.environ["XMODAL_SEG_TEST"] = "before"
    with environment_variables({"XMODAL_SEG_TEST": "within", "XMODAL_SEG_TEST_NEW": "new"}):
        assert (os.environ["XMODAL_SEG_TEST"], os.environ["XMODAL_SEG_TEST_NEW"]) == ("within", "new")
    assert os.environ.pop("XMODAL_SEG_TEST") == "before"
    assert "XMODAL_SEG_TEST_NEW" not in os.environ


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_wait_for_a_safe_moment(number: int) -> None:
    handler = signal.getsignal(number)
    passed = []

    def work() -> None:
        with deferred_interrupts() as check:
            check()
            os.kill(os.getpid(), number)
            passed.append("not interrupted here")
            check()
            passed.append("but there")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert passed == ["not interrupted here"]
    assert signal.getsignal(number) == handler
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        os.kill(os.getpid(), number)


def test_a_domain_in_use_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    used = free_domain()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 7410 + 250 * used))
        monkeypatch.setattr(processes, "_DOMAINS", (used,))
        with pytest.raises(ValueError, match="every ROS domain"):
            free_domain()


def test_processes_that_do_not_meet_get_another_chance(capsys: pytest.CaptureFixture[str]) -> None:
    patience: list[float] = []

    def meet_at_last(seconds: float) -> str:
        patience.append(seconds)
        if len(patience) < 3:
            raise NotMetError("nobody subscribed to /points")
        return "met"

    assert until_they_meet(meet_at_last) == "met"
    assert patience == [60, 120, 300]
    assert capsys.readouterr().err.count("started again: nobody subscribed to /points") == 2


def test_processes_that_never_meet_end_in_the_last_reason() -> None:
    reasons = iter(("first", "second", "third"))

    def never(_: float) -> None:
        raise NotMetError(next(reasons))

    with pytest.raises(NotMetError, match="third"):
        until_they_meet(never)


def test_another_failure_is_not_tried_again() -> None:
    attempts: list[float] = []

    def fail(seconds: float) -> None:
        attempts.append(seconds)
        raise ValueError("no checkpoint here")

    with pytest.raises(ValueError, match="no checkpoint here"):
        until_they_meet(fail)
    assert len(attempts) == 1


ENDING = """
import pathlib, sys, time
print("the last line", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
sys.exit(int(pathlib.Path(sys.argv[1]).read_text()))
"""


@pytest.mark.parametrize("code", [0, NOBODY_LISTENED, 1])
def test_a_playback_ends_in_one_of_three_ways(code: int, tmp_path: Path) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    told = tmp_path / "code.txt"
    environment = {"PYTHONPATH": str(tmp_path)}
    with child("ending", [str(told)], log=tmp_path / "log.txt", environment=environment) as player:
        assert not playback_has_ended(player)
        told.with_suffix(".part").write_text(str(code))
        told.with_suffix(".part").rename(told)
        wait_for(lambda: player.exit_code() is not None)
        if code == 0:
            assert playback_has_ended(player)
        else:
            expected = NotMetError if code == NOBODY_LISTENED else ValueError
            with pytest.raises(ValueError, match="the last line") as raised:
                playback_has_ended(player)
            assert raised.type is expected


class FakeRecorder:
    """Hears the node after some turns, each of which takes a second of a clock that only it moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, hears_after: int) -> None:
        self.turns, self._hears_after = 0, hears_after
        monkeypatch.setattr(time, "monotonic", lambda: float(self.turns))

    @property
    def hears_the_node(self) -> bool:
        return self.turns >= self._hears_after

    def spin_once(self, _: float) -> None:
        self.turns += 1


class FakeNode:
    name = "a_node"

    def __init__(self, code: int | None = None) -> None:
        self._code = code

    def exit_code(self) -> int | None:
        return self._code

    def last_lines(self) -> str:
        return "its reason"


def listen(recorder: FakeRecorder, node: FakeNode) -> None:
    for _ in until_heard(cast(Any, recorder), [cast(Any, node)], patience_s=5.0):
        pass


@pytest.mark.parametrize("turns", [0, 1, 6])  # the last: heard in a turn that took longer than there was time
def test_a_node_that_is_heard(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = FakeRecorder(monkeypatch, hears_after=turns)
    listen(recorder, FakeNode())
    assert recorder.turns == turns


def test_a_node_that_is_never_heard_or_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotMetError, match="nothing was heard of a_node in 5 s"):
        listen(FakeRecorder(monkeypatch, hears_after=99), FakeNode())
    with pytest.raises(ValueError, match="a_node ended early with exit code 3:\nits reason"):
        listen(FakeRecorder(monkeypatch, hears_after=99), FakeNode(code=3))
