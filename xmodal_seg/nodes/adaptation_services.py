# SPDX-License-Identifier: Apache-2.0
"""The services `~/adaptation/{enable,reset,save,rollback}`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from xmodal_seg.adaptation.adapter import OnlineAdapter
from xmodal_seg.adaptation.settings import Mode

_NAP_S = 0.002


class AdaptationServices:
    """Present in every state of the node; a request that cannot be met is answered with a sentence.

    Args:
        node: with the parameter `adaptation.mode`, which `enable` sets, so that both always agree.
        adapter: the present one; raises ValueError where there is none.
        mode: what the settings make of that parameter, which may also be a bool.
        enable: begin anew in the mode of the parameters, where that has not changed.
    """

    def __init__(
        self,
        *,
        node: Node,
        adapter: Callable[[], OnlineAdapter],
        mode: Callable[[], Mode],
        enable: Callable[[], None],
    ) -> None:
        self._node, self._adapter, self._mode, self._enable = node, adapter, mode, enable
        # A group of their own: while one of them waits for the disk, the node's other callbacks go on.
        group = MutuallyExclusiveCallbackGroup()
        node.create_service(SetBool, "~/adaptation/enable", self._answer_enable, callback_group=group)
        node.create_service(Trigger, "~/adaptation/reset", self._answer_reset, callback_group=group)
        node.create_service(Trigger, "~/adaptation/save", self._answer_save, callback_group=group)
        node.create_service(Trigger, "~/adaptation/rollback", self._answer_rollback, callback_group=group)

    def _answer_enable(self, request: Any, response: Any) -> Any:
        mode = "on" if request.data else "select"
        try:
            self._adapter()
            is_new = self._mode() != mode
            result = self._node.set_parameters([Parameter("adaptation.mode", value=mode)])[0]
            if result.successful and not is_new:
                self._enable()
        except ValueError as error:
            response.success, response.message = False, str(error)
            return response
        response.success, response.message = result.successful, result.reason or f"adaptation.mode is {mode}"
        return response

    async def _answer_reset(self, _: Any, response: Any) -> Any:
        def reset() -> str:
            self._adapter().reset()
            return "back to the reference"

        return await _answered(response, reset)

    async def _answer_save(self, _: Any, response: Any) -> Any:
        return await _answered(response, lambda: "; ".join(self._adapter().save()))

    async def _answer_rollback(self, _: Any, response: Any) -> Any:
        return await _answered(response, lambda: f"{self._adapter().rollback()} is on offer")


class _Beside:
    """Runs `act` in a thread and can be awaited: it may wait for the disk, and sweeps must not."""

    def __init__(self, act: Callable[[], str]) -> None:
        self.success = False
        self.message = ""
        self._act = act
        self._thread = threading.Thread(target=self._run, name="adaptation service", daemon=True)
        self._thread.start()

    def __await__(self) -> Generator[None, None, None]:
        while self._thread.is_alive():
            self._thread.join(_NAP_S)  # rclpy comes back without rest to a callback that waits
            yield

    def _run(self) -> None:
        try:
            self.message = self._act()
        except ValueError as error:
            self.message = str(error)
        except Exception as error:  # such as a full disk: whoever asked is told
            self.message = f"{type(error).__name__}: {error}"
        else:
            self.success = True


async def _answered(response: Any, act: Callable[[], str]) -> Any:
    work = _Beside(act)
    await work
    response.success, response.message = work.success, work.message
    return response
