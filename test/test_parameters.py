# SPDX-License-Identifier: Apache-2.0
"""Settings as ROS parameters, on real nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BeforeValidator, Field, model_validator

from xmodal_seg.config import Settings

rclpy = pytest.importorskip("rclpy")

from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from xmodal_seg.nodes.parameters import (
    ParameterGuard,
    ParameterRow,
    declare,
    parameter_table,
    read,
    unknown_overrides,
)

pytestmark = pytest.mark.ros
DYNAMIC: dict[str, Any] = {"dynamic": True}


class SyncSettings(Settings):
    policy: Literal["nearest", "approximate"] = Field(default="nearest", description="how to pair")
    tolerance_s: float = Field(default=0.05, gt=0, le=1, json_schema_extra=DYNAMIC, description="largest difference, s")


WORDS = BeforeValidator(lambda value: {True: "on", False: "off"}[value] if isinstance(value, bool) else value)


class SwitchSettings(Settings):
    mode: Annotated[Literal["off", "watch", "on"], WORDS] = Field(default="watch", json_schema_extra=DYNAMIC)


class NodeSettings(Settings):
    cameras: list[str] = Field(default=[], description="names")
    offsets_s: list[float] = Field(default=[])
    sizes: tuple[int, ...] = ()
    flags: list[bool] = Field(default=[])
    roles: tuple[str, ...] = ("main", "mimicry")
    intensity_range: tuple[float, float] = (0, 255)
    depth: int = Field(default=5, ge=1)
    ratio: float = Field(default=1, json_schema_extra=DYNAMIC)
    is_rectified: bool = True
    inner: float = Field(default=7.0, json_schema_extra={"parameter": False})
    file: str | None = None
    sync: SyncSettings = SyncSettings(policy="approximate")
    warn_ms: float = Field(default=100.0, ge=0, json_schema_extra=DYNAMIC)
    error_ms: float = Field(default=500.0, ge=0, json_schema_extra=DYNAMIC)

    @model_validator(mode="after")
    def _check(self) -> NodeSettings:
        if self.warn_ms > self.error_ms:
            raise ValueError(f"warn_ms {self.warn_ms:g} is above error_ms {self.error_ms:g}")
        return self


class RequiredSettings(Settings):
    checkpoint: str
    classes: list[int]


MakeNode = Callable[..., Node]


@pytest.fixture
def make_node() -> Iterator[MakeNode]:
    context = Context()
    rclpy.init(context=context, domain_id=87)
    nodes: list[Node] = []

    def make(**overrides: Any) -> Node:
        node = Node(
            f"parameters_{len(nodes)}",
            context=context,
            parameter_overrides=[Parameter(name.replace("__", "."), value=value) for name, value in overrides.items()],
        )
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown(context=context)


def _from_file(tmp_path: Path, text: str) -> Settings:
    """Declared on a node that reads `text` as a parameter file."""
    path = tmp_path / "node.param.yaml"
    path.write_text(text, encoding="utf-8")
    context = Context()
    rclpy.init(args=["--ros-args", "--params-file", str(path)], context=context, domain_id=87)
    try:
        node = Node("from_file", context=context)
        try:
            return declare(node, NodeSettings)
        finally:
            node.destroy_node()
    finally:
        rclpy.shutdown(context=context)


def test_without_overrides_the_defaults_come_back(make_node: MakeNode) -> None:
    node = make_node()
    assert declare(node, NodeSettings) == NodeSettings()
    assert read(node, NodeSettings) == NodeSettings()


def test_a_field_that_is_no_parameter_keeps_its_default(make_node: MakeNode) -> None:
    node = make_node(inner=3.0)
    assert declare(node, NodeSettings).inner == 7.0
    assert not node.has_parameter("inner")
    assert unknown_overrides(node) == ["inner"]


def test_overrides_are_read_back_by_type(make_node: MakeNode) -> None:
    node = make_node(
        cameras=["front", "rear"],
        offsets_s=[0.5],
        sizes=[3, 4],
        flags=[True, False],
        roles=["solo"],
        intensity_range=[1.0, 2.0],
        depth=7,
        ratio=0.5,
        is_rectified=False,
        file="calibration.yaml",
        sync__policy="nearest",
        sync__tolerance_s=0.25,
    )
    assert declare(node, NodeSettings) == NodeSettings(
        cameras=["front", "rear"],
        offsets_s=[0.5],
        sizes=(3, 4),
        flags=[True, False],
        roles=("solo",),
        intensity_range=(1.0, 2.0),
        depth=7,
        ratio=0.5,
        is_rectified=False,
        file="calibration.yaml",
        sync=SyncSettings(policy="nearest", tolerance_s=0.25),
    )


def test_an_empty_list_in_a_file_is_an_empty_list(tmp_path: Path) -> None:
    settings = _from_file(
        tmp_path, "/**:\n  ros__parameters:\n    roles: []\n    cameras: []\n    sync: {policy: nearest}\n"
    )
    assert settings == NodeSettings(roles=(), sync=SyncSettings(policy="nearest"))


def test_an_empty_list_keeps_its_type(make_node: MakeNode) -> None:
    node = make_node()
    declare(node, NodeSettings)
    types = [node.describe_parameter(name).type for name in ("cameras", "offsets_s", "sizes", "flags")]
    assert types == [
        Parameter.Type.STRING_ARRAY.value,
        Parameter.Type.DOUBLE_ARRAY.value,
        Parameter.Type.INTEGER_ARRAY.value,
        Parameter.Type.BOOL_ARRAY.value,
    ]


def test_descriptors_say_what_a_parameter_is_for_and_what_it_takes(make_node: MakeNode) -> None:
    node = make_node()
    declare(node, NodeSettings)
    tolerance = node.describe_parameter("sync.tolerance_s")
    assert tolerance.description == "largest difference, s"
    assert not tolerance.read_only
    assert (tolerance.floating_point_range[0].from_value, tolerance.floating_point_range[0].to_value) == (0.0, 1.0)
    depth = node.describe_parameter("depth")
    assert depth.read_only
    assert (depth.integer_range[0].from_value, depth.integer_range[0].to_value) == (1, 2**63 - 1)
    assert node.describe_parameter("sync.policy").additional_constraints == "one of nearest, approximate"
    assert not node.describe_parameter("ratio").floating_point_range


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depth": 0}, r"parameter 'depth' of parameters_0: .*\(0\).*out of range"),
        ({"sync__tolerance_s": 2.0}, r"parameter 'sync.tolerance_s' of parameters_0: .*out of range"),
        ({"sync__tolerance_s": 0.0}, r"parameters of parameters_0: sync.tolerance_s: .*greater than 0"),
        ({"ratio": 1}, r"parameter 'ratio' of parameters_0: .*'INTEGER', expecting type 'DOUBLE'; write float values"),
        ({"cameras": [1, 2]}, r"parameter 'cameras' of parameters_0: .*expecting type 'STRING_ARRAY'"),
        ({"sync__policy": "best"}, r"parameters of parameters_0: sync.policy: .*'nearest' or 'approximate'"),
        ({"intensity_range": [1.0]}, r"parameters of parameters_0: intensity_range"),
        ({"warn_ms": 600.0}, r"parameters of parameters_0: .*warn_ms 600 is above error_ms 500"),
    ],
)
def test_wrong_overrides_end_in_one_sentence_that_names_the_parameter(
    make_node: MakeNode, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        declare(make_node(**overrides), NodeSettings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "word"), [(True, "on"), (False, "off"), ("on", "on"), ("watch", "watch")])
def test_on_and_off_may_come_as_yaml_reads_them(make_node: MakeNode, value: bool | str, word: str) -> None:
    assert declare(make_node(mode=value), SwitchSettings).mode == word
    node = make_node()
    assert declare(node, SwitchSettings).mode == "watch"
    told: list[SwitchSettings] = []
    ParameterGuard(node=node, cls=SwitchSettings, on_change=told.append)
    assert node.set_parameters([Parameter("mode", value=value)])[0].successful
    assert [settings.mode for settings in told] == [word]
    assert not node.set_parameters([Parameter("mode", value=3)])[0].successful
    assert read(node, SwitchSettings).mode == word


def test_a_switch_that_is_neither_is_refused(make_node: MakeNode) -> None:
    with pytest.raises(ValueError, match="parameters_0: mode: Input should be 'off', 'watch' or 'on', got 3"):
        declare(make_node(mode=3), SwitchSettings)


def test_a_required_parameter_that_is_not_given_is_named(make_node: MakeNode) -> None:
    with pytest.raises(ValueError, match=r"checkpoint: Field required; classes: Field required"):
        declare(make_node(), RequiredSettings)
    assert declare(make_node(checkpoint="a", classes=[1]), RequiredSettings).checkpoint == "a"


def test_a_field_without_a_ros_type_is_refused(make_node: MakeNode) -> None:
    class Odd(Settings):
        table: dict[str, int] = Field(default={})

    with pytest.raises(TypeError, match=r"Odd\.table: no ROS parameter has the type dict"):
        declare(make_node(), Odd)


def test_overrides_that_nobody_declared_are_listed(make_node: MakeNode) -> None:
    node = make_node(depht=3, depth=3, use_sim_time=False, plugin__gain=1.0)
    declare(node, NodeSettings)
    assert unknown_overrides(node, allowed=("plugin.",)) == ["depht"]


class OldNode:
    """A node as Humble has it: nothing is called after a parameter was set."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        if "post_set_parameters" in name:
            raise AttributeError(name)
        return getattr(self._node, name)


