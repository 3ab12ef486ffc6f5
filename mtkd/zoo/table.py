"""Weights by name: what they are, where they are, how to know them. All but the students that come with the package
were published by others.

Where the same network is offered by several hosts, the files differ (naming, container) though the weights are the
same, so every `Source` has a file name and a hash of its own. Long because it is one table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mtkd.contracts import MtkdError
from mtkd.runtime.names import closest
from mtkd.zoo import students


@dataclass(frozen=True)
class Source:
    """One file on one host.

    `sha256` is the full hash (64 digits), or the first 8 digits when the publisher put no more into the file name, or
    None when no hash is known: such a file is pinned when it is first used. `sha256_from` says who published the
    hash. `size` is in bytes, None when unknown. `member` names the file wanted from an archive.
    """

    url: str
    file: str
    sha256: str | None = None
    sha256_from: str = ""
    size: int | None = None
    about: float | None = None
    member: str | None = None


@dataclass(frozen=True)
class Published:
    """Scores as published: data set -> (PSNR in dB, SSIM or None), their protocol, and who published them."""

    protocol: str
    by: str
    scores: dict[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Entry:
    """One network with published weights. The catalog builds `arch` with `args`; `params` counts its parameters."""

    name: str
    arch: str
    args: dict[str, Any]
    scale: int | None
    data: str
    params: int
    sources: tuple[Source, ...]
    licence: str
    paper: str
    published: tuple[Published, ...] = field(default=())
    note: str = ""
    shipped: bool = False
    """Whether the file comes with the package: it is fetched from nowhere, and `sources` is empty."""

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of a converted file."""
        return {
            "name": self.name,
            "arch": {"type": self.arch, "args": self.args},
            "scale": self.scale,
            "data": self.data,
            "licence": self.licence,
            "paper": self.paper,
            "published": [{"protocol": p.protocol, "by": p.by, "scores": p.scores} for p in self.published],
        }


def entry(name: str) -> Entry:
    """The entry called `name`, with or without "zoo:" before it.

    Raises:
        MtkdError: there is no such entry; the text names the nearest ones.
    """
    bare = name.removeprefix("zoo:")
    if bare in ENTRIES:
        return ENTRIES[bare]
    near = closest(bare, ENTRIES)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise MtkdError(f"The zoo has no weights called {bare!r}.{hint} `mtkd zoo list` shows all {len(ENTRIES)}.")


def is_shipped(name: str) -> bool:
    """Whether the weights `name` come with the package, so that nothing is fetched."""
    return name in ENTRIES and ENTRIES[name].shipped


FILE_NAME = "the publisher's file name"
ONE_MIRROR = "one mirror"
TWO_MIRRORS = "two mirrors that agree"

Y = "PSNR-Y, SSIM-Y, border = scale"
RGB = "PSNR on RGB, border = scale"

_TORCHSR = "https://github.com/Coloquinte/torchSR/releases/download/v1.0.3/"
_SNU = "https://cv.snu.ac.kr/research/EDSR/models/"
_SWINIR = "https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/"
_HEIBOX = "https://heibox.uni-heidelberg.de/f/"
_TORCHVISION = "https://download.pytorch.org/models/"


def _drive(identifier: str) -> str:
    # The plain link answers with a page that asks for a click when the file is too large for Google's virus scan.
    return f"https://drive.usercontent.google.com/download?id={identifier}&export=download&confirm=t"


