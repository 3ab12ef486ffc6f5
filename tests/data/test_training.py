"""The cache of decoded training images: when it is made, reused and made again."""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest
import torch

from mtkd.contracts import MtkdError
from mtkd.data.images import write_image
from mtkd.data.paired import PairedImages
from mtkd.data.training import open_training_set
from mtkd.training.loop import train
from tests.helpers import photo
from tests.runs import make_images, run_options


@pytest.fixture
def options(tmp_path):
    for i in range(4):
        write_image(tmp_path / "gt" / f"i{i}.png", photo("rocket", (24 + i, 30)))
    return {"dataroot_gt": str(tmp_path / "gt"), "gt_size": 16, "use_hflip": True, "batch_size_per_gpu": 2}


def entries(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_stores_hold_what_the_folders_hold(tmp_path, options) -> None:
    seen = []
    found = open_training_set(options, scale=4, cache_dir=tmp_path / "c", progress=lambda *p: seen.append(p), workers=2)
    pairs = PairedImages(dataroot_gt=options["dataroot_gt"], scale=4)
    assert found.lq.names == found.gt.names == pairs.names
    for i, pair in enumerate(pairs):
        assert np.array_equal(found.lq[i], pair.lq)
        assert np.array_equal(found.gt[i], pair.gt)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_second_run_decodes_nothing(tmp_path, options, monkeypatch) -> None:
    open_training_set(options, scale=2, cache_dir=tmp_path / "c")
    before = entries(tmp_path / "c")
    monkeypatch.setattr(PairedImages, "__getitem__", lambda *_: pytest.fail("an image was decoded again"))
    again = open_training_set(options, scale=2, cache_dir=tmp_path / "c", progress=lambda *_: pytest.fail("decoding"))
    assert len(again.gt) == 4
    assert entries(tmp_path / "c") == before


def test_a_changed_file_another_scale_and_other_images_make_new_entries(tmp_path, options) -> None:
    cache = tmp_path / "c"
    open_training_set(options, scale=2, cache_dir=cache)
    open_training_set(options, scale=3, cache_dir=cache)
    assert len(entries(cache)) == 2
    path = tmp_path / "gt" / "i0.png"
    write_image(path, 255 - photo("rocket", (24, 30)))
    os.utime(path, ns=(1, 1))
    changed = open_training_set(options, scale=2, cache_dir=cache)
    assert len(entries(cache)) == 3
    assert np.array_equal(changed.gt[0], 255 - photo("rocket", (24, 30)))
    (tmp_path / "meta.txt").write_text("i3.png\ni1.png\n")
    some = open_training_set({**options, "meta_info_file": tmp_path / "meta.txt"}, scale=2, cache_dir=cache)
    assert some.gt.names == ["i3", "i1"]


def test_all_undecodable_files_are_listed_and_nothing_is_left(tmp_path, options) -> None:
    for i in (1, 3):
        path = tmp_path / "gt" / f"i{i}.png"
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MtkdError) as raised:
        open_training_set(options, scale=2, cache_dir=tmp_path / "c")
    assert "2 problems" in str(raised.value)
    assert "i1.png" in str(raised.value) and "i3.png" in str(raised.value)
    assert entries(tmp_path / "c") == []


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, options) -> None:
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_training_set(options, scale=2, cache_dir=tmp_path / "c", progress=interrupt)
    assert entries(tmp_path / "c") == []
    assert len(open_training_set(options, scale=2, cache_dir=tmp_path / "c").gt) == 4


def test_images_smaller_than_the_crop_are_refused(tmp_path, options) -> None:
    with pytest.raises(MtkdError, match="4 problems"):
        open_training_set({**options, "gt_size": 32}, scale=2, cache_dir=tmp_path / "c")


def _open(options, cache, barrier):
    barrier.wait()
    assert len(open_training_set(options, scale=2, cache_dir=cache, workers=1).gt) == 4


@pytest.mark.parametrize("locks", [True, False])
def test_runs_that_start_together_share_one_sound_entry(tmp_path, options, monkeypatch, locks) -> None:
    if not locks:
        fcntl = pytest.importorskip("fcntl")
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks here")))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    runs = [context.Process(target=_open, args=(options, tmp_path / "c", barrier)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    found = open_training_set(options, scale=2, cache_dir=tmp_path / "c", progress=lambda *_: pytest.fail("decoding"))
    assert np.array_equal(found.gt[0], photo("rocket", (24, 30)))
    assert len(entries(tmp_path / "c")) == 1


def test_a_run_says_how_far_decoding_is_and_trains_the_same_from_the_disk(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
    images = make_images(tmp_path / "images")
    weights = []
    for number, place in enumerate(({"residence": "ram"}, {"residence": "disk", "num_worker_per_gpu": 2})):
        options = run_options(tmp_path / str(number), images=images, train={"total_iter": 3})
        train_set = options.datasets.train.model_copy(update=place)
        options = options.model_copy(update={"datasets": options.datasets.model_copy(update={"train": train_set})})
        weights.append(torch.load(train(options), weights_only=True)["params_ema"])
        count = len(list(images.iterdir()))
        said = capsys.readouterr().out
        assert (f"decoding the training images: {count} of {count} images" in said) == (number == 0)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("damage", ["gone", "truncated", "one bit", "empty", "all gone"])
def test_a_damaged_entry_is_made_again(tmp_path, options, damage, caplog) -> None:
    made = open_training_set(options, scale=2, cache_dir=tmp_path / "c")
    path, kept = made.gt.path, made.gt.path.read_bytes()
    if damage == "one bit":
        path.write_bytes(kept[:-5] + bytes([kept[-5] ^ 1]) + kept[-4:])
    elif damage in ("truncated", "empty"):
        path.write_bytes(kept[:-5] if damage == "truncated" else b"")
    else:
        path.unlink()
        if damage == "all gone":
            made.lq.path.unlink()
    again = open_training_set(options, scale=2, cache_dir=tmp_path / "c")
    assert again.gt.path.read_bytes() == kept and "decoded again" in caplog.text
    assert entries(tmp_path / "c") == [path.parent.name]
