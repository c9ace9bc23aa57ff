# SPDX-License-Identifier: Apache-2.0
"""The prepared format and how it is made: resumed, repeated, in parallel; and the reader."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from miniatures import make_semantic_kitti, run_prepare

from xmodal_seg.config import PreprocessSettings
from xmodal_seg.preprocess import prepare
from xmodal_seg.structures import Frame
from xmodal_seg.training.data.dataset import FixedSubset, class_counts
from xmodal_seg.training.data.preparation import prepare_frames
from xmodal_seg.training.data.prepare_program import checked_frames, make_parser, run
from xmodal_seg.training.data.prepared import (
    CAMERAS_FILE,
    FRAMES_FILE,
    FRAMES_PER_SHARD,
    POINT_DTYPE,
    Header,
    write_parts,
)
from xmodal_seg.training.data.prepared_dataset import PreparedDataset, histogram, open_dataset
from xmodal_seg.training.data.semantic_kitti import SemanticKittiSource
from xmodal_seg.training.data.sources import SourceFrame, SweepPoints, load_frame

NUM_FRAMES = {"00": 2 * FRAMES_PER_SHARD - 5, "07": 9, "08": FRAMES_PER_SHARD}
NUM_SHARDS = 4  # shards do not end with a sequence


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_semantic_kitti(tmp_path_factory.mktemp("kitti"), NUM_FRAMES, num_points=61)


@pytest.fixture(scope="module")
def prepared(download: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    assert run_prepare("semantic_kitti", download, out, "--partial") == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Interrupted(SemanticKittiSource):
    """Pulls the plug at a frame."""

    def __init__(self, root: Path, *, at: str) -> None:
        super().__init__(root, partial=True)
        self.at = at

    def read_points(self, frame: SourceFrame) -> SweepPoints:
        if f"{frame.sequence}/{frame.name}" == self.at:
            raise KeyboardInterrupt
        return super().read_points(frame)


class Killed(SemanticKittiSource):
    """Takes its process with it at the first frame of 08, as the kernel does when memory runs out."""

    def read_points(self, frame: SourceFrame) -> SweepPoints:
        if f"{frame.sequence}/{frame.name}" == "08/000000":
            os._exit(9)
        return super().read_points(frame)


@pytest.mark.parametrize("sizes", [(), (0,), (3, 0, 5)])
def test_parts_are_one_array_on_disk(sizes: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, 20 * size, dtype=np.uint8).view(POINT_DTYPE) for size in sizes]
    write_parts(tmp_path / "parts.npy", parts, dtype=POINT_DTYPE)
    joined = np.concatenate([np.zeros(0, dtype=POINT_DTYPE), *parts])
    np.save(tmp_path / "joined.npy", joined)
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "joined.npy").read_bytes()


def test_a_second_run_changes_nothing(download: Path, prepared: Path) -> None:
    before = contents(prepared)
    assert run_prepare("semantic_kitti", download, prepared, "--partial") == 0
    assert contents(prepared) == before
    source = SemanticKittiSource(download, partial=True)
    assert prepare_frames(source, source.frames(), prepared).num_shards_done_before == NUM_SHARDS


def test_an_interrupted_run_goes_on(download: Path, prepared: Path, tmp_path: Path) -> None:
    cut = Interrupted(download, at="08/000003")
    with pytest.raises(KeyboardInterrupt):
        prepare_frames(cut, cut.frames(), tmp_path)
    assert not (tmp_path / "prepared.json").exists()
    source, steps = SemanticKittiSource(download, partial=True), []
    result = prepare_frames(source, source.frames(), tmp_path, progress=steps.append)
    assert result.num_shards_done_before == 2
    assert steps[0] == 2 * FRAMES_PER_SHARD
    assert sum(steps) == sum(NUM_FRAMES.values())
    for name in (FRAMES_FILE, CAMERAS_FILE, "prepared.json", "points/00002.npy"):
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes()


def test_parallel_equals_serial(download: Path, prepared: Path, tmp_path: Path) -> None:
    assert run_prepare("semantic_kitti", download, tmp_path, "--partial", "--workers", "2") == 0
    assert contents(tmp_path) == contents(prepared)


def test_a_killed_worker_ends_in_a_sentence(download: Path, prepared: Path, tmp_path: Path) -> None:
    killed = Killed(download, partial=True)
    with pytest.raises(RuntimeError, match="a worker process was killed, most likely for want of memory; run again"):
        prepare_frames(killed, killed.frames(), tmp_path, workers=2)
    assert run_prepare("semantic_kitti", download, tmp_path, "--partial") == 0
    assert contents(tmp_path) == contents(prepared)


def test_other_options_need_another_folder(download: Path, prepared: Path, tmp_path: Path, capsys) -> None:
    before = contents(prepared)
    flags = ("--partial", "--points", "all")
    assert run_prepare("semantic_kitti", download, prepared, *flags) == 1
    assert (
        "was prepared with points visible, now asked for all; choose another folder, or --overwrite"
        in capsys.readouterr().err
    )
    assert contents(prepared) == before
    assert run_prepare("semantic_kitti", download, tmp_path, *flags) == 0
    everything = open_dataset(tmp_path, split="val")
    assert everything[0].num_points == everything.num_sweep_points(0) == 61
    assert run_prepare("semantic_kitti", download, tmp_path, "--partial", "--overwrite") == 0
    assert contents(tmp_path) == before


def test_a_download_may_move(download: Path, prepared: Path, tmp_path: Path, capsys) -> None:
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    shutil.copytree(download, first)
    assert run_prepare("semantic_kitti", first, out, "--partial") == 0
    content = Header.read(out).content
    first.rename(second)
    with pytest.raises(ValueError, match=r"its images were in .*first/dataset, which is gone; prepare it again with"):
        open_dataset(out, split="val")[0]
    assert run_prepare("semantic_kitti", second, out, "--partial") == 1
    assert "choose another folder, or --overwrite, or --moved if it moved" in capsys.readouterr().err
    assert run_prepare("semantic_kitti", second, out, "--partial", "--moved") == 0
    frames = sum(NUM_FRAMES.values())
    assert f"{frames} of {frames} frames were done before" in capsys.readouterr().out
    assert Header.read(out).content == content
    image = open_dataset(out, split="val")[0].cameras[0].image
    np.testing.assert_array_equal(image, open_dataset(prepared, split="val")[0].cameras[0].image)
    assert run_prepare("semantic_kitti", second, out, "--partial") == 0


def test_a_corrected_calibration_is_seen(download: Path, prepared: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "kitti", tmp_path / "out"
    shutil.copytree(download, copy)
    assert run_prepare("semantic_kitti", copy, out, "--partial") == 0
    path = copy / "dataset" / "sequences" / "07" / "calib.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.replace("P2: 7.1", "P2: 7.4") for line in lines))
    assert run_prepare("semantic_kitti", copy, out, "--partial") == 0
    before, after = (open_dataset(folder, split="val")[0].cameras[0].calibration for folder in (prepared, out))
    assert after.camera_matrix[0, 0] == pytest.approx(before.camera_matrix[0, 0] + 3.0)


def test_a_second_run_says_what_was_done_before(download: Path, prepared: Path, capsys) -> None:
    assert run_prepare("semantic_kitti", download, prepared, "--partial") == 0
    frames = sum(NUM_FRAMES.values())
    assert f"{frames} of {frames} frames were done before (--overwrite does them again)" in capsys.readouterr().out


def test_what_ends_a_program_early_is_told_in_a_sentence(download: Path, tmp_path: Path, capsys) -> None:
    arguments = make_parser("").parse_args(["--root", str(download), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert run(arguments, Interrupted(download, at="00/000001")) == 130
    assert "interrupted; what is done stays done, and the same command goes on" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run_prepare("semantic_kitti", download, tmp_path / "file" / "out", "--partial") == 1
    assert "missing_files.txt: cannot be written or read: Not a directory" in capsys.readouterr().err


def test_a_list_of_missing_files_does_not_outlive_them(download: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "kitti", tmp_path / "out"
    shutil.copytree(download, copy)
    path = copy / "dataset" / "sequences" / "07" / "labels" / "000002.label"
    data = path.read_bytes()
    path.unlink()
    assert run_prepare("semantic_kitti", copy, out, "--partial") == 0
    assert (out / "missing_files.txt").read_text() == "sequences/07/labels/000002.label\n"
    path.write_bytes(data)
    assert run_prepare("semantic_kitti", copy, out, "--partial") == 0
    assert not (out / "missing_files.txt").exists()


def test_a_bag_needs_the_files_of_its_sequence_only(download: Path, tmp_path: Path) -> None:
    copy = tmp_path / "kitti"
    shutil.copytree(download, copy)
    (copy / "dataset" / "sequences" / "00" / "labels" / "000002.label").unlink()
    source = SemanticKittiSource(copy, partial=True)
    assert len(checked_frames(source, partial=False, sequence="07")) == NUM_FRAMES["07"]
    with pytest.raises(ValueError, match="1 files of the download are missing"):
        checked_frames(source, partial=False, sequence="00")
    with pytest.raises(ValueError, match="--sequence: expected one of 00, 07, 08, got '09'"):
        checked_frames(source, partial=False, sequence="09")


def test_fewer_frames_leave_nothing_stale(download: Path, tmp_path: Path) -> None:
    source = SemanticKittiSource(download, partial=True)
    prepare_frames(source, source.frames(), tmp_path)
    val = [frame for frame in source.frames() if frame.sequence == "07"]
    prepare_frames(source, val, tmp_path)
    assert sorted(path.name for path in (tmp_path / "points").iterdir()) == ["00000.json", "00000.npy"]
    assert [sequence.name for sequence in Header.read(tmp_path).sequences] == ["07"]
    assert len(open_dataset(tmp_path, split="all")) == 9


def test_the_content_hash_follows_the_content(download: Path, prepared: Path, tmp_path: Path) -> None:
    copy = tmp_path / "kitti"
    shutil.copytree(download, copy)
    assert run_prepare("semantic_kitti", copy, tmp_path / "a", "--partial") == 0
    assert Header.read(tmp_path / "a").content == Header.read(prepared).content
    path = copy / "dataset" / "sequences" / "07" / "labels" / "000002.label"
    labels = np.fromfile(path, dtype="<u4")
    labels[open_dataset(prepared, split="val").points(2)["sweep_index"][0]] = 52
    labels.tofile(path)
    assert run_prepare("semantic_kitti", copy, tmp_path / "b", "--partial") == 0
    assert Header.read(tmp_path / "b").content != Header.read(prepared).content


def test_reader_equals_the_download(download: Path, prepared: Path) -> None:
    """Every part of a Frame, over a shard's border."""
    source = SemanticKittiSource(download, partial=True)
    dataset = PreparedDataset(prepared, split="all", label_space="virtual_kitti_6")
    for index in (0, FRAMES_PER_SHARD - 1, FRAMES_PER_SHARD, len(dataset) - 1, -1):
        whole = load_frame(source, source.frames()[index], dataset._table)
        kept = whole.select(dataset.points(index)["sweep_index"].astype(np.int64))
        frame = dataset[index]
        for name in ("points", "labels"):
            np.testing.assert_array_equal(getattr(frame, name), getattr(kept, name))
        np.testing.assert_allclose(frame.intensity, kept.intensity, atol=5e-4)
        assert (frame.stamp_ns, frame.frame_id) == (kept.stamp_ns, kept.frame_id)
        np.testing.assert_array_equal(frame.cameras[0].image, kept.cameras[0].image)
        np.testing.assert_array_equal(
            frame.cameras[0].calibration.camera_T_lidar, kept.cameras[0].calibration.camera_T_lidar
        )
        assert frame.points.flags.writeable  # a copy, not the file


