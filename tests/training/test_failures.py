"""Nothing that was trained is lost, whatever fails, and a start that fails leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtkd.config import Options
from mtkd.contracts import MtkdError
from mtkd.metrics.psnr import psnr
from mtkd.runtime.run_folder import RunFolder
from mtkd.training import claim as claim_module
from mtkd.training import loop as train_module
from mtkd.training.claim import claim
from mtkd.training.loop import train
from mtkd.training.own_state import OwnState
from tests.runs import make_images, make_teachers, run_options
from tests.training.test_preflight import PSNR, validated

pytestmark = pytest.mark.slow

failing: dict[str, Exception | int] = {}
"""What `Breaking` and `breaking` do next: `error`, raised when `after` more calls have been made."""


class Breaking(nn.Module):
    """A loss from outside that breaks when it is told to."""

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        break_when_told()
        return (sr - target).abs().mean()


def breaking(sr: Tensor, gt: Tensor, **options: Any) -> Tensor:
    """A metric from outside that breaks when it is told to."""
    break_when_told()
    return psnr(sr, gt, crop_border=2)


def break_when_told() -> None:
    if failing:
        failing["after"] -= 1  # pyright: ignore
        if failing["after"] < 0:  # pyright: ignore
            raise failing["error"]  # pyright: ignore


@pytest.fixture(autouse=True)
def whole() -> Generator[None]:
    failing.clear()
    yield
    failing.clear()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and the runs `breaking` and `validating` that nothing interrupted."""
    place = tmp_path_factory.mktemp("straight")
    images = make_images(place / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTKD_HOME", str(place / "home"))
        train(run_options(place / "breaking", images=images, train=LOSS))
        train(validating(place / "validating", images))
    return place


@pytest.fixture
def images(straight: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTKD_HOME", str(straight / "home"))
    return straight / "images"


def folder(tmp_path: Path) -> Path:
    return tmp_path / "experiments/tiny"


def rows_of(root: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds_per_step"} for row in rows]


def same_run(one: Path, two: Path) -> bool:
    """Equal weights, averages, moments, best values and rows."""
    for file in ("models/net_g_8.pth", "training_states/8.state"):
        a, b = (torch.load(root / file, weights_only=True) for root in (one, two))
        for content in (a, b):
            content.pop("run", None)
        if not equal(a, b):
            return False
    return rows_of(one) == rows_of(two)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


LOSS = {"pixel_opt": {"type": f"{__name__}:Breaking"}}
ERRORS = {
    "foreign": (RuntimeError("min(): expected a dimension"), "pixel_opt: .*Breaking failed: .*expected a dimension"),
    "disk": (OSError(errno.EIO, "Input/output error", "weights.bin"), "Breaking failed: .*Input/output.*weights.bin"),
    "memory": (MemoryError(), "memory of this machine is full"),
    "cpu memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "machine is full"),
    "gpu memory": (torch.OutOfMemoryError("CUDA out of memory. Tried"), "Lower batch_size_per_gpu"),
    "mendable": (MtkdError("the critic is wrong."), "the critic is wrong"),
}


@pytest.mark.parametrize("kind", list(ERRORS))
def test_an_error_in_an_iteration_loses_none_before_it(tmp_path: Path, images: Path, straight: Path, kind: str) -> None:
    error, text = ERRORS[kind]
    options = run_options(tmp_path, images=images, train=LOSS)
    failing.update(error=error, after=3)
    with pytest.raises(MtkdError, match=text) as caught:
        train(options)
    where = f"Everything up to iteration 3 is saved in {folder(tmp_path) / 'training_states/3.state'}"
    assert where in str(caught.value)
    if kind != "foreign":
        return
    failing.clear()
    train(options, auto_resume=True)
    assert same_run(folder(tmp_path), folder(straight / "breaking"))


def test_what_a_failed_pass_changed_is_undone(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CRD's queue has taken in the batch of the failed iteration, and takes it in again."""
    teachers = {"edsr": make_teachers(tmp_path / "teachers")["edsr"]}
    given = {"images": images, "model_type": "CRD", "teachers": teachers, "method": {"queue_size": 512}}
    train(run_options(tmp_path / "a", **given))
    real = train_module._backward

    def backward(run: Any, batch: Any, step: int, **others: Any) -> Any:
        out = real(run, batch, step, **others)
        if step == 3:
            raise RuntimeError("a defect")
        return out

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a defect"):
        patch.setattr(train_module, "_backward", backward)
        train(run_options(tmp_path / "b", **given))
    assert (folder(tmp_path / "b") / "training_states/3.state").is_file()
    train(run_options(tmp_path / "b", **given), auto_resume=True)
    assert same_run(folder(tmp_path / "a"), folder(tmp_path / "b"))


def test_values_go_back_however_they_were_changed() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1).requires_grad_(False))
    net.register_buffer("mask", torch.zeros(2), persistent=False)
    own = OwnState(net)
    net(torch.rand(2, 3, 4, 4))
    own.keep()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(torch.rand(2, 3, 4, 4))
    net[0].num_batches_tracked = torch.tensor([9, 9])  # replaced by another shape, not written into
    net.mask = torch.zeros(5)
    with torch.no_grad():
        net[1].weight.mul_(2)  # pyright: ignore
    own.go_back()
    assert equal(before, net.state_dict()) and len(net.mask) == 5


def test_an_iteration_that_is_not_counted_yet_is_not_saved_as_the_one_before(
    tmp_path: Path, images: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = OwnState.keep, []

    def keep(self: OwnState) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried")
        real(self)

    with monkeypatch.context() as patch, pytest.raises(MtkdError, match="Everything up to iteration 2 is saved"):
        patch.setattr(OwnState, "keep", keep)
        train(run_options(tmp_path, images=images, train=LOSS))
    train(run_options(tmp_path, images=images, train=LOSS), auto_resume=True)
    assert same_run(folder(tmp_path), folder(straight / "breaking"))


def test_an_error_of_mtkd_in_an_iteration_loses_none_before_it_either(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = train_module._backward

    def backward(run: Any, batch: Any, step: int, **given: Any) -> Any:
        if step == 3:
            raise RuntimeError("a defect")
        return real(run, batch, step, **given)

    monkeypatch.setattr(train_module, "_backward", backward)
    with pytest.raises(RuntimeError, match="^a defect$"):
        train(run_options(tmp_path, images=images))
    where = f"Everything up to iteration 3 is saved in {folder(tmp_path) / 'training_states/3.state'}"
    assert where in capsys.readouterr().out


def test_a_step_that_fails_half_way_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    real = torch.optim.Adam.step

    def step(self: Any, *given: Any, **named: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise RuntimeError("the kernel failed")
        return real(self, *given, **named)

    options = run_options(tmp_path)
    run = train_module.prepare(options)
    run.close()
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    monkeypatch.setattr("mtkd.training.preflight.try_optimizers", lambda options: [])
    with pytest.raises(RuntimeError, match="kernel failed"):
        train(options)
    assert [path.name for path in (folder(tmp_path) / "training_states").iterdir()] == ["2.state"]


def validating(tmp_path: Path, images: Path) -> Options:
    plain = run_options(tmp_path, images=images).datasets.model_dump(exclude_none=True)
    sets = {**plain, "val": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)}}
    metric = {"type": f"{__name__}:breaking", "better": "higher"}
    return run_options(tmp_path, images=images, datasets=sets, val={"val_freq": 4, "metrics": {"m": metric}})


@pytest.mark.parametrize("error", [RuntimeError("no such window"), OSError(errno.ENOENT, "gone"), KeyboardInterrupt()])
def test_a_validation_that_fails_loses_no_iteration_and_is_done_when_resumed(
    tmp_path: Path, images: Path, straight: Path, error: BaseException
) -> None:
    options = validating(tmp_path, images)
    # Two images are tried before training: the lowest and the narrowest.
    failing.update(error=error, after=4)  # pyright: ignore
    with pytest.raises((RuntimeError, MtkdError, KeyboardInterrupt)):
        train(options)
    state = torch.load(folder(tmp_path) / "training_states/4.state", weights_only=True)
    assert state["validation_due"] and state["best"] == {}
    assert [row["step"] for row in rows_of(folder(tmp_path))] == [2, 4]
    failing.clear()
    train(options, auto_resume=True)
    assert same_run(folder(tmp_path), folder(straight / "validating"))


def test_what_a_validation_needs_is_tried_before_the_first_iteration(tmp_path: Path) -> None:
    options = validated(tmp_path)
    file = tmp_path / "val/coffee.png"
    file.write_bytes(file.read_bytes()[:-900])
    with pytest.raises(MtkdError, match=r"datasets\.val.*coffee\.png"):
        train(options)
    assert not (tmp_path / "experiments").exists()


@contextmanager
def files_limited_to(nbytes: int) -> Generator[None]:
    """Writing beyond `nbytes` fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(
    tmp_path: Path, images: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train_module.train_step

    def full(run: Any, step: int, batches: Any) -> Any:
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return real(run, step, batches)

    monkeypatch.setattr(train_module, "train_step", full)
    with files_limited_to(10**9), pytest.raises(MtkdError, match=r"net_g_4\.pth cannot be written: .*untouched"):
        train(run_options(tmp_path, images=images, train=LOSS))
    files = [path.name for path in folder(tmp_path).rglob("*") if path.suffix in (".pth", ".state", ".tmp")]
    assert sorted(files) == ["2.state", "net_g_2.pth"]
    monkeypatch.setattr(train_module, "train_step", real)
    train(run_options(tmp_path, images=images, train=LOSS), auto_resume=True)
    assert same_run(folder(tmp_path), folder(straight / "breaking"))


@pytest.mark.parametrize("root", ["file", "/proc/mtkd"])
def test_a_place_that_cannot_be_written_is_one_paragraph(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file") if root == "file" else root
    with pytest.raises(MtkdError):
        train(run_options(tmp_path, path={"experiments_root": place}))


@pytest.mark.parametrize("where", ["describe", "train_step"])
def test_a_start_that_fails_hinders_no_corrected_one(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real = getattr(train_module, where)

    def fails(*given: Any) -> None:
        if where == "describe":
            real(*given)
        raise OSError(errno.ENOSPC, "No space left on device", "tiny.log")

    monkeypatch.setattr(train_module, where, fails)
    with pytest.raises(MtkdError, match=r"tiny\.log: No space left on device\. Nothing was trained yet"):
        train(run_options(tmp_path, images=images))
    assert not (tmp_path / "experiments").exists()
    monkeypatch.setattr(train_module, where, real)
    train(run_options(tmp_path, images=images))


def test_what_a_killed_start_leaves_is_no_run_but_what_a_user_left_is_kept(tmp_path: Path, images: Path) -> None:
    root = folder(tmp_path)
    for name in ("models", "training_states", "visualization"):
        (root / name).mkdir(parents=True)
    for name in ("tiny.yml", "resolved.yml", "environment.json", "metrics.jsonl", "train_tiny_20260101_000000.log"):
        (root / name).touch()
    (root / "models/.net_g_2.pth.77.tmp").write_bytes(b"half")
    (root / "notes.txt").write_text("mine")
    with pytest.raises(MtkdError, match="already holds a run"):
        train(run_options(tmp_path, images=images))
    (root / "notes.txt").unlink()
    train(run_options(tmp_path, images=images))
    assert not [path for path in root.rglob("*") if path.suffix == ".tmp"]


def test_a_second_process_is_refused(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_module, "PATIENCE", 0.1)
    running = claim(RunFolder(folder(tmp_path)), "tiny", resuming=False)
    for resume in (False, True):
        with pytest.raises(MtkdError, match=f"Another run trains in .*process {os.getpid()}"):
            train(run_options(tmp_path, images=images), auto_resume=resume)
    running.release()
    train(run_options(tmp_path, images=images))


def test_a_second_auto_resume_beside_a_running_one_is_refused(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_module, "PATIENCE", 0.1)
    train(run_options(tmp_path, images=images, train={"total_iter": 4}))
    running = train_module.prepare(run_options(tmp_path, images=images), auto_resume=True)
    rows = (folder(tmp_path) / "metrics.jsonl").stat().st_ino
    with pytest.raises(MtkdError, match="Another run trains in"):
        train(run_options(tmp_path, images=images), auto_resume=True)
    assert (folder(tmp_path) / "metrics.jsonl").stat().st_ino == rows
    running.close()


def test_unfinished_files_of_killed_processes_are_removed(tmp_path: Path, images: Path) -> None:
    train(run_options(tmp_path, images=images, train={"total_iter": 4}))
    (folder(tmp_path) / "validation").mkdir(exist_ok=True)
    for name in (
        "models/.net_g_6.pth.4242.tmp",
        "training_states/.6.state.4242.tmp",
        "validation/.metrics.csv.4242.tmp",
        ".metrics.jsonl.4242.tmp",
    ):
        (folder(tmp_path) / name).write_bytes(b"half")
    train(run_options(tmp_path, images=images), auto_resume=True)
    assert not [path for path in folder(tmp_path).rglob("*") if path.suffix == ".tmp"]


def test_a_port_in_use_is_one_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        given = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(MtkdError, match=rf"127\.0\.0\.1:{port}.*--master_port"):
            train(run_options(tmp_path), launcher="pytorch")
        monkeypatch.setenv("WORLD_SIZE", "x")
        with pytest.raises(MtkdError, match="WORLD_SIZE=x"):
            train(run_options(tmp_path / "x"), launcher="pytorch")
    assert not list(tmp_path.rglob("experiments"))


def test_two_validation_sets_with_the_same_names_keep_their_images_and_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = validated(tmp_path)
    sets = options.datasets.model_dump(exclude_none=True)
    sets["val_2"] = {**sets["val"], "name": "again", "dataroot_gt": str(tmp_path / "train")}
    val = {"val_freq": 8, "save_img": True, "metrics": {"psnr": PSNR}}
    train(run_options(tmp_path / "two", images=tmp_path / "train", datasets=sets, val=val))
    shots = sorted(path.relative_to(tmp_path).parts[-3] for path in tmp_path.rglob("coffee_8.png"))
    assert shots == ["val", "val_2"]
    out = capsys.readouterr().out
    assert "Validation v @ 8 iter" in out and "Validation again @ 8 iter" in out


def test_an_infinite_score_is_text_in_the_rows(tmp_path: Path) -> None:
    from mtkd.training.log import RunLog

    log = RunLog(tmp_path, name="x")
    log.validation(step=1, dataset="val", label="v", entry="params", values={"psnr": float("inf")}, best={})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"] == {"psnr": "inf"}
