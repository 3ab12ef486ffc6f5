"""`mtkd compare`: results paired image by image."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mtkd.cli import main
from mtkd.inference.evaluate import Evaluation
from mtkd.inference.read_results import read_measured
from mtkd.inference.results import write_results
from mtkd.training.loop import train
from tests.runs import make_images, run_options

DEMO = Path(__file__).parents[2] / "datasets/demo"
SIZES = {"Set5": 5, "Set14": 14}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def results(folder: str, gain: float, *, seed: int = 0, name: str = "net", facts: dict | None = None, **changes) -> str:
    """A results folder as `mtkd test` writes it; `changes`: set -> its images' names."""
    random, rows = np.random.default_rng(seed), []
    for dataset, size in SIZES.items():
        images = changes.get(dataset, [f"image{number}" for number in range(size)])
        alike = np.random.default_rng(size).normal(28, 3, len(images)) + gain + random.normal(0, 0.01)
        psnr = alike + random.normal(0, 0.02, len(images))
        values = {"psnr": tuple(psnr.tolist()), "ssim": tuple((psnr / 40).tolist())}
        rows.append((name, Evaluation(dataset, tuple(images), values)))
    write_results(Path(folder), rows, {"name": name} if facts is None else facts)
    return folder


def lines_of(file: str) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def test_two_results_are_compared_image_by_image(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = results("a", 0.1, seed=1, name="ours"), results("b", 0.0, seed=2, name="theirs")
    assert main(["compare", a, f"{b}/metrics.csv", "--csv", "out.csv"]) == 0
    shown = capsys.readouterr().out
    assert "A: ours" in shown and "B: theirs" in shown and "better" in shown
    assert "supports no claim about methods" in shown
    read = {(line["dataset"], line["metric"]): line for line in lines_of("out.csv")}
    assert list(read) == [(name, metric) for name in ("pooled", *SIZES) for metric in ("psnr", "ssim")]
    first, second = (read_measured(spec).values["Set14"]["psnr"] for spec in (a, b))
    expected = stats.ttest_rel([*first.values()], [second[image] for image in first])
    line = read["Set14", "psnr"]
    assert float(line["p"]) == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval()
    assert (float(line["alone_low"]), float(line["alone_high"])) == pytest.approx((low, high))
    wins = sum(value > second[image] for image, value in first.items())
    assert int(line["wins"]) == wins and f"{wins}/14" in shown
    assert line["about"] == "networks" and float(line["mean"]) == pytest.approx(np.mean([*first.values()]))


def test_several_seeds_speak_of_methods(capsys: pytest.CaptureFixture[str]) -> None:
    a = [results(f"a{seed}", 0.1, seed=seed) for seed in range(3)]
    b = [results(f"b{seed}", 0.0, seed=10 + seed) for seed in range(3)]
    assert main(["compare", "--a", *a, "--b", *b, "--metric", "psnr", "--csv", "out.csv"]) == 0
    shown = capsys.readouterr().out
    assert "3 runs of each" in shown and "no claim about methods" not in shown
    assert "net (A)" in shown and "ssim" not in shown
    line = lines_of("out.csv")[0]
    assert (line["dataset"], line["seeds"], line["about"]) == ("pooled", "3", "methods")


def test_a_network_of_several_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"p": (1.0, 2.0, 3.0), "q": (2.0, 3.5, 4.0)}
    write_results(
        Path("both"), [(name, Evaluation("d", ("x", "y", "z"), {"psnr": v})) for name, v in values.items()], {}
    )
    assert main(["compare", "both:q", "both:p"]) == 0
    assert "+1.167" in capsys.readouterr().out
    assert main(["compare", "both", "both:p"]) == 2
    assert "holds 2 networks: p, q. Name one: `both:p`" in capsys.readouterr().err
    assert main(["compare", "both:r", "both:p"]) == 2
    assert "no network called 'r', but p, q" in capsys.readouterr().err


