# SPDX-License-Identifier: Apache-2.0
"""A Settings class as ROS parameters: declared with descriptors, read back, validated as a whole, and watched.

A field becomes a parameter of the same name; the fields of a nested Settings class become `outer.inner`. Fields are
bool, int, float, str, Literal, `str | None` ('' means None), and lists or tuples of those (a list that is not set is
empty: ROS has no typed empty list). `ge`, `gt`, `le` and `lt` become ranges. A parameter is read-only unless its field
says `json_schema_extra={"dynamic": True}`; a field that says `{"parameter": False}` is none and keeps its default. A
choice between on, off and others may also come as a bool, since YAML reads the two words so without quotes.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from xmodal_seg.config import Settings, parse_settings

SettingsT = TypeVar("SettingsT", bound=Settings)
_SCALARS = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
}
_ARRAYS = {
    bool: Parameter.Type.BOOL_ARRAY,
    int: Parameter.Type.INTEGER_ARRAY,
    float: Parameter.Type.DOUBLE_ARRAY,
    str: Parameter.Type.STRING_ARRAY,
}
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class ParameterRow:
    """One parameter, for tables and YAML files."""

    name: str
    type: str  # bool, int, float, str, and with [] the lists of those
    default: Any  # as ROS has it: '' for None, a list for a tuple; None where it must be given
    constraint: str  # '' where there is none
    dynamic: bool
    description: str


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """A field that is a parameter."""

    path: tuple[str, ...]
    field: FieldInfo
    element: type  # bool, int, float or str
    is_array: bool
    choices: tuple[Any, ...]
    default: Any
    is_required: bool

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def type(self) -> Parameter.Type:
        return (_ARRAYS if self.is_array else _SCALARS)[self.element]

    @property
    def is_switch(self) -> bool:
        return {"on", "off"} <= set(self.choices)

    @property
    def is_dynamic(self) -> bool:
        extra = self.field.json_schema_extra
        return isinstance(extra, dict) and extra.get("dynamic") is True

    def to_ros(self) -> Any:
        """The default as ROS has it, None where it must be given."""
        if self.is_required:
            return None
        if self.is_array:
            return [self.element(value) for value in self.default]
        return "" if self.default is None else self.element(self.default)

    def from_ros(self, value: Any) -> Any:
        """What the Settings class takes."""
        if self.is_array:
            return [] if value is None else list(value)
        return None if value == "" and type(None) in typing.get_args(self.field.annotation) else value


def declare(node: Node, cls: type[SettingsT]) -> SettingsT:
    """Declares every field of `cls` on `node` and returns what the overrides make of it.

    Raises ValueError naming the parameter for a wrong type, a value out of range and settings that do not go together.
    """
    for leaf in _leaves(cls):
        default = leaf.to_ros()
        # An empty list would be typed as bytes, so its type is declared instead and the value left unset.
        value = leaf.type if default is None or default == [] else default
        try:
            node.declare_parameter(leaf.name, value, _descriptor(leaf))
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            hint = f"; write {leaf.element.__name__} values" if isinstance(error, InvalidParameterTypeException) else ""
            reason = str(error).rpartition(":")[0]  # rclpy repeats the name behind the sentence
            raise ValueError(f"parameter {leaf.name!r} of {node.get_name()}: {reason}{hint}") from error
    return read(node, cls)


def declare_all(node: Node, cls: type[SettingsT]) -> SettingsT:
    """`declare` for a node that has no other parameters: an override that names none of them is a ValueError too.

    A node that cannot start is destroyed here: left to the garbage collector it may deadlock in the middleware.
    """
    try:
        settings = declare(node, cls)
        unknown = unknown_overrides(node)
        if unknown:
            raise ValueError(f"{node.get_name()} has no parameter {', '.join(map(repr, unknown))}")
    except ValueError:
        node.destroy_node()
        raise
    return settings


def read(node: Node, cls: type[SettingsT]) -> SettingsT:
    """The present values of the parameters that `declare` declared, validated as a whole; ValueError as there."""
    return _parse(cls, _ros_values(node, cls), where=f"parameters of {node.get_name()}")


def unknown_overrides(node: Node, *, allowed: Sequence[str] = ()) -> list[str]:
    """Names that a launch file or command line sets but that nobody has declared, so misspelt or meant for others.

    Names that begin with one of `allowed`, and those of rclpy itself, are left out.
    """
    known = ("use_sim_time", "qos_overrides.", "start_type_description_service", *allowed)
    overrides: dict[str, Any] = getattr(node, "_parameter_overrides", {})  # rclpy has no public way to ask
    return sorted(name for name in overrides if not node.has_parameter(name) and not name.startswith(known))


def parameter_table(cls: type[Settings]) -> list[ParameterRow]:
    """One row for each parameter of `cls`, in the order of its fields."""
    return [
        ParameterRow(
            name=leaf.name,
            type=leaf.element.__name__ + ("[]" if leaf.is_array else ""),
            default=leaf.to_ros(),
            constraint=_constraint(leaf),
            dynamic=leaf.is_dynamic,
            description=leaf.field.description or "",
        )
        for leaf in _leaves(cls)
    ]


class ParameterGuard(Generic[SettingsT]):
    """Refuses parameter changes that do not validate, and tells `on_change` the settings after one that does.

    `on_change` is called when the change has taken place; on Humble, which has no callback for that, just before.
    `check` may refuse settings that are valid in themselves by a ValueError.
    """

    def __init__(
        self,
        *,
        node: Node,
        cls: type[SettingsT],
        on_change: Callable[[SettingsT], None],
        check: Callable[[SettingsT], None] = lambda _: None,
    ) -> None:
        self._node, self._cls, self._on_change, self._check_more = node, cls, on_change, check
        self._names = {leaf.name for leaf in _leaves(cls)}
        self._tells_after = hasattr(node, "add_post_set_parameters_callback")
        node.add_on_set_parameters_callback(self._check)
        if self._tells_after:
            node.add_post_set_parameters_callback(self._tell)

    def close(self) -> None:
        """Stops watching."""
        self._node.remove_on_set_parameters_callback(self._check)
        if self._tells_after:
            self._node.remove_post_set_parameters_callback(self._tell)

    def _check(self, parameters: list[Parameter[Any]]) -> SetParametersResult:
        changes = {parameter.name: parameter.value for parameter in parameters if parameter.name in self._names}
        if not changes:
            return SetParametersResult(successful=True)
        try:
            settings = _parse(self._cls, {**_ros_values(self._node, self._cls), **changes}, where="parameters")
            self._check_more(settings)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if not self._tells_after:
            self._on_change(settings)
        return SetParametersResult(successful=True)

    def _tell(self, parameters: list[Parameter[Any]]) -> None:
        if any(parameter.name in self._names for parameter in parameters):
            self._on_change(read(self._node, self._cls))


def _ros_values(node: Node, cls: type[Settings]) -> dict[str, Any]:
    return {leaf.name: node.get_parameter_or(leaf.name, Parameter(leaf.name)).value for leaf in _leaves(cls)}


def _parse(cls: type[SettingsT], ros_values: dict[str, Any], *, where: str) -> SettingsT:
    values: dict[str, Any] = {}
    for leaf in _leaves(cls):
        value = ros_values[leaf.name]
        if value is None and leaf.is_required:
            continue  # the Settings class says that it is missing
        group = values
        for part in leaf.path[:-1]:
            group = group.setdefault(part, {})
        group[leaf.path[-1]] = leaf.from_ros(value)
    return parse_settings(cls, values, where=where)


def _leaves(cls: type[Settings], path: tuple[str, ...] = (), defaults: Any = None) -> Iterator[_Leaf]:
    for name, field in cls.model_fields.items():
        default = field.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
        is_required = defaults is None and field.is_required()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from _leaves(field.annotation, (*path, name), None if is_required else default)
            continue
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("parameter") is False:
            continue
        element, is_array, choices = _kind(field.annotation, f"{cls.__name__}.{name}")
        yield _Leaf(
            path=(*path, name),
            field=field,
            element=element,
            is_array=is_array,
            choices=choices,
            default=default,
            is_required=is_required,
        )


def _kind(annotation: Any, where: str) -> tuple[type, bool, tuple[Any, ...]]:
    """Element type, whether it is an array, and the choices of a Literal. TypeError for what ROS has no type for."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _SCALARS:
        return annotation, False, ()
    if origin is Literal:
        return type(args[0]), False, args
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(arg, where) for arg in args if arg is not type(None)]
        if len(kinds) == 1 and kinds[0][0] is str and not kinds[0][1]:
            return kinds[0]
    if origin in (list, tuple):
        kinds = [_kind(arg, where) for arg in args if arg is not Ellipsis]
        if kinds and all(kind == kinds[0] and not kind[1] for kind in kinds):
            return kinds[0][0], True, kinds[0][2]
    raise TypeError(f"{where}: no ROS parameter has the type {annotation}")


