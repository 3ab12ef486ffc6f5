"""Weights files: changed bytes, metadata that names functions, pickles in disguise, bombs, zeros, other types and
shapes.

No file may run anything. What is accepted must be the original tensors bit for bit, or what the file says by all its
checksums.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from tests.hostile import mutations, sandbox
from tests.hostile.cases import Case
from tests.hostile.ground import ARGS, FACTS, Ground, dump

_MODULE = b"""open('PWNED_module', 'w').close()
import torch
class Net(torch.nn.Module):
    def __init__(self, **k):
        super().__init__()
"""

TYPES: tuple[Any, ...] = (
    "subprocess:Popen", "subprocess:check_output", "subprocess:run", "os:system", "os:popen", "builtins:exec",
    "builtins:eval", "builtins:print",
    "pathlib:Path.touch", "runpy:run_path", "pty:spawn", "shutil:copy", "importlib:import_module", "webbrowser:open",
    "evil:Net", "evil:missing",
    "torch:load", "torch.hub:load", "torch.nn:ReLU", "torch.nn:Linear", "torchvision.models:resnet18",
    "mtkd.archs.edsr:EDSR", "mtkd.cli:main",
    "mtkd.zoo:resolve", "EDSR", "RCAN", "SwinIR", "DCTSwin", "FSRCNN", "PrivilegedTeacher", "spandrel", "edsr",
    "EDSR ", "", ":", "a:", ":a", "a:b:c",
    "..:x", "os", "os.system", "MSRResNet", "RRDBNet", "ArcFace", None, 1, ["EDSR"], {"type": "EDSR"}, True,
)  # fmt: skip
ARGUMENTS: tuple[Any, ...] = (
    ARGS, {}, None, [], 3, "x", {"args": ["touch", "PWNED"]}, {"command": "touch PWNED"},
    {"__source": "open('PWNED', 'w')"}, {"cmd": "touch PWNED"},
    {"path_name": "evil.py"}, {"source": "open('PWNED','w')"}, {"name": "evil"}, {"name": "antigravity"},
    {"src": "w.pth", "dst": "PWNED"}, {"argv": ["touch", "PWNED"]},
    {"decoder": {"type": "subprocess:Popen", "args": ["touch", "PWNED"]}}, {"decoder": {"type": "evil:Net"}},
    {"decoder": {"type": "PrivilegedTeacher"}},
    {"decoder": {"type": "FSRCNN", "num_feat": 10**7}, "upscale": 2}, {"decoder": None}, {"decoder": []},
    {**ARGS, "num_feat": 10**7}, {**ARGS, "num_block": 10**8}, {**ARGS, "num_feat": -4}, {**ARGS, "num_feat": 0},
    {**ARGS, "num_feat": 4.5},
    {**ARGS, "num_feat": "4"}, {**ARGS, "num_feat": True}, {**ARGS, "num_feat": None}, {**ARGS, "num_feat": [4]},
    {**ARGS, "upscale": 0}, {**ARGS, "upscale": 10**6},
    {**ARGS, "upscale": 7}, {**ARGS, "upscale": -2}, {**ARGS, "rgb_mean": [1]}, {**ARGS, "rgb_mean": "abc"}, {**ARGS,
        "img_range": 0}, {**ARGS, "img_range": float("nan")},
    {**ARGS, "num_in_ch": 1}, {**ARGS, "num_in_ch": 4}, {**ARGS, "unknown": 1}, {**ARGS, "self": 1}, {**ARGS,
        "__class__": 1}, {**ARGS, "": 1}, {**ARGS, "res_scale": 10**400},
    {"embed_dim": 10**6, "depths": [10**6], "num_heads": [10**6], "upscale": 2}, {"depths": [], "num_heads": []},
    {"depths": [2] * 5000, "num_heads": [2] * 5000},
    {"window_size": 0}, {"window_size": 10**5}, {"img_size": 10**7}, {"mlp_ratio": 1e300}, {"num_teachers": 10**7},
    {"squeeze_factor": 0},
)  # fmt: skip

FITTING: tuple[tuple[str, Any], ...] = (
    ("subprocess:Popen", {"args": ["touch", "PWNED"]}), ("subprocess:check_output", {"args": ["touch", "PWNED"]}),
    ("subprocess:run", {"args": ["touch", "PWNED"]}),
    ("os:system", {"command": "touch PWNED"}), ("os:popen", {"cmd": "touch PWNED"}), ("evil:Net", {}),
    ("runpy:run_path", {"path_name": "evil.py"}), ("pty:spawn", {"argv": ["touch", "PWNED"]}),
    ("importlib:import_module", {"name": "evil"}), ("shutil:copy", {"src": "evil.py", "dst": "PWNED"}), ("torch:load",
        {"f": "evil.pth", "weights_only": False}),
    ("PrivilegedTeacher", {"decoder": {"type": "subprocess:Popen", "args": ["touch", "PWNED"]}}), ("PrivilegedTeacher",
        {"decoder": {"type": "evil:Net"}}),
    ("mtkd.archs.privileged:PrivilegedTeacher", {"decoder": {"type": "os:system", "command": "touch PWNED"}}),
)  # fmt: skip
"""Functions with the arguments that they take."""


class _Calls:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def payloads() -> dict[str, Any]:
    """Objects that run something when they are unpickled, and some that only look so."""
    import builtins
    import collections
    import functools
    import importlib
    import operator
    import os
    import pathlib
    import subprocess

    touch = "touch PWNED"
    return {
        "system": _Calls(os.system, touch),
        "popen": _Calls(subprocess.Popen, ["touch", "PWNED"]),
        "check_output": _Calls(subprocess.check_output, ["touch", "PWNED"]),
        "exec": _Calls(builtins.exec, "open('PWNED', 'w')"),
        "eval": _Calls(builtins.eval, "open('PWNED', 'w')"),
        "open": _Calls(builtins.open, "PWNED", "w"),
        "import": _Calls(importlib.import_module, "evil"),
        "__import__": _Calls(builtins.__import__, "evil"),
        "partial": _Calls(functools.partial(os.system, touch)),
        "reduce": _Calls(functools.reduce, operator.add, ["a", _Calls(os.system, touch)]),
        "getattr": _Calls(builtins.getattr, _Calls(importlib.import_module, "evil"), "Net"),
        "touch": _Calls(pathlib.Path.touch, pathlib.PosixPath("PWNED")),
        "map": _Calls(builtins.list, _Calls(builtins.map, os.system, [touch])),
        "methodcaller": _Calls(operator.methodcaller("touch"), pathlib.PosixPath("PWNED")),
        "ordered": _Calls(collections.OrderedDict, [("a", _Calls(os.system, touch))]),
        "state": _Calls(collections.OrderedDict, state={"x": _Calls(os.system, touch)}),
        "torch.load": _Calls(torch.load, "evil.pth"),
        "hub": _Calls(torch.hub.load, ".", "x"),
        "counter": _Calls(collections.Counter, _Calls(os.system, touch)),
        "bytes": _Calls(builtins.bytearray, 10**12),
    }


def disguised(payload: Any, *, protocol: int, place: str, container: str) -> bytes:
    """A checkpoint with `payload` somewhere in it."""
    tensors = {"conv_first.weight": torch.zeros(4, 3, 3, 3)}
    content = {
        "value": {"params": {**tensors, "x": payload}},
        "params": {"params": payload},
        "mtkd": {"params": tensors, "mtkd": payload},
        "arch": {"params": tensors, "mtkd": {"arch": {"type": "EDSR", "args": payload}}},
        "key": {"params": tensors, "other": [{"deep": ((payload,),)}]},
        "whole": payload,
    }[place]
    if container in ("zip", "legacy"):
        buffer = io.BytesIO()
        torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
        return buffer.getvalue()
    raw = pickle.dumps(content if place != "value" else payload, protocol=protocol)
    if container == "raw":
        return raw
    buffer = io.BytesIO()
    if container == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in ("storages", "tensors", "pickle"):
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
        return buffer.getvalue()
    with zipfile.ZipFile(buffer, "w") as archive:
        root = "archive/" if container == "script" else ""
        archive.writestr(f"{root}data.pkl", raw)
        archive.writestr(f"{root}version", "3\n")
        if container == "script":
            archive.writestr(f"{root}constants.pkl", raw)
            archive.writestr(f"{root}code/__torch__.py", "import os\nos.system('touch PWNED')\n")
    return buffer.getvalue()


OPCODES = (
    b"cos\nsystem\n(S'touch PWNED'\ntR.", b"(S'touch PWNED'\nios\nsystem\n.", b"(cos\nsystem\nS'touch PWNED'\no.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0btouch PWNED\x85R.",
    b"cposix\nsystem\np0\n0(S'touch PWNED'\ntp1\n0g0\ng1\nR.",
    b"\x80\x02cbuiltins\nexec\nX\x15\x00\x00\x00open('PWNED','w').x()\x85R.", b"\x80\x02c__main__\nx\n.",
    b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".", b"\x80\x02\x8b\xff\xff\xff\x7f.", b"(" * 100_000 + b".",
    b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    b"\x80\x02}q\x00" + b"h\x00h\x00s" * 3 + b".", b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.",
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.", b"\x80\x02\x82\x01.", b"\x80\x02X\xff\xff\xff\x7f",
    b"ctorch._utils\n_rebuild_tensor_v2\n(tR.", b"ctorch\nFloatStorage\n(I1000000000000\ntR.",
    b"ccollections\nOrderedDict\n)R}S'x'\nI1\nsb.", b"\x80\x02K\x01Q.", b"P1\n.", b".", b"",
)  # fmt: skip
"""Pickles written by hand: old opcodes that call, numbers of many bytes, depth, lengths that lie."""


def zip_of(pickled: bytes, **members: bytes) -> bytes:
    """A zip as torch writes it, around a pickle written by hand."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", pickled)
        archive.writestr("net/byteorder", "little")
        for name, data in members.items():
            archive.writestr(f"net/{name}", data)
        archive.writestr("net/version", "3\n")
    return buffer.getvalue()


