# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark beside this file and write one Markdown report: `make benchmark` or, for some of them,
`python test/benchmark/run.py --only frame memory`.

Times depend on the machine and on what else it does; ratios within one report are what counts.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PACKAGES = ("torch", "spconv-cu120", "spconv-cu126", "timm", "numpy", "opencv-python-headless")


def main(argv: list[str] | None = None) -> int:
    """0 if every benchmark ran."""
    names = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, help="the report; default: results/<machine>[_<only>]_<date>.md")
    arguments = parser.parse_args(argv)
    sys.path.insert(0, str(FOLDER))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    selected = [] if arguments.only == names else arguments.only  # so that a part does not replace the whole
    name = "_".join([machine_name(), *selected, f"{datetime.date.today():%Y-%m-%d}"])
    out = arguments.out or FOLDER / "results" / f"{name}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    sections = [header()]
    for name in arguments.only:
        print(f"running {name} ...", flush=True)
        module = importlib.import_module(f"bench_{name}")
        sections.append(f"## {name}\n\n{(module.__doc__ or '').strip()}\n\n{table(module.run())}\n")
        out.write_text("\n".join(sections), encoding="utf-8")  # what has run is kept if a later one fails
    print(out)
    return 0


def header() -> str:
    """Machine, versions and command."""
    import torch

    from xmodal_seg.devices import device_name

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=FOLDER, capture_output=True, text=True)
    lines = [
        "# Benchmarks",
        "",
        f"- machine: {device_name(torch.device('cpu'))}, {os.cpu_count()} cores, {device}",
        f"- versions: Python {platform.python_version()}, " + ", ".join(installed()),
        f"- code: {commit.stdout.strip() or 'unknown'}",
        f"- command: `{' '.join(['python', 'test/benchmark/run.py', *sys.argv[1:]])}`",
        "",
    ]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows -> a Markdown table; numbers with one decimal, or two below ten."""
    if not rows:
        return "(no rows)"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(column.strip() for column in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def installed() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue  # spconv has one package for each CUDA version
    return found


def machine_name() -> str:
    import torch

    return torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
