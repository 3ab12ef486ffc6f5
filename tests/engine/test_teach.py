"""The target store: made once, checked against the run, equal to on-line teachers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mtkd.contracts import MtkdError
from mtkd.data.store import StoreWriter
from mtkd.engine import build
from mtkd.engine.evaluate import to_image, to_tensor
from mtkd.engine.teach import open_training_images, teach
from mtkd.engine.train import train
from tests.engine.runs import make_images, make_teachers, run_options


def settings(tmp_path: Path, **changes):
    return {
        "images": tmp_path / "images",
        "model_type": "MTKD",
        "teachers": make_teachers(tmp_path / "teachers"),
        "fusion": "mean",
        **changes,
    }


def test_store_holds_the_teachers_answers_at_full_size(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    options = run_options(tmp_path, **settings(tmp_path))
    store = teach(options, tmp_path / "targets", progress=lambda _: None)
    images = open_training_images(options)
    (net,) = build.build_teachers(options).values()
    with torch.no_grad():
        for index in range(len(store)):
            expected = to_image(net.eval()(to_tensor(images.lq[index])))
            assert np.array_equal(store[index], expected)
            assert store.sizes[index] == images.gt.sizes[index]


def test_training_from_the_store_is_training_on_line(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    online = settings(tmp_path, train={"total_iter": 2, "target_opt": {"type": "L1Loss"}})
    store = tmp_path / "targets"
    stored = run_options(tmp_path, **{**online, "name": "stored", "target_store": str(store)})
    teach(stored, store, progress=lambda _: None)
    losses = []
    for options in (stored, run_options(tmp_path, **{**online, "name": "online"})):
        train(options)
        text = (tmp_path / f"experiments/{options.name}/metrics.jsonl").read_text()
        losses.append(json.loads(text.splitlines()[0])["losses"]["target"])
    # The store is rounded to 8 bits and sees the whole image instead of a crop, so small borders differ.
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_interrupted_store_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "images")
    options = run_options(tmp_path, **settings(tmp_path))
    real, written = StoreWriter.put, []

    def put(self, index, image):
        if len(written) == 2 and self.path.name == "targets":
            raise KeyboardInterrupt
        real(self, index, image)
        written.append(index)

    monkeypatch.setattr(StoreWriter, "put", put)
    open_training_images(options)
    written.clear()
    with pytest.raises(KeyboardInterrupt):
        teach(options, tmp_path / "targets", progress=lambda _: None)
    assert not (tmp_path / "targets").exists()
    monkeypatch.setattr(StoreWriter, "put", real)
    said: list[str] = []
    store = teach(options, tmp_path / "targets", progress=said.append)
    assert said[0] == "targets: going on with 2 of 4 images"
    fresh = teach(options, tmp_path / "fresh", progress=lambda _: None)
    assert store.digest() == fresh.digest()


def test_store_of_other_teachers_or_images_is_refused(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    store = tmp_path / "targets"
    given = settings(tmp_path, target_store=str(store))
    options = run_options(tmp_path, **given)
    with pytest.raises(MtkdError, match="mtkd teach"):
        train(options)
    teach(options, store, progress=lambda _: None)
    with pytest.raises(MtkdError, match="already exists"):
        teach(options, store, progress=lambda _: None)
    swapped = {**given, "teachers": dict(reversed(given["teachers"].items()))}
    with pytest.raises(MtkdError, match="teachers differ"):
        train(run_options(tmp_path, **swapped))
    other = {**given, "images": make_images(tmp_path / "other")}
    (tmp_path / "other/rocket.png").unlink()
    with pytest.raises(MtkdError, match="images differ"):
        train(run_options(tmp_path, **other))
    assert not (tmp_path / "experiments").exists()
    train(options)
