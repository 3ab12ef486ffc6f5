"""`base`, `{scale}`, `{network_g}`: what is written once holds for many runs, and problems name their own line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from mtkd import catalog
from mtkd.cli import main
from mtkd.config import Options, layers, load_options, resolved_yaml, yaml_loader
from mtkd.config.diff import flat
from mtkd.variants import TEACHERS
from tests.config.samples import TEST, TRAIN, changed, only_problem, problems

ROOT = Path(__file__).parents[2]
BASE = yaml_loader.dump(changed(TRAIN, {}, ("name", "scale", "network_g")))
RUN = """\
base: ../base.yml
name: run_x{scale}
network_g: {type: EDSR, num_feat: 8, num_block: 1}
"""


@pytest.fixture
def write(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "base.yml").write_text(BASE)

    def write(text: str, *, base: str | None = None) -> Path:
        if base is not None:
            (tmp_path / "base.yml").write_text(base)
        path = tmp_path / "runs/run.yml"
        path.write_text(text)
        return path

    return write


def same(first: Options, second: Options) -> bool:
    return flat(first) == flat(second)


def test_a_file_on_its_base_is_the_file_written_out(write: Any, tmp_path: Path) -> None:
    (tmp_path / "whole.yml").write_text(yaml_loader.dump(changed(TRAIN, {"name": "run_x2"})))
    layered = load_options(write(RUN), scale=2)
    assert same(layered, load_options(tmp_path / "whole.yml"))
    assert layered.file == str(tmp_path / "runs/run.yml")


def merged(write: Any, base: str, top: str) -> Any:
    return layers.load(write("base: ../base.yml\n" + top, base=base)).data


@pytest.mark.parametrize(
    ("base", "top", "expected"),
    [
        ("a: {x: 1, y: {z: 2}}", "a: {y: {w: 3}}", {"a": {"x": 1, "y": {"z": 2, "w": 3}}}),
        ("a: [1, 2, 3]", "a: [4]", {"a": [4]}),
        ("a: {x: 1}", "a: 2", {"a": 2}),
        ("a: 2", "a: {x: 1}", {"a": {"x": 1}}),
        ("a: {x: 1, y: 2}", "a: {x: ~}", {"a": {"y": 2}}),
        ("a: {x: 1}", "a: ~", {}),
        ("a: 1", "b: ~", {"a": 1, "b": None}),
        ("a: {type: S, m: 1}", "a: {type: S, g: 2}", {"a": {"type": "S", "m": 1, "g": 2}}),
        ("a: {type: S, m: 1}", "a: {g: 2}", {"a": {"type": "S", "m": 1, "g": 2}}),
        ("a: {type: S, m: 1}", "a: {type: C, p: 2}", {"a": {"type": "C", "p": 2}}),
        ("train: {pixel_opt: {type: L1Loss}}", "train: {pixel_opt: ~}", {"train": {"pixel_opt": None}}),
        ("train: {pixel_opt: {eps: 1}}", "train: {pixel_opt: {eps: ~}}", {"train": {"pixel_opt": {}}}),
        ("fusion: {param_key: x}", "fusion: {param_key: ~}", {"fusion": {"param_key": None}}),
        ("t: {a: 1, b: 2}", "t: {c: 3, b: 4}", {"t": {"a": 1, "b": 4, "c": 3}}),
    ],
)
def test_how_values_are_merged(write: Any, base: str, top: str, expected: Any) -> None:
    data = merged(write, base, top)
    assert data == expected and str(data) == str(expected)  # the order of keys too


def test_a_term_is_switched_off_and_not_reset_to_its_default(write: Any) -> None:
    top = RUN + "model_type: MTKD\nteachers: {one: {network: {type: EDSR}, pretrain: x.pth}}\ntrain: {pixel_opt: ~}\n"
    options = load_options(write(top), scale=2)
    assert options.train is not None and options.train.off == ["pixel"] and "pixel" not in options.train.terms


def test_problems_name_the_file_and_the_line_that_say_it(write: Any, tmp_path: Path) -> None:
    base = BASE.replace("gt_size: 32", "gt_size: none")
    line = next(n for n, text in enumerate(base.splitlines(), 1) if "gt_size" in text)
    found = problems(load_options, write(RUN + "train: {total_itr: 5}\n", base=base), scale=2)
    assert [(Path(p.file), p.line, p.key) for p in found] == [
        (tmp_path / "runs/run.yml", 4, "train.total_itr"),
        (tmp_path / "base.yml", line, "datasets.train.gt_size"),
    ]
    # The base's milestones are not this scheduler's: what it lacks is missed on the line of this file.
    cosine = RUN + "train: {scheduler: {type: CosineAnnealingRestartLR}}\n"
    problem = only_problem(load_options, write(cosine, base=BASE), scale=2)
    assert (problem.key, problem.line, Path(problem.file).name) == ("train.scheduler.periods", 4, "run.yml")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("base: nothing.yml", "there is no file"),
        ("base: [a.yml, b.yml]", "must be the path of one option file"),
        ("base: ~", "must be the path of one option file"),
        ("base: ''", "path is empty"),
        ("base: list.yml", "a base is an option file"),
        ("base: run.yml", "has no base of its own"),
        ("base: .", "cannot be read"),
    ],
)
def test_what_is_no_base(write: Any, tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "runs/list.yml").write_text("- a\n")
    assert words in only_problem(load_options, write(line + "\n")).message


def test_a_base_of_a_base_is_refused_on_its_line(write: Any) -> None:
    problem = only_problem(load_options, write(RUN, base="a: 1\nbase: x.yml\n"))
    assert (Path(problem.file).name, problem.line, problem.key) == ("base.yml", 2, "base")


def test_only_a_file_names_its_base(write: Any) -> None:
    problem = only_problem(load_options, write(RUN), scale=2, force=["base=other.yml"])
    assert problem.key == "base" and "has no effect here" in problem.message


def test_scale_stands_in_texts_and_nothing_else_in_braces_does(write: Any) -> None:
    more = """\
