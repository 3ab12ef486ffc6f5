"""Going on: from whole checkpoints only, of this run only, and exactly as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd import zoo
from mtkd.contracts import MtkdError, Stopped
from mtkd.data.images import read_image, write_image
from mtkd.inference.named import find_target
from mtkd.targets.make import teach
from mtkd.training import loop as train_module
from mtkd.training.log import RunLog
from mtkd.training.loop import train
from mtkd.training.optim import build_optimizer, checked_state
from mtkd.training.prepare import prepare
from mtkd.training.record import compare
from mtkd.training.saving import amend
from tests.helpers import photo
from tests.runs import make_images, make_teachers, run_options

pytestmark = pytest.mark.slow

SHORT = {"total_iter": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and a run of four iterations that `ran` copies."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTKD_HOME", str(place / "home"))
        train(run_options(place, images=make_images(place / "images"), train=SHORT))
    return place


@pytest.fixture
def images(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTKD_HOME", str(finished / "home"))
    return finished / "images"


@pytest.fixture
def ran(finished: Path, images: Path, tmp_path: Path) -> Path:
    """The folder of a run of four iterations, under `tmp_path`."""
    shutil.copytree(finished / "experiments", tmp_path / "experiments")
    return folder(tmp_path)


def folder(tmp_path: Path) -> Path:
    return tmp_path / "experiments/tiny"


def change_state(file: Path, change: Any) -> None:
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)


def digests(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*.pth"))}


def flip_bit(file: Path) -> None:
    """Change one bit in the middle of the largest tensor."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("gone", ["training_states", "models"])
def test_auto_resume_never_begins_anew_over_a_finished_run(tmp_path: Path, images: Path, ran: Path, gone: str) -> None:
    for file in (ran / gone).iterdir():
        file.unlink()
    before = digests(ran)
    rows = (ran / "metrics.jsonl").read_bytes()
    with pytest.raises(MtkdError, match="hold"):
        train(run_options(tmp_path, images=images), auto_resume=True)
    assert digests(ran) == before
    assert (ran / "metrics.jsonl").read_bytes() == rows


def test_auto_resume_never_begins_anew_where_only_the_losses_are_left(tmp_path: Path, images: Path, ran: Path) -> None:
    for gone in ("training_states", "models"):
        shutil.rmtree(ran / gone)
    with pytest.raises(MtkdError, match="losses up to iteration 4"):
        train(run_options(tmp_path, images=images), auto_resume=True)


def test_a_run_killed_between_its_first_weights_and_their_state_starts_over(
    tmp_path: Path, images: Path, ran: Path
) -> None:
    for file in [ran / "models/net_g_latest.pth", ran / "models/net_g_4.pth", *ran.glob("training_states/*")]:
        file.unlink()
    rows = (ran / "metrics.jsonl").read_text().splitlines()
    (ran / "metrics.jsonl").write_text(rows[0] + "\n")
    train(run_options(tmp_path, images=images, train=SHORT), auto_resume=True)
    assert (ran / "training_states/4.state").exists()


def test_a_run_that_went_on_after_its_end_never_gives_the_weights_of_that_end(
    tmp_path: Path, images: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(run: Any) -> None:
        raise Killed

    (ran / "models/deployable.pth").write_bytes(b"of the end at iteration 4")
    longer = run_options(tmp_path, images=images)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train_module, "_finish", killed)
        train(longer, auto_resume=True)
    assert sorted(path.name for path in (ran / "models").iterdir()) == [f"net_g_{step}.pth" for step in (2, 4, 6, 8)]
    assert find_target(str(ran)).options.path.pretrain_network_g == str(ran / "models/net_g_8.pth")
    weights = train(longer, auto_resume=True)
    assert torch.load(weights, weights_only=True)["mtkd"]["iteration"] == 8


