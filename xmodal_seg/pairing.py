# SPDX-License-Identifier: Apache-2.0
"""Pairing of LiDAR clouds with the nearest image of each camera, by stamp.

No ROS, no threads, no clock: the caller passes what arrives with the time of its own steady clock, and locks.

A cloud goes out as soon as no camera can give it a better partner: an image at or after its stamp is there, and the
CameraInfo of the nearest one. Else it goes out with what it has when it has waited `timeout_ns`. Where the stamps of
the clouds jump back (a bag that loops, a clock that is set), waiting clouds go out and pairing begins anew; where those
of a camera do, its images are forgotten and no other stream is concerned.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_FAR_NS = 1_000_000_000  # a silence, or a difference of stamps, that a slow camera or a lost image does not explain


@dataclass(frozen=True, kw_only=True)
class PairedImage:
    """One camera's partner of a cloud."""

    stamp_ns: int
    image: Any
    info: Any
    info_exact: bool  # False: the driver's infos do not carry the stamps of its images, this is the nearest


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A cloud and its images; one sentence in `reason` says why cameras are missing."""

    stamp_ns: int
    cloud: Any
    images: dict[str, PairedImage]
    missing: tuple[str, ...]
    reason: str


@dataclass(kw_only=True)
class PairingCounters:
    """What happened since the start; `incomplete` pairs are among `pairs`."""

    clouds: int = 0
    pairs: int = 0
    incomplete: int = 0
    dropped_clouds: int = 0  # out of order, or twice the same stamp
    jumps: int = 0  # of the clouds' stamps, back
    camera_jumps: int = 0  # of the images' stamps, each camera for itself


class _Stamped(NamedTuple):
    stamp_ns: int
    arrival_ns: int
    item: Any


def _stamp(entry: _Stamped) -> int:
    return entry.stamp_ns


def _later(last_ns: int | None, stamp_ns: int) -> int:
    return stamp_ns if last_ns is None else max(last_ns, stamp_ns)


@dataclass(kw_only=True)
class _Camera:
    """What one camera has sent, and what is known of its driver."""

    topic: str  # of its images
    offset_ns: int
    images: list[_Stamped] = field(default_factory=list)  # by stamp
    infos: dict[int, Any] = field(default_factory=dict)  # by stamp, in order of arrival
    infos_missed: bool = False  # a cloud timed out for want of an info with its image's stamp, and none came since
    unheard_clouds: int = 0  # since its last image
    heard_ns: int | None = None  # arrival of its last image, whatever jumped since
    last_ns: int | None = None  # latest stamp of an image since the last jump
    before_jump_ns: int | None = None  # that before a jump of the clouds, until it has followed
    jumps: int = 0  # of its own since the last one of the clouds

    def forget_images(self) -> None:
        self.images.clear()
        self.last_ns = None

    def add_image(self, entry: _Stamped, *, most: int) -> None:
        at = bisect_left(self.images, entry.stamp_ns, key=_stamp)
        if at < len(self.images) and self.images[at].stamp_ns == entry.stamp_ns:
            self.images[at] = entry
        else:
            self.images.insert(at, entry)
        del self.images[:-most]

    def add_info(self, stamp_ns: int, info: Any, *, most: int) -> None:
        self.infos.pop(stamp_ns, None)
        self.infos[stamp_ns] = info
        if len(self.infos) > most:
            del self.infos[next(iter(self.infos))]

    def nearest_image(self, target_ns: int, tolerance_ns: int) -> _Stamped | None:
        """The earlier of two that are equally near."""
        at = bisect_left(self.images, target_ns, key=_stamp)
        near = min(self.images[max(at - 1, 0) : at + 1], key=lambda e: abs(e.stamp_ns - target_ns), default=None)
        return near if near is not None and abs(near.stamp_ns - target_ns) <= tolerance_ns else None

    def nearest_info(self, stamp_ns: int) -> Any | None:
        """The latest to arrive of those that are equally near."""
        best = min(reversed(self.infos), key=lambda s: abs(s - stamp_ns), default=None)
        return None if best is None else self.infos[best]

    def fault(self, cloud: _Stamped) -> str | None:
        """Why no image fits this cloud, if one that was lost or came a little late does not explain it."""
        if self.heard_ns is None:
            return f"no image on {self.topic!r} yet"
        silent_ns = cloud.arrival_ns - self.heard_ns
        if silent_ns > _FAR_NS:
            return f"no image on {self.topic!r} for {silent_ns / 1e9:.1f} s"
        target_ns = cloud.stamp_ns + self.offset_ns
        if self.last_ns is None or self.nearest_image(target_ns, _FAR_NS) is not None:
            return None
        # Stamp less arrival of both, since images may have come for as long as the cloud has waited.
        ahead_ns = (self.last_ns - self.heard_ns) - (target_ns - cloud.arrival_ns)
        if abs(ahead_ns) <= _FAR_NS:
            return None
        how = f"{abs(ahead_ns) / 1e9:.2f} s too {'late' if ahead_ns > 0 else 'early'}"
        return f"the images on {self.topic!r} are stamped {how} for the sweeps: clock or stamp_offsets_ms?"

    def is_final(self, target_ns: int, tolerance_ns: int) -> bool:
        """No later message can give a better partner."""
        if not self.images or self.images[-1].stamp_ns < target_ns:
            return False
        image = self.nearest_image(target_ns, tolerance_ns)
        if image is None or image.stamp_ns in self.infos:
            return True
        # A driver that does not stamp its infos like its images is waited for once only.
        return self.infos_missed


class NearestPairing:
    """Pairs each cloud with the nearest image of every camera.

    `timeout_ns` and `now_ns` are of the caller's steady clock, everything else of the messages' stamps.
    `stamp_offsets_ns` says by how much a camera's stamps are ahead of the LiDAR's (camera - LiDAR), 0 where not named;
    `image_topics` what the reasons call the source of a camera's images, the camera's name where not named.
    A stamp that lies more than `jump_threshold_ns` before an earlier one of its topic is a jump, so the clouds of a
    shorter bag are dropped as out of order when it loops. A camera from which nothing came during the last
    `silent_after_clouds` clouds is not waited for until it speaks again. When more than `max_clouds` wait, the oldest
    goes out with what it has.
    """

    def __init__(
        self,
        *,
        cameras: Sequence[str],
        tolerance_ns: int,
        timeout_ns: int,
        jump_threshold_ns: int,
        stamp_offsets_ns: Mapping[str, int] | None = None,
        image_topics: Mapping[str, str] | None = None,
        silent_after_clouds: int = 30,
        max_clouds: int = 8,
        max_images: int = 16,
        max_infos: int = 32,
    ) -> None:
        offsets, topics = dict(stamp_offsets_ns or {}), dict(image_topics or {})
        if len(set(cameras)) != len(cameras) or "" in cameras:
            raise ValueError(f"cameras: expected different names that are not empty, got {list(cameras)}")
        for setting, names in (("stamp_offsets_ns", offsets), ("image_topics", topics)):
            for name in names:
                if name not in cameras:
                    raise ValueError(f"{setting}: {name!r} is not among the cameras {list(cameras)}")
        for name, value, least in (
            ("tolerance_ns", tolerance_ns, 0),
            ("timeout_ns", timeout_ns, 0),
            ("jump_threshold_ns", jump_threshold_ns, 0),
            ("silent_after_clouds", silent_after_clouds, 1),
            ("max_clouds", max_clouds, 1),
            ("max_images", max_images, 2),
            ("max_infos", max_infos, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.counters = PairingCounters()
        self._cameras = {
            name: _Camera(topic=topics.get(name, name), offset_ns=offsets.get(name, 0)) for name in cameras
        }
        self._tolerance_ns, self._timeout_ns = tolerance_ns, timeout_ns
        self._jump_threshold_ns, self._silent_after_clouds = jump_threshold_ns, silent_after_clouds
        self._max_clouds, self._max_images, self._max_infos = max_clouds, max_images, max_infos
        self._clouds: list[_Stamped] = []  # by stamp
        self._last_output_ns: int | None = None
        self._last_cloud_ns: int | None = None  # latest stamp of a cloud since the last jump
        self._jump_at_ns = self._jump_to_ns = 0  # arrival and stamp of the first cloud after the last jump

    def add_cloud(self, stamp_ns: int, item: Any, *, now_ns: int) -> list[Pair]:
        """Takes a cloud; the pairs that are ready now."""
        self.counters.clouds += 1
        pairs = self._follow_clouds(stamp_ns, now_ns)
        if not self._is_new_cloud(stamp_ns):
            self.counters.dropped_clouds += 1
            return pairs
        for camera in self._cameras.values():
            camera.unheard_clouds += 1
        self._last_cloud_ns = _later(self._last_cloud_ns, stamp_ns)
        insort(self._clouds, _Stamped(stamp_ns, now_ns, item), key=_stamp)
        return pairs + self.poll(now_ns)

    def add_image(self, camera: str, stamp_ns: int, item: Any, *, now_ns: int) -> list[Pair]:
        """Takes an image of `camera`; the pairs that are ready now."""
        sender = self._cameras[camera]
        sender.heard_ns = now_ns
        if self._is_straggler(sender, stamp_ns, now_ns):
            return []
        if self._is_jump(sender.last_ns, stamp_ns):
            sender.forget_images()
            sender.jumps += 1
            self.counters.camera_jumps += 1
        sender.last_ns = _later(sender.last_ns, stamp_ns)
        sender.unheard_clouds = 0
        sender.infos_missed &= stamp_ns not in sender.infos
        sender.add_image(_Stamped(stamp_ns, now_ns, item), most=self._max_images)
        return self.poll(now_ns)

    def jumps_alone(self, camera: str) -> int:
        """How often the stamps of `camera` have jumped back since the clouds' did: at most once where a bag loops."""
        return self._cameras[camera].jumps

    def add_info(self, camera: str, stamp_ns: int, item: Any, *, now_ns: int) -> list[Pair]:
        """Takes a CameraInfo of `camera`; the pairs that are ready now. Its stamp never counts as a jump."""
        sender = self._cameras[camera]
        sender.infos_missed &= all(image.stamp_ns != stamp_ns for image in sender.images)
        sender.add_info(stamp_ns, item, most=self._max_infos)
        return self.poll(now_ns)

    def poll(self, now_ns: int) -> list[Pair]:
        """The pairs that are ready now; call it often enough for `timeout_ns` to mean something."""
        pairs = []
        while self._clouds and self._is_ready(self._clouds[0], now_ns):
            pairs.append(self._give_out(self._clouds.pop(0)))
        return pairs

    def reset(self) -> list[Pair]:
        """Gives out the waiting clouds with what they have, then forgets every stamp, cloud and image, but no info."""
        pairs = self._begin_anew()
        for camera in self._cameras.values():
            camera.forget_images()
            camera.before_jump_ns, camera.jumps = None, 0
        return pairs

    def _begin_anew(self) -> list[Pair]:
        pairs = [self._give_out(cloud) for cloud in self._clouds]
        self._clouds.clear()
        self._last_cloud_ns = self._last_output_ns = None
        return pairs

    def _is_jump(self, last_ns: int | None, stamp_ns: int) -> bool:
        return last_ns is not None and stamp_ns < last_ns - self._jump_threshold_ns

    def _follow_clouds(self, stamp_ns: int, now_ns: int) -> list[Pair]:
        """Begins anew when the stamps of the clouds jump back; the pairs that this sets free.

        A camera has already followed if its stamps have jumped too, or are where the clouds' are now, and are nearer to
        this one than to the clouds' before.
        """
        last_ns = self._last_cloud_ns
        if last_ns is None or not self._is_jump(last_ns, stamp_ns):
            return []
        images = {name: list(camera.images) for name, camera in self._cameras.items()}
        pairs = self._begin_anew()
        for name, camera in self._cameras.items():
            has_jumped, camera.jumps = camera.jumps > 0, 0
            if camera.last_ns is None:
                continue
            seen_ns = camera.last_ns - camera.offset_ns
            away_ns = abs(seen_ns - stamp_ns)
            if away_ns < abs(seen_ns - last_ns) and (has_jumped or away_ns <= self._jump_threshold_ns):
                camera.images = images[name]  # also those that a cloud from before the jump had no more use for
            else:
                camera.before_jump_ns = camera.last_ns
                camera.forget_images()
        self._jump_at_ns, self._jump_to_ns = now_ns, stamp_ns
        self.counters.jumps += 1
        return pairs

    def _is_straggler(self, camera: _Camera, stamp_ns: int, now_ns: int) -> bool:
        """An image that goes on from before a jump which the clouds have already made."""
        before_ns = camera.before_jump_ns
        is_recent = now_ns - self._jump_at_ns <= self._timeout_ns
        is_far = stamp_ns - self._jump_to_ns > self._jump_threshold_ns
        if before_ns is not None and stamp_ns > before_ns and is_recent and is_far:
            return True
        camera.before_jump_ns = None
        return False

    def _is_new_cloud(self, stamp_ns: int) -> bool:
        if self._last_output_ns is not None and stamp_ns <= self._last_output_ns:
            return False
        return all(cloud.stamp_ns != stamp_ns for cloud in self._clouds)

    def _is_ready(self, cloud: _Stamped, now_ns: int) -> bool:
        waiting = [
            camera
            for camera in self._cameras.values()
            if not camera.is_final(cloud.stamp_ns + camera.offset_ns, self._tolerance_ns)
            and camera.unheard_clouds <= self._silent_after_clouds
        ]
        timed_out = now_ns - cloud.arrival_ns >= self._timeout_ns or len(self._clouds) > self._max_clouds
        if waiting and not timed_out:
            return False
        for camera in waiting:
            image = camera.nearest_image(cloud.stamp_ns + camera.offset_ns, self._tolerance_ns)
            camera.infos_missed |= image is not None and image.stamp_ns not in camera.infos
        return True

    def _give_out(self, cloud: _Stamped) -> Pair:
        images: dict[str, PairedImage] = {}
        reasons: dict[str, str] = {}
        for name, camera in self._cameras.items():
            target_ns = cloud.stamp_ns + camera.offset_ns
            partner = self._partner(camera, cloud)
            if isinstance(partner, PairedImage):
                images[name] = partner
            else:
                reasons[name] = partner
            if not camera.jumps:  # no later cloud has an earlier stamp, unless it follows the camera in a jump
                del camera.images[: bisect_left(camera.images, target_ns - self._tolerance_ns, key=_stamp)]
        self._last_output_ns = cloud.stamp_ns
        self.counters.pairs += 1
        self.counters.incomplete += bool(reasons)
        return Pair(
            stamp_ns=cloud.stamp_ns,
            cloud=cloud.item,
            images=images,
            missing=tuple(reasons),
            reason="; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
        )

    def _partner(self, camera: _Camera, cloud: _Stamped) -> PairedImage | str:
        """The image for a cloud, or why there is none."""
        image = camera.nearest_image(cloud.stamp_ns + camera.offset_ns, self._tolerance_ns)
        if image is None:
            return camera.fault(cloud) or f"no image within {self._tolerance_ns / 1e6:g} ms"
        exact = image.stamp_ns in camera.infos
        info = camera.infos[image.stamp_ns] if exact else camera.nearest_info(image.stamp_ns)
        if info is None:
            return "no camera_info"
        return PairedImage(stamp_ns=image.stamp_ns, image=image.item, info=info, info_exact=exact)
