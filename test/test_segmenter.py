# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from model_parts import IMAGE_SIZE, NUM_CLASSES, FakePointBackbone, make_batch, small_settings

from xmodal_seg.config import FusionSettings, HeadSettings, ImageBackboneSettings, ModelSettings, PreprocessSettings
from xmodal_seg.models.image_backbone import ImageBackbone
from xmodal_seg.models.lifting import lift
from xmodal_seg.models.segmenter import SegmentationModel

XMUDA = HeadSettings(main=("2d", "3d"), mimic=(("2d", "3d"), ("3d", "2d")), ensemble=("2d", "3d"))
XMUDA_FUSE = HeadSettings(main=("fused",), mimic=(("2d", "fused"), ("3d", "fused")), ensemble=("fused",))
LIDAR_ONLY = HeadSettings(main=("3d",), mimic=(), ensemble=("3d",))
NARROW = ImageBackboneSettings(kind="unet", name="narrow", weights="none", width=5)


def _model(**changes) -> SegmentationModel:
    return SegmentationModel(settings=small_settings(**changes), point_backbone=FakePointBackbone())


def _tensors(predictions) -> list[torch.Tensor]:
    return [*predictions.main.values(), *predictions.mimic.values()]


def test_default_predictions():
    model = _model().eval()
    batch = make_batch()

    predictions = model(batch)

    assert set(predictions.main) == {"2d", "3d", "fused"}
    assert set(predictions.mimic) == {("3d", "fused"), ("fused", "2d"), ("fused", "3d")}
    assert predictions.mimic["fused", "2d"] is predictions.mimic["fused", "3d"]
    assert predictions.ensemble_heads == ("fused", "3d")
    assert torch.equal(predictions.visible, batch.visible)
    for logits in _tensors(predictions):
        assert logits.shape == (batch.num_points, NUM_CLASSES)
        assert logits.dtype == torch.float32
    assert not predictions.main["2d"][~batch.visible].any()
    assert not predictions.main["fused"][~batch.visible].any()
    assert predictions.main["3d"].all()
    torch.testing.assert_close(predictions.ensemble().sum(1), torch.ones(batch.num_points))


def test_logits_equal_the_parts_put_together_by_hand():
    model = _model().eval()
    batch = make_batch()
    seen = batch.visible

    predictions = model(batch)

    feats_2d = lift(model.image_backbone(batch.images), batch.uv[seen], batch.image_index[seen], IMAGE_SIZE)
    voxel_feats = model.point_backbone(batch.voxel_coords, batch.voxel_feats, spatial_shape=(7, 11, 13), num_frames=2)
    feats_3d = voxel_feats[batch.point_to_voxel]
    fused = model.fusion(feats_2d, feats_3d[seen])
    torch.testing.assert_close(predictions.main["2d"][seen], model.heads.main["2d"](feats_2d))
    torch.testing.assert_close(predictions.main["3d"], model.heads.main["3d"](feats_3d))
    torch.testing.assert_close(predictions.main["fused"][seen], model.heads.main["fused"](fused))
    torch.testing.assert_close(predictions.mimic["fused", "3d"][seen], model.heads.mimic["fused"](fused))


@pytest.mark.parametrize("feature_norm", ["none", "fixed", "batch", "layer"])
def test_known_2d_features_replace_the_image_backbone(feature_norm):
    backbone = ImageBackboneSettings(**{**small_settings().image_backbone.model_dump(), "feature_norm": feature_norm})
    model = _model(image_backbone=backbone).eval()
    batch = make_batch()
    feats_2d = model.image_feats(batch)
    feature_map = model.image_backbone(batch.images)

    for given in (feats_2d, model.image_feats(batch, feature_map=feature_map)):
        for expected, got in zip(_tensors(model(batch)), _tensors(model(batch, feats_2d=given)), strict=True):
            assert torch.equal(expected, got)
    with pytest.raises(ValueError, match=r"feats_2d: expected \(27, 24\), a row per point that a camera sees, got"):
        model(batch, feats_2d=feats_2d[1:])


def test_a_fixed_norm_has_nothing_that_guidance_could_move_and_is_one_function():
    backbone = ImageBackboneSettings(**{**small_settings().image_backbone.model_dump(), "feature_norm": "fixed"})
    model = _model(image_backbone=backbone).train()
    assert {*model.parameter_groups()["image"]} == {*model.heads.main["2d"].parameters()}
    feats = model.image_feats(make_batch())
    torch.testing.assert_close(model.feature_norm(feats), feats)  # nobody has measured yet

    variance, mean = torch.var_mean(feats, dim=0, correction=0)
    model.feature_norm.set_statistics(mean, variance)
    normed = model.feature_norm(feats)

    torch.testing.assert_close(normed.mean(dim=0), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std(dim=0, correction=0), torch.ones(24), atol=1e-2, rtol=0)
    torch.testing.assert_close(model.feature_norm(feats[:3]), normed[:3])  # whatever else is in the batch
    assert torch.equal(model.eval().feature_norm(feats), normed)


def test_a_trained_image_network_has_no_fixed_norm():
    with pytest.raises(ValueError, match="'fixed' goes with a frozen network"):
        ImageBackboneSettings(kind="unet", feature_norm="fixed")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_images": 0},
        {"num_visible": 0},
        {"num_points": 0},
        {"num_points": 0, "num_images": 0},
    ],
)
def test_batches_without_images_visible_points_or_points(kwargs, training):
    model = _model().train(training)
    batch = make_batch(**kwargs)

    predictions = model(batch)

    assert predictions.main["3d"].shape == (batch.num_points, NUM_CLASSES)
    assert not predictions.main["2d"].any()
    assert not predictions.main["fused"].any()
    torch.testing.assert_close(predictions.ensemble(), predictions.main["3d"].softmax(1))