def _edsr(size: str, scale: int) -> Entry:
    features, blocks = {"m": (64, 16), "l": (256, 32)}[size]
    prefix, drive, params, rgb = _EDSR[size, scale]
    basicsr_file = f"EDSR_{size.upper()}x{scale}_f{features}b{blocks}_DIV2K_official-{prefix}.pth"
    torchsr_file = f"edsr64_x{scale}.pt" if size == "m" else f"edsr_x{scale}.pt"
    official_file = ("edsr_baseline_x" if size == "m" else "edsr_x") + f"{scale}-{_EDSR_OFFICIAL[size, scale]}.pt"
    return Entry(
        name=f"edsr_{size}_x{scale}",
        arch="EDSR",
        args={
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": features,
            "num_block": blocks,
            "upscale": scale,
            "res_scale": 1.0 if size == "m" else 0.1,
            "img_range": 255.0,
            "rgb_mean": [0.4488, 0.4371, 0.4040],
        },
        scale=scale,
        data="DIV2K",
        params=params,
        sources=(
            Source(_drive(drive), basicsr_file, prefix, FILE_NAME),
            Source(_TORCHSR + torchsr_file, torchsr_file),
            # Last because the authors' host has been reported unreachable since 2024.
            Source(
                _SNU + official_file, official_file, official_file.rpartition("-")[2].removesuffix(".pt"), FILE_NAME
            ),
        ),
        licence="code of the authors: MIT; conversion by BasicSR: Apache-2.0",
        paper="Lim et al., CVPRW 2017, arXiv 1707.02921",
        published=(
            Published(Y, "torchSR README", {"Set5": (_EDSR_Y[size, scale], None)}),
            Published(
                RGB,
                "BasicSR model zoo",
                {name: (score, None) for name, score in zip(("Set5", "Set14", "DIV2K100"), rgb, strict=True)},
            ),
        ),
    )


_EDSR = {
    ("m", 2): ("3ba7b086", "1mREMGVDymId3NzIc2u90sl_X4-pb4ZcV", 1369859, (35.7768, 31.4966, 34.6291)),
    ("m", 3): ("6908f88a", "1EriqQqlIiRyPbrYGBbwr_FZzvb3iwqz5", 1554499, (32.3597, 28.3932, 30.9438)),
    ("m", 4): ("0c287733", "1bCK6cFYU01uJudLgUUe-jgx-tZ3ikOWn", 1517571, (30.1821, 26.7528, 28.9679)),
    ("l", 2): ("be38e77d", "15257lZCRZ0V6F9LzTyZFYbbPrqNjKyMU", 40729603, (35.9979, 31.8583, 35.0495)),
    ("l", 3): ("3660f70d", "18q_D434sLG_rAZeHGonAX8dkqjoyZ2su", 43680003, (32.643, 28.644, 31.28)),
    ("l", 4): ("76ee1c8f", "1GCi30YYCzgMCcgheGWGusP9aWKOAy5vl", 43089923, (30.5499, 27.0011, 29.277)),
}
"""(size, scale) -> hash prefix and Drive id of BasicSR's conversion, parameters, PSNR on RGB."""

_EDSR_OFFICIAL = {
    ("m", 2): "1bc95232",
    ("m", 3): "abf2a44e",
    ("m", 4): "6b446fab",
    ("l", 2): "0edfb8a3",
    ("l", 3): "ea3ef2c6",
    ("l", 4): "4f62e9ef",
}
_EDSR_Y = {("m", 2): 37.98, ("m", 3): 34.37, ("m", 4): 32.09, ("l", 2): 38.19, ("l", 3): 34.68, ("l", 4): 32.48}


def _rcan(scale: int) -> Entry:
    params, set5, set14, b100, urban100 = {
        2: (15444643, (38.27, 0.9614), (34.13, 0.9216), (32.41, 0.9027), (33.34, 0.9384)),
        3: (15629283, (34.74, 0.9299), (30.65, 0.8482), (29.32, 0.8111), (29.09, 0.8702)),
        4: (15592355, (32.63, 0.9002), (28.87, 0.7889), (27.77, 0.7436), (26.82, 0.8087)),
    }[scale]
    archive, member = "models_ECCV2018RCAN.zip", f"RCAN_BIX{scale}.pt"
    return Entry(
        name=f"rcan_x{scale}",
        arch="RCAN",
        args={
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 64,
            "num_group": 10,
            "num_block": 20,
            "squeeze_factor": 16,
            "upscale": scale,
            "res_scale": 1.0,
            "img_range": 255.0,
            "rgb_mean": [0.4488, 0.4371, 0.4040],
        },
        scale=scale,
        data="DIV2K",
        params=params,
        sources=(
            # A copy before the authors' archive: that is five networks in one zip, on hosts whose links have died.
            Source(f"{_TORCHSR}rcan_x{scale}.pt", f"rcan_x{scale}.pt"),
            Source(f"https://www.dropbox.com/s/qm9vc0p0w9i4s0n/{archive}?dl=1", archive, member=member),
            Source(_drive("1U0RmWkkacyw0HNC7CBts2LcX1ewAulCn"), archive, member=member),
        ),
        licence="not stated by the authors",
        paper="Zhang et al., ECCV 2018, arXiv 1807.02758",
        published=(
            Published(Y, "paper", {"Set5": set5, "Set14": set14, "B100": b100, "Urban100": urban100}),
            *(
                (Published(Y, "DUKD README, measured through BasicSR", {"Set5": (32.6388, 0.9002)}),)
                if scale == 4
                else ()
            ),
        ),
    )


