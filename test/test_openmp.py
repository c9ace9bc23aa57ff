# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
PROGRAM = """
import json, os, sys
from importlib import import_module

class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(json.dumps(dict(os.environ)), flush=True)
            os._exit(0)

sys.meta_path.insert(0, AtTorch())
module, function, *sys.argv[1:] = sys.argv[1:]
getattr(import_module(module), function)()
"""


def environment_at_torch(module: str, function: str, *arguments: str, **given: str) -> dict[str, str]:
    """What torch sees of `NAMES` when the entry point imports it."""
    rest = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-c", PROGRAM, module, function, *arguments]
    result = subprocess.run(command, env={**rest, **given}, capture_output=True, text=True, check=True)
    seen = json.loads(result.stdout.splitlines()[-1])
    return {name: seen[name] for name in NAMES if name in seen}


@pytest.mark.ros
@pytest.mark.parametrize("node", ["segmentation_node", "lighting_node"])
def test_nodes_begin_with_short_waits(node: str) -> None:
    assert environment_at_torch("xmodal_seg.nodes.entry", node) == {"GOMP_SPINCOUNT": "1000"}


def test_so_do_commands_unless_the_user_wants_it_otherwise() -> None:
    def seen(**given: str) -> dict[str, str]:
        return environment_at_torch("xmodal_seg.commands.main", "main", "info", **given)

    assert seen() == {"GOMP_SPINCOUNT": "1000"}
    assert seen(GOMP_SPINCOUNT="7") == {"GOMP_SPINCOUNT": "7"}
    assert seen(OMP_WAIT_POLICY="active") == {"OMP_WAIT_POLICY": "active"}
