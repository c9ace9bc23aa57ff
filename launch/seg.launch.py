# SPDX-License-Identifier: Apache-2.0
"""Start segmentation and lighting on a robot's own topics: `ros2 launch xmodal_seg seg.launch.py --show-args`."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
    TimerAction,
)
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(get_package_share_directory("xmodal_seg"))

# Empty: what the parameter file says. name -> (default, description)
ARGUMENTS = {
    "params_file": (str(SHARE / "config/nodes/segmentation_node.param.yaml"), "parameter file of the node"),
    "cameras": ("", "names of the cameras, separated by commas; 'none' for LiDAR alone"),
    "image_topics": ("", "image topic of each camera, separated by commas, in the order of cameras"),
    "camera_info_topics": ("", "CameraInfo topic of each camera, separated by commas; else beside the image topics"),
    "image_transport": ("", "raw or compressed"),
    "points_topic": ("", "PointCloud2 topic of the LiDAR"),
    "reliability": ("", "QoS of images and points: best_effort (hears every publisher) or reliable"),
    "camera_info_durability": ("", "volatile, or transient_local for drivers that publish CameraInfo once"),
    "intensity_min": ("", "LiDAR intensity that the model shall see as 0"),
    "intensity_max": ("", "LiDAR intensity that the model shall see as 1"),
    "camera_timeout_ms": ("", "a sweep goes on without a camera after waiting this long by the wall clock, ms"),
    "transform_timeout_s": ("", "how long a sweep waits for a transform by the wall clock, s"),
    "lidar_frame": ("", "overrides the frame_id of the points"),
    "camera_frames": ("", "overrides the frame_id of each camera, separated by commas"),
    "calibration_file": ("", "YAML with camera poses (and intrinsics) where transforms or CameraInfo are missing"),
    "checkpoint": ("", "checkpoint folder, or the name of a shipped one; else nuscenes"),
    "device": ("", "auto, cpu, cuda or cuda:N"),
    "precision": ("", "of image network and fusion: float32, or bfloat16 for a GPU"),
    "lighting": ("true", "also start the lighting node, whose estimates choose the weight bank"),
    "lighting_params_file": (
        str(SHARE / "config/nodes/lighting_node.param.yaml"),
        "parameter file of the lighting node",
    ),
    "lighting_topic": ("", "topic of the light's estimates, which choose the weight bank; 'none': it stays"),
    "lighting_coefficients": ("", "YAML of `xmodal-seg calibrate-lighting`; else the ones shipped with the package"),
    "use_sim_time": ("", "true when a bag is played with --clock"),
    "namespace": ("", "namespace of the node and of its relative topics"),
    "autostart": ("true", "configure and activate at once; false for a lifecycle manager"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "rviz": (
        "false",
        "also start RViz with cloud and overlay (it has no display for diagnostics: see rqt_robot_monitor, Foxglove)",
    ),
}
# s; launch's own 5 are less than the 10 that the segmentation node gives a frame in work, and then it has still to end.
SIGTERM_TIMEOUT = LaunchConfiguration("sigterm_timeout", default="15")
RESTART_S = 2.0
GPU_LOST = 75  # exit code of a segmentation node whose process can compute nothing more on its GPU
# What the lighting node has as well, under the same name.
SHARED = ("cameras", "image_topics", "image_transport", "points_topic", "reliability", "use_sim_time", "autostart")
LISTS = ("cameras", "image_topics", "camera_info_topics", "camera_frames")
STRINGS = (
    "image_transport",
    "points_topic",
    "reliability",
    "camera_info_durability",
    "lidar_frame",
    "calibration_file",
    "checkpoint",
    "device",
    "precision",
)
NUMBERS = ("intensity_min", "intensity_max", "camera_timeout_ms", "transform_timeout_s")
FLAGS = ("use_sim_time", "autostart")


def generate_launch_description() -> LaunchDescription:
    """All arguments, then the nodes."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=make_nodes)])


def make_nodes(context: LaunchContext) -> list:
    """The nodes with the parameters that were given, lighting and RViz if asked for."""
    refuse_misspelt(context.launch_configurations)
    values = {name: context.perform_substitution(LaunchConfiguration(name)) for name in ARGUMENTS}
    return [*large_message_transport(), OpaqueFunction(function=start_nodes, args=[values])]


def start_nodes(context: LaunchContext, values: dict[str, str]) -> list:
    """The nodes, and what a later start of them needs of the group that this file may have been included in."""
    group = Group(configurations=dict(context.launch_configurations), environment=dict(context.environment))
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        namespace=values["namespace"],  # the layout's topics are relative
        arguments=["-d", str(SHARE / "config/rviz/seg.rviz"), *fixed_frame(values["lidar_frame"])],
        parameters=[{"use_sim_time": to_bool("use_sim_time", values["use_sim_time"] or "false")}],
    )
    optional = {"lighting": make_lighting(values, group), "rviz": rviz}
    asked_for = [action for name, action in optional.items() if to_bool(name, values[name])]
    return [make_segmentation(values, group), *asked_for]


