# SPDX-License-Identifier: Apache-2.0
"""Imports modules one after the other and tells what each changed; `test_architecture.py` runs it.

Reads from standard input JSON (modules, names of packages that must not be importable, endings of such names) and
prints one JSON line (module, faults) for each. The heavy libraries are loaded before, so that what they do is not laid
at our modules' door.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import cv2  # noqa: F401
import numpy  # noqa: F401
import pydantic  # noqa: F401
import torch
import yaml  # noqa: F401

if importlib.util.find_spec("lightning_fabric") is not None:  # the extra `train`; it writes to the environment
    importlib.import_module("lightning_fabric")


class Refuse:
    """An import hook for packages that are to be missing."""

    def __init__(self, *, packages: Sequence[str], endings: Sequence[str]) -> None:
        self._packages = frozenset(packages)
        self._endings = tuple(endings)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        root = name.partition(".")[0]
        if root in self._packages or (self._endings and root.endswith(self._endings)):
            raise ImportError(f"{root} is made to be missing")


def state() -> dict[str, Any]:
    """What an import must leave as it was."""
    return {
        "environment": dict(os.environ),
        "CUDA": torch.cuda.is_initialized(),
        "torch threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "random numbers": torch.random.get_rng_state().tolist(),
        "log handlers": [str(handler) for handler in logging.getLogger().handlers],
        "own log handlers": [
            name
            for name, logger in logging.root.manager.loggerDict.items()
            if name.startswith("xmodal_seg") and getattr(logger, "handlers", None)
        ],
        "threads": [thread.name for thread in threading.enumerate()],
        "spconv": "spconv" in sys.modules,
        "rclpy context": "rclpy" in sys.modules and sys.modules["rclpy"].ok(),
    }


def faults_of(module: str) -> list[str]:
    before = state()
    try:
        importlib.import_module(module)
    except Exception:
        return [traceback.format_exc(limit=-2)]
    after = state()
    return [f"changes: {what}" for what in before if before[what] != after[what]]


def main() -> int:
    modules, packages, endings = json.load(sys.stdin)
    sys.meta_path.insert(0, Refuse(packages=packages, endings=endings))  # type: ignore[arg-type]
    for module in modules:
        print(json.dumps([module, faults_of(module)]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