@pytest.fixture(params=["now", "humble"])
def guarded(request: pytest.FixtureRequest, make_node: MakeNode) -> tuple[Node, list[NodeSettings]]:
    node = make_node()
    declare(node, NodeSettings)
    told: list[NodeSettings] = []
    watched: Any = node if request.param == "now" else OldNode(node)
    ParameterGuard(node=watched, cls=NodeSettings, on_change=told.append)
    return node, told


def test_a_change_is_told_with_all_settings(guarded: tuple[Node, list[NodeSettings]]) -> None:
    node, told = guarded
    assert node.set_parameters([Parameter("warn_ms", value=50.0)])[0].successful
    assert told == [NodeSettings(warn_ms=50.0)]
    assert read(node, NodeSettings).warn_ms == 50.0


def test_values_that_only_fit_together_are_set_together(guarded: tuple[Node, list[NodeSettings]]) -> None:
    node, told = guarded
    both = [Parameter("warn_ms", value=600.0), Parameter("error_ms", value=700.0)]
    assert not node.set_parameters(both)[0].successful
    assert node.set_parameters_atomically(both).successful
    assert told[-1] == NodeSettings(warn_ms=600.0, error_ms=700.0)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("warn_ms", 501.0, "warn_ms 501 is above error_ms 500"),
        ("sync.tolerance_s", 0.0, "sync.tolerance_s: Input should be greater than 0, got 0.0"),
        ("sync.tolerance_s", 3.0, "out of range"),
        ("depth", 6, "read-only"),
        ("warn_ms", 1, "Wrong parameter type"),
    ],
)
def test_a_change_that_does_not_validate_is_refused_with_its_reason(
    guarded: tuple[Node, list[NodeSettings]], name: str, value: Any, reason: str
) -> None:
    node, told = guarded
    result = node.set_parameters([Parameter(name, value=value)])[0]
    assert not result.successful
    assert reason in result.reason
    assert told == []
    assert read(node, NodeSettings) == NodeSettings()


