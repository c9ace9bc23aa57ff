# SPDX-License-Identifier: Apache-2.0
"""The generated parameter files and tables are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is missing: it comes with ROS or with the extra pip-ros")

from xmodal_seg.nodes import reference

pytestmark = pytest.mark.ros


def test_generated_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([]) == 0, capsys.readouterr().out


def test_what_is_out_of_date_is_named_and_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = tmp_path / reference.TABLES
    tables.parent.mkdir()
    markers = [f"<!-- {which} parameters of {node} -->" for node in reference.NODES for which in ("begin", "end")]
    tables.write_text("\n".join(["# Parameters", *markers]) + "\n")
    monkeypatch.setattr(reference, "REPOSITORY", tmp_path)
    assert reference.main([]) == 1
    assert capsys.readouterr().out.count("out of date: ") == 1 + len(reference.NODES)
    assert reference.main(["--write"]) == 0
    assert reference.main([]) == 0
    assert "| `adaptation.mode` |" in tables.read_text()
    tables.write_text("# Parameters\n")
    with pytest.raises(ValueError, match=r"docs/parameters\.md: expected the markers"):
        reference.main([])
