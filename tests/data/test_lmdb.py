"""BasicSR's lmdb folders give the images of the folders that they were made of."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import mtkd.basicsr  # noqa: F401  (lets basicsr be imported beside a current torchvision)
from mtkd.contracts import MtkdError
from mtkd.data.images import write_image
from mtkd.data.paired import PairedImages
from mtkd.data.training import open_training_set
from tests.helpers import photo

pytestmark = pytest.mark.slow

LMDB = {"type": "lmdb"}


@pytest.fixture
def folders(tmp_path):
    """Folders gt and lq, and the same as gt.lmdb and lq.lmdb written by BasicSR; names in no order, one with a dot."""
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs

    names = ["b", "a_s001", "c.2"]
    for i, name in enumerate(names):
        write_image(tmp_path / "gt" / f"{name}.png", photo("rocket", (24 + 2 * i, 30)))
        write_image(tmp_path / "lq" / f"{name}.png", photo("coffee", (12 + i, 15)))
    for side in ("gt", "lq"):
        paths = [f"{name}.png" for name in names]
        make_lmdb_from_imgs(str(tmp_path / side), str(tmp_path / f"{side}.lmdb"), paths, names, map_size=1 << 22)
    return tmp_path


def roots(folder, suffix=""):
    return {"dataroot_gt": str(folder / f"gt{suffix}"), "dataroot_lq": str(folder / f"lq{suffix}")}


def same(one, two):
    assert one.names == two.names and one.sizes == two.sizes
    for a, b in zip(one, two, strict=True):
        assert a.name == b.name and np.array_equal(a.lq, b.lq) and np.array_equal(a.gt, b.gt)


def test_an_lmdb_gives_the_images_of_its_folder(folders) -> None:
    plain = PairedImages(**roots(folders), scale=2)
    same(PairedImages(**roots(folders, ".lmdb"), scale=2, io_backend=LMDB), plain)
    alone = {"dataroot_gt": str(folders / "gt"), "scale": 2}
    same(
        PairedImages(**{**alone, "dataroot_gt": str(folders / "gt.lmdb")}, io_backend=LMDB),
        PairedImages(**alone),
    )


def test_images_put_one_by_one_are_found_too(tmp_path) -> None:
    import cv2
    from basicsr.utils.lmdb_util import LmdbMaker

    image = photo("chelsea", (20, 24))
    maker = LmdbMaker(str(tmp_path / "gt.lmdb"), map_size=1 << 22)
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    maker.put(encoded.tobytes(), "cat", image.shape)
    maker.close()
    (pair,) = PairedImages(dataroot_gt=tmp_path / "gt.lmdb", scale=2, io_backend=LMDB)
    assert pair.name == "cat" and np.array_equal(pair.gt, image)


def test_training_stores_hold_what_the_lmdb_holds(folders) -> None:
    options = {**roots(folders, ".lmdb"), "io_backend": LMDB, "gt_size": 16}
    stores = open_training_set(options, scale=2, cache_dir=folders / "c", workers=3)
    pairs = PairedImages(**roots(folders), scale=2)
    assert stores.gt.names == pairs.names
    for i, pair in enumerate(pairs):
        assert np.array_equal(stores.lq[i], pair.lq) and np.array_equal(stores.gt[i], pair.gt)
    again = open_training_set(options, scale=2, cache_dir=folders / "c", progress=lambda *_: pytest.fail("decoding"))
    assert again.gt.path == stores.gt.path


def test_meta_info_file_chooses_and_the_template_is_not_used(folders) -> None:
    (folders / "some.txt").write_text("c.2.png (28,30,3)\nb.png (24,30,3)\n")
    pairs = PairedImages(
        **roots(folders, ".lmdb"), scale=2, io_backend=LMDB, meta_info_file=folders / "some.txt", filename_tmpl="{}x2"
    )
    assert pairs.names == ["c.2", "b"]


def test_sets_with_different_keys_are_a_problem(folders) -> None:
    meta = folders / "lq.lmdb" / "meta_info.txt"
    meta.write_text(meta.read_text().replace("b.png", "d.png"))
    with pytest.raises(MtkdError, match="2 problems") as raised:
        PairedImages(**roots(folders, ".lmdb"), scale=2, io_backend=LMDB)
    assert "no lq image b.png" in str(raised.value) and "d.png" in str(raised.value)


def test_what_is_no_lmdb_is_named(folders) -> None:
    with pytest.raises(MtkdError, match=r"lq is not an lmdb"):
        PairedImages(**{**roots(folders, ".lmdb"), "dataroot_lq": str(folders / "lq")}, scale=2, io_backend=LMDB)
    meta = folders / "gt.lmdb" / "meta_info.txt"
    kept = meta.read_text()
    meta.write_text(kept + "x.png 1\n")
    with pytest.raises(MtkdError, match=r"meta_info.txt: the line of 'x.png' is not of the form"):
        PairedImages(**roots(folders, ".lmdb"), scale=2, io_backend=LMDB)
    meta.write_text(kept + "missing.png (8,8,3) 1\n")
    pairs = PairedImages(dataroot_gt=folders / "gt.lmdb", scale=2, io_backend=LMDB)
    with pytest.raises(MtkdError, match="no image with key 'missing'"):
        pairs[pairs.names.index("missing")]
    shutil.rmtree(folders / "gt.lmdb")
    with pytest.raises(MtkdError, match="is not an lmdb"):
        PairedImages(**roots(folders, ".lmdb"), scale=2, io_backend=LMDB)
