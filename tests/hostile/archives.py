"""Archives of images for `mtkd data lay`: changed bytes, paths that lead outside, links, bombs, entries that lie.

Two sets are made up: of one the pixels are known, of the other only the names. Whatever the exit code, what is laid out
of the first has the right pixels as Pillow reads them, and nothing lies beside the folder of the data.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.hostile import mutations, sandbox
from tests.hostile.cases import Case
from tests.hostile.ground import Ground
from tests.hostile.images import png

ENDS = ("zip", "w", "w:gz", "w:bz2", "w:xz")


def packed(files: Mapping[str, bytes], end: str) -> bytes:
    """An archive with `files`."""
    buffer = io.BytesIO()
    if end == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return buffer.getvalue()
    mode: Any = end
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("a.png")
            info.type, info.linkname = kind, "../../x"
            archive.addfile(info)
    return buffer.getvalue()


def cases(ground: Ground) -> st.SearchStrategy[Case]:
    """Archives, and sets that are looked for in them."""
    images = {path.stem: path.read_bytes() for path in sorted(ground.images.iterdir())}
    numbered = {f"Numbers/{number:04d}.png": data for number, data in enumerate(images.values(), start=1)}
    sound = {**{f"b/{name}.png": data for name, data in images.items()}, **numbered}
    plain = {end: packed(sound, end) for end in ENDS}
    evil = {
        "../../PWNED.png": b"x", "/tmp/../PWNED.png": b"x", "..\\PWNED.png": b"x", "C:\\PWNED.png": b"x", "./": b"",
        "b/con.png": b"x", "x" * 300 + ".png": b"x", "b/\n.png": b"x", "b/zeros.png": bytes(80_000_000),
        "b/bomb.png": png(12000, 12000, pixels=bytes(36_012_000)), "Numbers/0001.png/x.png": b"x",
        "other/0002.png": numbered["Numbers/0001.png"], "lr/0002.png": b"x", "b/-rf.png": b"x",
    }  # fmt: skip
    facts = {"contents": True, "pixels": {name: list(_pixels(data)) for name, data in images.items()}}

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        end = draw(st.sampled_from(ENDS))
        way = draw(st.sampled_from(("bytes", "bytes", "image", "names")))
        if way == "bytes":
            data = draw(mutations.mutated(plain[end]))
        elif way == "image":
            name = draw(st.sampled_from(sorted(sound)))
            data = packed(sound | {name: draw(mutations.mutated(sound[name]))}, end)
        else:
            chosen = draw(st.lists(st.sampled_from(sorted(evil)), min_size=1, max_size=3))
            data = packed({name: evil[name] for name in chosen} | sound, end)
        sets = draw(st.sampled_from((("Known",), ("Numbers",), ("Known", "Numbers"))))
        line = ("data", "lay", *sets, "--from", "download", "--to", "data", "--scale", "2")
        return Case("archives", (line, ("@laid",)), {"download": data}, before="sets", facts=facts)

    return case()


def _pixels(encoded: bytes) -> tuple[int, int, str]:
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        return *image.size, hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def _sets(facts: Mapping[str, Any]) -> None:
    """The command knows the two sets."""
    from mtkd.data import known
    from mtkd.data.manifests import Form, Manifest, named

    forms = {name: (Form(*form),) for name, form in facts["pixels"].items()}
    manifests = {"Known": Manifest(len(forms), forms), "Numbers": named("{:04d}", 1, len(forms))}
    known.SETS = {
        name: known.KnownSet(name, (known.Part("HR", "LR_bicubic", lambda it=it: it),), "", "", "")
        for name, it in manifests.items()
    }


def _laid(code: int, arguments: tuple[str, ...], facts: Mapping[str, Any]) -> str:
    """What lies there is right, and it is all there after exit code 0."""
    beside = {path.name for path in Path().iterdir()} - {"download", "data"}
    if beside or list(Path("..").glob("PWNED*")):
        return f"written outside the folder: {beside}"
    files = sorted(Path("data/Known/HR").glob("*.png"))
    for file in files:
        if _pixels(file.read_bytes()) != tuple(facts["pixels"].get(file.stem, ())):
            return f"{file} has other pixels than the manifest"
    for known in Path("data").glob("*"):
        found = len(list(known.glob("HR/*"))), len(list(known.glob("LR_bicubic/X2/*")))
        if code == 0 and found != (len(facts["pixels"]),) * 2:
            return f"done, with {found} images in {known}"
    return ""


sandbox.BEFORE["sets"] = _sets
sandbox.CHECKS["@laid"] = _laid