def test_parameters_of_others_are_let_through(guarded: tuple[Node, list[NodeSettings]]) -> None:
    node, told = guarded
    node.declare_parameter("other", 1)
    assert node.set_parameters([Parameter("other", value=2)])[0].successful
    assert told == []


def test_a_closed_guard_watches_no_more(make_node: MakeNode) -> None:
    node = make_node()
    declare(node, NodeSettings)
    told: list[NodeSettings] = []
    guard = ParameterGuard(node=node, cls=NodeSettings, on_change=told.append)
    guard.close()
    assert node.set_parameters([Parameter("warn_ms", value=501.0)])[0].successful
    assert told == []


def test_the_table_has_a_row_for_each_parameter() -> None:
    rows = {row.name: row for row in parameter_table(NodeSettings)}
    assert list(rows)[-4:] == ["sync.policy", "sync.tolerance_s", "warn_ms", "error_ms"]
    assert rows["sync.tolerance_s"] == ParameterRow(
        name="sync.tolerance_s",
        type="float",
        default=0.05,
        constraint="> 0, <= 1",
        dynamic=True,
        description="largest difference, s",
    )
    assert rows["sync.policy"].default == "approximate"
    assert rows["sync.policy"].constraint == "one of nearest, approximate"
    assert (rows["intensity_range"].type, rows["intensity_range"].default) == ("float[]", [0.0, 255.0])
    assert rows["intensity_range"].constraint == "2 values"
    assert (rows["file"].type, rows["file"].default) == ("str", "")
    assert (rows["roles"].default, rows["ratio"].default) == (["main", "mimicry"], 1.0)
    assert parameter_table(RequiredSettings)[0].default is None
