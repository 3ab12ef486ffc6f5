"""What the attacks start from: valid images, weights, option files, a run that was ended, a store of targets.

Everything is made once by the package itself, in processes of their own, so that it is always of the formats that the
package writes today. The networks have four features and the images sixteen to thirty pixels: a case takes a tenth of a
second.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.data.images import write_image
from tests.helpers import photo
from tests.hostile import sandbox
from tests.hostile.cases import Outcome

ARGS = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
FACTS = {"arch": {"type": "EDSR", "args": ARGS}, "scale": 2}
STEPS = 6
"""Iterations of the run that is ended at the fourth."""
METRIC = {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}}


class Ground:
    """Folder with the valid files, read by all cases and written by none; `make` fills it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def images(self) -> Path:
        """Four images to train on."""
        return self.root / "images"

    @property
    def encoded(self) -> Path:
        """One small image in every format."""
        return self.root / "encoded"

    @property
    def weights(self) -> Path:
        """One network in every container."""
        return self.root / "weights"

    def train(self, **changes: Any) -> dict[str, Any]:
        """Plain options of a run; top-level sections are replaced by `changes`, `train` is merged."""
        train = {
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "scheduler": {"type": "MultiStepLR", "milestones": [4], "gamma": 0.5},
            "total_iter": STEPS,
            "ema_decay": 0.9,
            **changes.pop("train", {}),
        }
        if changes.get("model_type", "SRModel") == "SRModel":
            train.setdefault("pixel_opt", {"type": "L1Loss"})
        sets: dict[str, Any] = {
            "train": {
                "name": "photographs",
                "type": "PairedImageDataset",
                "dataroot_gt": str(self.images),
                "gt_size": 16,
                "batch_size_per_gpu": 2,
            }
        }
        return {
            "name": "tiny",
            "scale": 2,
            "num_gpu": 0,
            "manual_seed": 3,
            "datasets": sets,
            "network_g": {"type": "EDSR", "num_feat": 4, "num_block": 1},
            "path": {"experiments_root": "experiments"},
            "logger": {"print_freq": 2, "save_checkpoint_freq": 2},
            **changes,
            "train": train,
        }

    def validated(self, **changes: Any) -> dict[str, Any]:
        """`train` with one validation image, at the end."""
        options = self.train(**changes)
        val = {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(self.root / "val")}
        options["datasets"] = {**options["datasets"], "val": val}
        options["val"] = {"val_freq": 2, "save_img": True, "metrics": METRIC}
        return options

    def test(self, **changes: Any) -> dict[str, Any]:
        """Plain options of a test."""
        return {
            "name": "test",
            "scale": 2,
            "num_gpu": 0,
            "datasets": {"test_1": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(self.root / "val")}},
            "network_g": {"type": "EDSR", "num_feat": 4, "num_block": 1},
            "path": {"pretrain_network_g": str(self.weights / "net.pth"), "results_root": "results"},
            "val": {"metrics": METRIC},
            **changes,
        }

    def taught(self, **changes: Any) -> dict[str, Any]:
        """Plain options of a run from a store of one teacher's answers."""
        teacher = {"network": {"type": "EDSR", "num_feat": 6, "num_block": 1}, "pretrain": str(self.weights / "t.pth")}
        return self.train(
            **{"model_type": "OutputKD", "teachers": {"edsr": teacher}, "target_store": "targets", **changes}
        )

    def make(self) -> Ground:
        """Fill the folder.

        Raises:
            RuntimeError: the package does not manage its own small run; nothing can be attacked then.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._images()
        self._weights()
        self._runs()
        return self

    def _images(self) -> None:
        for number, name in enumerate(("astronaut", "chelsea", "coffee", "rocket")):
            write_image(self.images / f"{name}.png", photo(name, (24 + 2 * number, 26)))  # pyright: ignore
        write_image(self.root / "val/coffee.png", photo("coffee", (24, 20)))
        self.encoded.mkdir()
        small = photo("astronaut", (256, 224))[::16, ::16]
        for name, data in encodings(small).items():
            (self.encoded / name).write_bytes(data)

    def _weights(self) -> None:
        self.weights.mkdir()
        for name, seed, width in (("net", 1, 4), ("t", 2, 6)):
            torch.manual_seed(seed)
            net = EDSR(**{**ARGS, "num_feat": width})
            facts = {"arch": {"type": "EDSR", "args": {**ARGS, "num_feat": width}}, "scale": 2}
            content = {"params": net.state_dict(), "mtkd": facts}
            torch.save(content, self.weights / f"{name}.pth")
            torch.save(content, self.weights / f"{name}_legacy.pth", _use_new_zipfile_serialization=False)
            torch.save(net.state_dict(), self.weights / f"{name}_bare.pth")
            zoo.write_safetensors(self.weights / f"{name}.safetensors", net.state_dict(), facts)

    def _runs(self) -> None:
        # States, with validation; the uninterrupted run, and the same ended before its last checkpoint.
        run = dump(self.validated())
        whole, ended, taught = (self.root / name for name in ("whole", "ended", "taught"))
        self._done("whole", run, ("train", "-opt", "run.yml"))
        self._done("ended", run, ("train", "-opt", "run.yml"), kill=sandbox.Kill(path="net_g_6.pth"))
        for leftover in (ended / "experiments/tiny/models").glob(".*"):
            leftover.unlink()
        self._done("taught", dump(self.taught()), ("teach", "-opt", "run.yml"), ("train", "-opt", "run.yml"))
        for path in (whole / "experiments/tiny/models/net_g_latest.pth", ended / "experiments/tiny/training_states"):
            if not path.exists():
                raise RuntimeError(f"{path.name} was not made")
        if not (taught / "targets").is_file():
            raise RuntimeError("no store was made")

    def _done(self, name: str, run: bytes, *commands: tuple[str, ...], kill: sandbox.Kill | None = None) -> Outcome:
        folder = self.root / name
        folder.mkdir()
        (folder / "run.yml").write_bytes(run)
        outcome = sandbox.start(commands, folder, kill=kill, seconds=60).wait()
        if kill is None and outcome.code != 0:
            raise RuntimeError(f"{commands} ended with {outcome.codes}, {outcome.signal}: {outcome.stderr[-2000:]}")
        return outcome


def dump(options: Any) -> bytes:
    """Options as the text of a file."""
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True).encode()


def encodings(image: NDArray[np.uint8]) -> dict[str, bytes]:
    """An (H, W, 3) image in many formats and modes, by file name."""
    picture = Image.fromarray(image)
    turned = Image.Exif()
    turned[0x0112] = 6
    grey, alpha, palette = picture.convert("L"), picture.convert("RGBA"), picture.convert("P")
    frames = {"save_all": True, "append_images": [picture.transpose(Image.Transpose.ROTATE_180)]}
    plans: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (picture, {}),
        "grey.png": (grey, {}),
        "alpha.png": (alpha, {}),
        "palette.png": (palette, {}),
        "bits.png": (picture.convert("1"), {}),
        "turned.png": (picture, {"exif": turned}),
        "rgb.jpg": (picture, {"quality": 90}),
        "grey.jpg": (grey, {}),
        "progressive.jpg": (picture, {"progressive": True}),
        "turned.jpg": (picture, {"exif": turned}),
        "lossless.webp": (picture, {"lossless": True}),
        "lossy.webp": (picture, {"quality": 80}),
        "animated.webp": (picture, {"lossless": True, **frames}),
        "raw.tif": (picture, {}),
        "deflated.tif": (picture, {"compression": "tiff_adobe_deflate"}),
        "lzw.tif": (grey, {"compression": "tiff_lzw"}),
        "pages.tif": (picture, frames),
        "rgb.bmp": (picture, {}),
        "palette.bmp": (palette, {}),
        "gif.gif": (palette, {}),
        "animated.gif": (palette, frames),
    }
    found = {}
    for name, (source, options) in plans.items():
        buffer = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name.rpartition(".")[2], name.rpartition(".")[2].upper())
        source.save(buffer, kind, **options)
        found[name] = buffer.getvalue()
    return found