@dataclass(frozen=True)
class Group:
    """What holds inside a GroupAction (namespace, remaps, environment), which is left long before a node ends."""

    configurations: dict[str, Any]
    environment: dict[str, str]

    def restore(self, context: LaunchContext) -> None:
        context.launch_configurations.update(self.configurations)
        context.environment.update(self.environment)


def make_segmentation(values: dict[str, str], group: Group) -> Node:
    """Without it there is nothing to launch; one that lost its GPU is started again."""
    return Node(
        package="xmodal_seg",
        executable="segmentation_node",
        name="xmodal_seg",
        namespace=values["namespace"],
        parameters=[values["params_file"], parameter_overrides(values)],
        arguments=["--ros-args", "--log-level", values["log_level"]],
        output="screen",
        sigterm_timeout=SIGTERM_TIMEOUT,
        on_exit=start_again(
            lambda: make_segmentation(values, group),
            group=group,
            after=lambda code: code == GPU_LOST,
            otherwise=[Shutdown(reason="the segmentation node has ended")],
        ),
    )


def make_lighting(values: dict[str, str], group: Group) -> Node:
    """Without it segmentation goes on, with the bank it serves; one that a signal has ended is started again."""
    return Node(
        package="xmodal_seg",
        executable="lighting_node",
        name="lighting",
        namespace=values["namespace"],
        parameters=[values["lighting_params_file"], lighting_overrides(values)],
        arguments=["--ros-args", "--log-level", values["log_level"]],
        sigterm_timeout=SIGTERM_TIMEOUT,
        output="screen",
        on_exit=start_again(lambda: make_lighting(values, group), group=group, after=lambda code: code < 0),
    )


def start_again(
    make: Callable[[], Node], *, group: Group, after: Callable[[int], bool], otherwise: Sequence[Action] = ()
) -> Callable[[ProcessExited, LaunchContext], list]:
    """What to do when a node has ended: start a new one after some exit codes, unless everything is ending."""

    def ended(event: ProcessExited, context: LaunchContext) -> list:
        if after(event.returncode) and not context.is_shutdown:
            inside = GroupAction([OpaqueFunction(function=group.restore), make()])
            return [TimerAction(period=RESTART_S, actions=[inside])]
        return list(otherwise)

    return ended


def refuse_misspelt(names: Iterable[str]) -> None:
    """ROS passes over arguments that nothing declares; ValueError for one that is nearly one of ours."""
    for name in set(names) - set(ARGUMENTS):
        for meant in get_close_matches(name, ARGUMENTS, n=1, cutoff=0.85):
            raise ValueError(f"no argument {name!r}: did you mean {meant!r}? --show-args lists all")


def parameter_overrides(values: dict[str, str]) -> dict[str, object]:
    """Launch arguments -> parameters; an empty argument leaves the parameter file's value."""
    overrides: dict[str, object] = {name: to_bool(name, values[name]) for name in FLAGS if values[name]}
    overrides |= {name: values[name] for name in STRINGS if values[name]}
    overrides |= {name: to_number(name, values[name]) for name in NUMBERS if values[name]}
    overrides |= {name: split(values[name]) for name in LISTS if values[name]}
    if values["lighting_topic"]:
        overrides["lighting_topic"] = "" if values["lighting_topic"] == "none" else values["lighting_topic"]
    if values["cameras"] == "none":
        overrides["cameras"] = [""]  # a ROS parameter list cannot be empty without losing its type
    return overrides


def lighting_overrides(values: dict[str, str]) -> dict[str, object]:
    """The same for the lighting node, which stands on the same topics."""
    overrides = {name: value for name, value in parameter_overrides(values).items() if name in SHARED}
    if values["lighting_coefficients"]:
        overrides["coefficients"] = values["lighting_coefficients"]
    return overrides


def fixed_frame(lidar_frame: str) -> list[str]:
    """RViz's option for the frame to show, if it is known here."""
    return ["-f", lidar_frame] if lidar_frame else []


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def to_bool(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{name}: expected true or false, got {text!r}")
    return text.lower() == "true"


def to_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{name}: expected a number, got {text!r}") from error


def large_message_transport() -> list[SetEnvironmentVariable]:
    """Fast DDS loses multi-megabyte images and clouds between processes with its default transports."""
    if "FASTDDS_BUILTIN_TRANSPORTS" in os.environ:
        return []
    return [SetEnvironmentVariable("FASTDDS_BUILTIN_TRANSPORTS", "LARGE_DATA")]
