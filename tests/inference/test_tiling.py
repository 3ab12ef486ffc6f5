"""Tiles, their size, and the self-ensemble."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtkd.archs.edsr import EDSR
from mtkd.archs.swinir import SwinIR
from mtkd.contracts import MtkdError
from mtkd.inference import tiling
from mtkd.inference.enlarging import place
from mtkd.inference.tiling import FittingTiles, self_ensemble, tile_size, tiled

nearest = partial(nn.functional.interpolate, scale_factor=2)


def small_net() -> EDSR:
    torch.manual_seed(0)
    return EDSR(num_feat=4, num_block=1, upscale=2).eval()


@pytest.mark.parametrize("size", [(20, 33), (7, 5), (16, 16), (50, 19)])
def test_tiles_equal_the_whole_image_when_the_context_suffices(size: tuple[int, int]) -> None:
    # Six 3x3 convolutions at lq size or finer see at most six lq pixels around.
    net, lq = small_net().double(), torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(tiled(net, lq, scale=2, tile_size=6, tile_pad=6), net(lq))


@pytest.mark.parametrize("pad", [0, 3, 32])
@pytest.mark.parametrize("tile", [3, 64, 100])
def test_tiles_have_one_shape_and_every_pixel_its_place_and_context(tile: int, pad: int) -> None:
    for height, width in ((60, 133), (101, 64), (tile + 2 * pad + 1, 20)):
        lq = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
        seen: list[Tensor] = []

        def keep(piece: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(piece)
            return nearest(piece)

        assert torch.equal(tiled(keep, lq, scale=2, tile_size=tile, tile_pad=pad), nearest(lq))
        assert len({piece.shape for piece in seen}) == 1
        assert max(seen[0].shape[-2:]) <= tile + 2 * pad

        def blind(piece: Tensor, height: int = height, width: int = width) -> Tensor:
            # What lies within `pad` of a border that is not the image's.
            known = torch.zeros_like(piece)
            top, left = divmod(int(piece[0, 0, 0, 0]), width)
            h, w = piece.shape[-2:]
            y0, x0 = pad if top else 0, pad if left else 0
            y1, x1 = h - pad if top + h < height else h, w - pad if left + w < width else w
            known[..., y0:y1, x0:x1] = 1
            return known

        assert tiled(blind, lq, scale=1, tile_size=tile, tile_pad=pad).all()


def test_tiles_keep_the_windows_of_the_whole_image() -> None:
    def windowed(lq: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool2d(lq, 8, ceil_mode=True)
        return nn.functional.interpolate(pooled, scale_factor=8)[..., : lq.shape[-2], : lq.shape[-1]]

    lq = torch.rand(1, 3, 201, 330, dtype=torch.float64)
    torch.testing.assert_close(tiled(windowed, lq, scale=1, tile_size=64, tile_pad=8), windowed(lq))


@pytest.mark.parametrize("tile", [15, 24, 40])
def test_a_window_network_is_the_same_in_small_tiles(tile: int) -> None:
    torch.manual_seed(0)
    net = SwinIR(
        upscale=2,
        embed_dim=8,
        depths=(2,),
        num_heads=(2,),
        window_size=8,
        mlp_ratio=2,
        upsampler="pixelshuffledirect",
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)  # attention as it is at the start hardly looks around
        net, lq = net.eval().double(), torch.rand(1, 3, 90, 109, dtype=torch.float64)
        tiles = tiled(net, lq, scale=2, tile_size=tile, tile_pad=32)
        torch.testing.assert_close(tiles, net(lq), rtol=0, atol=1e-9)


def test_every_piece_is_finished_before_it_is_put_in_place() -> None:
    lq = torch.rand(1, 3, 30, 41)

    def finish(sr: Tensor) -> Tensor:
        return sr.mean(1, keepdim=True).mul(255).round().to(torch.uint8)

    for tile in (8, 64):
        found = tiled(nearest, lq, scale=2, tile_size=tile, tile_pad=2, finish=finish)
        assert found.dtype == torch.uint8 and torch.equal(found, finish(nearest(lq)))


def test_tiles_of_no_size_are_refused() -> None:
    for tile, pad in ((0, 4), (4, -1)):
        with pytest.raises(MtkdError, match="tile_size >= 1 and tile_pad >= 0"):
            tiled(nearest, torch.rand(1, 3, 8, 8), scale=2, tile_size=tile, tile_pad=pad)


def test_self_ensemble_undoes_every_turn() -> None:
    lq = torch.rand(1, 3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(self_ensemble(nearest, lq), nearest(lq))
    net = small_net().double()
    with torch.no_grad():
        turned = self_ensemble(net, lq.flip(-1)).flip(-1)
        torch.testing.assert_close(self_ensemble(net, lq), turned)


@pytest.mark.slow
def test_a_run_is_measured_by_the_tensors_that_live_at_once() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        # At the peak, the first convolution's result and its ReLU's; a margin of a half for the kernels.
        assert tiling._bytes_per_pixel(net, torch.rand(1, 3, 4, 4)) == (8 + 8) * 4 * 1.5


def test_the_tile_fills_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    net, lq = small_net(), torch.zeros(1, 3, 400, 700)
    per_pixel = tiling._bytes_per_pixel(net, lq)
    assert tile_size(net, lq[..., :256, :256], scale=2) is None
    free, share = 0.0, tiling.FREE_SHARE["cpu"]
    monkeypatch.setattr(tiling, "free_memory", lambda device: int(free))
    free = 1.01 * 400 * 700 * per_pixel / share
    assert tile_size(net, lq, scale=2) is None
    free = 0.99 * 400 * 700 * per_pixel / share
    for settings, value_bytes, more in (({}, 4, 0), ({"value_bytes": 1}, 1, 0), ({"x8": True}, 4, 3 * 3 * 4 * 4)):
        tile = tile_size(net, lq, scale=2, tile_pad=16, **settings)
        assert tile is not None
        result, cost = 3 * 400 * 700 * 4 * value_bytes, per_pixel + more
        assert (tile + 32) ** 2 * cost <= share * (free - result) < (tile + 33) ** 2 * cost
    result = 3 * 400 * 700 * 4 * 4
    free = result
    with pytest.raises(MtkdError, match="EDSR takes .* KiB for every lq pixel.* 800x1400 result"):
        tile_size(net, lq, scale=2)


def test_a_cpu_with_much_memory_does_not_give_it_all_away(monkeypatch: pytest.MonkeyPatch) -> None:
    net, lq = small_net(), torch.zeros(1, 3, 1, 1).expand(1, 3, 20_000, 20_000)
    monkeypatch.setattr(tiling, "free_memory", lambda device: 1 << 50)
    tile = tile_size(net, lq, scale=2)
    assert tile is not None
    assert 0.99 < (tile + 64) ** 2 * tiling._bytes_per_pixel(net, lq) / tiling.LARGEST_RUN["cpu"] <= 1


def test_free_memory_is_of_this_machine() -> None:
    assert 1 << 20 < tiling.free_memory(torch.device("cpu")) < 1 << 50


class Limited(nn.Module):
    """A network on a device that is full at `pixels`."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels, self.shapes = pixels, []

    def forward(self, lq: Tensor) -> Tensor:
        self.shapes.append(tuple(lq.shape[-2:]))
        if lq.shape[-2] * lq.shape[-1] > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore.")
        return nearest(lq)