def _swinir_m(data: str, scale: int) -> Entry:
    patch = {"DIV2K": 48, "DF2K": 64}[data]
    size, sha256, vouched, set5, rgb, luma = _SWINIR_M[data, scale]
    file = f"001_classicalSR_{data}_s{patch}w8_SwinIR-M_x{scale}.pth"
    return Entry(
        name=f"swinir_m_{data.lower()}_x{scale}",
        arch="SwinIR",
        args={
            "upscale": scale,
            "in_chans": 3,
            "img_size": patch,
            "window_size": 8,
            "img_range": 1.0,
            "depths": [6] * 6,
            "embed_dim": 180,
            "num_heads": [6] * 6,
            "mlp_ratio": 2,
            "upsampler": "pixelshuffle",
            "resi_connection": "1conv",
        },
        scale=scale,
        data=data,
        params={2: 11752487, 3: 11937127, 4: 11900199}[scale],
        sources=(Source(_SWINIR + file, file, sha256, vouched, **size),),
        licence="Apache-2.0",
        paper="Liang et al., ICCVW 2021, arXiv 2108.10257",
        published=(
            Published(Y, "paper", {"Set5": set5}),
            Published(Y, "SwinIR README", {"DIV2K100": (luma, None)}),
            Published(RGB, "SwinIR README", {"DIV2K100": (rgb, None)}),
        ),
        note="DF2K is DIV2K and Flickr2K: 3450 images where DIV2K alone has 800." if data == "DF2K" else "",
    )


_SWINIR_M = {
    ("DIV2K", 2): (
        {"about": 59.0},
        "ac6d4895f73aa1b3d563937e29dcedcfdff4d401280e248f23db3c6f68e8343b",
        TWO_MIRRORS,
        (38.35, 0.9620),
        35.25,
        36.77,
    ),
    ("DIV2K", 3): (
        {"about": 59.8},
        "d835497f2332aae839ae19a033290ced8686fa2a795f76fc5153ec2c83003f75",
        ONE_MIRROR,
        (34.89, 0.9312),
        31.50,
        32.97,
    ),
    ("DIV2K", 4): ({"about": 59.6}, None, "", (32.72, 0.9021), 29.48, 30.94),
    ("DF2K", 2): (
        {"size": 67277475},
        "2032ebf8f401dd3ce2fae5f3852117cb72101ec6ed8358faa64c2a3fa09ed4ac",
        TWO_MIRRORS,
        (38.42, 0.9623),
        35.34,
        36.86,
    ),
    ("DF2K", 3): (
        {"size": 68016035},
        "6eca3aee41f53322cd2f5a13650e212b80be8f3c0439d6fe19aef13ab1f509c7",
        ONE_MIRROR,
        (34.97, 0.9318),
        31.63,
        33.10,
    ),
    ("DF2K", 4): (
        {"about": 67.9},
        "4e78e33f22c1aa8a773db0cf4a7381bae97c2362c717f155439ebc690cbd9215",
        TWO_MIRRORS,
        (32.92, 0.9044),
        29.63,
        31.08,
    ),
}
"""(data, scale) -> size, sha256, who published it, Set5, PSNR of DIV2K100 on RGB and on Y."""


