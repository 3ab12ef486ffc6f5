"""Numbers of tables, against BasicSR, and how images come and go."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.build import output_network
from mtkd.config import EvalSetOptions, Options, make_options
from mtkd.contracts import MtkdError
from mtkd.data.images import write_image
from mtkd.data.paired import PairedImages
from mtkd.inference import measure, results
from mtkd.inference.evaluate import Evaluation, build_metrics, compile_for_images, evaluate
from mtkd.inference.results import write_results
from mtkd.inference.run_test import run_test
from mtkd.inference.upscale import upscale
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.training.loop import train
from tests.helpers import photo
from tests.runs import STUDENT, make_images, run_options

METRICS = {
    "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True},
    "ssim": {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True},
}


def small_net() -> EDSR:
    torch.manual_seed(0)
    return EDSR(num_feat=4, num_block=1, upscale=2).eval()


def test_evaluation_equals_basicsrs_numbers(tmp_path: Path) -> None:
    from basicsr.metrics import calculate_psnr, calculate_ssim
    from basicsr.utils import tensor2img

    images = PairedImages(dataroot_gt=make_images(tmp_path / "gt"), scale=2)

    def predict(lq: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(lq, scale_factor=2, mode="bicubic")

    result = evaluate(predict, images, build_metrics(METRICS), dataset="photos")
    for position in range(len(images)):
        image = images[position]
        theirs = tensor2img(predict(to_tensor(image.lq)))
        gt = image.gt[:, :, ::-1]
        psnr = calculate_psnr(theirs, gt, crop_border=2, test_y_channel=True)
        ssim = calculate_ssim(theirs, gt, crop_border=2, test_y_channel=True)
        assert result.values["psnr"][position] == pytest.approx(psnr, abs=1e-4)
        assert result.values["ssim"][position] == pytest.approx(ssim, abs=1e-6)
    assert result.images == tuple(images.names)


def test_wrong_scale_and_broken_output_name_the_image(tmp_path: Path) -> None:
    images = PairedImages(dataroot_gt=make_images(tmp_path / "gt"), scale=2)
    with pytest.raises(MtkdError, match="photos/astronaut"):
        evaluate(lambda lq: lq, images, build_metrics(METRICS), dataset="photos")
    for value in ("nan", "inf"):
        with pytest.raises(MtkdError, match="astronaut: the network's output is not finite"):
            evaluate(
                lambda lq, value=value: torch.full((1, 3, lq.shape[2] * 2, lq.shape[3] * 2), float(value)),
                images,
                build_metrics(METRICS),
                dataset="photos",
            )


def test_results_are_written_per_image_and_as_means(tmp_path: Path) -> None:
    images = PairedImages(dataroot_gt=make_images(tmp_path / "gt"), scale=2)
    result = evaluate(small_net(), images, build_metrics(METRICS), dataset="photos")
    write_results(tmp_path / "out", [("edsr", result)], {"command": "c"})
    with (tmp_path / "out/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == list(images.names)
    saved = json.loads((tmp_path / "out/metrics.json").read_text())
    assert saved["command"] == "c"
    assert saved["results"][0]["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]))


def test_what_json_has_no_number_for_is_text(tmp_path: Path) -> None:
    result = Evaluation("black", ("a", "b"), {"psnr": (float("inf"), 30.0), "odd": (float("nan"), float("-inf"))})
    write_results(tmp_path, [("edsr", result)], {"entry": "params", "iteration": 3, "gmacs": float("inf")})

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    saved = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert saved["results"] == [{"network": "edsr", "dataset": "black", "psnr": "inf", "odd": "nan"}]
    assert saved["gmacs"] == "inf"
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1] == "edsr,params,3,black,a,inf,nan"


def test_a_network_that_fails_on_an_image_names_it(tmp_path: Path) -> None:
    write_image(tmp_path / "boat.png", photo("rocket", (32, 40)))

    def predict(lq: torch.Tensor) -> torch.Tensor:
        raise IndexError("there is no seventh channel")

    wanted = r"^Set/boat: the network failed on lq of 16x20 pixels: IndexError: there is no seventh channel\.$"
    with pytest.raises(MtkdError, match=wanted):
        evaluate(predict, PairedImages(dataroot_gt=tmp_path, scale=2), {}, dataset="Set")


def test_a_metric_that_refuses_an_image_names_it(tmp_path: Path) -> None:
    write_image(tmp_path / "gt/large.png", photo("coffee", (40, 40)))
    write_image(tmp_path / "gt/small.png", photo("coffee", (12, 12)))
    images = PairedImages(dataroot_gt=tmp_path / "gt", scale=2)
    with pytest.raises(MtkdError, match="photos/small: SSIM needs 11x11 pixels or more"):
        evaluate(small_net(), images, build_metrics(METRICS), dataset="photos")


def test_validation_test_and_upscale_run_the_same_network_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "gt")
    given_set = {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)}
    options = run_options(
        tmp_path,
        train={"ema_decay": 0.99, "optim_g": {"type": "Adam", "lr": 1e-2}},
        val={"val_freq": 8, "metrics": METRICS},
    )
    sets = {"evaluation": {"val": EvalSetOptions(**given_set)}}
    train(options.model_copy(update={"datasets": options.datasets.model_copy(update=sets)}))
    rows = map(json.loads, (tmp_path / "experiments/tiny/metrics.jsonl").read_text().splitlines())
    row = next(row for row in rows if "validation" in row)
    validated = row["metrics"]["psnr"]
    assert row["entry"] == "params_ema"
    assert "Validation v @ 8 iter (params_ema)" in capsys.readouterr().out
    weights = tmp_path / "experiments/tiny/models/net_g_latest.pth"
    capsys.readouterr()

    def measured(**changes: Any) -> tuple[float, dict[str, Any]]:
        given = {
            "name": "measured",
            "scale": 2,
            "num_gpu": 0,
            "datasets": {"test_1": given_set},
            "network_g": dict(STUDENT),
            "path": {"pretrain_network_g": str(weights), "results_root": str(tmp_path / "results"), **changes},
            "val": {"metrics": METRICS},
        }
        options = make_options(given)
        ((_, result),) = run_test(options)
        newest = max((tmp_path / "results").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
        lines = (newest / "metrics.csv").read_text().splitlines()
        facts = json.loads((newest / "metrics.json").read_text())
        assert lines[0].startswith("network,entry,iteration,dataset")
        assert lines[1].startswith(f"measured,{facts['entry']},{facts['iteration']},v,")
        upscale(output_network(options), images, newest / "out")
        return result.means()["psnr"], facts

    average, facts = measured()
    assert (facts["entry"], facts["iteration"]) == ("params_ema", 8) and average == validated
    said = capsys.readouterr().out
    assert said.count(f"Weights: params_ema of {weights}, iteration 8") == 2
    trained, facts = measured(param_key_g="params")
    assert (facts["entry"], facts["iteration"]) == ("params", 8) and trained != average
    assert f"params of {weights}, iteration 8 (it has params_ema too)" in capsys.readouterr().out
    again, facts = measured(pretrain_network_g=str(weights.with_name("net_g_8.pth")))
    assert again == average and facts["iteration"] == 8

    net = zoo.build(weights)
    assert str(net.origin) == f"params_ema of {weights}, iteration 8"
    result = evaluate(net, PairedImages(dataroot_gt=images, scale=2), build_metrics(METRICS), dataset="v")
    assert result.means()["psnr"] == average
    upscale(net, images, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "results/measured/out" / path.name).read_bytes()


class Plain:
    """Images that nobody may read ahead."""

    def __init__(self, images: PairedImages) -> None:
        self.set = images

    def __len__(self) -> int:
        return len(self.set)

    def __getitem__(self, index: int) -> Any:
        assert threading.current_thread() is threading.main_thread()
        return self.set[index]


def test_reading_ahead_changes_no_number_and_no_order(tmp_path: Path) -> None:
    images = PairedImages(dataroot_gt=make_images(tmp_path / "gt"), scale=2)
    net = small_net()
    results, saved = [], []
    for image_set in (images, Plain(images)):
        shots: list[tuple[str, np.ndarray]] = []
        results.append(
            evaluate(
                net,
                image_set,
                build_metrics(METRICS),
                dataset="photos",
                save=lambda name, image, shots=shots: shots.append((name, image)),
            )
        )
        saved.append(shots)
    assert results[0] == results[1]
    assert [name for name, _ in saved[0]] == list(images.names)
    for index, (one, other) in enumerate(zip(*saved, strict=True)):
        assert one[0] == other[0] and np.array_equal(one[1], other[1])
        with torch.no_grad():
            assert np.array_equal(one[1], to_image(net(to_tensor(images[index].lq))))


def test_a_save_that_fails_ends_the_evaluation(tmp_path: Path) -> None:
    images = PairedImages(dataroot_gt=make_images(tmp_path / "gt"), scale=2)

    def save(name: str, image: np.ndarray) -> None:
        raise MtkdError(f"no room for {name}")

    with pytest.raises(MtkdError, match="no room for astronaut"):
        evaluate(small_net(), images, {}, dataset="photos", save=save)


def test_images_too_large_for_the_device_ask_for_tiles(tmp_path: Path) -> None:
    images = PairedImages(dataroot_gt=make_images(tmp_path / "gt"), scale=2)

    def predict(lq: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.")

    with pytest.raises(MtkdError, match="photos/astronaut.*80 GiB.*val.tile"):
        evaluate(predict, images, build_metrics(METRICS), dataset="photos")


def test_images_lie_as_channels_last() -> None:
    lq = to_tensor(photo("coffee", (6, 9)))
    assert lq.shape == (1, 3, 6, 9) and lq.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(to_image(lq), photo("coffee", (6, 9)))


def test_a_network_that_cannot_be_compiled_runs_uncompiled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uncompilable(torch.nn.Module):
        def compile(self, **settings: Any) -> None:
            assert settings["dynamic"] is True
            raise RuntimeError("no compiler found")

        def forward(self, lq: torch.Tensor) -> torch.Tensor:
            return lq

    said: list[str] = []
    net = Uncompilable()
    compile_for_images(net, "cpu", nullcontext, said.append)
    assert len(said) == 1 and "no compiler found" in said[0]
    assert net(torch.ones(1)) == 1


@pytest.mark.parametrize(("ema_decay", "works"), [(0.0, True), (0.9, True), (0.9, False)])
def test_validation_compiles_its_network_once_and_not_the_one_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float, works: bool
) -> None:
    compiled: list[torch.nn.Module] = []

    def compile_networks(networks: list[torch.nn.Module], trial: Callable[[], object], **settings: Any) -> bool:
        trial()
        compiled.extend(networks)
        for net in networks:

            def run(lq: torch.Tensor, net: torch.nn.Module = net) -> torch.Tensor:
                assert not torch.is_grad_enabled(), "training runs in what was compiled for validation"
                return net._call_impl(lq)

            net._compiled_call_impl = run if works else None
        return works

    monkeypatch.setattr("mtkd.inference.evaluate.compile_networks", compile_networks)
    gt = make_images(tmp_path / "gt")
    options = run_options(
        tmp_path,
        train={"total_iter": 4, "ema_decay": ema_decay},
        val={"val_freq": 2, "compile": True, "metrics": METRICS},
    )
    options = options.model_copy(
        update={
            "datasets": options.datasets.model_copy(
                update={"evaluation": {"val": EvalSetOptions(name="p", type="PairedImageDataset", dataroot_gt=str(gt))}}
            )
        }
    )
    weights = torch.load(train(options))
    assert [type(net) for net in compiled] == [EDSR]
    last = weights["params_ema" if ema_decay else "params"]
    assert all(torch.equal(value, last[name]) for name, value in compiled[0].state_dict().items())


def test_testing_runs_the_network_in_channels_last_and_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(
        "mtkd.inference.evaluate.compile_networks", lambda networks, trial, **settings: compiled.extend(networks)
    )
    options = plain_test(tmp_path)
    options = options.model_copy(update={"val": options.val.model_copy(update={"compile": True})})
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    ((_, row),) = run_test(options)
    assert not torch.backends.cudnn.benchmark, "each size of image would be tried with all algorithms"
    (net,) = compiled
    assert net.conv_after_body.weight.is_contiguous(memory_format=torch.channels_last)
    images = PairedImages(dataroot_gt=tmp_path / "gt", scale=2)
    direct = evaluate(small_net(), images, build_metrics(METRICS), dataset="p")
    assert row.values["psnr"] == pytest.approx(direct.values["psnr"], abs=1e-4)


def plain_test(tmp_path: Path, **path: str) -> Options:
    torch.save({"params": small_net().state_dict()}, tmp_path / "net.pth")
    gt = tmp_path / "gt"
    if not gt.exists():
        make_images(gt)
    return make_options(
        {
            "name": "tiny",
            "scale": 2,
            "num_gpu": 0,
            "datasets": {"test_1": {"name": "p", "type": "PairedImageDataset", "dataroot_gt": str(gt)}},
            "network_g": {"type": "EDSR", "num_feat": 4, "num_block": 1, "upscale": 2},
            "path": {
                "pretrain_network_g": str(tmp_path / "net.pth"),
                "results_root": str(tmp_path / "results"),
                **path,
            },
            "val": {"metrics": METRICS},
        }
    )


@pytest.mark.parametrize("root", ["a_file", "/proc/x", "x" * 300, "full"])
def test_a_results_folder_that_takes_no_file_is_found_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    (tmp_path / "a_file").touch()
    options = plain_test(tmp_path)
    path = options.path.model_copy(update={"results_root": str(tmp_path / root)})
    options = options.model_copy(update={"path": path})
    monkeypatch.setattr(measure, "evaluate", None)
    if root == "full":

        def refuse(file: Path, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(MtkdError, match="results folder .* cannot be made: |No space left on device. Make room"):
        run_test(options)
    assert not (tmp_path / root / "tiny").exists() if root == "full" else True


def test_numbers_that_cannot_be_written_are_printed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = plain_test(tmp_path)

    def refuse(path: Path, data: bytes) -> None:
        raise MtkdError(f"{path} cannot be written: No space left on device.")

    monkeypatch.setattr("mtkd.inference.results.write_bytes", refuse)
    with pytest.raises(MtkdError, match="metrics.csv cannot be written: No space left"):
        run_test(options)
    direct = evaluate(
        small_net(), PairedImages(dataroot_gt=tmp_path / "gt", scale=2), build_metrics(METRICS), dataset=""
    )
    assert f"{direct.means()['psnr']:.4f}" in capsys.readouterr().out


def test_multiply_adds_that_cannot_be_counted_cost_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(net: torch.nn.Module, **_: object) -> None:
        raise ValueError("images of 64 pixels only")

    monkeypatch.setattr(results, "complexity", refuse)
    run_test(plain_test(tmp_path))
    said = capsys.readouterr().out
    assert "cannot be counted: ValueError: images of 64 pixels only" in said and "parameters)" in said
    assert json.loads((tmp_path / "results/tiny/metrics.json").read_text())["gmacs_1280x720"] is None


def test_a_test_that_fails_leaves_no_empty_folder(tmp_path: Path) -> None:
    options = plain_test(tmp_path)
    broken = tmp_path / "gt/rocket.png"
    broken.write_bytes(broken.read_bytes()[:-500])
    with pytest.raises(MtkdError, match="rocket.png"):
        run_test(options)
    assert list((tmp_path / "results").iterdir()) == []


def test_a_metric_that_refuses_an_image_is_found_before_any_network_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = plain_test(tmp_path)
    write_image(tmp_path / "gt/small.png", photo("coffee", (12, 12)))
    monkeypatch.setattr(EDSR, "forward", None)
    with pytest.raises(MtkdError, match="Metric ssim, on p, image small .*: SSIM needs"):
        run_test(options)
    assert not (tmp_path / "results").exists()


@pytest.mark.cuda
def test_evaluation_on_a_gpu_equals_the_cpus(tmp_path: Path) -> None:
    images = PairedImages(dataroot_gt=make_images(tmp_path / "gt"), scale=2)
    shots: list[dict[str, np.ndarray]] = [{}, {}]
    net = small_net()
    results = [
        evaluate(net.to(device), images, build_metrics(METRICS), dataset="p", device=device, save=shot.__setitem__)
        for device, shot in zip(("cpu", "cuda"), shots, strict=True)
    ]
    for metric in METRICS:
        assert results[1].values[metric] == pytest.approx(results[0].values[metric], abs=1e-3)
    for name in images.names:
        assert np.abs(shots[0][name].astype(int) - shots[1][name].astype(int)).max() <= 1
