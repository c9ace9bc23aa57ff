# SPDX-License-Identifier: Apache-2.0
"""Lifecycle transitions that say what went wrong, and the start without a lifecycle manager."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import TypeVar

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

NodeT = TypeVar("NodeT", bound=LifecycleNode)


def transition(
    method: Callable[[NodeT, LifecycleState], None],
) -> Callable[[NodeT, LifecycleState], TransitionCallbackReturn]:
    """rclpy swallows exceptions of transitions without a word; this logs them and fails the transition."""

    @functools.wraps(method)
    def wrapped(self: NodeT, state: LifecycleState) -> TransitionCallbackReturn:
        name = method.__name__.removeprefix("on_")
        try:
            method(self, state)
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            self.get_logger().error(f"{name}: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().error(f"{name}: {traceback.format_exc()}")
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(f"{name}: done")
        return TransitionCallbackReturn.SUCCESS

    return wrapped


def configure_and_activate(node: LifecycleNode) -> bool:
    """False if a transition failed; it has logged why."""
    return all(
        trigger() == TransitionCallbackReturn.SUCCESS for trigger in (node.trigger_configure, node.trigger_activate)
    )
