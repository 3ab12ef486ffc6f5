"""Official names against ours: complete for the published sizes, inverse to each other, and computing the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.zoo import ENTRIES, keymaps, load_into
from tests.zoo.official import edsr_shapes, filled, rcan_shapes, run_edsr, run_rcan

EDSR_SMALL = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 3, "res_scale": 0.1}
RCAN_SMALL = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_group": 2, "num_block": 3, "squeeze_factor": 4}
SWINIR_SMALL = {
    "embed_dim": 12, "depths": [2, 3], "num_heads": [2, 3], "window_size": 4, "mlp_ratio": 2, "img_size": 8,
}  # fmt: skip
LARGE = {
    "edsr_m": lambda scale: edsr_shapes(64, 16, scale),
    "edsr_l": lambda scale: edsr_shapes(256, 32, scale),
    "rcan": lambda scale: rcan_shapes(64, 10, 20, 16, scale),
}


def on_meta(name: str) -> nn.Module:
    item = ENTRIES[name]
    with torch.device("meta"):
        return catalog.get("arch", item.arch)(**item.args)


def mean_shifts() -> dict[str, torch.Tensor]:
    small = filled(edsr_shapes(1, 0, 2))
    return {name: value for name, value in small.items() if name.partition(".")[0] in keymaps.MEAN_SHIFTS}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("family", LARGE)
def test_every_official_name_of_the_published_networks_has_its_place(family: str, scale: int) -> None:
    shapes = LARGE[family](scale)
    official = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    official |= mean_shifts()
    ours = keymaps.to_basicsr(official)
    expected = {name: value.shape for name, value in on_meta(f"{family}_x{scale}").state_dict().items()}
    assert {name: value.shape for name, value in ours.items()} == expected
    back = keymaps.to_official(ours)
    assert {name: tuple(value.shape) for name, value in back.items()} == shapes


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_loaded_official_edsr_computes_what_the_official_layers_do(scale: int) -> None:
    state = filled(edsr_shapes(8, 3, scale))
    net = catalog.get("arch", "EDSR")(**EDSR_SMALL, upscale=scale)
    load_into(net, state, source="official")
    lq = torch.rand(2, 3, 7, 9)
    expected = run_edsr(state, lq, blocks=3, scale=scale, res_scale=0.1)
    torch.testing.assert_close(net(lq), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_loaded_official_rcan_computes_what_the_official_layers_do(scale: int) -> None:
    state = filled(rcan_shapes(8, 2, 3, 4, scale))
    net = catalog.get("arch", "RCAN")(**RCAN_SMALL, upscale=scale)
    load_into(net, state, source="official")
    lq = torch.rand(2, 3, 7, 9)
    expected = run_rcan(state, lq, groups=2, blocks=3, scale=scale)
    torch.testing.assert_close(net(lq), expected, atol=1e-4, rtol=1e-4)


def test_a_loaded_official_rcan_computes_what_spandrels_does() -> None:
    spandrel = pytest.importorskip("spandrel")
    state = filled(rcan_shapes(16, 2, 3, 16, 4))
    theirs = spandrel.ModelLoader("cpu").load_from_state_dict(dict(state)).model.eval()
    ours = catalog.get("arch", "RCAN")(**RCAN_SMALL | {"num_feat": 16, "squeeze_factor": 16}, upscale=4)
    load_into(ours, state, source="official")
    lq = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(lq), theirs(lq.clone()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shapes", [edsr_shapes(8, 3, 4), rcan_shapes(8, 2, 3, 4, 3)], ids=["EDSR", "RCAN"])
def test_there_and_back_gives_the_same_weights(shapes: dict) -> None:
    state = filled(shapes)
    back = keymaps.to_official(keymaps.to_basicsr(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_weights_in_our_naming_load_into_a_network_in_official_naming() -> None:
    class Official(nn.Module):
        """Only its names matter."""

    net = Official()
    state = filled(edsr_shapes(4, 2, 2))
    for name, value in state.items():
        *path, leaf = name.split(".")
        module: nn.Module = net
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_parameter(leaf, nn.Parameter(torch.zeros_like(value)))
    load_into(net, keymaps.to_basicsr(state), source="ours")
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("arch", "args"),
    [
        ("EDSR", EDSR_SMALL | {"upscale": 3}),
        ("RCAN", RCAN_SMALL | {"upscale": 2}),
        ("SwinIR", SWINIR_SMALL | {"upscale": 4, "upsampler": "pixelshuffle"}),
        ("SwinIR", SWINIR_SMALL | {"upscale": 3, "upsampler": "pixelshuffledirect", "resi_connection": "3conv"}),
    ],
)
def test_arguments_are_read_off_the_shapes(arch: str, args: dict) -> None:
    net = catalog.get("arch", arch)(**args)
    found = keymaps.infer(net.state_dict())
    assert found
    visible = {name: value for name, value in args.items() if name not in ("res_scale", "img_size")}
    assert {name: found[name] for name in visible} == visible
    rebuilt = catalog.get("arch", arch)(**found)
    load_into(rebuilt, net.state_dict(), source="itself")


@pytest.mark.parametrize("img_size", [4, 8, 16])
def test_swinir_buffers_are_those_that_basicsr_saves(img_size: int) -> None:
    pytest.importorskip("mtkd.basicsr")
    from basicsr.archs.swinir_arch import SwinIR

    theirs = SwinIR(**SWINIR_SMALL | {"img_size": img_size}, upscale=2, upsampler="pixelshuffle").state_dict()
    bare = keymaps.to_basicsr(theirs)
    assert not [name for name in bare if name.rpartition(".")[2] in keymaps.BUFFERS]
    complete = keymaps.with_swinir_buffers(bare, img_size=img_size)
    assert complete.keys() == theirs.keys()
    assert all(torch.equal(complete[name], theirs[name]) for name in theirs)
    assert keymaps.img_size_of(theirs) in (img_size, None)
    assert (keymaps.img_size_of(theirs) is None) == (img_size == 4)


def test_a_foreign_mean_is_an_error_not_a_different_network() -> None:
    state = filled(edsr_shapes(8, 3, 2))
    state["sub_mean.bias"] = -255 * torch.tensor([0.5, 0.5, 0.5])
    with pytest.raises(MtkdError, match="not the mean of DIV2K"):
        keymaps.to_basicsr(state)


def test_another_range_than_the_networks_is_an_error() -> None:
    state = filled(edsr_shapes(8, 3, 2))
    net = catalog.get("arch", "EDSR")(**EDSR_SMALL, upscale=2, img_range=1.0)
    with pytest.raises(MtkdError, match="up to 255, your options have img_range 1"):
        load_into(net, state, source="edsr.pt")


def test_another_mean_than_the_networks_is_an_error() -> None:
    state = filled(edsr_shapes(8, 3, 2))
    net = catalog.get("arch", "EDSR")(**EDSR_SMALL, upscale=2, rgb_mean=[0.0, 0.0, 0.0])
    with pytest.raises(MtkdError, match="rgb_mean"):
        load_into(net, state, source="edsr.pt")
