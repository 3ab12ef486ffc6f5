"""The best weights of a run, the checkpoints that are kept, and the end that comes early; all through kills."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd import cli
from mtkd.config import OptionError, Options, load_options
from mtkd.inference.evaluate import Evaluation
from mtkd.inference.named import Which, find_target, networks_of
from mtkd.runtime.files import flush
from mtkd.training import saving
from mtkd.training.loop import train
from mtkd.training.prepare import prepare
from mtkd.training.validate import validate
from tests.runs import make_images, run_options

PSNR = {"score": {"type": "calculate_psnr", "crop_border": 2}}


class Killed(BaseException):
    """Ends a run where it stands, as SIGKILL does: nothing is rescued."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("best") / "images")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let validations give values: of the one metric by iteration, or of each metric of each set."""
    now: list[int] = []

    def use(values: dict[int, float] | dict[int, dict[str, Any]]) -> None:
        def evaluate(*_: Any, dataset: str, **__: Any) -> Evaluation:
            given = values[now[-1]]
            scores = given[dataset] if isinstance(given, dict) else {"score": given}
            return Evaluation(dataset, ("one",), {name: (value,) for name, value in scores.items()})

        monkeypatch.setattr("mtkd.training.validate.evaluate_sharded", evaluate)
        monkeypatch.setattr("mtkd.training.loop.validate", lambda run, done: (now.append(done), validate(run, done)))

    return use


def options(folder: Path, images: Path, *, freq: int = 2, total: int = 8, **changes: Any) -> Options:
    given: dict[str, Any] = {"type": "PairedImageDataset", "dataroot_gt": str(images)}
    sets = {
        "train": {"name": "t", **given, "gt_size": 16, "batch_size_per_gpu": 2},
        "val": {"name": "v", **given},
        **changes.pop("sets", {}),
    }
    return run_options(
        folder,
        images=images,
        datasets=sets,
        val={"val_freq": freq, "metrics": PSNR, **changes.pop("val", {})},
        logger={"print_freq": 2, "save_checkpoint_freq": 2, **changes.pop("logger", {})},
        train={"total_iter": total, "ema_decay": 0.0, **changes.pop("train", {})},
        **changes,
    )


def content(folder: Path, name: int | str) -> tuple[int, dict[str, torch.Tensor]]:
    """Iteration and weights of a file of the run in `folder`."""
    file = torch.load(folder / f"experiments/tiny/models/net_g_{name}.pth", weights_only=True)
    return file["mtkd"]["iteration"], file["params"]


def same(one: tuple[int, dict[str, torch.Tensor]], two: tuple[int, dict[str, torch.Tensor]]) -> bool:
    return one[0] == two[0] and all(torch.equal(value, two[1][key]) for key, value in one[1].items())


def steps(folder: Path, kind: str) -> list[str]:
    return sorted(path.stem.removeprefix("net_g_") for path in (folder / "experiments/tiny" / kind).iterdir())


def kill_in(monkeypatch: pytest.MonkeyPatch, name: str, when: Callable[..., bool], *, after: bool = False) -> None:
    """End the run where it calls `name` and `when` holds of the call, before the call or after it."""
    module, _, function = name.rpartition(".")
    module = __import__(module, fromlist=["x"])
    real = getattr(module, function)

    def killed(*words: Any, **named: Any) -> Any:
        if when(*words, **named) and not after:
            raise Killed
        result = real(*words, **named)
        if when(*words, **named):
            raise Killed
        return result

    monkeypatch.setattr(module, function, killed)


@pytest.mark.parametrize(
    ("better", "values", "best"),
    [
        ("higher", [30.0, 32.0, 31.0, 31.9], 4),
        ("higher", [30.0, 32.0, 31.0, 32.0], 8),  # the later of equals, as the log has it
        ("higher", [math.nan, 29.0, 31.0, math.nan], 6),
        ("lower", [0.4, 0.2, 0.3, 0.25], 4),
    ],
)
def test_the_best_weights_are_those_that_the_log_calls_best(
    tmp_path: Path, images: Path, measured: Callable[..., None], better: str, values: Sequence[float], best: int
) -> None:
    measured(dict(zip((2, 4, 6, 8), values, strict=True)))
    train(options(tmp_path, images, val={"metrics": {"score": {**PSNR["score"], "better": better}}}))
    assert same(content(tmp_path, "best"), content(tmp_path, best))
    state = torch.load(tmp_path / "experiments/tiny/training_states/8.state", weights_only=True)
    assert state["best"]["val"]["score"]["iter"] == best
    log = next((tmp_path / "experiments/tiny").glob("*.log")).read_text()
    assert f"The best weights, score {state['best']['val']['score']['val']:.4f} on val at iteration {best}: " in log


