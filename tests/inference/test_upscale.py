"""Upscaled files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor, nn

from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.cli import main
from mtkd.contracts import MtkdError
from mtkd.data.images import read_image, write_image
from mtkd.data.photo import Photo, without_hidden_colours
from mtkd.data.resize import imresize
from mtkd.inference.baselines import Bicubic
from mtkd.inference.tiling import self_ensemble
from mtkd.inference.upscale import upscale
from mtkd.runtime.pixels import to_image, to_tensor
from tests.helpers import photo


def small_net() -> EDSR:
    torch.manual_seed(0)
    return EDSR(num_feat=4, num_block=1, upscale=2).eval().to(memory_format=torch.channels_last)


def write_photos(folder: Path, count: int) -> dict[str, np.ndarray]:
    photos = {}
    for number in range(count):
        name = ("coffee", "rocket", "astronaut", "chelsea")[number % 4]
        photos[f"{number:02d}"] = photo(name, (10 + number, 30 - number))
        write_image(folder / f"{number:02d}.png", photos[f"{number:02d}"])
    return photos


def test_every_image_of_a_folder_becomes_the_file_of_its_name(tmp_path: Path) -> None:
    photos, net = write_photos(tmp_path / "in", 15), small_net()
    assert upscale(net, tmp_path / "in", tmp_path / "out") == 15
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.png" for name in photos]
    for name, image in photos.items():
        with torch.no_grad():
            expected = to_image(net(to_tensor(image)))
        assert np.array_equal(read_image(tmp_path / f"out/{name}.png"), expected)


def test_images_are_never_replaced_unasked(tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 2)
    net = small_net()
    upscale(net, tmp_path / "in", tmp_path / "out")
    with pytest.raises(MtkdError, match="--overwrite.*--skip_existing"):
        upscale(net, tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out/00.png").read_bytes()
    write_image(tmp_path / "out/00.png", photo("coffee", (4, 4)))
    assert upscale(net, tmp_path / "in", tmp_path / "out", overwrite=True) == 2
    assert (tmp_path / "out/00.png").read_bytes() == before


def test_an_interrupted_folder_goes_on_where_it_stopped(tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 3)
    net, said = small_net(), []
    upscale(net, tmp_path / "in/01.png", tmp_path / "out/01.png")
    write_image(tmp_path / "out/01.png", photo("coffee", (4, 4)))
    assert upscale(net, tmp_path / "in", tmp_path / "out", skip_existing=True, log=said.append) == 2
    assert read_image(tmp_path / "out/01.png").shape == (4, 4, 3) and said == [f"1 image exists in {tmp_path / 'out'}."]
    assert upscale(net, tmp_path / "in", tmp_path / "out", skip_existing=True, log=said.append) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_broken_images_are_listed_at_the_end_and_all_others_written(tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 9)
    for name in ("02.png", "06.png"):
        whole = (tmp_path / "in" / name).read_bytes()
        (tmp_path / "in" / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/03.png").unlink()
    (tmp_path / "in/03.png").symlink_to("nowhere.png")
    with pytest.raises(MtkdError) as error:
        upscale(small_net(), tmp_path / "in", tmp_path / "out")
    assert "6 of 9 images were upscaled into" in str(error.value) and "(3 problems)" in str(error.value)
    assert re.findall(r"/(\d\d.png) cannot be", str(error.value)) == ["02.png", "03.png", "06.png"]
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["00", "01", "04", "05", "07", "08"]
    with pytest.raises(MtkdError, match="02.png cannot be decoded"):
        upscale(small_net(), tmp_path / "in/02.png", tmp_path / "out/02.png")


class Broken(nn.Module):
    scale = 2

    def __init__(self, broken: int, how: Any) -> None:
        super().__init__()
        self.calls, self.broken, self.how = 0, broken, how

    def forward(self, lq: Tensor) -> Tensor:
        self.calls += 1
        return self.how(lq) if self.calls == self.broken else nn.functional.interpolate(lq, scale_factor=2)


def test_an_image_that_the_network_fails_on_is_named(tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 6)

    def fail(lq: Tensor) -> Tensor:
        raise RuntimeError("padding is too large")

    with pytest.raises(MtkdError, match="02.png: the network failed on this image: padding is too large"):
        upscale(Broken(3, fail), tmp_path / "in", tmp_path / "failed")
    assert sorted(path.stem for path in (tmp_path / "failed").iterdir()) == ["00", "01", "03", "04", "05"]
    with pytest.raises(MtkdError, match="02.png: the network's output is not finite"):
        upscale(Broken(3, lambda lq: lq / 0), tmp_path / "in", tmp_path / "infinite")
    assert sorted(path.stem for path in (tmp_path / "infinite").iterdir()) == ["00", "01", "03", "04", "05"]


def test_transparency_depth_profile_and_grey_come_out_enlarged(tmp_path: Path) -> None:
    net, colours = small_net(), photo("coffee", (20, 30))
    alpha = np.linspace(0, 255, 600).astype(np.uint8).reshape(20, 30)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "in").mkdir()
    Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / "in/alpha.png")
    cv2.imwrite(str(tmp_path / "in/deep.png"), colours[..., ::-1].astype(np.uint16) * 257)
    Image.fromarray(colours).save(tmp_path / "in/icc.jpg", icc_profile=profile, quality=100)
    Image.fromarray(colours[..., 0]).save(tmp_path / "in/grey.png")
    said: list[str] = []
    assert upscale(net, tmp_path / "in", tmp_path / "out", log=said.append) == 4
    assert said == []
    with torch.no_grad():
        sr = net(to_tensor(colours))
        grey = net(to_tensor(np.repeat(colours[..., :1], 3, axis=2)))
    with torch.no_grad():
        # Colours that nobody sees do not reach those that are seen.
        expected = to_image(net(to_tensor(without_hidden_colours(Photo(colours, alpha)).pixels)))
    assert not np.array_equal(expected, to_image(sr))
    with Image.open(tmp_path / "out/alpha.png") as image:
        assert np.array_equal(np.asarray(image)[..., :3], expected)
        assert np.array_equal(np.asarray(image)[..., 3], imresize(alpha, 2))
    deep = cv2.imread(str(tmp_path / "out/deep.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    wanted = sr[0].clamp(0, 1).mul(65535).round().permute(1, 2, 0).numpy()
    assert deep.dtype == np.uint16 and np.abs(deep - wanted).max() <= 1
    with Image.open(tmp_path / "out/icc.png") as image:
        assert image.info["icc_profile"] == profile and image.size == (60, 40)
    with Image.open(tmp_path / "out/grey.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), to_image(grey.mean(1, keepdim=True).expand(-1, 3, -1, -1))[..., 0])
    upscale(net, tmp_path / "in/alpha.png", tmp_path / "alpha.jpg", log=said.append)
    assert said == [f"{tmp_path / 'in/alpha.png'}: not kept: transparency, which .jpg does not keep: write a .png."]


def test_no_fringe_shines_at_the_edge_of_what_is_transparent(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:24, :24]
    alpha = np.where(np.hypot(rows - 11.5, columns - 11.5) < 8, 255, 0).astype(np.uint8)
    # A white disc, and black where nobody looks, as most programs save it.
    white = np.repeat(alpha[..., None], 3, axis=2)
    Image.fromarray(np.dstack([white, alpha])).save(tmp_path / "in.png")
    assert imresize(white, 4)[imresize(alpha, 4) > 0].min() < 128
    upscale(Bicubic(4), tmp_path / "in.png", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        enlarged = np.asarray(image)
    assert enlarged[..., :3].min() == 255 and np.array_equal(enlarged[..., 3], imresize(alpha, 4))


@pytest.mark.slow
def test_a_large_image_takes_a_bounded_share_of_memory(tmp_path: Path) -> None:
    script = """