def test_tiles_are_halved_when_memory_runs_out_and_stay_so() -> None:
    said: list[str] = []
    net = Limited(60 * 60)
    predict = FittingTiles(net, scale=2, tile_pad=4, log=said.append)
    lq = torch.rand(1, 3, 100, 150)
    assert torch.equal(predict(lq), nearest(lq))
    assert len(said) == 2 and "tiles of 37 lq pixels" in said[1]
    net.shapes.clear()
    assert torch.equal(predict(lq), nearest(lq))
    assert max(net.shapes) <= (45, 45) and len(said) == 2


def test_a_device_without_any_room_is_an_error() -> None:
    with pytest.raises(MtkdError, match="Not even a tile of .*: CUDA out of memory. Tried to allocate 9 GiB.$"):
        FittingTiles(Limited(4), scale=2, log=lambda line: None)(torch.rand(1, 3, 100, 150))


@pytest.mark.cuda
def test_a_gpu_runs_batches_of_tiles_that_fit_its_memory() -> None:
    net = EDSR(num_feat=16, num_block=2, upscale=2).eval().cuda()
    lq = torch.rand(1, 3, 500, 700, device="cuda")
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        whole = net(lq)
        torch.testing.assert_close(tiled(net, lq, scale=2, tile_size=64, tile_pad=16), whole, atol=1e-4, rtol=0)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        per_pixel = tiling._bytes_per_pixel(net, lq)
        net(lq)
        taken = torch.cuda.max_memory_allocated() - before
        assert 0.5 < taken / (per_pixel * 500 * 700) < 1.5
        assert tile_size(net, lq, scale=2) is None


class Elsewhere(nn.Module):
    """A network of another library: its memory is numpy's, 4 KiB for each lq pixel."""

    scale = 2
    outside_torch = True

    def forward(self, lq: Tensor) -> Tensor:
        held = np.ones((lq.shape[-2] * lq.shape[-1], 512))
        return nearest(lq) * float(held[0, 0])


def test_memory_outside_torch_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Elsewhere()
    assert tile_size(net, torch.rand(1, 3, 8, 8), scale=2) is None
    found = tiling._bytes_per_pixel(net, torch.rand(1, 3, 8, 8))
    if sys.platform == "linux":
        # Half as much again is taken; the system hands out whole pages, and some were free.
        assert 0.9 * 4096 < found < 3 * 4096
    # Where the system does not say, much is assumed.
    monkeypatch.setattr(tiling, "resident_peak", lambda call: None)
    assert tiling._bytes_per_pixel(Elsewhere(), torch.rand(1, 3, 8, 8)) == tiling.UNKNOWN_COST
    with pytest.raises(MtkdError, match="Elsewhere runs on the CPU, and meta|There is no device"):
        place(net, "meta")
    assert place(net, None) == place(net, "cpu") == torch.device("cpu")
