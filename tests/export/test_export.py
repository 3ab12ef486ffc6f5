"""Exported files hold what torch computes, by their own runtimes, and say what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtkd import __version__, catalog, zoo
from mtkd.contracts import MtkdError
from mtkd.export import Exporter, export
from mtkd.export.ncnn_file import named
from mtkd.runtime.files import sha256

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ARGUMENTS = {"num_feat": 8, "num_conv": 1, "upscale": 2, "expand": 12}
SIZES = [(1, 9, 14), (3, 16, 7), (2, 1, 1)]
"""Batch, height and width, none of which the export has seen."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def net(folder: Path) -> nn.Module:
    torch.manual_seed(0)
    net = catalog.get("arch", "PlainSR")(**ARGUMENTS)
    net.tail.weight.data += 0.05 * torch.randn_like(net.tail.weight)
    file = folder / "trained.safetensors"
    zoo.write_safetensors(
        file, net.state_dict(), {"arch": {"type": "PlainSR", "args": ARGUMENTS}, "scale": 2, "licence": "CC0-1.0"}
    )
    return zoo.build(file)


@pytest.fixture(scope="module")
def exporter(net: nn.Module) -> Exporter:
    return Exporter(net)


@pytest.fixture(scope="module")
def onnx_file(exporter: Exporter, folder: Path) -> Path:
    return exporter.write(folder / "student.onnx").path


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def photo_like(n: int, h: int, w: int) -> Tensor:
    """Smooth, so that 8 bits have something to lose."""
    y, x = torch.linspace(0, 3, h)[:, None], torch.linspace(0, 4, w)
    image = torch.stack([torch.sin(x + y), torch.cos(x * y), torch.sin(y - 2 * x)]) / 2 + 0.5
    return image[None].repeat(n, 1, 1, 1)


@torch.no_grad()
def test_onnx_computes_what_torch_does_in_any_batch_and_size(onnx_file: Path, net: nn.Module) -> None:
    ran = session(onnx_file)
    for n, h, w in SIZES:
        x = torch.rand(n, 3, h, w)
        (found,) = ran.run(None, {"input": x.numpy()})
        np.testing.assert_allclose(found, net(x).numpy(), rtol=0, atol=2e-6)


def test_an_onnx_file_says_what_it_is_and_nothing_of_the_machine(onnx_file: Path, folder: Path) -> None:
    model = onnx.load(onnx_file)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["arch"]) == {"type": "PlainSR", "args": {**ARGUMENTS, "expand": 0}}
    assert (said["scale"], said["licence"], said["mtkd_version"]) == ("2", "CC0-1.0", __version__)
    assert said["weights_sha256"] == sha256(folder / "trained.safetensors")
    assert said["precision"] == "fp32" and int(said["opset"]) == model.opset_import[0].version
    sides = [side.dim_param or side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "height", "width"]
    content = onnx_file.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content and b".py" not in content


def test_folded_weights_are_no_more_than_one_kernel_a_layer(onnx_file: Path) -> None:
    shapes = [tuple(tensor.dims) for tensor in onnx.load(onnx_file).graph.initializer if len(tensor.dims) == 4]
    assert sorted(shapes) == [(4, 8, 3, 3), (8, 3, 3, 3), (8, 8, 3, 3), (12, 1, 5, 5)]


@torch.no_grad()
def test_fp16_keeps_images_in_float32_and_weights_in_half(exporter: Exporter, net: nn.Module, folder: Path) -> None:
    done = exporter.write(folder / "half.onnx", precision="fp16")
    model = onnx.load(done.path)
    kernels = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert kernels == {onnx.TensorProto.FLOAT16}
    x = photo_like(2, 21, 17)
    (found,) = session(done.path).run(None, {"input": x.numpy()})
    assert found.dtype == np.float32
    error = np.abs(found - net(x).numpy()).max()
    assert 0 < error < 4e-3  # a few steps of 2**-10
    assert done.psnr > 60 and done.cost is not None and abs(done.cost) < 0.05


