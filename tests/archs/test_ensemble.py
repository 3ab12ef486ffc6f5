"""Ensembles of teachers, their mean, and the fused teacher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtkd.archs.dctswin import DCTSwin
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.contracts import MtkdError
from mtkd.methods.base import Frozen, tapped


class Nearest(nn.Module):
    """Nearest-neighbour magnification times a gain: an image whose origin can be read off."""

    feature_names = ("identity",)

    def __init__(self, gain: float, scale: int = 2) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.identity = nn.Identity()
        self.scale = scale

    def forward(self, lq: Tensor) -> Tensor:
        return self.identity(lq.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)) * self.gain


class InPlace(Nearest):
    def forward(self, lq: Tensor) -> Tensor:
        return super().forward(lq.mul_(0.5))


class Cropping(Nearest):
    def forward(self, lq: Tensor) -> Tensor:
        return super().forward(lq)[..., :-1, :]


@pytest.mark.parametrize("stored", [None, 3, "ab", {"a": 1}, [["a"]], [3, 4]], ids=str)
def test_members_that_are_no_names_are_refused(stored: object) -> None:
    ensemble = Ensemble({"a": Nearest(1.0), "b": Nearest(1.0)})
    with pytest.raises(MtkdError, match="not a list"):
        ensemble.check_order(stored)  # pyright: ignore[reportArgumentType]


def test_images_are_concatenated_in_the_order_of_the_members() -> None:
    lq = torch.rand(2, 3, 5, 7)
    members = {"zeta": Nearest(1.0), "alpha": Nearest(2.0), "mid": Nearest(3.0)}
    ensemble = Ensemble(members)
    images = ensemble(lq)
    assert ensemble.names == ("zeta", "alpha", "mid")
    assert ensemble.scale == 2
    assert images.shape == (2, 9, 10, 14)
    for position, net in enumerate(members.values()):
        assert torch.equal(images[:, 3 * position : 3 * position + 3], net(lq))


def test_output_has_the_dtype_of_lq_whatever_a_member_computes_in():
    class Half(Nearest):
        def forward(self, lq: Tensor) -> Tensor:
            return super().forward(lq).half()

    lq = torch.rand(1, 3, 4, 4)
    assert Ensemble({"a": Half(1.0), "b": Nearest(1.0)})(lq).dtype == torch.float32
    assert Ensemble({"a": Half(1.0), "b": Half(1.0)})(lq).dtype == torch.float32
    assert Ensemble({"a": Nearest(1.0)}).double()(lq.double()).dtype == torch.float64


def test_a_member_that_works_in_place_changes_neither_lq_nor_the_next_member() -> None:
    lq = torch.rand(1, 3, 4, 4)
    before = lq.clone()
    images = Ensemble({"bad": InPlace(1.0), "good": Nearest(1.0)})(lq)
    assert torch.equal(lq, before)
    assert torch.equal(images[:, 3:], Nearest(1.0)(before))


def test_members_of_different_scales_are_refused_by_name() -> None:
    with pytest.raises(MtkdError, match="edsr x2, rcan x4"):
        Ensemble({"edsr": Nearest(1.0, 2), "rcan": Nearest(1.0, 4)})


def test_a_member_without_scale_is_refused_by_name() -> None:
    with pytest.raises(MtkdError, match=r"'plain' \(Conv2d\) has no attribute `scale`"):
        Ensemble({"edsr": Nearest(1.0), "plain": nn.Conv2d(3, 3, 1)})


@pytest.mark.parametrize("name", ["", "edsr.l", "keys", "type", "training", 3])
def test_names_that_torch_cannot_hold_are_refused(name) -> None:
    with pytest.raises(MtkdError, match="cannot be called"):
        Ensemble({name: Nearest(1.0)})


def test_an_empty_ensemble_is_refused() -> None:
    with pytest.raises(MtkdError, match="at least one"):
        Ensemble({})


def test_output_of_a_wrong_size_names_the_member() -> None:
    ensemble = Ensemble({"edsr": Nearest(1.0), "short": Cropping(1.0)})
    with pytest.raises(MtkdError, match=r"'short' made an image of shape \(1, 3, 9, 10\).*must be \(1, 3, 10, 10\)"):
        ensemble(torch.rand(1, 3, 5, 5))


def test_the_stored_order_passes_and_any_other_names_both() -> None:
    ensemble = Ensemble({"edsr": Nearest(1.0), "swinir": Nearest(1.0), "rcan": Nearest(1.0)})
    ensemble.check_order(["edsr", "swinir", "rcan"])
    ensemble.check_order(("edsr", "swinir", "rcan"))
    with pytest.raises(MtkdError, match=r"another order.*\[swinir, edsr, rcan\].*\[edsr, swinir, rcan\]"):
        ensemble.check_order(["swinir", "edsr", "rcan"])
    with pytest.raises(MtkdError, match=r"other teachers.*\[edsr, rcan\].*\[edsr, swinir, rcan\]"):
        ensemble.check_order(["edsr", "rcan"])


def test_order_survives_the_state_dict_of_another_order() -> None:
    # Keys carry names, so weights land on the right member even when two runs declare them differently.
    first = Ensemble({"a": Nearest(1.0), "b": Nearest(2.0)})
    second = Ensemble({"b": Nearest(0.0), "a": Nearest(0.0)})
    second.load_state_dict(first.state_dict())
    lq = torch.rand(1, 3, 3, 3)
    assert torch.equal(second(lq), torch.cat(first(lq).chunk(2, 1)[::-1], 1))


def test_taps_of_members_and_fusion_can_be_read() -> None:
    fused = FusedTeacher(Ensemble({"a": Nearest(1.0), "b": Nearest(2.0)}), _tiny_fusion(2))
    lq = torch.rand(1, 3, 4, 4)
    _, feats = tapped(fused, fused.feature_names, lq)
    assert {"ensemble.members.a.identity", "ensemble.members.b.identity", "fusion.conv_first"} <= set(feats)
    assert all(feat.dim() == 4 for feat in feats.values())


def test_mean_fusion_is_the_mean_over_teachers_per_colour() -> None:
    images = torch.rand(2, 9, 4, 5)
    expected = torch.stack([images[:, 0:3], images[:, 3:6], images[:, 6:9]]).mean(0)
    torch.testing.assert_close(MeanFusion(3)(images), expected)
    assert torch.equal(MeanFusion(1)(images[:, :3]), images[:, :3])


def test_mean_fusion_refuses_what_it_cannot_split() -> None:
    with pytest.raises(MtkdError, match="num_teachers=3 got 8 channels"):
        MeanFusion(3)(torch.rand(1, 8, 4, 4))
    with pytest.raises(MtkdError, match="at least 1"):
        MeanFusion(0)


def test_fused_teacher_maps_lq_to_one_image() -> None:
    ensemble = Ensemble({"a": Nearest(0.5), "b": Nearest(1.5)})
    fused = FusedTeacher(ensemble, MeanFusion(2))
    lq = torch.rand(1, 3, 4, 6)
    assert fused.names == ("a", "b")
    assert fused.scale == 2
    torch.testing.assert_close(fused(lq), Nearest(1.0)(lq))


def test_an_untrained_dctswin_fuses_to_the_mean() -> None:
    ensemble = Ensemble({"a": Nearest(0.5), "b": Nearest(1.0)})
    lq = torch.rand(1, 3, 5, 6)
    learnt = FusedTeacher(ensemble, _tiny_fusion(2)).eval()
    assert torch.equal(learnt(lq), FusedTeacher(ensemble, MeanFusion(2))(lq))


def test_a_frozen_fused_teacher_takes_no_gradient_and_follows_dtype() -> None:
    fused = FusedTeacher(Ensemble({"a": Nearest(0.5), "b": Nearest(1.0)}), _tiny_fusion(2))
    frozen = Frozen(fused).double()
    image = frozen(torch.rand(1, 3, 4, 4, dtype=torch.float64))
    assert image.dtype == torch.float64
    assert not image.requires_grad


def test_fusion_for_another_number_of_teachers_or_scale_is_refused() -> None:
    ensemble = Ensemble({"a": Nearest(1.0), "b": Nearest(1.0)})
    with pytest.raises(MtkdError, match="num_teachers=3, and the ensemble has 2: a, b"):
        FusedTeacher(ensemble, _tiny_fusion(3))
    with pytest.raises(MtkdError, match="scale 4.*a, b have scale 2"):
        FusedTeacher(ensemble, _tiny_fusion(2, upscale=4))


def _tiny_fusion(num_teachers: int, upscale: int = 2) -> DCTSwin:
    return DCTSwin(upscale=upscale, num_teachers=num_teachers, embed_dim=12, depths=(2,), num_heads=(2,), num_feat=8)
