# SPDX-License-Identifier: Apache-2.0
"""The programs of the top-level training/ folder, imported by file: they are no package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "training"))  # where a program finds its neighbours when it is called


def load_program(name: str) -> ModuleType:
    """training/<name>.py as a module."""
    path = ROOT / "training" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"program_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
