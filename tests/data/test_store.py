"""The image store: contents, checksums, kills, damaged files."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mtkd.contracts import MtkdError
from mtkd.data import store, store_format
from mtkd.data.store import ImageStore, StoreWriter
from tests.helpers import photo

NAMES = ["a", "b", "ö"]


def images():
    return [photo("chelsea", (5, 7)), photo("coffee", (16, 3)), photo("rocket", (1, 1))]


def test_images_names_and_facts_come_back(tmp_path) -> None:
    made = store.write(tmp_path / "s.safetensors", NAMES, images(), {"scale": 4, "by": ["edsr"]})
    assert (len(made), made.names, made.sizes) == (3, NAMES, [(5, 7), (16, 3), (1, 1)])
    assert made.facts == {"scale": 4, "by": ["edsr"]}
    assert made.dtype == "uint8"
    for got, want in zip(made, images(), strict=True):
        assert np.array_equal(got, want)
    assert np.array_equal(made[-1], images()[-1])
    with pytest.raises(IndexError):
        made[3]


def test_flat_is_all_images_in_order_and_writing_to_it_leaves_the_file_alone(tmp_path) -> None:
    made = store.write(tmp_path / "s", NAMES, images())
    assert np.array_equal(made.flat.numpy(), np.concatenate([image.ravel() for image in images()]))
    assert made.offsets == [0, 105, 249]
    made.flat.zero_()
    assert np.array_equal(ImageStore(tmp_path / "s")[0], images()[0])


def test_the_file_is_plain_safetensors(tmp_path) -> None:
    made = store.write(tmp_path / "s.safetensors", NAMES, images())
    assert torch.equal(load_file(tmp_path / "s.safetensors")["images"], made.flat)


def test_half_precision_images_come_back(tmp_path) -> None:
    floats = [image.astype(np.float32) / 255 for image in images()]
    made = store.write(tmp_path / "s", NAMES, floats, dtype="float16")
    assert made.flat.dtype == torch.float16
    assert np.array_equal(made[0], floats[0].astype(np.float16))


def test_a_killed_writer_leaves_no_store_and_the_next_one_goes_on(tmp_path) -> None:
    sizes = [image.shape[:2] for image in images()]
    first = StoreWriter(tmp_path / "s", NAMES, sizes, {"x": 1})
    first.put(1, images()[1])
    first.close()
    with pytest.raises(MtkdError, match="cannot be opened"):
        ImageStore(tmp_path / "s")

    second = StoreWriter(tmp_path / "s", NAMES, sizes, {"x": 1})
    assert second.missing() == [0, 2]
    second.put(2, images()[2])
    with pytest.raises(MtkdError, match="lacks 1 image"):
        second.finish()
    second.put(0, images()[0])
    made = second.finish()
    assert all(np.array_equal(got, want) for got, want in zip(made, images(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_marks_of_a_deleted_attempt_count_for_nothing(tmp_path) -> None:
    sizes = [image.shape[:2] for image in images()]
    writer = StoreWriter(tmp_path / "s", NAMES, sizes)
    writer.put(0, images()[0])
    writer.close()
    (tmp_path / "s.partial").unlink()
    assert StoreWriter(tmp_path / "s", NAMES, sizes).missing() == [0, 1, 2]


def test_two_writers_share_the_work(tmp_path) -> None:
    sizes = [image.shape[:2] for image in images()]
    one, two = (StoreWriter(tmp_path / "s", NAMES, sizes) for _ in range(2))
    one.put(0, images()[0])
    two.put(1, images()[1])
    two.put(2, images()[2])
    two.close()
    assert all(np.array_equal(got, want) for got, want in zip(one.finish(), images(), strict=True))


def test_a_half_written_store_with_other_facts_is_in_the_way(tmp_path) -> None:
    sizes = [image.shape[:2] for image in images()]
    StoreWriter(tmp_path / "s", NAMES, sizes, {"teacher": "edsr"}).close()
    with pytest.raises(MtkdError, match="s.partial is a half-written"):
        StoreWriter(tmp_path / "s", NAMES, sizes, {"teacher": "rcan"})


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_store_is_refused(tmp_path, keep) -> None:
    store.write(tmp_path / "s", NAMES, images())
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(data[:keep])
    with pytest.raises(MtkdError, match="elete it"):
        ImageStore(tmp_path / "s")


def test_another_safetensors_file_is_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"images": torch.zeros(3, dtype=torch.uint8)}, tmp_path / "weights.safetensors")
    with pytest.raises(MtkdError, match="not an image store"):
        ImageStore(tmp_path / "weights.safetensors")


def test_wrong_images_are_refused(tmp_path) -> None:
    writer = StoreWriter(tmp_path / "s", ["a"], [(4, 4)])
    for wrong in [np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)]:
        with pytest.raises(MtkdError, match="must be uint8 of shape"):
            writer.put(0, wrong)
    assert writer.missing() == [0]
    with pytest.raises(MtkdError, match="unique names"):
        store.write(tmp_path / "t", ["a", "a"], [np.zeros((4, 4, 3), np.uint8)] * 2)


def test_the_digest_follows_contents_not_the_place(tmp_path) -> None:
    one = store.write(tmp_path / "one", NAMES, images(), {"made": "here"})
    two = store.write(tmp_path / "two", NAMES, images())
    changed = [images()[0] ^ 1, *images()[1:]]
    assert one.digest() == two.digest()
    assert one.digest() != store.write(tmp_path / "three", NAMES, changed).digest()
    assert one.digest() != store.write(tmp_path / "four", ["a", "b", "c"], images()).digest()


def test_what_a_half_written_store_lacks_is_told_without_touching_it(tmp_path) -> None:
    sizes = [image.shape[:2] for image in images()]
    assert store.missing_images(tmp_path / "s", 3) == [0, 1, 2]
    writer = StoreWriter(tmp_path / "s", NAMES, sizes, durable=True)
    writer.put(1, images()[1])
    assert store.missing_images(tmp_path / "s", 3) == writer.missing() == [0, 2]
    writer.close()
    (tmp_path / "s.partial").unlink()
    assert store.missing_images(tmp_path / "s", 3) == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["s.partial.done"]


def test_what_differs_from_a_half_written_store_is_named(tmp_path) -> None:
    sizes = [image.shape[:2] for image in images()]
    StoreWriter(tmp_path / "s", NAMES, sizes, {"teacher": "edsr", "x8": True}).close()
    with pytest.raises(MtkdError, match="its teacher, x8 differ"):
        StoreWriter(tmp_path / "s", NAMES, sizes, {"teacher": "rcan"})
    with pytest.raises(MtkdError, match="its images, dtype differ"):
        StoreWriter(tmp_path / "s", NAMES[::-1], sizes[::-1], {"teacher": "edsr", "x8": True}, dtype="float16")
    (tmp_path / "s.partial").write_bytes(b"\xff" * 50)
    with pytest.raises(MtkdError, match="its format differ"):
        StoreWriter(tmp_path / "s", NAMES, sizes)


def test_a_store_finished_by_another_process_is_an_error_and_no_traceback(tmp_path) -> None:
    sizes = [image.shape[:2] for image in images()]
    one, two = (StoreWriter(tmp_path / "s", NAMES, sizes) for _ in range(2))
    for i, image in enumerate(images()):
        one.put(i, image)
    one.finish()
    with pytest.raises(MtkdError, match="Does another process write it"):
        two.finish()


def test_one_changed_bit_is_found_and_the_image_named(tmp_path) -> None:
    for dtype in ("uint8", "float16"):
        kinds = images() if dtype == "uint8" else [image.astype(np.float32) / 255 for image in images()]
        path = store.write(tmp_path / dtype, NAMES, kinds, dtype=dtype).path
        ImageStore(path).verify()
        content = bytearray(path.read_bytes())
        content[-4 if dtype == "uint8" else -7] ^= 16  # the last pixel of the second image
        path.write_bytes(content)
        with pytest.raises(MtkdError, match=r"1 of 3 images differ from their checksums \(b\)"):
            ImageStore(path).verify()


def test_sums_of_a_store_made_in_several_goes_are_complete(tmp_path) -> None:
    sizes = [image.shape[:2] for image in images()]
    for i in (2, 0, 1):
        writer = StoreWriter(tmp_path / "s", NAMES, sizes)
        writer.put(i, images()[i])
        writer.close()
    made = StoreWriter(tmp_path / "s", NAMES, sizes).finish()
    made.verify()
    assert made.path.read_bytes() == store.write(tmp_path / "t", NAMES, images()).path.read_bytes()


def test_stores_of_the_version_without_sums_open_and_are_finished(tmp_path, monkeypatch) -> None:
    sizes = [image.shape[:2] for image in images()]
    real = store.header_of
    with monkeypatch.context() as old:
        old.setattr(store, "header_of", lambda *given, sums: real(*given, sums=False))
        store.write(tmp_path / "old", NAMES, images())
        begun = StoreWriter(tmp_path / "begun", NAMES, sizes)
        begun.put(0, images()[0])
        begun.close()
    ImageStore(tmp_path / "old").verify()
    writer = StoreWriter(tmp_path / "begun", NAMES, sizes)
    assert writer.missing() == [1, 2]
    for i in (1, 2):
        writer.put(i, images()[i])
    assert writer.finish().path.read_bytes() == (tmp_path / "old").read_bytes()


def crafted(**changes):
    metadata = {
        "format": store_format.FORMAT,
        "names": '["a"]',
        "sizes": "[[2, 2]]",
        "facts": "{}",
        **changes.pop("metadata", {}),
    }
    entry = {"dtype": "U8", "shape": [12], "data_offsets": [0, 12], **changes.pop("entry", {})}
    text = json.dumps({"__metadata__": metadata, "images": entry, **changes}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(12)


@pytest.mark.parametrize(
    "content",
    [
        crafted(entry={"shape": [13]}),
        crafted(entry={"shape": [-1]}),
        crafted(entry={"shape": "x"}),
        crafted(entry={"data_offsets": [0]}),
        crafted(entry={"data_offsets": "ab"}),
        crafted(entry={"data_offsets": [0, 10**30]}),
        crafted(images=7),
        crafted(metadata={"names": '["a", "b"]'}),
        crafted(metadata={"names": "[1]"}),
        crafted(metadata={"names": '[["a"]]'}),
        crafted(metadata={"names": '"a"'}),
        crafted(metadata={"sizes": "[[2, -2]]"}),
        crafted(metadata={"sizes": "[[2, 2.5]]"}),
        crafted(metadata={"sizes": "[[1e400, 2]]"}),
        crafted(metadata={"sizes": "[]", "names": "[]"}),
        crafted(metadata={"sizes": f"[[{10**15}, {10**15}]]"}),
        crafted(metadata={"facts": "[]"}),
        crafted(metadata={"facts": "[" * 200_000}),
        crafted(metadata={"crc32": "zz"}),
        crafted(metadata={"crc32": "z" * 8}),
        crafted(__metadata__=[]),
        b"\xff" * 64,
        (5 << 40).to_bytes(8, "little") + b"{}",
        b"[]",
        (4).to_bytes(8, "little") + b"null",
    ],
    ids=lambda content: content[8:90].decode("ascii", "replace"),
)
def test_a_crafted_header_is_one_paragraph(tmp_path, content) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(MtkdError, match="s is not an image store of mtkd, or is damaged"):
        ImageStore(tmp_path / "s")


def test_the_header_that_the_crafted_ones_change_is_good(tmp_path) -> None:
    (tmp_path / "s").write_bytes(crafted())
    assert ImageStore(tmp_path / "s")[0].shape == (2, 2, 3)
    (tmp_path / "s").write_bytes(crafted() + b"more")
    with pytest.raises(MtkdError, match="longer than its header says, by 4 bytes"):
        ImageStore(tmp_path / "s")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MtkdError, match="folder is not an image store"):
        ImageStore(tmp_path / "folder")


def test_a_writer_that_is_killed_when_it_begins_leaves_a_hidden_file_alone(tmp_path, monkeypatch) -> None:
    def killed(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        StoreWriter(tmp_path / "s", ["a"], [(2, 2)])
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
