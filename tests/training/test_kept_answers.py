"""Teachers that are kept answers: what they teach, what is refused, and that they are the answers they claim to be."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtkd import build, zoo
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.build import open_training_images
from mtkd.cli import main
from mtkd.config import AnswersOptions, NetworkOptions, OptionError, make_options, resolved_yaml
from mtkd.config.yaml_loader import parse
from mtkd.contracts import MtkdError
from mtkd.data.images import read_image, write_image
from mtkd.data.kept import KeptAnswers, learn_sets
from mtkd.data.paired import PairedImages
from mtkd.data.resize import imresize
from mtkd.data.store import ImageStore, write
from mtkd.inference.compare import compare
from mtkd.inference.evaluate import compile_for_images, evaluate
from mtkd.inference.run_test import run_test
from mtkd.metrics.psnr import psnr
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.targets.combine import combine
from mtkd.targets.make import Recipe, dry_run, teach
from mtkd.training.check import check_data
from mtkd.training.loop import train
from mtkd.training.prepare import prepare
from tests.helpers import photo, shared_data
from tests.runs import FUSION, STUDENT, TEACHERS, make_images, make_teachers, run_options

pytestmark = pytest.mark.slow

VAL = ("val", "photographs_val")
METRICS = {"psnr": {"type": "calculate_psnr", "crop_border": 2}}


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, teachers and their answers, made once; tests have copies, which they may spoil."""
    folder = tmp_path_factory.mktemp("answered")
    sets = {"train": make_images(folder / "images"), VAL[1]: val_images(folder / "val")}
    for name, section in make_teachers(folder / "teachers").items():
        net = zoo.build(section["pretrain"])
        for key, place in sets.items():
            answer(folder / "answers" / name / key, net, PairedImages(dataroot_gt=place, scale=2))
    return folder


@pytest.fixture
def images(tmp_path: Path, answered: Path) -> Path:
    return shutil.copytree(answered / "images", tmp_path / "images")


def val_images(folder: Path) -> Path:
    """Two photographs of one size and one of another, so that answers are told apart by their pixels."""
    for name, size in (("astronaut", (40, 40)), ("rocket", (40, 40)), ("chelsea", (36, 44))):
        write_image(folder / f"val_{name}.png", photo(name, size))  # type: ignore[arg-type]
    return folder


def answer(folder: Path, net: torch.nn.Module, pairs: PairedImages) -> Path:
    """What `net` makes of whole images, as image files with their names."""
    with torch.no_grad():
        for pair in pairs:
            write_image(folder / f"{pair.name}.png", to_image(net.eval()(to_tensor(pair.lq).contiguous())))
    return folder


@pytest.fixture
def kept(tmp_path: Path, images: Path, answered: Path) -> dict[str, dict[str, Any]]:
    """`teachers:` of the kept answers of the teachers that `make_teachers` makes."""
    for name in ("teachers", "val", "answers"):
        shutil.copytree(answered / name, tmp_path / name)
    return {name: {"images": str(tmp_path / "answers" / name)} for name in TEACHERS}


def one(kept: dict[str, Any]) -> dict[str, Any]:
    return {"edsr": kept["edsr"]}


