# SPDX-License-Identifier: Apache-2.0
"""What replay.launch.py is told of a bag and a rate, and that it needs nothing from pip to ask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_frame

from xmodal_seg.bag_files import BagWriter, open_bag
from xmodal_seg.bags import write_bag
from xmodal_seg.commands.main import main
from xmodal_seg.commands.slow_replay import WAITS, longer_waits

LAUNCH = Path(__file__).parents[1] / "launch"
TOPICS = {
    "points_topic": "/points",
    "cameras": "camera_0,camera_1",
    "image_topics": "/camera_0/image,/camera_1/image",
    "camera_info_topics": "/camera_0/camera_info,/camera_1/camera_info",
    "image_transport": "compressed",
    "intensity_min": "0.0",
    "intensity_max": "1.0",
}


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "two"
    write_bag(path, [make_frame(num_cameras=2)], label_topic=None)
    return path


def ask(capsys: pytest.CaptureFixture[str], bag: Path, *options: str) -> dict[str, str]:
    assert main(["replay-arguments", *options, "--", str(bag)]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_bag_is_described_in_the_words_of_the_launch_file(bag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, bag) == TOPICS
    assert ask(capsys, bag, "--rate=2") == TOPICS


@pytest.mark.parametrize(
    ("options", "cameras", "image_topics"),
    [
        (["--cameras=camera_1"], "camera_1", "/camera_1/image"),
        (["--cameras=camera_1, camera_0"], "camera_1,camera_0", "/camera_1/image,/camera_0/image"),
        (["--cameras=none"], "none", ""),
        (["--image-topics=/camera_1/image"], "camera_1", "/camera_1/image"),
        (["--cameras=own", "--image-topics=/camera_1/image"], "camera_1", "/camera_1/image"),
        (
            ["--cameras=right,left", "--image-topics=/camera_1/image,/camera_0/image"],
            "camera_1,camera_0",
            "/camera_1/image,/camera_0/image",
        ),
    ],
)
def test_the_cameras_that_are_named_are_found(
    options: list[str], cameras: str, image_topics: str, bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask(capsys, bag, *options)
    assert (found["cameras"], found["image_topics"]) == (cameras, image_topics)
    assert found["camera_info_topics"] == image_topics.replace("image", "camera_info")
    assert found["image_transport"] == ("compressed" if image_topics else "raw")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--points-topic=/roof"], "has no topic /roof"),
        (["--cameras=rear"], "has no camera 'rear'"),
        (
            ["--cameras=left, right", "--image-topics=/camera_1/image"],
            "image_topics: expected one for each of the cameras left, right, got 1",
        ),
        (["--rate=0"], "rate: expected more than 0, got 0"),
        (["--rate=0.5", "--params-file=/nowhere.yaml"], "expected a readable YAML file, got /nowhere.yaml: [Errno 2]"),
    ],
)
def test_what_is_wrong_is_one_line(
    options: list[str], sentence: str, bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay-arguments", *options, "--", str(bag)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_raw_and_compressed_images_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bag(tmp_path / "bag", [make_frame()], label_topic=None)
    with open_bag(tmp_path / "bag") as bag, BagWriter(tmp_path / "mixed") as mixed:
        for message in bag.messages():
            mixed.write_raw(message.topic, message.msgtype, message.stamp_ns, message.data)
            if message.topic == "/camera_0/camera_info":
                mixed.write_raw("/raw/camera_info", message.msgtype, message.stamp_ns, message.data)
        mixed.write_raw("/raw/image", "sensor_msgs/msg/Image", 5, b"")
    assert main(["replay-arguments", str(tmp_path / "mixed")]) == 2
    assert "raw and compressed images; the node takes one kind: name them by image_topics" in capsys.readouterr().err


# --- slower than recorded --------------------------------------------------------------------------------------------


def test_waits_grow_as_the_replay_gets_slower(bag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert longer_waits(1.0) == longer_waits(7.0) == {}
    assert longer_waits(0.25) == {"camera_timeout_ms": 600.0, "transform_timeout_s": 0.8}
    assert longer_waits(0.001) == {"camera_timeout_ms": 60_000.0, "transform_timeout_s": 10.0}  # what the node takes
    slow = {"camera_timeout_ms": "600.0", "transform_timeout_s": "0.8"}
    assert ask(capsys, bag, "--rate=0.25") == {**TOPICS, **slow}


@pytest.mark.parametrize(
    ("text", "camera_timeout_ms"),
    [
        ("/**/xmodal_seg: {ros__parameters: {camera_timeout_ms: 400.0}}", 800.0),
        ("/van/xmodal_seg: {ros__parameters: {camera_timeout_ms: 400}}", 800.0),
        ("van: {xmodal_seg: {ros__parameters: {camera_timeout_ms: 400.0}}}", 800.0),
        ("/**: {ros__parameters: {camera_timeout_ms: 100.0}}", 200.0),
        (
            "{/**: {ros__parameters: {camera_timeout_ms: 1}}, xmodal_seg: {ros__parameters: {camera_timeout_ms: 9}}}",
            18.0,
        ),
        ("lighting: {ros__parameters: {camera_timeout_ms: 400.0}}", 300.0),
        ("xmodal_seg: {ros__parameters: }", 300.0),
        ("", 300.0),
    ],
)
def test_what_the_parameter_file_says_is_what_grows(text: str, camera_timeout_ms: float, tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text(text)
    waits = longer_waits(0.5, params_file=tmp_path / "node.yaml")
    assert waits == {"camera_timeout_ms": camera_timeout_ms, "transform_timeout_s": 0.4}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("xmodal_seg: {ros__parameters: {camera_timeout_ms: soon}}", "timeout_ms: expected a number, got 'soon'"),
        ("{", "params_file: expected a readable YAML file"),
    ],
)
def test_a_parameter_file_that_says_nothing_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        longer_waits(0.5, params_file=tmp_path / "node.yaml")


# --- the launch files on the system's Python -------------------------------------------------------------------------

# As Ubuntu's `ros2 launch`: ROS's own packages, here stand-ins, and nothing that pip brings.
BARE_LAUNCH = """
import importlib.util
import json
import sys
from unittest.mock import MagicMock

