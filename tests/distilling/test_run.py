"""A whole distillation, killed, stopped, repeated, and refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import mtkd
from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.build import output_network
from mtkd.config import load_options
from mtkd.contracts import MtkdError
from mtkd.data.images import list_images, read_image, write_image
from mtkd.data.resize import bicubic_lq
from mtkd.distilling import run as steps
from mtkd.distilling.plan import look
from mtkd.distilling.request import Request, request
from mtkd.distilling.run import Distilled
from mtkd.distilling.teachers import find_teachers
from mtkd.distilling.work import Work
from mtkd.inference.named import find_target
from mtkd.runtime.files import sha256
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.training.loop import Stopped
from tests.distilling.album import GOOD, cut, make_album
from tests.runs import make_teachers


@dataclass
class Made:
    """One distillation of two teachers, and what it said."""

    folder: Path
    asked: Request
    result: Distilled
    lines: list[str]

    @property
    def out(self) -> Path:
        return self.folder / "out"


def words(folder: Path, **changes: object) -> Request:
    teachers = [folder / "teachers" / f"{name}.safetensors" for name in ("edsr", "rcan")]
    settings = {"student": "edsr_tiny", "scale": 2, "iterations": 10, "device": "cpu", **changes}
    return request(settings.pop("photos", folder / "my photos"), settings.pop("teachers", teachers), **settings)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("distilled")
    make_album(folder / "my photos")
    make_teachers(folder / "teachers")
    lines: list[str] = []
    asked = words(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTKD_HOME", str(folder / "home"))
        return Made(folder, asked, steps.run(asked, folder / "out", log=lines.append), lines)


@pytest.fixture
def no_onnx(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX takes seconds, and the fixture has made one."""
    monkeypatch.setattr(steps, "_for_others", lambda *_: None)


def test_every_step_is_announced_and_timed_and_everything_is_where_the_end_says(made: Made) -> None:
    for number, name in enumerate(steps.STEPS, start=1):
        assert [line for line in made.lines if line.startswith(f"{number}/7 {name}: done in 0:0")], name
    said = "\n".join(made.lines)
    assert "left out: 1 smaller than 24 pixels a side (trip 2/tiny.png, 90x20)" in said
    assert "2 that cannot be decoded (broken.jpg" in said
    for path in ("student.safetensors", "report.html", "distill.yml", "student"):
        assert path in made.lines[-1] and (made.out / path).exists(), path
    assert f"mtkd upscale photo.jpg out.png --weights {made.out / 'student.safetensors'}" in made.lines[-1]


def test_bicubic_each_teacher_their_mean_and_the_student_are_measured(made: Made) -> None:
    rows = ["bicubic", "teacher edsr", "teacher rcan", "mean of the teachers", "student"]
    assert list(made.result.scores) == rows
    assert all(set(scores) == {"psnr", "ssim"} for scores in made.result.scores.values())
    page = made.result.report.read_text(encoding="utf-8")
    assert all(row in page for row in rows)


def test_the_network_that_is_left_is_the_trained_one_and_says_what_it_is(made: Made) -> None:
    trained = zoo.build(made.out / "student" / "models" / "net_g_latest.pth")
    lq = torch.rand(1, 3, 12, 17)
    with torch.no_grad():
        assert torch.allclose(made.result.network(lq), trained(lq), atol=1e-6)
    assert zoo.describe(str(made.result.weights)).type == "EDSR"