def test_prepared_frame_and_whole_sweep_give_one_batch(download: Path, prepared: Path) -> None:
    """What the robot makes of a sweep is what training has seen."""
    source, dataset = SemanticKittiSource(download, partial=True), open_dataset(prepared, split="val")
    whole: Frame = load_frame(source, next(f for f in source.frames() if f.sequence == "07"), dataset._table)
    settings = PreprocessSettings(image_size=(32, 112))
    from_sweep, from_prepared = (prepare([frame], settings=settings) for frame in (whole, dataset[0]))
    for name in ("images", "voxel_coords", "voxel_feats", "point_to_voxel", "uv", "image_index", "labels"):
        np.testing.assert_array_equal(getattr(from_prepared, name), getattr(from_sweep, name))
    np.testing.assert_array_equal(dataset.points(0)["sweep_index"][from_prepared.point_index], from_sweep.point_index)


def test_reader_names_lengths_and_counts(prepared: Path) -> None:
    dataset = open_dataset(prepared, split="train+val", dataset="semantic_kitti")
    assert dataset.name == "semantic_kitti/train+val"
    assert len(dataset) == NUM_FRAMES["00"] + NUM_FRAMES["07"]
    assert dataset.frame_name(NUM_FRAMES["00"]) == ("07", "000000")
    np.testing.assert_array_equal(histogram(dataset), class_counts(dataset))
    np.testing.assert_array_equal(dataset.labels(3), dataset[3].labels)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_reader_travels_to_workers_without_its_files(prepared: Path) -> None:
    dataset = open_dataset(prepared, split="test")
    frame = dataset[5]
    data = pickle.dumps(dataset)
    assert len(data) < 20_000
    np.testing.assert_array_equal(pickle.loads(data)[5].points, frame.points)