val: {metrics: {psnr: {crop_border: '{scale}'}}}
datasets:
  train: {dataroot_lq: 'lq/X{scale}', filename_tmpl: '{}x4'}
"""
    for scale in (2, 4):
        options = load_options(write(RUN + more), scale=scale)
        assert (options.scale, options.name) == (scale, f"run_x{scale}")
        images = options.datasets.train
        assert (images.dataroot_lq, images.filename_tmpl) == (f"lq/X{scale}", "{}x4")  # pyright: ignore
        assert options.val.metrics["psnr"]["crop_border"] == scale
        assert options.network_g.args["upscale"] == scale


def test_teacher_is_that_of_the_students_family(write: Any) -> None:
    text = "model_type: AT\nteachers: {teacher: 'zoo:{teacher}_x{scale}'}\n"
    file = write(RUN + text)
    problem = only_problem(load_options, file, scale=2)
    assert problem.key == "teachers.teacher" and problem.line == 5
    assert "a network that is written out has none" in problem.message and "rcan of rcan_lw" in problem.message
    for student, teacher in TEACHERS.items():
        options = load_options(file, scale=2, force=[f"network_g={student}"])
        assert options.teachers["teacher"].pretrain == f"zoo:{teacher}_x2"
    assert "edsr_l has none" in only_problem(load_options, file, scale=2, force=["network_g=edsr_l"]).message
    forced = load_options(file, scale=2, force=["network_g=edsr_tiny", "teachers:teacher=zoo:edsr_m_x2"])
    assert forced.teachers["teacher"].pretrain == "zoo:edsr_m_x2"


def test_the_scale_that_is_given_counts(write: Any) -> None:
    file = write(RUN + "scale: 4\n")
    assert load_options(file).name == "run_x4"
    assert load_options(file, force=["scale=2", "name=other_{scale}"]).name == "other_2"
    assert load_options(file, force=["scale=4"], scale=2).name == "run_x2"
    problem = only_problem(load_options, write(RUN))
    assert problem.key == "scale" and "--scale N" in problem.message
    # The file's own word about its network is not overruled.
    problem = only_problem(load_options, write(RUN.replace("num_block: 1", "upscale: 4")), scale=2)
    assert problem.key == "network_g.upscale" and problem.line == 3


def test_what_is_resolved_loads_back_equal(write: Any, tmp_path: Path) -> None:
    options = load_options(write(RUN), scale=2)
    text = resolved_yaml(options)
    assert "base" not in yaml_loader.parse(text).data and "{scale}" not in text
    (tmp_path / "again.yml").write_text(text)
    assert same(options, load_options(tmp_path / "again.yml"))


def test_config_show_prints_an_option_file(write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(RUN)
    assert main(["config", "show", str(file), "--scale", "2", "--force_yml", "train:total_iter=7"]) == 0
    (tmp_path / "shown.yml").write_text(capsys.readouterr().out)
    assert same(load_options(tmp_path / "shown.yml"), load_options(file, scale=2, force=["train:total_iter=7"]))
    assert main(["config", "diff", str(file), str(tmp_path / "shown.yml"), "--scale", "2"]) == 1
    assert capsys.readouterr().out == "- train.total_iter: 10\n+ train.total_iter: 7\n"
    with pytest.raises(SystemExit) as end:
        main(["config", "show", str(file), "--scale", "two"])
    assert end.value.code == 2


def test_check_takes_the_runs_of_a_folder_and_not_their_bases(
    write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(RUN)
    assert main(["check", str(tmp_path), "--scale", "2"]) == 0
    assert "1 of 1 option files are valid" in capsys.readouterr().out
    assert main(["check", str(tmp_path)]) == 2
    assert "--scale N" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "base.yml"), "--scale", "2"]) == 2
    (tmp_path / "base.yml").write_text("base: runs/run.yml\n")
    assert main(["check", str(tmp_path), "--scale", "2"]) == 2
    assert "0 of 2 option files are valid" in capsys.readouterr().out


def test_a_test_file_stands_on_a_base_too(write: Any) -> None:
    base = yaml_loader.dump(changed(TEST, {}, ("name", "scale", "network_g", "path")))
    top = RUN + "path: {pretrain_network_g: 'zoo:edsr_m_x{scale}'}\n"
    options = load_options(write(top, base=base), scale=3, kind="test")
    assert options.path.pretrain_network_g == "zoo:edsr_m_x3" and not options.is_train


def test_crops_of_a_size_for_each_scale(write: Any) -> None:
    sizes = "datasets: {train: {gt_size: {x2: 32, x3: 33}}}\n"
    for scale, side in ((2, 32), (3, 33)):
        images = load_options(write(RUN + sizes), scale=scale).datasets.train
        assert images.gt_size == side  # pyright: ignore
    problem = only_problem(load_options, write(RUN + sizes), scale=4)
    assert problem.key == "datasets.train.gt_size" and "says nothing for x4; it has x2, x3" in problem.message
    problem = only_problem(load_options, write(RUN + sizes.replace("x3: 33", "3x: 33")), scale=2)
    assert problem.key == "datasets.train.gt_size.3x" and problem.line == 4
    problem = only_problem(load_options, write(RUN + sizes.replace("33", "32")), scale=3)
    assert problem.key == "datasets.train.gt_size" and "multiple of the scale 3" in problem.message


def test_the_network_is_named_in_texts_by_its_name_or_its_type(write: Any) -> None:
    more = "path: {pretrain_network_g: 'weights/{network_g}_x{scale}/{}.pth'}\n"
    text = RUN.replace("run_x{scale}", "AT_{network_g}_x{scale}") + more
    options = load_options(write(text), scale=2)
    assert (options.name, options.path.pretrain_network_g) == ("AT_EDSR_x2", "weights/EDSR_x2/{}.pth")
    options = load_options(write(text), scale=4, force=["network_g=edsr_m"])
    assert (options.name, options.path.pretrain_network_g) == ("AT_edsr_m_x4", "weights/edsr_m_x4/{}.pth")
    assert options.network_g.type == "EDSR" and "{network_g}" not in resolved_yaml(options)
    assert load_options(write(text), scale=2, force=["name=mine_{network_g}"]).name == "mine_EDSR"
    lines = text.splitlines(keepends=True)
    problem = only_problem(load_options, write("".join(lines[:2] + lines[3:])), scale=2)
    assert problem.key == "network_g" and "missing" in problem.message


WHOLE = """\
name: MTKD_{student}_x{scale}_best
model_type: MTKD
scale: {scale}
manual_seed: 10
datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    dataroot_gt: datasets/DIV2K/DIV2K_train_HR
    dataroot_lq: datasets/DIV2K/DIV2K_train_LR_bicubic/X{scale}
    filename_tmpl: '{}x{scale}'
    gt_size: {gt_size}
    use_hflip: true
    use_rot: true
    batch_size_per_gpu: 16
  val:
    name: DIV2K_valid
    type: PairedImageDataset
    dataroot_gt: datasets/DIV2K/DIV2K_valid_HR
    dataroot_lq: datasets/DIV2K/DIV2K_valid_LR_bicubic/X{scale}
    filename_tmpl: '{}x{scale}'
