# SPDX-License-Identifier: Apache-2.0
"""Replay a bag through the segmentation node: `ros2 launch xmodal_seg replay.launch.py bag:=FOLDER`.

Every argument of seg.launch.py is accepted as well; what is not given is found in the bag.
"""

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

WAIT_S = 300.0  # for the segmentation node: a large model on a slow disk
SEG_LAUNCH = f"{get_package_share_directory('xmodal_seg')}/launch/seg.launch.py"

ARGUMENTS = {
    "bag": (None, "rosbag2 folder, or one .mcap or .db3 file"),
    "rate": ("1.0", "how many times as fast as it was recorded"),
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
    return LaunchDescription([*arguments, *found, OpaqueFunction(function=make_nodes)])


def make_nodes(context: LaunchContext) -> list:
    """The player, and the segmentation node on the bag's topics."""
    given = {name: context.perform_substitution(LaunchConfiguration(name)) for name in context.launch_configurations}
    found = bag_arguments(given["bag"], given=given)
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
                "rate": to_number("rate", given["rate"]),
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


def bag_arguments(bag_path: str, *, given: dict[str, str]) -> dict[str, str]:
    """seg.launch.py's arguments for a bag, of the topic of points and the cameras in `given` if it names them.

    Raises ValueError if the bag lacks them, or the node cannot take it as it is.
    """
    from xmodal_seg.bag_files import open_bag
    from xmodal_seg.bag_topics import find_topics, intensity_range_of

    with open_bag(bag_path) as bag:
        topics = find_topics(bag, points_topic=given["points_topic"] or None, cameras=chosen_cameras(given))
        intensity_min, intensity_max = intensity_range_of(bag, topics.points)
    images = [camera.image for camera in topics.cameras]
    compressed = {image.endswith("/compressed") for image in images}
    if len(compressed) > 1:
        raise ValueError(
            f"{bag_path} has raw and compressed images; the node takes one kind: name them by image_topics"
        )
    return {
        "points_topic": topics.points,
        "cameras": ",".join(camera.name for camera in topics.cameras) or "none",
        "image_topics": ",".join(image.removesuffix("/compressed") for image in images),
        "camera_info_topics": ",".join(camera.camera_info for camera in topics.cameras),
        "image_transport": "compressed" if compressed == {True} else "raw",
        "intensity_min": str(intensity_min),
        "intensity_max": str(intensity_max),
    }


def chosen_cameras(given: dict[str, str]) -> list[str] | None:
    """Which of the bag's cameras to find, by image topic or by name; None: all.

    Where image topics are given, cameras may have any name, and are as many: each goes with the topic at its place.
    """
    names, topics = (
        [word.strip() for word in given[key].split(",") if word.strip()] for key in ("cameras", "image_topics")
    )
    if topics and names and len(topics) != len(names):
        raise ValueError(f"image_topics: expected one for each of the cameras {', '.join(names)}, got {len(topics)}")
    if not names and not topics:
        return None
    return topics or [name for name in names if name != "none"]


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