def test_the_better_direction_comes_from_the_results_or_the_metric(capsys: pytest.CaptureFixture[str]) -> None:
    def written(folder: str, metric: str, shift: float, facts: dict) -> str:
        values = tuple((np.arange(6) / 10 + shift + np.array([0, 1e-3, 0, 2e-3, 0, 0])).tolist())
        write_results(Path(folder), [("net", Evaluation("d", tuple("uvwxyz"), {metric: values}))], facts)
        return folder

    told = {"metrics": {"mine": {"type": "my:metric", "better": "lower"}}}
    assert main(["compare", written("a", "mine", 0.0, told), written("b", "mine", 0.5, told)]) == 0
    assert "+0.5000" in capsys.readouterr().out
    assert main(["compare", written("c", "lpips", 0.0, {}), written("d", "lpips", 0.5, {})]) == 0
    assert "+0.5000" in capsys.readouterr().out
    assert main(["compare", written("e", "mine", 0.0, {}), written("f", "mine", 0.5, {})]) == 2
    assert "which value of 'mine' is the better one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "Two results are compared, and 1 given"),
        (["--a", "a", "b", "--b", "b"], "A has 2 results and B 1"),
        (["--a", "a", "a", "--b", "b", "c"], "a is given twice on one side"),
        (["a", "b", "--a", "a", "--b", "b"], "or two results without these words"),
        (["a", "nothing"], "nothing does not exist"),
        (["a", "images"], "different images of Set14; only in the first: image13; only in the second: other"),
        (["a", "sets"], "different sets; only in the first: Set14"),
        (["a", "b", "--metric", "lpips"], "--metric lpips: not all results have it. They have psnr, ssim"),
        (["a", "empty"], "empty holds no metrics.csv"),
        (["a", "experiments/old"], "`mtkd test experiments/old`"),
        (["a", "torn.csv"], "torn.csv, line 2 has another number of cells"),
        (["a", "words.csv"], "words.csv, line 2: 'good' is not a number"),
        (["a", "twice.csv"], "line 3: d/x stands there twice"),
        (["a", "other.csv"], "expected columns network, dataset, image"),
        (["cropped4", "cropped2"], "measured psnr differently"),
        (["a", "notjson"], "metrics.json is not JSON"),
    ],
)
def test_what_cannot_be_paired_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        results(name, 0.1)
    results("images", 0.0, Set14=[*(f"image{number}" for number in range(13)), "other"])
    results("sets", 0.0)
    file = Path("sets/metrics.csv")
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "Set14" not in line))
    for border in (2, 4):
        results(f"cropped{border}", 0.0, facts={"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": border}}})
    results("notjson", 0.0)
    Path("notjson/metrics.json").write_text("{")
    Path("empty").mkdir()
    Path("experiments/old/models").mkdir(parents=True)
    Path("torn.csv").write_text("network,dataset,image,psnr\nnet,d,x\n")
    Path("words.csv").write_text("network,dataset,image,psnr\nnet,d,x,good\n")
    Path("twice.csv").write_text("network,dataset,image,psnr\nnet,d,x,1\nnet,d,x,2\n")
    Path("other.csv").write_text("a,b\n1,2\n")
    assert main(["compare", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_metrics_measured_differently_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for border in (2, 4):
        results(f"cropped{border}", 0.0, facts={"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": border}}})
    assert main(["compare", "cropped2", "cropped4", "--metric", "ssim"]) == 0
    assert "psnr" not in capsys.readouterr().out


def test_missing_values_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("net", Evaluation("d", tuple("vwxyz"), {"psnr": (1.0, 2.0, math.inf, 4.0, 5.5)}))]
    write_results(Path("a"), rows, {})
    Path("b.csv").write_text("network,dataset,image,psnr\nnet,d,z,5\nnet,d,y,3\nnet,d,x,3\nnet,d,w,\nnet,d,v,0.5\n")
    assert main(["compare", "a", "b.csv", "--csv", "out.csv"]) == 0
    (line,) = lines_of("out.csv")
    assert (line["images"], line["dropped"]) == ("3", "2")
    assert float(line["gain"]) == pytest.approx(np.mean([0.5, 1.0, 0.5]))


