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
from mtkd.archs.edsr import EDSR
from mtkd.config import EvalSetOptions, make_options
from mtkd.contracts import MtkdError
from mtkd.data.paired import PairedImages
from mtkd.engine import report
from mtkd.engine.evaluate import build_metrics, compile_for_images, evaluate, to_image, to_tensor, write_results
from mtkd.engine.train import train
from tests.engine.runs import make_images, run_options
from tests.helpers import photo

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

    monkeypatch.setattr("mtkd.engine.evaluate.compile_networks", compile_networks)
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
        "mtkd.engine.evaluate.compile_networks", lambda networks, trial, **settings: compiled.extend(networks)
    )
    network = {"type": "EDSR", "num_feat": 4, "num_block": 1, "upscale": 2}
    torch.save({"params": small_net().state_dict()}, tmp_path / "net.pth")
    gt = make_images(tmp_path / "gt")
    options = make_options(
        {
            "name": "tiny",
            "scale": 2,
            "num_gpu": 0,
            "datasets": {"test_1": {"name": "p", "type": "PairedImageDataset", "dataroot_gt": str(gt)}},
            "network_g": network,
            "path": {"pretrain_network_g": str(tmp_path / "net.pth"), "results_root": str(tmp_path / "results")},
            "val": {"compile": True, "metrics": METRICS},
        }
    )
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    (row,) = report.test(options)
    assert not torch.backends.cudnn.benchmark, "each size of image would be tried with all algorithms"
    (net,) = compiled
    assert net.conv_after_body.weight.is_contiguous(memory_format=torch.channels_last)
    direct = evaluate(small_net(), PairedImages(dataroot_gt=gt, scale=2), build_metrics(METRICS), dataset="p")
    assert row.values["psnr"] == pytest.approx(direct.values["psnr"], abs=1e-4)


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