network_g: {network}
teachers:
  edsr:
    network:
      {type: EDSR, num_feat: 256, num_block: 32, res_scale: 0.1, img_range: 255., rgb_mean: [0.4488, 0.4371, 0.4040]}
    pretrain: zoo:edsr_l_x{scale}
  swinir:
    network:
      type: SwinIR
      in_chans: 3
      img_size: 64
      window_size: 8
      img_range: 1.
      depths: [6, 6, 6, 6, 6, 6]
      embed_dim: 180
      num_heads: [6, 6, 6, 6, 6, 6]
      mlp_ratio: 2
      upsampler: pixelshuffle
      resi_connection: 1conv
    pretrain: zoo:swinir_m_df2k_x{scale}
  rcan:
    network:
      type: RCAN
      num_feat: 64
      num_group: 10
      num_block: 20
      squeeze_factor: 16
      res_scale: 1
      img_range: 255.
      rgb_mean: [0.4488, 0.4371, 0.4040]
    pretrain: zoo:rcan_x{scale}
fusion:
  network:
    {type: DCTSwin, embed_dim: 96, depths: [4, 4], num_heads: [6, 6], window_size: 8, mlp_ratio: 2, drop_path_rate: 0.1}
  pretrain: experiments/MTKD_fusion_x{scale}/models/net_g_latest.pth
