"""Photographs without ground truth: taught, trained on, and what needs gt is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mtkd import catalog, zoo
from mtkd.build import open_training_images, training_files
from mtkd.cli import main
from mtkd.config import Options, make_options, resolved_yaml, yaml_loader
from mtkd.contracts import MtkdError
from mtkd.data.images import read_image, write_image
from mtkd.data.paired import PairedImages
from mtkd.data.sampling import CropSampler
from mtkd.data.store import ImageStore
from mtkd.data.training import open_training_set
from mtkd.data.unlabelled import UnlabelledImages
from mtkd.targets.make import teach
from mtkd.targets.merge import merge
from mtkd.targets.shards import Shard
from mtkd.training.check import check_data
from mtkd.training.loop import train
from tests.config.samples import only_problem
from tests.helpers import photo
from tests.runs import make_images, make_teachers, run_options


def section(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Options of eight iterations on photographs alone, written out."""
    photographs = tmp_path / "photographs"
    if not photographs.exists():
        make_images(photographs)
    teachers = {"edsr": make_teachers(tmp_path / "teachers")["edsr"]}
    given = {"model_type": "OutputKD", "teachers": teachers, **changes}
    plain: dict[str, Any] = yaml_loader.parse(resolved_yaml(run_options(tmp_path, images=photographs, **given))).data
    train_set = plain["datasets"]["train"]
    train_set |= {"dataroot_gt": None, "dataroot_lq": train_set["dataroot_gt"]}
    plain["train"]["pixel_opt"] = None
    return plain


def unlabelled(tmp_path: Path, **changes: Any) -> Options:
    return make_options(section(tmp_path, **changes))


def quiet(_: str) -> None:
    pass


def test_photographs_are_lq_and_nothing_stands_for_gt(tmp_path: Path) -> None:
    options = unlabelled(tmp_path)
    files = training_files(options)
    images = open_training_images(options)
    assert isinstance(files, UnlabelledImages) and images.gt is None
    assert images.names == files.names and images.sizes == files.sizes and len(images) == 4
    for i, path in enumerate(files.lq_paths):
        lq = read_image(path)
        assert np.array_equal(images.lq[i], lq) and np.array_equal(files[i].lq, lq)
        assert images.sizes[i] == (2 * lq.shape[0], 2 * lq.shape[1])
    assert sorted(file.name for file in images.lq.path.parent.iterdir()) == ["lq.safetensors", "source.json"]
    # Opened again from the cache.
    assert open_training_images(options).lq.path == images.lq.path