def test_one_visible_point():
    batch = make_batch(num_visible=1)
    with pytest.raises(ValueError, match="at least 2 points that a camera sees"):
        _model().train()(batch)

    assert _model().eval()(batch).main["fused"][batch.visible].any()
    assert _model(fusion=FusionSettings(kind="vanilla")).train()(batch).main["fused"][batch.visible].any()


@pytest.mark.parametrize("mode", ["paper", "xmuda", "fuse", "lidar"])
def test_gradients_reach_exactly_the_declared_parameters(mode):
    model = {
        "paper": lambda: _model(),
        "xmuda": lambda: _model(image_backbone=NARROW, heads=XMUDA, fusion=FusionSettings(kind="none")),
        "fuse": lambda: _model(heads=XMUDA_FUSE, fusion=FusionSettings(kind="xmuda")),
        "lidar": lambda: _model(heads=LIDAR_ONLY),
    }[mode]()
    groups = model.parameter_groups()
    grouped = [p for parameters in groups.values() for p in parameters]

    sum(logits.square().mean() for logits in _tensors(model.train()(make_batch()))).backward()

    reached = {id(p) for p in model.parameters() if p.grad is not None and bool(p.grad.any())}
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}
    # Batch norm takes away all but rounding of the gradient of a bias before it.
    biases = {id(p) for name, p in model.named_parameters() if name.endswith("bias")}
    assert {id(p) for p in grouped} - reached <= biases
    assert all(p.grad is not None for p in grouped)
    assert reached <= {id(p) for p in grouped}
    assert model.num_trainable() == sum(p.numel() for p in grouped)


@pytest.mark.parametrize(
    ("head", "groups"),
    [("2d", {"image"}), ("3d", {"point"}), ("fused", {"fusion", "point"})],
)
def test_each_head_trains_its_own_groups(head, groups):
    model = _model().train()

    model(make_batch()).main[head].square().sum().backward()

    touched = {
        name for name, parameters in model.parameter_groups().items() if any(p.grad is not None for p in parameters)
    }
    assert touched == groups


def test_detached_fusion_leaves_the_3d_net_alone():
    model = _model(fusion=FusionSettings(hidden=10, detach_3d=True)).train()

    model(make_batch()).main["fused"].square().sum().backward()

    assert all(p.grad is None for p in model.parameter_groups()["point"])


def test_frozen_backbone_is_bit_identical_after_train_and_a_step():
    model = _model().train()
    batch = make_batch()
    before = {name: tensor.clone() for name, tensor in model.image_backbone.state_dict().items()}
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)

    sum(logits.square().mean() for logits in _tensors(model(batch))).backward()
    optimiser.step()

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.image_backbone.state_dict().items())
    assert model.training
    assert model.fusion.training
    assert not model.image_backbone.training


def test_logits_are_float32_under_autocast():
    model = _model().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = model(make_batch())

    assert all(logits.dtype == torch.float32 for logits in _tensors(predictions))


def test_models_build_only_what_their_heads_need():
    lidar = _model(heads=LIDAR_ONLY)
    assert lidar.image_backbone is None
    assert lidar.fusion is None
    assert lidar.image_size == PreprocessSettings().image_size
    camera = HeadSettings(main=("2d",), mimic=(), ensemble=("2d",))
    assert _model(heads=camera).point_backbone is None
    assert set(_model(heads=XMUDA, fusion=FusionSettings(kind="none"))(make_batch()).main) == {"2d", "3d"}
    assert set(_model(heads=XMUDA_FUSE)(make_batch()).mimic) == {("2d", "fused"), ("3d", "fused")}


def test_image_size_is_rounded_up_to_the_patch():
    model = _model(preprocess=PreprocessSettings(image_size=(225, 400)))
    assert model.image_size == (240, 400)


def test_the_papers_model_has_its_size():
    class WideBackbone(ImageBackbone):
        out_channels = 1024
        frozen = True

    model = SegmentationModel(settings=ModelSettings(num_classes=6), image_backbone=WideBackbone())

    sizes = {name: sum(p.numel() for p in parameters) for name, parameters in model.parameter_groups().items()}
    head_2d, heads_3d, heads_fused = 1024 * 6 + 6, 2 * (16 * 6 + 6), 2 * (1024 * 6 + 6)
    fusion = (16 * 1024 + 1024) + (2048 * 1024 + 3 * 1024) + (1024 * 1024 + 3 * 1024)
    assert sizes == {"image": head_2d, "tuning": 0, "fusion": fusion + heads_fused, "point": 2_688_656 + heads_3d}
    assert model.num_trainable() == 5_876_590


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_cached_in_16_bits_are_lifted_in_float32(dtype):
    model = _model().eval()
    batch = make_batch()
    cached = model.image_backbone(batch.images).to(dtype)

    feats_2d = model.image_feats(batch, feature_map=cached)

    assert feats_2d.dtype == torch.float32
    assert torch.equal(feats_2d, model.image_feats(batch, feature_map=cached.float()))
    assert model(batch, feats_2d=feats_2d.to(dtype)).main["fused"].dtype == torch.float32


def test_models_may_share_a_frozen_backbone():
    first = _model()
    second = SegmentationModel(
        settings=small_settings(), image_backbone=first.image_backbone, point_backbone=FakePointBackbone()
    )
    assert second.image_backbone is first.image_backbone


def test_the_real_point_backbone():
    model = SegmentationModel(settings=small_settings()).train()

    predictions = model(make_batch())
    sum(logits.square().mean() for logits in _tensors(predictions)).backward()

    assert predictions.main["3d"].shape == (41, NUM_CLASSES)
    assert all(p.grad is not None for p in model.parameter_groups()["point"])