def table(file: str, **sets: str) -> str:
    """A `metrics.csv` of PSNR; `sets`: set -> its images' cells, apart by spaces, "-" for an empty one."""
    cells = [(name, number, cell) for name, line in sets.items() for number, cell in enumerate(line.split())]
    lines = [f"{file},{name},image{number},{cell.strip('-')}\n" for name, number, cell in cells]
    Path(file).write_text("network,dataset,image,psnr\n" + "".join(lines))
    return file


def said_by(arguments: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 0) -> str:
    assert main(["compare", *arguments]) == code
    shown = capsys.readouterr()
    return " ".join((shown.err if code else shown.out).split())


@pytest.mark.parametrize("spelling", ["./R/", "R/.", "link", "R/metrics.csv", "R:net", "other/../R", "linked.csv"])
def test_a_run_is_one_run_however_its_path_is_spelt(spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("R", "other", "third"):
        results(name, 0.1)
    Path("link").symlink_to("R")
    Path("linked.csv").symlink_to("R/metrics.csv")
    said = said_by(["--a", "R", spelling, "--b", "other", "third"], capsys, code=2)
    assert f"R and {spelling}, given twice on one side, are one run. Name each run once." in said
    said = said_by(["--a", "R", "other", "--b", "third", spelling], capsys, code=2)
    assert f"R and {spelling}, given as A and as B, are one run." in said
    assert "R is given as A and as B; it is one run." in said_by(["R", "R"], capsys, code=2)


def test_what_is_left_out_is_told_by_set_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    a = table("a.csv", d="1 2 inf 4 5", e="1 2.5 3")
    b = table("b.csv", d="0 nan 3 - 4.5", e="2 2 2.5")
    said = said_by([a, b], capsys)
    told = (
        "Left out, because some run has no finite value: 3 of 5 images of d by psnr (infinite in A, NaN or empty in B)."
    )
    assert told in said
    assert "Left out" not in said_by([table("c.csv", d="1 2 3"), table("e.csv", d="2 2 4")], capsys)


def test_a_set_without_any_value_is_told_with_what_it_takes_away(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = table("a.csv", d="1 2 3", e="inf inf"), table("b.csv", d="2 2.5 3", e="1 2")
    said = said_by([a, b], capsys)
    assert "all 2 images of e by psnr (infinite in A); all sets together by psnr (no pair of runs has" in said
    assert "p is corrected: one comparison." in said


def test_runs_without_any_value_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    a = [table(f"a{seed}.csv", d=cells) for seed, cells in enumerate(("1 2 3", "nan nan nan", "1 2.5 3"))]
    b = [table(f"b{seed}.csv", d=cells) for seed, cells in enumerate(("0 1 3", "0 1 2.5", "inf - inf"))]
    said = said_by(["--a", *a, "--b", *b], capsys)
    assert "2 of 3 pairs of runs on d by psnr (infinite in B, NaN or empty in A and B)" in said
    assert "One run of each is left: the interval is over images alone." in said and "3 runs of each" not in said
    said = said_by(["--a", *a[:2], a[2], "--b", *b[:2], table("b3.csv", d="0 1 2")], capsys)
    assert "1 of 3 pairs of runs on d by psnr (NaN or empty in A)" in said and "3 runs of each" in said
    said = said_by(["--a", *a[1:], "--b", *b[1:]], capsys, code=2)
    assert "Nothing is left to compare by psnr. " in said


def test_nothing_left_is_refused_with_the_metric_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = table("a.csv", d="inf 2 -"), table("b.csv", d="1 nan 3")
    said = said_by([a, b], capsys, code=2)
    assert "Nothing is left to compare by psnr. " in said
    assert "all 3 images of d by psnr (infinite in A, NaN or empty in A and B)" in said
    # One metric of two: told where all are shown, and refused where it was asked for.
    rows = [("net", Evaluation("d", ("x", "y"), {"psnr": (1.0, 2.0), "ssim": (math.nan, math.nan)}))]
    for folder in ("one", "two"):
        write_results(Path(folder), rows, {})
    said = said_by(["one", "two"], capsys)
    assert "all 2 images of d by ssim (NaN or empty in A and B)" in said
    assert "Nothing is left to compare by ssim." in said_by(["one", "two", "--metric", "psnr", "ssim"], capsys, code=2)
    assert "Left out" not in said_by(["one", "two", "--metric", "psnr"], capsys)


def test_one_image_has_a_gain_and_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    said = said_by([table("a.csv", d="1 inf"), table("b.csv", d="2 3")], capsys)
    assert "1 of 2 images of d" in said and "stands on one image, which shows no variance" in said
    assert "interval is over" not in said and "intervals hold" not in said
    assert "One run of each: the gain speaks of these two networks" in said
    several = ["--a", *(table(f"a{seed}.csv", d=f"1.{seed}") for seed in range(2))]
    several += ["--b", *(table(f"b{seed}.csv", d=f"2.{seed * seed}") for seed in range(2))]
    said = said_by(several, capsys)
    assert "stands on one image" in said and "the interval is over" not in said
    said = said_by([table("c.csv", d="1", e="1"), table("e.csv", d="2", e="1.5")], capsys)
    assert "there is no interval and no p for d by psnr, e by psnr." in said
    assert "p is corrected: one comparison." in said and "the interval is over images alone" in said


@pytest.mark.slow
def test_two_runs_are_compared_by_their_last_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "images")
    for number in range(2):
        section = {"name": "Photos", "type": "PairedImageDataset", "dataroot_gt": str(images)}
        options = run_options(
            tmp_path / str(number),
            images=images,
            name=f"run{number}",
            manual_seed=number,
            val={"val_freq": 4, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
            datasets={
                "train": {**section, "gt_size": 16, "batch_size_per_gpu": 2},
                "val": section,
            },
        )
        train(options)
    runs = [str(tmp_path / str(number) / f"experiments/run{number}") for number in range(2)]
    capsys.readouterr()
    assert main(["compare", *runs]) == 0
    shown = capsys.readouterr().out
    assert "run0" in shown and "These are validation sets" in shown
    for run in runs:
        measured = read_measured(run)
        rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        last = [row for row in rows if "validation" in row][-1]
        facts = json.loads((Path(run) / "validation/metrics.json").read_text())
        assert (facts["iteration"], facts["entry"]) == (last["step"], last["entry"]) == (8, "params_ema")
        assert np.mean([*measured.values["val"]["psnr"].values()]) == pytest.approx(last["metrics"]["psnr"])


@pytest.mark.slow
def test_real_networks_on_the_photographs_of_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """The published table of the demo: EDSR 32.513 dB, bicubic 30.089 dB on five photographs."""
    weights = str(DEMO / "teachers/edsr_x2.safetensors")
    assert main(["test", weights, "--with", "bicubic", "--data", str(DEMO / "test"), "--device", "cpu"]) == 0
    capsys.readouterr()
    folder = "results/edsr_x2"
    assert main(["compare", f"{folder}:edsr_x2", f"{folder}:bicubic", "--csv", "out.csv"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"test .* 5 .* psnr .* 32\.513 .* 30\.089 .* \+2\.424 .* 5/5 .* better", shown)
    psnr = lines_of("out.csv")[0]
    assert (psnr["metric"], psnr["images"], psnr["about"]) == ("psnr", "5", "networks")
