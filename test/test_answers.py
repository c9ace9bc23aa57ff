# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers import NUM_CLASSES, full_disk, make_frame

from xmodal_seg.bag_files import typestore
from xmodal_seg.bag_writing import labelled_message
from xmodal_seg.labels import LabelSpace
from xmodal_seg.messages import decode_cloud_labels
from xmodal_seg.nodes.answers import Answers

SPACE = LabelSpace(
    name="five", class_names=tuple("abcde"), colours=tuple((40 * i, 250 - 40 * i, 99) for i in range(NUM_CLASSES))
)


def answer(stamp_ns: int, *, label: int = 0, num_points: int = 7) -> bytes:
    frame = make_frame(num_points=num_points, stamp_ns=stamp_ns)
    labels = np.full(num_points, label, np.uint8)
    message = labelled_message(frame, labels, np.ones(num_points, np.float32), SPACE)
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


def test_answers_come_back_as_they_came(tmp_path: Path) -> None:
    came = [answer(30, label=1, num_points=13), answer(10, label=2), answer(30, label=3), answer(20, label=4)]
    answers = Answers(tmp_path)
    for data in came:
        answers.add(data)
    assert (len(answers), answers.num_stamps) == (4, 3)
    assert list(answers.firsts()) == [(30, came[0]), (10, came[1]), (20, came[3])]
    assert decode_cloud_labels(answers.cloud(30)).tolist() == [3] * 7
    assert answers.cloud(40) is None
    answers.add(answer(40, label=2))  # after it was read
    assert decode_cloud_labels(answers.cloud(40)).tolist() == [2] * 7
    assert decode_cloud_labels(answers.cloud(20)).tolist() == [4] * 7


def test_bytes_that_are_no_cloud_are_told(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    answers.add(answer(10)[:60])
    with pytest.raises(ValueError, match="/xmodal_seg/points: a message does not decode as sensor_msgs/msg/Point"):
        answers.cloud(10)


def test_answers_lie_on_the_disk_and_leave_nothing_there(tmp_path: Path) -> None:
    data = answer(10, num_points=40_000)
    answers = Answers(tmp_path)
    tracemalloc.start()
    try:
        for number in range(20):
            answers.add(data)
            assert answers.num_stamps == 1, number
        sizes = [len(each) for _, each in answers.firsts()]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sizes == [len(data)]
    assert peak < 3 * len(data)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_told(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    with full_disk(), pytest.raises(ValueError, match="expected room for the nodes' answers, got: ") as raised:
        answers.add(answer(10))
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.EFBIG
    assert len(answers) == 0
