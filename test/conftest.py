# SPDX-License-Identifier: Apache-2.0
"""The surroundings of every test: a DDS domain of its own, one torch thread, fixed seeds; and the real data."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from xmodal_seg.commands.processes import free_domain
from xmodal_seg.openmp import sleep_while_waiting

if TYPE_CHECKING:
    from rclpy.context import Context

# Domain 0 is where people's robots are; above 101 a domain's ports reach into Linux's ephemeral ones.
_DOMAINS = range(20, 100)
_CLAIM = pytest.StashKey[socket.socket]()


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment of rclpy before a test module can start a node, here or in a process of its own."""
    domain, config.stash[_CLAIM] = _claim_domain()
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    # Fast DDS's defaults serve small messages within one process. LARGE_DATA, which tests of large ones set themselves,
    # adds TCP, and a process that makes and destroys dozens of participants over TCP deadlocks in Fast DDS 3.2.
    os.environ.pop("FASTDDS_BUILTIN_TRANSPORTS", None)
    torch.set_num_threads(1)  # sums of another number of threads differ in their last bits
    sleep_while_waiting()  # the nodes that tests start


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_CLAIM].close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("ros") and find_spec("rclpy") is None:
        pytest.skip("rclpy is missing: source a ROS installation, or pip install -e '.[pip-ros]'")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The order of the tests does not change what they draw."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real sensor data that XMODAL_SEG_DATA names; the test is skipped where it is unset."""
    folder = os.environ.get("XMODAL_SEG_DATA")
    if not folder:
        pytest.skip("XMODAL_SEG_DATA does not name a folder of real sensor data")
    path = Path(folder)
    assert path.is_dir(), f"XMODAL_SEG_DATA: {folder} is not a folder"
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training task's four parts, tiny."""
    from tiny_world import write_tiny_world

    root = tmp_path_factory.mktemp("world")
    write_tiny_world(root)
    return root


@pytest.fixture
def large_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transports that lose no large messages, in a domain of their own, for the processes that the test starts."""
    monkeypatch.setenv("FASTDDS_BUILTIN_TRANSPORTS", "LARGE_DATA")
    monkeypatch.setenv("ROS_DOMAIN_ID", str(free_domain()))


@pytest.fixture
def ros_context() -> Iterator[Context]:
    """An initialised rclpy context of this test's own, shut down after it."""
    rclpy = pytest.importorskip("rclpy", reason="rclpy is missing")
    context = rclpy.context.Context()
    rclpy.init(context=context)
    yield context
    context.try_shutdown()


def _claim_domain() -> tuple[int, socket.socket]:
    """A DDS domain that no other test session of this machine holds; the bound port is the claim, freed at exit."""
    for domain in _DOMAINS:
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", 7399 + 250 * domain))  # one below the domain's own ports
        except OSError:
            claim.close()
            continue
        return domain, claim
    raise pytest.UsageError(f"no free DDS domain in {_DOMAINS}: are that many test sessions running?")
