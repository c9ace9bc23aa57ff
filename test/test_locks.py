# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
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


def test_a_folder_that_another_process_holds_is_refused_until_that_one_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="run: another process is training here"), alone(folder):
        pass
    holder.kill()
    holder.wait()  # its worker still waits for the end of its input
    with alone(folder):
        pass
    holder.communicate()