import resource, sys, torch
from pathlib import Path
from mtkd.archs.edsr import EDSR
from mtkd.data.images import write_image
from mtkd.inference import tiling
from mtkd.inference.upscale import upscale
import numpy as np
net = EDSR(num_feat=8, num_block=1, upscale=2).eval()
write_image("large.png", np.zeros((1200, 1200, 3), np.uint8))
write_image("small.png", np.zeros((64, 64, 3), np.uint8))
tiling.LARGEST_RUN["cpu"] = 64 << 20
torch.set_num_threads(1)
upscale(net, Path("small.png"), Path("out_small.png"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
upscale(net, Path("large.png"), Path("out_large.png"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    # Whole it took 537 MiB. A run of 64 MiB, what it makes the allocator keep, and a few copies of 17 MiB took 248.
    assert int(done.stdout.split()[-1]) < 380 << 10, done.stdout


def test_tiles_and_self_ensemble_of_one_image(tmp_path: Path) -> None:
    image, net = photo("coffee", (24, 31)), small_net()
    write_image(tmp_path / "in.png", image)
    assert upscale(net, tmp_path / "in.png", tmp_path / "tiles.png", tile_size=16, tile_pad=8) == 1
    with torch.no_grad():
        expected = to_image(net(to_tensor(image)))
    assert np.abs(read_image(tmp_path / "tiles.png").astype(int) - expected.astype(int)).max() <= 1
    upscale(net, tmp_path / "in.png", tmp_path / "x8.png", x8=True)
    with torch.no_grad():
        expected = to_image(self_ensemble(net, to_tensor(image)))
    assert np.array_equal(read_image(tmp_path / "x8.png"), expected)


@pytest.mark.slow
def test_what_cannot_be_compiled_runs_uncompiled_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "in", 2)
    net, said = small_net(), []

    def no_compiler(**settings: Any) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(net, "compile", no_compiler)
    assert upscale(net, tmp_path / "in", tmp_path / "out", compile=True, log=said.append) == 2
    assert len(said) == 1 and "no C++ compiler" in said[0]


def test_two_images_that_would_become_one_are_refused(tmp_path: Path) -> None:
    for suffix in ("png", "bmp"):
        write_image(tmp_path / f"in.{suffix}", photo("coffee", (8, 8)))
    with pytest.raises(MtkdError, match="both become"):
        upscale(small_net(), tmp_path, tmp_path / "out")


def test_an_image_never_replaces_itself(tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 1)
    before = (tmp_path / "in/00.png").read_bytes()
    for source in (tmp_path / "in", tmp_path / "in/00.png"):
        for settings in ({"overwrite": True}, {"skip_existing": True}):
            with pytest.raises(MtkdError, match="its own enlargement"):
                upscale(small_net(), source, tmp_path / "in", **settings)
    assert (tmp_path / "in/00.png").read_bytes() == before


def test_a_folder_goes_into_a_folder_and_a_pipe_is_not_read(tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 1)
    (tmp_path / "in/d.png").mkdir()
    os.mkfifo(tmp_path / "in/pipe.png")
    with pytest.raises(MtkdError, match="in is a folder, and .*out.png is the name of an image"):
        upscale(small_net(), tmp_path / "in", tmp_path / "out.png")
    with pytest.raises(MtkdError, match="00.png is a file; give the name of a folder|is the name of an image"):
        upscale(small_net(), tmp_path / "in", tmp_path / "in/00.png")
    (tmp_path / "in/notes.txt").touch()
    said: list[str] = []
    assert upscale(small_net(), tmp_path / "in", tmp_path / "out", log=said.append) == 1
    assert len(said) == 1 and said[0].startswith("Left out") and said[0].endswith("such as notes.txt.")
    with pytest.raises(MtkdError, match="Nothing can be written into .*00.png: "):
        upscale(small_net(), tmp_path / "in/00.png", tmp_path / "in/00.png/out.png")
    with pytest.raises(MtkdError, match="pipe.png is not an image file"):
        upscale(small_net(), tmp_path / "in/pipe.png", tmp_path / "out/pipe.png")


def test_nothing_to_read_and_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match="nowhere"):
        upscale(small_net(), tmp_path / "nowhere", tmp_path / "out")
    write_photos(tmp_path / "in", 1)
    with pytest.raises(MtkdError, match="out is neither a folder nor an image's name"):
        upscale(small_net(), tmp_path / "in/00.png", tmp_path / "out")


def test_the_command_goes_on_and_says_how_fast_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "in", 3)
    arguments = {"num_feat": 4, "num_block": 1, "upscale": 2}
    zoo.write_safetensors(
        tmp_path / "net.safetensors", EDSR(**arguments).state_dict(), {"arch": {"type": "EDSR", "args": arguments}}
    )
    command = ["upscale", str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(tmp_path / "net.safetensors")]
    assert main([*command, "--tile", "8", "--tile_pad", "6"]) == 0
    assert re.search(r"3 images upscaled x2 into .*out in [\d.]+ s \([\d.]+ images/s\)", capsys.readouterr().out)
    (tmp_path / "out/02.png").unlink()
    assert main(command) == 2
    assert "--skip_existing" in capsys.readouterr().err
    assert main([*command, "--skip_existing"]) == 0
    assert "1 image upscaled" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--skip_existing", "--overwrite"])
    assert main([*command, "--overwrite", "--tile", "0"]) == 2
    assert "tile_size >= 1" in capsys.readouterr().err


@pytest.mark.cuda
def test_a_gpu_writes_what_the_cpu_does(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 15)
    for device in ("cpu", "cuda"):
        upscale(small_net(), tmp_path / "in", tmp_path / device, device=device)
    for name in photos:
        ours, theirs = (read_image(tmp_path / f"{device}/{name}.png").astype(int) for device in ("cpu", "cuda"))
        assert np.abs(ours - theirs).max() <= 1
