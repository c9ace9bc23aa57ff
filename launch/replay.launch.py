# SPDX-License-Identifier: Apache-2.0
"""Replay a bag through the segmentation node: `ros2 launch xmodal_seg replay.launch.py bag:=FOLDER`.

Every argument of seg.launch.py is accepted as well; what is not given is found in the bag.

On Ubuntu's ROS this file runs on the system's Python, whatever environment is active. So it imports nothing that comes
from pip: an executable of the package, which has the Python that it was built with, looks into the bag.
"""

import json
import subprocess

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.substitutions import ExecutableInPackage

WAIT_S = 300.0  # for the segmentation node: a large model on a slow disk
SEG_LAUNCH = f"{get_package_share_directory('xmodal_seg')}/launch/seg.launch.py"

ARGUMENTS = {
    "bag": (None, "rosbag2 folder, or one .mcap or .db3 file"),
    "rate": ("1.0", "how many times as fast as it was recorded; below 1 the segmentation node waits longer"),
    "loop": ("false", "start again at the end"),
    "start_offset": ("0.0", "leave out the beginning, s"),
    "pace": ("false", "true: each sweep waits for the previous one's labels, so that a slow computer drops none"),
    "use_sim_time": ("true", "follow the bag's clock"),
    "reliability": ("reliable", "QoS of images and points; reliable loses nothing of a replay"),
}
# Of seg.launch.py; declared here too, so that --show-args says where their defaults come from.
FOUND = (
    "cameras",
    "image_topics",
    "camera_info_topics",
    "image_transport",
    "points_topic",
    "intensity_min",
    "intensity_max",
)
# Also of it: by the wall clock, so as many times longer as the replay is slower.
WAITS = ("camera_timeout_ms", "transform_timeout_s")


def generate_launch_description() -> LaunchDescription:
    """All arguments, then the nodes."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    found = [
        DeclareLaunchArgument(name, default_value="", description=f"{name} of seg.launch.py; else found in the bag")
        for name in FOUND
    ]
    described = "of seg.launch.py; else as the parameter file says, divided by a rate below 1"
    waits = [DeclareLaunchArgument(name, default_value="", description=f"{name} {described}") for name in WAITS]
    return LaunchDescription([*arguments, *found, *waits, OpaqueFunction(function=make_nodes)])


def make_nodes(context: LaunchContext) -> list:
    """The player, and the segmentation node on the bag's topics."""
    given = {name: context.perform_substitution(LaunchConfiguration(name)) for name in context.launch_configurations}
    rate = to_number("rate", given["rate"])
    found = look_into_bag(context, given)
    # Topics are as the bag has them, and cameras are in its words unless they were named.
    arguments = {name: value if name == "image_topics" else given[name] or value for name, value in found.items()}
    images = [topic for topic in arguments["image_topics"].split(",") if topic]
    suffix = "/compressed" if arguments["image_transport"] == "compressed" else ""
    namespace = given.get("namespace", "").strip("/")
    node_name = f"/{namespace}/xmodal_seg" if namespace else "/xmodal_seg"
    player = Node(
        package="xmodal_seg",
        executable="play_bag_node",
        name="play_bag",
        output="screen",
        parameters=[
            {
                "bag": given["bag"],
                "rate": rate,
                "loop": to_bool("loop", given["loop"]),
                "start_offset_s": to_number("start_offset", given["start_offset"]),
                "wait_for_topics": [arguments["points_topic"], *(image + suffix for image in images)],
                # The lighting node hears the same topics, and is ready sooner.
                "wait_for_nodes": [node_name],
                "wait_timeout_s": WAIT_S,
                "pace_topic": f"{node_name}/points" if to_bool("pace", given["pace"]) else "",
                "pace_input": arguments["points_topic"],
            }
        ],
        on_exit=end_where_it_failed,
    )
    kept = {name: given[name] for name in ("use_sim_time", "reliability")}
    segmentation = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(SEG_LAUNCH), launch_arguments={**arguments, **kept}.items()
    )
    return [segmentation, player]


def look_into_bag(context: LaunchContext, given: dict[str, str]) -> dict[str, str]:
    """seg.launch.py's arguments for the bag, of the topic of points and the cameras in `given` if it names them.

    Raises ValueError with the last line of `xmodal-seg replay-arguments` if that fails.
    """
    program = ExecutableInPackage(package="xmodal_seg", executable="xmodal-seg").perform(context)
    names = ("points_topic", "cameras", "image_topics", "rate", "params_file")
    options = [f"--{name.replace('_', '-')}={given[name]}" for name in names if given.get(name)]
    done = subprocess.run([program, "replay-arguments", *options, "--", given["bag"]], capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ValueError(said[-1] if said else f"{program} ended with exit code {done.returncode} and said nothing")
    return json.loads(done.stdout)


def end_where_it_failed(event: ProcessExited, _: LaunchContext) -> list:
    """A player that could not play ends the launch; one that has played the bag leaves the nodes up."""
    return [] if event.returncode == 0 else [Shutdown(reason="the player has failed")]


def to_bool(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{name}: expected true or false, got {text!r}")
    return text.lower() == "true"


def to_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{name}: expected a number, got {text!r}") from error
