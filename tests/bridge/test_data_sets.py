"""Data sets from outside: BasicSR's registry and a class named by its path train, resume and validate here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd.build import open_training_images
from mtkd.config import ItemTrainSetOptions, OptionError, load_options, resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.data.foreign import ForeignImages, ForeignItems, ForeignSampler
from mtkd.data.paired import PairedImages
from mtkd.data.resize import bicubic_lq
from mtkd.training.check import check_data
from mtkd.training.loop import train
from tests.runs import make_images, run_options

pytestmark = pytest.mark.slow

TOY = "tests.bridge.test_data_sets:Toy"


class Toy:
    """Noise drawn from all three global generators in training, fixed images else."""

    def __init__(self, opt: dict[str, Any]) -> None:
        # As BasicSR's own classes do.
        opt["io_backend"].pop("type")
        self.opt = opt
        self.wrong = opt.get("wrong")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        side = self.opt["crop"] if self.opt["phase"] == "train" else 20
        if self.opt["phase"] == "train":
            values = np.full((side, side, 3), random.random()) * np.random.rand(side, side, 3)
            gt = (torch.from_numpy(values).permute(2, 0, 1) + torch.rand(3, side, side)).float() / 2
        else:
            gt = torch.from_numpy(np.random.default_rng(index).random((3, side, side))).float()
        lq = gt[:, :: self.opt["scale"], :: self.opt["scale"]]
        if self.wrong == "bytes":
            lq = (lq * 255).byte()
        if self.wrong == "range":
            gt = gt * 255
        if self.wrong == "missing":
            return {"lq": lq}
        if self.wrong == "sizes" and index % 2:
            gt, lq = gt[:, 4:], lq[:, 2:]
        return {"lq": lq, "gt": gt, "lq_path": f"x/{index}.png", "gt_path": f"y/im{index}.png"}


def toy(**changes: Any) -> dict[str, Any]:
    return {"name": "toy", "type": TOY, "io_backend": {"type": "disk"}, "crop": 16, **changes}


def sets(workers: int = 0, **changes: Any) -> dict[str, Any]:
    training = {"batch_size_per_gpu": 2, "num_worker_per_gpu": workers}
    return {"train": toy(**training, **changes), "val": toy(**changes)}


VAL = {"val_freq": 4, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))


def weights(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)["params_ema"]


def test_a_class_of_ones_own_trains_validates_and_resumes_bit_exactly(tmp_path: Path) -> None:
    settings = {"images": tmp_path, "datasets": sets(), "val": VAL}
    straight = weights(train(run_options(tmp_path / "a", **settings, train={"total_iter": 4})))
    train(run_options(tmp_path / "b", **settings, train={"total_iter": 2}))
    resumed = weights(train(run_options(tmp_path / "b", **settings, train={"total_iter": 4}), auto_resume=True))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    rows = [json.loads(line) for line in (tmp_path / "a/experiments/tiny/metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(rows[-1]["metrics"]["psnr"])


def test_workers_give_the_same_batches_and_leave_the_generators_alone() -> None:
    items = ForeignItems(Toy, toy(), phase="train", scale=2, seed=7)
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # pyright: ignore
    alone = list(ForeignSampler(items, batch_size=2).batches(1, 6))
    helped = list(ForeignSampler(items, batch_size=2, workers=2).batches(1, 6))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # pyright: ignore
    assert len(alone) == len(helped) == 5
    for k, (one, two) in enumerate(zip(alone, helped, strict=True), start=1):
        direct = ForeignSampler(items, batch_size=2).batch(k)
        for part in ("lq", "gt", "index"):
            assert torch.equal(getattr(one, part), getattr(two, part))
            assert torch.equal(getattr(one, part), getattr(direct, part))


def test_ranks_share_a_pass_and_every_image_is_visited_once() -> None:
    items = ForeignItems(Toy, toy(), phase="train", scale=2)
    ranks = [ForeignSampler(items, batch_size=1, rank=rank, world_size=5) for rank in range(5)]
    for k in range(3):
        assert sorted(int(sampler.batch(k).index) for sampler in ranks) == [0, 1, 2, 3, 4]
    assert not torch.equal(ranks[0].batch(0).gt, ranks[1].batch(0).gt)
    assert len(ranks[0]) == 5


def test_a_class_in_basicsrs_registry_is_named_as_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from basicsr.utils.registry import DATASET_REGISTRY

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "RegisteredToy", Toy)
    options = run_options(tmp_path, images=tmp_path, datasets=sets(type="RegisteredToy"), val=VAL)
    assert isinstance(options.datasets.train, ItemTrainSetOptions)
    assert check_data(options) == []
    (tmp_path / "resolved.yml").write_text(resolved_yaml(options))
    assert load_options(tmp_path / "resolved.yml").model_dump() == options.model_dump()


def test_basicsrs_own_class_gives_the_images_of_ours(tmp_path: Path) -> None:
    from basicsr.data.paired_image_dataset import PairedImageDataset

    from mtkd.data.images import read_image, write_image

    images = make_images(tmp_path / "gt")
    for path in images.iterdir():
        write_image(tmp_path / "lq" / path.name, bicubic_lq(read_image(path), 2))
    roots = {"dataroot_gt": str(images), "dataroot_lq": str(tmp_path / "lq")}
    given = {"name": "p", "type": "PairedImageDataset", "io_backend": {"type": "disk"}, **roots}
    theirs = ForeignImages(ForeignItems(PairedImageDataset, given, phase="val", scale=2))
    ours = PairedImages(**roots, scale=2)
    for one in theirs:
        two = ours[ours.names.index(one.name)]
        assert np.array_equal(one.lq, two.lq) and np.array_equal(one.gt, two.gt)
    assert len(theirs) == len(ours)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("bytes", "'lq' is a float"), ("missing", "'gt' is a float"), ("range", "gt values outside")],
)
def test_items_that_break_the_contract_are_found_before_the_first_iteration(
    tmp_path: Path, wrong: str, words: str
) -> None:
    options = run_options(tmp_path, images=tmp_path, datasets=sets(wrong=wrong), val=VAL)
    with pytest.raises(MtkdError, match=words):
        train(options)
    assert not (tmp_path / "experiments").exists()
    assert [problem.key for problem in check_data(options)] == ["datasets.train", "datasets.val"]


@pytest.mark.parametrize("workers", [0, 1])
def test_crops_of_several_sizes_are_an_error(workers: int) -> None:
    items = ForeignItems(Toy, toy(wrong="sizes"), phase="train", scale=2)
    with pytest.raises(MtkdError, match="must be crops of one size"):
        list(ForeignSampler(items, batch_size=4, workers=workers).batches(0, 2))


def test_a_class_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match="cannot be built: KeyError: 'io_backend'"):
        ForeignItems(Toy, {"name": "toy", "type": TOY}, phase="train", scale=2)


def test_what_needs_whole_images_is_refused_with_such_a_set(tmp_path: Path) -> None:
    curriculum = {"curriculum": {"gt_size": [[0, 16]]}}
    with pytest.raises(OptionError, match="curriculum: has no effect"):
        run_options(tmp_path, images=tmp_path, datasets=sets(), val=VAL, train=curriculum)
    with pytest.raises(OptionError, match="makes its own crops"):
        run_options(
            tmp_path, images=tmp_path, datasets=sets(), val=VAL, model_type="OutputKD", target_store="t.safetensors"
        )
    with pytest.raises(MtkdError, match="whole images of a PairedImageDataset"):
        open_training_images(run_options(tmp_path, images=tmp_path, datasets=sets(), val=VAL))
    ignored = run_options(tmp_path, images=tmp_path, datasets=sets(prefetch_mode="cpu"), val=VAL).notices
    assert any("prefetch_mode ignored" in notice for notice in ignored)
