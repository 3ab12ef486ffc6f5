"""Known sets are laid out from any layout; what is hostile, ambiguous or wrong is refused."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtkd.contracts import MtkdError
from mtkd.data import laying, manifests
from mtkd.data.headers import read_header
from mtkd.data.images import encode, list_images, read_image, write_image
from mtkd.data.known import KnownSet, Part
from mtkd.data.laid import inspect, verify
from mtkd.data.laying import lay
from mtkd.data.manifests import Form, Manifest, digest
from mtkd.data.resize import bicubic_lq
from mtkd.runtime import archives
from tests.helpers import photo

PIXELS = {
    "cat": photo("chelsea", (25, 38)),
    "cup": photo("coffee", (30, 26)),
    "moon": np.repeat(photo("rocket", (21, 33))[:, :, :1], 3, axis=2),  # grey
}
Pack = Callable[[Path, dict[str, bytes]], Path]


def cut(image: np.ndarray, by: int) -> np.ndarray:
    return image[: image.shape[0] // by * by, : image.shape[1] // by * by]


def made_up(name: str, parts: dict[str, Manifest]) -> KnownSet:
    made = tuple(Part(hr, hr.replace("HR", "LR_bicubic"), lambda known=known: known) for hr, known in parts.items())
    return KnownSet(name, made, "test", "none", "nowhere")


def forms(image: np.ndarray) -> list[Form]:
    return list(dict.fromkeys(digest(cut(image, by)) for by in (1, 2, 4)))


TRIO = made_up("Trio", {"HR": Manifest(3, {name: forms(image) for name, image in PIXELS.items()})})
NUMBERS = made_up(
    "Numbers",
    {"Numbers_train_HR": manifests.named("{:04d}", 1, 3), "Numbers_valid_HR": manifests.named("{:04d}", 4, 5)},
)
COUNTED = made_up("Counted", {"HR": Manifest(3, {})})


def png(image: np.ndarray, name: str = "x.png") -> bytes:
    return encode(Path(name), image)


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path.with_suffix(".zip")


def tarred(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path.with_suffix(".tar"), mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.with_suffix(".tar")


def unpacked(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


PACKS = {
    "folder": unpacked, "zip": zipped, "tar": tarred, "tgz": lambda *a: tarred(*a, "w:gz"),
    "tar.xz": lambda *a: tarred(*a, "w:xz"),
}  # fmt: skip
LAYOUTS = {
    "flat": {f"{name}.png": png(image) for name, image in PIXELS.items()},
    "edsr": {
        **{f"benchmark/Trio/HR/{name}.png": png(image) for name, image in PIXELS.items()},
        **{f"benchmark/Trio/LR_bicubic/X2/{name}x2.png": png(bicubic_lq(image, 2)) for name, image in PIXELS.items()},
        "benchmark/B/HR/cat.png": png(photo("coffee", (25, 38))),
        "readme.txt": b"hello",
    },
    "other names and formats": {
        "./a/IMG (1).webp": png(PIXELS["cat"], "x.webp"),
        "./a/b/Second.BMP": png(PIXELS["cup"], "x.bmp"),
        "./c/3.tif": png(PIXELS["moon"][:, :, 0], "x.tif"),
        "./c/._3.tif": b"made by macOS",
        "__MACOSX/a/1.png": b"made by macOS",
    },
}


def check_laid(root: Path, scales: tuple[int, ...]) -> None:
    files = list_images(root / "Trio/HR")
    assert [file.stem for file in files] == list(PIXELS)
    for file in files:
        assert np.array_equal(read_image(file), PIXELS[file.stem])
        for scale in scales:
            lq = read_image(root / f"Trio/LR_bicubic/X{scale}/{file.stem}x{scale}.png")
            assert np.array_equal(lq, bicubic_lq(PIXELS[file.stem], scale))


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_are_known_by_their_pixels_whatever_the_layout(tmp_path: Path, layout: str, pack: str) -> None:
    lay([TRIO], [PACKS[pack](tmp_path / "mine", LAYOUTS[layout])], tmp_path / "data", scales=(2, 3), workers=2)
    check_laid(tmp_path / "data", (2, 3))
    lines = verify(TRIO, tmp_path / "data", bicubic=True)
    assert len(lines) == 3 and "pixels as published" in lines[0]
    assert (tmp_path / "data/Trio/meta_info_HR.txt").read_text().splitlines()[0].endswith("(25,38,3)")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["Trio"]


def test_files_keep_their_bytes(tmp_path: Path) -> None:
    files = LAYOUTS["other names and formats"]
    lay([TRIO], [zipped(tmp_path / "mine", files)], tmp_path / "data", scales=())
    assert (tmp_path / "data/Trio/HR/cup.bmp").read_bytes() == files["./a/b/Second.BMP"]


def selfexsr(*scales: int) -> dict[str, bytes]:
    names = dict(zip((f"img_{i:03d}" for i in range(1, 4)), PIXELS.values(), strict=True))
    return {
        f"data/Trio/image_SRF_{s}/{name}_SRF_{s}_{kind}.png": png(
            cut(image, s) if kind == "HR" else bicubic_lq(image, s)
        )
        for s in scales
        for name, image in names.items()
        for kind in ("HR", "LR")
    }


def test_images_cut_for_one_scale_serve_it_and_no_other(tmp_path: Path) -> None:
    source = zipped(tmp_path / "mine", selfexsr(4))
    lay([TRIO], [source], tmp_path / "data", scales=(4,))
    for name, image in PIXELS.items():
        lq = read_image(tmp_path / f"data/Trio/LR_bicubic/X4/{name}x4.png")
        assert np.array_equal(lq, bicubic_lq(image, 4))
    with pytest.raises(MtkdError, match=r"at x3, 2 of 3 images \(cup, ...\) lack their last rows or columns"):
        lay([TRIO], [source], tmp_path / "data", scales=(3, 4))
    assert not (tmp_path / "data/Trio/LR_bicubic/X3").exists()
    with pytest.raises(MtkdError, match="2 images are cut too small for x3: cup, moon"):
        verify(TRIO, tmp_path / "data", scales=(3,))


def test_of_several_forms_the_one_for_most_scales_is_taken_and_the_whole_one_above_all(tmp_path: Path) -> None:
    lay([TRIO], [zipped(tmp_path / "mine", selfexsr(4, 2))], tmp_path / "cut", scales=(2, 4))
    assert read_image(tmp_path / "cut/Trio/HR/cat.png").shape == (24, 38, 3)
    both = [zipped(tmp_path / "mine", selfexsr(4, 2)), tarred(tmp_path / "whole", LAYOUTS["other names and formats"])]
    lay([TRIO], both, tmp_path / "data", scales=(2, 4))
    check_laid(tmp_path / "data", (2, 4))
    assert (tmp_path / "data/Trio/HR/cat.webp").exists()


def test_a_second_call_changes_nothing_and_makes_what_is_gone(tmp_path: Path) -> None:
    source = tarred(tmp_path / "mine", LAYOUTS["edsr"])
    said: list[str] = []
    lay([TRIO], [source], tmp_path / "data", scales=(2,))
    gone = [tmp_path / "data/Trio/HR/cup.png", tmp_path / "data/Trio/LR_bicubic/X2/catx2.png"]
    for file in gone:
        file.unlink()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*.png")}
    lay([TRIO], [source], tmp_path / "data", scales=(2,), log=said.append)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items()) and all(map(Path.exists, gone))
    assert "1 made, 2 were there" in "\n".join(said)


def test_lq_images_that_another_filter_made_are_refused_and_say_the_remedy(tmp_path: Path) -> None:
    source = tarred(tmp_path / "mine", LAYOUTS["edsr"])
    lay([TRIO], [source], tmp_path / "data", scales=(2,))
    folder = tmp_path / "data/Trio/LR_bicubic/X2"
    rounded = read_image(folder / "catx2.png")
    write_image(folder / "catx2.png", rounded + (rounded < 255))  # as another implementation of the same filter may
    lay([TRIO], [source], tmp_path / "data", scales=(2,))
    gt = read_image(tmp_path / "data/Trio/HR/moon.png")
    h, w = (side // 2 * 2 for side in gt.shape[:2])
    write_image(folder / "moonx2.png", gt[:h:2, :w:2])
    with pytest.raises(MtkdError, match=r"moonx2.png is not MATLAB's bicubic of moon.png .* Remove .*X2"):
        lay([TRIO], [source], tmp_path / "data", scales=(2,))
    assert np.array_equal(read_image(folder / "moonx2.png"), gt[:h:2, :w:2])


def test_what_is_complete_needs_no_source_that_holds_it(tmp_path: Path) -> None:
    lay([TRIO], [tarred(tmp_path / "mine", LAYOUTS["edsr"])], tmp_path / "data", scales=())
    lay([TRIO], [unpacked(tmp_path / "other", {"x.txt": b""})], tmp_path / "data", scales=(2,))
    check_laid(tmp_path / "data", (2,))


def test_a_disk_that_fills_leaves_whole_files_and_a_second_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, write, written = tarred(tmp_path / "mine", LAYOUTS["flat"]), laying.write_bytes, []

    def full(path: Path, data: bytes) -> None:
        if written:
            raise MtkdError(f"{path} cannot be written: No space left on device.")
        written.append(path)
        write(path, data)

    monkeypatch.setattr(laying, "write_bytes", full)
    with pytest.raises(MtkdError, match="No space left"):
        lay([TRIO], [source], tmp_path / "data", scales=(2,))
    assert len(list_images(tmp_path / "data/Trio/HR")) == 1
    monkeypatch.setattr(laying, "write_bytes", write)
    lay([TRIO], [source], tmp_path / "data", scales=(2,))
    check_laid(tmp_path / "data", (2,))


def test_an_image_with_other_pixels_is_not_taken_and_the_reason_is_said(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS["cat"]).save(buffer, "JPEG")
    files = LAYOUTS["flat"] | {"cat.png": buffer.getvalue(), "cup.png": png(PIXELS["cup"][:-2]), "moon.png": b"\x89PNG"}
    with pytest.raises(MtkdError) as error:
        lay([TRIO], [unpacked(tmp_path / "mine", files)], tmp_path / "data", scales=(2,))
    for text in (
        "3 of 3 images are missing: cat, cup, moon",
        "mine/cat.png holds other pixels than the published image: it was compressed again",
        "mine/cup.png has 26x28 pixels (width x height), and the published image 26x30",
        "mine/moon.png cannot be opened as an image",
    ):
        assert text in str(error.value)
    assert not list((tmp_path / "data").rglob("*.png"))


def test_archives_in_a_folder_are_pointed_at(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    tarred(tmp_path / "downloads/mine", LAYOUTS["flat"])
    with pytest.raises(MtkdError, match=r"downloads holds archives.*--from .*downloads/mine\.tar"):
        lay([TRIO], [tmp_path / "downloads"], tmp_path / "data")


NUMBERED = {f"Numbers_train_HR/{i:04d}.png": png(PIXELS["cat"] // (i + 1)) for i in (1, 2, 3)}


def test_images_of_which_only_names_are_known_are_found_by_them(tmp_path: Path) -> None:
    files = NUMBERED | {
        "Numbers_train_LR_bicubic/X2/0001.png": png(PIXELS["cup"]),
        "Numbers_train_LR_unknown/0002.png": png(PIXELS["cup"]),
        "LRbicx4/0003.png": png(PIXELS["cup"]),
        "Numbers_train_HR/0001_s001.png": png(PIXELS["cup"]),
    }
    said: list[str] = []
    lay([NUMBERS], [zipped(tmp_path / "mine", files)], tmp_path / "data", scales=(2,), log=said.append)
    for i in (1, 2, 3):
        assert np.array_equal(
            read_image(tmp_path / f"data/Numbers/Numbers_train_HR/{i:04d}.png"), PIXELS["cat"] // (i + 1)
        )
    assert sorted(os.listdir(tmp_path / "data/Numbers/Numbers_train_LR_bicubic/X2")) == [
        f"000{i}x2.png" for i in (1, 2, 3)
    ]
    assert any("Numbers_valid_HR: no image of it was given" in line for line in said)
    assert any("known by names alone (no manifest of their pixels is here)" in line for line in said)


def test_a_name_that_several_files_have_is_refused_unless_one_is_in_the_sets_own_folder(tmp_path: Path) -> None:
    others = {f"GTmod12/{i:04d}.png": png(PIXELS["cup"]) for i in (1, 2, 3)}
    moved = {name.replace("Numbers_train_HR", "HR"): data for name, data in NUMBERED.items()}
    with pytest.raises(MtkdError, match=r"0001: .* are called so; give --from a folder that holds one"):
        lay([NUMBERS], [unpacked(tmp_path / "mine", moved | others)], tmp_path / "data")
    assert not (tmp_path / "data").exists()
    lay([NUMBERS], [unpacked(tmp_path / "clear", NUMBERED | others)], tmp_path / "data", scales=())
    assert read_image(tmp_path / "data/Numbers/Numbers_train_HR/0001.png").shape == PIXELS["cat"].shape


def test_images_in_a_folder_that_is_called_like_one_of_lq_images_are_mentioned(tmp_path: Path) -> None:
    moved = {name.replace("Numbers_train_HR", "x4/hr"): data for name, data in NUMBERED.items()}
    with pytest.raises(MtkdError, match=r"3 files that are called so were left out, .*: x4/hr/0001\.png in "):
        lay([NUMBERS], [unpacked(tmp_path / "mine", moved)], tmp_path / "data")
    lay([NUMBERS], [tmp_path / "mine/x4/hr"], tmp_path / "data", scales=())
    assert len(list_images(tmp_path / "data/Numbers/Numbers_train_HR")) == 3


def test_a_damaged_image_that_only_its_name_tells_is_not_laid_out(tmp_path: Path) -> None:
    files = NUMBERED | {"Numbers_train_HR/0002.png": NUMBERED["Numbers_train_HR/0002.png"][:-40]}
    with pytest.raises(MtkdError, match=r"(?s)1 of 3 images are missing: 0002.*0002.png in .* cannot be decoded"):
        lay([NUMBERS], [zipped(tmp_path / "mine", files)], tmp_path / "data", scales=(2,))
    assert len(list_images(tmp_path / "data/Numbers/Numbers_train_HR")) == 2


@pytest.mark.parametrize("folder", ["Counted", "counted_2020/HR", "x/Counted/gt"])
def test_images_whose_names_are_not_known_are_counted_in_a_folder_of_the_sets_name(tmp_path: Path, folder: str) -> None:
    files = {f"{folder}/{name}.png": png(image) for name, image in PIXELS.items()}
    files |= {f"{folder}/LR/{name}.png": png(image) for name, image in PIXELS.items()} | {
        "other/1.png": png(PIXELS["cat"])
    }
    lay([COUNTED], [zipped(tmp_path / "mine", files)], tmp_path / "data", scales=(2,))
    assert [file.stem for file in list_images(tmp_path / "data/Counted/HR")] == list(PIXELS)
    assert "known by their number alone" in verify(COUNTED, tmp_path / "data")[0]


def test_another_number_of_images_is_refused(tmp_path: Path) -> None:
    files = {f"Counted/{i}.png": png(PIXELS["cat"]) for i in range(4)}
    with pytest.raises(MtkdError, match="4 images were found, and 3 are missing"):
        lay([COUNTED], [zipped(tmp_path / "mine", files)], tmp_path / "data")
    lay([COUNTED], [zipped(tmp_path / "mine", dict(list(files.items())[:3]))], tmp_path / "data", scales=())
    write_image(tmp_path / "data/Counted/HR/9.png", PIXELS["cat"])
    assert not inspect(COUNTED, COUNTED.parts[0], tmp_path / "data", pixels=False).complete


# Archives and images made to do harm.


@pytest.mark.parametrize("pack", ["zip", "tar", "tgz"])
@pytest.mark.parametrize("evil", ["../cat.png", "/tmp/cat.png", "a/../../cat.png", "..\\cat.png", "C:\\cat.png"])
def test_a_path_that_leads_outside_is_refused(tmp_path: Path, pack: str, evil: str) -> None:
    source = PACKS[pack](
        tmp_path / "deep/mine" if (tmp_path / "deep").mkdir() is None else tmp_path, LAYOUTS["flat"] | {evil: b"x"}
    )
    with pytest.raises(MtkdError, match="is refused: its entry .* would be written outside its folder"):
        lay([TRIO], [source], tmp_path / "deep/data")
    assert not list(tmp_path.rglob("cat.png")) and not (tmp_path / "deep/data").exists()


def test_links_pipes_and_devices_in_a_tar_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(PIXELS["cat"]))
    source = tarred(tmp_path / "mine", {"cup.png": png(PIXELS["cup"])})
    with tarfile.open(source, "a") as archive:
        for name, kind in {
            "cat.png": tarfile.SYMTYPE,
            "a.png": tarfile.LNKTYPE,
            "b.png": tarfile.FIFOTYPE,
            "c.png": tarfile.CHRTYPE,
        }.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.devmajor = kind, str(tmp_path / "secret.png"), 1
            archive.addfile(info)
    with pytest.raises(MtkdError, match="2 of 3 images are missing: cat, moon"):
        lay([TRIO], [source], tmp_path / "data", scales=())
    assert [file.name for file in list_images(tmp_path / "data/Trio/HR")] == ["cup.png"]


@pytest.mark.parametrize("name", ["con", "NUL", "com1", "aux.x"])
def test_names_of_devices_are_refused(tmp_path: Path, name: str) -> None:
    files = {f"Counted/{stem}.png": png(PIXELS["cat"]) for stem in ("1", "2", name)}
    with pytest.raises(MtkdError, match="Windows takes the name for a device"):
        lay([COUNTED], [zipped(tmp_path / "mine", files)], tmp_path / "data")


@pytest.mark.parametrize("pack", ["zip", "tgz"])
def test_an_archive_that_unpacks_without_end_is_refused(
    tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "most_bytes", lambda archive: 20 * archive.stat().st_size)
    source = PACKS[pack](tmp_path / "mine", {"cat.png": bytes(1 << 22)})
    with pytest.raises(MtkdError, match="it unpacks to more than 20 times its size"):
        lay([TRIO], [source], tmp_path / "data")
    assert not list(tmp_path.rglob("cat.png"))


def test_an_image_that_claims_more_pixels_than_any_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    files = NUMBERED | {"Numbers_train_HR/0002.png": bomb}

    decode = laying.decode_image
    monkeypatch.setattr(
        laying, "decode_image", lambda data, name: pytest.fail("decoded") if data == bomb else decode(data, name)
    )
    with pytest.raises(MtkdError, match="claims 60000x60000 pixels; no image of a known set is so large"):
        lay([NUMBERS], [zipped(tmp_path / "mine", files)], tmp_path / "data", scales=())


def test_an_archive_that_is_cut_off_is_said_before_anything_is_written(tmp_path: Path) -> None:
    for pack in ("zip", "tar", "tgz"):
        source = PACKS[pack](tmp_path / "mine", LAYOUTS["flat"])
        source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3 if pack != "tar" else 1500])
        with pytest.raises(MtkdError, match="damaged, truncated"):
            lay([TRIO], [source], tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_pipe_is_never_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MtkdError, match="is a pipe"):
        lay([TRIO], [tmp_path / "pipe"], tmp_path / "data")
    os.mkfifo(unpacked(tmp_path / "mine", LAYOUTS["flat"]) / "z.png")
    lay([TRIO], [tmp_path / "mine"], tmp_path / "data", scales=())


def test_folders_that_hold_themselves_end(tmp_path: Path) -> None:
    os.symlink(tmp_path / "mine", unpacked(tmp_path / "mine", {"a/x.txt": b""}) / "a/again")
    os.symlink(unpacked(tmp_path / "elsewhere", LAYOUTS["flat"]), tmp_path / "mine/linked")
    lay([TRIO], [tmp_path / "mine"], tmp_path / "data", scales=())
    check_laid(tmp_path / "data", ())


def test_an_archive_in_an_archive_is_no_image(tmp_path: Path) -> None:
    inner = gzip.compress(bytes(1000))
    with pytest.raises(MtkdError, match="3 of 3 images are missing"):
        lay([TRIO], [zipped(tmp_path / "mine", {"cat.png": inner, "b.tgz": inner})], tmp_path / "data")


def test_two_files_of_one_name_in_an_archive_are_refused(tmp_path: Path) -> None:
    """The last would win without a word."""
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for image in (PIXELS["cat"], PIXELS["cup"]):
            archive.writestr("HR/cat.png", png(image))
    with pytest.raises(MtkdError, match="twice.zip holds HR/cat.png more than once"):
        lay([TRIO], [path], tmp_path / "data", scales=())


def test_bytes_that_are_no_image_are_called_so(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match=r"x.png cannot be opened as an image: its bytes are those of no image\.$"):
        read_header(tmp_path / "x.png", b"no image")
