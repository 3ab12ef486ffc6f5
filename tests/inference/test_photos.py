"""Which images become which files: folders in folders, patterns, several inputs, formats, streams."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.cli import main
from mtkd.contracts import MtkdError
from mtkd.data.images import read_image, write_image
from mtkd.inference.photos import plan
from mtkd.inference.upscale import upscale
from tests.helpers import photo


class Twice(nn.Module):
    """Every pixel four times."""

    scale = 2

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        return lq.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def lay(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo("coffee", (6, 8))).save(root / name)


def outs(*sources: object, out: Path, **options: Any) -> list[str]:
    """Names in `out` of what `sources` become, in order."""
    planned = plan([str(source) for source in sources], out, log=lambda _: None, **options)
    return [job.out.relative_to(out).as_posix() for job in planned.jobs]


def test_folders_in_a_folder_are_kept_and_the_result_is_no_input(tmp_path: Path) -> None:
    lay(tmp_path / "in", "b.jpg", "2024/a b/c.JPG", "2024/d.webp", ".thumbs/x.png", "2024/.y.png", "e.gif")
    into = tmp_path / "in/large"
    assert outs(tmp_path / "in", out=into) == ["2024/a b/c.png", "2024/d.png", "b.png", "e.png"]
    assert outs(tmp_path / "in", out=into, recursive=False) == ["b.png", "e.png"]
    assert outs(tmp_path / "in", out=into, format="same") == ["2024/a b/c.JPG", "2024/d.webp", "b.jpg", "e.png"]
    assert upscale(Twice(), tmp_path / "in", into, format="webp", log=lambda _: None) == 4
    assert np.array_equal(read_image(into / "2024/d.webp")[::2, ::2], read_image(tmp_path / "in/2024/d.webp"))
    said: list[str] = []
    assert upscale(Twice(), tmp_path / "in", into, format="webp", skip_existing=True, log=said.append) == 0
    assert said == [f"4 images exist in {into}."]
    (tmp_path / "empty/deeper").mkdir(parents=True)
    with pytest.raises(MtkdError, match="empty and the folders in it hold no image"):
        outs(tmp_path / "empty", out=into)
    with pytest.raises(MtkdError, match="in/2024 holds no image"):
        lay(tmp_path, "deep/in/2024/x/y.png")
        outs(tmp_path / "deep/in/2024", out=into, recursive=False)


def test_several_inputs_fill_a_folder(tmp_path: Path) -> None:
    lay(tmp_path, "x/a.png", "y/a.png", "y/z/b.png", "c.jpg", "notes.png")
    assert outs(tmp_path / "x", tmp_path / "y", tmp_path / "c.jpg", out=tmp_path / "o") == [
        "x/a.png", "y/a.png", "y/z/b.png", "c.png"
    ]  # fmt: skip
    with pytest.raises(MtkdError, match="x/a.png and .*y/a.png would both become .*o/a.png; rename one"):
        outs(tmp_path / "x/a.png", tmp_path / "y/a.png", out=tmp_path / "o")
    with pytest.raises(MtkdError, match="There are 2 images, and .*o.png is the name of an image"):
        outs(tmp_path / "x/a.png", tmp_path / "c.jpg", out=tmp_path / "o.png")
    with pytest.raises(MtkdError, match="no image or folder .*gone.png"):
        outs(tmp_path / "c.jpg", tmp_path / "gone.png", out=tmp_path / "o")


def test_a_pattern_is_expanded_and_keeps_the_folders_behind_its_beginning(tmp_path: Path) -> None:
    lay(tmp_path, "in/a.jpg", "in/b/c.jpg", "in/b/d.png", "in/e[1].jpg")
    (tmp_path / "in/f.jpg").mkdir()
    assert outs(tmp_path / "in/**/*.jpg", out=tmp_path / "o") == ["a.png", "b/c.png", "e[1].png"]
    assert outs(tmp_path / "in/b/*", out=tmp_path / "o") == ["c.png", "d.png"]
    (tmp_path / "o").mkdir()
    # A file of that very name is no pattern.
    assert outs(tmp_path / "in/e[1].jpg", out=tmp_path / "o") == ["e[1].png"]
    with pytest.raises(MtkdError, match=r"\*.tif matches no image"):
        outs(tmp_path / "in/*.tif", out=tmp_path / "o")
    assert upscale(Twice(), str(tmp_path / "in/**/*.jpg"), tmp_path / "in/o", format="jpg") == 3
    assert outs(tmp_path / "in/**/*.jpg", out=tmp_path / "in/o", overwrite=True) == ["a.png", "b/c.png", "e[1].png"]


def test_a_slash_says_that_out_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "a.jpg")
    with pytest.raises(MtkdError, match="new is neither a folder nor an image's name.*write .*new/"):
        plan([tmp_path / "a.jpg"], tmp_path / "new")
    with pytest.raises(MtkdError, match=".gif is read and not written: name .*a.png"):
        plan([tmp_path / "a.jpg"], tmp_path / "a.gif")
    assert plan([tmp_path / "a.jpg"], f"{tmp_path}/new/").jobs[0].out == tmp_path / "new/a.png"


def test_format_and_quality_fit_what_is_written(tmp_path: Path) -> None:
    lay(tmp_path, "in/a.jpg", "in/b.png")
    with pytest.raises(MtkdError, match="--format webp asks for .webp, and .*a.png ends with .png"):
        plan([tmp_path / "in/a.jpg"], tmp_path / "a.png", format="webp")
    assert plan([tmp_path / "in/a.jpg"], tmp_path / "a.jpeg", format="jpg").jobs[0].out.name == "a.jpeg"
    with pytest.raises(MtkdError, match="--quality belongs to JPEG and WebP, and .png is written"):
        plan([tmp_path / "in"], tmp_path / "o", quality=80)
    for quality in (0, 101):
        with pytest.raises(MtkdError, match=f"1 to 100, found {quality}"):
            plan([tmp_path / "in"], tmp_path / "o", format="jpg", quality=quality)
    with pytest.raises(MtkdError, match="no format 'gif' here"):
        plan([tmp_path / "in"], tmp_path / "o", format="gif")
    sizes = []
    for quality in (30, 90):
        upscale(Twice(), tmp_path / "in", tmp_path / f"{quality}", format="jpg", quality=quality)
        sizes.append((tmp_path / f"{quality}/b.jpg").stat().st_size)
    assert sizes[0] < sizes[1]


def test_what_cannot_be_made_is_known_before_the_network_runs(tmp_path: Path) -> None:
    lay(tmp_path, "in/a.png", "in/c.png")
    still = Image.fromarray(photo("coffee", (6, 8)))
    still.save(tmp_path / "in/b.gif", save_all=True, append_images=[still.rotate(180)])
    Image.new("L", (9000, 1)).save(tmp_path / "in/d.png")
    said: list[str] = []

    class Watched(Twice):
        def forward(self, lq: torch.Tensor) -> torch.Tensor:
            said.append("ran")
            return super().forward(lq)

    with pytest.raises(MtkdError) as error:
        upscale(Watched(), tmp_path / "in", tmp_path / "out", format="webp", log=said.append)
    assert said == ["2 of 4 images are left out, and listed at the end.", "ran", "ran"]
    assert "2 of 4 images were upscaled" in str(error.value) and "b.gif is animated" in str(error.value)
    assert "d.png becomes 18000x2, and a side of a .webp has 16383 pixels at most. Write a .png." in str(error.value)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.webp", "c.webp"]
    with pytest.raises(MtkdError, match="^[^\n]*b.gif is animated[^\n]*$"):
        upscale(Watched(), tmp_path / "in/b.gif", tmp_path / "b.png")
    assert said.count("ran") == 2


class Stream(io.TextIOWrapper):
    def __init__(self, data: bytes = b"", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def bytes(self) -> bytes:
        self.flush()
        return self.buffer.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arguments = {"num_feat": 4, "num_block": 1, "upscale": 2}
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    zoo.write_safetensors(path, EDSR(**arguments).state_dict(), {"arch": {"type": "EDSR", "args": arguments}})
    return path


@pytest.mark.parametrize(
    ("given", "format", "wanted"), [("PNG", None, "PNG"), ("JPEG", "same", "JPEG"), ("PNG", "webp", "WEBP")]
)
def test_streams_go_in_and_out_and_words_go_elsewhere(
    weights: Path, given: str, format: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    encoded = io.BytesIO()
    Image.fromarray(photo("coffee", (6, 8))).save(encoded, given)
    out = Stream()
    monkeypatch.setattr(sys, "stdin", Stream(encoded.getvalue()))
    monkeypatch.setattr(sys, "stdout", out)
    command = ["upscale", "-", "-", "--weights", str(weights), *(["--format", format] if format else [])]
    assert main(command) == 0
    with Image.open(io.BytesIO(out.bytes())) as image:
        assert (image.format, image.size) == (wanted, (16, 12))
    assert "1 image upscaled x2 into standard output" in capfd.readouterr().err


def test_a_stream_becomes_a_file_and_a_file_a_stream(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(tmp_path, "a.png", "in/b.png")
    monkeypatch.setattr(sys, "stdin", Stream((tmp_path / "a.png").read_bytes()))
    assert main(["upscale", "-", str(tmp_path / "b.png"), "--weights", str(weights)]) == 0
    out = Stream()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert main(["upscale", str(tmp_path / "a.png"), "-", "--weights", str(weights)]) == 0
    assert out.bytes() == (tmp_path / "b.png").read_bytes()
    capsys.readouterr()
    for stdin, arguments, message in (
        (Stream(), ["-", "c.png"], "Standard input is empty. Pipe an image"),
        (Stream(terminal=True), ["-", "c.png"], "Standard input is the terminal. Pipe"),
        (Stream(b"no image"), ["-", "c.png"], "standard input cannot be decoded"),
        (Stream(), [str(tmp_path / "in"), "-"], "Standard output takes one image"),
        (Stream(), ["-", str(tmp_path / "a.png"), str(tmp_path)], "Give `-` alone"),
    ):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["upscale", *arguments, "--weights", str(weights)]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", Stream(terminal=True))
    assert main(["upscale", str(tmp_path / "a.png"), "-", "--weights", str(weights)]) == 2
    assert "Standard output is the terminal. Redirect it" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--student", "small"), ("--force_yml", "scale=2")])
def test_what_changes_an_option_file_is_refused_without_one(
    words: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another network than the one asked for would answer."""
    write_image(tmp_path / "in.png", photo("coffee", (6, 8)))
    assert main(["upscale", str(tmp_path / "in.png"), str(tmp_path / "out.png"), *words]) == 2
    assert "`-opt FILE`, and none is given" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_images_are_looked_for_before_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(tmp_path / "gone.png"), str(tmp_path / "o.png"), "--weights", "zoo:edsr_l_x4"]) == 2
    assert "There is no image or folder" in capsys.readouterr().err
    write_image(tmp_path / "a.png", photo("coffee", (6, 8)))
    assert main(["upscale", str(tmp_path / "a.png"), str(tmp_path / "o.png"), "--scale", "7"]) == 2
    assert "No network for --scale 7 comes with mtkd" in capsys.readouterr().err