@torch.no_grad()
def test_int8_is_in_8_bits_where_it_learned_and_costs_little(exporter: Exporter, net: nn.Module, folder: Path) -> None:
    done = exporter.write(folder / "int8.onnx", precision="int8")
    graph = onnx.load(done.path).graph
    kinds = {tuple(tensor.dims): tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}
    # The bicubic kernels are not learned and stay exact.
    assert kinds.pop((12, 1, 5, 5)) == onnx.TensorProto.FLOAT
    assert set(kinds.values()) == {onnx.TensorProto.INT8}
    scales = [tuple(tensor.dims) for tensor in graph.initializer if tensor.name.endswith("weight_scale")]
    assert sorted(scales) == [(4,), (8,), (8,)]  # one per output channel
    x = photo_like(1, 40, 56)
    (found,) = session(done.path).run(None, {"input": x.numpy()})
    noise = np.square(found - net(x).numpy()).mean()
    assert 1e-9 < noise < 1e-4  # above 40 dB, and not float32 under another name
    assert done.photos == 2 and done.cost is not None and -0.1 < done.cost < 0.5
    assert "PSNR-Y on 2 photos" in str(done)


@torch.no_grad()
def test_ncnn_has_the_names_that_other_programs_look_for(exporter: Exporter, net: nn.Module, folder: Path) -> None:
    ncnn = pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    done = exporter.write(folder / "student.param")
    assert [file.name for file in done.files] == ["student-x2.param", "student-x2.bin"]
    ran = ncnn.Net()
    ran.opt.use_fp16_storage = ran.opt.use_fp16_packed = ran.opt.use_fp16_arithmetic = False
    assert ran.load_param(str(done.files[0])) == ran.load_model(str(done.files[1])) == 0
    for _, h, w in SIZES[:2]:
        x = np.random.default_rng(0).random((3, h, w), dtype=np.float32)
        extractor = ran.create_extractor()
        extractor.input("data", ncnn.Mat(x).clone())  # clone: rows of ncnn are aligned
        code, found = extractor.extract("output")
        assert code == 0
        np.testing.assert_allclose(np.array(found), net(torch.from_numpy(x)[None])[0].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "found"), [("a", "a-x4"), ("4xa", "4xa"), ("a-x4.param", "a-x4")])
def test_a_name_for_ncnn_says_the_scale(name: str, found: str) -> None:
    assert named(Path(name), 4) == Path(f"{found}.param")


def test_a_name_that_says_another_scale_is_refused() -> None:
    with pytest.raises(MtkdError, match="x2, by its name, and it is one of x4"):
        named(Path("student_x2.param"), 4)


@torch.no_grad()
def test_a_program_of_torch_export_takes_any_size_and_says_what_it_is(
    exporter: Exporter, net: nn.Module, folder: Path
) -> None:
    done = exporter.write(folder / "student.pt2")
    extra = {"mtkd.json": ""}
    program = torch.export.load(done.path, extra_files=extra).module()
    for n, h, w in SIZES[:2]:
        x = torch.rand(n, 3, h, w)
        torch.testing.assert_close(program(x), net(x), rtol=0, atol=2e-6)
    assert json.loads(extra["mtkd.json"])["scale"] == "2"


@torch.no_grad()
def test_safetensors_are_read_back_as_the_folded_network(exporter: Exporter, net: nn.Module, folder: Path) -> None:
    done = exporter.write(folder / "student.safetensors")
    again = zoo.build(done.path)
    x = torch.rand(1, 3, 13, 11)
    torch.testing.assert_close(again(x), net(x), rtol=0, atol=2e-6)
    assert zoo.describe(str(done.path)).args["expand"] == 0
    facts = zoo.read_checkpoint(done.path).facts
    assert facts["licence"] == "CC0-1.0" and facts["weights_sha256"] == sha256(folder / "trained.safetensors")


class DiffersAtOneSize(nn.Module):
    """What a tracer records of it is wrong for images 71 pixels wide, one of those that are tried."""

    scale = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (2 if x.shape[-1] == 71 else 1)


