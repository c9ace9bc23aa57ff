# SPDX-License-Identifier: Apache-2.0
"""Do the version ranges of setup.py resolve? A dry run for each Python: `make check-dependencies`.

uv reads the metadata of the packages from the index and downloads none of them. (pip's own dry run judges the
environment markers by the Python that it runs on.) Ends with 1 if a set does not resolve, and with 0 and a sentence
where the index is out of reach: that says nothing about the ranges.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from packaging_facts import read_setup
from rich.console import Console
from rich.table import Table

PYTHONS = ("3.10", "3.11", "3.12")
SHOWN = ("torch", "spconv", "timm", "numpy", "opencv-python-headless", "rosbags", "ros-rclpy")
# The platform of Ubuntu 22.04 and of everything newer.
PLATFORM = "x86_64-manylinux_2_28"
# Wheels only, so that a Python without a wheel is found here and not by a compiler on a user's machine. empy, which
# the ROS wheels need, is pure Python and published as source alone.
WHEELS_ONLY = ("--only-binary", ":all:", "--no-binary", "empy")
UNREACHABLE = 2  # uv's exit status for everything but "no solution", which is 1


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The versions that one Python would get, or why there are none."""

    python: str
    versions: dict[str, str]  # empty if it did not resolve
    reason: str = ""
    unreachable: bool = False

    def version_of(self, name: str) -> str:
        """Version of `name`; "cu120 2.3.6" for spconv, whose name holds the CUDA version."""
        if name in self.versions:
            return self.versions[name]
        variants = [key for key in self.versions if key.startswith(f"{name}-cu")]
        return ", ".join(f"{key.removeprefix(name + '-')} {self.versions[key]}" for key in variants) or "-"


def requirements() -> list[str]:
    """Core and all extras. Older setuptools hold `name; marker` as the line `name` of an extra called `:marker`."""
    setup = read_setup()
    lines = list(setup.install_requires)
    for extra, needed in setup.extras_require.items():
        marker = extra.partition(":")[2]
        lines += [f"{line}; {marker}" if marker else line for line in needed]
    return lines


def resolve(python: str, lines: Sequence[str], *, lowest: bool) -> Resolution:
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-version", python, "--python-platform", PLATFORM, *WHEELS_ONLY]
    command += ["--resolution", "lowest-direct"] if lowest else []
    result = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        return Resolution(
            python=python,
            versions={},
            reason=result.stderr.strip(),
            unreachable=result.returncode == UNREACHABLE and "Failed to fetch" in result.stderr,
        )
    return Resolution(python=python, versions=dict(re.findall(r"^([\w.-]+)==(\S+)", result.stdout, flags=re.MULTILINE)))


def table(resolutions: Sequence[Resolution]) -> Table:
    rows = Table("Python", "resolves", *SHOWN)
    for found in resolutions:
        rows.add_row(found.python, "yes" if found.versions else "NO", *(found.version_of(name) for name in SHOWN))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Resolve the requirements of setup.py, with all extras, for each Python."
    )
    parser.add_argument("--lowest", action="store_true", help="take the lowest version that each range allows")
    arguments = parser.parse_args(argv)
    lines = requirements()
    resolutions = []
    for python in PYTHONS:
        resolutions.append(resolve(python, lines, lowest=arguments.lowest))
        if resolutions[-1].unreachable:
            print("dependency ranges: not checked, the package index is out of reach")
            return 0
    Console(width=140).print(table(resolutions))
    for found in resolutions:
        if not found.versions:
            print(f"Python {found.python}: {found.reason}", file=sys.stderr)
    return 0 if all(found.versions for found in resolutions) else 1


if __name__ == "__main__":
    sys.exit(main())
