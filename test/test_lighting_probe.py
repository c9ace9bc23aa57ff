# SPDX-License-Identifier: Apache-2.0
"""The linear probe of lighting on pooled features, and the command's part of it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import NUM_CLASSES, tiny_settings
from light_pictures import day_picture, night_picture

from xmodal_seg.checkpoint import save_checkpoint
from xmodal_seg.commands.main import main
from xmodal_seg.config import ImageBackboneSettings
from xmodal_seg.labels import LabelSpace
from xmodal_seg.lighting_calibration import Labelled, accuracy, group_function, labelled_picture
from xmodal_seg.lighting_model import QualityLimits
from xmodal_seg.lighting_probe import fit_probe, judge_by_probe, pooling, probe_left_out
from xmodal_seg.models.segmenter import SegmentationModel
from xmodal_seg.preprocess import resize_image

SIZES = ((121, 161), (91, 131), (151, 171))
LIMITS = QualityLimits()
SPACE = LabelSpace(name="five", class_names=tuple("abcde"), colours=((0, 0, 0),) * NUM_CLASSES)


def colours(image: np.ndarray) -> np.ndarray:
    """Three features that tell the pictures apart."""
    return np.asarray(image.reshape(-1, 3).mean(axis=0) / 255.0)


def pictures(**labels: str) -> list[Labelled]:
    made = (("day", day_picture), ("night", night_picture))
    return [
        labelled_picture(make(seed, size=size), labels.get(label, label), name=f"{label}_{seed}", pool=colours)
        for size in SIZES
        for seed in range(2)
        for label, make in made
    ]


def test_pooled_features_are_the_mean_over_the_cells() -> None:
    model = SegmentationModel(settings=tiny_settings()).eval()
    image = day_picture(0, size=SIZES[0])
    assert model.image_backbone is not None
    cells = model.image_backbone(resize_image(image, model.image_size)[None])[0]
    np.testing.assert_allclose(pooling(model)(image), cells.flatten(1).mean(1).numpy(), rtol=1e-5)


def test_the_part_that_is_cut_away_is_not_pooled() -> None:
    image = day_picture(0, size=(90, 120))
    below = labelled_picture(image, "day", name="x", crop_top=0.5, pool=colours)
    assert below.pooled is not None
    np.testing.assert_allclose(below.pooled, colours(image[45:]))


def test_it_tells_what_its_features_tell() -> None:
    known = pictures()
    probe = fit_probe(known)
    assert accuracy(judge_by_probe(known, probe, limits=LIMITS)) == 1
    swapped = fit_probe(pictures(day="night", night="day"))
    assert accuracy(judge_by_probe(known, swapped, limits=LIMITS)) == 0


def test_a_group_that_is_judged_has_no_say() -> None:
    """With the labels of one size swapped, that size alone comes out wrong."""
    known = pictures()
    odd = "161x121"
    group_of = group_function("size")
    swap = {"day": "night", "night": "day"}
    mixed = [replace(p, label=swap[p.label]) if group_of(p) == odd else p for p in known]
    verdicts = probe_left_out(mixed, group_of=group_of, limits=LIMITS)
    assert [verdict.picture for verdict in verdicts] == mixed
    assert [verdict.is_right for verdict in verdicts if group_of(verdict.picture) == odd] == [False] * 4


def test_a_picture_with_a_fault_has_no_confidence() -> None:
    probe = fit_probe(pictures())
    black = labelled_picture(np.zeros((90, 120, 3), np.uint8), "night", name="black", pool=colours)
    (verdict,) = judge_by_probe([black], probe, limits=LIMITS)
    assert verdict.faults
    assert verdict.confidence == 0
    assert verdict.darkness > 0.5


def test_what_is_missing_is_named() -> None:
    bare = [replace(picture, pooled=None) for picture in pictures()[:2]]
    with pytest.raises(ValueError, match="expected pooled features of 2 pictures, got 0"):
        fit_probe(bare)
    with pytest.raises(ValueError, match="got none of night"):
        fit_probe([picture for picture in pictures() if picture.label == "day"])
    unet = ImageBackboneSettings(kind="unet", name="narrow", weights="none", width=8)
    with pytest.raises(ValueError, match="frozen image backbone"):
        pooling(SegmentationModel(settings=tiny_settings(image_backbone=unet)))


def test_the_command_judges_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label, make in (("day", day_picture), ("night", night_picture)):
        (tmp_path / label).mkdir()
        for number, size in enumerate(SIZES):
            cv2.imwrite(str(tmp_path / label / f"{number}.png"), make(number, size=size)[..., ::-1])
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "checkpoint", SegmentationModel(settings=tiny_settings()), label_space=SPACE)
    arguments = ["--images", str(tmp_path), "--group-by", "size", "--out", str(tmp_path / "out")]
    assert main(["calibrate-lighting", *arguments, "--probe", str(tmp_path / "checkpoint")]) == 0
    said = capsys.readouterr().out
    assert "probe, fitted: 100.0 % of 6 right" in said
    assert "probe, one size left out: " in said
    with (tmp_path / "out" / "probe_one_size_left_out.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
