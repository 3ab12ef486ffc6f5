"""`mtkd distill` and `mtkd init` as they are typed."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest

from mtkd.cli import main
from mtkd.contracts import MtkdError
from mtkd.distilling import run as steps
from mtkd.distilling import start
from mtkd.distilling.request import Request
from mtkd.training.loop import Stopped
from tests.distilling.album import GOOD, make_album
from tests.runs import make_teachers


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photographs and a teacher, which is the working folder."""
    make_album(tmp_path / "my photos")
    make_teachers(tmp_path / "teachers")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TEACHER = ("--teacher", "teachers/edsr.safetensors", "--scale", "2", "--student", "edsr_tiny")


def test_the_flags_reach_the_steps_and_the_folder_has_a_telling_name(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Request, Path]] = []
    monkeypatch.setattr(steps, "run", lambda asked, out, **_: seen.append((asked, out)))
    assert main(["distill", "my photos", *TEACHER, "--minutes", "2.5", "--validation", "3", "--unlabelled"]) == 0
    ((asked, out),) = seen
    assert out == Path("distilled/my_photos_edsr_tiny_x2")
    assert asked == Request(
        photos=str(here / "my photos"),
        teachers=(str(here / "teachers/edsr.safetensors"),),
        student="edsr_tiny",
        scale=2,
        minutes=2.5,
        validation=3,
        unlabelled=True,
    )


def test_the_words_of_a_request_ask_for_the_same_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []
    monkeypatch.setattr(steps, "run", lambda asked, out, **_: seen.append(asked))
    more = ["--iterations", "7", "--from_scratch", "--whole", "--seed", "3", "--device", "cpu", "--out", "there"]
    assert main(["distill", "my photos", *TEACHER, *more, "--teacher", "zoo:edsr_l_x2"]) == 0
    assert main(shlex.split(seen[0].words(Path("there")))[1:]) == 0
    assert seen[0] == seen[1]


def test_a_signal_in_training_ends_the_command_with_its_code(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Stopped(15)

    monkeypatch.setattr(steps, "run", stopped)
    assert main(["distill", "my photos", *TEACHER]) == 143
    assert "Give the same command again to go on" in capsys.readouterr().out


def test_a_refusal_is_a_line_and_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "my photos", *TEACHER[:2], "--scale", "4", "--student", "edsr_tiny"]) == 2
    assert "edsr.safetensors is a EDSR that enlarges by 2, and --scale is 4" in capsys.readouterr().err
    assert not (here / "distilled").exists()


def test_init_writes_a_file_that_passes_the_check_and_lists_beside_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "mine.yml", "--photos", "my photos", *TEACHER, "--iterations", "500"]) == 0
    assert main(["check", "mine.yml"]) == 0
    said = capsys.readouterr().out
    assert "6 photographs to train on and 1 to measure on" in said and "mtkd teach -opt mine.yml" in said
    lists = "".join((here / f"mine_{part}.txt").read_text() for part in ("train", "validation"))
    assert sorted(line.rpartition(" (")[0] for line in lists.splitlines()) == sorted(GOOD)
    assert sorted(path.name for path in here.iterdir() if path.is_file()) == [
        "mine.yml", "mine_train.txt", "mine_validation.txt",
    ]  # fmt: skip
    assert main(["init", "mine.yml", "--photos", "my photos", *TEACHER]) == 2
    assert "mine.yml is there already, and nothing is overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Questions need a terminal. Give flags"),
        (["mine.txt"], "they end in .yml"),
        (["--teacher", "x.pth"], "--photos is missing"),
        (["--photos", "."], "No teacher is given"),
    ],
)
def test_init_says_what_it_needs(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["init", *arguments]) == 2
    assert text in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_the_questions_ask_again_until_an_answer_can_be(here: Path) -> None:
    answers = iter(
        ["", "nowhere", "my photos", "nothing.pth", "zoo:rcan_x2", "teachers", "none", "nine", "2", "huge", "edsr_tiny"]
        + ["-1", ""]
    )
    asked: list[str] = []
    said: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return next(answers)

    assert start.questions(ask, said.append) == {
        "photos": "my photos",
        "teacher": ["zoo:rcan_x2", "teachers"],
        "scale": 2,
        "student": "edsr_tiny",
        "minutes": 10.0,
    }
    assert next(answers, None) is None
    assert len([line for line in said if line.startswith("  ")]) == 6
    assert asked[-1] == "Minutes of training [10]: "


def test_init_on_a_terminal_asks_and_then_does_as_with_flags(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stdout", Terminal())
    given: list[Request] = []
    monkeypatch.setattr(start, "write_file", lambda asked, file, command: given.append(asked))
    answers = iter(["my photos", "teachers/edsr.safetensors", "", "2", "edsr_tiny", "1"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert main(["init"]) == 0
    assert (given[0].scale, given[0].student, given[0].minutes) == (2, "edsr_tiny", 1.0)

    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    assert main(["init"]) == 2
    assert "The answers ended before the questions" in capsys.readouterr().err


def test_import_mtkd_has_distill_and_nothing_that_it_has_not() -> None:
    import mtkd

    assert mtkd.distill is steps.distill
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        _ = mtkd.destill  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(MtkdError, match="There are no photographs"):
        mtkd.distill("nowhere", "x.pth")
