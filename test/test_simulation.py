# SPDX-License-Identifier: Apache-2.0
"""The simulated world: the same for a seed, labels that fit the geometry, light, weather, rigs, traffic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("embreex", reason="needs the extra 'sim'")

from xmodal_seg.geometry import project_frame
from xmodal_seg.labels import IGNORE_INDEX, LABEL_SPACES, NUSCENES_6, LabelSpace
from xmodal_seg.simulation import (
    LIGHTS,
    PLACES,
    RIGS,
    WEATHERS,
    Drive,
    DriveSettings,
    LightSchedule,
    RawClass,
    Sample,
    drive_frames,
    label_space_named,
    place_named,
    random_light,
    random_place,
    rig_named,
    schedule_named,
    shading,
    train_ids,
    weather_named,
)
from xmodal_seg.simulation.ego import EgoMotion
from xmodal_seg.simulation.layout import Layout
from xmodal_seg.simulation.lidar import firing
from xmodal_seg.simulation.places import RANDOM_MODELS, Place
from xmodal_seg.simulation.raw_classes import GROUPS, IGNORED, NUM_RAW
from xmodal_seg.simulation.rigs import Rig
from xmodal_seg.simulation.street import Street

SMALL = rig_named("nuscenes").scaled(image=0.06, columns=180)
# Digest of the first blocks of a street. It changes with every change of the layout; a machine that finds another one
# than this without such a change would not see the same world.
LAYOUT_DIGEST = "33b369010c7bc035"


def settings(**changes: object) -> DriveSettings:
    values: dict[str, object] = {"seed": 3, "num_frames": 4, "fps": 2.0, "rig": SMALL}
    return DriveSettings(**(values | changes))  # type: ignore[arg-type]


@lru_cache(maxsize=8)
def rendered(light: str = "noon", weather: str = "clear", seed: int = 3, index: int = 1) -> Sample:
    drive_settings = settings(seed=seed, light=schedule_named(light, 1.0), weather=weather_named(weather))
    return Drive(drive_settings, with_truth=True).sample(index)


def same(one: Sample, other: Sample) -> bool:
    return (
        one.jpegs == other.jpegs
        and one.frame.points.tobytes() == other.frame.points.tobytes()
        and one.raw_labels.tobytes() == other.raw_labels.tobytes()
        and one.instances.tobytes() == other.instances.tobytes()
    )


def test_same_seed_gives_the_same_bytes_in_any_order() -> None:
    drive = Drive(settings(), with_truth=True)
    third, second = drive.sample(2), drive.sample(1)
    assert same(second, rendered())
    assert not same(third, second)


def test_another_seed_is_another_street() -> None:
    assert not same(rendered(seed=4), rendered())


def test_layout_is_the_one_every_machine_must_find() -> None:
    layout = Layout(PLACES["dev_a"], 5, 300.0)
    text = repr([layout.block(index) for index in range(-2, 8)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == LAYOUT_DIGEST


def test_blocks_do_not_depend_on_the_length_of_the_street() -> None:
    assert Layout(PLACES["usa"], 5, 100.0).block(2) == Layout(PLACES["usa"], 5, 4000.0).block(2)


def test_frames_have_what_a_frame_needs() -> None:
    frames = list(drive_frames(settings(num_frames=2)))
    assert [frame.stamp_ns - frames[0].stamp_ns for frame in frames] == [0, 500_000_000]
    for frame in frames:
        assert frame.points.dtype == np.float32
        assert frame.labels is not None
        assert set(np.unique(frame.labels)) <= {IGNORE_INDEX, *range(NUSCENES_6.num_classes)}
        assert frame.intensity is not None
        assert 0 <= frame.intensity.min() < frame.intensity.max() <= 1
        assert frame.cameras[0].image.shape == (54, 96, 3)


def test_labels_of_points_agree_with_the_image_they_project_to() -> None:
    drive = Drive(settings(rig=rig_named("nuscenes").scaled(image=0.25, columns=500)), with_truth=True)
    agreeing = total = 0
    for index in range(2):
        sample = drive.sample(index)
        image = sample.truths[0].raw_class
        projection = project_frame(sample.frame)
        seen = np.flatnonzero(projection.camera_index == 0)
        u, v = np.round(projection.uv[seen]).astype(int).T
        inner = (u > 2) & (v > 2) & (u < image.shape[1] - 3) & (v < image.shape[0] - 3)
        seen, u, v = seen[inner], u[inner], v[inner]
        around = np.stack([image[v + dv, u + du] for dv in range(-3, 4) for du in range(-3, 4)])
        plain = (around == around[0]).all(axis=0)
        agreeing += (image[v, u] == sample.raw_labels[seen])[plain].sum()
        total += plain.sum()
    assert total > 1000
    assert agreeing / total > 0.97


def test_depth_of_points_agrees_with_the_depth_image() -> None:
    sample = rendered()
    projection = project_frame(sample.frame)
    seen = np.flatnonzero(projection.camera_index == 0)
    u, v = np.round(projection.uv[seen]).astype(int).T
    depth = sample.truths[0].depth[v, u]
    ratio = projection.depth[seen][depth > 0] / depth[depth > 0]
    assert 0.97 < np.median(ratio) < 1.03


@pytest.mark.parametrize("name", PLACES)
def test_every_place_has_enough_of_each_class(name: str) -> None:
    rig = rig_named("nuscenes").scaled(image=0.02, columns=120)
    drive = Drive(settings(seed=1, num_frames=3, fps=0.12, place=PLACES[name], rig=rig))
    labels = np.concatenate([drive.sample(index).frame.labels for index in range(3)])  # type: ignore[arg-type]
    shares = dict(zip(NUSCENES_6.class_names, np.bincount(labels[labels >= 0]) / len(labels), strict=True))
    assert shares["driveable_surface"] < 0.6
    assert min(shares[kind] for kind in ("sidewalk", "terrain")) > 0.05
    assert min(shares[kind] for kind in ("manmade", "vegetation", "vehicle")) > 0.02


def test_night_is_darker_than_dusk_and_dusk_than_noon() -> None:
    means = [rendered(light=light).frame.cameras[0].image.mean() for light in ("noon", "dusk", "night")]
    assert means[0] > 1.5 * means[1] > 1.5 * 1.2 * means[2]
    assert 8 < means[2] < 50


def test_light_does_not_change_the_cloud() -> None:
    assert rendered(light="night").frame.points.tobytes() == rendered().frame.points.tobytes()


def test_sun_casts_shadows_and_clouds_take_them_away() -> None:
    drive = Drive(settings(rig=rig_named("nuscenes").scaled(image=0.1, columns=8)))
    stage = drive.stage(0.0)
    vehicle = drive.ego.poses(drive.world.street, 0.0)[0]
    vehicle[:3, 3] -= stage.window.origin
    surfaces, lamps = drive.surfaces(0, stage, vehicle), drive.lamps(stage, vehicle)
    ground = np.isin(surfaces.raw_class, (RawClass.ROAD, RawClass.SIDEWALK, RawClass.TERRAIN)) & (
        surfaces.distance < 40
    )

    def spread(light: str) -> float:
        """How many times more light the brightest tenth of the ground gets than the darkest."""
        radiance = shading.radiance(surfaces, stage.scene, LIGHTS[light], WEATHERS["clear"], lamps)
        received = (radiance[surfaces.pixel] / surfaces.albedo).mean(axis=1)[ground]
        low, high = np.percentile(received, (5, 95))
        return float(high / low)

    assert spread("noon") > 1.8
    assert spread("overcast") < 1.5


def test_rain_loses_returns_and_adds_clutter_that_is_nothing() -> None:
    dry, wet = rendered(), rendered(weather="downpour")
    things = wet.raw_labels != RawClass.NOTHING
    assert things.sum() < 0.9 * len(dry.raw_labels)
    assert (dry.raw_labels != RawClass.NOTHING).all()
    assert (~things).sum() > 50
    assert (wet.frame.labels[~things] == IGNORE_INDEX).all()  # type: ignore[index]


def test_fog_takes_the_far_and_adds_the_near() -> None:
    clear, fog = rendered(), rendered(weather="fog")
    ranges = np.linalg.norm(fog.frame.points, axis=1)
    clutter = fog.raw_labels == RawClass.NOTHING
    assert clutter.mean() > 0.03
    assert np.median(ranges[clutter]) < 12
    assert np.percentile(ranges[~clutter], 95) < np.percentile(np.linalg.norm(clear.frame.points, axis=1), 95)
    contrast = [sample.frame.cameras[0].image.std() for sample in (clear, fog)]
    assert contrast[1] < 0.8 * contrast[0]


def test_scan_rolls_and_ego_motion_is_taken_out() -> None:
    """Each column is fired at its own time, from the place the car has then."""
    drive = Drive(settings())
    sample, unit = drive.sample(1), SMALL.lidars[0]
    azimuth = np.degrees(np.arctan2(sample.frame.points[:, 1], sample.frame.points[:, 0]))
    assert np.corrcoef(azimuth, sample.offsets_s)[0, 1] < -0.99
    assert np.ptp(sample.offsets_s) == pytest.approx(1 / unit.rate, rel=0.02)
    t = drive.time(1)
    start, end = drive.ego.poses(drive.world.street, np.array([t - 0.025, t + 0.025]))[:, :3, 3]
    assert np.linalg.norm(end - start) > 0.2
    # Were the ego motion left in, the road right behind the car would lie half a turn's way off the road before it.
    ground = sample.raw_labels == RawClass.ROAD
    assert np.abs(np.median(sample.frame.points[ground, 2]) + unit.mount.z) < 0.15


def test_traffic_moves_and_parked_cars_do_not() -> None:
    drive = Drive(settings(num_frames=8))
    before, after = (drive.traffic.movers(t) for t in (1.0, 1.5))
    place = {mover.instance: mover.s for mover in before}
    moved = [abs(mover.s - place[mover.instance]) for mover in after if mover.instance in place]
    assert len(moved) > 5
    assert np.median(moved) > 0.3
    assert all(step < 20 * 0.5 for step in moved)
    assert drive.world.block(2).mesh.corners.tobytes() == drive.world.block(2).mesh.corners.tobytes()


def test_points_on_moving_things_are_moved_on_by_their_firing_time() -> None:
    from xmodal_seg.simulation.lidar import _velocity_of

    velocities = np.array([[1, 0, 0], [0, 2, 0]], np.float32)
    found = _velocity_of(np.array([9, 0, 5, 7], np.int32), np.array([5, 9], np.int32), velocities)
    assert found.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_instances_are_single_things() -> None:
    sample = rendered()
    for instance in np.unique(sample.instances[sample.instances > 0]):
        points = sample.frame.points[sample.instances == instance]
        classes = set(sample.raw_labels[sample.instances == instance])
        assert np.ptp(points, axis=0).max() < 45
        if RawClass.CAR in classes:
            assert classes == {RawClass.CAR}
            assert np.ptp(points, axis=0).max() < 7


def test_street_keeps_to_its_limits() -> None:
    for name, place in PLACES.items():
        street = Street(place, 2, 3000.0)
        s = np.arange(0.0, 3000.0)
        heading, points = street.heading(s), street.point(s)
        assert np.abs(heading).max() <= place.bend + 1e-9, name
        assert np.abs(np.diff(heading)).max() <= 1 / 100
        assert np.linalg.norm(np.diff(points, axis=0), axis=1) == pytest.approx(1.0, abs=0.01)


def test_ego_drives_forward_without_jumps() -> None:
    ego = EgoMotion(PLACES["usa"], 7, 600.0)
    s = ego.s(np.arange(-0.2, 600.0, 0.1))
    assert (np.diff(s) >= -1e-9).all()
    assert np.diff(s).max() < 0.1 * PLACES["usa"].speed[1] + 1e-6
    assert (np.diff(s) < 1e-3).any()  # it stops somewhere


@pytest.mark.parametrize("name", RIGS)
def test_rig_geometry(name: str) -> None:
    rig = RIGS[name]
    sizes = {"nuscenes": (900, 1600), "nuscenes_surround": (900, 1600), "a2d2": (1208, 1920)}
    assert {camera.image_size for camera in rig.cameras} == {sizes.get(name, (375, 1242))}
    for camera in rig.cameras:
        camera_T_lidar = rig.calibration(camera).camera_T_lidar
        assert np.allclose(camera_T_lidar[:3, :3] @ camera_T_lidar[:3, :3].T, np.eye(3))
        yaw = np.radians(camera.mount.yaw)
        ahead = camera_T_lidar[:3, :3] @ np.array([np.cos(yaw), np.sin(yaw), 0])
        assert ahead == pytest.approx([0, 0, 1], abs=1e-9)


def test_lidars_have_the_beams_and_angles_of_their_models() -> None:
    beams = {name: [len(unit.elevations) for unit in rig.lidars] for name, rig in RIGS.items()}
    assert beams == {
        "nuscenes": [32],
        "nuscenes_surround": [32],
        "kitti": [64],
        "a2d2": [16] * 5,
        "vkitti": [],
    }
    sample = rendered()
    ring_of_lowest = sample.frame.points[sample.rings == 0]
    flat = np.linalg.norm(ring_of_lowest[:, :2], axis=1)
    assert np.degrees(np.median(np.arctan2(ring_of_lowest[:, 2], flat))) == pytest.approx(-30.67, abs=0.5)
    assert sample.rings.max() <= 31


def test_scaled_rig_sees_the_same_view() -> None:
    full, small = rig_named("kitti"), rig_named("kitti").scaled(image=0.5, columns=100, beams=16)
    point = np.array([12.0, 3.0, -1.0, 1.0])
    views = []
    for rig in (full, small):
        calibration = rig.calibration(rig.cameras[0])
        pixel = calibration.camera_matrix @ (calibration.camera_T_lidar @ point)[:3]
        height, width = calibration.image_size
        views.append((pixel[:2] / pixel[2] + 0.5) / (width, height))
    assert views[0] == pytest.approx(views[1], abs=2e-3)
    assert (small.lidars[0].num_columns, len(small.lidars[0].elevations)) == (100, 16)
    assert small.lidars[0].elevations[0] == full.lidars[0].elevations[0]


def test_front_only_keeps_the_first_camera_and_loses_no_visible_point() -> None:
    whole = Drive(settings(rig=rig_named("nuscenes_surround").scaled(image=0.05, columns=180))).sample(0)
    front = Drive(settings(rig=SMALL.scaled(front_only=True))).sample(0)
    assert len(front.frame.cameras) == 1
    assert front.frame.num_points < 0.35 * whole.frame.num_points
    unit = SMALL.scaled(front_only=True).lidars[0]
    assert np.degrees(np.arctan(800 / 1260)) < unit.sector[1] < 45
    assert len(firing(unit).offset_s) == pytest.approx(180 * 2 * unit.sector[1] / 360, abs=2)


def test_six_cameras_see_around() -> None:
    sample = Drive(settings(rig=rig_named("nuscenes_surround").scaled(image=0.05, columns=120))).sample(0)
    assert [view.name for view in sample.frame.cameras][:2] == ["front", "front_right"]
    assert (project_frame(sample.frame).camera_index >= 0).mean() > 0.6


def test_depth_image_rig_samples_points_from_pixels() -> None:
    sample = Drive(settings(rig=rig_named("vkitti").scaled(image=0.2, points=777)), with_truth=True).sample(0)
    assert sample.frame.num_points == 777
    assert sample.frame.intensity is None
    projection = project_frame(sample.frame)
    assert (projection.camera_index == 0).all()
    u, v = np.round(projection.uv).astype(int).T
    assert np.abs(projection.uv - np.stack([u, v], axis=1)).max() < 0.02
    assert (sample.truths[0].raw_class[v, u] == sample.raw_labels).all()
    assert projection.depth.max() < 100


def test_every_raw_class_is_mapped_or_ignored_once() -> None:
    assert GROUPS.keys() == IGNORED.keys() == LABEL_SPACES.keys()
    for name, groups in GROUPS.items():
        named = [raw for group in groups.values() for raw in group] + list(IGNORED[name])
        assert sorted(named) == sorted(RawClass), name
        assert set(groups) == set(label_space_named(name).class_names)
        table = train_ids(label_space_named(name))
        assert table.shape == (NUM_RAW,)
        assert {RawClass(raw) for raw in np.flatnonzero(table == IGNORE_INDEX)} == set(IGNORED[name])


def test_places_differ_and_random_ones_share_no_models_with_them() -> None:
    assert len({place.model_seed for place in PLACES.values()}) == len(PLACES)
    for place in (*PLACES.values(), *(random_place(seed) for seed in range(20))):
        assert Place.model_validate(place.model_dump()) == place
    assert all(random_place(seed).model_seed >= RANDOM_MODELS for seed in range(20))
    assert random_place(5) == random_place(5) != random_place(6)
    assert max(place.model_seed for place in PLACES.values()) < RANDOM_MODELS
    assert {PLACES[name].traffic_side for name in ("usa", "singapore")} == {"right", "left"}


def test_schedule_passes_from_light_to_light() -> None:
    schedule = schedule_named("noon>dusk>night", 100.0)
    elevations = [schedule.at(t).sun_elevation for t in (-1, 0, 25, 50, 75, 100, 999)]
    assert elevations == pytest.approx([52, 52, 24, -4, -10, -16, -16])
    assert [schedule.at(t).condition for t in (0, 50, 100)] == ["day", "twilight", "night"]
    assert schedule_named("sun:-5", 1.0).at(0).sun_elevation == -5
    assert {random_light(seed).condition for seed in range(40)} == {"day", "twilight", "night"}
    assert schedule.at(100).lamp_level == 1.0
    assert schedule.at(0).lamp_level == 0.0


def test_light_falls_with_the_sun() -> None:
    elevations: Sequence[float] = (60, 20, 5, 0, -3, -6, -9, -12, -18)
    total = [
        float((light.sun_light() + light.sky_light()).mean())
        for light in (LIGHTS["noon"].model_copy(update={"sun_elevation": value}) for value in elevations)
    ]
    assert total == sorted(total, reverse=True)
    assert total[0] > 1000 * total[-1]


def unknown_space() -> LabelSpace:
    return LabelSpace(name="letters", class_names=("a",), colours=((0, 0, 0),))


def lidarless() -> Rig:
    return rig_named("kitti").model_copy(update={"lidars": ()})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: place_named("atlantis"), "place: expected one of usa"),
        (lambda: place_named("random:x"), "place: expected one of usa"),
        (lambda: rig_named("bicycle"), "rig: expected one of nuscenes"),
        (lambda: weather_named("frogs"), "weather: expected one of clear"),
        (lambda: schedule_named("noon>gloom", 1.0), "light: expected one of noon"),
        (lambda: schedule_named("sun:high", 1.0), "light: expected one of noon"),
        (lambda: schedule_named("sun:91", 1.0), "light: expected one of noon"),
        (lambda: LightSchedule(times=(0.0, 1.0)), "expected one light per time"),
        (lambda: LightSchedule(times=(1.0, 1.0), lights=(LIGHTS["noon"],) * 2), "expected increasing values"),
        (lambda: label_space_named("letters"), "label space: expected one of nuscenes_6"),
        (lambda: train_ids(unknown_space()), "not onto 'letters'"),
        (lambda: rig_named("kitti").scaled(image=1.5), "image scale: expected more than 0 and at most 1, got 1.5"),
        (lambda: rig_named("kitti").scaled(beams=65), "beams: expected 1 to 64"),
        (lambda: rig_named("kitti").scaled(columns=2), "columns: expected at least 4"),
        (lambda: rig_named("vkitti").scaled(points=0), "points: expected a positive number"),
        (lambda: Drive(settings(rig=lidarless())), "kind 'lidar' needs at least one LiDAR"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]


def test_frame_outside_the_drive() -> None:
    with pytest.raises(IndexError, match="frame 4 of a drive of 4 frames"):
        Drive(settings()).sample(4)


def test_weathers_have_effects_of_the_right_kind() -> None:
    clear = WEATHERS["clear"]
    assert (clear.wet, clear.clutter_share(), clear.lidar_extinction(), clear.cover) == (0, 0, 0, 0)
    assert WEATHERS["fog"].lidar_extinction() > WEATHERS["rain"].lidar_extinction() > 0
    assert WEATHERS["fog"].haze() > WEATHERS["rain"].haze() > clear.haze()


def mean_colour(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    return image[mask].astype(float).mean(axis=0)


def test_grass_is_green_and_brake_lamps_are_seen_at_night() -> None:
    sample = rendered()
    grass = mean_colour(sample.frame.cameras[0].image, sample.truths[0].raw_class == RawClass.TERRAIN)
    assert grass[1] > grass[0] > grass[2]
    night = rendered(light="night").frame.cameras[0].image
    assert night.max() > 200  # lamps
    assert np.median(night) < 40
