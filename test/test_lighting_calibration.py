# SPDX-License-Identifier: Apache-2.0
"""Calibration of the lighting estimate: reading, fitting, leaving groups out, and the command around it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import make_calibration, make_frame
from light_pictures import day_picture, night_picture

from xmodal_seg.bags import write_bag
from xmodal_seg.commands.main import main
from xmodal_seg.lighting_calibration import (
    RIDGES,
    Labelled,
    Verdict,
    accuracy,
    calibration_error,
    certainty,
    choose_ridge,
    cross_entropy,
    fit_coefficients,
    group_function,
    judge,
    labelled_picture,
    leave_one_group_out,
    read_labelled,
    read_picture,
    reliability,
)
from xmodal_seg.lighting_features import FEATURES
from xmodal_seg.lighting_model import LightingCoefficients, load_coefficients, save_coefficients

SIZES = ((121, 161), (91, 131), (151, 171))


def blank() -> LightingCoefficients:
    """Coefficients that know nothing."""
    count = len(FEATURES)
    return LightingCoefficients(mean=(0.0,) * count, scale=(3.0,) * count, weights=(0.0,) * count, bias=0.0)


def some_pictures() -> list[Labelled]:
    return [
        labelled_picture(make(seed, size=size), label, name=f"{size[1]}/{label}_{seed}.png")
        for size in SIZES
        for seed in range(2)
        for label, make in (("day", day_picture), ("night", night_picture))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for label, make in (("day", day_picture), ("night", night_picture)):
        (root / label).mkdir()
        for number, size in enumerate(SIZES):
            cv2.imwrite(str(root / label / f"{number}.png"), make(number, size=size)[..., ::-1])
    return root


def test_a_folder_and_a_csv_give_the_same(folder: Path) -> None:
    found = read_labelled(folder)
    assert [(Path(p.name).name, p.label, p.image_size) for p in found] == [
        (f"{number}.png", label, size) for label in ("day", "night") for number, size in enumerate(SIZES)
    ]
    table = folder / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{Path(p.name).relative_to(folder)},{p.label}\n" for p in found))
    again = read_labelled(table)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.facts.features, other.facts.features)
        assert one.label == other.label


def test_the_upper_part_can_be_cut_away() -> None:
    image = day_picture(size=(90, 120))
    cut = labelled_picture(image, "day", name="x", crop_top=1 / 3)
    plain = labelled_picture(np.ascontiguousarray(image[30:]), "day", name="x")
    np.testing.assert_array_equal(cut.facts.features, plain.facts.features)
    assert cut.image_size == (90, 120)


def test_what_is_wrong_with_the_labels_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder or CSV"):
        read_labelled(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected pictures in the subfolders day, twilight, night"):
        read_labelled(tmp_path)
    table = tmp_path / "labels.csv"
    table.write_text("name\nx\n")
    with pytest.raises(ValueError, match="expected the columns file and label, got name"):
        read_labelled(table)
    table.write_text("file,label\n")
    with pytest.raises(ValueError, match="expected labelled pictures, got none"):
        read_labelled(table)
    table.write_text("file,label\nnot_there.png,day\n")
    whole = cv2.imencode(".jpg", day_picture(0, size=(121, 161)))[1].tobytes()
    (tmp_path / "whole.jpg").write_bytes(whole + b"made by a camera that adds a line")
    assert read_picture(tmp_path / "whole.jpg").shape == (121, 161, 3)
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.jpg: the file ends before its picture does"):
        read_picture(tmp_path / "half.jpg")
    with pytest.raises(ValueError, match="expected a picture that OpenCV reads"):
        read_labelled(table)
    with pytest.raises(ValueError, match="expected a label of day, twilight, night, got 'noon'"):
        labelled_picture(day_picture(), "noon", name="x")
    with pytest.raises(ValueError, match="crop_top: expected a share"):
        labelled_picture(day_picture(), "day", name="x", crop_top=1.0)


def test_a_fit_separates_the_classes_and_is_marked() -> None:
    pictures = some_pictures()
    fitted = fit_coefficients(pictures, start=blank(), ridge=0.02)
    assert accuracy(judge(pictures, blank())) <= 0.5
    assert accuracy(judge(pictures, fitted)) == 1.0
    assert fitted.calibrated
    assert fitted.mean == blank().mean


def test_more_of_one_class_does_not_move_the_fit() -> None:
    pictures = some_pictures()
    days = [picture for picture in pictures if picture.label == "day"]
    plain = fit_coefficients(pictures, start=blank(), ridge=0.02)
    skewed = fit_coefficients(pictures + 4 * days, start=blank(), ridge=0.02)
    np.testing.assert_allclose(plain.weights, skewed.weights, atol=1e-6)


def test_one_class_alone_cannot_be_fitted() -> None:
    days = [picture for picture in some_pictures() if picture.label == "day"]
    with pytest.raises(ValueError, match="got none of night"):
        fit_coefficients(days, start=blank(), ridge=0.02)


def test_a_group_that_is_left_out_has_no_say() -> None:
    pictures = some_pictures()
    wrong = [
        replace(p, label="night" if p.label == "day" else "day") if p.image_size == SIZES[0] else p for p in pictures
    ]
    verdicts = leave_one_group_out(wrong, group_of=group_function("size"), start=blank(), ridge=0.02)
    assert [verdict.picture for verdict in verdicts] == wrong
    assert {v.is_right for v in verdicts if v.picture.image_size == SIZES[0]} == {False}
    with pytest.raises(ValueError, match="groups: expected two or more"):
        leave_one_group_out(wrong, group_of=lambda _: "one", start=blank())
    with pytest.raises(ValueError, match="groups: expected pictures of day in two or more, got all in day"):
        leave_one_group_out(wrong, group_of=lambda picture: picture.label, start=blank())


def test_the_ridge_is_the_largest_within_one_standard_error() -> None:
    pictures, group_of = some_pictures(), group_function("size")
    losses = {}
    for ridge in RIDGES:
        verdicts = leave_one_group_out(pictures, group_of=group_of, start=blank(), ridge=ridge)
        bits = cross_entropy(verdicts)
        losses[ridge] = np.array([bits[[p.image_size == size for p in pictures]].mean() for size in SIZES])
    best = min(losses.values(), key=np.mean)
    limit = best.mean() + best.std(ddof=1) / np.sqrt(len(SIZES))
    expected = max(ridge for ridge, found in losses.items() if found.mean() <= limit)
    assert choose_ridge(pictures, group_of=group_of, start=blank()) == expected < RIDGES[-1]


def test_where_nothing_can_be_left_out_the_given_coefficients_stay() -> None:
    pictures = some_pictures()
    for group_of in (lambda _: "one", lambda picture: picture.label):
        assert choose_ridge(pictures, group_of=group_of, start=blank()) == RIDGES[-1]
    stayed = fit_coefficients(pictures, start=blank(), ridge=RIDGES[-1])
    np.testing.assert_allclose([*stayed.weights, stayed.bias], 0.0, atol=0.02)


def test_a_left_out_group_has_no_say_in_the_ridge() -> None:
    pictures = some_pictures()
    verdicts = leave_one_group_out(pictures, group_of=group_function("size"), start=blank())
    kept = [picture for picture in pictures if picture.image_size != SIZES[1]]
    ridge = choose_ridge(kept, group_of=group_function("size"), start=blank())
    by_hand = judge([p for p in pictures if p not in kept], fit_coefficients(kept, start=blank(), ridge=ridge))
    assert [v.darkness for v in verdicts if v.picture.image_size == SIZES[1]] == [v.darkness for v in by_hand]


def test_the_cross_entropy_is_in_bits() -> None:
    verdicts = [verdict(0.25, "night"), verdict(0.5, "day"), verdict(0.5, "twilight")]
    np.testing.assert_allclose(cross_entropy(verdicts), [2, 1, 1])


def test_groups() -> None:
    picture = some_pictures()[0]
    assert group_function("size")(picture) == "161x121"
    assert group_function("folder")(picture) == "161"


def verdict(darkness: float, label: str) -> Verdict:
    picture = replace(some_pictures()[0], label=label)
    return Verdict(picture=picture, darkness=darkness, confidence=certainty(darkness), faults=())


def test_reliability_counts_nights_by_bin() -> None:
    said = [
        (0.1, "day"),
        (0.12, "night"),
        (0.9, "night"),
        (0.95, "night"),
        (0.99, "day"),
        (0.5, "twilight"),
        (1.0, "night"),
    ]
    verdicts = [verdict(*one) for one in said]
    curve = reliability(verdicts, num_bins=2)
    np.testing.assert_allclose(curve, [[0.11, 0.5, 2], [0.96, 0.75, 4]])
    assert accuracy(verdicts) == pytest.approx(4 / 6)
    assert np.isnan(accuracy([verdict(0.5, "twilight")]))
    assert 0 < calibration_error(verdicts) < 0.5


def test_certainty_is_one_minus_the_entropy() -> None:
    assert [round(certainty(p), 6) for p in (0.0, 0.5, 1.0)] == [1.0, 0.0, 1.0]
    assert certainty(0.11) == pytest.approx(0.5, abs=0.001)


def test_the_command_fits_judges_and_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, out = tmp_path / "start.yaml", tmp_path / "out"
    save_coefficients(start, blank())
    arguments = ["--images", str(folder), "--start", str(start), "--group-by", "size", "--out", str(out)]
    assert main(["calibrate-lighting", *arguments]) == 0
    said = capsys.readouterr().out
    assert "as given: 50.0 % of 6 right" in said
    assert "fitted: 100.0 % of 6 right" in said
    assert "one size left out" in said
    assert "131x91: " in said
    assert said.count("wrong: ") >= 3
    fitted = load_coefficients(out / "lighting.yaml")
    assert fitted.calibrated
    assert fitted.provenance["night"] == 3
    assert (out / "fitted.png").read_bytes().startswith(b"\x89PNG")
    with (out / "one_size_left_out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["day"] * 3 + ["night"] * 3
    assert all(0 <= float(row["darkness"]) <= 1 for row in rows)


def test_groups_that_cannot_be_left_out_are_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, make in (("day", day_picture), ("night", night_picture)):
        (tmp_path / label).mkdir()
        for number in range(3):
            cv2.imwrite(str(tmp_path / label / f"{number}.png"), make(number, size=(91, 131))[..., ::-1])
    out = tmp_path / "out"
    arguments = ["calibrate-lighting", "--images", str(tmp_path), "--out", str(out)]
    assert main([*arguments, "--group-by", "size"]) == 2
    said = capsys.readouterr().err
    assert "--group-by size: expected pictures of two or more sizes, got only 131x91; leave --group-by out" in said
    assert main([*arguments, "--group-by", "folder"]) == 2
    assert "expected pictures of day in two or more, got all in" in capsys.readouterr().err
    assert not out.exists()
    assert main(arguments) == 0
    assert load_coefficients(out / "lighting.yaml").provenance["ridge"] == 0.1


def test_the_command_reads_bags_and_can_leave_the_coefficients_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, make in (("day", day_picture), ("night", night_picture)):
        frames = []
        for number in range(4):
            frame = make_frame(num_points=20, stamp_ns=10**18 + number * 10**9)
            calibration = make_calibration(height=63, width=85)
            camera = replace(frame.cameras[0], image=make(number, size=(63, 85)), calibration=calibration)
            frames.append(replace(frame, cameras=(camera,)))
        write_bag(tmp_path / label, frames, label_topic=None)
    bags = ["--bag", "day", str(tmp_path / "day"), "--bag", "night", str(tmp_path / "night")]
    out = tmp_path / "out"
    assert main(["calibrate-lighting", *bags, "--every-s", "2", "--evaluate-only", "--out", str(out)]) == 0
    assert "% of 4 right" in capsys.readouterr().out
    assert not (out / "lighting.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "expected labelled pictures, got none"), (["--every-s", "0"], "--every-s: expected more than 0")],
)
def test_the_commands_errors_are_sentences(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate-lighting", *arguments, "--out", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err