def with_val(tmp_path: Path, images: Path) -> dict[str, Any]:
    section = {"type": "PairedImageDataset", "dataroot_gt": str(tmp_path / "val"), "name": VAL[1]}
    training = {
        "name": "photographs", "type": "PairedImageDataset", "dataroot_gt": str(images),
        "gt_size": 16, "batch_size_per_gpu": 2,
    }  # fmt: skip
    return {"datasets": {"train": training, "val": section}, "val": {"val_freq": 4, "metrics": METRICS}}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return zoo.read_checkpoint(path, key="params").state


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("cache", ["gpu", "ram", "disk"])
def test_answers_teach_as_the_target_store_that_is_made_of_them(
    tmp_path: Path, images: Path, kept: dict[str, Any], cache: str
) -> None:
    """Three ways to one training: the folder, a store of it, and the target store, wherever the images stay."""
    common: dict[str, Any] = {"images": images, "model_type": "OutputKD"}
    folder = run_options(tmp_path, name="folder", teachers=one(kept), **common)
    folder.train_set.cache = cache  # type: ignore[union-attr]
    store = combine(folder, tmp_path / "store", [tmp_path / "answers/edsr/train"], progress=quiet)
    targets = run_options(tmp_path, name="targets", target_store=str(store.path), **common)
    as_store = run_options(tmp_path, name="store", teachers={"edsr": {"images": str(store.path)}}, **common)
    expected = train(targets)
    assert same(train(folder), expected) and same(train(as_store), expected)
    other = {"edsr": {"images": kept["rcan"]["images"]}}
    assert not same(train(run_options(tmp_path, name="other", teachers=other, **common)), expected)


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("OutputKD", {"method": {"several": "mean"}}),
        ("OutputKD", {"fusion": "mean"}),
        ("MTKD", {"fusion": "mean"}),
        ("MTKD + OutputKD", {"fusion": "mean"}),
    ],
)
def test_the_mean_of_kept_answers_is_the_mean_of_their_stores(
    tmp_path: Path, images: Path, kept: dict[str, Any], model_type: str, more: dict[str, Any]
) -> None:
    common: dict[str, Any] = {"images": images, "model_type": model_type}
    several = run_options(tmp_path, name="several", teachers=kept, **common, **more)
    sources = [tmp_path / "answers" / name / "train" for name in kept]
    mean = combine(several, tmp_path / "mean", sources, dtype="float16", progress=quiet)
    stored = run_options(tmp_path, name="stored", target_store=str(mean.path), **common)
    assert train(several).is_file() and train(stored).is_file()
    found = {}
    for options in (several, stored):
        run = prepare(options.model_copy(update={"name": f"fresh_{options.name}"}))
        batch = next(run.batches())
        with torch.no_grad():
            found[options.name] = batch, run.method(batch, 0).losses
        run.close()
    (batch, of_answers), (fused, of_store) = found.values()
    assert batch.answers is not None and list(batch.answers) == list(kept) and batch.target is None
    assert fused.answers is None and fused.target is not None
    # The store is float16: within 2**-12 of values below 1.
    assert (torch.stack(list(batch.answers.values())).mean(0) - fused.target).abs().max() <= 2**-12
    for name, value in of_store.items():
        assert float(of_answers[name]) == pytest.approx(float(value), abs=2**-11)


def pointwise_teachers(folder: Path) -> dict[str, Any]:
    """Teachers that see one pixel, whose answer to a crop is the crop of their answer."""
    folder.mkdir()
    network = {"type": "tests.targets.test_make:Pointwise", "upscale": 2}
    mixes = {"a": torch.eye(3), "b": torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.05, 0.25, 0.7]])}
    found = {}
    for name, mix in mixes.items():
        state = {"mix.weight": mix[..., None, None].clone(), "mix.bias": torch.zeros(3)}
        facts = {"arch": {"type": network["type"], "args": {"upscale": 2}}, "scale": 2}
        zoo.write_safetensors(folder / f"{name}.safetensors", state, facts)
        found[name] = {"network": network, "pretrain": str(folder / f"{name}.safetensors")}
    return found


def test_a_fusion_network_learns_from_kept_answers_as_from_live_teachers(tmp_path: Path, images: Path) -> None:
    live = pointwise_teachers(tmp_path / "teachers")
    common: dict[str, Any] = {"images": images, "model_type": "MTKDFusion", "network_g": FUSION}
    common["train"] = {"pixel_opt": {"type": "L1Loss"}}
    options = {"live": run_options(tmp_path, name="live", teachers=live, **common)}
    for dtype in ("uint8", "float16"):
        stores = {}
        for name, section in live.items():
            alone = run_options(
                tmp_path, images=images, name=name, model_type="OutputKD", teachers={name: section}
            )  # fmt: skip
            stores[name] = teach(alone, tmp_path / f"{dtype}_{name}", Recipe(dtype=dtype), progress=quiet)  # type: ignore[arg-type]
        teachers = {name: {"images": str(store.path)} for name, store in stores.items()}
        options[dtype] = run_options(tmp_path, name=dtype, teachers=teachers, **common)
    mixed = {"a": live["a"], "b": {"images": str(tmp_path / "float16_b")}}
    options["mixed"] = run_options(tmp_path, name="mixed", teachers=mixed, **common)
    answers, final = {}, {}
    for name, one_options in options.items():
        run = prepare(one_options)
        batch = next(run.batches())
        with torch.no_grad():
            answers[name] = run.method.ensemble(batch.lq, batch.answers)  # type: ignore[operator]
        run.close()
        final[name] = weights(train(one_options))

    def apart(name: str) -> float:
        return max(float((final[name][key] - final["live"][key]).abs().max()) for key in final["live"])

    # 8 bits move a pixel by half a level.
    assert 0 < (answers["uint8"] - answers["live"]).abs().max() <= 0.5 / 255 + 1e-6
    for name in ("float16", "mixed"):
        assert (answers[name] - answers["live"]).abs().max() < 2**-11
        # And eight steps of Adam at 1e-3 move no weight by more than 8e-3 either way.
        assert apart(name) < apart("uint8") < 2 * 8e-3


