"""Image files of six formats: changed bytes, headers that lie, orientations, bombs, zeros.

They are upscaled, or lie among the images of a run that is checked and trained. An accepted image must have been read
as Pillow reads it, within one level, and as large as its header says. Two things are nobody's mistake: JPEG has no
checksums, so decoders differ in how much damage they bear, and a damaged orientation tag may be followed or not.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.hostile import mutations, sandbox
from tests.hostile.cases import Case
from tests.hostile.ground import METRIC, Ground, dump

_SIDES = (0, 1, 2, 15, 17, 255, 256, 65535, 65536, 12000, 2**31 - 1, 2**31, 2**32 - 1)


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, interlace: int = 0, pixels: bytes | None = None
) -> bytes:
    """A PNG whose header says whatever is asked, with right checksums."""
    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colour, 0, 0, interlace)
    if pixels is None:
        pixels = b"".join(
            b"\0" + bytes((x * 11 + y * 7 + c) % 256 for x in range(16) for c in range(3)) for y in range(16)
        )
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(image: bytes, name: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return image[:33] + chunk(name, data) + image[33:]


def exif(orientation: int, *, order: str = "<") -> bytes:
    """TIFF structure with one orientation tag, of type SHORT."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation & 0xFFFF, 0, 0)


def oriented(image: bytes, name: str, orientation: int, order: str) -> bytes:
    """A PNG or JPEG with an orientation tag; other formats as they are."""
    tag = exif(orientation, order=order)
    if name.endswith(".png"):
        return with_chunk(image, b"eXIf", tag)
    if name.endswith(".jpg"):
        segment = b"Exif\0\0" + tag
        return image[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + image[2:]
    return image


def cases(ground: Ground) -> st.SearchStrategy[Case]:
    """Images, and what is done with them."""
    bombs = (
        png(12000, 12000, pixels=bytes(36_012_000)),
        with_chunk(png(16, 16), b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000))),
        with_chunk(png(16, 16), b"iCCP", b"a\0\0" + zlib.compress(bytes(30_000_000))),
    )
    encoded = {path.name: path.read_bytes() for path in sorted(ground.encoded.iterdir())}
    names = sorted(encoded)

    @st.composite
    def changed(draw: st.DrawFn) -> tuple[str, bytes]:
        name = draw(st.sampled_from(names))
        return name, draw(mutations.mutated(encoded[name]))

    @st.composite
    def turned(draw: st.DrawFn) -> tuple[str, bytes]:
        name = draw(
            st.sampled_from(
                [name for name in names if name.endswith((".png", ".jpg")) and not name.startswith("turned")]
            )
        )
        orientation = draw(st.one_of(st.integers(0, 9), st.sampled_from((99, 255, 65535))))
        # Not called after `turned`, whose tag may be damaged: this one is whole.
        return f"sound_{name}", oriented(encoded[name], name, orientation, draw(st.sampled_from("<>")))

    @st.composite
    def lying(draw: st.DrawFn) -> tuple[str, bytes]:
        sides = st.one_of(st.sampled_from(_SIDES), st.integers(14, 18))
        depth, colour = draw(
            st.sampled_from(((8, 2), (8, 2), (16, 2), (8, 0), (16, 0), (8, 3), (8, 6), (1, 0), (3, 7)))
        )
        return "x.png", png(draw(sides), draw(sides), depth=depth, colour=colour, interlace=draw(st.integers(0, 2)))

    @st.composite
    def odd(draw: st.DrawFn) -> tuple[str, bytes]:
        name = draw(st.sampled_from(names))
        data = encoded[name]
        other = draw(st.sampled_from(("x.png", "x.jpg", "x.tif", "x.webp", "x.bmp", "x.gif", "x.PNG")))
        return draw(
            st.sampled_from(
                (
                    (other, data),
                    (other, b""),
                    (other, bytes(len(data))),
                    (other, data[:12]),
                    (name, data + data),
                    (name, data[: len(data) * 3 // 4]),
                    (name, data[:64] + bytes(len(data) - 64)),
                    *(("x.png", bomb) for bomb in bombs),
                    ("x.png", with_chunk(png(16, 16), b"eXIf", b"II*\0" + b"\xff" * 60)),
                    ("x.png", with_chunk(png(16, 16), b"acTL", b"\0\0\0\2\0\0\0\0")),
                    ("x.svg", b"<svg/>"),
                )
            )
        )

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        name, data = draw(st.one_of(changed(), changed(), changed(), changed(), turned(), lying(), odd()))
        suffix = Path(name).suffix
        image = f"x{suffix}"
        way = draw(st.sampled_from(("upscale", "upscale", "upscale", "folder", "train", "val", "pair", "test")))
        lossy = name.endswith((".jpg", "lossy.webp"))
        facts: dict[str, Any] = {
            "lossy": lossy,
            "base": name,
            "contents": True,
            "tag": name.startswith("turned") and data != encoded.get(name),
        }
        weights = str(ground.weights / "net.pth")
        if way in ("upscale", "folder"):
            place = image if way == "upscale" else f"in/{image}"
            given = (place, "out.png") if way == "upscale" else ("in", "out")
            return Case(
                "images", (("upscale", *given, "--weights", weights), ("@pixels", place)), {place: data}, facts=facts
            )
        good = (ground.images / "chelsea.png").read_bytes()
        if way == "test":
            section = {"name": "v", "type": "PairedImageDataset", "dataroot_gt": "gt"}
            options = ground.test(datasets={"test_1": section}, val={"metrics": METRIC})
            commands = (("check", "run.yml", "--data"), ("test", "-opt", "run.yml"), ("@pixels", f"gt/{image}"))
            return Case("images", commands, {f"gt/{image}": data, "run.yml": dump(options)}, facts=facts)
        options = ground.validated(train={"total_iter": 2})
        files = {"gt/a.png": good, f"{'val' if way == 'val' else 'gt'}/{image}": data}
        options["datasets"]["train"]["dataroot_gt"] = "gt"
        options["datasets"]["train"]["gt_size"] = 8
        place = f"gt/{image}"
        if way == "val":
            options["datasets"]["val"]["dataroot_gt"] = "val"
            place = f"val/{image}"
        elif way == "pair":
            options["datasets"]["val"].update({"dataroot_gt": "hr", "dataroot_lq": "lr", "filename_tmpl": "{}"})
            files = {"gt/a.png": good, "hr/x.png": encoded["rgb.png"] if lossy else good, f"lr/{image}": data}
            place = f"lr/{image}"
        files["run.yml"] = dump(options)
        commands = (("check", "run.yml", "--data"), ("train", "-opt", "run.yml"), ("@early",), ("@pixels", place))
        return Case("images", commands, files, facts=facts)

    return case()


def _pixels(code: int, arguments: tuple[str, ...], facts: Mapping[str, Any]) -> str:
    """An image that was accepted is read as Pillow reads it."""
    if code:
        return ""
    import numpy as np
    from PIL import Image, ImageOps, PngImagePlugin

    from mtkd.contracts import MtkdError
    from mtkd.data.headers import read_size
    from mtkd.data.images import IMAGE_SUFFIXES, read_image

    if Path(arguments[0]).suffix.lower() not in IMAGE_SUFFIXES:
        return ""  # passed over
    image = read_image(arguments[0])
    with contextlib.suppress(MtkdError):  # refused by its header alone, which is no silence
        size = read_size(arguments[0])
        if image.shape[:2] != size:
            return f"read as {image.shape[:2]}, by its header {size}"
    # A bound of Pillow's own, which says nothing about the pixels.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 30
    try:
        with Image.open(arguments[0]) as opened:
            mode = opened.mode
            opened.load()
            plain, theirs = (np.asarray(i.convert("RGB")) for i in (opened, ImageOps.exif_transpose(opened)))
    except Exception as error:
        return "" if facts["lossy"] else f"accepted, and Pillow refuses it: {type(error).__name__} {error}"
    if facts["tag"] and (theirs.shape != image.shape or np.abs(theirs.astype(int) - image).max() > 1):
        theirs = plain
    if theirs.shape != image.shape:
        return f"read as {image.shape}, by Pillow as {theirs.shape}"
    off = np.abs(theirs.astype(int) - image)
    # Decoders of lossy formats round each in their way; one that went wrong shows in the mean.
    if off.max() > 1 if not facts["lossy"] else off.mean() > 2:
        return f"differs from Pillow's by {off.max()} of 255, {off.mean():.2f} on average (mode {mode})"
    return ""


def _early(code: int, arguments: tuple[str, ...], facts: Mapping[str, Any]) -> str:
    """Whatever is wrong with an image is found before the first iteration."""
    rows = Path("experiments/tiny/metrics.jsonl")
    return "found after the first iteration" if code and rows.exists() and rows.stat().st_size else ""


sandbox.CHECKS["@early"] = _early
sandbox.CHECKS["@pixels"] = _pixels