def saved(content: Any, *, legacy: bool = False) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def tensors_like(tensor: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Tensors of other types, shapes and layouts than `tensor`."""
    return {
        **{
            str(dtype).removeprefix("torch."): lambda dtype=dtype: tensor.to(dtype)
            for dtype in (
                torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64, torch.float16, torch.bfloat16,
                torch.float64, torch.float8_e4m3fn,
            )
        },
        "quantized": lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "sparse": lambda: tensor if tensor.is_meta else tensor.to_sparse(),
        "meta": lambda: tensor.to("meta"),
        "nan": lambda: torch.full_like(tensor, float("nan")),
        "inf": lambda: torch.full_like(tensor, float("inf")),
        "empty": lambda: tensor[:0],
        "scalar": lambda: tensor.flatten()[0],
        "flat": lambda: tensor.flatten(),
        "wider": lambda: torch.cat([tensor, tensor]),
        "turned": lambda: tensor.transpose(0, -1) if tensor.dim() > 1 else tensor.flip(0),
        "expanded": lambda: tensor.flatten()[:1].expand(10**9),
        "overlapping": lambda: torch.as_strided(tensor.contiguous(), tensor.shape, [0] * tensor.dim()),
        "parameter": lambda: torch.nn.Parameter(tensor),
        "array": lambda: tensor.numpy(),
        "list": lambda: tensor.tolist(),
        "none": lambda: None,
        "text": lambda: "weights",
        "dict": lambda: {"weight": tensor},
    }  # fmt: skip


def cases(ground: Ground) -> st.SearchStrategy[Case]:
    """Weights files, and what is done with them."""
    whole = {path.name: path.read_bytes() for path in sorted(ground.weights.glob("net*"))}
    names = sorted(whole)
    state = torch.load(ground.weights / "net.pth", weights_only=True)["params"]
    hidden = payloads()

    @st.composite
    def changed(draw: st.DrawFn) -> tuple[str, bytes]:
        name = draw(st.sampled_from(names))
        return Path(name).suffix, draw(mutations.mutated(whole[name], most=2))

    @st.composite
    def described(draw: st.DrawFn) -> tuple[str, bytes]:
        arch: Any = {"type": draw(st.sampled_from(TYPES)), "args": draw(st.sampled_from(ARGUMENTS))}
        if draw(st.booleans()):
            arch["type"], arch["args"] = draw(st.sampled_from(FITTING))
        arch = draw(
            st.sampled_from(
                (arch, arch, arch, arch, arch["type"], [arch], {"type": arch["type"]}, {"args": arch["args"]})
            )
        )
        facts: Any = {"arch": arch, "scale": draw(st.sampled_from((2, 2, 2, 0, -1, "2", None, 10**9, [2], 3)))}
        facts = draw(
            st.sampled_from((facts, facts, facts, facts, [facts], "x", {"members": [1]}, {**FACTS, "members": arch}))
        )
        if draw(st.booleans()):
            return ".pth", saved({"params": state, "mtkd": facts}, legacy=draw(st.booleans()))
        texts = (json.dumps(facts),) * 6 + (
            "[" * 100_000,
            "{",
            "9" * 5000,
            json.dumps(facts).replace("2", "9" * 4400, 1),
        )
        return ".safetensors", save(state, metadata={"format": "pt", "mtkd": draw(st.sampled_from(texts))})

    @st.composite
    def pickled(draw: st.DrawFn) -> tuple[str, bytes]:
        if draw(st.integers(0, 2)) == 0:
            code = draw(st.sampled_from(OPCODES))
            return ".pth", draw(st.sampled_from((code, zip_of(code), pickle.dumps(0x1950A86A20F9469CFC6C, 2) + code)))
        data = disguised(
            hidden[draw(st.sampled_from(sorted(hidden)))],
            protocol=draw(st.integers(0, 5)),
            place=draw(st.sampled_from(("value", "params", "mtkd", "arch", "key", "whole"))),
            container=draw(st.sampled_from(("zip", "legacy", "raw", "tar", "script", "bare"))),
        )
        return draw(st.sampled_from((".pth", ".pth", ".ckpt", ".safetensors"))), data

    @st.composite
    def typed(draw: st.DrawFn) -> tuple[str, bytes]:
        key = draw(st.sampled_from(sorted(state)))
        others = tensors_like(state[key])
        way = draw(st.sampled_from(sorted(others)))
        given = {**state, key: others[way]()}
        if draw(st.integers(0, 3)) == 0:
            given = {name: tensors_like(value).get(way, lambda: None)() for name, value in state.items()}
        odd = draw(
            st.sampled_from((None,) * 8 + (1, b"x", ("a",), "", "x" * 5000, "conv_first", "module.module.module.x"))
        )
        if odd is not None:
            given[odd] = state[key]
        wrapper = draw(st.sampled_from(("params", "params", "params_ema", "state_dict", "model", "")))
        content: Any = {wrapper: given, "mtkd": FACTS} if wrapper else given
        if wrapper == "params_ema":
            content["params"] = state
        try:
            return ".pth", saved(content, legacy=draw(st.booleans()))
        except Exception:  # not every kind of tensor can be saved in every way
            return ".pth", saved({"params": {key: None}})

    def bombs() -> list[tuple[str, bytes]]:
        inflated = io.BytesIO()
        with zipfile.ZipFile(inflated, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("net/data.pkl", bytes(200_000_000))
            archive.writestr("net/version", "3\n")
        doubled = io.BytesIO()
        with zipfile.ZipFile(doubled, "w") as archive:
            archive.writestr("../../PWNED_path", b"x")
            archive.writestr("net.pth", whole["net.pth"])
        head = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        far = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [2**60, 2**60 + 16]}}).encode()
        zeros = bytes(60_000_000)
        return [
            (".pth", zeros), (".safetensors", zeros), (".ckpt", zeros), (".pth", inflated.getvalue()), (".pth",
                doubled.getvalue()),
            (".safetensors", struct.pack("<Q", len(head)) + head), (".safetensors", struct.pack("<Q",
                len(far)) + far + bytes(16)),
            (".safetensors", struct.pack("<Q", 2**63) + b"{}"), (".safetensors", struct.pack("<Q", 2) + b"{}"),
            (".pth", b"<html>"),
            (".pth", b"\x1f\x8b" + bytes(200)), (".pth", b"BZh9" + bytes(200)), (".pth", b"\xfd7zXZ\0" + bytes(200)),
            (".pth", b"PK\x05\x06" + bytes(18)),
            (".pth", b"version https://git-lfs.github.com/spec/v1\n"), (".pth", b"PK\x03\x04" + bytes(4000)),
            (".safetensors", b""), (".pth", b"\0"),
        ]  # fmt: skip

    heavy = bombs()
    makers = st.one_of(changed(), changed(), changed(), described(), described(), pickled(), typed(), typed())

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        suffix, data = draw(makers if draw(st.integers(0, 24)) else st.sampled_from(heavy))
        file = f"w{suffix}"
        image = str(ground.encoded / "rgb.png")
        commands = {
            "upscale": (("upscale", image, "o.png", "--weights", file), ("@accepted", file)),
            "convert": (("zoo", "convert", file, "o.safetensors", "--to", "safetensors"), ("@converted", file,
                "o.safetensors")),
            "arch": (
                ("zoo", "convert", file, "o.safetensors", "--to", "safetensors", "--arch", "EDSR", "--arg",
                    "num_feat=4", "--arg", "num_block=1", "--arg", "upscale=2"),
                ("@converted", file, "o.safetensors"),
            ),
            "test": (("check", "run.yml", "--data"), ("test", "-opt", "run.yml"), ("@accepted", file)),
            "train": (("train", "-opt", "run.yml"), ("@accepted", file)),
            "import": (("zoo", "import", "edsr_m_x2", file),),
        }  # fmt: skip
        way = draw(st.sampled_from(("upscale", "upscale", "convert", "convert", "arch", "test", "train", "import")))
        files = {file: data, "evil.py": _MODULE, "evil.pth": saved(payloads()["open"])}
        if way == "test":
            files["run.yml"] = dump(ground.test(path={"pretrain_network_g": file, "results_root": "results"}))
        elif way == "train":
            options = ground.train(train={"total_iter": 2})
            options["path"]["pretrain_network_g"] = file
            files["run.yml"] = dump(options)
        return Case("weights", commands[way], files, facts={"original": str(ground.weights / "net.pth")})

    return case()


def always(ground: Ground) -> list[Case]:
    """Every function that a file may name, every payload as a pickle, zeros, numbers of other types."""
    state = torch.load(ground.weights / "net.pth", weights_only=True)["params"]
    files: list[tuple[str, bytes]] = []
    for name, arguments in FITTING:
        facts = {"arch": {"type": name, "args": arguments}, "scale": 2}
        files.append((".pth", saved({"params": state, "mtkd": facts})))
        files.append((".safetensors", save(state, metadata={"format": "pt", "mtkd": json.dumps(facts)})))
    for payload in payloads().values():
        files.append((".pth", disguised(payload, protocol=2, place="value", container="zip")))
    files += [(".pth", bytes(60_000_000)), (".safetensors", bytes(60_000_000))]
    for dtype in (torch.int8, torch.bool, torch.complex64):
        content = {"params": {key: value.to(dtype) for key, value in state.items()}, "mtkd": FACTS}
        files.append((".pth", saved(content)))
    image = str(ground.encoded / "rgb.png")
    made = {"evil.py": _MODULE, "evil.pth": saved(payloads()["open"])}
    return [
        Case(
            "weights",
            (("upscale", image, "o.png", "--weights", f"w{suffix}"), ("@accepted", f"w{suffix}")),
            {f"w{suffix}": data, **made},
            facts={"original": str(ground.weights / "net.pth")},
        )
        for suffix, data in files
    ]


def _state(path: str) -> dict[str, torch.Tensor]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    return dict(content)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return one.keys() == other.keys() and all(
        value.dtype == other[key].dtype
        and value.shape == other[key].shape
        and value.contiguous().view(-1).view(torch.uint8).equal(other[key].contiguous().view(-1).view(torch.uint8))
        for key, value in one.items()
    )


def damage(path: str) -> str:
    """What the checksums of a zip file say against it."""
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return ""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:
        return f"its zip is damaged ({type(error).__name__})"
    return f"the checksum of {bad} is wrong" if bad else ""


def _accepted(code: int, arguments: tuple[str, ...], facts: Mapping[str, Any]) -> str:
    """Weights that were used are undamaged, or the original, and numbers."""
    if code:
        return ""
    state = _state(arguments[0])
    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        return f"accepted, and {others[0]!r} is no tensor"
    original = torch.load(facts["original"], weights_only=True)["params"]
    if same(state, original):
        return ""
    strange = [f"{name} is {value.dtype}" for name, value in state.items() if not value.is_floating_point()]
    if strange:
        return f"accepted, and {strange[0]}"
    broken = damage(arguments[0])
    return f"accepted, and {broken}" if broken else ""


def _converted(code: int, arguments: tuple[str, ...], facts: Mapping[str, Any]) -> str:
    """What was written is what the file says."""
    if code:
        return ""
    if said := _accepted(code, arguments, facts):
        return said
    given, made = _state(arguments[0]), _state(arguments[1])
    given = {str(name).removeprefix("module.").removeprefix("_orig_mod."): value for name, value in given.items()}
    if not same(
        {k: v.float() if v.is_floating_point() else v for k, v in given.items()},
        {k: v.float() for k, v in made.items()},
    ):
        return "converted to other tensors than the file holds"
    return ""


sandbox.CHECKS["@accepted"] = _accepted
sandbox.CHECKS["@converted"] = _converted