def test_a_file_that_computes_something_else_is_not_left_under_its_name(tmp_path: Path) -> None:
    pytest.importorskip("pnnx")
    (tmp_path / "net-x1.bin").write_bytes(b"of the user")
    with pytest.raises(MtkdError, match="refused: it differs from torch by .*, the limit is 0.0001"):
        export(DiffersAtOneSize(), tmp_path / "net-x1.param", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["net-x1.bin"]
    assert (tmp_path / "net-x1.bin").read_bytes() == b"of the user"


def test_what_exists_is_kept_unless_it_may_be_replaced(exporter: Exporter, tmp_path: Path) -> None:
    there = tmp_path / "a.safetensors"
    there.write_bytes(b"of the user")
    with pytest.raises(MtkdError, match="a.safetensors exists.*--overwrite"):
        exporter.write(there)
    assert there.read_bytes() == b"of the user"
    exporter.write(there, overwrite=True)
    assert zoo.build(there).scale == 2


def test_the_network_that_is_exported_stays_as_it_is(net: nn.Module) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    exported = Exporter(net)
    exported.subject.net.requires_grad_(True).double()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert before.keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    ("out", "options", "text"),
    [
        ("a.pth", {}, "suffix of no format: .onnx, .param, .pt2, .safetensors"),
        ("a.onnx", {"format": "caffe"}, "No format is called 'caffe'"),
        ("a.param", {"precision": "int8"}, "ncnn files are written in fp32, fp16, not in int8"),
        ("a.onnx", {"photos": "nowhere"}, "nowhere is not a folder to read"),
    ],
)
def test_what_cannot_be_written_is_refused(
    net: nn.Module, tmp_path: Path, out: str, options: dict[str, str], text: str
) -> None:
    with pytest.raises(MtkdError, match=text):
        export(net, tmp_path / out, **options)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_say_what_they_are_make_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match="do not carry one. `mtkd zoo convert IN OUT --to safetensors --arch TYPE`"):
        export(DiffersAtOneSize(), tmp_path / "a.safetensors")


SWIN = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4, "mlp_ratio": 2.0}


@pytest.mark.slow
@torch.no_grad()
def test_swinir_is_exact_at_odd_sizes_in_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = catalog.get("arch", "SwinIR")(**SWIN, img_size=16, upscale=2, upsampler="pixelshuffledirect").eval()
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    path = export(net, tmp_path / "swinir.onnx").path
    ran = session(path)
    for n, h, w in [(1, 17, 9), (2, 23, 31), (1, 3, 2), (1, 16, 24)]:
        x = torch.rand(n, 3, h, w)
        (found,) = ran.run(None, {"input": x.numpy()})
        np.testing.assert_allclose(found, net(x).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("out", "text"), [("a.param", "to ncnn: it attends"), ("a.pt2", "torch.export with free")])
def test_windows_are_refused_where_a_format_cannot_say_them(tmp_path: Path, out: str, text: str) -> None:
    net = catalog.get("arch", "SwinIR")(**SWIN, img_size=16, upscale=2, upsampler="pixelshuffledirect")
    with pytest.raises(MtkdError, match=f"SwinIR cannot be exported.*{text}.*Export it to ONNX"):
        export(net, tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_a_fusion_network_takes_the_images_of_its_teachers(tmp_path: Path) -> None:
    net = catalog.get("arch", "DCTSwin")(**SWIN, upscale=2, num_teachers=2)
    exporter = Exporter(net, facts={"arch": {"type": "DCTSwin", "args": {**SWIN, "upscale": 2, "num_teachers": 2}}})
    assert (exporter.subject.channels, exporter.subject.factor) == (6, 1)
    with pytest.raises(MtkdError, match="int8 is calibrated on photos alone"):
        exporter.write(tmp_path / "fusion.onnx", precision="int8")
    assert zoo.build(exporter.write(tmp_path / "fusion.safetensors").path).num_teachers == 2