def test_fixed_subset_of_a_prepared_data_set(prepared: Path) -> None:
    subset = FixedSubset(open_dataset(prepared, split="val"), max_points=11)
    assert subset[2].num_points == 11
    np.testing.assert_array_equal(subset[2].labels, subset.labels(2))


def test_few_shards_are_open_at_a_time(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_seg.training.data.prepared_dataset._MAX_OPEN_SHARDS", 2)
    dataset = open_dataset(prepared, split="all")
    first = dataset.points(0)["xyz"].copy()
    for index in range(0, len(dataset), FRAMES_PER_SHARD):
        dataset.points(index)
    assert len(dataset._shards) == 2
    np.testing.assert_array_equal(dataset.points(0)["xyz"], first)


def test_reader_errors(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no prepared data here \(prepared.json is missing\)"):
        open_dataset(tmp_path, split="train")
    with pytest.raises(ValueError, match="expected prepared nuscenes, found semantic_kitti"):
        open_dataset(prepared, split="train", dataset="nuscenes")
    with pytest.raises(ValueError, match="split of semantic_kitti: expected one of train, val"):
        open_dataset(prepared, split="training")
    with pytest.raises(ValueError, match="the split 'hidden_test' has no frames; splits that have: train, val, test"):
        open_dataset(prepared, split="hidden_test")
    with pytest.raises(ValueError, match="has no camera 'image_3'; prepared were image_2"):
        open_dataset(prepared, split="train", cameras=["image_3"])
    (tmp_path / "prepared.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match="expected format 1, got 0; prepare the data again"):
        open_dataset(tmp_path, split="train")


def test_moved_images_and_lost_shards(prepared: Path, download: Path, tmp_path: Path) -> None:
    moved = PreparedDataset(prepared, split="val", image_root=tmp_path)
    with pytest.raises(ValueError, match=r"image_2/000000.png: cannot be read: No such file"):
        moved[0]
    (tmp_path / "copy").symlink_to(download / "dataset")
    assert PreparedDataset(prepared, split="val", image_root=tmp_path / "copy")[0].num_points > 0
    for name in ("prepared.json", FRAMES_FILE, CAMERAS_FILE):
        (tmp_path / name).write_bytes((prepared / name).read_bytes())
    with pytest.raises(ValueError, match=r"00000.npy: missing; prepare the data again"):
        open_dataset(tmp_path, split="train").points(0)