def test_fusion_validates_and_is_tested_on_kept_answers_as_on_live_teachers(
    tmp_path: Path, images: Path, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    common: dict[str, Any] = {"model_type": "MTKDFusion", "network_g": FUSION, **with_val(tmp_path, images)}
    common["train"] = {"pixel_opt": {"type": "L1Loss"}}
    options = run_options(tmp_path, images=images, name="kept", teachers=kept, **common)
    assert check_data(options) == []
    final = train(options)
    run = tmp_path / "experiments/kept"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = next(row for row in reversed(rows) if "metrics" in row)

    section = {"type": "PairedImageDataset", "dataroot_gt": str(tmp_path / "val"), "name": VAL[1]}
    plain: dict[str, Any] = {
        "name": "tested", "scale": 2, "num_gpu": 0, "model_type": "MTKDFusion", "network_g": FUSION, "fusion": None,
        "datasets": {"test_1": section}, "path": {"pretrain_network_g": str(final), "results_root": str(tmp_path)},
        "val": {"metrics": METRICS},
    }  # fmt: skip
    plain["path"]["param_key_g"] = "params_ema"
    rows_of_kept = dict(run_test(make_options({**plain, "teachers": kept})))
    rows_of_live = dict(run_test(make_options({**plain, "teachers": make_teachers(tmp_path / "again")})))
    assert list(rows_of_kept) == ["teacher edsr", "teacher rcan", "mean of the teachers", "tested"]
    assert list(rows_of_live) == list(rows_of_kept)
    of_kept, of_live = rows_of_kept["tested"].means()["psnr"], rows_of_live["tested"].means()["psnr"]
    assert of_kept == pytest.approx(of_live, abs=0.05) and of_kept != of_live
    assert of_kept == pytest.approx(validated["metrics"]["psnr"], abs=1e-6)

    capsys.readouterr()
    data = shutil.copytree(tmp_path / "val", tmp_path / "sets" / VAL[1])
    table = compare([str(run)], data=[data], teachers=True, log=quiet)
    names = [name for name, _ in table]
    assert names[:3] == ["teacher edsr", "teacher rcan", "mean of the teachers"] and len(names) == 4
    means = {name: result.means()["psnr"] for name, result in table}
    gt = PairedImages(dataroot_gt=data, scale=2)
    for name in kept:
        values = [
            psnr(to_tensor(read_image(tmp_path / "answers" / name / VAL[1] / f"{pair.name}.png")), to_tensor(pair.gt),
                 crop_border=2)
            for pair in gt
        ]  # fmt: skip
        assert means[f"teacher {name}"] == pytest.approx(float(torch.cat(values).mean()), abs=1e-12)


def test_a_store_of_fused_answers_is_what_fusing_them_gives(tmp_path: Path, images: Path, kept: dict[str, Any]) -> None:
    """`mtkd teach` on kept answers, in one piece, and in tiles of what does run."""
    common: dict[str, Any] = {"images": images, "model_type": "MTKD", "teachers": kept, "channels_last": False}
    options = run_options(tmp_path, **common, fusion="mean")
    store = teach(options, tmp_path / "targets", progress=quiet)
    folders = [tmp_path / "answers" / name / "train" for name in kept]
    mean = combine(options, tmp_path / "mean", folders, progress=quiet)
    assert np.array_equal(store.flat, mean.flat)
    assert np.array_equal(teach(options, tmp_path / "tiles", Recipe(tile_size=9), progress=quiet).flat, mean.flat)
    digests = [part["answers"] for part in store.facts["fingerprint"]["teachers"]]
    assert digests == mean.facts["combined"]["sources"]
    alone = run_options(tmp_path, **{**common, "teachers": one(kept), "model_type": "OutputKD"}, name="alone")
    copied = teach(alone, tmp_path / "copied", progress=quiet)
    assert np.array_equal(copied.flat, combine(options, tmp_path / "first", folders[:1], progress=quiet).flat)
    # The run takes its store, and no other.
    assert train(options.model_copy(update={"target_store": str(store.path)})).is_file()
    write_image(folders[0] / "coffee.png", 255 - read_image(folders[0] / "coffee.png"))
    with pytest.raises(MtkdError, match="teachers.edsr.answers is"):
        train(options.model_copy(update={"target_store": str(store.path), "name": "changed"}))
    with pytest.raises(MtkdError, match="--x8 turns the images"):
        teach(options, tmp_path / "turned", Recipe(x8=True), progress=quiet)
    said: list[str] = []
    dry_run(options, tmp_path / "none", progress=said.append)
    assert "4 of 4 images" in said[-1] and not (tmp_path / "none").exists()


def test_fused_by_a_network_on_line_and_in_a_store(tmp_path: Path, images: Path, kept: dict[str, Any]) -> None:
    fusion = tmp_path / "fusion.safetensors"
    net = build.build_network(make_fusion())
    zoo.write_safetensors(fusion, net.state_dict(), {"members": list(kept), "arch": make_fusion().model_dump()})
    section = {"network": FUSION, "pretrain": str(fusion)}
    options = run_options(
        tmp_path, images=images, model_type="MTKD", teachers=kept, fusion=section, channels_last=False
    )  # fmt: skip
    assert train(options).is_file()
    store = teach(options, tmp_path / "fused", progress=quiet)
    names = open_training_images(options).names
    for i, name in enumerate(names):
        parts = [to_tensor(read_image(tmp_path / "answers" / one / "train" / f"{name}.png")) for one in kept]
        with torch.no_grad():
            assert np.array_equal(store[i], to_image(net.eval()(torch.cat(parts, 1))))


def make_fusion() -> NetworkOptions:
    return NetworkOptions(type="DCTSwin", args={key: value for key, value in FUSION.items() if key != "type"})


def test_resolved_options_load_back_equal(tmp_path: Path, images: Path, kept: dict[str, Any]) -> None:
    mapping = {"images": {"train": kept["rcan"]["images"] + "/train"}}
    options = run_options(
        tmp_path, images=images, model_type="MTKD", teachers={**one(kept), "rcan": mapping}, fusion="mean"
    )  # fmt: skip
    again = make_options(parse(resolved_yaml(options)).data)
    assert again.model_dump() == options.model_dump() and again.teachers == options.teachers
    assert again.teachers["rcan"] == AnswersOptions(**mapping)
    assert "pretrain" not in options.model_dump()["teachers"]["edsr"]


def test_resume_goes_on_exactly_and_refuses_other_answers(tmp_path: Path, images: Path, kept: dict[str, Any]) -> None:
    common: dict[str, Any] = {"images": images, "model_type": "OutputKD", "teachers": one(kept)}
    whole = train(run_options(tmp_path, name="whole", **common))
    train(run_options(tmp_path, name="halves", **common, train={"total_iter": 4, "scheduler": scheduler()}))
    halves = run_options(tmp_path, name="halves", **common)
    before = shutil.copytree(tmp_path / "experiments/halves", tmp_path / "kept_halves")
    assert same(train(halves, auto_resume=True), whole)
    shutil.rmtree(tmp_path / "experiments/halves")
    before.rename(tmp_path / "experiments/halves")
    file = tmp_path / "answers/edsr/train/rocket.png"
    write_image(file, 255 - read_image(file))
    with pytest.raises(MtkdError, match="the kept answers of the teacher edsr were others"):
        train(halves, auto_resume=True)


def scheduler() -> dict[str, Any]:
    return {"type": "MultiStepLR", "milestones": [4], "gamma": 0.5}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "FAKD"}, "teachers.edsr.images: FAKD reads more of a teacher than its images"),
        ({"model_type": "DUKD"}, "answers to other inputs"),
        ({"model_type": "OutputKD + FAKD"}, "teachers.edsr.images: FAKD reads more"),
        ({"teachers": {"edsr": {"images": "X", "pretrain": "y.pth"}}}, "teachers.edsr.pretrain: given beside `images`"),
        ({"teachers": {"edsr": {"images": "X", "param_key": None}}}, "teachers.edsr.param_key: given beside"),
        ({"teachers": {"edsr": {"images": "X", "imgaes": 1}}}, "Did you mean images"),
        ({"teachers": {"edsr": {"images": 3}}}, "teachers.edsr.images: must be text, found 3"),
        ({"teachers": {"edsr": {"images": {}}}}, "names no answers"),
        ({"teachers": {"edsr": {"images": {"train": None}}}}, "teachers.edsr.images.train: must be a folder or store"),
        ({"model_type": "SRModel"}, "SRModel uses no teacher"),
        ({"val": {"tile": {"tile_size": 16, "tile_pad": 4}}}, "val.tile: not possible with teachers that are kept"),
        ({"val": {"self_ensemble": True}}, "val.self_ensemble: not possible"),
    ],
)
def test_what_an_option_file_cannot_ask(tmp_path: Path, images: Path, changes: dict[str, Any], text: str) -> None:
    given: dict[str, Any] = {"model_type": "OutputKD", "teachers": {"edsr": {"images": "X"}}, **changes}
    if "val" in changes:
        more = with_val(tmp_path, images)
        given |= {"model_type": "MTKDFusion", "network_g": {**FUSION, "num_teachers": 1}, "datasets": more["datasets"]}
        given["val"] = {**more["val"], **changes["val"]}
    with pytest.raises(OptionError) as raised:
        run_options(tmp_path, images=images, **given)
    assert text in str(raised.value), str(raised.value)