def test_the_onnx_file_computes_the_same_and_without_its_package_a_line_says_so(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtkd.export import Exporter
    from mtkd.export.onnx_network import OnnxNetwork

    assert made.result.onnx is not None and made.result.onnx == made.out / "student.onnx"
    assert "student.onnx: the network, for other" in made.lines[-1]
    lq = torch.rand(1, 3, 13, 22)
    with torch.no_grad():
        assert torch.allclose(OnnxNetwork(made.result.onnx)(lq), made.result.network(lq), atol=1e-4)

    class Without:
        def write(self, *args: object, **settings: object) -> None:
            raise MtkdError('This needs the package onnx: pip install "mtkd[onnx]".')

    lines: list[str] = []
    without: Exporter = Without()  # pyright: ignore[reportAssignmentType]
    steps._for_others(without, Work(tmp_path), lines.append)
    assert lines == ['  no student.onnx: This needs the package onnx: pip install "mtkd[onnx]".']


def test_the_folder_is_a_network_wherever_one_is_named(made: Made) -> None:
    target = find_target(str(made.out))
    assert target.scale == 2 and target.options is not None
    lq = torch.rand(1, 3, 12, 17)
    with torch.no_grad():
        assert torch.allclose(output_network(target.options)(lq), made.result.network(lq), atol=1e-6)
        (teacher,) = find_teachers([str(made.out)], 2)
        assert teacher.net is not None and torch.allclose(teacher.net(lq), made.result.network(lq), atol=1e-6)


def test_the_option_file_is_valid_trains_the_same_and_is_commented(made: Made) -> None:
    options = load_options(made.result.options, kind="train")
    assert list(options.teachers) == ["edsr", "rcan"] and options.fusion == "mean"
    assert options.training.total_iter == 10 and sorted(options.training.terms) == ["spatial", "target"]
    text = made.result.options.read_text(encoding="utf-8")
    assert made.asked.words() in text and text.count("\n# ") > 8
    resolved = load_options(made.out / "student" / "resolved.yml", kind="train")
    assert resolved.training == options.training and resolved.datasets == options.datasets


def test_the_photographs_are_neither_copied_nor_touched(made: Made) -> None:
    listed = [(made.out / f"{part}.txt").read_text(encoding="utf-8").splitlines() for part in ("train", "validation")]
    assert [len(lines) for lines in listed] == [6, 1]
    assert sorted(line.rpartition(" (")[0] for lines in listed for line in lines) == sorted(GOOD)
    assert not (made.out / "photos").exists()


def test_the_same_command_once_more_does_nothing_again(made: Made) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.out.rglob("*.pth")}
    again = steps.run(made.asked, made.out, log=lambda _: None)
    assert again.scores == made.result.scores
    assert {path: path.stat().st_mtime_ns for path in made.out.rglob("*.pth")} == before
    assert [path.name for path in (made.out / "results").iterdir()] == ["student"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"iterations": 20}, "--iterations: 10 before, 20 now"),
        ({"seed": 3}, "--seed: 10 before, 3 now"),
        ({"unlabelled": True}, "--unlabelled: nothing before, yes now"),
        ({"validation": 2}, "--validation: nothing before, 2 now"),
    ],
)
def test_another_command_in_the_same_folder_is_refused_and_says_why(made: Made, change: dict, text: str) -> None:
    with pytest.raises(MtkdError, match=f"holds the work of another command.*{text}.*--out"):
        steps.run(words(made.folder, **change), made.out)