def test_options_say_which_metric_on_which_set_decides(
    tmp_path: Path, images: Path, measured: Callable[..., None]
) -> None:
    two = {**PSNR, "ssim": {"type": "calculate_ssim", "crop_border": 2}}
    sets = {"val_2": {"name": "w", "type": "PairedImageDataset", "dataroot_gt": str(images)}}
    rows = {2: (1.0, 2.0, 3.0, 9.0), 4: (9.0, 1.0, 2.0, 2.0), 6: (2.0, 9.0, 1.0, 3.0), 8: (3.0, 3.0, 9.0, 1.0)}
    measured(
        {
            step: {"val": {"score": a, "ssim": b}, "val_2": {"score": c, "ssim": d}}
            for step, (a, b, c, d) in rows.items()
        }
    )
    both = {"best_set": "val_2", "best_metric": "ssim"}
    chosen = [({}, 4), ({"best_metric": "ssim"}, 6), ({"best_set": "val_2"}, 8), (both, 2)]
    for number, (words, best) in enumerate(chosen):
        train(options(tmp_path / str(number), images, sets=sets, val={"metrics": two, **words}))
        assert content(tmp_path / str(number), "best")[0] == best


def test_without_save_best_nothing_is_kept(tmp_path: Path, images: Path) -> None:
    train(options(tmp_path, images, logger={"save_best": False}))
    assert "best" not in steps(tmp_path, "models")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_around_the_best_weights_changes_nothing(
    tmp_path: Path, images: Path, measured: Callable[..., None], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed before the file is written, and between it and the state that knows of it."""
    measured({2: 30.0, 4: 32.0, 6: 31.0, 8: 31.0})
    with monkeypatch.context() as patch:
        at_four = lambda run, done, *, name=None: name == "best" and done == 4  # noqa: E731
        kill_in(patch, "mtkd.training.best.save_weights", at_four, after=moment == "after")
        with pytest.raises(Killed):
            train(options(tmp_path, images))
    assert content(tmp_path, "best")[0] == (4 if moment == "after" else 2)
    train(options(tmp_path, images), auto_resume=True)
    assert same(content(tmp_path, "best"), content(tmp_path, 4))


def test_a_best_of_after_the_checkpoint_gives_way_to_the_best_of_the_state(
    tmp_path: Path, images: Path, measured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its validation lay between two checkpoints, and the run that goes on may be another one."""
    measured({1: 20.0, 2: 30.0, 3: 32.0, 4: 25.0, 5: 25.0, 6: 25.0, 7: 25.0, 8: 25.0})
    with monkeypatch.context() as patch:
        kill_in(patch, "mtkd.training.loop.train_step", lambda run, step, batches: step == 3)
        with pytest.raises(Killed):
            train(options(tmp_path, images, freq=1))
    assert content(tmp_path, "best")[0] == 3
    run = prepare(options(tmp_path, images, freq=1), auto_resume=True)
    run.close()
    assert same(content(tmp_path, "best"), content(tmp_path, 2))
    (tmp_path / "experiments/tiny/models/net_g_best.pth").unlink()
    measured({3: 29.0, 4: 25.0, 5: 25.0, 6: 25.0, 7: 25.0, 8: 25.0})
    train(options(tmp_path, images, freq=1), auto_resume=True)
    assert same(content(tmp_path, "best"), content(tmp_path, 2))


def test_a_best_that_no_file_holds_is_said(
    tmp_path: Path, images: Path, measured: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    measured({1: 31.0, 2: 30.0, 3: 30.0, 4: 30.0, 5: 31.0, 6: 30.0})
    train(options(tmp_path, images, freq=1, total=4, logger={"save_best": False}))
    train(options(tmp_path, images, freq=1, total=6), auto_resume=True)
    assert "net_g_best.pth is missing, and the weights of the best so far (score 31.0000 on val at iteration 1)" in (
        capsys.readouterr().out
    )
    assert content(tmp_path, "best")[0] == 5


def test_a_run_killed_before_its_first_checkpoint_starts_over_its_best_too(
    tmp_path: Path, images: Path, measured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured({1: 31.0, 2: 30.0, 3: 30.0, 4: 30.0, 5: 30.0, 6: 30.0, 7: 30.0, 8: 30.0})
    with monkeypatch.context() as patch:
        kill_in(patch, "mtkd.training.loop.train_step", lambda run, step, batches: step == 1)
        with pytest.raises(Killed):
            train(options(tmp_path, images, freq=1))
    assert steps(tmp_path, "models") == ["best"]
    train(options(tmp_path, images, freq=1), auto_resume=True)
    assert content(tmp_path, "best")[0] == 1


def test_the_best_weights_of_a_run_are_tested_when_they_are_asked_for(
    tmp_path: Path, images: Path, measured: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    measured({2: 30.0, 4: 32.0, 6: 31.0, 8: 31.0})
    train(options(tmp_path, images))
    root = tmp_path / "experiments/tiny"
    expected: list[tuple[Which, int]] = [("latest", 8), ("best", 4)]
    for which, step in expected:
        (subject,) = networks_of([find_target(str(root), which=which)], teachers=False)
        assert subject.origin is not None and subject.origin.iteration == step and not subject.note
    (root / "models/net_g_best.pth").unlink()
    assert cli.main(["test", str(root), "--which", "best", "--data", str(images)]) == 2
    assert "holds no best weights, models/net_g_best.pth" in capsys.readouterr().err


def test_the_option_file_of_the_page_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    (tmp_path / "first.yml").write_text(text.split("```yaml\n")[1].split("```")[0])
    found = load_options(tmp_path / "first.yml", kind="train")
    assert not found.notices and found.logger.keep_last == 3 and found.training.early_stop is not None


# -- keep_last -----------------------------------------------------------------


def test_the_newest_checkpoints_are_kept_and_nothing_else_is_touched(
    tmp_path: Path, images: Path, measured: Callable[..., None]
) -> None:
    measured({2: 32.0, 4: 31.0, 6: 30.0, 8: 30.0})
    straight = options(tmp_path / "a", images)
    train(straight)
    folder = tmp_path / "b"
    models = folder / "experiments/tiny/models"
    train(options(folder, images, total=4, logger={"keep_last": 2}))
    torch.save({}, models / "net_g_mine.pth")
    train(options(folder, images, logger={"keep_last": 2}), auto_resume=True)
    assert steps(folder, "models") == ["6", "8", "best", "latest", "mine"]
    assert steps(folder, "training_states") == ["6", "8"]
    for name in ("best", "latest", 6, 8):
        assert same(content(folder, name), content(tmp_path / "a", name))


def test_later_checkpoints_are_not_a_resumed_runs_to_remove(tmp_path: Path, images: Path) -> None:
    train(options(tmp_path, images))
    root = tmp_path / "experiments/tiny"
    for step in (6, 8):
        (root / f"training_states/{step}.state").write_bytes(b"broken")
    run = prepare(options(tmp_path, images, logger={"keep_last": 1}), auto_resume=True)
    saving.save(run, 5)
    run.close()
    assert steps(tmp_path, "training_states") == ["5", "6", "8"]
    assert steps(tmp_path, "models") == ["5", "6", "8", "best", "latest"]


def test_killed_while_it_removes_a_run_goes_on(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is removed before the newest checkpoint is on the disk, and no state outlives its weights."""
    flushed: list[str] = []
    monkeypatch.setattr(saving, "flush", lambda path: (flushed.append(path.name), flush(path)))
    with monkeypatch.context() as patch:
        seen = []

        def unlink(path: Path, missing_ok: bool = False) -> None:
            if path.name == "net_g_2.pth":
                seen.extend(flushed)
                raise Killed
            real(path, missing_ok=missing_ok)

        real = Path.unlink
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed):
            train(options(tmp_path, images, logger={"keep_last": 1}))
    assert seen[-2:] == ["net_g_4.pth", "4.state"]
    assert steps(tmp_path, "training_states") == ["4"]
    train(options(tmp_path, images, logger={"keep_last": 1}), auto_resume=True)
    assert steps(tmp_path, "models") == ["8", "best", "latest"] and steps(tmp_path, "training_states") == ["8"]


# -- early stop ----------------------------------------------------------------

CURVE = {2: 30.0, 4: 31.0, 6: 30.5, 8: 31.0, 10: 30.9, 12: 32.0, 14: 31.0, 16: 31.0}


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "experiments/tiny/metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds_per_step"} for row in found]


def stopping(folder: Path, images: Path, patience: int, **changes: Any) -> Options:
    early = {"patience": patience, **changes.pop("early", {})}
    return options(folder, images, total=16, train={"early_stop": early}, **changes)


@pytest.mark.parametrize(
    ("early", "better", "end"),
    [
        ({"patience": 2}, "higher", 8),  # as good is not better
        ({"patience": 3}, "higher", 10),
        ({"patience": 2, "min_delta": 1.0}, "higher", 6),
        ({"patience": 2}, "lower", 6),
        ({"patience": 4}, "higher", 16),
    ],
)
def test_a_run_ends_after_so_many_validations_without_progress(
    tmp_path: Path, images: Path, measured: Callable[..., None], early: dict[str, Any], better: str, end: int
) -> None:
    measured(CURVE)
    val = {"metrics": {"score": {**PSNR["score"], "better": better}}}
    train(stopping(tmp_path, images, early.pop("patience"), early=early, val=val))
    assert content(tmp_path, "latest")[0] == end == max(row["step"] for row in rows(tmp_path))
    log = next((tmp_path / "experiments/tiny").glob("*.log")).read_text()
    assert (f"Stopped early at iteration {end} of 16: score on val has not become better" in log) == (end < 16)
    assert "End of training" in log


def test_values_that_are_no_numbers_are_no_progress(
    tmp_path: Path, images: Path, measured: Callable[..., None]
) -> None:
    measured({2: math.nan, 4: 30.0, 6: math.nan, 8: 29.0})
    train(stopping(tmp_path, images, 2))
    assert content(tmp_path, "latest")[0] == 8


def test_an_early_end_is_an_end_and_more_patience_goes_on_exactly(
    tmp_path: Path, images: Path, measured: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The validation that ended it may lie between checkpoints."""
    measured(CURVE)
    rare = {"print_freq": 4, "save_checkpoint_freq": 100}
    train(stopping(tmp_path / "a", images, 100, logger=rare))
    train(stopping(tmp_path / "b", images, 2, logger=rare))
    assert steps(tmp_path / "b", "training_states") == ["8"]
    before = rows(tmp_path / "b")
    capsys.readouterr()
    train(stopping(tmp_path / "b", images, 2, logger=rare), auto_resume=True)
    said = capsys.readouterr().out
    assert "tiny is finished: 8 of 16 iterations." in said and "Stopped early at iteration 8 of 16" in said
    assert rows(tmp_path / "b") == before
    (subject,) = networks_of([find_target(str(tmp_path / "b/experiments/tiny"))], teachers=False)
    assert not subject.note
    train(stopping(tmp_path / "b", images, 100, logger=rare), auto_resume=True)
    assert same(content(tmp_path / "a", "latest"), content(tmp_path / "b", "latest"))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


@pytest.mark.parametrize("at", [5, 7])
def test_a_killed_run_ends_where_it_would_have(
    tmp_path: Path, images: Path, measured: Callable[..., None], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    measured(CURVE)
    with monkeypatch.context() as patch:
        kill_in(patch, "mtkd.training.loop.train_step", lambda run, step, batches: step == at)
        with pytest.raises(Killed):
            train(stopping(tmp_path, images, 2))
    train(stopping(tmp_path, images, 2), auto_resume=True)
    assert content(tmp_path, "latest")[0] == 8


def test_a_run_killed_between_its_early_end_and_its_last_file_is_finished_by_resuming(
    tmp_path: Path, images: Path, measured: Callable[..., None]
) -> None:
    measured(CURVE)
    latest = train(stopping(tmp_path, images, 2))
    latest.unlink()
    assert train(stopping(tmp_path, images, 2), auto_resume=True) == latest
    assert content(tmp_path, "latest")[0] == 8


def test_a_state_that_knows_no_progress_begins_to_count(
    tmp_path: Path, images: Path, measured: Callable[..., None]
) -> None:
    """As those of every version before."""
    measured(CURVE)
    train(options(tmp_path, images, total=4))
    path = tmp_path / "experiments/tiny/training_states/4.state"
    state = torch.load(path, weights_only=True)
    del state["progress"]
    torch.save(state, path)
    train(stopping(tmp_path, images, 2), auto_resume=True)
    assert content(tmp_path, "latest")[0] == 16  # 6: the first value; 8 is better, 10 is not, 12 is better


def test_what_an_early_end_cannot_follow_is_refused(tmp_path: Path, images: Path) -> None:
    early = {"early_stop": {"patience": 2}}
    with pytest.raises(OptionError, match=r"train.early_stop: has no effect: there is no data set to validate on"):
        run_options(tmp_path, images=images, train=early)
    with pytest.raises(OptionError, match=r"train.early_stop: has no effect: there are no val.metrics"):
        options(tmp_path, images, train=early, val={"metrics": None})
    with pytest.raises(OptionError, match=r"patience"):
        options(tmp_path, images, train={"early_stop": {"patience": 0}})
    with pytest.raises(OptionError, match=r"val.best_metric: 'scor' is unknown. Did you mean score\?"):
        options(tmp_path, images, val={"best_metric": "scor"})
    with pytest.raises(OptionError, match=r"val.best_set: 'val_2' is unknown"):
        options(tmp_path, images, val={"best_set": "val_2"})
    with pytest.raises(OptionError, match=r"logger.keep_last"):
        options(tmp_path, images, logger={"keep_last": 0})
    never = options(tmp_path, images, train={"early_stop": {"patience": 3}})
    assert any("early_stop ends no run of 8 iterations" in notice for notice in never.notices)
