"""Files from anybody: what they say is not believed, what they hold is looked at, and each refusal is one paragraph."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import resource
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mtkd import catalog
from mtkd.contracts import MtkdError
from mtkd.zoo import build, building, containers, convert, files, loading, read_checkpoint

EDSR = {"num_feat": 8, "num_block": 1, "upscale": 2}
SWIN = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4, "upscale": 2, "upsampler": "pixelshuffle"}


def weights(name: str = "EDSR", **arguments: Any) -> dict[str, Tensor]:
    return catalog.get("arch", name)(**arguments or EDSR).state_dict()


def pth(path: Path, facts: Any, state: dict[str, Tensor]) -> Path:
    torch.save({"params": state, "mtkd": facts}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def safetensors(path: Path, facts: Any, state: dict[str, Tensor]) -> Path:
    tensors = {key: value.clone() for key, value in state.items()}
    save_file(tensors, path.with_suffix(".safetensors"), metadata={"mtkd": json.dumps(facts)})
    return path.with_suffix(".safetensors")


def refusal(path: Path, what: Callable[[Path], Any] = read_checkpoint) -> str:
    """The one paragraph that reading `path` ends in; it names the file."""
    began = time.perf_counter()
    with pytest.raises(MtkdError) as raised:
        what(path)
    assert time.perf_counter() - began < 2
    text = str(raised.value)
    assert str(path) in text and "\n" not in text and len(text) < 1500 and "weights_only" not in text
    return text


COMMANDS = [
    ("subprocess:Popen", {"args": ["touch", "PWNED"]}),
    ("os:system", {"command": "touch PWNED"}),
    ("builtins:exec", {"__source": "open('PWNED', 'w')"}),
    ("PrivilegedTeacher", {"decoder": {"type": "subprocess:Popen", "args": ["touch", "PWNED"]}}),
    ("PrivilegedTeacher", {"decoder": {"type": "PrivilegedTeacher", "decoder": {"type": "os:system"}}}),
    ("torch.nn:Identity", {}),
    ("SpyNet", {"load_path": "PWNED"}),
]


@pytest.mark.parametrize("write", [pth, safetensors])
@pytest.mark.parametrize(("name", "args"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_a_file_that_names_anything_but_a_network_of_mtkd_is_refused(
    name: str, args: dict, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "_USER_MODULES", set())
    path = write(tmp_path / "evil", {"arch": {"type": name, "args": args}, "scale": 2}, weights())
    assert "For safety a weights file builds no other class" in refusal(path, build)
    target = tmp_path / "out.safetensors"
    assert "For safety a weights file builds no other class" in refusal(
        path, lambda p: convert(p, target, to="safetensors")
    )
    assert not (tmp_path / "PWNED").exists() and not target.exists()


GIANTS: list[tuple[str, dict[str, Any], str]] = [
    ("EDSR", {**EDSR, "num_feat": 10**7}, "num_feat is 10000000"),
    ("EDSR", {**EDSR, "num_block": 10**6}, "num_block is 1000000"),
    ("EDSR", {**EDSR, "num_block": 1000}, "more parts than its"),
    ("EDSR", {**EDSR, "num_feat": 1000}, "This is EDSR with num_feat 8"),
    ("EDSR", {**EDSR, "num_feat": -4}, "num_feat is -4"),
    ("EDSR", {**EDSR, "num_feat": 10**300}, "more than 18 digits"),
    ("EDSR", {**EDSR, "num_feat": "8"}, "arguments it does not take"),
    ("EDSR", {**EDSR, "upscale": 1024}, "upscale is 1024"),
    ("EDSR", {**EDSR, "img_range": float("nan")}, "img_range is nan"),
    ("EDSR", {**EDSR, "rgb_mean": [0.0] * 1000}, "too long"),
    ("EDSR", {**EDSR, "rgb_mean": [[[[[[0]]]]]]}, "nested too deeply"),
    ("EDSR", {**EDSR, "rgb_mean": {"a": 1}}, "a dict"),
    ("EDSR", {**EDSR, "nonsense": 1}, "arguments it does not take: nonsense"),
    ("SwinIR", {**SWIN, "depths": [10**9], "num_heads": [1]}, "too large"),
    ("SwinIR", {**SWIN, "depths": [1000], "num_heads": [2]}, "more parts than its"),
    ("SwinIR", {**SWIN, "img_size": 10**6}, "img_size is 1000000"),
    ("SwinIR", {**SWIN, "in_chans": 10**9}, "in_chans is 1000000000"),
    ("SwinIR", {**SWIN, "patch_size": 0}, "cannot be built: ZeroDivisionError"),
    ("FSRCNN", {"upscale": 17}, "upscale is 17"),
]


@pytest.mark.parametrize("write", [pth, safetensors])
@pytest.mark.parametrize(("name", "args", "said"), GIANTS, ids=[said for *_, said in GIANTS])
def test_a_network_that_is_not_that_of_the_tensors_is_refused_before_memory_is_taken(
    name: str, args: dict, said: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(tmp_path / "giant", {"arch": {"type": name, "args": args}, "scale": 2}, weights())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert said in refusal(path, build)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.parametrize(
    "facts",
    [
        {"arch": []},
        {"arch": {"type": 3}},
        {"arch": {"type": "EDSR", "args": 3}},
        {"arch": {"type": "EDSR", "args": [1]}},
        {"arch": {"type": "EDSR", "args": EDSR}, "scale": "2"},
        {"arch": {"type": "EDSR", "args": EDSR}, "scale": 10**9},
    ],
    ids=str,
)
@pytest.mark.parametrize("write", [pth, safetensors])
def test_facts_that_are_none_are_refused(facts: Any, write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tmp_path / "odd", facts, weights())
    refusal(path, build)
    if isinstance(facts["arch"], dict) and facts.get("scale") is not None:
        refusal(path, lambda p: convert(p, tmp_path / "out.pth", to="basicsr"))


def test_facts_that_are_no_json_or_nested_without_end_are_refused(tmp_path: Path) -> None:
    for text in ("{", "[" * 100_000 + "]" * 100_000, '{"a": ' * 100_000 + "1" + "}" * 100_000):
        save_file(weights(), tmp_path / "deep.safetensors", metadata={"mtkd": text})
        assert "metadata `mtkd`" in refusal(tmp_path / "deep.safetensors")


def test_every_network_of_the_catalog_is_built_from_its_own_file(tmp_path: Path) -> None:
    small: dict[str, dict[str, Any]] = {
        "EDSR": EDSR,
        "RCAN": {"num_feat": 8, "num_group": 1, "num_block": 1, "squeeze_factor": 4, "upscale": 2},
        "SwinIR": {**SWIN, "img_size": 16, "ape": True},
        "DCTSwin": {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4, "upscale": 2},
        "FSRCNN": {"num_feat": 8, "upscale": 2},
        "PlainSR": {"num_feat": 8, "num_conv": 2, "expand": 12, "upscale": 2},
        "PrivilegedTeacher": {"decoder": {"type": "EDSR", "num_feat": 8, "num_block": 1}, "upscale": 2},
    }
    assert [*small, "spandrel"] == catalog.names("arch")
    for name, args in small.items():
        state = weights(name, **args)
        for write in (pth, safetensors):
            net = build(write(tmp_path / name, {"arch": {"type": name, "args": args}, "scale": 2}, state))
            assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_another_threads_networks_are_not_counted(tmp_path: Path) -> None:
    import threading

    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            catalog.get("arch", "EDSR")(num_feat=4, num_block=200)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    with building._at_most(3, "too many"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert not errors


def zipped(name: str = "archive/data.pkl", content: bytes = b"x" * 100, packed: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def tarred(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


KINDS: list[tuple[bytes, str]] = [
    (b"\0" * (20 << 20), "begins with zeros"),
    (b"", "is empty"),
    (b"Rar!\x1a\x07" + b"x" * 600, "archive of several files"),
    # Without the time, so that the test has one name in all processes that share the tests.
    (gzip.compress(bytes(1 << 22), mtime=0)[:-20], "archive of several files"),
    (bz2.compress(b"x" * 1000)[:-5], "archive of several files"),
    (lzma.compress(b"x" * 1000)[:-5], "archive of several files"),
    (tarred("a", "b"), "archive of several files"),
    (tarred("a")[:700], "damaged|archive of several files"),
    (tarred("storages", "tensors", "pickle"), "tar format of torch 0.1"),
    (zipped("models/a.pt"), "archive of several files"),
    (zipped()[:-15], "table of contents is truncated or damaged"),
    (zipped(content=bytes(1 << 22), packed=zipfile.ZIP_DEFLATED), "packed or encrypted"),
    (zipped(), "cannot be read as a checkpoint"),
    (b"\x80\x02}q\x00.", "cannot be read as a checkpoint"),
    (b"\x80\x04" + b"\xff" * 300, "cannot be read as a checkpoint"),
    (b"(dp0\n.", "begins with 28 64"),
    (b"\x89PNG\r\n\x1a\n" + b"x" * 90, "begins with 89 50"),
]


@pytest.mark.parametrize(("content", "said"), KINDS, ids=[f"{c[:6]!r}-{s[:20]}" for c, s in KINDS])
def test_every_damaged_or_foreign_file_is_one_paragraph(tmp_path: Path, content: bytes, said: str) -> None:
    import re

    (tmp_path / "z.pth").write_bytes(content)
    assert re.search(said, refusal(tmp_path / "z.pth"))


def test_zeros_and_noise_called_safetensors_are_refused_at_once(tmp_path: Path) -> None:
    for content in (bytes(20 << 20), b"\xff" * 1000, b"\x08" + bytes(7) + b"{}      ", b"\x80" + bytes(7) + b"{" * 200):
        (tmp_path / "z.safetensors").write_bytes(content)
        refusal(tmp_path / "z.safetensors")


def test_a_torchscript_file_is_called_what_it_is(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "script.pth"))
    assert "TorchScript program" in refusal(tmp_path / "script.pth")


def test_members_that_overlap_do_not_multiply_the_file(tmp_path: Path) -> None:
    torch.save({"params": weights()}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        size = max(info.file_size for info in archive.infolist())
    grown = content.replace(size.to_bytes(4, "little"), (1 << 30).to_bytes(4, "little"))
    (tmp_path / "b.pth").write_bytes(grown)
    refusal(tmp_path / "b.pth")


def test_every_flipped_bit_of_a_weight_is_found_and_the_member_named(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"params": weights()}, path)
    assert containers.verify(path) is None
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {i.filename: (i.header_offset, i.file_size) for i in archive.infolist() if i.file_size > 8}
    for name, (offset, size) in members.items():
        # After the local header of 30 bytes come name and padding, whose lengths stand in it.
        names = [int.from_bytes(content[offset + at : offset + at + 2], "little") for at in (26, 28)]
        broken = bytearray(content)
        broken[offset + 30 + sum(names) + size // 2] ^= 4
        path.write_bytes(broken)
        assert containers.verify(path) == name
        assert f"{name} is not what was written" in refusal(path)
    path.write_bytes(content[:-30])
    assert containers.verify(path) == "its table of contents"
    # This offset of the table of contents makes that of every member negative.
    content = zipped()
    path.write_bytes(content[:-6] + b"\xff\xff\xff\x7f" + content[-2:])
    assert containers.verify(path) == "its table of contents"
    refusal(path)


def test_files_without_checksums_are_not_judged(tmp_path: Path) -> None:
    files.write_safetensors(tmp_path / "a.safetensors", weights(), {})
    torch.save(weights(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert containers.verify(tmp_path / "a.safetensors") is None and containers.verify(tmp_path / "old.pth") is None


STRANGE: list[tuple[str, Callable[[], Any], str]] = [
    ("int8", lambda: torch.zeros(8, 3, 3, 3, dtype=torch.int8), "int8"),
    ("bool", lambda: torch.zeros(8, 3, 3, 3, dtype=torch.bool), "bool"),
    ("complex64", lambda: torch.zeros(8, 3, 3, 3, dtype=torch.complex64), "complex64"),
    ("float8", lambda: torch.zeros(8, 3, 3, 3).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ("quantized", lambda: torch.quantize_per_tensor(torch.zeros(8, 3, 3, 3), 0.1, 0, torch.qint8), "quantized"),
    ("sparse", lambda: torch.zeros(8, 3).to_sparse(), "sparse"),
    ("csr", lambda: torch.zeros(8, 3).to_sparse_csr(), "sparse"),
    ("meta", lambda: torch.zeros(8, 3, 3, 3, device="meta"), "no values"),
    ("expanded", lambda: torch.zeros(1).expand(10**10), "claim"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "make", "said"), STRANGE, ids=[name for name, *_ in STRANGE])
def test_tensors_that_are_no_weights_are_refused_by_name(
    tmp_path: Path, name: str, make: Callable[[], Tensor], said: str
) -> None:
    path = tmp_path / "a.pth"
    torch.save({"params": weights() | {"conv_first.weight": make()}}, path)
    text = refusal(path)
    assert said in text and (name == "expanded" or "conv_first.weight" in text)


def test_whole_numbers_where_the_network_wants_others_are_refused_by_name() -> None:
    net = torch.nn.Module()
    net.scales = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(MtkdError, match=r"a\.pth cannot be used: scales is int64"):
        loading.load_into(net, {"scales": torch.zeros(3, dtype=torch.int64)}, source="a.pth")


@pytest.mark.parametrize("key", [3, b"w", ("a", "b"), None])
def test_names_that_are_no_text_are_refused(tmp_path: Path, key: Any) -> None:
    torch.save({"params": {key: torch.zeros(2)}}, tmp_path / "a.pth")
    assert "where the name of a tensor should" in refusal(tmp_path / "a.pth")
    torch.save({key: torch.zeros(2)}, tmp_path / "a.pth")
    refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("conv_first.weight", torch.zeros(3)),
        ("layers.0.residual_group.blocks.0.attn.relative_position_bias_table", torch.zeros(())),
        ("layers." + "9" * 5000 + ".residual_group.blocks.0.x", torch.zeros(1)),
    ],
    ids=["flat", "scalar", "digits"],
)
def test_shapes_that_no_network_has_are_told_not_stumbled_over(tmp_path: Path, name: str, tensor: Tensor) -> None:
    torch.save({"params": weights("SwinIR", **SWIN) | {name: tensor}}, tmp_path / "a.pth")
    refusal(tmp_path / "a.pth", build)
    with pytest.raises(MtkdError):
        convert(tmp_path / "a.pth", tmp_path / "out.pth", to="basicsr")


@pytest.mark.parametrize("shape", [(), (2,), (3, 3), (4, 3, 1, 1)], ids=str)
def test_a_mean_shift_of_another_shape_is_told(tmp_path: Path, shape: tuple[int, ...]) -> None:
    from tests.zoo.official import edsr_shapes, filled

    for name in ("sub_mean.weight", "sub_mean.bias"):
        torch.save(filled(edsr_shapes(8, 1, 2)) | {name: torch.zeros(shape)}, tmp_path / "a.pt")
        with pytest.raises(MtkdError, match="shift colours"):
            convert(tmp_path / "a.pt", tmp_path / "out.pth", to="basicsr")


@pytest.mark.parametrize("number", [np.float64(31.2), np.float32(1), np.int64(3), np.bool_(True)], ids=repr)
@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_numbers_of_numpy_beside_the_weights_are_read(tmp_path: Path, number: Any, module: str) -> None:
    path = tmp_path / "a.pth"
    torch.save({"params": weights(), "best_psnr": number}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    # numpy 1 and 2 name the module differently.
    found = next(name for name in (b"numpy._core", b"numpy.core") if name in content)
    path.write_bytes(content.replace(found + b".multiarray", module.encode() + b".multiarray"))
    assert len(read_checkpoint(path).state) == len(weights())


@pytest.mark.parametrize("prefix", ["generator.", "net_g.", "netG.", "model.", "module.net_g.", "model.module."])
def test_prefixes_of_training_programs_are_taken_off(tmp_path: Path, prefix: str) -> None:
    state = weights()
    torch.save({"params": {prefix + key: value for key, value in state.items()}}, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth").state) == list(state)
    net = catalog.get("arch", "EDSR")(**EDSR)
    loading.load_into(net, read_checkpoint(tmp_path / "a.pth").state, source="a.pth")


def test_a_network_that_has_such_a_prefix_itself_still_loads(tmp_path: Path) -> None:
    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(2, 2)

    one, two = Whole(), Whole()
    torch.save({"params": one.state_dict()}, tmp_path / "a.pth")
    loading.load_into(two, read_checkpoint(tmp_path / "a.pth").state, source="a.pth")
    assert torch.equal(one.model.weight, two.model.weight)


def test_the_same_weights_twice_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1), "module.w": torch.zeros(1)}, tmp_path / "a.pth")
    assert "twice" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["~no_such_user_here/x.pth", "x" * 300, "a\0b", "\ud800"])
def test_names_that_no_file_can_have_are_refused(name: str) -> None:
    with pytest.raises(MtkdError, match="There is no"):
        read_checkpoint(Path(name))
    with pytest.raises(MtkdError, match="There is no"):
        build(name)


def test_a_full_disk_while_converting_is_one_paragraph(tmp_path: Path) -> None:
    torch.save({"params": weights(num_feat=64, num_block=4, upscale=2)}, tmp_path / "a.pth")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(MtkdError, match="cannot be written"):
            convert(tmp_path / "a.pth", tmp_path / "out.pth", to="basicsr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
