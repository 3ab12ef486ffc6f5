"""Getting weights over a network that fails in every way, from a server on this machine."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import multiprocessing
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.zoo import Entry, Source, build, download, ensure, keymaps, read_checkpoint, resolve, verify
from tests.zoo.conftest import Host, saved, sha256
from tests.zoo.official import run_edsr

Publish = Callable[..., Entry]
FILE = "edsr_tiny.pt"


def left_over(folder: Path) -> list[str]:
    """Names in downloads/ that are not locks."""
    return sorted(path.name for path in (folder / "downloads").iterdir() if not path.name.endswith(".lock"))


def record(folder: Path) -> dict:
    return json.loads((folder / "edsr_tiny_x2.json").read_text())


def test_a_name_becomes_a_checked_and_converted_file(
    host: Host, publish: Publish, weights_dir: Path, state: dict[str, Tensor], body: bytes
) -> None:
    publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    path = resolve("zoo:edsr_tiny_x2", weights_dir=weights_dir)
    checkpoint = read_checkpoint(path)
    expected = keymaps.to_basicsr(state)
    assert checkpoint.state.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state[name], expected[name]) for name in expected)
    assert checkpoint.facts["arch"]["type"] == "EDSR"
    assert (checkpoint.facts["scale"], checkpoint.facts["data"]) == (2, "DIV2K")
    assert record(weights_dir)["source"] == {
        "url": f"{host.url}/{FILE}",
        "file": FILE,
        "sha256": sha256(body),
        "check": "full hash",
    }
    assert left_over(weights_dir) == []


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
def test_files_are_as_readable_as_the_umask_lets_them_be(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    before = os.umask(0o027)
    try:
        path = ensure(item, weights_dir=weights_dir)
    finally:
        os.umask(before)
    assert [file.stat().st_mode & 0o777 for file in (path, path.with_suffix(".json"))] == [0o640, 0o640]


def test_what_is_there_is_not_fetched_again(host: Host, publish: Publish, weights_dir: Path, body: bytes) -> None:
    item = publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    assert ensure(item, weights_dir=weights_dir) == ensure(item, weights_dir=weights_dir)
    assert len(host.requests) == 1


def test_a_built_network_computes_what_the_published_one_does(
    host: Host, publish: Publish, weights_dir: Path, state: dict[str, Tensor], body: bytes
) -> None:
    publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    lq = torch.rand(1, 3, 6, 6)
    net = build("edsr_tiny_x2", weights_dir=weights_dir)
    assert not net.training
    torch.testing.assert_close(net(lq), run_edsr(state, lq, blocks=1, scale=2, res_scale=1), atol=1e-4, rtol=1e-4)


def test_a_dead_first_mirror_is_passed_over(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, dead_url: str
) -> None:
    item = publish(Source(dead_url, FILE, sha256(body)), Source(host.serve(FILE, body), FILE, sha256(body)))
    ensure(item, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["url"] == f"{host.url}/{FILE}"


@pytest.mark.parametrize("status", [404, 403, 500])
def test_a_refusing_mirror_is_passed_over(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, status: int
) -> None:
    bad = host.serve("gone", b"", status=status)
    item = publish(Source(bad, FILE, sha256(body)), Source(host.serve(FILE, body), FILE, sha256(body)))
    ensure(item, weights_dir=weights_dir)
    # What is gone stays gone; a fault of the server may pass.
    assert [path for path, _ in host.requests].count("gone") == (download.ATTEMPTS if status == 500 else 1)


def test_a_web_page_is_not_taken_for_the_file(host: Host, publish: Publish, weights_dir: Path, body: bytes) -> None:
    page = host.serve("page", b"<html>click here</html>", content_type="text/html; charset=utf-8")
    item = publish(Source(page, FILE, None), Source(host.serve(FILE, body), FILE, sha256(body)))
    ensure(item, weights_dir=weights_dir)
    assert left_over(weights_dir) == []


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, dead_url: str
) -> None:
    item = publish(Source(dead_url, FILE, sha256(body)), Source(f"{host.url}/none.zip", "all.zip", member=FILE))
    with pytest.raises(MtkdError) as raised:
        ensure(item, weights_dir=weights_dir)
    for said in (dead_url, FILE, sha256(body), f"{host.url}/none.zip", "all.zip", "404", "unknown", str(weights_dir)):
        assert said in str(raised.value)


def test_an_interrupted_transfer_goes_on_where_it_stopped(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, body, cuts=[1000, 500]), FILE, sha256(body)))
    ensure(item, weights_dir=weights_dir)
    assert host.ranges() == [None, "bytes=1000-", "bytes=1500-"]


def test_a_transfer_goes_on_in_a_later_run(host: Host, publish: Publish, weights_dir: Path, body: bytes) -> None:
    item = publish(Source(host.serve(FILE, body, cuts=[1000, 0, 0, 0], etag='"1"'), FILE, None))
    with pytest.raises(MtkdError, match="bytes came"):
        ensure(item, weights_dir=weights_dir)
    host.requests.clear()
    host.replies[FILE].cuts.clear()
    ensure(item, weights_dir=weights_dir)
    assert host.ranges() == ["bytes=1000-"]
    assert left_over(weights_dir) == []


def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, b"x" * len(body), cuts=[1000, 0, 0, 0], etag='"1"'), FILE, None))
    with pytest.raises(MtkdError):
        ensure(item, weights_dir=weights_dir)
    host.serve(FILE, body, etag='"2"')
    ensure(item, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["sha256"] == sha256(body)


def test_without_hash_and_without_mark_nothing_is_patched_together(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, body, cuts=[1000]), FILE, None))
    ensure(item, weights_dir=weights_dir)
    assert host.ranges() == [None, None]


def test_halves_that_do_not_belong_together_are_fetched_whole(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, b"x" * len(body), cuts=[1000, 0, 0, 0]), FILE, sha256(body)))
    with pytest.raises(MtkdError):
        ensure(item, weights_dir=weights_dir)
    host.serve(FILE, body)
    ensure(item, weights_dir=weights_dir)
    assert host.ranges()[-2:] == ["bytes=1000-", None]


def test_a_host_that_cannot_resume_is_asked_for_all(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, body, cuts=[1000], ranges=False), FILE, sha256(body)))
    ensure(item, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["sha256"] == sha256(body)


def test_a_part_longer_than_the_file_starts_over(host: Host, publish: Publish, weights_dir: Path, body: bytes) -> None:
    item = publish(Source(host.serve(FILE, body + b"more", cuts=[len(body) + 2, 0, 0, 0]), FILE, sha256(body)))
    with pytest.raises(MtkdError):
        ensure(item, weights_dir=weights_dir)
    host.serve(FILE, body)
    ensure(item, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["sha256"] == sha256(body)


def test_a_wrong_hash_is_set_aside_and_names_both(host: Host, publish: Publish, weights_dir: Path, body: bytes) -> None:
    other = saved({"w": torch.zeros(3)})
    item = publish(Source(host.serve(FILE, other), FILE, sha256(body), "the author"))
    with pytest.raises(MtkdError) as raised:
        ensure(item, weights_dir=weights_dir)
    assert sha256(body) in str(raised.value)
    assert sha256(other) in str(raised.value)
    assert left_over(weights_dir) == [f"{FILE}.bad-{sha256(other)[:8]}"]
    assert not (weights_dir / "edsr_tiny_x2.safetensors").exists()


def test_after_a_wrong_hash_the_next_mirror_is_asked(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    other = saved({"w": torch.zeros(3)})
    item = publish(
        Source(host.serve(FILE, other), FILE, sha256(body), "the author"),
        Source(host.serve("second", body), FILE, sha256(body), "the author"),
    )
    ensure(item, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["url"] == f"{host.url}/second"
    assert left_over(weights_dir) == [f"{FILE}.bad-{sha256(other)[:8]}"]


def test_the_published_prefix_of_a_hash_is_enough_to_refuse(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, body), FILE, sha256(body)[:8], "the file name"))
    ensure(item, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["check"] == "hash prefix"
    bad = publish(Source(host.serve(FILE, body), FILE, "00000000", "the file name"))
    with pytest.raises(MtkdError, match=r"expected is 00000000\.\.\. \(from the file name\)"):
        ensure(bad, weights_dir=weights_dir / "other")


def test_a_truncated_file_is_never_used(host: Host, publish: Publish, weights_dir: Path, body: bytes) -> None:
    item = publish(Source(host.serve(FILE, body, cuts=[1000, 0, 0, 0]), FILE, sha256(body)))
    with pytest.raises(MtkdError, match=f"1,000 of {len(body):,} bytes came"):
        ensure(item, weights_dir=weights_dir)
    assert not (weights_dir / "edsr_tiny_x2.safetensors").exists()


def test_a_truncated_file_of_unknown_length_and_hash_is_set_aside_for_the_next_mirror(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    short = host.serve("short", body[:-500], announces_length=False)
    item = publish(Source(short, FILE, None), Source(host.serve(FILE, body), "other.pt", None))
    ensure(item, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["file"] == "other.pt"
    assert left_over(weights_dir) == [f"{FILE}.bad-{sha256(body[:-500])[:8]}"]


def test_weights_of_another_network_are_set_aside(host: Host, publish: Publish, weights_dir: Path, body: bytes) -> None:
    from tests.zoo.official import edsr_shapes, filled

    other = host.serve("other", saved(filled(edsr_shapes(8, 2, 2))))
    item = publish(Source(other, FILE, None))
    with pytest.raises(MtkdError, match="This is EDSR with num_block 2, your options have 1"):
        ensure(item, weights_dir=weights_dir)
    assert not (weights_dir / "edsr_tiny_x2.safetensors").exists()


def test_a_silent_server_costs_a_timeout_and_the_next_mirror_is_asked(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    slow = host.serve("slow", body, cuts=[1000, 0, 0, 0], stalls=True)
    item = publish(Source(slow, FILE, sha256(body)), Source(host.serve(FILE, body), FILE, sha256(body)))
    ensure(item, weights_dir=weights_dir)
    assert ("slow", "bytes=1000-") in host.requests
    assert record(weights_dir)["source"]["url"] == f"{host.url}/{FILE}"


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [zipped, tarred])
def test_one_file_of_an_archive_is_taken_and_the_archive_kept_for_the_others(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, packed: Callable[..., bytes]
) -> None:
    archive = packed(**{f"models/{FILE}": body, "models/other.pt": b"x", "readme.txt": b"hello"})
    item = publish(Source(host.serve("models.zip", archive), "models.zip", sha256(archive), member=FILE))
    ensure(item, weights_dir=weights_dir)
    assert left_over(weights_dir) == ["models.zip"]
    assert build("edsr_tiny_x2", weights_dir=weights_dir).scale == 2


@pytest.mark.parametrize("packed", [zipped, tarred])
@pytest.mark.parametrize("evil", ["../escaped.txt", "/tmp/escaped.txt", "a/../../escaped.txt", "..\\escaped.txt"])
def test_an_archive_with_a_path_that_escapes_is_refused(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, evil: str, packed: Callable[..., bytes]
) -> None:
    archive = packed(**{FILE: body, evil: b"x"})
    item = publish(Source(host.serve("models.zip", archive), "models.zip", None, member=FILE))
    with pytest.raises(MtkdError, match="would be written outside its folder"):
        ensure(item, weights_dir=weights_dir)
    assert not list(weights_dir.parent.rglob("escaped.txt"))
    assert not (weights_dir / "edsr_tiny_x2.safetensors").exists()


def test_a_link_in_a_tar_is_never_followed(host: Host, publish: Publish, weights_dir: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(FILE)
        info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(info)
    (tmp_path / "secret").write_bytes(b"secret")
    item = publish(Source(host.serve("models.tar", buffer.getvalue()), "models.tar", None, member=FILE))
    with pytest.raises(MtkdError, match=f"no file called {FILE}"):
        ensure(item, weights_dir=weights_dir)


def test_an_archive_without_the_file_says_what_it_holds(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve("a.zip", zipped(**{"b.pt": body, "c.pt": body})), "a.zip", None, member=FILE))
    with pytest.raises(MtkdError, match=r"no file called edsr_tiny\.pt; it holds b\.pt, c\.pt"):
        ensure(item, weights_dir=weights_dir)


def test_a_member_that_would_fill_the_disk_is_refused(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LARGEST_FILE", len(body) - 1)
    item = publish(Source(host.serve("a.zip", zipped(**{FILE: body})), "a.zip", None, member=FILE))
    with pytest.raises(MtkdError, match="claims .* bytes"):
        ensure(item, weights_dir=weights_dir)


def test_a_truncated_archive_is_set_aside(host: Host, publish: Publish, weights_dir: Path, body: bytes) -> None:
    archive = zipped(**{FILE: body})[:-100]
    item = publish(Source(host.serve("a.zip", archive, announces_length=False), "a.zip", None, member=FILE))
    with pytest.raises(MtkdError, match="truncated"):
        ensure(item, weights_dir=weights_dir)
    assert left_over(weights_dir) == [f"a.zip.bad-{sha256(archive)[:8]}"]


class Bomb:
    """Creates a folder when unpickled the careless way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_published_pickle_that_runs_code_is_refused_and_not_run(
    host: Host, publish: Publish, weights_dir: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    content = saved({"params": state, "extra": Bomb(tmp_path / "ran")})
    item = publish(Source(host.serve(FILE, content), FILE, None))
    with pytest.raises(MtkdError, match="would have to be run"):
        ensure(item, weights_dir=weights_dir)
    assert not (tmp_path / "ran").exists()


def test_an_unknown_hash_is_pinned_on_first_use_and_said_so(
    host: Host,
    publish: Publish,
    weights_dir: Path,
    state: dict[str, Tensor],
    body: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    item = publish(Source(host.serve(FILE, body), FILE, None))
    with caplog.at_level(logging.WARNING, logger="mtkd"):
        ensure(item, weights_dir=weights_dir)
    assert "No hash" in caplog.text and sha256(body) in caplog.text
    assert record(weights_dir)["source"]["check"] == "pinned"

    (weights_dir / "edsr_tiny_x2.safetensors").unlink()
    state["head.0.weight"] += 1
    changed = saved(state)
    host.serve(FILE, changed)
    with pytest.raises(MtkdError) as raised:
        ensure(item, weights_dir=weights_dir)
    assert sha256(body) in str(raised.value) and sha256(changed) in str(raised.value)


@pytest.mark.parametrize("place", [".", "downloads"])
def test_a_file_put_into_the_folder_by_hand_needs_no_network(
    publish: Publish, weights_dir: Path, body: bytes, dead_url: str, place: str
) -> None:
    item = publish(Source(dead_url, FILE, sha256(body)))
    (weights_dir / place).mkdir(parents=True)
    (weights_dir / place / FILE).write_bytes(body)
    ensure(item, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["sha256"] == sha256(body)


def fetch_in_child(item: Entry, folder: Path, start: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    start.wait(60)
    try:
        answers.put(str(ensure(item, weights_dir=folder)))
    except BaseException as error:
        answers.put(repr(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="starting torch anew takes too long")
def test_two_processes_that_want_the_same_file_fetch_it_once(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    processes = multiprocessing.get_context("fork")
    start, answers = processes.Barrier(2), processes.Queue()
    both = [processes.Process(target=fetch_in_child, args=(item, weights_dir, start, answers)) for _ in range(2)]
    for process in both:
        process.start()
    expected = str(weights_dir / "edsr_tiny_x2.safetensors")
    assert [answers.get(timeout=120) for _ in both] == [expected] * 2
    for process in both:
        process.join(timeout=60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(host.requests) == 1
    assert left_over(weights_dir) == []


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without root's right to write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that users other than the one who runs the tests can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of folders are POSIX")
def test_a_folder_that_cannot_be_written_to_is_an_error_that_names_it(
    host: Host, publish: Publish, open_folder: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    folder = open_folder / "weights"
    folder.mkdir()
    os.chmod(folder, 0o555)
    with unprivileged(), pytest.raises(MtkdError, match="cannot be written to.*--weights-dir.*MTKD_HOME") as raised:
        ensure(item, weights_dir=folder)
    assert str(folder) in str(raised.value)
    assert host.requests == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of folders are POSIX")
def test_a_folder_that_cannot_be_written_to_serves_what_it_holds(
    host: Host, publish: Publish, open_folder: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    folder = open_folder / "weights"
    path = ensure(item, weights_dir=folder)
    for place in (folder, *folder.rglob("*")):
        os.chmod(place, 0o555 if place.is_dir() else 0o444)
    with unprivileged():
        assert ensure(item, weights_dir=folder) == path
        assert build("edsr_tiny_x2", weights_dir=folder).scale == 2


def test_a_full_disk_is_an_error_and_the_transfer_is_not_tried_again(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_write_mark", full)
    item = publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    with pytest.raises(MtkdError, match="No space left on device"):
        ensure(item, weights_dir=weights_dir)
    assert len(host.requests) == 1


def test_a_file_that_changed_after_conversion_is_refused(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    path = ensure(item, weights_dir=weights_dir)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(MtkdError, match="has changed since it was converted"):
        resolve("zoo:edsr_tiny_x2", weights_dir=weights_dir)


def test_a_converted_file_without_its_record_is_refused(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    item = publish(Source(host.serve(FILE, body), FILE, sha256(body)))
    ensure(item, weights_dir=weights_dir)
    (weights_dir / "edsr_tiny_x2.json").unlink()
    with pytest.raises(MtkdError, match="it cannot be verified"):
        ensure(item, weights_dir=weights_dir)


@pytest.mark.parametrize("behaviour", [{"refuses_ranges": True}, {"etag": '"1"', "refuses_ranges": True}], ids=str)
def test_a_host_that_announces_more_than_it_sends_is_given_up(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, behaviour: dict
) -> None:
    long = body * 20  # more than counts as progress
    item = publish(Source(host.serve(FILE, long, length=str(len(long) + 9), **behaviour), FILE, sha256(body)))
    with pytest.raises(MtkdError, match="could not be fetched"):
        ensure(item, weights_dir=weights_dir)
    assert len(host.requests) <= 8


def test_attempts_are_counted_though_each_brings_something(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PROGRESS", 10)
    monkeypatch.setattr(download, "ATTEMPTS_IN_ALL", 5)
    item = publish(Source(host.serve(FILE, body, cuts=[100] * 50), FILE, sha256(body)))
    with pytest.raises(MtkdError, match="500 of"):
        ensure(item, weights_dir=weights_dir)
    assert len(host.requests) == 5


def test_a_host_that_drips_is_given_up_for_the_next(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL", 0.2)
    slow = host.serve("slow", body, drip=0.05)
    item = publish(Source(slow, FILE, sha256(body)), Source(host.serve(FILE, body), FILE, sha256(body)))
    ensure(item, weights_dir=weights_dir)
    assert record(weights_dir)["source"]["url"] == f"{host.url}/{FILE}"


@pytest.mark.parametrize("length", ["abc", "-1", "1" * 5000, "\u00b2", ""])
def test_a_length_that_is_no_number_is_passed_over(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, length: str
) -> None:
    item = publish(Source(host.serve(FILE, body, length=length or " "), FILE, sha256(body)))
    ensure(item, weights_dir=weights_dir)


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("known", [{"size": 1000}, {"about": 0.0}], ids=str)
def test_no_more_is_taken_than_the_file_can_have(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, announced: bool, known: dict
) -> None:
    flood = host.serve("flood", bytes(4 << 20), announces_length=announced)
    item = publish(Source(flood, FILE, None, **known))
    with pytest.raises(MtkdError, match="announces 4,194,304 bytes" if announced else "sends more than"):
        ensure(item, weights_dir=weights_dir)
    assert left_over(weights_dir) == []


@pytest.mark.parametrize(
    "text",
    ["[]", "3", "{", '{"source": 3}', '{"source": {}, "sha256": 3}', "\udce9", "[" * 99_999],
    ids=lambda t: t[:20],
)
def test_a_record_that_is_none_is_named(publish: Publish, weights_dir: Path, text: str, body: bytes) -> None:
    item = publish(Source("http://127.0.0.1:1/x", FILE, sha256(body)))
    weights_dir.mkdir()
    (weights_dir / f"{item.name}.safetensors").write_bytes(b"x")
    (weights_dir / f"{item.name}.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(MtkdError, match=rf"{item.name}\.json.*Delete it"):
        ensure(item, weights_dir=weights_dir)
    (report,) = verify([item.name], weights_dir=weights_dir)
    assert not report.ok and f"{item.name}.json" in report.text


@pytest.mark.parametrize(
    "text",
    ["[]", "3", '{"url": 3}', '{"url": "URL", "mark": 3}', '{"url": "URL", "mark": "a\\r\\nX: y"}', "[" * 99_999],
    ids=lambda text: text[:30],
)
def test_a_mark_that_is_none_is_passed_over(
    host: Host, publish: Publish, weights_dir: Path, text: str, body: bytes
) -> None:
    url = host.serve(FILE, body)
    item = publish(Source(url, FILE, sha256(body)))
    part = weights_dir / "downloads" / f"{FILE}.{sha256(url.encode())[:8]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(body[:100])
    part.with_name(f"{part.name}.json").write_text(text.replace("URL", url))
    ensure(item, weights_dir=weights_dir)


def packed_anyhow(body: bytes) -> list[tuple[str, bytes]]:
    """Archives that their readers stumble over, by what is wrong with them."""
    plain = zipped(**{FILE: body})
    encrypted, unknown, garbled = bytearray(plain), bytearray(plain), bytearray(plain)
    for offset, at in ((6, 8), (plain.rindex(b"PK\x01\x02") + 8, plain.rindex(b"PK\x01\x02") + 10)):
        encrypted[offset] |= 1
        unknown[at] = 97
    garbled[200:300] = b"\xff" * 100
    gz = tarred(**{FILE: body})
    stored = io.BytesIO()
    with tarfile.open(fileobj=stored, mode="w") as archive:
        info = tarfile.TarInfo(FILE)
        info.size = len(body)
        archive.addfile(info, io.BytesIO(body))
    return [
        ("encrypted", bytes(encrypted)),
        ("unknown packing", bytes(unknown)),
        ("garbled", bytes(garbled)),
        ("cut gz", gz[: len(gz) // 2]),
        ("garbled gz", gz[:300] + b"\xff" * 100 + gz[400:]),
        ("cut xz", lzma.compress(stored.getvalue())[:-200]),
        ("garbled xz", lzma.compress(stored.getvalue())[:300] + b"\xff" * 500),
        ("cut bz2", bz2.compress(stored.getvalue())[:-200]),
        ("cut tar", stored.getvalue()[:2000]),
        ("bomb", gzip.compress(bytes(200 << 20), 1)),
    ]


def test_archives_that_cannot_be_read_are_set_aside(
    host: Host, publish: Publish, weights_dir: Path, body: bytes
) -> None:
    for name, archive in packed_anyhow(body):
        item = publish(Source(host.serve("a.zip", archive), "a.zip", None, member=FILE))
        with pytest.raises(MtkdError, match="could not be fetched"):
            ensure(item, weights_dir=weights_dir)
        assert left_over(weights_dir) == [f"a.zip.bad-{sha256(archive)[:8]}"], name
        (weights_dir / "downloads" / f"a.zip.bad-{sha256(archive)[:8]}").unlink()


@pytest.mark.parametrize(
    "pack", [lambda b: b, gzip.compress, bz2.compress, lzma.compress], ids=["tar", "gz", "bz2", "xz"]
)
def test_a_tar_is_read_though_its_last_file_is_a_zip(
    host: Host, publish: Publish, weights_dir: Path, body: bytes, pack: Callable[[bytes], bytes]
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(f"models/{FILE}")
        info.size = len(body)
        archive.addfile(info, io.BytesIO(body))
    item = publish(Source(host.serve("a.tar", pack(buffer.getvalue())), "a.tar", None, member=FILE))
    ensure(item, weights_dir=weights_dir)