def test_a_folder_with_something_else_in_it_is_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(MtkdError, match=r"holds something else already \(thesis.tex\)"):
        steps.run(made.asked, tmp_path)
    with pytest.raises(MtkdError, match="is a file, and must be a folder"):
        steps.run(made.asked, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("killed", [False, True])
def test_a_start_that_was_refused_or_killed_binds_nobody(made: Made, tmp_path: Path, killed: bool) -> None:
    out = tmp_path / "new" / "out"
    wrong = words(made.folder, student="dctswin")
    with pytest.raises(MtkdError, match="--student dctswin cannot be one"):
        steps.run(wrong, out, log=lambda _: None)
    assert list(tmp_path.iterdir()) == []
    if killed:
        out.mkdir(parents=True)
        Work(out)._write({"asked": wrong.facts()})
        (out / "train.txt").write_text("half")
    Work(out).check(made.asked)


def test_two_at_once_in_one_folder_are_refused(made: Made) -> None:
    with Work(made.out).claimed(made.asked), pytest.raises(MtkdError, match="Another `mtkd distill` works in"):
        steps.run(made.asked, made.out)


def _run_until(asked: Request, out: Path, event: int, threads: int) -> None:
    torch.set_num_threads(threads)
    replace, left = os.replace, [event]

    def counted(*args: object, **kwargs: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args, **kwargs)  # pyright: ignore[reportCallIssue, reportArgumentType]

    os.replace = counted
    steps._for_others = lambda *_: None
    steps.run(asked, out, log=lambda _: None)


def killed_at(asked: Request, out: Path, event: int) -> bool:
    """Run it in a process that is killed at its file event number `event`; False where it came to its end.

    The process is forked from one that has only imported: the threads of torch in this one do not survive a fork.
    """
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload([__name__])
    child = clean.Process(target=_run_until, args=(asked, out, event, torch.get_num_threads()))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode != 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_file_it_goes_on_and_ends_in_the_same_bits(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kills = [killed_at(made.asked, out, event) for event in (2, 3, 1, 6, 4, 14, 18, 3, 10_000)]
    assert kills[:5] == [True] * 5 and not kills[-1]
    for name in ("train.txt", "validation.txt"):
        assert sha256(out / name) == sha256(made.out / name), name
    # safetensors writes its metadata in any order.
    one, other = (zoo.read_checkpoint(folder / "student.safetensors").state for folder in (out, made.out))
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    measured = [json.loads((folder / "results/student/metrics.json").read_text()) for folder in (out, made.out)]
    assert measured[0]["results"] == measured[1]["results"]


@pytest.mark.usefixtures("no_onnx")
def test_a_stop_in_training_loses_nothing(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def stopped(*args: object, **settings: object) -> None:
            raise Stopped(signal.SIGINT)

        patch.setattr(steps, "train", stopped)
        asked = words(made.folder, iterations=3)
        with pytest.raises(Stopped):
            steps.run(asked, tmp_path / "out", log=lambda _: None)
    text = (tmp_path / "out" / "distill.yml").read_text(encoding="utf-8")
    # From here on the file is the user's own.
    (tmp_path / "out" / "distill.yml").write_text(text.replace("total_iter: 3", "total_iter: 2"), encoding="utf-8")
    steps.run(asked, tmp_path / "out", log=lambda _: None)
    assert zoo.read_checkpoint(tmp_path / "out/student/models/net_g_latest.pth").facts["iteration"] == 2


@pytest.mark.usefixtures("no_onnx")
def test_a_photograph_alone_from_python(made: Made, tmp_path: Path) -> None:
    write_image(tmp_path / "one photo.png", cut(3, 120, 200))
    teacher = made.folder / "teachers" / "edsr.safetensors"
    found = mtkd.distill(
        tmp_path / "one photo.png", teacher, scale=2, out=tmp_path / "o", iterations=1, log=lambda _: None
    )
    # It begins as the student that comes with mtkd, is measured beside it, and is left as small.
    assert list(found.scores) == ["bicubic", "teacher edsr", "tiny_x2", "student"]
    count = sum(parameter.numel() for parameter in found.network.parameters())
    assert count == zoo.entry("zoo:tiny_x2").params
    sides = {part: read_image(list_images(tmp_path / "o/photos" / part)[0]).shape for part in ("train", "validation")}
    assert sides == {"train": (120, 150, 3), "validation": (120, 50, 3)}


@pytest.mark.usefixtures("no_onnx")
def test_images_of_a_teacher_teach_and_photographs_without_gt_are_learnt_from(made: Made, tmp_path: Path) -> None:
    photos = tmp_path / "small"
    for number in range(5):
        write_image(photos / f"{number}.png", cut(number, 40, 44 + 4 * number))
    torch.manual_seed(1)
    net = EDSR(num_feat=6, num_block=1, upscale=2).eval()
    with torch.no_grad():
        for path in list_images(photos):
            image = read_image(path)
            write_image(tmp_path / "answers" / path.name, to_image(net(to_tensor(bicubic_lq(image, 2)))))
            write_image(tmp_path / "twice" / path.name, to_image(net(to_tensor(image))))
    lines: list[str] = []
    asked = words(made.folder, photos=photos, teachers=[tmp_path / "answers"], iterations=1)
    found = steps.run(asked, tmp_path / "a", log=lines.append)
    assert list(found.scores) == ["bicubic", "teacher answers", "student"]
    asked = words(made.folder, photos=photos, teachers=[tmp_path / "twice"], iterations=1, unlabelled=True)
    found = steps.run(asked, tmp_path / "b", log=lines.append)
    # The answers are to the photographs, and what is measured is made of their bicubic lq.
    assert list(found.scores) == ["bicubic", "student"] and "no rows of teachers" in "\n".join(lines)
    assert load_options(found.options).train_set.model_dump()["dataroot_gt"] is None
    asked = words(made.folder, photos=photos, teachers=[tmp_path / "twice"])
    for go in (steps.run, steps.dry_run):
        with pytest.raises(MtkdError, match=r"--teacher .*twice \(as twice\)"):
            go(asked, tmp_path / "c", log=lines.append)
    steps.dry_run(words(made.folder, photos=photos, teachers=[tmp_path / "answers"]), tmp_path / "d", log=lines.append)
    assert not (tmp_path / "c").exists() and not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("student", "line"),
    [(31.0, ""), (30.0, "tiny_x4"), (27.9, "bicubic and tiny_x4"), (29.0, "tiny_x4")],
)
def test_a_student_that_is_no_better_than_what_costs_nothing_is_told_so(student: float, line: str) -> None:
    scores = {"bicubic": 28.0, "teacher a": 33.0, "mean of the teachers": 33.1, "tiny_x4": 30.0, "student": student}
    assert steps._no_worse({name: {"psnr": value} for name, value in scores.items()}) == line


def test_a_dry_run_writes_nothing(made: Made, tmp_path: Path) -> None:
    lines: list[str] = []
    steps.dry_run(made.asked, tmp_path / "out", log=lines.append)
    assert list(tmp_path.iterdir()) == []
    assert "then 10 iterations, on cpu" in lines[-1] and "Nothing was written." in lines[-1]


def test_a_full_disk_is_said_before_anything_is_written(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtkd.distilling.plan.free_bytes", lambda path: 1000)
    with pytest.raises(MtkdError, match=r"needs .* kB, and its disk has 1.0 kB free"):
        look(made.asked, tmp_path / "out", lambda _: None)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"photos": "nowhere"}, "There are no photographs"),
        ({"teachers": []}, "No teacher is given.*--teacher FILE"),
        ({"teachers": ["nowhere.pth"]}, "--teacher nowhere.pth: there is no such file"),
        ({"student": "edsr_tinny"}, "No network is called 'edsr_tinny'. Did you mean edsr_tiny"),
        ({"scale": 1}, "--scale is 1"),
        ({"minutes": 3.0}, "--minutes and --iterations both say"),
        ({"iterations": None, "minutes": 0.0}, "--minutes is 0.0, and must be above 0"),
        ({"iterations": 0}, "--iterations is 0"),
        ({"validation": 0}, "--validation is 0"),
        ({"validation": "no folder"}, "--validation no folder: there is no such folder"),
        ({"device": "cuda:1"}, "--device is cuda:1.*CUDA_VISIBLE_DEVICES=1"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_what_cannot_be_is_refused_in_words(made: Made, change: dict, text: str) -> None:
    with pytest.raises(MtkdError, match=text):
        words(made.folder, **change)


def test_a_teacher_given_twice_and_a_fusion_network_as_student_are_refused(made: Made, tmp_path: Path) -> None:
    teacher = made.folder / "teachers" / "edsr.safetensors"
    with pytest.raises(MtkdError, match="is given twice"):
        words(made.folder, teachers=[teacher, os.path.relpath(teacher)])
    with pytest.raises(MtkdError, match="--student dctswin cannot be one"):
        look(words(made.folder, student="dctswin"), tmp_path, lambda _: None)


def test_a_folder_to_measure_on_is_kept_out_of_training(made: Made, tmp_path: Path) -> None:
    photos = made.folder / "my photos"
    lines: list[str] = []
    looked = look(words(made.folder, validation=photos / "trip 1"), tmp_path, lines.append)
    used = [[piece.photo.name for piece in part] for part in (looked.parts.train, looked.parts.validation)]
    assert used[1] == ["c.webp", "deep/d.bmp"] and not [name for name in used[0] if name.startswith("trip 1")]
    write_image(tmp_path / "others" / "x.png", cut(5, 60, 60))
    (tmp_path / "others" / "link.png").symlink_to(photos / GOOD[0])
    looked = look(words(made.folder, validation=tmp_path / "others"), tmp_path / "out", lines.append)
    assert GOOD[0] not in [piece.photo.name for piece in looked.parts.train] and len(looked.parts.validation) == 2
    assert f"left out: 1 that are measured on, --validation ({GOOD[0]})" in "\n".join(lines)
    with pytest.raises(MtkdError, match="none is left to train on"):
        look(words(made.folder, validation=photos), tmp_path / "out", lines.append)


def test_minutes_become_iterations_of_the_step_that_was_timed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtkd.distilling import plan

    monkeypatch.setattr(plan, "seconds_of_a_step", lambda options, device: 0.02)
    content = json.loads((made.out / "distill.json").read_text())["plan"]["options"]
    lines: list[str] = []
    assert plan.length_of(words(made.folder, iterations=None, minutes=2), content, lines.append) == 5700
    assert lines == ["  a step takes 20 ms: 5,700 iterations in 2 minutes"]


def test_a_step_is_timed_without_files_and_without_moving_the_generator(made: Made) -> None:
    from mtkd.distilling import student

    torch.manual_seed(4)
    before = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student, "_TIMED", 0.0)
        assert student.seconds_of_a_step(load_options(made.result.options), torch.device("cpu")) > 0
    assert torch.equal(torch.get_rng_state(), before)
