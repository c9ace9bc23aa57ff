# SPDX-License-Identifier: Apache-2.0
import torch

from xmodal_seg.config import HeadSettings
from xmodal_seg.models.heads import Heads, LinearHead

K, P = 5, 9
WIDTHS = {"2d": 11, "3d": 4, "fused": 7}
VISIBLE = torch.tensor([1, 2, 6])


def _feats() -> dict:
    return {"2d": torch.randn(3, 11), "3d": torch.randn(P, 4), "fused": torch.randn(3, 7)}


def _heads(**settings) -> Heads:
    return Heads(settings=HeadSettings(**settings), widths=WIDTHS, num_classes=K)


def test_the_papers_heads():
    heads = _heads()
    feats = _feats()

    main, mimic = heads(feats, visible=VISIBLE, num_points=P)

    assert set(main) == {"2d", "3d", "fused"}
    assert set(mimic) == {("3d", "fused"), ("fused", "2d"), ("fused", "3d")}
    assert mimic["fused", "2d"] is mimic["fused", "3d"]
    assert len(list(heads.parameters())) == 2 * 5  # weight and bias of three main and two mimicry heads
    torch.testing.assert_close(main["3d"], feats["3d"] @ heads.main["3d"].weight.T + heads.main["3d"].bias)
    torch.testing.assert_close(
        main["fused"][VISIBLE], feats["fused"] @ heads.main["fused"].weight.T + heads.main["fused"].bias
    )


def test_rows_of_unseen_points_are_zero():
    main, mimic = _heads()(_feats(), visible=VISIBLE, num_points=P)

    unseen = torch.ones(P, dtype=torch.bool).index_fill(0, VISIBLE, False)
    for logits in (main["2d"], main["fused"], mimic["fused", "2d"]):
        assert logits.shape == (P, K)
        assert not logits[unseen].any()
        assert logits[~unseen].all()
    assert mimic["3d", "fused"].all()


def test_a_mimicry_head_for_each_pair():
    heads = _heads(mimic_head_per="pair")

    _, mimic = heads(_feats(), visible=VISIBLE, num_points=P)

    assert len(heads.mimic) == 3
    assert not torch.equal(mimic["fused", "2d"], mimic["fused", "3d"])


def test_xmuda_fuse_has_one_main_head():
    heads = _heads(main=("fused",), mimic=(("2d", "fused"), ("3d", "fused")), ensemble=("fused",))

    main, mimic = heads(_feats(), visible=VISIBLE, num_points=P)

    assert set(main) == {"fused"}
    assert set(mimic) == {("2d", "fused"), ("3d", "fused")}


def test_every_parameter_belongs_to_one_head():
    for per in ("student", "pair"):
        heads = _heads(mimic_head_per=per)
        parameters = [p for head in ("2d", "3d", "fused") for p in heads.parameters_of(head)]
        assert len({id(p) for p in parameters}) == len(parameters) == len(list(heads.parameters()))


def test_logits_are_float32_under_autocast():
    head = LinearHead(4, K)
    feats = torch.randn(P, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(feats)

    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, feats.float() @ head.weight.T + head.bias)
