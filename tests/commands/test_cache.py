"""`mtkd cache`: all that is ours is listed and can go; what is in use, or not ours, never does."""

from __future__ import annotations

import builtins
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from mtkd import zoo
from mtkd.archs.edsr import EDSR
from mtkd.cli import main
from mtkd.commands.cache import KINDS
from mtkd.data.answers import Answers
from mtkd.data.training import TrainingSet, open_training_set
from mtkd.zoo.table import ENTRIES
from tests.runs import STUDENT, make_images

DAY = 86400


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("cache") / "photos")


@pytest.fixture
def home(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with something of each kind, and files of others in between."""
    home = tmp_path / "home"
    monkeypatch.setenv("MTKD_HOME", str(home))
    trained(home, images)
    weights = home / "weights"
    net = EDSR(**{key: value for key, value in STUDENT.items() if key != "type"})
    zoo.write_safetensors(weights / "rcan_x4.safetensors", net.state_dict(), {})
    (weights / "rcan_x4.json").write_text("{}")
    archive = ENTRIES["rcan_x4"].sources[0].file
    for name in (archive, f"{archive}.0123abcd.part", f"{archive}.bad-0123abcd", "of_a_user.zip"):
        (weights / "downloads" / name).parent.mkdir(exist_ok=True)
        (weights / "downloads" / name).write_bytes(b"x" * 1000)
    (home / "logs").mkdir()
    (home / "logs/error_20260101_000000_a.log").write_text("Traceback")
    for other in ("datasets/mine/a.png", "weights/mine.safetensors", "logs/mine.log", "mine.txt"):
        (home / other).parent.mkdir(exist_ok=True)
        (home / other).write_text("mine")
    return home


def trained(home: Path, images: Path, **changes: str) -> TrainingSet:
    given = {"dataroot_gt": str(images), **changes}
    return open_training_set(given, scale=2, cache_dir=home / "datasets", workers=1)


def kinds(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.split()[0] in KINDS]


def theirs(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and "mine" in str(path))


def test_all_that_is_there_is_listed_with_size_and_source(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache"]) == 0
    said = capsys.readouterr().out
    assert kinds(said) == ["images", "weights", "downloads", "downloads", "downloads", "logs"]
    assert f"4 images at x2, {images}" in said
    assert "zoo:rcan_x4" in said and "RCAN x4, trained on" in said
    assert "a transfer that has not ended" in said and "its hash was wrong" in said
    assert "mine" not in said and "of_a_user" not in said
    total = sum(path.stat().st_size for path in next((home / "datasets").glob("[0-9a-f]*/")).iterdir())
    assert f"{total / 1e3:.1f} kB" in said
    assert main(["cache", "list", "logs"]) == 0
    assert kinds(capsys.readouterr().out) == ["logs"]


def test_answers_and_entries_of_before_say_what_they_can(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = trained(home, images)
    Answers(images, stores.names, stores.sizes).decoded(home / "datasets", workers=1)
    for note in (home / "datasets").glob("*/source.json"):
        if (note.parent / "lq.safetensors").exists():
            note.unlink()
            (note.parent / "lq.safetensors").write_bytes(b"broken")
    assert main(["cache", "list", "images"]) == 0
    said = capsys.readouterr().out
    assert f"answers to 4 images, {images}" in said and "damaged" in said
    for path in (home / "datasets").glob("*/lq.safetensors"):
        path.unlink()
    assert main(["cache", "list", "images"]) == 0
    assert "4 images at x2: astronaut, chelsea, coffee, ..." in capsys.readouterr().out


def test_everything_goes_but_what_is_not_ours(home: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = theirs(home)
    assert main(["cache", "clear", "--all", "--yes"]) == 0
    assert "6 of 6 removed" in capsys.readouterr().out
    assert theirs(home) == before and len(before) == 4
    assert (home / "weights/downloads/of_a_user.zip").exists()
    assert (home / "weights/rcan_x4.json").exists()  # which file came the first time
    assert main(["cache"]) == 0 and "Nothing" in capsys.readouterr().out
    assert len(trained(home, images)) == 4  # made again


def test_kinds_and_ages_choose(home: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "clear", "--yes", "downloads", "logs"]) == 0
    assert main(["cache"]) == 0
    assert kinds(capsys.readouterr().out) == ["images", "weights"]
    (entry,) = (home / "datasets").glob("[0-9a-f]*/")
    old = time.time() - 40 * DAY
    for path in (entry, home / "weights/rcan_x4.safetensors"):
        os.utime(path, (old, old))
    assert main(["cache"]) == 0
    assert "40 days" in capsys.readouterr().out
    trained(home, images)  # a run uses it
    assert main(["cache", "clear", "--older_than", "30", "--yes"]) == 0
    assert entry.exists() and not (home / "weights/rcan_x4.safetensors").exists()


def test_what_is_made_or_used_is_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = (home / "datasets").glob("[0-9a-f]*/")
    script = (
        "import mmap, sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); print(); input()"
    )
    with (
        FileLock(home / "weights/downloads/.rcan_x4.lock"),
        subprocess.Popen(
            [sys.executable, "-c", script, str(entry / "gt.safetensors")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as reader,
    ):
        assert reader.stdout is not None and reader.stdout.readline()
        assert main(["cache", "clear", "images", "weights", "--yes"]) == 0
        said = capsys.readouterr().out
        assert f"{entry.name} is left alone: process {reader.pid} uses it." in said
        assert "zoo:rcan_x4 is left alone: another process fetches or converts it." in said
        reader.communicate(b"\n")
    with open(home / f"datasets/{entry.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["cache", "clear", "images", "--yes"]) == 0
        assert f"{entry.name} is left alone: another process makes it." in capsys.readouterr().out
    assert entry.exists()
    assert main(["cache", "clear", "images", "--yes"]) == 0
    assert not entry.exists() and "1 of 1 removed" in capsys.readouterr().out


def test_what_a_killed_process_left_goes_too(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = (home / "datasets").glob("[0-9a-f]*/")
    left = entry.with_name(f".{entry.name}.k3jd_x")
    left.mkdir()
    assert main(["cache", "clear", "images", "--yes"]) == 0
    assert "2 of 2 removed" in capsys.readouterr().out and not left.exists()


@pytest.mark.parametrize(("answer", "goes"), [("y", True), ("", False), ("n", False), (EOFError, False)])
def test_on_a_terminal_it_asks(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str | type[Exception],
    goes: bool,
) -> None:
    def asked(question: str) -> str:
        assert question.startswith("Remove 1 entry, ")
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", asked)
    assert main(["cache", "clear", "logs"]) == 0
    assert bool(list((home / "logs").glob("error_*"))) is not goes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clear"], "Say what to clear"),
        (["clear", "sets"], "sets is no kind of cache. They are images, weights, downloads, logs."),
        (["clear", "--all", "images"], "--all clears everything"),
        (["clear", "logs"], "Nobody can be asked here: add --yes."),
    ],
)
def test_what_is_not_clear_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["cache", *words]) == 2
    assert said in capsys.readouterr().err
    assert list((home / "logs").glob("error_*"))


def test_what_the_disk_refuses_is_told_after_the_rest(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("error_"):
            raise PermissionError(13, "Permission denied", str(path))
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert main(["cache", "clear", "--all", "--yes"]) == 2
    said = capsys.readouterr()
    assert "5 of 6 removed" in said.out and "1 could not be removed." in said.err and "Permission denied" in said.err
