# SPDX-License-Identifier: Apache-2.0
"""The table over several evaluated drives, on metrics written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import load_program


def part(miou: float | None) -> dict[str, Any]:
    return {"miou": miou}


def facts_of(status: dict[str, float]) -> dict[str, Any]:
    rejected = {"events": {"rejected": 4}} if status["distance"] else {"events": {}}
    return {"status": status, "largest_distance": 2 * status["distance"], "settings": {"mode": "on"}, **rejected}


def mode(overall: float, night: float | None, minutes: list[float | None], **status: float) -> dict[str, Any]:
    return {
        "overall": part(overall),
        "conditions": {"day": part(overall + 1)} | ({} if night is None else {"night": part(night)}),
        "minutes": [{"minute": number, **part(value)} for number, value in enumerate(minutes)],
        "worst_minute": part(min(value for value in minutes if value is not None)),
        "facts": facts_of(status) if status else {},
    }


def write(folder: Path, **modes: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"modes": modes}))
    return str(folder)


def test_means_over_drives_and_what_adaptation_gained_and_lost(tmp_path: Path, capsys) -> None:
    enough = {"steps": 3000, "publications": 10, "distance": 0.0123}
    few = {"steps": 2999, "publications": 44, "distance": 0.5}
    first = write(
        tmp_path / "first", select=mode(70, 60, [72.0, None, 68]), on=mode(71, 62, [71.5, None, 70], **enough)
    )
    second = write(tmp_path / "second", select=mode(74, None, [80, 70]), on=mode(73, None, [80, 69], **few))

    assert load_program("report_drives").main([first, second]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| mode | all | day | night | worst minute |"
    assert lines[2] == "| select | 72.0 ± 2.8 | 73.0 ± 2.8 | 60.0 | 69.0 ± 1.4 |"
    assert lines[3] == "| on | 72.0 ± 1.4 | 73.0 ± 1.4 | 62.0 | 69.5 ± 0.7 |"
    assert lines[-2] == "| first | on | 3000 | 10 | 0.0246 | +1.00 | -0.50 |"
    assert lines[-1] == "| second | on (does not count) | 2999 | 44 | 1.0000 | -1.00 | -1.00 |"


def test_gains_are_paired_by_drive(tmp_path: Path, capsys) -> None:
    drives = [
        write(tmp_path / name, off=mode(off, night, [off]), select=mode(off + gain, night, [off]))
        for name, off, night, gain in (("first", 50, 40, 1), ("second", 70, None, 3))
    ]
    assert load_program("report_drives").main(drives) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == "| above off | all | day | night |"
    assert lines[-1] == "| select | +2.00 ± 1.41 | +2.00 ± 1.41 | +0.00 |"


def test_without_adaptation_there_is_one_table(tmp_path: Path, capsys) -> None:
    assert load_program("report_drives").main([write(tmp_path / "a", off=mode(50, 40, [50]))]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "| off | 50.0 | 51.0 | 40.0 | 50.0 |"


@pytest.mark.parametrize(
    ("others", "sentence"),
    [({}, "found no metrics.json"), ({"on": mode(1, 1, [1])}, "expected the modes off as before, got on")],
)
def test_what_is_no_evaluation_like_the_others_is_refused(others, sentence, tmp_path: Path, capsys) -> None:
    first = write(tmp_path / "first", off=mode(50, 40, [50]))
    if others:
        write(tmp_path / "second", **others)
    assert load_program("report_drives").main([first, str(tmp_path / "second")]) == 1
    assert sentence in capsys.readouterr().err


def test_drives_by_other_settings_are_not_averaged(tmp_path: Path, capsys) -> None:
    learned = mode(71, 62, [71], steps=3000, publications=10, distance=0.1)
    other = mode(71, 62, [71], steps=3000, publications=10, distance=0.1)
    other["facts"]["settings"] = {"mode": "on", "period_frames": 7}
    drives = [write(tmp_path / "first", on=learned), write(tmp_path / "second", on=other)]
    assert load_program("report_drives").main(drives) == 1
    assert "second: on: expected the settings of adaptation of the first drive" in capsys.readouterr().err


def test_settings_are_compared_on_one_drive(tmp_path: Path, capsys) -> None:
    guarded = mode(70.5, 62, [72.0, None, 68.5], steps=9, publications=3, distance=0.0)
    bare = mode(60, 50, [71.5, None, 40.0], steps=9, publications=7, distance=5.0)
    base = write(tmp_path / "drive", off=mode(69, 60, [70, None, 67]), select=mode(70, 61, [72, None, 68]), on=guarded)
    other = write(tmp_path / "bare", on=bare)

    assert load_program("report_ablations").main([base, other]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| off | 69.0 | -1.00 | 67.0 | -2.00 |  |  |  |",
        "| select | 70.0 | +0.00 | 68.0 | +0.00 |  |  |  |",
        "| on: drive | 70.5 | +0.50 | 68.5 | +0.00 | 3 | 0 | 0.00 |",
        "| on: bare | 60.0 | -10.00 | 40.0 | -28.00 | 7 | 4 | 10.00 |",
    ]


def test_another_drive_and_a_lack_of_modes_are_named(tmp_path: Path, capsys) -> None:
    program = load_program("report_ablations")
    select = write(tmp_path / "select", select=mode(70, 61, [72, 68]))
    longer = write(tmp_path / "longer", on=mode(70, 61, [72, 68, 70], steps=1, publications=0, distance=0.0))
    assert program.main([select, longer]) == 1
    assert "longer: expected the minutes of the baseline's drive" in capsys.readouterr().err
    assert program.main([select, select]) == 1
    assert "expected a mode that adapts (shadow, on)" in capsys.readouterr().err
    assert program.main([longer, longer]) == 1
    assert "longer: expected the mode select among on" in capsys.readouterr().err