launch_file, program, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for name in (
    "ament_index_python", "ament_index_python.packages", "launch", "launch.actions", "launch.events",
    "launch.events.process", "launch.launch_description_sources", "launch.substitutions", "launch_ros",
    "launch_ros.actions", "launch_ros.substitutions",
):
    sys.modules[name] = MagicMock()
sys.modules["ament_index_python.packages"].get_package_share_directory.return_value = "/share"
sys.modules["launch_ros.substitutions"].ExecutableInPackage.return_value.perform.return_value = program
spec = importlib.util.spec_from_file_location("launch_file", launch_file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.generate_launch_description()
if given:
    try:
        print(json.dumps(module.look_into_bag(None, given)))
    except ValueError as error:
        sys.exit(str(error))
    sys.modules["launch_ros.substitutions"].ExecutableInPackage.assert_called_once_with(
        package="xmodal_seg", executable="xmodal-seg"
    )
"""
GIVEN = {"rate": "1.0", "points_topic": "", "cameras": "", "image_topics": "", "device": "cpu"}


def on_bare_python(file: str, *, program: Path, given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", BARE_LAUNCH, str(LAUNCH / file), str(program), json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """`xmodal-seg` as colcon installs it: it names the Python that built it."""
    path = tmp_path / "xmodal-seg"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nfrom xmodal_seg.commands.main import main\nsys.exit(main())\n",
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("file", ["seg.launch.py", "replay.launch.py"])
def test_launch_files_load_where_only_ros_is_installed(file: str, program: Path) -> None:
    done = on_bare_python(file, program=program, given={})
    assert done.returncode == 0, done.stderr
    assert all(f'"{name}"' in (LAUNCH / file).read_text(encoding="utf-8") for name in WAITS)


def test_a_program_of_the_package_looks_into_the_bag(bag: Path, program: Path) -> None:
    done = on_bare_python("replay.launch.py", program=program, given={**GIVEN, "bag": str(bag), "rate": "0.25"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**TOPICS, "camera_timeout_ms": "600.0", "transform_timeout_s": "0.8"}


def test_its_sentence_is_what_the_launch_file_says(tmp_path: Path, program: Path) -> None:
    done = on_bare_python("replay.launch.py", program=program, given={**GIVEN, "bag": str(tmp_path / "none")})
    assert done.stderr == f"xmodal-seg replay-arguments: no bag at {tmp_path / 'none'}: no such file or folder\n"
    program.write_text("#!/bin/sh\nexit 7\n")
    done = on_bare_python("replay.launch.py", program=program, given={**GIVEN, "bag": str(tmp_path)})
    assert done.stderr == f"{program} ended with exit code 7 and said nothing\n"