def _swinir_s(scale: int) -> Entry:
    file = f"002_lightweightSR_DIV2K_s64w8_SwinIR-S_x{scale}.pth"
    params, set5 = {
        2: (910152, (38.14, 0.9611)),
        3: (918267, (34.62, 0.9289)),
        4: (929628, (32.44, 0.8976)),
    }[scale]
    return Entry(
        name=f"swinir_s_x{scale}",
        arch="SwinIR",
        args={
            "upscale": scale,
            "in_chans": 3,
            "img_size": 64,
            "window_size": 8,
            "img_range": 1.0,
            "depths": [6] * 4,
            "embed_dim": 60,
            "num_heads": [6] * 4,
            "mlp_ratio": 2,
            "upsampler": "pixelshuffledirect",
            "resi_connection": "1conv",
        },
        scale=scale,
        data="DIV2K",
        params=params,
        sources=(Source(_SWINIR + file, file),),
        licence="Apache-2.0",
        paper="Liang et al., ICCVW 2021, arXiv 2108.10257",
        published=(Published(Y, "paper", {"Set5": set5}),),
    )


def _classifier(name: str, file: str, about: float, params: int, paper: str, note: str) -> Entry:
    prefix = file.rpartition("-")[2].removesuffix(".pth")
    return Entry(
        name=name,
        arch=f"torchvision.models:{name}",
        args={},
        scale=None,
        data="ImageNet-1K",
        params=params,
        sources=(Source(_TORCHVISION + file, file, prefix, FILE_NAME, about=about),),
        licence="BSD-3-Clause (torchvision)",
        paper=paper,
        note=note,
    )


def _student(name: str, facts: dict[str, Any]) -> Entry:
    scores = {measured: tuple(values) for measured, values in facts["scores"].items()}
    return Entry(
        name=name,
        arch=facts["arch"],
        args=facts["args"],
        scale=facts["scale"],
        data=facts["data"],
        params=facts["params"],
        sources=(),
        licence=facts["licence"],
        paper=facts["paper"],
        published=(Published(Y, "mtkd, its own measurement", scores),),
        note=facts["note"],
        shipped=True,
    )


ENTRIES: dict[str, Entry] = {
    made.name: made
    for made in (
        *(_student(name, facts) for name, facts in students.index().items()),
        *(_edsr(size, scale) for size in ("m", "l") for scale in (2, 3, 4)),
        *(_rcan(scale) for scale in (2, 3, 4)),
        *(_swinir_m(data, scale) for data in ("DIV2K", "DF2K") for scale in (2, 3, 4)),
        *(_swinir_s(scale) for scale in (2, 3, 4)),
        _classifier(
            "vgg19",
            "vgg19-dcbb9e9d.pth",
            574.7,
            143667240,
            "Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556",
            "Features of CSD's contrastive loss.",
        ),
        _classifier(
            "vgg16",
            "vgg16-397923af.pth",
            553.4,
            138357544,
            "Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556",
            "Features of DISTS.",
        ),
        _classifier(
            "alexnet",
            "alexnet-owt-7be5be79.pth",
            244.4,
            61100840,
            "Krizhevsky, arXiv 1404.5997",
            "Features of LPIPS (alex).",
        ),
        Entry(
            name="vqgan_f16_1024",
            arch="mtkd.losses.vqgan:VQGANEncoder",
            args={},
            scale=None,
            data="ImageNet",
            params=29_626_112,
            sources=(Source(_HEIBOX + "140747ba53464f49b476/?dl=1", "vqgan_imagenet_f16_1024.ckpt"),),
            licence="MIT (taming-transformers)",
            paper="Esser et al., CVPR 2021, arXiv 2012.09841",
            note="Encoder and codes for DCKD. The file holds the decoder and a critic too, which are left out. It was "
            "never fetched here: neither its size nor its hash is known.",
        ),
    )
}
"""Every entry by name, in the order of the tables."""
