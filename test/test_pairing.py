# SPDX-License-Identifier: Apache-2.0
"""Pairing by stamp, with time that the tests move themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_seg.pairing import NearestPairing, Pair, PairedImage

MS = 1_000_000
SECOND = 1000 * MS


def pairing(**changes: Any) -> NearestPairing:
    values: dict[str, Any] = {
        "cameras": ("front",),
        "tolerance_ns": 50 * MS,
        "timeout_ns": 100 * MS,
        "jump_threshold_ns": 500 * MS,
    }
    return NearestPairing(**{**values, **changes})


class Feed:
    """Messages fed to a pairing; an item is (stream, stamp in ms)."""

    def __init__(self, target: NearestPairing) -> None:
        self.target = target
        self.out: list[Pair] = []
        self.now_ns = 0

    def at(self, now_ms: float) -> Feed:
        self.now_ns = round(now_ms * MS)
        return self

    def cloud(self, stamp_ms: float) -> Feed:
        return self._take(lambda: self.target.add_cloud(round(stamp_ms * MS), ("cloud", stamp_ms), now_ns=self.now_ns))

    def image(self, stamp_ms: float, camera: str = "front", *, info: bool = True) -> Feed:
        if info:
            self.info(stamp_ms, camera)
        return self._take(
            lambda: self.target.add_image(camera, round(stamp_ms * MS), (camera, stamp_ms), now_ns=self.now_ns)
        )

    def info(self, stamp_ms: float, camera: str = "front") -> Feed:
        return self._take(
            lambda: self.target.add_info(camera, round(stamp_ms * MS), ("info", stamp_ms), now_ns=self.now_ns)
        )

    def poll(self) -> Feed:
        return self._take(lambda: self.target.poll(self.now_ns))

    def _take(self, call: Callable[[], list[Pair]]) -> Feed:
        self.out += call()
        return self

    def stamps(self) -> list[tuple[float, dict[str, float]]]:
        """(cloud ms, camera -> image ms) of every pair."""
        return [
            (pair.stamp_ns / MS, {name: image.stamp_ns / MS for name, image in pair.images.items()})
            for pair in self.out
        ]


def test_a_cloud_and_its_image_come_out_with_their_items() -> None:
    feed = Feed(pairing()).at(0).cloud(1000).at(5).image(1004)
    assert feed.out == [
        Pair(
            stamp_ns=1000 * MS,
            cloud=("cloud", 1000),
            images={
                "front": PairedImage(stamp_ns=1004 * MS, image=("front", 1004), info=("info", 1004), info_exact=True)
            },
            missing=(),
            reason="",
        )
    ]


def test_an_earlier_image_waits_for_what_may_come_nearer() -> None:
    feed = Feed(pairing()).image(990).cloud(1000)
    assert feed.out == []
    assert feed.image(1020).stamps() == [(1000, {"front": 990})]


def test_an_exact_image_is_not_waited_beyond() -> None:
    assert Feed(pairing()).image(1000).cloud(1000).stamps() == [(1000, {"front": 1000})]


def test_the_earlier_of_two_equally_near_images_is_taken() -> None:
    assert Feed(pairing()).image(990).image(1010).cloud(1000).stamps() == [(1000, {"front": 990})]


@pytest.mark.parametrize(("skew_ms", "is_paired"), [(50, True), (50.000001, False), (-50, True), (-50.000001, False)])
def test_the_tolerance_is_inclusive_and_hard(skew_ms: float, is_paired: bool) -> None:
    feed = Feed(pairing()).image(1000 + skew_ms).image(2000).cloud(1000)
    assert len(feed.out) == 1
    assert feed.out[0].missing == (() if is_paired else ("front",))
    assert feed.out[0].reason == ("" if is_paired else "front: no image within 50 ms")


def _reasons(feed: Feed, *, image_ms: Callable[[int], float | None], seconds: int = 20, rate: float = 1.0) -> list[str]:
    """Of a drive with sweeps every 0.1 s; `image_ms`: time of a sweep -> stamp of the image that comes with it."""
    for tick in range(seconds * 10):
        stamp = image_ms(tick * 100)
        feed.at(tick * 100 / rate).poll().cloud(tick * 100).at(tick * 100 / rate + 1)
        if stamp is not None:
            feed.image(stamp)
    return [pair.reason for pair in feed.at(seconds * 1000 / rate + 100).poll().out]


@pytest.mark.parametrize(
    ("image_ms", "sentence"),
    [
        (lambda _: None, "no image on '/front/image' yet"),
        (lambda now: now if now < 10_000 else None, "no image on '/front/image' for 10.0 s"),
        (lambda now: now - 4980, "the images on '/front/image' are stamped 4.98 s too early for the sweeps: clock or"),
        (lambda now: now + 4980, "the images on '/front/image' are stamped 4.98 s too late for the sweeps: clock or"),
        (lambda _: 0, "the images on '/front/image' are stamped 19.90 s too early for the sweeps: clock or"),
        (lambda now: now if now % 500 == 0 else None, "no image within 50 ms"),
    ],
)
def test_the_reason_tells_a_silent_camera_from_one_with_other_stamps(
    image_ms: Callable[[int], float | None], sentence: str
) -> None:
    reasons = _reasons(Feed(pairing(image_topics={"front": "/front/image"})), image_ms=image_ms)
    assert reasons[-1].startswith(f"front: {sentence}")


def test_an_offset_that_is_wrong_is_told_like_a_clock() -> None:
    feed = Feed(pairing(stamp_offsets_ns={"front": 5 * SECOND}))
    assert "stamped 5.00 s too early" in _reasons(feed, image_ms=lambda now: now)[-1]


@pytest.mark.parametrize("rate", [0.1, 10.0])
def test_a_lost_image_in_a_playback_of_another_speed_is_no_clock(rate: float) -> None:
    feed = Feed(pairing(cameras=("front", "rear"), timeout_ns=5 * SECOND))  # the sweeps wait for the second camera
    reasons = _reasons(feed, image_ms=lambda now: None if now == 2000 else now, rate=rate)
    assert "front: no image within 50 ms; rear: no image on 'rear' yet" in reasons
    assert not any("stamped" in reason for reason in reasons)


def test_a_loop_and_a_pause_leave_no_camera_that_seems_silent_or_late() -> None:
    feed = Feed(pairing())
    _play_pass(feed, start_ms=0)
    feed.at(70_000)  # paused for a minute, then from the beginning
    feed.image(0).cloud(0).cloud(60).image(200)
    assert [pair.reason for pair in feed.out[-2:]] == ["", "front: no image within 50 ms"]


def test_a_high_rate_camera_whose_exact_frame_comes_after_the_cloud() -> None:
    feed = Feed(pairing())
    for tick in range(60):  # 30 Hz camera, 10 Hz LiDAR, the cloud 10 ms before the simultaneous image
        if tick % 3 == 0:
            feed.at(tick * 100 / 3 - 10).cloud(tick * 100 / 3)
        feed.at(tick * 100 / 3).image(tick * 100 / 3)
    assert len(feed.out) == 20
    assert all(image == {"front": stamp} for stamp, image in feed.stamps())


def test_a_late_lidar_finds_its_image_among_newer_ones() -> None:
    feed = Feed(pairing())
    for tick in range(60):
        feed.at(tick * 100 / 3).image(tick * 100 / 3)
        if tick % 3 == 0 and tick >= 6:
            feed.cloud((tick - 6) * 100 / 3)  # 200 ms late
    assert len(feed.out) == 18
    assert all(image == {"front": stamp} for stamp, image in feed.stamps())


def test_the_offset_of_a_camera_is_taken_off() -> None:
    feed = Feed(pairing(stamp_offsets_ns={"front": 30 * MS})).image(1000).image(1030).image(1060).cloud(1000)
    assert feed.stamps() == [(1000, {"front": 1030})]


def test_no_cameras_clouds_pass_through() -> None:
    feed = Feed(pairing(cameras=())).cloud(1000).cloud(1100)
    assert feed.stamps() == [(1000, {}), (1100, {})]
    assert feed.target.counters.incomplete == 0


def test_a_camera_that_never_arrives_costs_the_time_out_and_is_named() -> None:
    feed = Feed(pairing()).at(10).cloud(1000).at(109).poll()
    assert feed.out == []
    feed.at(110).poll()
    assert feed.out[0].missing == ("front",)
    assert feed.target.counters.incomplete == 1


def test_a_camera_that_stays_silent_is_not_waited_for_until_it_speaks() -> None:
    feed = Feed(pairing(silent_after_clouds=3))
    for tick in range(6):
        feed.at(tick * 100).poll().cloud(tick * 100)
    assert len(feed.out) == 6  # the last three at once
    feed.at(600).image(580).cloud(600).poll()
    assert len(feed.out) == 6
    assert feed.image(640).stamps()[-1] == (600, {"front": 580})


def test_one_blocked_camera_of_six_leaves_the_other_five() -> None:
    cameras = tuple(f"camera_{i}" for i in range(6))
    feed = Feed(pairing(cameras=cameras))
    for tick in range(5):
        feed.at(tick * 100).cloud(tick * 100)
        for camera in cameras[1:]:
            feed.image(tick * 100 + 2, camera)
        feed.at(tick * 100 + 100).poll()
    assert len(feed.out) == 5
    assert all(pair.missing == ("camera_0",) and set(pair.images) == set(cameras[1:]) for pair in feed.out)


def test_an_image_waits_for_its_own_info() -> None:
    feed = Feed(pairing()).info(900).image(1000, info=False).cloud(1000)
    assert feed.out == []
    feed.info(1000)
    assert feed.out[0].images["front"].info == ("info", 1000)
    assert feed.out[0].images["front"].info_exact


def test_a_latched_info_costs_one_time_out_only() -> None:
    feed = Feed(pairing()).info(0)
    feed.at(0).image(1000, info=False).cloud(1000).at(99).poll()
    assert feed.out == []
    feed.at(100).poll()
    feed.at(101).image(1100, info=False).cloud(1100).image(1200, info=False).cloud(1200)
    assert [pair.images["front"].info for pair in feed.out] == [("info", 0)] * 3
    assert not any(pair.images["front"].info_exact for pair in feed.out)


def test_an_info_that_was_sent_once_with_the_first_image_costs_one_time_out_only() -> None:
    feed = Feed(pairing()).image(1000).cloud(1000).at(0).image(1100, info=False).cloud(1100).at(100).poll()
    feed.image(1200, info=False).cloud(1200).image(1300, info=False).cloud(1300)
    assert [pair.images["front"].info_exact for pair in feed.out] == [True, False, False, False]


@pytest.mark.parametrize("info_first", [True, False])
def test_infos_that_match_again_are_waited_for_again(info_first: bool) -> None:
    feed = Feed(pairing()).image(1000).cloud(1000).image(1100, info=False).cloud(1100).at(100).poll()
    feed.image(1200, info=info_first).cloud(1200)
    if not info_first:
        feed.info(1200)  # heard: an info with its image's stamp
    feed.image(1300, info=False).cloud(1300)
    assert len(feed.out) == 3
    assert feed.info(1300).out[-1].images["front"].info_exact


def test_without_any_info_the_camera_is_missing_and_costs_one_time_out() -> None:
    feed = Feed(pairing()).image(1000, info=False).cloud(1000).at(100).poll()
    feed.image(1100, info=False).cloud(1100)
    assert [pair.reason for pair in feed.out] == ["front: no camera_info"] * 2


def test_the_nearest_info_stands_in_and_the_latest_of_equals() -> None:
    feed = Feed(pairing()).info(800).info(1120).info(880).image(1000, info=False).cloud(1000).at(100).poll()
    assert feed.out[0].images["front"].info == ("info", 880)


def test_clouds_out_of_order_or_twice_are_dropped_and_output_is_monotonic() -> None:
    feed = Feed(pairing(cameras=())).cloud(1200).cloud(1000).cloud(1200).cloud(1300)
    assert [pair.stamp_ns / MS for pair in feed.out] == [1200, 1300]
    assert (feed.target.counters.clouds, feed.target.counters.dropped_clouds) == (4, 2)


def test_clouds_that_wait_come_out_in_the_order_of_their_stamps() -> None:
    feed = Feed(pairing()).cloud(1200).cloud(1000).cloud(1200).image(1000).image(1200)
    assert feed.stamps() == [(1000, {"front": 1000}), (1200, {"front": 1200})]
    assert feed.target.counters.dropped_clouds == 1


def test_images_out_of_order_and_twice() -> None:
    feed = Feed(pairing()).image(1100).image(1000).image(1000).cloud(1000).cloud(1100)
    assert feed.stamps() == [(1000, {"front": 1000}), (1100, {"front": 1100})]


def test_when_too_many_clouds_wait_the_oldest_goes_out() -> None:
    feed = Feed(pairing(max_clouds=2)).cloud(1000).cloud(1100).cloud(1200)
    assert [pair.stamp_ns / MS for pair in feed.out] == [1000]


def test_the_buffers_are_bounded() -> None:
    feed = Feed(pairing())
    for tick in range(500):
        feed.at(tick).image(tick * 100)
    camera = feed.target._cameras["front"]
    assert (len(camera.images), len(camera.infos)) == (16, 32)


def _play_pass(feed: Feed, *, start_ms: float, length: int = 100) -> None:
    for tick in range(length):
        feed.at(start_ms + tick * 100).cloud(tick * 100).at(start_ms + tick * 100 + 5).image(tick * 100 + 5).poll()


def test_every_pass_of_a_looped_bag_pairs_all() -> None:
    feed = Feed(pairing())
    for loop in range(3):
        _play_pass(feed, start_ms=loop * 10_000)
    one_pass = [(tick * 100.0, {"front": tick * 100.0 + 5}) for tick in range(100)]
    assert feed.stamps() == one_pass * 3
    assert feed.target.counters.jumps == 2
    assert feed.target.counters.dropped_clouds == 0


def test_a_loop_gives_out_the_clouds_that_still_wait() -> None:
    feed = Feed(pairing()).image(9000).image(9880).cloud(9900).cloud(0).image(0)
    assert feed.stamps() == [(9900, {"front": 9880}), (0, {"front": 0})]


def test_stragglers_of_the_last_pass_do_not_disturb_the_next() -> None:
    feed = Feed(pairing(cameras=("front", "rear")))
    feed.at(0).image(9900).image(9900, "rear").cloud(9900)
    feed.at(50).image(0)  # the loop, seen by this camera first
    feed.at(60).cloud(10_000).image(10_000, "rear")  # still on their way from before
    feed.at(70).cloud(0).image(10_100, "rear").image(0, "rear")
    assert feed.stamps() == [
        (9900, {"front": 9900, "rear": 9900}),
        (10_000, {"rear": 10_000}),
        (0, {"front": 0, "rear": 0}),
    ]
    counters = feed.target.counters
    assert (counters.jumps, counters.camera_jumps, counters.dropped_clouds) == (1, 1, 0)


def test_stragglers_from_before_two_jumps() -> None:
    feed = Feed(pairing(cameras=("front", "rear")))
    feed.at(0).image(9900).image(9900, "rear").cloud(9900)
    feed.at(10).image(5000).image(0)
    feed.at(20).image(10_000, "rear")
    feed.at(30).image(0, "rear").cloud(0)
    assert feed.stamps()[-1] == (0, {"front": 0, "rear": 0})
    assert (feed.target.counters.jumps, feed.target.counters.camera_jumps) == (1, 3)
    assert feed.target.jumps_alone("front") == 0  # the clouds have followed


def test_a_clock_of_one_camera_that_jumps_back_does_not_stop_the_others() -> None:
    feed = Feed(pairing(cameras=("front", "rear")))
    feed.at(0).image(9000).image(9000, "rear").cloud(9000)
    feed.at(100).image(100)
    for tick in range(3, 6):
        now = tick * 100
        feed.at(now).image(now).image(9000 + now, "rear").cloud(9000 + now).at(now + 100).poll()
    assert feed.stamps()[1:] == [(9000.0 + t * 100, {"rear": 9000.0 + t * 100}) for t in range(3, 6)]
    assert (feed.target.counters.jumps, feed.target.counters.camera_jumps) == (0, 1)


@pytest.mark.parametrize("hop_ms", [300, 3_600_000])  # a second clock; a second driver, an hour apart
def test_a_camera_whose_stamps_hop_costs_no_sweep_and_no_other_camera(hop_ms: int) -> None:
    feed = Feed(pairing(cameras=("front", "rear"), timeout_ns=150 * MS, jump_threshold_ns=150 * MS))
    events = [(tick * 100.0 + 60, "cloud", tick * 100.0) for tick in range(190)]
    events += [(tick * 33.0 + 20, "front", tick * 33.0) for tick in range(600)]
    events += [(tick * 33.0 + 21, "rear", tick * 33.0 - hop_ms * (tick % 3 == 0)) for tick in range(600)]
    for now_ms, stream, stamp_ms in sorted(events):
        feed.at(now_ms)
        if stream == "cloud":
            feed.cloud(stamp_ms)
        else:
            feed.image(stamp_ms, stream)
        feed.poll()
    assert [stamp for stamp, _ in feed.stamps()] == [tick * 100.0 for tick in range(190)]
    assert all("front" in images for _, images in feed.stamps())
    assert sum("rear" in images for _, images in feed.stamps()) > 190 * 2 / 3  # as many of its stamps are right
    assert feed.target.counters.jumps == 0
    assert feed.target.jumps_alone("rear") == 199


def test_a_camera_that_ended_before_the_bag_did_is_waited_for_when_it_loops() -> None:
    feed = Feed(pairing(cameras=("front", "rear"), silent_after_clouds=1000)).at(0)
    for stamp_ms in range(0, 10_000, 100):
        if stamp_ms <= 3000:
            feed.image(stamp_ms, "rear")
        feed.at(stamp_ms).image(stamp_ms).cloud(stamp_ms).at(stamp_ms + 100).poll()
    feed.at(11_000).cloud(0).image(0).image(0, "rear")
    assert feed.stamps()[-1] == (0, {"front": 0, "rear": 0})


def test_loops_that_the_clock_tells_before_the_clouds_are_no_hopping_camera() -> None:
    feed = Feed(pairing())
    for loop in range(3):
        feed.at(loop * 10_000).image(0)  # queued before the clock's jump was heard
        feed.out += feed.target.reset()
        for stamp_ms in range(100, 1000, 100):
            feed.at(loop * 10_000 + stamp_ms).image(stamp_ms).cloud(stamp_ms)
        assert feed.target.jumps_alone("front") == 0
    assert len(feed.out) == 27


def test_a_jump_forward_needs_no_flush() -> None:
    feed = Feed(pairing()).image(1000).cloud(1000).cloud(1100).image(3_600_000).cloud(3_600_000)
    assert feed.stamps() == [(1000, {"front": 1000}), (1100, {}), (3_600_000, {"front": 3_600_000})]
    assert feed.target.counters.jumps == 0


def test_a_single_stamp_from_the_future_is_survived() -> None:
    feed = Feed(pairing()).image(1000).cloud(1000).cloud(9_999_000).image(1100).cloud(1100).image(1200).cloud(1200)
    assert feed.stamps()[1:] == [(9_999_000, {}), (1100, {"front": 1100}), (1200, {"front": 1200})]


def test_reset_gives_out_what_waits_and_forgets_all_but_infos() -> None:
    feed = Feed(pairing()).image(1000).cloud(1000).image(1090).cloud(1100)
    assert [(pair.stamp_ns / MS, pair.missing) for pair in feed.target.reset()] == [(1100, ())]
    assert feed.at(1).cloud(500).image(500).stamps()[-1] == (500, {"front": 500})
    assert feed.target.counters.jumps == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": ("front", "front")}, "cameras: expected different names"),
        ({"cameras": ("",)}, "cameras: expected different names"),
        ({"stamp_offsets_ns": {"rear": 1}}, "stamp_offsets_ns: 'rear' is not among"),
        ({"image_topics": {"rear": "/rear"}}, "image_topics: 'rear' is not among"),
        ({"tolerance_ns": -1}, "tolerance_ns: expected at least 0, got -1"),
        ({"max_images": 1}, "max_images: expected at least 2"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairing(**changes)


STREAM = st.fixed_dictionaries(
    {
        "period_ms": st.integers(20, 150),
        "phase_ms": st.integers(0, 150),
        "jitter_ms": st.lists(st.integers(0, 15), min_size=7, max_size=7),
        "latency_ms": st.lists(st.integers(0, 40), min_size=5, max_size=5),
    }
)


def _arrivals(stream: dict[str, Any]) -> list[tuple[float, int]]:
    """(arrival, stamp) in ms over 1.5 s; each stream arrives in the order of its stamps."""
    messages: list[tuple[float, int]] = []
    for tick in range(1500 // stream["period_ms"]):
        stamp = stream["phase_ms"] + tick * stream["period_ms"] + stream["jitter_ms"][tick % 7]
        arrival = stamp + stream["latency_ms"][tick % 5]
        messages.append((max(arrival, messages[-1][0] if messages else 0), stamp))
    return messages


@settings(max_examples=150, deadline=None)
@given(
    cloud=STREAM,
    cameras=st.lists(STREAM, min_size=1, max_size=3),
    offsets_ms=st.lists(st.integers(-30, 30), min_size=3, max_size=3),
    tolerance_ms=st.integers(0, 80),
    info_first=st.booleans(),
)
def test_every_cloud_gets_the_image_a_search_over_all_of_them_finds(
    cloud: dict[str, Any],
    cameras: list[dict[str, Any]],
    offsets_ms: list[int],
    tolerance_ms: int,
    info_first: bool,
) -> None:
    names = [f"camera_{i}" for i in range(len(cameras))]
    offsets = dict(zip(names, offsets_ms, strict=False))
    feed = Feed(
        pairing(
            cameras=names,
            tolerance_ns=tolerance_ms * MS,
            timeout_ns=400 * MS,  # more than a period and a latency: everything arrives in time
            stamp_offsets_ns={name: value * MS for name, value in offsets.items()},
            max_clouds=50,
            max_images=100,  # all of them: at 50 images a second 16 would be gone before the time-out
            max_infos=100,
        )
    )
    images = {name: _arrivals(stream) for name, stream in zip(names, cameras, strict=True)}
    events = [(arrival, 0, stamp, "") for arrival, stamp in _arrivals(cloud)]
    events += [(arrival, 1, stamp, name) for name, stream in images.items() for arrival, stamp in stream]
    for arrival, _, stamp, name in sorted(events):
        feed.at(arrival).poll()
        if not name:
            feed.cloud(stamp)
        elif info_first:
            feed.image(stamp, name)
        else:
            feed.image(stamp, name, info=False).info(stamp, name)
    feed.at(10_000).poll()

    clouds = [stamp for _, stamp in _arrivals(cloud)]
    assert [pair.stamp_ns for pair in feed.out] == [stamp * MS for stamp in sorted(set(clouds))]
    for stamp, found in feed.stamps():
        for name in names:
            target = stamp + offsets[name]
            nearest = min((s for _, s in images[name]), key=lambda s: (abs(s - target), s))
            assert found.get(name) == (nearest if abs(nearest - target) <= tolerance_ms else None)