def _descriptor(leaf: _Leaf) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(
        description=leaf.field.description or "",
        read_only=not leaf.is_dynamic,
        dynamic_typing=leaf.is_switch,
        additional_constraints=_constraint(leaf),
    )
    low, high = _bounds(leaf)
    if leaf.is_array or (low is None and high is None):
        return descriptor
    if leaf.element is float:
        least, most = -sys.float_info.max, sys.float_info.max
        descriptor.floating_point_range = [
            FloatingPointRange(
                from_value=least if low is None else float(low), to_value=most if high is None else float(high)
            )
        ]
    elif leaf.element is int:
        descriptor.integer_range = [
            IntegerRange(
                from_value=-_INT64_MAX if low is None else int(low), to_value=_INT64_MAX if high is None else int(high)
            )
        ]
    return descriptor


def _bounds(leaf: _Leaf) -> tuple[Any, Any]:
    """Lowest and highest value, None where open; ROS's ranges include the ends that gt and lt refuse later."""
    low = high = None
    for constraint in leaf.field.metadata:
        low = constraint.ge if isinstance(constraint, Ge) else constraint.gt if isinstance(constraint, Gt) else low
        high = constraint.le if isinstance(constraint, Le) else constraint.lt if isinstance(constraint, Lt) else high
    return low, high


def _constraint(leaf: _Leaf) -> str:
    parts = []
    if leaf.choices:
        parts.append("one of " + ", ".join(str(choice) for choice in leaf.choices))
    for constraint in leaf.field.metadata:
        for sign, kind, name in ((">=", Ge, "ge"), (">", Gt, "gt"), ("<=", Le, "le"), ("<", Lt, "lt")):
            if isinstance(constraint, kind):
                parts.append(f"{sign} {getattr(constraint, name)}")
    args = typing.get_args(leaf.field.annotation)
    if leaf.is_array and typing.get_origin(leaf.field.annotation) is tuple and Ellipsis not in args:
        parts.append(f"{len(args)} values")
    return ", ".join(parts)