@pytest.mark.parametrize("which", ["models/net_g_4.pth", "training_states/4.state"])
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "zeros", "spanned"])
def test_the_newest_whole_checkpoint_is_used_and_the_broken_one_named(
    tmp_path: Path, images: Path, ran: Path, capsys: pytest.CaptureFixture[str], which: str, damage: str
) -> None:
    file = ran / which
    whole = file.read_bytes()
    if damage == "bit":
        flip_bit(file)
    else:
        # An archive without its beginning, whose end says that it lies on two disks.
        spanned = b"XXXX" + whole[4:-22] + struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2) + whole[-22:]
        changed = {"cut": whole[: len(whole) // 2], "empty": b"", "zeros": bytes(len(whole)), "spanned": spanned}
        file.write_bytes(changed[damage])
    train(run_options(tmp_path, images=images, train=SHORT), auto_resume=True)
    out = capsys.readouterr().out
    assert f"The checkpoint of iteration 4 is not whole: {file}" in out and "Resuming from iteration 2." in out
    # Trained again from iteration 2, bit by bit.
    again = torch.load(ran / "models/net_g_4.pth", weights_only=True)
    latest = torch.load(ran / "models/net_g_latest.pth", weights_only=True)
    assert all(torch.equal(value, latest["params"][name]) for name, value in again["params"].items())


def test_a_state_without_its_weights_is_passed_over(tmp_path: Path, images: Path, ran: Path) -> None:
    from mtkd.runtime.run_folder import RunFolder
    from mtkd.training.resume import state_to_resume

    (ran / "models/net_g_4.pth").unlink()
    state, (notice,) = state_to_resume(run_options(tmp_path, images=images), RunFolder(ran), auto_resume=True)
    assert state == ran / "training_states/2.state"
    assert "iteration 4 is not whole" in notice and "net_g_4.pth: it does not exist" in notice
    named = {"experiments_root": str(tmp_path / "other"), "resume_state": str(ran / "training_states/4.state")}
    with pytest.raises(MtkdError, match=r"net_g_4\.pth.*does not exist"):
        train(run_options(tmp_path, images=images, name="other", path=named))
    assert not (tmp_path / "other/other").exists()


def test_later_weights_without_states_are_made_anew_by_the_same_training_alone(
    tmp_path: Path, images: Path, ran: Path
) -> None:
    (ran / "training_states/4.state").unlink()
    later = ran / "models/net_g_4.pth"
    before = torch.load(later, weights_only=True)["params"]
    other = {**SHORT, "optim_g": {"type": "Adam", "lr": 0.01}}
    with pytest.raises(
        MtkdError, match=r"net_g_4\.pth, of later iterations than 2\.state, and train.optim_g.lr changed"
    ):
        train(run_options(tmp_path, images=images, train=other), auto_resume=True)
    train(run_options(tmp_path, images=images, train=SHORT), auto_resume=True)
    again = torch.load(later, weights_only=True)["params"]
    assert all(torch.equal(again[name], value) for name, value in before.items())


def test_without_a_whole_checkpoint_nothing_is_overwritten(tmp_path: Path, images: Path, ran: Path) -> None:
    for file in ran.glob("training_states/*"):
        file.write_bytes(b"PK")
    before = digests(ran)
    with pytest.raises(MtkdError, match=r"no whole checkpoint.*4\.state.*2\.state"):
        train(run_options(tmp_path, images=images), auto_resume=True)
    assert digests(ran) == before


def test_what_is_no_name_of_a_state_or_row_is_passed_over(tmp_path: Path, images: Path, ran: Path) -> None:
    (ran / "training_states/²³.state").write_bytes(b"x")
    with (ran / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n7\n["step"]\n{"step": "x"}\n{"step": 2')
    train(run_options(tmp_path, images=images), auto_resume=True)
    rows = (ran / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 6, 8]


def a_moment(change: Any) -> Any:
    return lambda state: change(state["optimizers"][0]["state"][0])


CRAFTED = {
    "smaller moment": a_moment(lambda m: m.update(exp_avg=torch.zeros(1))),
    "larger moment": a_moment(lambda m: m.update(exp_avg_sq=torch.zeros(9, 9, 9))),
    "moment of integers": a_moment(lambda m: m.update(exp_avg=torch.zeros(4, 3, 3, 3, dtype=torch.int8))),
    "half moment": a_moment(lambda m: m.update(exp_avg=m["exp_avg"].half())),
    "moment of no tensor": a_moment(lambda m: m.update(exp_avg=[0.0])),
    "missing moment": a_moment(lambda m: m.pop("exp_avg_sq")),
    "foreign value": a_moment(lambda m: m.update(max_exp_avg_sq=torch.zeros(4, 3, 3, 3))),
    "steps": a_moment(lambda m: m.update(step=torch.zeros(2))),
    "unknown parameter": lambda state: state["optimizers"][0]["state"].update({99: {}}),
    "numbering": lambda state: state["optimizers"][0]["param_groups"][0]["params"].reverse(),
    "groups": lambda state: state["optimizers"][0]["param_groups"].clear(),
    "no mapping": lambda state: state["optimizers"].__setitem__(0, []),
    "numbered by tensors": lambda state: state["optimizers"][0]["param_groups"][0]["params"].append(torch.zeros(2)),
    "step without value": a_moment(lambda m: m.update(step=torch.zeros((), device="meta"))),
    "sparse moment": a_moment(lambda m: m.update(exp_avg=m["exp_avg"].to_sparse())),
    "run of tensors": lambda state: state["run"]["options"].update({"train.ema_decay": torch.zeros(2)}),
    "run of numbers": lambda state: state["run"]["options"].update({7: "x"}),
    "run of lists": lambda state: state["run"].update(images=[1]),
    "losses": lambda state: state.update(losses={"names": torch.zeros(2), "values": torch.zeros(2, 2)}),
    "losses of other names": lambda state: state.update(losses={"names": ["a"], "values": torch.zeros(2, 2)}),
    "iter": lambda state: state.update(iter="4"),
    "best": lambda state: state.update(best={"val": {"psnr": 3}}),
    "scaler": lambda state: state.update(precision={"scale": float("nan")}),
    "own modules": lambda state: state.update(method={"queue": torch.zeros(3)}),
}


@pytest.mark.parametrize("craft", list(CRAFTED))
def test_a_crafted_state_never_reaches_the_optimizer(tmp_path: Path, images: Path, ran: Path, craft: str) -> None:
    change_state(ran / "training_states/4.state", CRAFTED[craft])
    (ran / "training_states/2.state").unlink()
    with pytest.raises(MtkdError, match=r"4\.state"):
        train(run_options(tmp_path, images=images), auto_resume=True)


def test_a_moment_of_another_shape_is_named_with_its_parameter() -> None:
    net = torch.nn.Conv2d(3, 4, 3)
    options = {"type": "Adam", "lr": 1e-3}
    optimizer = build_optimizer(list(net.parameters()), options)
    net(torch.rand(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    assert checked_state(saved, optimizer, options, ["weight", "bias"])["state"].keys() == {0, 1}
    saved["state"][1]["exp_avg"] = torch.zeros(4, 4)
    with pytest.raises(MtkdError, match=r"exp_avg of bias is \(4, 4\) torch.float32, and must be \(4,\)"):
        checked_state(saved, optimizer, options, ["weight", "bias"])


ALL = ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta", "ASGD", "Rprop"]


@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_takes_up_its_own_state_unchanged(name: str) -> None:
    torch.manual_seed(1)
    parameters = [torch.nn.Parameter(torch.rand(3, 2)), torch.nn.Parameter(torch.rand(4))]
    options = {"type": name, "lr": 1e-3}
    one = build_optimizer(parameters, options)
    for _ in range(3):
        sum(p.square().sum() for p in parameters).backward()
        one.step()
    two = build_optimizer(parameters, options)
    two.load_state_dict(checked_state(one.state_dict(), one, options, ["a", "b"]))
    for parameter in parameters:
        for key, value in one.state[parameter].items():
            found = two.state[parameter][key]
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
            assert not isinstance(value, torch.Tensor) or found.dtype == value.dtype


def other_images(tmp_path: Path) -> Path:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(4):
        write_image(other / f"{number}.png", photo("coffee", (48, 52)))
    return other


def train_set(images: Path, **changes: Any) -> dict[str, Any]:
    section = {"name": "photographs", "type": "PairedImageDataset", "dataroot_gt": str(images)}
    return {"datasets": {"train": {**section, "gt_size": 16, "batch_size_per_gpu": 2, **changes}}}


REFUSED = {
    "optimizer": (lambda path, images: {"train": {"optim_g": {"type": "SGD", "lr": 1e-3}}}, "optim_g.type was Adam"),
    "adamw": (lambda path, images: {"train": {"optim_g": {"type": "AdamW", "lr": 1e-3}}}, "here it is AdamW"),
    "images": (lambda path, images: train_set(other_images(path)), "training images were 4, here they are others"),
    "batch": (lambda path, images: train_set(images, batch_size_per_gpu=4), "was 2, here it is 4"),
    "crop": (lambda path, images: train_set(images, gt_size=32), "gt_size was 16, here it is 32"),
    "average off": (lambda path, images: {"train": {"ema_decay": 0.0}, "started": {"ema_decay": 0.9}}, None),
    "average on": (lambda path, images: {"train": {"ema_decay": 0.9}, "started": {"ema_decay": 0.0}}, "no average"),
    "fewer iterations": (lambda path, images: {"train": {"total_iter": 2}}, "nothing to go on with"),
}  # fmt: skip


@pytest.mark.parametrize("change", list(REFUSED))
def test_another_run_is_not_taken_up(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    make, told = REFUSED[change]
    changes = make(tmp_path, images)
    train(run_options(tmp_path, images=images, train={**SHORT, **changes.pop("started", {})}))
    changed = run_options(tmp_path, images=images, **changes)
    if told is None:
        train(changed, auto_resume=True)
        assert "train.ema_decay was 0.9, here it is 0.0" in capsys.readouterr().out
    else:
        with pytest.raises(MtkdError, match=told):
            train(changed, auto_resume=True)


def other_teacher(path: Path) -> None:
    file = zoo.read_checkpoint(path)
    changed = {name: value + 1e-3 for name, value in file.state.items()}
    zoo.write_safetensors(path, changed, {"arch": file.facts["arch"], "scale": 2})


@pytest.mark.parametrize("what", ["gt", "lq", "targets", "teacher"])
def test_other_contents_under_the_same_names_are_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    images, small = make_images(tmp_path / "images"), tmp_path / "small"
    small.mkdir()
    for path in images.iterdir():
        write_image(small / path.name, read_image(path)[::2, ::2])
    teachers = {"edsr": make_teachers(tmp_path / "teachers")["edsr"]}
    given: dict[str, Any] = {"images": images, "model_type": "OutputKD", "teachers": teachers}
    given |= train_set(images, dataroot_lq=str(small))
    if what == "targets":
        given["target_store"] = str(tmp_path / "targets")
        teach(run_options(tmp_path, **given), tmp_path / "targets")
    train(run_options(tmp_path, **given, train=SHORT))
    teacher = Path(teachers["edsr"]["pretrain"])
    if what in ("gt", "lq"):
        path = (images if what == "gt" else small) / "coffee.png"
        write_image(path, 255 - read_image(path))
        told = rf"pixels of the training images \({what}\) were others"
    elif what == "targets":
        other_teacher(teacher)
        (tmp_path / "targets").unlink()
        teach(run_options(tmp_path, **given), tmp_path / "targets")
        told = "the targets in target_store were others"
    else:
        other_teacher(teacher)
        told = "the weights of the teacher edsr were others"
    with pytest.raises(MtkdError, match=told):
        train(run_options(tmp_path, **given), auto_resume=True)
    if what == "teacher":
        moved = teacher.rename(teacher.with_name("another.safetensors"))
        given["teachers"] = {"edsr": {**teachers["edsr"], "pretrain": str(moved)}}
        train(run_options(tmp_path, **given), auto_resume=True)
        assert f"here it is {moved}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "NAdam", "Rprop", "ASGD", "SGD"])
def test_an_older_states_moments_tell_its_optimizer(tmp_path: Path, images: Path, ran: Path, name: str) -> None:
    change_state(ran / "training_states/4.state", lambda state: state.pop("run"))
    changed = run_options(tmp_path, images=images, train={"optim_g": {"type": name, "lr": 1e-3}})
    with pytest.raises(MtkdError, match=f"does not fit this run's {name}"):
        train(changed, auto_resume=True)


def test_a_queue_of_another_length_is_named(tmp_path: Path, images: Path) -> None:
    teachers = {"edsr": make_teachers(tmp_path / "teachers")["edsr"]}
    given = {"images": images, "model_type": "CRD", "teachers": teachers, "train": {"total_iter": 2}}
    train(run_options(tmp_path, **given, method={"queue_size": 64}))
    given["train"] = SHORT
    with pytest.raises(MtkdError, match="of CRD is .*the section `method`"):
        train(run_options(tmp_path, **given, method={"queue_size": 32}), auto_resume=True)


def test_what_changes_harmlessly_is_said_in_one_line(
    tmp_path: Path, images: Path, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run_options(tmp_path, images=images, train={"optim_g": {"type": "Adam", "lr": 5e-4}}), auto_resume=True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Changed since")]
    assert "train.total_iter was 4, here it is 8" in line and "train.optim_g.lr was 0.001, here it is 0.0005" in line


def test_states_that_do_not_say_how_they_were_trained_resume_with_a_line(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train(run_options(tmp_path / "a", images=images))
    train(run_options(tmp_path, images=images, train=SHORT))
    state = folder(tmp_path) / "training_states/4.state"

    def as_before(state: dict[str, Any]) -> None:
        for key in ("run", "losses", "validation_due"):
            del state[key]

    change_state(state, as_before)
    resumed = train(run_options(tmp_path, images=images), auto_resume=True)
    assert "4.state does not record its options" in capsys.readouterr().out
    one, two = (torch.load(path, weights_only=True)["params"] for path in (straight, resumed))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def rows_of(root: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds_per_step"} for row in rows]


def test_a_state_that_is_written_again_after_resuming_is_the_one_that_was(tmp_path: Path, images: Path) -> None:
    # As a run does that was killed between its last checkpoint and the validation of it.
    changes = {"images": images, "train": {"scheduler": {"type": "MultiStepLR", "milestones": [4], "gamma": 0.5}}}
    train(run_options(tmp_path, **changes))
    path = folder(tmp_path) / "training_states/8.state"
    before = torch.load(path, weights_only=True)
    run = prepare(run_options(tmp_path, **changes), auto_resume=True)
    amend(run, 8)
    run.close()
    after = torch.load(path, weights_only=True)
    assert [group["lr"] for group in after["optimizers"][0]["param_groups"]] == [5e-4]
    assert after["optimizers"][0]["param_groups"] == before["optimizers"][0]["param_groups"]


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6])
def test_the_rows_of_a_resumed_run_are_those_of_one_that_went_through(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    often = {"images": images, "logger": {"print_freq": 3, "save_checkpoint_freq": 5}}
    train(run_options(tmp_path / "a", **often))
    real = train_module.train_step

    def stopping(run: Any, step: int, batches: Any) -> Any:
        if step + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, step, batches)

    monkeypatch.setattr(train_module, "train_step", stopping)
    with pytest.raises(Stopped) as stopped:
        train(run_options(tmp_path / "b", **often))
    assert stopped.value.code == 143
    monkeypatch.setattr(train_module, "train_step", real)
    train(run_options(tmp_path / "b", **often), auto_resume=True)
    assert rows_of(folder(tmp_path / "b")) == rows_of(folder(tmp_path / "a"))


@pytest.mark.parametrize("written", [False, True])
def test_what_failed_at_its_line_says_the_line_and_validates_when_it_goes_on(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    often = {"images": images, **validated(images)}
    train(run_options(tmp_path / "a", **often))
    real = RunLog.losses

    def failing(log: RunLog, *, step: int, **values: Any) -> None:
        if step != 4 or written:
            real(log, step=step, **values)
        if step == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunLog, "losses", failing)
    with pytest.raises(MtkdError, match="up to iteration 4 is saved"):
        train(run_options(tmp_path / "b", **often))
    monkeypatch.setattr(RunLog, "losses", real)
    train(run_options(tmp_path / "b", **often), auto_resume=True)
    assert rows_of(folder(tmp_path / "b")) == rows_of(folder(tmp_path / "a"))


def validated(images: Path) -> dict[str, Any]:
    train_set = {"name": "t", "type": "PairedImageDataset", "dataroot_gt": str(images), "gt_size": 16}
    sets = {"train": {**train_set, "batch_size_per_gpu": 2}}
    sets["val"] = {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(images)}
    metrics = {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}}
    return {"datasets": sets, "val": {"val_freq": 4, "metrics": metrics}}


def of_run(**changes: Any) -> dict[str, Any]:
    options = {"datasets.train.batch_size_per_gpu": 4, "train.accumulate": 1, **changes.pop("options", {})}
    return {"options": options, "images": {"count": 9, "digest": "a"}, "world_size": 2, **changes}


def test_as_many_images_per_step_from_other_processes_are_the_same_run() -> None:
    halved = of_run(world_size=1, options={"datasets.train.batch_size_per_gpu": 8})
    (line,) = compare(of_run(), halved, Path("4.state"))
    assert "the number of processes was 2, here it is 1" in line
    with pytest.raises(MtkdError, match="batch_size_per_gpu x accumulate x processes was 8, here it is 4"):
        compare(of_run(), of_run(world_size=1), Path("4.state"))
    assert compare(of_run(), of_run(), Path("4.state")) == []


def test_weights_alone_are_not_overwritten_from_an_older_state(tmp_path: Path, images: Path, ran: Path) -> None:
    shutil.copytree(ran, tmp_path / "other")
    (ran / "training_states/4.state").unlink()
    path = {"experiments_root": str(tmp_path / "experiments")}
    path["resume_state"] = str(tmp_path / "other/training_states/2.state")
    before = digests(ran)
    with pytest.raises(MtkdError, match="later checkpoints"):
        train(run_options(tmp_path, images=images, path=path))
    assert digests(ran) == before


def test_a_state_of_before_is_compared_with_the_methods_defaults_of_then() -> None:
    """States once recorded only what the option file said of its method."""
    same = {"images": {"count": 1}, "world_size": 1}
    now = {"options": {"model_type": "OnlineTeacher", "method.margin": 0.0, "method.share": 1.0}, **same}
    then = {"options": {"model_type": "OnlineTeacher"}, **same}
    (changed,) = compare(then, now, Path("10.state"))
    assert "method.margin was 0.01, here it is 0.0" in changed and "method.share" not in changed