target_store: experiments/targets/MTKD_fusion_x{scale}
train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: 1e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [100000, 200000], gamma: 0.1}
  total_iter: 250000
  pixel_opt: ~
  spatial_opt: {type: L1Loss, loss_weight: 1.0}
  target_opt:
    {type: WaveletLoss, wavelet: haar, levels: 1, criterion: charbonnier, eps: 0.02, band_weights: {ll: 0}}
val:
  val_freq: 5000
  save_img: false
  metrics:
    psnr: {type: calculate_psnr, crop_border: {scale}, test_y_channel: true}
    ssim: {type: calculate_ssim, crop_border: {scale}, test_y_channel: true}
logger: {print_freq: 100, save_checkpoint_freq: 5000, use_tb_logger: true}
"""
STUDENTS = {
    "edsr_m": "{type: EDSR, num_feat: 64, num_block: 16, res_scale: 1, img_range: 255., "
    "rgb_mean: [0.4488, 0.4371, 0.4040]}",
    "rcan_lw": "{type: RCAN, num_feat: 64, num_group: 10, num_block: 6, squeeze_factor: 16, res_scale: 1, "
    "img_range: 255., rgb_mean: [0.4488, 0.4371, 0.4040]}",
    "swinir_s": "{type: SwinIR, in_chans: 3, img_size: 64, window_size: 8, img_range: 1., depths: [6, 6, 6, 6], "
    "embed_dim: 60, num_heads: [6, 6, 6, 6], mlp_ratio: 2, upsampler: pixelshuffledirect, resi_connection: 1conv}",
}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("student", STUDENTS)
def test_a_recipe_is_the_file_that_writes_all_of_it_out(tmp_path: Path, student: str, scale: int) -> None:
    text = WHOLE.replace("{student}", student).replace("{network}", STUDENTS[student])
    text = text.replace("{scale}", str(scale)).replace("{gt_size}", str(48 * scale))
    (tmp_path / "whole.yml").write_text(text)
    recipe = ROOT / "options/train/MTKD/stage2_best.yml"
    short = load_options(recipe, scale=scale, force=[f"network_g={student}"])
    assert plain(short) == plain(load_options(tmp_path / "whole.yml"))


def plain(options: Options) -> Any:
    """Everything the options say, the defaults of the networks' constructors included."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") in catalog.ARCHS:
            bound = inspect.signature(catalog.get("arch", value["type"])).bind(
                **{key: item for key, item in value.items() if key != "type"}
            )
            bound.apply_defaults()
            value = {"type": value["type"], **bound.arguments}
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        return [walk(item) for item in value] if isinstance(value, list | tuple) else value

    data = walk(options.model_dump())
    return {**data, "order": list(options.teachers)}
