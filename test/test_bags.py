# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from spoilt_bags import cut_off, spoil

from xmodal_seg import bag_writing, bags
from xmodal_seg.bag_files import BagWriter, open_bag, typestore
from xmodal_seg.bag_topics import find_topics, intensity_range_of, read_label_space
from xmodal_seg.bags import read_frames, write_bag
from xmodal_seg.calibration_file import CalibrationFile
from xmodal_seg.geometry import project_points
from xmodal_seg.labels import IGNORE_INDEX, LabelSpace
from xmodal_seg.messages import decode_cloud, decode_cloud_labels
from xmodal_seg.structures import Calibration, CameraView, Frame

HEIGHT, WIDTH, NUM_POINTS, NUM_CLASSES = 13, 17, 31, 5
SPACE = LabelSpace(
    name="five", class_names=tuple("abcde"), colours=tuple((i, 2 * i, 3 * i) for i in range(NUM_CLASSES))
)


def rigid(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    matrix[:3, 3] = rng.normal(size=3)
    return matrix


def view(name: str, seed: int, *, stamp_ns: int = 0, place: int | None = None) -> CameraView:
    rng = np.random.default_rng(seed)
    calibration = Calibration(
        camera_matrix=np.array([[20.0 + seed, 0, 8.2], [0, 21.0, 6.1], [0, 0, 1]]),
        camera_T_lidar=rigid(seed if place is None else place),
        image_size=(HEIGHT, WIDTH),
        distortion=np.array([0.1, -0.02, 0.001, 0.002, 0.0]) if name == "left" else None,
        distortion_model="plumb_bob" if name == "left" else "none",
    )
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return CameraView(name=name, image=image, calibration=calibration, stamp_ns=stamp_ns)


def frame(number: int, *, cameras: tuple[str, ...] = ("left", "right"), labels: bool = True, place: int = 0) -> Frame:
    rng = np.random.default_rng(number)
    stamp_ns = 1_000_000_000_000 + number * 100_000_000
    num_points = NUM_POINTS + number
    return Frame(
        points=rng.normal(size=(num_points, 3)).astype(np.float32),
        intensity=np.append(rng.uniform(size=num_points - 1), 1.0).astype(np.float32),
        labels=np.where(rng.uniform(size=num_points) < 0.2, IGNORE_INDEX, number) if labels else None,
        cameras=tuple(
            view(name, number + 7 * i, stamp_ns=stamp_ns + (i - 1) * 5_000_000, place=place + i)
            for i, name in enumerate(cameras)
        ),
        stamp_ns=stamp_ns,
        frame_id="velodyne",
    )


def assert_equal_frames(found: Frame, expected: Frame) -> None:
    assert (found.stamp_ns, found.frame_id) == (expected.stamp_ns, expected.frame_id)
    np.testing.assert_array_equal(found.points, expected.points)
    for name in ("intensity", "labels"):
        if getattr(expected, name) is None:
            assert getattr(found, name) is None
        else:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert [camera.name for camera in found.cameras] == [camera.name for camera in expected.cameras]
    for camera, wanted in zip(found.cameras, expected.cameras, strict=True):
        assert camera.stamp_ns == wanted.stamp_ns
        np.testing.assert_array_equal(camera.image, wanted.image)
        np.testing.assert_array_equal(camera.calibration.camera_matrix, wanted.calibration.camera_matrix)
        np.testing.assert_allclose(camera.calibration.camera_T_lidar, wanted.calibration.camera_T_lidar, atol=1e-12)
        assert camera.calibration.distortion_model == wanted.calibration.distortion_model
        np.testing.assert_array_equal(camera.calibration.distortion, wanted.calibration.distortion)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_frames_come_back_as_they_were_written(tmp_path: Path, storage: str) -> None:
    frames = [frame(0), frame(1), frame(2, place=40)]  # the cameras move before the third
    seen: list[int] = []
    count = write_bag(
        tmp_path / "bag", frames, image_format="png", storage=storage, label_space=SPACE, progress=seen.append
    )
    assert (count, seen) == (3, [1, 2, 3])
    found = list(read_frames(tmp_path / "bag"))
    assert len(found) == 3
    for one, expected in zip(found, frames, strict=True):
        assert_equal_frames(one, expected)


def test_single_storage_file_is_read_like_its_folder(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", [frame(0)], image_format="png")
    (found,) = read_frames(tmp_path / "bag" / "bag.mcap")
    assert_equal_frames(found, frame(0))


def test_jpeg_keeps_the_colours_in_their_channels(tmp_path: Path) -> None:
    original = frame(0, cameras=("right",))
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[...] = (200, 90, 10)
    original = replace(original, cameras=(replace(original.cameras[0], image=image),))
    write_bag(tmp_path / "bag", [original])
    (found,) = read_frames(tmp_path / "bag")
    np.testing.assert_allclose(found.cameras[0].image.mean(axis=(0, 1)), (200, 90, 10), atol=3)


def test_label_space_and_missing_pieces_are_optional(tmp_path: Path) -> None:
    plain = replace(frame(0, cameras=(), labels=False), intensity=None)
    write_bag(tmp_path / "plain", [plain])
    (found,) = read_frames(tmp_path / "plain")
    assert_equal_frames(found, plain)
    write_bag(tmp_path / "labelled", [frame(0)], label_space=SPACE)
    with open_bag(tmp_path / "labelled") as bag:
        assert read_label_space(bag, bag_writing.GROUND_TRUTH_TOPIC) == SPACE
    with open_bag(tmp_path / "plain") as bag:
        assert read_label_space(bag, bag_writing.GROUND_TRUTH_TOPIC) is None


def test_a_sweep_without_a_near_image_comes_without_that_camera(tmp_path: Path) -> None:
    late = frame(1)
    late = replace(late, cameras=(late.cameras[0], replace(late.cameras[1], stamp_ns=late.stamp_ns + 70_000_000)))
    write_bag(tmp_path / "bag", [frame(0), late, frame(2)], image_format="png")
    names = [[camera.name for camera in found.cameras] for found in read_frames(tmp_path / "bag", tolerance_s=0.03)]
    assert names == [["left", "right"], ["left"], ["left", "right"]]


def test_each_sweep_gets_the_nearest_image_of_a_faster_camera(tmp_path: Path) -> None:
    frames = [replace(frame(number, cameras=()), cameras=()) for number in range(4)]
    images = [
        replace(
            frame(0, cameras=()), stamp_ns=frames[0].stamp_ns + 33_000_000 * i, cameras=(view("cam", i + 1, place=3),)
        )
        for i in range(-1, 12)
    ]
    with BagWriter(tmp_path / "bag") as bag:
        cameras = bag_writing._CameraWriter(bag, topic="/{camera}/image", image_format="png")
        for sweep in sorted([*frames, *images], key=lambda item: item.stamp_ns):
            if sweep.cameras:
                cameras.write_transforms(sweep, "velodyne")
                cameras.write(replace(sweep.cameras[0], stamp_ns=sweep.stamp_ns))
            else:
                bag.write("/points", sweep.stamp_ns, bag_writing.points_message(sweep, "velodyne"))
    found = list(read_frames(tmp_path / "bag"))
    assert [(one.cameras[0].stamp_ns - one.stamp_ns) // 1_000_000 for one in found] == [0, -1, -2, -3]


def test_transforms_are_composed_over_a_chain_and_may_come_late(tmp_path: Path) -> None:
    one = frame(0, cameras=("right",))
    base_T_lidar, camera_T_lidar = rigid(90), one.cameras[0].calibration.camera_T_lidar
    base_T_camera = base_T_lidar @ np.linalg.inv(camera_T_lidar)
    with BagWriter(tmp_path / "bag") as bag:
        cameras = bag_writing._CameraWriter(bag, topic="/{camera}/image", image_format="png")
        cameras._frame_ids["right"] = "right_optical"
        bag.write("/points", one.stamp_ns, bag_writing.points_message(one, "velodyne"))
        cameras.write(one.cameras[0])
        for parent_T_child, child in ((base_T_lidar, "velodyne"), (base_T_camera, "right_optical")):
            transform = bag_writing._transform(parent_T_child, "base_link", child, 0)
            message = typestore().types["tf2_msgs/msg/TFMessage"](transforms=[transform])
            bag.write("/tf_static", one.stamp_ns + 50_000_000, message)
    (found,) = read_frames(tmp_path / "bag")
    np.testing.assert_allclose(found.cameras[0].calibration.camera_T_lidar, camera_T_lidar, atol=1e-12)


def test_moving_transforms_are_looked_up_at_the_sweep(tmp_path: Path) -> None:
    one = frame(0, cameras=("right",))
    with BagWriter(tmp_path / "bag") as bag:
        cameras = bag_writing._CameraWriter(bag, topic="/{camera}/image", image_format="png")
        cameras._frame_ids["right"] = "right_optical"
        bag.write("/points", one.stamp_ns, bag_writing.points_message(one, "velodyne"))
        cameras.write(one.cameras[0])
        for offset_ns, x in ((-20_000_000, 1.0), (20_000_000, 3.0)):
            matrix = np.eye(4)
            matrix[0, 3] = x
            transform = bag_writing._transform(matrix, "velodyne", "right_optical", one.stamp_ns + offset_ns)
            bag.write("/tf", one.stamp_ns, typestore().types["tf2_msgs/msg/TFMessage"](transforms=[transform]))
    (found,) = read_frames(tmp_path / "bag")
    np.testing.assert_allclose(found.cameras[0].calibration.camera_T_lidar[:3, 3], (-2, 0, 0), atol=1e-12)


def test_calibration_file_replaces_transforms(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", [frame(0, cameras=("right",))], image_format="png")
    file = CalibrationFile.model_validate({"cameras": {"right_optical": {"camera_T_lidar": rigid(5).tolist()}}})
    (found,) = read_frames(tmp_path / "bag", calibration_file=file)
    np.testing.assert_allclose(found.cameras[0].calibration.camera_T_lidar, rigid(5))


def test_missing_transform_is_named_with_camera_and_both_frames(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        one = frame(0, cameras=("right",))
        cameras = bag_writing._CameraWriter(bag, topic="/{camera}/image", image_format="png")
        cameras._frame_ids["right"] = "right_optical"
        bag.write("/points", one.stamp_ns, bag_writing.points_message(one, "velodyne"))
        cameras.write(one.cameras[0])
    with pytest.raises(ValueError, match=r"sweep at 1000\.000 s: camera 'right'.* from 'velodyne' to 'right_optical'"):
        list(read_frames(tmp_path / "bag"))


LEFT_IMAGES = "/left/image/compressed"


def test_a_bad_image_costs_its_sweep_that_camera_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [frame(number) for number in range(5)]
    write_bag(tmp_path / "good", frames, image_format="png")
    spoil(tmp_path / "good", tmp_path / "bag", topic=LEFT_IMAGES, numbers=(0, 3), change=cut_off)
    found = list(read_frames(tmp_path / "bag"))
    for number, (one, expected) in enumerate(zip(found, frames, strict=True)):
        cameras = expected.cameras[1:] if number in (0, 3) else expected.cameras
        assert_equal_frames(one, replace(expected, cameras=cameras))
    first, count = caplog.messages  # the second bad image is not said
    assert f"sweep at 1000.000 s: camera 'left' ({LEFT_IMAGES}): data: " in first
    assert count.endswith(f"camera 'left' ({LEFT_IMAGES}): 2 of 5 could not be used and were left out")


def test_a_sweep_that_cannot_be_read_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [frame(number) for number in range(5)]
    write_bag(tmp_path / "good", frames, image_format="png")
    spoil(tmp_path / "good", tmp_path / "bag", topic="/points", numbers=(2,), change=cut_off)
    found = list(read_frames(tmp_path / "bag"))
    for one, expected in zip(found, [*frames[:2], *frames[3:]], strict=True):
        assert_equal_frames(one, expected)
    first, count = caplog.messages
    assert "sweep at 1000.200 s: /points: data: " in first
    assert count.endswith("/points: 1 of 5 could not be used and were left out")


@pytest.mark.parametrize(
    ("topic", "patience", "num_bad", "num_frames"),  # noticed at the end of the bag, or before
    [(LEFT_IMAGES, 50, 5, 5), (LEFT_IMAGES, 3, 3, 2), ("/points", 50, 5, 0), ("/points", 3, 3, 0)],
)
def test_what_can_never_be_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topic: str, patience: int, num_bad: int, num_frames: int
) -> None:
    monkeypatch.setattr(bags, "_PATIENCE", patience)
    write_bag(tmp_path / "good", [frame(number) for number in range(5)], image_format="png")
    spoil(tmp_path / "good", tmp_path / "bag", topic=topic, numbers=range(5), change=cut_off)
    found = read_frames(tmp_path / "bag", intensity_range=(0, 1))
    for _ in range(num_frames):
        assert [camera.name for camera in next(found).cameras] == ["right"]
    with pytest.raises(ValueError, match=rf"sweep at 1000\.000 s: .*{topic}.*: .*; of {num_bad} none can be used"):
        next(found)


def test_ground_truth_of_another_size_is_refused(tmp_path: Path) -> None:
    one = frame(0)
    with BagWriter(tmp_path / "bag") as bag:
        bag.write("/points", one.stamp_ns, bag_writing.points_message(one, "velodyne"))
        fewer = one.select(np.arange(5))
        bag.write(bag_writing.GROUND_TRUTH_TOPIC, one.stamp_ns, bag_writing.ground_truth_message(fewer, "velodyne"))
    with pytest.raises(ValueError, match=r"bag, sweep at 1000\.000 s: .* has 5 labels for 31 points"):
        list(read_frames(tmp_path / "bag"))


def test_labelled_message_has_the_node_layout() -> None:
    one = frame(1)
    labels = np.arange(one.num_points, dtype=np.uint8) % NUM_CLASSES
    message = bag_writing.labelled_message(one, labels, np.full(one.num_points, 0.5, np.float32), SPACE)
    np.testing.assert_array_equal(decode_cloud_labels(message), labels)
    np.testing.assert_array_equal(decode_cloud(message, intensity_range=None).points, one.points)
    assert [field.name for field in message.fields] == ["x", "y", "z", "label", "probability", "rgb"]
    assert (message.header.frame_id, message.width) == ("velodyne", one.num_points)


# --- topics ----------------------------------------------------------------------------------------------------------


def write_topics(path: Path, image_topics: tuple[str, ...], *, points: tuple[str, ...] = ("/points",)) -> None:
    one = frame(0, cameras=("right",))
    with BagWriter(path) as bag:
        for topic in points:
            bag.write(topic, one.stamp_ns, bag_writing.points_message(one, "velodyne"))
        cameras = bag_writing._CameraWriter(bag, topic="/{camera}/image", image_format="png")
        cameras.write_transforms(one, "velodyne")
        for topic in image_topics:
            cameras._topic = topic
            cameras.write(one.cameras[0])


def find(path: Path, **choice: object) -> tuple[str, list[tuple[str, str, bool]]]:
    with open_bag(path) as bag:
        topics = find_topics(bag, **choice)
        return topics.points, [(camera.name, camera.image, camera.rectified) for camera in topics.cameras]


def test_cameras_are_named_after_their_namespace_and_rectified_images_preferred(tmp_path: Path) -> None:
    write_topics(
        tmp_path / "bag",
        ("/front/image_raw", "/front/image_rect_color", "/rear/image_raw", "/front/aligned_depth/image_raw"),
    )
    assert find(tmp_path / "bag") == (
        "/points",
        [("front", "/front/image_rect_color/compressed", True), ("rear", "/rear/image_raw/compressed", False)],
    )


def test_namespaces_with_the_same_last_part_are_told_apart(tmp_path: Path) -> None:
    write_topics(tmp_path / "bag", ("/one/color/image", "/two/color/image"))
    assert [name for name, _, _ in find(tmp_path / "bag")[1]] == ["one_color", "two_color"]


def test_cameras_can_be_chosen_by_name_and_topic_in_any_order(tmp_path: Path) -> None:
    write_topics(tmp_path / "bag", ("/front/image_raw", "/front/image_rect", "/rear/image_raw"))
    _, cameras = find(tmp_path / "bag", cameras=["rear", "/front/image_raw"], rectified=True)
    assert cameras == [
        ("rear", "/rear/image_raw/compressed", True),
        ("front", "/front/image_raw/compressed", True),
    ]
    assert find(tmp_path / "bag", cameras=[])[1] == []
    with pytest.raises(ValueError, match=r"no camera 'top' .*; it has front \(/front/image_rect/compressed\), "):
        find(tmp_path / "bag", cameras=["top"])


def test_points_topic_must_be_clear(tmp_path: Path) -> None:
    write_topics(tmp_path / "bag", (), points=("/roof/points", "/bumper/points"))
    with pytest.raises(ValueError, match="one topic of points, found /roof/points, /bumper/points; name one"):
        find(tmp_path / "bag")
    assert find(tmp_path / "bag", points_topic="/roof/points")[0] == "/roof/points"
    with pytest.raises(ValueError, match=r"no topic /top; it has /roof/points \(sensor_msgs/msg/PointCloud2\)"):
        find(tmp_path / "bag", points_topic="/top")
    with pytest.raises(ValueError, match=r"/tf_static is tf2_msgs/msg/TFMessage, expected sensor_msgs"):
        find(tmp_path / "bag", label_topic="/tf_static")


def test_label_clouds_are_not_taken_for_points(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", [frame(0)])
    assert find(tmp_path / "bag")[0] == "/points"


@pytest.mark.parametrize(("largest", "expected"), [(1.0, (0.0, 1.0)), (254.0, (0.0, 255.0))])
def test_intensity_range_is_found_from_the_first_sweep(
    tmp_path: Path, largest: float, expected: tuple[float, float]
) -> None:
    one = frame(0, cameras=())
    write_bag(tmp_path / "bag", [replace(one, intensity=one.intensity * np.float32(largest))])
    with open_bag(tmp_path / "bag") as bag:
        assert intensity_range_of(bag, "/points") == expected
    (found,) = read_frames(tmp_path / "bag")
    np.testing.assert_allclose(found.intensity, one.intensity * largest / expected[1], atol=1e-6)


def test_intensity_range_is_found_where_the_first_sweeps_are_spoilt_or_empty(tmp_path: Path) -> None:
    frames = [frame(number, cameras=()) for number in range(3)]
    bright = [replace(one, intensity=one.intensity * np.float32(254.0)) for one in frames]
    write_bag(tmp_path / "bag", [bright[0], bright[1].select(np.array([], dtype=np.int64)), bright[2]])
    spoilt = spoil(tmp_path / "bag", tmp_path / "spoilt", topic="/points", numbers=[0], change=cut_off)
    with open_bag(spoilt) as bag:
        assert intensity_range_of(bag, "/points") == (0.0, 255.0)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "mode"),
    [
        (StoragePlugin.SQLITE3, CompressionMode.FILE),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        (StoragePlugin.MCAP, CompressionMode.FILE),
        (StoragePlugin.MCAP, CompressionMode.STORAGE),
    ],
)
def test_compressed_recordings_are_read(tmp_path: Path, plugin: StoragePlugin, mode: CompressionMode) -> None:
    write_bag(tmp_path / "plain", [frame(0), frame(1)], image_format="png")
    writer = Writer(tmp_path / "zstd", version=8, storage_plugin=plugin)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer, open_bag(tmp_path / "plain") as bag:
        connections = {
            name: writer.add_connection(name, topic.msgtype, typestore=typestore())
            for name, topic in bag.topics.items()
        }
        for message in bag.messages():
            writer.write(connections[message.topic], message.stamp_ns, message.data)
    found = list(read_frames(tmp_path / "zstd"))
    assert_equal_frames(found[1], frame(1))


def test_messages_can_be_chosen_by_topic_and_time(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", [frame(0), frame(1), frame(2)])
    with open_bag(tmp_path / "bag") as bag:
        assert [m.stamp_ns for m in bag.messages(["/points"])] == [frame(i).stamp_ns for i in range(3)]
        assert [m.topic for m in bag.messages(["/points"], start_ns=frame(2).stamp_ns)] == ["/points"]
        assert list(bag.messages([])) == []
        assert bag.topics["/tf_static"].latched
        assert not bag.topics["/points"].latched
        with pytest.raises(ValueError, match="has no topic /nothing"):
            list(bag.messages(["/nothing"]))


def test_paths_that_are_no_bags_are_told_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"), open_bag(tmp_path / "missing"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"not a rosbag2 folder: no metadata\.yaml"), open_bag(tmp_path / "folder"):
        pass
    (tmp_path / "folder" / "a.mcap").touch()
    with pytest.raises(ValueError, match=r"it holds a\.mcap: give that file"), open_bag(tmp_path / "folder"):
        pass
    (tmp_path / "text.mcap").write_text("not a recording")
    with pytest.raises(ValueError, match=r"text\.mcap cannot be read as a rosbag2"), open_bag(tmp_path / "text.mcap"):
        pass
    (tmp_path / "notes.txt").write_text("not a recording")
    with pytest.raises(ValueError, match=r"notes\.txt cannot be read as a rosbag2"), open_bag(tmp_path / "notes.txt"):
        pass


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.85])
def test_truncated_files_end_in_a_sentence(tmp_path: Path, storage: str, kept: float) -> None:
    write_bag(tmp_path / "bag", [frame(i) for i in range(4)], storage=storage)
    (file,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix in (".mcap", ".db3"))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=r"cannot be read as a rosbag2|damaged or cut off"):
        list(read_frames(tmp_path / "bag"))


def test_fewer_messages_than_the_metadata_says_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_bag(tmp_path / "bag", [frame(0), frame(1)])
    metadata = tmp_path / "bag" / "metadata.yaml"
    text = metadata.read_text()
    assert text.count("message_count: 2\n") > 1
    metadata.write_text(text.replace("message_count: 2\n", "message_count: 3\n"))
    with open_bag(tmp_path / "bag") as bag:
        assert len(list(bag.messages(["/points"]))) == 2
    assert "1 messages fewer" in caplog.text


def test_undecodable_messages_name_their_topic(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_raw("/points", "sensor_msgs/msg/PointCloud2", 5, b"\x00\x01\x00\x00short")
    with pytest.raises(ValueError, match="/points: a message does not decode as sensor_msgs/msg/PointCloud2"):
        list(read_frames(tmp_path / "bag", points_topic="/points"))


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def frames() -> Iterator[Frame]:
        yield frame(0)
        raise RuntimeError("the simulation broke")

    with pytest.raises(RuntimeError, match="the simulation broke"):
        write_bag(tmp_path / "bag", frames())
    assert list(tmp_path.iterdir()) == []


def test_existing_bags_are_replaced_only_on_request(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag", [frame(0)])
    with pytest.raises(ValueError, match="exists already"):
        write_bag(tmp_path / "bag", [frame(1)])
    write_bag(tmp_path / "bag", [frame(1)], overwrite=True)
    assert [found.stamp_ns for found in read_frames(tmp_path / "bag")] == [frame(1).stamp_ns]
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="not a bag, so it is not overwritten"):
        write_bag(tmp_path / "photos", [frame(0)], overwrite=True)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="storage: expected mcap or sqlite3"):
        write_bag(tmp_path / "bag", [frame(0)], storage="tape")
    with pytest.raises(ValueError, match="image_format: expected jpeg or png"):
        write_bag(tmp_path / "bag", [frame(0)], image_format="gif")
    with pytest.raises(ValueError, match=r"camera_topic: expected \{camera\}"):
        write_bag(tmp_path / "bag", [frame(0)], camera_topic="/image")
    with pytest.raises(ValueError, match="two frames have the stamp"):
        write_bag(tmp_path / "bag", [frame(0), frame(0)])
    with (
        pytest.raises(ValueError, match="cannot write my_msgs/msg/Thing"),
        BagWriter(tmp_path / "bag") as bag,
    ):
        bag.write_raw("/thing", "my_msgs/msg/Thing", 0, b"")
    assert list(tmp_path.iterdir()) == []


# --- real recordings -------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_kitti_bag_gives_each_frame_its_own_calibration(real_data: Path) -> None:
    found = list(read_frames(real_data / "bags" / "kitti_object_3frames_mcap"))
    assert [one.num_points for one in found] == [115_384, 120_268, 126_891]
    cameras = [one.cameras[0] for one in found]
    assert [camera.image.shape[:2] for camera in cameras] == [(370, 1224), (375, 1242), (375, 1242)]
    assert [round(float(camera.calibration.camera_matrix[0, 0]), 2) for camera in cameras] == [707.05, 721.54, 721.54]
    for one in found:
        index, _, _ = project_points(one.points, one.cameras[0].calibration)
        assert 0.13 < len(index) / one.num_points < 0.18  # KITTI's camera sees about a sixth of the sweep
        assert 0.9 < float(one.intensity.max()) <= 1.0


@pytest.mark.real_data
def test_nuscenes_bag_gives_six_cameras(real_data: Path) -> None:
    (found,) = read_frames(real_data / "bags" / "nuscenes_1sample_6cam_mcap")
    assert found.num_points == 34_688
    assert {camera.name for camera in found.cameras} == {
        "CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT",
    }  # fmt: skip
    assert all(-0.045e9 < camera.stamp_ns - found.stamp_ns < 0 for camera in found.cameras)
    assert float(found.intensity.max()) == 1.0
