"""Community checkpoints as teachers and test networks: what spandrel reads, held to the contract of networks."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtkd import build, catalog, zoo
from mtkd.archs.rcan import RCAN
from mtkd.archs.spandrel import Spandrel
from mtkd.archs.swinir import SwinIR
from mtkd.config import make_options
from mtkd.contracts import MtkdError
from mtkd.methods.base import tapped

pytestmark = pytest.mark.slow

SWINIR = {
    "upscale": 2,
    "img_size": 16,
    "window_size": 8,
    "depths": [2],
    "embed_dim": 12,
    "num_heads": [2],
    "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect",
}


def span() -> nn.Module:
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).eval()


def craft() -> nn.Module:
    """A network that is said to need sides of 16 and multiples of 16, and pads by flipping when they are none."""
    from spandrel.architectures.CRAFT import CRAFT

    return CRAFT(
        in_chans=3, window_size=16, embed_dim=16, depths=[2], num_heads=[2], split_size_0=4, split_size_1=16, upscale=2
    ).eval()


def loaded(net: nn.Module, folder: Path, key: str | None = "params") -> Spandrel:
    path = folder / "community.pth"
    torch.save({key: net.state_dict()} if key else net.state_dict(), path)
    found = catalog.get("arch", "spandrel")(upscale=2)
    build.load_weights(found, str(path))
    return found


@pytest.mark.parametrize("key", [None, "params", "params_ema", "params-ema", "state_dict", "model_state_dict", "net"])
@torch.no_grad()
def test_the_weights_alone_say_which_network_it_is(tmp_path: Path, key: str | None) -> None:
    theirs, lq = span(), torch.rand(2, 3, 9, 7)
    net = loaded(theirs, tmp_path, key)
    assert (net.architecture, net.scale, net.training) == ("SPAN", 2, False)
    torch.testing.assert_close(net(lq), theirs(lq), rtol=0, atol=0)


@torch.no_grad()
def test_basicsrs_swinir_computes_what_ours_does(tmp_path: Path) -> None:
    ours, lq = SwinIR(**SWINIR).eval(), torch.rand(1, 3, 16, 24)
    torch.testing.assert_close(loaded(ours, tmp_path)(lq), ours(lq), rtol=0, atol=1e-5)


@torch.no_grad()
def test_rcan_in_basicsrs_naming_computes_what_ours_does_and_leaves_its_input_alone(tmp_path: Path) -> None:
    ours = RCAN(num_feat=8, num_group=2, num_block=2, squeeze_factor=2, upscale=2).eval()
    lq = torch.rand(1, 3, 10, 12)
    before = lq.clone()
    torch.testing.assert_close(loaded(ours, tmp_path)(lq), ours(lq), rtol=0, atol=1e-4)
    assert torch.equal(lq, before)


@pytest.mark.parametrize("size", [(1, 1), (5, 20), (16, 32), (33, 17)], ids=str)
@torch.no_grad()
def test_any_size_gives_the_scaled_size(tmp_path: Path, size: tuple[int, int]) -> None:
    net = loaded(craft(), tmp_path)
    sr = net(torch.rand(1, 3, *size))
    assert sr.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert sr.isfinite().all()


@torch.no_grad()
def test_a_network_that_pads_by_itself_is_left_to_do_so(tmp_path: Path) -> None:
    theirs, lq = craft(), torch.rand(1, 3, 17, 37)
    assert torch.equal(loaded(theirs, tmp_path)(lq), theirs(lq))


class Strict(nn.Module):
    """x2 by repetition; refuses sides that are no multiples of 4, or below 8."""

    def forward(self, x: Tensor) -> Tensor:
        if any(side % 4 or side < 8 for side in x.shape[-2:]) or x.shape[-1] != x.shape[-2]:
            raise RuntimeError(f"bad size {tuple(x.shape)}")
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_a_network_that_does_not_is_given_the_size_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    import spandrel

    def described(*_: Any) -> spandrel.ImageModelDescriptor:
        return spandrel.ImageModelDescriptor(
            Strict(),
            {},
            architecture=spandrel.MAIN_REGISTRY.architectures()[0].architecture,
            purpose="SR",
            tags=[],
            supports_half=False,
            supports_bfloat16=False,
            scale=2,
            input_channels=3,
            output_channels=3,
            size_requirements=spandrel.SizeRequirements(minimum=8, multiple_of=4, square=True),
        )

    monkeypatch.setattr(spandrel.ModelLoader, "load_from_state_dict", described)
    net = Spandrel()
    net.adopt({"w": torch.zeros(1)}, source="a.pth")
    for size in ((8, 8), (3, 5), (9, 14)):
        lq = torch.rand(1, 3, *size)
        assert torch.equal(net(lq), lq.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_output_is_not_clamped_and_gradients_pass(tmp_path: Path) -> None:
    lq = (4 * torch.randn(1, 3, 8, 8)).requires_grad_()
    sr = loaded(span(), tmp_path)(lq)
    assert sr.min() < 0 or sr.max() > 1
    sr.square().mean().backward()
    assert lq.grad is not None and lq.grad.any()


def test_features_are_maps_that_can_be_tapped(tmp_path: Path) -> None:
    net, lq = loaded(SwinIR(**SWINIR).eval(), tmp_path), torch.rand(2, 3, 16, 8)
    assert "model.conv_first" in net.feature_names
    _, features = tapped(net, net.feature_names, lq)
    assert all(feature.dim() == 4 and feature.shape[0] == 2 for feature in features.values())


@torch.no_grad()
def test_a_copy_and_its_saved_weights_compute_the_same(tmp_path: Path) -> None:
    net, lq = loaded(span(), tmp_path), torch.rand(1, 3, 8, 8)
    again = Spandrel()
    zoo.load_into(again, net.state_dict(), source="saved")
    assert torch.equal(copy.deepcopy(net)(lq), net(lq))
    assert torch.equal(again(lq), net(lq))


def test_a_converted_file_says_what_it_is(tmp_path: Path) -> None:
    torch.save({"params": span().state_dict()}, tmp_path / "span.pth")
    done = zoo.convert(tmp_path / "span.pth", tmp_path / "span.safetensors", to="safetensors", arch="spandrel")
    net = zoo.build(done.path)
    assert net.scale == 2 and zoo.read_checkpoint(done.path).facts["scale"] == 2


def test_without_weights_it_computes_nothing() -> None:
    net = Spandrel(upscale=2)
    assert net.feature_names == () and not list(net.parameters())
    with pytest.raises(MtkdError, match="has no weights yet"):
        net(torch.rand(1, 3, 8, 8))


def refusal(state: dict[str, Tensor], upscale: int | None = 2) -> str:
    with pytest.raises(MtkdError) as raised:
        zoo.load_into(Spandrel(upscale=upscale), state, source="a.pth")
    assert "a.pth" in str(raised.value)
    return str(raised.value)


def test_what_does_not_fit_is_refused_in_one_paragraph() -> None:
    assert "SPAN for x2, but the option file has scale 4" in refusal(span().state_dict(), upscale=4)
    assert "has no network with the weights" in refusal({"some.weight": torch.zeros(3)})
    broken = span().state_dict()
    broken["conv_1.sk.weight"] = torch.full_like(broken["conv_1.sk.weight"], torch.nan)
    assert "not finite" in refusal(broken)
    incomplete = span().state_dict()
    del incomplete["block_1.c1_r.sk.bias"]
    assert "block_1.c1_r.sk.bias" in refusal(incomplete)
    for strange in (torch.zeros(()), torch.zeros(0), torch.zeros(1, 1, 1, 1, 1)):
        refusal({name: strange for name in span().state_dict()})
    edsr = catalog.get("arch", "EDSR")(num_feat=8, num_block=2, upscale=2).state_dict()
    assert "write `type: EDSR`" in refusal(edsr)


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    state = span().state_dict()
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(MtkdError, match=r"pip install 'mtkd\[spandrel\]'"):
        zoo.load_into(Spandrel(), state, source="a.pth")


def options(**changes: Any) -> dict[str, Any]:
    image_set = {"name": "set", "type": "PairedImageDataset", "dataroot_gt": "nowhere"}
    return {"name": "run", "scale": 2, "datasets": {"test_1": image_set}, **changes}


def test_an_option_file_names_the_checkpoint_as_for_any_network(tmp_path: Path) -> None:
    torch.save({"params": span().state_dict()}, tmp_path / "span.pth")
    teacher = {"network": {"type": "spandrel"}, "pretrain": str(tmp_path / "span.pth")}
    given = make_options(
        options(
            model_type="OutputKD",
            network_g={"type": "spandrel"},
            path={"pretrain_network_g": str(tmp_path / "span.pth")},
            teachers={"span": teacher},
        )
    )
    (net,) = build.build_teachers(given).values()
    assert net.architecture == "SPAN"


def test_it_is_no_student() -> None:
    image_set = {"name": "set", "type": "PairedImageDataset", "dataroot_gt": "nowhere"}
    train_set = {**image_set, "gt_size": 16, "batch_size_per_gpu": 1}
    train = {
        "optim_g": {"type": "Adam", "lr": 1e-3},
        "scheduler": {"type": "MultiStepLR", "milestones": [1]},
        "total_iter": 2,
        "pixel_opt": {"type": "L1Loss"},
    }
    with pytest.raises(MtkdError, match="the network of a spandrel is known only from its weights"):
        make_options(options(datasets={"train": train_set}, network_g={"type": "spandrel"}, train=train))
