# SPDX-License-Identifier: Apache-2.0
"""Settings: defaults are the paper's, and every mistake is one sentence that names the key."""

from pathlib import Path

import pytest

from xmodal_seg.config import ModelSettings, PointBackboneSettings, load_settings, parse_settings


def test_defaults_are_the_papers() -> None:
    settings = ModelSettings(num_classes=6)
    assert settings.preprocess.voxel_size == 0.05
    assert settings.heads.ensemble == ("fused", "3d")
    assert settings.heads.mimic == (("3d", "fused"), ("fused", "2d"), ("fused", "3d"))
    assert settings.point_backbone == PointBackboneSettings(base_channels=16, num_levels=7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "num_classes"),
        ({"num_classes": 6, "voxels": 1}, "voxels"),
        ({"num_classes": 6, "preprocess": {"voxel_size": 0}}, "preprocess.voxel_size"),
        ({"num_classes": 6, "preprocess": {"voxel_size": float("inf")}}, "preprocess.voxel_size"),
        ({"num_classes": 6, "heads": {"main": ["2d", "2d"]}}, "one or more different heads"),
        ({"num_classes": 6, "heads": {"main": ["2d", "3d"]}}, "'fused' is not among the main heads"),
        (
            {"num_classes": 6, "heads": {"main": ["3d"], "ensemble": ["3d"], "mimic": [["3d", "2d"]]}},
            "teacher '2d'",
        ),
        ({"num_classes": 6, "heads": {"mimic": [["3d", "3d"]]}}, "cannot mimic itself"),
        ({"num_classes": 6, "heads": {"mimic": [["3d", "2d"], ["3d", "2d"]]}}, "stands twice"),
        ({"num_classes": 6, "fusion": {"kind": "none"}}, "fusion.kind"),
        (
            {
                "num_classes": 6,
                "preprocess": {"point_scope": "all"},
                "heads": {"main": ["fused"], "ensemble": ["fused"], "mimic": []},
            },
            "preprocess.point_scope",
        ),
    ],
)
def test_mistakes_name_the_key(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_settings(ModelSettings, values, where="recipe.yaml")
    assert str(caught.value).startswith("recipe.yaml: ")
    assert "\n" not in str(caught.value)


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("num_classes: 7\npreprocess: {voxel_size: 0.1}\n", encoding="utf-8")
    assert load_settings(ModelSettings, path).preprocess.voxel_size == 0.1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.yaml: no such file"):
        load_settings(ModelSettings, tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("num_classes: 3\nvoxels: 3", r"bad\.yaml: voxels: there is no such setting$"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_settings(ModelSettings, path)
