"""Option files read into `Options`: BasicSR's files, defaults, and every problem with its file, line and key."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from mtkd import catalog
from mtkd.config import (
    FusionOptions,
    NetworkOptions,
    OptionError,
    TermOptions,
    TrainSetOptions,
    load_options,
    make_options,
    resolved_yaml,
    yaml_loader,
)
from mtkd.training.paths import check_paths
from mtkd.training.schedule import weight_at
from tests.config.samples import (
    BASICSR_EDSR,
    TEACHER,
    TRAIN,
    changed,
    evaluation,
    fake,
    mtkd,
    only_problem,
    problems,
    train,
)


@pytest.fixture(autouse=True)
def without_basicsr(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # A name that mtkd lacks is looked for in BasicSR, whose import takes longer than all these tests.
    if "basicsr_losses" not in request.node.name:
        monkeypatch.setattr(catalog, "_from_basicsr", lambda kind, name: None)


@pytest.fixture
def basicsr_file(tmp_path: Path) -> Path:
    path = tmp_path / "edsr.yml"
    path.write_text(BASICSR_EDSR)
    return path


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(BASICSR_EDSR.splitlines(), start=1) if text in line)


# Reading


def test_an_option_file_of_basicsr_is_read_unchanged(basicsr_file: Path) -> None:
    options = load_options(basicsr_file)
    assert options.is_train
    assert (options.name, options.model_type, options.scale) == (
        "201_EDSR_Mx4_f64b16_DIV2K_300k_B16G1_wandb", "SRModel", 4,
    )  # fmt: skip
    assert options.datasets.train is not None and options.train is not None
    assert options.datasets.train.gt_size == 192
    assert list(options.val_sets) == ["val"] and options.val_sets["val"].name == "Set5"
    assert options.test_sets == {}
    assert options.network_g.type == "EDSR"
    assert options.network_g.args["num_feat"] == 64 and options.network_g.args["upscale"] == 4
    assert options.train.optim_g.arguments() == {
        "type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": (0.9, 0.99),
    }  # fmt: skip
    assert options.train.scheduler.arguments()["milestones"] == [200_000]
    assert options.train.total_iter == 300_000 and isinstance(options.train.total_iter, int)
    assert options.train.terms == {
        "pixel": TermOptions(weight=[(0, 1.0)], args={"type": "L1Loss", "reduction": "mean"})
    }
    assert options.val.val_freq == 5000 and isinstance(options.val.val_freq, int)
    assert options.val.metrics["psnr"] == {
        "type": "calculate_psnr", "crop_border": 4, "test_y_channel": False, "better": "higher",
    }  # fmt: skip
    assert options.logger.wandb is None


def test_each_basicsr_key_without_effect_gives_one_notice(basicsr_file: Path) -> None:
    notices = load_options(basicsr_file).notices
    names = {
        "use_shuffle", "num_worker_per_gpu", "dataset_enlarge_ratio", "prefetch_mode", "io_backend", "dist_params",
    }  # fmt: skip
    assert len(notices) == len(names)
    for name in names:
        assert sum(name in notice for notice in notices) == 1
    assert any(notice.startswith("datasets.train.io_backend, datasets.val.io_backend ignored: ") for notice in notices)


@pytest.mark.parametrize(
    "key", ["find_unused_parameters", "val.pbar", "path.ignore_resume_networks", "datasets.val.pin_memory"]
)
def test_a_key_is_ignored_only_where_basicsr_has_it(key: str) -> None:
    (notice,) = train({key: True}).notices
    assert notice.startswith(f"{key} ignored: ")
    name = key.split(".")[-1]
    assert only_problem(train, {f"train.{name}": True}).key == f"train.{name}"


def test_loader_workers_have_an_effect_only_where_images_stay_on_the_disk() -> None:
    keys = {"datasets.train.num_worker_per_gpu": 6}
    (notice,) = train(keys).notices
    assert notice.startswith("datasets.train.num_worker_per_gpu ignored: ") and "`cache`" in notice
    on_disk = train({**keys, "datasets.train.cache": "disk"})
    assert on_disk.notices == []
    assert isinstance(on_disk.datasets.train, TrainSetOptions) and on_disk.datasets.train.num_worker_per_gpu == 6
    assert only_problem(train, {"datasets.train.num_worker_per_gpu": -1}).key == "datasets.train.num_worker_per_gpu"


def test_a_file_that_says_only_what_it_must_calls_for_no_notice() -> None:
    assert train().notices == []


def test_a_test_file_has_test_sets_in_sorted_order() -> None:
    second = {"name": "Set14", "type": "PairedImageDataset", "dataroot_gt": "x"}
    options = evaluation({"datasets.test_2": second, "datasets.test_10": {**second, "name": "B"}})
    assert not options.is_train and options.train is None
    assert list(options.test_sets) == ["test_1", "test_10", "test_2"]
    assert options.val_sets == {}


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    options = train({"datasets.train.dataroot_gt": "~/div2k", "path.pretrain_network_g": "~/a.pth"})
    assert options.datasets.train is not None
    assert options.datasets.train.dataroot_gt == "/home/me/div2k"
    assert options.path.pretrain_network_g == "/home/me/a.pth"


def test_options_can_be_pickled_and_copied(basicsr_file: Path) -> None:
    options = load_options(basicsr_file)
    for twin in (pickle.loads(pickle.dumps(options)), copy.deepcopy(options), options.model_copy(deep=True)):
        assert twin == options
        assert check_paths(twin) == check_paths(options)


def test_an_option_error_can_be_pickled() -> None:
    with pytest.raises(OptionError) as raised:
        train({"scal": 2})
    twin = pickle.loads(pickle.dumps(raised.value))
    assert twin.problems == raised.value.problems and str(twin) == str(raised.value)


# Unknown and misspelt keys


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("manual_sed", 1, "Did you mean manual_seed?"),
        ("network_gg", {}, "Did you mean network_g?"),
        ("train.optim_g.lrr", 1, "Did you mean lr?"),
        ("train.optim_g.weight_decai", 1, "Did you mean weight_decay?"),
        ("train.ema_decayy", 0.9, "Did you mean ema_decay?"),
        ("train.scheduler.gama", 0.5, "Did you mean gamma?"),
        ("train.scheduler.periods", [10], "valid here: milestones"),
        ("train.terms", {}, "unknown key"),
        ("datasets.train.use_flip", True, "Did you mean use_hflip?"),
        ("datasets.train.batch_size", 4, "Did you mean batch_size_per_gpu?"),
        ("datasets.valid", {}, "Did you mean val?"),
        ("path.pretrain_model_g", None, "Did you mean pretrain_network_g?"),
        ("path.teacher_ckpt", "x.pth", "valid here: pretrain_network_g"),
        ("network_g.num_feet", 3, "Did you mean num_feat?"),
        ("network_g.args", {}, "not a key of EDSR"),
        ("val.metrics.psnr.crop_boarder", 2, "Did you mean crop_border?"),
        ("val.val_frequency", 2, "Did you mean val_freq?"),
        ("val.tile", {"tile_size": 3, "tile_padd": 1}, "Did you mean tile_pad?"),
        ("logger.wandb", {"project": "p", "resume": None}, "Did you mean resume_id?"),
        ("train.pixel_opt.reductoin", "mean", "Did you mean reduction?"),
        ("train.pixle_opt", {"type": "L1Loss"}, "Did you mean pixel_opt?"),
        (
            "train.perceptual_opt",
            {"type": "L1Loss"},
            "SRModel has no such term. Its terms are pixel_opt. One term takes any loss",
        ),
        ("file", "x", "unknown key"),
        ("tile", {"tile_size": 3}, "it belongs at val.tile"),
        ("ema_decay", 0.9, "it belongs at train.ema_decay"),
    ],
)
def test_an_unknown_key_is_an_error_with_a_hint(key: str, value: Any, words: str) -> None:
    problem = only_problem(train, {key: value})
    assert problem.key.startswith(key)
    assert words in problem.message


def test_a_problem_names_file_line_and_key(basicsr_file: Path) -> None:
    basicsr_file.write_text(BASICSR_EDSR.replace("    lr: !!float 1e-4", "    lr: !!float 1e-4\n    lrr: 3"))
    with pytest.raises(OptionError) as raised:
        load_options(basicsr_file)
    line = line_of("lr: !!float 1e-4") + 1
    assert str(raised.value) == f"{basicsr_file}:{line}: train.optim_g.lrr: not a key of Adam. Did you mean lr?"


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(basicsr_file: Path) -> None:
    text = BASICSR_EDSR
    for old, new in {
        "manual_seed: 10": "manual_sed: 10",
        "gt_size: 192": "gt_size: 190",
        "num_feat: 64": "num_feat: wide",
        "gamma: 0.5": "gamma: 0",
        "crop_border: 4": "crop_bordr: 4",
        "use_tb_logger: true": "use_tb_logger: yes",
    }.items():
        assert old in text
        text = text.replace(old, new)
    basicsr_file.write_text(text)
    found = problems(load_options, basicsr_file)
    assert [problem.key for problem in found] == [
        "manual_sed",
        "datasets.train.gt_size",
        "network_g.num_feat",
        "train.scheduler.gamma",
        "val.metrics.psnr.crop_border",
        "val.metrics.psnr.crop_bordr",
        "logger.use_tb_logger",
    ]
    assert [problem.line for problem in found] == [
        line_of("manual_seed"), line_of("gt_size"), line_of("num_feat"), line_of("gamma"), line_of("psnr:"),
        line_of("crop_border"), line_of("use_tb_logger"),
    ]  # fmt: skip
    with pytest.raises(OptionError, match="^7 problems in the options:\n"):
        load_options(basicsr_file)


# Values


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("scale", "4", "must be a whole number, found '4'"),
        ("scale", 0, "must be at least 1"),
        ("scale", 2.5, "must be a whole number"),
        ("name", "a/b", "names files and folders"),
        ("num_gpu", -1, "must be 'auto' or a number of devices"),
        ("precision", "bf17", "must be 'fp32', 'bf16' or 'fp16'"),
        ("compile", "yes", "must be true, false, 'graphs', 'reduce-overhead' or 'max-autotune', found 'yes'"),
        ("channels_last", "yes", "must be true or false, found 'yes'"),
        ("datasets.train.gt_size", 33, "must be a multiple of the scale 2"),
        ("datasets.train.gt_size", True, "must be a whole number"),
        ("datasets.train.cache", "vram", "must be 'auto', 'gpu', 'ram' or 'disk'"),
        ("datasets.train.type", "PairedImageDatasett", "Did you mean PairedImageDataset"),
        ("datasets.train.type", 3, "must be 'PairedImageDataset'"),
        ("datasets.train.filename_tmpl", "x4", "must hold {} once"),
        ("datasets.train.filename_tmpl", "{}x4", "there is no dataroot_lq"),
        ("network_g.num_feat", "wide", "must be a whole number, found 'wide'"),
        ("network_g.num_feat", 8.5, "must be a whole number"),
        ("network_g.upscale", 4, "is 4, and the run's scale is 2"),
        ("network_g", 3, "must be a mapping with a `type`"),
        ("network_g.type", "EDRS", "Did you mean EDSR"),
        ("train.total_iter", 0, "must be at least 1"),
        ("train.ema_decay", 1.0, "must be less than 1"),
        ("train.optim_g.lr", 0, "must be a positive number"),
        ("train.optim_g.lr", "1e-4", "must be a positive number"),
        ("train.optim_g.lr", float("nan"), "must be a positive number"),
        ("train.optim_g.betas", [0.9, 1.5], "out of range"),
        ("train.optim_g.betas", 0.9, "must be a list"),
        ("train.optim_g.weight_decay", -1, "out of range"),
        ("train.optim_g.type", "Adamm", "Did you mean Adam?"),
        ("train.optim_g.type", "LBFGS", "It is one of Adam"),
        ("train.scheduler.type", "StepLR", "Did you mean MultiStepLR?"),
        ("train.scheduler.milestones", [5, 5], "must increase"),
        ("train.scheduler", {"type": "CosineAnnealingRestartLR", "periods": [4, 4]}, "equally long"),
        ("train.clip_grad_norm", 0, "must be greater than 0"),
        ("train.pixel_opt.type", "L3Loss", "Did you mean L1Loss"),
        ("train.pixel_opt.reduction", "none", "must be 'mean' or 'sum'"),
        ("train.pixel_opt.loss_weight", "high", "must be a number or a schedule"),
        ("train.pixel_opt.loss_weight", [[0, 1], [0, 2]], "iterations must increase"),
        ("train.pixel_opt.loss_weight", [[0, 1], 3], "must be [iteration, weight]"),
        ("train.pixel_opt.loss_weight", [[0.5, 1]], "must be [iteration, weight]"),
        ("val.metrics.psnr.type", "calculate_psn", "Did you mean calculate_psnr"),
        ("val.metrics.psnr.better", "up", "must be 'higher' or 'lower'"),
        ("path", [1], "must be a mapping"),
        ("model_type", "SRModl", "Did you mean SRModel"),
        ("model_type", "torch.nn:L1Loss", "is not a method"),
        ("train.pixel_opt.type", "tests.config.fakes:not_callable", "neither a class nor a function"),
    ],
)
def test_a_wrong_value_is_an_error_that_says_what_is_right(key: str, value: Any, words: str) -> None:
    found = problems(train, {key: value})
    assert words in " | ".join(problem.message for problem in found)
    assert len(found) == 1 or key == "train.optim_g.type"


@pytest.mark.parametrize(
    "key",
    [
        "name", "scale", "datasets", "network_g", "train", "datasets.train.gt_size", "datasets.train.name",
        "datasets.val.dataroot_gt", "network_g.type", "train.optim_g", "train.optim_g.lr", "train.scheduler",
        "train.total_iter", "val.val_freq", "val.metrics.psnr.crop_border", "datasets.train",
    ],
)  # fmt: skip
def test_a_missing_required_key_is_named(key: str) -> None:
    assert key in [problem.key for problem in problems(train, drop=(key,)) if "required" in problem.message]


def test_periods_must_cover_the_run() -> None:
    cosine = {"type": "CosineAnnealingRestartLR", "periods": [4, 5], "restart_weights": [1, 1]}
    assert "add up to 9" in only_problem(train, {"train.scheduler": cosine}).message
    options = train({"train.scheduler": {**cosine, "periods": [4, 6]}})
    assert options.train is not None and options.train.scheduler.arguments()["eta_min"] == 0


def test_milestones_beyond_the_run_are_noted() -> None:
    (notice,) = train({"train.scheduler.milestones": [5, 10, 20]}).notices
    assert "[10, 20] are not reached" in notice


def test_a_crop_other_than_the_scale_is_noted() -> None:
    (notice,) = train({"val.metrics.psnr.crop_border": 4}).notices
    assert "val.metrics.psnr.crop_border is 4" in notice


# Keys without effect in this file


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("datasets.test_1", {"name": "x", "type": "PairedImageDataset", "dataroot_gt": "x"}),
        ("teachers.one", TEACHER),
        ("fusion", "mean"),
        ("target_store", "store"),
        ("train.optim_d", {"type": "Adam", "lr": 1e-4}),
        ("method.width", 3),
    ],
)
def test_a_key_without_effect_in_training_is_an_error(key: str, value: Any) -> None:
    assert only_problem(train, {key: value}).key.startswith(key.split(".one")[0])


def test_a_val_section_without_a_val_set_is_noted_and_still_checked() -> None:
    (notice,) = train(drop=("datasets.val",)).notices
    assert notice.startswith("val ignored: ")
    assert only_problem(train, {"val.val_frq": 3}, drop=("datasets.val",)).key == "val.val_frq"


def test_a_train_section_in_a_test_file_is_an_error() -> None:
    assert only_problem(evaluation, {"train": {"total_iter": 3}}).key == "train"


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (train, "datasets.val.gt_size", 32),
        (train, "datasets.val.batch_size_per_gpu", 1),
        (train, "val.suffix", "x"),
        (evaluation, "val.val_freq", 5),
        (evaluation, "logger", {"print_freq": 3}),
        (evaluation, "path.resume_state", "x.state"),
        (evaluation, "datasets.test_1.gt_size", 32),
        (evaluation, "datasets.test_1.use_hflip", True),
    ],
)
def test_a_key_of_basicsr_without_effect_in_this_kind_of_file_is_noted(make: Any, key: str, value: Any) -> None:
    options = make({key: value})
    (notice,) = options.notices
    assert notice.startswith(f"{key} ignored: ")
    assert options.model_dump() == make().model_dump()


def test_testing_random_weights_is_an_error() -> None:
    assert only_problem(evaluation, drop=("path",)).key == "path.pretrain_network_g"


def test_two_sets_of_one_name_are_an_error() -> None:
    again = {"name": "Set5", "type": "PairedImageDataset", "dataroot_gt": "x"}
    assert only_problem(evaluation, {"datasets.test_2": again}).key == "datasets.test_2.name"


def test_the_kind_of_file_can_be_demanded(basicsr_file: Path) -> None:
    assert load_options(basicsr_file, kind="train").is_train
    assert "a test file is expected" in only_problem(load_options, basicsr_file, kind="test").message


def test_lmdb_is_kept_and_memcached_is_refused() -> None:
    options = train({"datasets.train.io_backend": {"type": "lmdb"}, "datasets.val.io_backend": {"type": "lmdb"}})
    assert options.datasets.train is not None
    assert options.datasets.train.io_backend == options.datasets.evaluation["val"].io_backend == {"type": "lmdb"}
    assert resolved_yaml(options).count("io_backend: {type: lmdb}") == 2
    # BasicSR reads a type from it wherever it stands.
    assert "io_backend" not in resolved_yaml(train({}))
    assert "not supported" in only_problem(train, {"datasets.train.io_backend": {"type": "memcached"}}).message


def test_basicsrs_colour_of_one_set_is_that_of_all() -> None:
    assert train({"datasets.train.color": "rgb"}).channels == train({"datasets.val.color": None}).channels == 3
    with pytest.raises(OptionError, match="datasets.val.color: must be y as in datasets.train") as raised:
        train({"datasets.train.color": "y"})
    assert "num_in_ch and num_out_ch to 1" in str(raised.value)


def test_basicsrs_normalisation_keys_are_refused_unless_off() -> None:
    assert "not supported" in only_problem(train, {"datasets.val.mean": [0.5, 0.5, 0.5]}).message
    assert len(train({"datasets.train.mean": None, "datasets.train.std": None}).notices) == 2


# Networks


def test_the_scale_is_filled_into_the_network() -> None:
    assert train().network_g == NetworkOptions(type="EDSR", args={"num_feat": 8, "num_block": 1, "upscale": 2})


def test_a_whole_float_is_a_whole_number_where_one_is_wanted() -> None:
    args = train({"network_g.num_feat": 16.0}).network_g.args
    assert args["num_feat"] == 16 and isinstance(args["num_feat"], int)


def test_an_arch_from_outside_with_open_arguments_takes_any_key() -> None:
    network = {"type": "torch.nn:Identity", "anything": [1, {"a": 2}]}
    assert train({"network_g": network}).network_g.args == {"anything": [1, {"a": 2}]}


def test_the_number_of_teachers_is_filled_into_the_fusion_network() -> None:
    two = {"teachers": {"a": TEACHER, "b": TEACHER}, "fusion": {"network": {"type": "DCTSwin"}, "pretrain": "f.pth"}}
    options = mtkd(two)
    assert isinstance(options.fusion, FusionOptions)
    assert options.fusion.network.args == {"upscale": 2, "num_teachers": 2}
    two["fusion"] = {"network": {"type": "DCTSwin", "num_teachers": 3}, "pretrain": "f.pth"}
    assert "the number of teachers is 2" in only_problem(mtkd, two).message
    stage1 = {"model_type": "MTKDFusion", "network_g": {"type": "DCTSwin"}, "teachers": two["teachers"]}
    assert train(stage1).network_g.args == {"upscale": 2, "num_teachers": 2}


# Teachers


@pytest.mark.parametrize(
    ("make", "changes", "drop", "key", "words"),
    [
        (mtkd, {}, ("teachers",), "teachers", "imitates a teacher's image"),
        (mtkd, {"teachers.two": TEACHER}, (), "teachers", "Fuse them"),
        (mtkd, {"fusion": "mean"}, (), "fusion", "has no effect with 1 teacher"),
        (mtkd, {"fusion": "median", "teachers.two": TEACHER}, (), "fusion", "must be `mean` or"),
        (mtkd, {"teachers.one.pretrain": None}, (), "teachers.one.pretrain", "must be text"),
        (mtkd, {}, ("teachers.one.pretrain",), "teachers.one.pretrain", "required"),
        (mtkd, {"teachers.one.network.num_feet": 1}, (), "teachers.one.network.num_feet", "num_feat"),
        (fake, {}, ("teachers",), "teachers", "needs at least one"),
        (fake, {"target_store": "x"}, (), "target_store", "has no effect"),
        (fake, {"fusion": "mean"}, (), "fusion", "has no effect"),
    ],
)
def test_teachers_must_fit_the_method(
    make: Any, changes: dict[str, Any], drop: tuple[str, ...], key: str, words: str
) -> None:
    problem = only_problem(make, changes, drop)
    assert problem.key == key and words in problem.message


@pytest.mark.parametrize("name", ["a.b", "keys", "pop", ""])
def test_a_teachers_name_must_be_usable(name: str) -> None:
    data = changed(TRAIN, {"model_type": "MTKD"}, ("train.pixel_opt",))
    assert "cannot be a teacher's name" in only_problem(make_options, {**data, "teachers": {name: TEACHER}}).message


def test_stored_targets_stand_in_for_teachers() -> None:
    options = mtkd({"target_store": "store"}, ("teachers",))
    assert options.target_store == "store" and options.teachers == {}


def test_the_order_of_teachers_is_kept() -> None:
    options = mtkd({"teachers": {"z": TEACHER, "a": TEACHER, "m": TEACHER}, "fusion": "mean"})
    assert list(options.teachers) == ["z", "a", "m"] and options.fusion == "mean"


# Terms and method


def test_absent_terms_have_the_methods_defaults() -> None:
    options = mtkd()
    assert options.train is not None
    assert options.train.terms == {
        "pixel": TermOptions(weight=[(0, 0.1)], args={"type": "L1Loss"}),
        "target": TermOptions(weight=[(0, 1.0)], args={"type": "WaveletLoss"}),
    }
    assert options.train.off == []


def test_a_term_is_switched_off_by_null_and_on_by_its_name() -> None:
    options = mtkd({"train.pixel_opt": None, "train.spatial_opt": {"type": "MSELoss"}})
    assert options.train is not None
    assert list(options.train.terms) == ["target", "spatial"]
    assert options.train.off == ["pixel"]
    assert options.train.terms["spatial"] == TermOptions(weight=[(0, 1.0)], args={"type": "MSELoss"})


def test_no_active_loss_is_an_error() -> None:
    assert "no loss is active" in only_problem(train, drop=("train.pixel_opt",)).message
    assert "no loss is active" in only_problem(mtkd, {"train.pixel_opt": None, "train.target_opt": None}).message


def test_a_weight_may_be_a_schedule() -> None:
    options = mtkd({"train.target_opt": {"loss_weight": [[0, 0], [5e3, 1.0]], "levels": 1}})
    assert options.train is not None
    assert options.train.terms["target"].weight == [(0, 0.0), (5000, 1.0)]


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.2), (9, 0.2), (10, 0.2), (20, 0.6), (30, 1.0), (40, 0.75), (50, 0.5), (999, 0.5)]
)
def test_weights_are_linear_between_points_and_constant_outside(step: int, expected: float) -> None:
    assert weight_at([(10, 0.2), (30, 1.0), (50, 0.5)], step) == pytest.approx(expected, abs=1e-12)


def test_a_constant_weight_is_constant() -> None:
    assert {weight_at([(0, 0.3)], step) for step in (0, 1, 10**6)} == {0.3}


def test_a_method_from_outside_is_checked_like_ours() -> None:
    options = fake({"train.feature_opt": {"power": 1, "loss_weight": 0.25}, "method.every": 5e3})
    assert options.train is not None
    assert options.train.terms["feature"] == TermOptions(weight=[(0, 0.25)], args={"power": 1, "normalise": True})
    assert options.method == {"mode": "sum", "taps": ("body.0",), "every": 5000}


@pytest.mark.parametrize(
    ("changes", "drop", "key", "words"),
    [
        ({"train.feature_opt": {"powr": 1}}, (), "train.feature_opt.powr", "Did you mean power?"),
        ({"train.feature_opt": {"type": "L1Loss"}}, (), "train.feature_opt.type", "not a key of this term"),
        ({"train.feature_opt": {"normalise": 3}}, (), "train.feature_opt.normalise", "must be true or false"),
        ({"train.critic_opt": {}}, (), "train.optim_d", "trains a critic"),
        ({"method.modee": "sum"}, (), "method.modee", "Did you mean mode?"),
        ({"method.mode": "max"}, (), "method.mode", "must be 'sum' or 'mean'"),
        ({"method.taps": "body.0"}, (), "method.taps", "must be a list"),
        ({"method.every": 0}, (), "method", "every must be at least 1"),
        ({}, ("method",), "method.taps", "required"),
        ({"train.pixel_opt.type": "tests.config.fakes:FakeLoss"}, (), "train.pixel_opt.needed", "required"),
    ],
)
def test_options_of_terms_and_methods_are_checked(
    changes: dict[str, Any], drop: tuple[str, ...], key: str, words: str
) -> None:
    problem = only_problem(fake, changes, drop)
    assert problem.key == key and words in problem.message


def test_a_critic_needs_its_optimizer() -> None:
    options = fake({"train.critic_opt": {}, "train.optim_d": {"type": "AdamW", "lr": 1e-4}})
    assert options.train is not None and options.train.optim_d is not None
    assert options.train.optim_d.type == "AdamW"


def test_basicsr_losses_keep_no_weight_of_their_own() -> None:
    pytest.importorskip("mtkd.basicsr")
    options = train({"train.pixel_opt": {"type": "WeightedTVLoss", "loss_weight": 0.5}})
    assert options.train is not None
    assert options.train.terms["pixel"] == TermOptions(weight=[(0, 0.5)], args={"type": "WeightedTVLoss"})


def test_without_checks_names_are_not_looked_up() -> None:
    data = changed(TRAIN, {"network_g.type": "Nowhere", "train.any_opt": {"type": "What"}, "model_type": "None"})
    options = make_options(data, check=False)
    assert options.network_g == NetworkOptions(type="Nowhere", args={"num_feat": 8, "num_block": 1})
    assert options.train is not None and set(options.train.terms) == {"pixel", "any"}


# --force_yml and --debug


def test_force_replaces_and_adds_values(basicsr_file: Path) -> None:
    force = [
        "train:optim_g:lr=5e-4", "train:scheduler:milestones=[1, 2]", "val:tile:tile_size=64", "name=a=b",
        "train:pixel_opt=~", "train:pixel_opt:loss_weight=[[0, 1], [10, 0.5]]", "network_g:num_block=8",
    ]  # fmt: skip
    options = load_options(basicsr_file, force=force)
    assert options.train is not None
    assert options.train.optim_g.lr == 5e-4
    assert options.train.scheduler.args["milestones"] == [1, 2]
    assert options.val.tile is not None and options.val.tile.tile_size == 64
    assert options.name == "a=b"
    assert options.train.terms["pixel"].weight == [(0, 1.0), (10, 0.5)]
    assert options.network_g.args["num_block"] == 8


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("train:optim_g:lrr=1", "--force_yml: train.optim_g.lrr: not a key of Adam. Did you mean lr?"),
        ("manual_sed=3", "--force_yml: manual_sed: unknown key. Did you mean manual_seed?"),
        ("network_g:num_feat=wide", "--force_yml: network_g.num_feat: must be a whole number"),
        ("train:pixle_opt:type=L1Loss", "--force_yml: train.pixle_opt: "),
        ("scale", "'scale' is not of the form a:b=VALUE"),
        ("a::b=1", "is not of the form"),
        ("name:x=1", "name holds a value"),
        ("scale=[1", "--force_yml: scale: not YAML"),
    ],
)
def test_a_wrong_force_item_points_at_the_command_line(basicsr_file: Path, item: str, words: str) -> None:
    problem = only_problem(load_options, basicsr_file, force=[item])
    assert problem.line is None and words in str(problem)


def test_debug_is_basicsrs_debug(basicsr_file: Path) -> None:
    options = load_options(basicsr_file, debug=True)
    assert options.name == "debug_201_EDSR_Mx4_f64b16_DIV2K_300k_B16G1_wandb"
    assert options.val.val_freq == 8
    assert (options.logger.print_freq, options.logger.save_checkpoint_freq) == (1, 8)
    assert options.logger.use_tb_logger is False


def test_a_name_that_holds_debug_means_the_same(basicsr_file: Path) -> None:
    options = load_options(basicsr_file, force=["name=my_debug_run"], debug=False)
    assert options.name == "my_debug_run" and options.val.val_freq == 8
    assert load_options(basicsr_file, force=["name=debug_x"], debug=True).name == "debug_x"


def test_debug_of_a_test_file_changes_only_its_name() -> None:
    options = make_options(changed(TRAIN, {}, ("datasets.val", "val")), debug=True)
    assert options.name == "debug_small" and options.logger.print_freq == 1


# Resolved files and paths


@pytest.mark.parametrize("make", [train, mtkd, fake, evaluation])
def test_the_resolved_file_loads_back_equal_and_says_everything(make: Any, tmp_path: Path) -> None:
    options = make({"manual_seed": 7})
    text = resolved_yaml(options)
    path = tmp_path / "resolved.yml"
    path.write_text(text)
    again = load_options(path)
    assert again.model_dump() == options.model_dump()
    assert resolved_yaml(again) == text
    assert "precision: fp32" in text


def test_the_resolved_file_keeps_schedules_forced_values_and_terms_that_are_off(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    changes = {"train.pixel_opt": None, "train.target_opt": {"loss_weight": [[0, 0], [9, 1]]}}
    path.write_text(resolved_yaml(mtkd(changes)))
    forced = load_options(path, force=["train:optim_g:lr=0.5"])
    path.write_text(resolved_yaml(forced))
    again = load_options(path)
    assert again.train is not None
    assert again.train.optim_g.lr == 0.5
    assert again.train.off == ["pixel"]
    assert again.train.terms["target"].weight == [(0, 0.0), (9, 1.0)]


def test_missing_files_are_found_by_check_paths_only(basicsr_file: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    text = BASICSR_EDSR.replace("datasets/Set5/GTmod12", str(tmp_path / "there"))
    basicsr_file.write_text(text.replace("pretrain_network_g: ~", "pretrain_network_g: nowhere.pth"))
    found = check_paths(load_options(basicsr_file))
    assert [(problem.key, problem.line) for problem in found] == [
        ("datasets.train.dataroot_gt", line_of("dataroot_gt: datasets/DIV2K")),
        ("datasets.train.dataroot_lq", line_of("dataroot_lq: datasets/DIV2K")),
        ("datasets.val.dataroot_lq", line_of("dataroot_lq: datasets/Set5")),
        ("path.pretrain_network_g", line_of("pretrain_network_g")),
    ]
    assert all(str(basicsr_file) == problem.file for problem in found)


def test_zoo_names_are_no_paths() -> None:
    found = check_paths(mtkd({"target_store": "no/store"}))
    assert [problem.key for problem in found] == [
        "datasets.train.dataroot_gt", "datasets.val.dataroot_gt", "target_store",
    ]  # fmt: skip


# Robustness


@pytest.mark.slow
def test_no_wrong_value_anywhere_raises_anything_but_an_option_error() -> None:
    def paths(data: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        found = [prefix] if prefix else []
        if isinstance(data, dict):
            for key, value in data.items():
                found += paths(value, (*prefix, key))
        return found

    fusion = {"network": {"type": "DCTSwin"}, "pretrain": "f.pth"}
    base = changed(
        yaml_loader.parse(BASICSR_EDSR).data,
        {
            "model_type": "MTKD",
            "teachers": {"a": TEACHER, "b": TEACHER},
            "fusion": fusion,
            "val.tile": {"tile_size": 8},
        },
    )
    make_options(changed(base, {"network_g.upscale": 4}))
    tried = 0
    for path in paths(base):
        for value in (None, True, -1.5, "text", [[]], {}, {"type": 3}):
            try:
                make_options(changed(base, {".".join(path): value}))
            except OptionError as error:
                assert error.problems
            tried += 1
    assert tried > 400


def test_a_file_that_is_no_mapping_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.yml").write_text("- 1\n- 2\n")
    assert "is a mapping" in only_problem(load_options, tmp_path / "list.yml").message
