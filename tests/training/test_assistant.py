"""A chain of runs, large -> middle -> small: the commands of docs/methods.md, at the demo's scale."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mtkd import catalog, zoo
from mtkd.cli import main, parser
from mtkd.config import load_options
from mtkd.data.sampling import CropSampler
from mtkd.data.training import open_training_set
from mtkd.runtime.shipped import photographs
from mtkd.variants import variant

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^mtkd (train .*assist.*)$", PAGE, flags=re.MULTILINE)
MIDDLE = "{type: EDSR, num_feat: 24, num_block: 5}"


def test_the_commands_of_the_page_make_a_chain() -> None:
    first, second = (parser().parse_args(shlex.split(line)) for line in COMMANDS)
    middle = load_options(first.opt, scale=4, force=first.force_yml)
    small = load_options(second.opt, scale=4, force=[*second.force_yml, f"network_g={second.student}"])
    assert middle.teachers["teacher"].pretrain == "zoo:edsr_l_x4" and middle.network_g.args["num_feat"] == 128
    assert small.teachers["teacher"].pretrain == f"experiments/{middle.name}/models/net_g_latest.pth"
    sizes = []
    for network in (zoo.entry("edsr_l_x4"), middle.network_g, small.network_g):
        with torch.device("meta"):
            kind = network.arch if isinstance(network, zoo.Entry) else network.type
            sizes.append(sum(p.numel() for p in catalog.get("arch", kind)(**network.args).parameters()))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["OutputKD/kd", "FAKD/fakd"])
def test_a_chain_of_runs(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    images = {"dataroot_gt": str(photographs()), "meta_info_file": str(ROOT / "datasets/demo/train_photographs.txt")}
    common = [
        f"datasets={{train: {{name: p, type: PairedImageDataset, dataroot_gt: '{images['dataroot_gt']}', "
        f"meta_info_file: '{images['meta_info_file']}', gt_size: 32, batch_size_per_gpu: 2}}}}",
        "val=~", "num_gpu=0", "train:total_iter=3",
        "logger={print_freq: 1, save_checkpoint_freq: 3}",
    ]  # fmt: skip

    def run(name: str, teacher: str, network: str) -> Path:
        force = [*common, f"name={name}", f"teachers:teacher={teacher}", f"network_g={network}"]
        assert main(["train", "-opt", f"recipe:{recipe}", "--scale", "2", "--force_yml", *force]) == 0
        return tmp_path / "experiments" / name

    large = ROOT / "datasets/demo/teachers/edsr_x2.safetensors"
    assistant = run("assistant", f"{{network: edsr_demo, pretrain: '{large}'}}", MIDDLE)
    # Its weights say which network they are.
    student = run("assisted", str(Path("experiments/assistant/models/net_g_latest.pth")), "edsr_tiny")

    data = open_training_set(images, scale=2, cache_dir=tmp_path / "cache")
    batch = CropSampler(
        lq=data.lq, gt=data.gt, scale=2, gt_size=32, batch_size=2, use_hflip=True, use_rot=True, seed=10
    ).batch(0)
    network = variant("edsr_tiny")
    torch.manual_seed(10)
    fresh = catalog.get("arch", network.pop("type"))(upscale=2, **network)
    middle = zoo.build(str(assistant / "models/net_g_latest.pth"))
    with torch.no_grad():
        expected = F.l1_loss(fresh(batch.lq), middle(batch.lq)).item()
    first = json.loads((student / "metrics.jsonl").read_text().splitlines()[0])
    assert first["losses"]["target"] == pytest.approx(expected, rel=1e-4)