def test_the_cache_of_pairs_is_another_and_where_it_was(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    root = {"dataroot_gt": str(tmp_path / "images")}
    pairs = open_training_set(root, scale=2, cache_dir=tmp_path / "cache")
    assert pairs.gt is not None and "gt" not in pairs.lq.facts
    alone = open_training_set({"dataroot_lq": root["dataroot_gt"]}, scale=2, cache_dir=tmp_path / "cache")
    assert alone.lq.path.parent != pairs.lq.path.parent and alone.gt is None


@pytest.mark.parametrize("residence", ["ram", "disk", "device"])
def test_crops_of_lq_and_target_are_those_that_pairs_would_give(tmp_path: Path, residence: Any) -> None:
    make_images(tmp_path / "images")
    cache = tmp_path / "cache"
    pairs = open_training_set({"dataroot_gt": str(tmp_path / "images")}, scale=2, cache_dir=cache)
    assert pairs.gt is not None
    common = {"scale": 2, "gt_size": 16, "batch_size": 3, "use_hflip": True, "use_rot": True, "seed": 5}
    known = CropSampler(lq=pairs.lq, gt=pairs.gt, **common)
    alone = CropSampler(lq=pairs.lq, gt=None, target=pairs.gt, residence=residence, **common)
    bare = CropSampler(lq=pairs.lq, gt=None, residence=residence, **common)
    for k in range(4):
        batch, other = known.batch(k), alone.batch(k)
        assert other.gt is None and bare.batch(k).gt is None and bare.batch(k).target is None
        assert torch.equal(batch.lq, other.lq) and torch.equal(batch.index, other.index)
        assert other.target is not None and torch.equal(batch.gt, other.target)
        assert torch.equal(batch.lq, bare.batch(k).lq)
    with pytest.raises(MtkdError, match="target image .* must be"):
        CropSampler(lq=pairs.gt, gt=None, target=pairs.gt, **common)


def test_terms_that_compare_with_gt_are_refused_by_name(tmp_path: Path) -> None:
    plain = section(tmp_path)
    plain["train"].pop("pixel_opt")
    problem = only_problem(make_options, plain)
    assert problem.key == "datasets.train.dataroot_gt"
    assert "OutputKD compares with gt in train.pixel_opt" in problem.message and "(`~`)" in problem.message
    problem = only_problem(make_options, {**plain, "model_type": "DUKD", "method": {}})
    assert "train.pixel_opt, train.zoom_in_opt." in problem.message
    plain["train"]["pixel_opt"] = {"type": "L1Loss"}
    plain["train"].pop("target_opt")
    scratch = {**plain, "model_type": "SRModel", "teachers": {}, "method": {}}
    assert "such as OutputKD or MTKD" in only_problem(make_options, scratch).message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataroot_lq": None}, "dataroot_gt is required, and missing"),
        ({"filename_tmpl": "{}x2"}, "there is no dataroot_gt"),
    ],
)
def test_what_is_no_set_of_photographs(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    plain = section(tmp_path)
    plain["datasets"]["train"] |= change
    assert words in only_problem(make_options, plain).message


def test_all_problems_of_the_photographs_are_told_at_once(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "photographs")
    write_image(folder / "small.png", photo("coffee", (7, 40)))
    (folder / "broken.png").write_bytes(b"no image")
    problems = check_data(unlabelled(tmp_path))
    (said,) = [str(problem) for problem in problems if "cannot be used at scale 2 (2 problems)" in str(problem)]
    assert "small.png" in said and "8 lq pixels a side" in said and "broken.png" in said
    (tmp_path / "list.txt").write_text("coffee.png\nnothing.png\n")
    with pytest.raises(MtkdError, match=r"nothing.png: named in .*, does not exist"):
        UnlabelledImages(dataroot_lq=folder, scale=2, meta_info_file=tmp_path / "list.txt")


def test_every_method_says_which_of_its_terms_read_gt() -> None:
    for name in catalog.METHODS:
        method = catalog.get("method", name)
        assert method.gt_terms is None or set(method.gt_terms) <= set(method.terms), name
    able = {name for name in catalog.METHODS if catalog.get("method", name).gt_terms is not None}
    assert {"OutputKD", "MTKD", "FAKD", "AT", "DUKD"} <= able and not {"SRModel", "PISR", "OnlineTeacher"} & able


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_from_a_folder_of_photographs_to_a_measured_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = section(tmp_path, target_store=str(tmp_path / "targets"))
    plain["datasets"]["val"] = {"name": "pairs", "type": "PairedImageDataset", "dataroot_gt": str(tmp_path / "pairs")}
    plain["val"] = {"val_freq": 8, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}}
    make_images(tmp_path / "pairs")
    file = tmp_path / "run.yml"
    file.write_text(yaml_loader.dump(plain))
    options = make_options(plain)
    assert main(["teach", "-opt", str(file), "--dry_run"]) == 0
    assert "4 of 4 images" in capsys.readouterr().out
    for number in range(1, shards + 1):
        teach(options, tmp_path / "targets", shard=Shard(number, shards), progress=quiet)
    if shards > 1:
        merge(options, tmp_path / "targets", progress=quiet)
    store = ImageStore(tmp_path / "targets")
    files = training_files(options)
    assert store.names == files.names and store.sizes == files.sizes

    weights = train(options)
    rows = [json.loads(line) for line in (weights.parents[1] / "metrics.jsonl").read_text().splitlines()]
    assert {term for row in rows for term in row.get("losses", {})} == {"target", "l_total"}
    assert any("psnr" in json.dumps(row) for row in rows)
    assert zoo.build(str(weights))(torch.rand(1, 3, 5, 7)).shape == (1, 3, 10, 14)
    assert main(["test", str(weights.parents[1]), "--data", str(tmp_path / "pairs"), "--device", "cpu"]) == 0
    with pytest.raises(MtkdError, match="does not match"):
        other = tmp_path / "others"
        write_image(other / "a.png", photo("coffee", (40, 40))) if other.mkdir() is None else None
        plain["datasets"]["train"]["dataroot_lq"] = str(other)
        train(make_options({**plain, "name": "other"}))


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_teacher_alone(tmp_path: Path) -> None:
    """Against the teacher run by hand on the batch that the seed gives."""
    options = unlabelled(tmp_path, logger={"print_freq": 1, "save_checkpoint_freq": 8})
    images = open_training_images(options)
    sampler = CropSampler(
        lq=images.lq, gt=None, scale=2, gt_size=16, batch_size=2, use_hflip=True, use_rot=True, seed=3
    )
    torch.manual_seed(3)
    student = catalog.get("arch", options.network_g.type)(**options.network_g.args)
    teacher = zoo.build(options.teachers["edsr"].pretrain)
    assert options.datasets.train is not None and options.datasets.train.batch_size_per_gpu == 2
    lq = sampler.batch(0).lq
    with torch.no_grad():
        expected = F.l1_loss(student(lq), teacher(lq)).item()
    weights = train(options)
    rows = [json.loads(line) for line in (weights.parents[1] / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["losses"]["target"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["MTKD", "FAKD", "OutputKD + AT"])
def test_other_methods_train_without_gt(tmp_path: Path, method: str) -> None:
    options = unlabelled(tmp_path, model_type=method)
    assert all(value.isfinite().all() for value in zoo.build(str(train(options))).state_dict().values())


def test_validation_stays_on_pairs(tmp_path: Path) -> None:
    plain = section(tmp_path)
    plain["datasets"]["val"] = {"name": "v", "type": "PairedImageDataset", "dataroot_lq": str(tmp_path / "photographs")}
    plain["val"] = {"val_freq": 8}
    problem = only_problem(make_options, plain)
    assert problem.key == "datasets.val.dataroot_gt" and "missing" in problem.message
    with pytest.raises(TypeError):
        PairedImages(dataroot_lq=tmp_path, scale=2)  # pyright: ignore[reportCallIssue]
