# SPDX-License-Identifier: Apache-2.0
"""What the programs of `training/` have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

_INTERRUPTED = 130  # as a shell has it


def run_program(main: Callable[[], int]) -> int:
    """The exit code of `main`; after Ctrl-C a word in place of a traceback."""
    try:
        return main()
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        return _INTERRUPTED


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The option `--set`, any number of times, as `overrides`."""
    told = "a value of the recipe instead, such as optim.steps=100"
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=told)


def results_table(results: dict[str, Any], *, title: str) -> Table:
    """The scores of a run's results.json: protocols down, heads across."""
    protocols = results["test"]
    table = Table(title=f"{title}: mIoU in percent on {results['data']}")
    table.add_column("checkpoint")
    for head in protocols["last"]:
        table.add_column(head, justify="right")
    for protocol, heads in protocols.items():
        table.add_row(protocol, *(f"{scores['miou']:.1f}" for scores in heads.values()))
    return table
