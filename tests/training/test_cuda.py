"""What the trainer promises on CUDA: exact resuming, batches of the side stream, and ranks on NCCL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd import zoo
from mtkd.config import resolved_yaml
from mtkd.data import store
from mtkd.data.sampling import CropSampler
from mtkd.training.loop import train
from tests.runs import make_images, make_teachers, run_options

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.cuda


def weights(path: Path) -> dict[str, torch.Tensor]:
    read = {key: zoo.read_checkpoint(path, key=key).state for key in ("params", "params_ema")}
    return {f"{key}.{name}": value for key, state in read.items() for name, value in state.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model_type", ["SRModel", "OutputKD", "StructuredKD"])
def test_a_deterministic_run_resumes_exactly(tmp_path: Path, model_type: str, precision: str) -> None:
    settings: dict[str, Any] = {
        "images": make_images(tmp_path / "images"),
        "num_gpu": 1,
        "deterministic": True,
        "precision": precision,
        "model_type": model_type,
    }
    train_section: dict[str, Any] = {}
    if model_type != "SRModel":
        settings["teachers"] = {"edsr": make_teachers(tmp_path / "teachers")["edsr"]}
    if model_type == "StructuredKD":
        if precision == "fp16":
            pytest.skip("one fp16 loss scale cannot serve two optimizers")
        settings["method"] = {"critic_feat": 4}
        train_section = {
            "holistic_opt": {},
            "critic_opt": {},
            "penalty_opt": {},
            "optim_d": {"type": "Adam", "lr": 1e-3},
        }
    straight = train(run_options(tmp_path / "a", **settings, train=train_section))
    train(run_options(tmp_path / "b", **settings, train={**train_section, "total_iter": 4}))
    resumed = train(run_options(tmp_path / "b", **settings, train=train_section), auto_resume=True)
    expected, found = weights(straight), weights(resumed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("residence", ["device", "ram", "disk"])
def test_a_thousand_batches_on_the_side_stream_are_those_of_the_cpu(tmp_path: Path, residence: str) -> None:
    generator = torch.Generator().manual_seed(0)
    stores = {}
    for name, side in (("lq", 40), ("gt", 80)):
        images = [
            torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(6)
        ]
        path = tmp_path / f"{name}.safetensors"
        store.write(path, [str(i) for i in range(6)], images, {})
        stores[name] = store.ImageStore(path)
    common: dict[str, Any] = {
        "scale": 2, "gt_size": 48, "batch_size": 4, "use_hflip": True, "use_rot": True, "seed": 1,
    }  # fmt: skip
    on_gpu = CropSampler(**stores, **common, device="cuda", residence=residence)
    on_cpu = CropSampler(**stores, **common)
    busy = torch.rand(2048, 2048, device="cuda")
    for k, batch in enumerate(on_gpu.batches(0, 1000)):
        if k % 3 == 0:
            # The default stream is late, so that the side stream runs ahead of it.
            busy = (busy @ busy).clamp(0, 1)
        want = on_cpu.batch(k)
        # Used and dropped at once, as a training step does: its memory is the next batch's.
        difference = (batch.gt - want.gt.cuda()).abs().max() + (batch.lq - want.lq.cuda()).abs().max()
        assert difference.item() <= 2e-7, f"batch {k}"


def test_one_rank_on_nccl_trains_as_one_process(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    settings: dict[str, Any] = {"images": images, "num_gpu": 1, "deterministic": True}
    alone = train(run_options(tmp_path / "alone", **settings))
    file = tmp_path / "run.yml"
    file.write_text(resolved_yaml(run_options(tmp_path / "ranks", **settings)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    done = subprocess.run(
        [*command, "-m", "mtkd", "train", "-opt", str(file), "--launcher", "pytorch"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = weights(tmp_path / "ranks/experiments/tiny/models/net_g_latest.pth")
    for name, value in weights(alone).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
