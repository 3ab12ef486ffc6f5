"""The traps that users of BasicSR know, each as what must not happen here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mtkd.basicsr
from mtkd import catalog
from mtkd.config import OptionError, load_options, make_options, resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.methods.base import Frozen
from mtkd.training.ema import Ema
from mtkd.training.loop import prepare, train
from tests.runs import make_images, make_teachers, run_options

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).parent / "options/train_edsr_m_x2.yml"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))


def test_no_folder_here_shadows_the_package_basicsr() -> None:
    import basicsr

    assert "site-packages" in str(basicsr.__file__)
    # A folder of the import path shadows it; mtkd/basicsr is mtkd.basicsr.
    assert not (ROOT / "basicsr").exists() and not (ROOT / "tests/basicsr").exists()


def test_a_missing_name_says_what_was_searched() -> None:
    with pytest.raises(MtkdError, match="Did you mean SwinIR"):
        catalog.get("arch", "SwinR")


def test_basicsr_imports_beside_a_current_torchvision() -> None:
    assert mtkd.basicsr.registered("arch", "RRDBNet") is not None
    assert "torchvision.transforms.functional_tensor" in sys.modules


@pytest.mark.parametrize(
    ("item", "key"),
    [
        ("train:ema_decayy=0.9", "ema_decay"),
        ("datasets:train:dataset_enlarge_ration=2", "dataset_enlarge_ratio"),
        ("datasets:val:dataroot_gtt=x", "dataroot_gt"),
        ("network_g:num_feats=3", "num_feat"),
        ("train:optim_g:weight_decai=0", "weight_decay"),
        ("train:scheduler:gama=0.5", "gamma"),
        ("train:pixel_opt:reductoin=mean", "reduction"),
        ("val:metrics:psnr:crop_boarder=2", "crop_border"),
        ("logger:print_frq=3", "print_freq"),
        ("logger:wandb:project=p logger:wandb:resum_id=x", "resume_id"),
        ("path:strict_load=true", "strict_load_g"),
        ("manual_sed=3", "manual_seed"),
    ],
)
def test_a_misspelt_key_is_an_error_at_every_level(item: str, key: str) -> None:
    with pytest.raises(OptionError, match=rf"Did you mean {key}\?"):
        load_options(FILE, force=item.split())


def test_forced_numbers_are_numbers() -> None:
    options = load_options(FILE, force=["train:optim_g:lr=5e-4", "train:total_iter=5e3", "train:warmup_iter=-1"])
    assert options.train is not None
    assert (options.train.optim_g.lr, options.train.total_iter, options.train.warmup_iter) == (5e-4, 5000, -1)


def test_a_typo_in_a_second_run_leaves_the_first_alone(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    train(run_options(tmp_path, images=images, train={"total_iter": 2}))
    before = sorted((tmp_path / "experiments").rglob("*"))
    with pytest.raises(OptionError):
        run_options(tmp_path, images=images, train={"total_iter": 2, "ema_decayy": 0.9})
    with pytest.raises(MtkdError, match="--auto_resume"):
        train(run_options(tmp_path, images=images, train={"total_iter": 2}))
    assert sorted((tmp_path / "experiments").rglob("*")) == before


def test_resuming_works_on_the_cpu_from_any_directory_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "images")
    sets = {
        "train": {
            "name": "t", "type": "PairedImageDataset", "dataroot_gt": str(images), "gt_size": 16,
            "batch_size_per_gpu": 2,
        },
        "val": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)},
    }  # fmt: skip
    val = {"val_freq": 2, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}}
    # Saved after the validation of iteration 2, so that it holds that result.
    train(run_options(tmp_path, images=images, datasets=sets, val=val, train={"total_iter": 4}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = prepare(run_options(tmp_path, images=images, datasets=sets, val=val), auto_resume=True)
    run.close()
    assert run.state.start == 4
    assert run.state.best["val"]["psnr"]["iter"] in (2, 4)


def test_teachers_have_no_gradient_no_training_mode_and_cannot_change_their_input() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x *= 255
            return self.conv(x)

    teacher = Frozen(InPlace()).train()
    x = torch.rand(1, 3, 4, 4)
    kept = x.clone()
    assert not teacher(x).requires_grad and not teacher.net.training
    assert torch.equal(x, kept)
    assert not list(teacher.parameters())


def test_a_run_with_a_teacher_resumes_though_nothing_is_said_of_the_teacher(tmp_path: Path) -> None:
    images, teachers = make_images(tmp_path / "images"), make_teachers(tmp_path / "teachers")
    given = {"model_type": "OutputKD", "teachers": {"edsr": teachers["edsr"]}, "images": images}
    train(run_options(tmp_path, **given, train={"total_iter": 2}))
    assert train(run_options(tmp_path, **given, train={"total_iter": 4}), auto_resume=True).exists()


def test_no_file_name_in_path_becomes_a_folder(tmp_path: Path) -> None:
    images, teachers = make_images(tmp_path / "images"), make_teachers(tmp_path / "teachers")
    weights = Path(teachers["edsr"]["pretrain"])
    path = {"experiments_root": str(tmp_path / "experiments"), "pretrain_network_g": str(weights)}
    network = teachers["edsr"]["network"]
    train(run_options(tmp_path, images=images, network_g=network, path=path, train={"total_iter": 1}))
    assert weights.is_file()
    assert not [
        folder for folder in tmp_path.rglob("*") if folder.is_dir() and folder.suffix in (".pth", ".safetensors")
    ]


def test_the_average_has_the_buffers_of_the_network() -> None:
    net = nn.BatchNorm2d(3)
    ema = Ema(net, 0.9)
    net(torch.rand(2, 3, 4, 4) + 5)
    ema.update()
    assert torch.equal(ema.net.running_mean, net.running_mean)  # pyright: ignore


def test_a_crop_other_than_the_scale_is_said(tmp_path: Path) -> None:
    notices = load_options(FILE, force=["val:metrics:psnr:crop_border=4"]).notices
    assert any("crop_border is 4" in notice for notice in notices)


def test_validation_measures_against_gt_whatever_the_method_trains_on(tmp_path: Path) -> None:
    """Measured by hand: the mean over the images of the PSNR against gt, not against the teacher."""
    import json

    from mtkd import zoo
    from mtkd.data.paired import PairedImages
    from mtkd.inference.evaluate import build_metrics, evaluate

    images, teachers = make_images(tmp_path / "images"), make_teachers(tmp_path / "teachers")
    sets = {
        "train": {
            "name": "t", "type": "PairedImageDataset", "dataroot_gt": str(images), "gt_size": 16,
            "batch_size_per_gpu": 2,
        },
        "val": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)},
    }  # fmt: skip
    metrics = {"psnr": {"type": "calculate_psnr", "crop_border": 2}}
    latest = train(
        run_options(
            tmp_path, images=images, model_type="OutputKD", teachers={"edsr": teachers["edsr"]}, datasets=sets,
            val={"val_freq": 2, "metrics": metrics}, train={"total_iter": 2},
        )
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "experiments/tiny/metrics.jsonl").read_text().splitlines()]
    alone = evaluate(
        zoo.build(str(latest)), PairedImages(dataroot_gt=images, scale=2), build_metrics(metrics), dataset="v"
    )
    assert rows[-1]["metrics"]["psnr"] == pytest.approx(alone.means()["psnr"], abs=1e-4)


def test_published_keys_of_edsr_rcan_and_swinir_load_in_both_namings() -> None:
    from mtkd.archs.edsr import EDSR
    from mtkd.zoo import keymaps, load_into

    one, two = (EDSR(num_feat=4, num_block=2, upscale=2) for _ in range(2))
    load_into(two, keymaps.to_official(one.state_dict()), source="official naming")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_every_default_is_written_beside_the_run(tmp_path: Path) -> None:
    options = run_options(tmp_path)
    (tmp_path / "resolved.yml").write_text(resolved_yaml(options))
    assert load_options(tmp_path / "resolved.yml").model_dump() == options.model_dump()
    with pytest.raises(OptionError):
        make_options({**options.model_dump(), "typo": 1})


def test_the_baseline_without_teacher_begins_with_the_same_weights_on_the_same_batches(tmp_path: Path) -> None:
    images, teachers = make_images(tmp_path / "images"), make_teachers(tmp_path / "teachers")
    taught = {"model_type": "OutputKD", "teachers": {"edsr": teachers["edsr"]}}
    alone = prepare(run_options(tmp_path / "a", images=images))
    helped = prepare(run_options(tmp_path / "b", images=images, **taught))
    one, two = alone.method.student.state_dict(), helped.method.student.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(alone.sampler.batch(3).lq, helped.sampler.batch(3).lq)
    alone.log.close(), helped.log.close()


def test_the_table_of_the_demo_has_a_row_without_teacher_that_differs_in_nothing_else() -> None:
    from mtkd.demo import STUDENTS

    options = {name: load_options(ROOT / f"options/demo/{name}.yml") for name in STUDENTS}
    baseline = options["scratch"]
    assert baseline.train is not None and not baseline.teachers and len(options) > 1
    for one in options.values():
        assert one.train is not None
        assert one.datasets.train == baseline.datasets.train and one.network_g == baseline.network_g
        assert one.manual_seed == baseline.manual_seed and one.path.pretrain_network_g is None
        assert one.train.total_iter == baseline.train.total_iter and one.train.optim_g == baseline.train.optim_g


def test_weights_whose_host_has_gone_are_on_another_one_with_their_hash() -> None:
    from mtkd.zoo.table import ENTRIES

    gone = [e for e in ENTRIES.values() if any("cv.snu.ac.kr" in source.url for source in e.sources)]
    assert gone
    for entry in gone:
        others = [source for source in entry.sources if "cv.snu.ac.kr" not in source.url]
        assert any(source.sha256 for source in others), entry.name


def test_a_step_with_all_of_it_on_the_cpu_is_finite(tmp_path: Path) -> None:
    settings = {"total_iter": 1, "clip_grad_norm": 0.5, "accumulate": 2, "ema_decay": 0.9}
    latest = train(run_options(tmp_path, precision="bf16", channels_last=True, train=settings))
    saved = torch.load(latest, weights_only=True)
    assert saved.keys() >= {"params", "params_ema"}
    assert all(value.isfinite().all() for value in saved["params"].values())