def test_a_method_of_several_may_imitate_where_another_reads_a_network(
    tmp_path: Path, images: Path, kept: dict[str, Any]
) -> None:
    """Each method names its teacher; only the one that reads features needs a network."""
    teachers = {**one(kept), "live": make_teachers(tmp_path / "again")["rcan"]}
    method = {"OutputKD": {"teachers": ["edsr"]}, "FitNet": {"teachers": ["live"]}}
    options = run_options(
        tmp_path, images=images, model_type="OutputKD + FitNet", teachers=teachers, method=method
    )  # fmt: skip
    assert train(options).is_file()


def test_check_and_training_find_every_problem_of_the_answers(
    tmp_path: Path, images: Path, kept: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    edsr, rcan = (tmp_path / "answers" / name for name in kept)
    (edsr / "train/coffee.png").unlink()
    write_image(edsr / "train/stranger.png", np.zeros((8, 8, 3), np.uint8))
    write_image(edsr / "train/rocket.png", np.zeros((8, 8, 3), np.uint8))
    shutil.rmtree(rcan / VAL[1])
    options = run_options(
        tmp_path, images=images, model_type="MTKDFusion", network_g=FUSION, teachers=kept,
        **with_val(tmp_path, images), train={"pixel_opt": {"type": "L1Loss"}},
    )  # fmt: skip
    wanted = (
        "coffee: no image of this name",
        "stranger.png: answers no image",
        "rocket.png: is 8x8 (height x width) and must be 60x52",
        f"Put them into {rcan / 'val'} or {rcan / VAL[1]}",
    )
    found = {problem.key: problem.message for problem in check_data(options)}
    assert set(found) == {"teachers.edsr.images", "teachers.rcan.images"}
    text = "\n".join(found.values())
    for part in wanted:
        assert part in text
    with pytest.raises(MtkdError) as raised:
        train(options)
    assert all(part in str(raised.value) for part in wanted[:3])
    assert not (tmp_path / "experiments/tiny").exists()
    for name in ("coffee", "rocket"):
        shutil.copy(images / f"{name}.png", edsr / "train")
    (edsr / "train/stranger.png").unlink()
    with pytest.raises(MtkdError, match=f"(?s)teacher 'rcan', {VAL[1]}: there are no answers to this data set"):
        train(options)
    assert not (tmp_path / "experiments/tiny").exists()
    file = tmp_path / "run.yml"
    file.write_text(resolved_yaml(options))
    assert main(["check", str(file), "--data"]) != 0
    shown = capsys.readouterr()
    assert "there are no answers to this data set" in shown.out + shown.err


def test_a_path_that_is_not_there_is_said_once(tmp_path: Path, images: Path) -> None:
    options = run_options(
        tmp_path, images=images, model_type="OutputKD", teachers={"x": {"images": str(tmp_path / "none")}}
    )  # fmt: skip
    problems = [problem for problem in check_data(options) if problem.key.startswith("teachers")]
    assert [problem.message for problem in problems] == [f"there is no folder or store '{tmp_path / 'none'}'."]
    with pytest.raises(MtkdError, match="There are no answers at"):
        train(options)


def test_answers_without_ground_truth(tmp_path: Path, images: Path, kept: dict[str, Any]) -> None:
    """Photographs alone: lq are the images, the answers twice as large."""
    photos = tmp_path / "photos"
    for pair in PairedImages(dataroot_gt=images, scale=2):
        write_image(photos / f"{pair.name}.png", pair.lq)
    section = {
        "name": "photos", "type": "PairedImageDataset", "dataroot_lq": str(photos), "gt_size": 16,
        "batch_size_per_gpu": 2,
    }  # fmt: skip
    options = run_options(
        tmp_path, images=images, model_type="OutputKD", teachers=one(kept), datasets={"train": section},
        train={"pixel_opt": None},
    )  # fmt: skip
    assert train(options).is_file()


def test_kept_answers_are_found_by_pixels_and_crops_are_refused(
    tmp_path: Path, images: Path, kept: dict[str, Any]
) -> None:
    teacher = KeptAnswers("edsr", kept["edsr"]["images"], 2)
    pairs = PairedImages(dataroot_gt=tmp_path / "val", scale=2)
    learn_sets(teacher, {VAL: pairs})
    learn_sets(teacher, {VAL: pairs})
    for i in (2, 0, 1, 2):
        expected = read_image(tmp_path / "answers/edsr" / VAL[1] / f"{pairs.names[i]}.png")
        assert np.array_equal(to_image(teacher(to_tensor(pairs[i].lq))), expected)
    both = torch.cat([to_tensor(pairs[i].lq) for i in (0, 2)])
    assert torch.equal(teacher(both)[1:], teacher(both[1:]))
    for lq in (to_tensor(pairs[0].lq)[..., 1:], to_tensor(pairs[0].lq).flip(-1)):
        with pytest.raises(MtkdError, match=f"'edsr' is kept answers, .* answers the whole images of {VAL[1]}, not"):
            teacher(lq)
    assert sum(parameter.numel() for parameter in teacher.parameters()) == 0 and not teacher.state_dict()


def test_kept_answers_stay_out_of_compiled_networks(
    tmp_path: Path, images: Path, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced for real; the backend that only runs the traced graph needs no C compiler."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda net, *_, mode=None, **more: compiled(net, backend="eager", **more)
    )
    teachers = {name: KeptAnswers(name, section["images"], 2) for name, section in kept.items()}
    net = FusedTeacher(Ensemble(teachers), MeanFusion(2)).eval()
    pairs = PairedImages(dataroot_gt=tmp_path / "val", scale=2)
    learn_sets(net, {VAL: pairs})
    with torch.no_grad():
        expected = [net(to_tensor(pair.lq)) for pair in pairs]
        said: list[str] = []
        assert compile_for_images(net, "cpu", nullcontext, said.append) and "compiled in" in said[-1]
        for pair, image in zip(pairs, expected, strict=True):
            assert torch.equal(net(to_tensor(pair.lq)), image)
    options = run_options(
        tmp_path, images=images, model_type="OutputKD", teachers=kept, fusion="mean", compile=True
    )  # fmt: skip
    assert train(options).is_file()


def test_real_answers_score_what_was_measured_of_their_networks() -> None:
    """HiT-SRF and VapSR on Set5 and Set14, where the shared folders are: PSNR-Y by three decimals."""
    data = shared_data()
    answers = None if data is None else data.parent / "answers"
    if data is None or answers is None or not answers.is_dir():
        pytest.skip("the shared answers are not here")
    measured = {"hitsr_x4": {"Set5": 32.554, "Set14": 28.873}, "vapsr_x4": {"Set5": 32.400, "Set14": 28.771}}
    metric = {"psnr": lambda sr, gt: psnr(sr, gt, crop_border=4, test_y_channel=True)}
    for name, values in measured.items():
        teacher = KeptAnswers(name, str(answers / name), 4)
        for key, value in values.items():
            root = data / "test" / key
            lq = next(folder for folder in (root / "LR_bicubic/X4", root / "LR_bicubic/x4") if folder.is_dir())
            stem = next(lq.iterdir()).stem
            template = "{}x4" if stem.endswith("x4") else "{}"
            pairs = PairedImages(dataroot_gt=root / "HR", dataroot_lq=lq, scale=4, filename_tmpl=template)
            learn_sets(teacher, {(key,): pairs})
            result = evaluate(teacher, pairs, metric, dataset=key)
            assert result.means()["psnr"] == pytest.approx(value, abs=6e-4)


def test_real_answers_to_training_images_teach(tmp_path: Path) -> None:
    """Some of the images of the shared folders, cut by the rule of their README; both networks beat bicubic on each."""
    data = shared_data()
    answers = None if data is None else data.parent / "answers"
    if data is None or answers is None or not answers.is_dir():
        pytest.skip("the shared answers are not here")
    folders = {"g": data / "train/General100", "b": data / "train/BSDS500_train"}
    found = [(f"{key}_{path.stem}", path) for key, folder in folders.items() for path in sorted(folder.iterdir())[:3]]
    for name, path in found:
        image = read_image(path)
        height, width = (min(256, side // 4 * 4) for side in image.shape[:2])
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        write_image(tmp_path / "gt" / f"{name}.png", image[top : top + height, left : left + width])
    (tmp_path / "some.txt").write_text("".join(f"{name}.png\n" for name, _ in found))
    section = {
        "name": "some", "type": "PairedImageDataset", "dataroot_gt": str(tmp_path / "gt"), "gt_size": 64,
        "batch_size_per_gpu": 2, "meta_info_file": str(tmp_path / "some.txt"),
    }  # fmt: skip
    teachers = {name: {"images": str(answers / f"{name}_x4")} for name in ("hitsr", "vapsr")}
    options = run_options(
        tmp_path, images=tmp_path / "gt", scale=4, network_g={**STUDENT, "upscale": 4}, model_type="OutputKD",
        teachers=teachers, fusion="mean", datasets={"train": section},
        train={"total_iter": 2, "scheduler": scheduler()},
    )  # fmt: skip
    assert check_data(options) == [] and train(options).is_file()
    images = open_training_images(options)
    assert images.gt is not None
    mean = combine(options, tmp_path / "mean", [one["images"] for one in teachers.values()], progress=quiet)
    for i, store in enumerate(build.open_training_answers(options, images).values()):
        for lq, gt, image, fused in zip(images.lq, images.gt, store, mean, strict=True):
            of_bicubic = psnr(imresize(to_tensor(lq), 4), to_tensor(gt), crop_border=4, test_y_channel=True)
            of_network = psnr(to_tensor(image), to_tensor(gt), crop_border=4, test_y_channel=True)
            of_mean = psnr(to_tensor(fused), to_tensor(gt), crop_border=4, test_y_channel=True)
            assert of_network > of_bicubic + 0.2, f"network {i}"
            assert of_mean > of_bicubic + 0.2


def test_a_store_with_answers_of_other_images_is_refused(tmp_path: Path, images: Path, kept: dict[str, Any]) -> None:
    options = run_options(tmp_path, images=images, model_type="OutputKD", teachers=one(kept))
    plain = combine(options, tmp_path / "plain", [tmp_path / "answers/edsr/train"], progress=quiet)
    facts = {"fingerprint": {"scale": 2, "images": "0" * 64}}
    write(tmp_path / "other", plain.names, list(plain), facts)
    with pytest.raises(MtkdError, match="made of other lq images"):
        train(
            run_options(
                tmp_path, images=images, model_type="OutputKD", teachers={"x": {"images": str(tmp_path / "other")}}
            )
        )
    assert ImageStore(tmp_path / "other").mark() == plain.mark()
