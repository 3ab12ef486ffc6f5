"""Stores: targets and decoded images, with changed headers and pixels.

A run from a store that was changed must be refused, must make the store again, or must end with the weights of the run
from the store as it was.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.hostile import mutations, sandbox
from tests.hostile.cases import Case
from tests.hostile.ground import Ground
from tests.hostile.states import RUN, ends_as

_INNER = ("names", "sizes", "facts", "format")
_TEXTS = (
    "",
    "[]",
    "{}",
    "null",
    "3",
    "[[1,2]]",
    "[" * 200_000,
    '["a"]',
    "[[0,0]]",
    "[[-1,5]]",
    "[[1e9,1e9]]",
    '{"fingerprint": 3}',
    "9" * 5000,
    '[["a","b"]]',
    "\ud800",
)


def split(store: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and pixels of a store."""
    length = int.from_bytes(store[:8], "little")
    return json.loads(store[8 : 8 + length]), store[8 + length :]


def joined(header: Any, pixels: bytes, *, length: int | None = None) -> bytes:
    """A store of this header, whose length may be said wrongly."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", (len(text) if length is None else length) & (2**64 - 1)) + text + pixels


def cases(ground: Ground) -> st.SearchStrategy[Case]:
    """Stores, opened by the runs that need them."""
    taught = ground.root / "taught"
    caches = sorted(str(path.relative_to(taught)) for path in (taught / "home/datasets").rglob("*.safetensors"))
    stores = {"targets": (taught / "targets").read_bytes(), **{name: (taught / name).read_bytes() for name in caches}}
    commands = {
        "train": (("train", "-opt", "run.yml"), ("@as_taught", str(taught / RUN / "models/net_g_latest.pth"))),
        "check": (("check", "run.yml", "--data"), ("train", "-opt", "run.yml"), ("@as_taught",
            str(taught / RUN / "models/net_g_latest.pth"))),
        "teach": (("teach", "-opt", "run.yml"),),
        "merge": (("teach", "-opt", "run.yml", "--merge"),),
    }  # fmt: skip

    @st.composite
    def content(draw: st.DrawFn, name: str) -> bytes:
        header, pixels = split(stores[name])
        way = draw(st.sampled_from(("bytes", "bytes", "header", "inner", "text", "length", "pixels", "special")))
        if way == "bytes":
            return draw(mutations.mutated(stores[name]))
        if way == "header":
            try:
                return joined(draw(mutations.restructured(header)), pixels)
            except (TypeError, ValueError):
                return joined({}, pixels)
        if way == "inner":
            key = draw(st.sampled_from(_INNER[:3]))
            inner = json.loads(header["__metadata__"][key])
            try:
                header["__metadata__"][key] = json.dumps(draw(mutations.restructured(inner)))
            except (TypeError, ValueError):
                header["__metadata__"][key] = "x"
            return joined(header, pixels)
        if way == "text":
            header["__metadata__"][draw(st.sampled_from(_INNER))] = draw(st.sampled_from(_TEXTS))
            return joined(header, pixels)
        if way == "length":
            return joined(
                header, pixels, length=draw(st.sampled_from((0, 1, 7, 2**31, 2**62, 2**63, 2**64 - 1, 8, 100)))
            )
        if way == "pixels":
            place = draw(st.integers(0, len(pixels) - 1))
            return joined(
                header, pixels[:place] + bytes([pixels[place] ^ 1 << draw(st.integers(0, 7))]) + pixels[place + 1 :]
            )
        return draw(
            st.sampled_from(
                (b"", b"\0", bytes(4000), stores[name] + b"\0" * 64, stores[name][:-1], joined(b"[" * 200_000, pixels),
                    joined(b"\xff" * 64, pixels),
                 joined(b"3", b""), joined(b"{}", b""), joined({"images": header["images"]}, pixels))
            )
        )  # fmt: skip

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        name = draw(st.sampled_from(("targets", "targets", *caches)))
        way = draw(st.sampled_from(("train", "train", "check", "teach", "merge")))
        trees = [("run.yml", "taught/run.yml"), ("targets", "taught/targets"), ("home", "taught/home")]
        place = name
        if way == "merge":
            trees = [tree for tree in trees if tree[0] != "targets"]
            if name == "targets":
                place = draw(
                    st.sampled_from(
                        ("targets.shard-1-of-2", "targets.shard-01-of-02", "targets.partial", "targets.shard-1-of-1")
                    )
                )
        elif name == "targets" and draw(st.integers(0, 5)) == 0:
            place = draw(st.sampled_from(("targets.partial", "targets.partial.done")))
            trees = [tree for tree in trees if tree[0] != "targets"]
            way = "teach"
        return Case(
            "stores",
            commands[way],
            {place: draw(content(name))},
            tuple(trees),
            facts={"changed": place, "contents": True},
        )

    return case()


def _as_taught(code: int, arguments: tuple[str, ...], facts: Mapping[str, Any]) -> str:
    if code or ends_as(arguments[0]):
        return ""
    return f"{Path(facts['changed']).name} was changed, and the run went on to other weights"


sandbox.CHECKS["@as_taught"] = _as_taught
