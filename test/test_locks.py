# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from xmodal_seg.training.locks import alone

HOLDER = """
import os, sys
from pathlib import Path
from xmodal_seg.training.locks import alone
with alone(Path(sys.argv[1])):
    if os.fork() == 0:  # a worker
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


ASK = """
import sys
from pathlib import Path
from xmodal_seg.training.locks import alone
try:
    with alone(Path(sys.argv[1]), patience_s=0):
        pass
except ValueError:
    sys.exit(3)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_folder_that_another_process_holds_is_refused_until_that_one_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    holder = hold(folder)
    with pytest.raises(ValueError, match="run: another process is training here"), alone(folder, patience_s=0):
        pass
    holder.kill()
    holder.wait()  # its worker still waits for the end of its input
    with alone(folder, patience_s=0):
        pass
    holder.communicate()


def test_a_killed_holder_is_given_time_to_end(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    threading.Timer(0.5, holder.kill).start()
    with alone(tmp_path, patience_s=60):
        assert holder.wait(60) != 0
    holder.communicate()


def test_the_holder_may_ask_again_and_keeps_it(tmp_path: Path) -> None:
    ask = [sys.executable, "-c", ASK, str(tmp_path)]
    with alone(tmp_path):
        with alone(tmp_path / "." / "x" / ".."):
            pass
        assert subprocess.run(ask, check=False).returncode == 3
    assert subprocess.run(ask, check=False).returncode == 0


def test_where_there_are_no_locks_it_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with alone(tmp_path):
        assert "not held while it trains" in caplog.text
