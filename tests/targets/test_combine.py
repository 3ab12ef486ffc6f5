"""`mtkd teach --from`: one store of several networks' answers, held against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtkd.archs.ensemble import MeanFusion
from mtkd.build import open_training_images
from mtkd.cli import main
from mtkd.config import Options, resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.data.images import list_images, read_image, write_image
from mtkd.data.resize import modcrop
from mtkd.data.store import ImageStore, StoreWriter, write
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.targets.combine import combine
from mtkd.training.loop import train
from tests.runs import make_teachers, run_options

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def quiet(_: str) -> None:
    pass


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return run_options(tmp_path, model_type="OutputKD", target_store=str(tmp_path / "targets"))


def folder_of_answers(folder: Path, options: Options, seed: int, suffix: str = ".png") -> Path:
    """gt with noise of its own, as a network might answer."""
    images, noise = open_training_images(options), np.random.default_rng(seed)
    assert images.gt is not None
    for name, gt in zip(images.names, images.gt, strict=True):
        image = gt.astype(int) + noise.integers(-9, 10, gt.shape)
        write_image(folder / f"{name}{suffix}", image.clip(0, 255).astype(np.uint8))
    return folder


@pytest.fixture
def sources(tmp_path: Path, options: Options) -> list[Path]:
    return [folder_of_answers(tmp_path / name, options, seed) for seed, name in enumerate("abc")]


def as_store(path: Path, folder: Path, options: Options, facts: Any = None) -> Path:
    combine(options, path.with_name("plain"), [folder], progress=quiet)
    plain = ImageStore(path.with_name("plain"))
    write(path, plain.names, list(plain), facts)
    return path


def exact(images: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Levels before rounding, in float64."""
    return sum(weight * image.astype(np.float64) for weight, image in zip(weights, images, strict=True))  # type: ignore[return-value]


def differ_by_rounding(store: ImageStore, levels: list[np.ndarray]) -> None:
    """The store holds the nearest level; where two are as near to within float32, either."""
    for image, expected in zip(store, levels, strict=True):
        assert np.abs(image - expected).max() <= 0.5 + 1e-4


def test_a_folder_becomes_a_store_bit_for_bit(tmp_path: Path, options: Options, sources: list[Path]) -> None:
    store = combine(options, tmp_path / "one", sources[:1], progress=quiet)
    assert store.names == list(NAMES)
    for name, image in zip(store.names, store, strict=True):
        assert np.array_equal(image, read_image(sources[0] / f"{name}.png"))
    divided = tmp_path / "network"
    divided.mkdir()
    sources[0].rename(divided / "train")
    assert np.array_equal(combine(options, tmp_path / "two", [divided], progress=quiet).flat, store.flat)


def test_the_mean_weights_and_gt_against_numpy(tmp_path: Path, options: Options, sources: list[Path]) -> None:
    stores = [combine(options, tmp_path / f"s{i}", [source], progress=quiet) for i, source in enumerate(sources)]
    gt = open_training_images(options).gt
    assert gt is not None
    third = [1 / 3] * 3
    mean = combine(options, tmp_path / "mean", sources, progress=quiet)
    differ_by_rounding(mean, [exact([s[i] for s in stores], third) for i in range(4)])
    weighted = combine(options, tmp_path / "weighted", sources, weights=[5, 3, 2], progress=quiet)
    differ_by_rounding(weighted, [exact([s[i] for s in stores], [0.5, 0.3, 0.2]) for i in range(4)])
    blended = combine(options, tmp_path / "blended", sources, gt=0.25, progress=quiet)
    differ_by_rounding(blended, [exact([*(s[i] for s in stores), gt[i]], [0.25, 0.25, 0.25, 0.25]) for i in range(4)])
    assert not np.array_equal(mean[0], weighted[0]) and not np.array_equal(mean[0], blended[0])


def test_equal_weights_are_the_mean_that_fusion_makes(tmp_path: Path, options: Options, sources: list[Path]) -> None:
    mean = combine(options, tmp_path / "mean", sources, progress=quiet)
    again = combine(options, tmp_path / "again", sources, weights=[0.1, 0.1, 0.1], progress=quiet)
    stores = [combine(options, tmp_path / f"s{i}", [source], progress=quiet) for i, source in enumerate(sources)]
    assert np.array_equal(mean.flat, again.flat)
    for i in range(4):
        images = torch.cat([to_tensor(store[i]) for store in stores], dim=1)
        assert np.array_equal(mean[i], to_image(MeanFusion(3)(images)))


def test_the_ground_truth_alone_is_cut_to_the_scale(tmp_path: Path, options: Options) -> None:
    whole = [read_image(path)[:-1, :-1] for path in list_images(Path(str(options.train_set.dataroot_gt)))]
    for number, image in enumerate(whole):
        write_image(tmp_path / "odd" / f"{number}.png", image)
    odd = run_options(tmp_path, images=tmp_path / "odd", model_type="OutputKD", target_store=str(tmp_path / "targets"))
    store = combine(odd, tmp_path / "gt", [], gt=1.0, progress=quiet)
    for made, image in zip(store, whole, strict=True):
        assert made.shape != image.shape and np.array_equal(made, modcrop(image, 2))


def test_float16_keeps_what_eight_bits_round_away(tmp_path: Path, options: Options, sources: list[Path]) -> None:
    half = combine(options, tmp_path / "half", sources, dtype="float16", progress=quiet)
    stores = [combine(options, tmp_path / f"s{i}", [source], progress=quiet) for i, source in enumerate(sources)]
    expected = exact([store[1] for store in stores], [1 / 3] * 3) / 255
    assert half.dtype == "float16" and np.abs(half[1] - expected).max() < 2**-11
    assert np.array_equal(to_image(to_tensor(half[1])), combine(options, tmp_path / "m", sources, progress=quiet)[1])


def test_a_run_without_teachers_takes_it_and_one_with_teachers_says_why_not(
    tmp_path: Path, options: Options, sources: list[Path]
) -> None:
    combine(options, tmp_path / "targets", sources, progress=quiet)
    assert train(options).is_file()
    declared = run_options(
        tmp_path, images=tmp_path / "images", name="live", model_type="OutputKD", fusion="mean",
        teachers=make_teachers(tmp_path / "teachers"), target_store=str(tmp_path / "targets"),
    )  # fmt: skip
    with pytest.raises(MtkdError, match="combined of kept answers .* without `teachers`"):
        train(declared)


def test_finished_is_recognised_and_another_recipe_refused(
    tmp_path: Path, options: Options, sources: list[Path]
) -> None:
    path, said = tmp_path / "mean", []
    combine(options, path, sources, weights=[1, 2, 3], progress=quiet)
    stamp = path.stat().st_mtime_ns
    combine(options, path, sources, weights=[2, 4, 6], progress=said.append)
    assert path.stat().st_mtime_ns == stamp and said[-1].endswith("is complete already")
    others: list[dict[str, Any]] = [{"weights": [1, 1, 1]}, {"gt": 0.5, "weights": [1, 2, 3]}]
    for changes in others:
        with pytest.raises(MtkdError, match="made differently: combined"):
            combine(options, path, sources, progress=quiet, **changes)
    write_image(sources[0] / "coffee.png", 255 - ImageStore(path)[2])
    with pytest.raises(MtkdError, match="made differently: combined.sources"):
        combine(options, path, sources, weights=[1, 2, 3], progress=quiet)


def test_an_interrupted_one_goes_on(
    tmp_path: Path, options: Options, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = combine(options, tmp_path / "whole", sources, progress=quiet)
    put, count = StoreWriter.put, []

    def failing(writer: StoreWriter, i: int, image: Any) -> None:
        if writer.path.name == "killed" and len(count) == 2:
            raise KeyboardInterrupt
        count.append(i)
        put(writer, i, image)

    monkeypatch.setattr(StoreWriter, "put", failing)
    with pytest.raises(KeyboardInterrupt):
        combine(options, tmp_path / "killed", sources, progress=quiet)
    monkeypatch.setattr(StoreWriter, "put", put)
    assert not (tmp_path / "killed").exists()
    said: list[str] = []
    again = combine(options, tmp_path / "killed", sources, progress=said.append)
    assert "targets: going on with 2 of 4 images" in said
    assert np.array_equal(again.flat, whole.flat)


def test_every_problem_of_every_source_is_listed(tmp_path: Path, options: Options, sources: list[Path]) -> None:
    (sources[0] / "coffee.png").unlink()
    write_image(sources[0] / "other.png", np.zeros((8, 8, 3), np.uint8))
    write_image(sources[1] / "rocket.png", np.zeros((8, 10, 3), np.uint8))
    write(tmp_path / "store", ["astronaut"], [np.zeros((4, 4, 3), np.uint8)], {"fingerprint": {"scale": 3}})
    with pytest.raises(MtkdError) as raised:
        combine(options, tmp_path / "out", [*sources, tmp_path / "store", tmp_path / "none"], progress=quiet)
    text = str(raised.value)
    for part in (
        "coffee: no image of this name",
        "other.png: answers no image",
        "rocket.png: is 8x10 (height x width) and must be 60x52",
        "it was made at scale 3, and the run's is 2",
        "chelsea: no image of this name",
        f"There are no answers at {tmp_path / 'none'}",
    ):
        assert part in text, text
    assert not list(tmp_path.glob("out*"))


def test_a_store_of_other_lq_images_is_refused(tmp_path: Path, options: Options, sources: list[Path]) -> None:
    facts = {"fingerprint": {"scale": 2, "images": "0" * 64}}
    other = as_store(tmp_path / "other", sources[0], options, facts)
    with pytest.raises(MtkdError, match="made of other lq images"):
        combine(options, tmp_path / "out", [other, sources[1]], progress=quiet)
    bare = as_store(tmp_path / "bare", sources[0], options)
    store = combine(options, tmp_path / "out", [bare], progress=quiet)
    assert np.array_equal(store.flat, ImageStore(bare).flat)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"weights": [1, 2]}, "2 weights are given for 3 sources"),
        ({"weights": [1, 0, 2]}, "above 0, found 0.0"),
        ({"weights": [1, float("nan"), 2]}, "finite"),
        ({"gt": 1.0}, "leaves nothing to the answers"),
        ({"gt": -0.1}, r"must lie in \[0, 1\], found -0.1"),
    ],
)
def test_weights_that_are_none(
    tmp_path: Path, options: Options, sources: list[Path], changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(MtkdError, match=text):
        combine(options, tmp_path / "out", sources, progress=quiet, **changes)
    with pytest.raises(MtkdError, match="nothing to combine"):
        combine(options, tmp_path / "out", [], progress=quiet)


def test_a_source_is_named_once(tmp_path: Path, options: Options, sources: list[Path]) -> None:
    other = sources[0].parent / "link"
    other.symlink_to(sources[0])
    with pytest.raises(MtkdError, match="link is given twice"):
        combine(options, tmp_path / "out", [*sources, other], progress=quiet)


def test_the_command(tmp_path: Path, options: Options, sources: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yml"
    file.write_text(resolved_yaml(options.model_copy(update={"target_store": None})))
    given = ["teach", "-opt", str(file), "--from", *map(str, sources)]
    assert main([*given, "--mix", "1", "2", "1", "--gt", "0.5", "--out", str(tmp_path / "cli")]) == 0
    assert "no `teachers`" in capsys.readouterr().out
    expected = combine(options, tmp_path / "api", sources, weights=[1, 2, 1], gt=0.5, progress=quiet)
    assert np.array_equal(ImageStore(tmp_path / "cli").flat, expected.flat)
    for more, text in (
        ([], "Name the store: --out PATH"),
        (["--out", "x", "--x8"], "--x8 would do nothing"),
        (["--out", "x", "--launcher", "pytorch"], "--launcher would do nothing"),
    ):
        assert main([*given, *more]) != 0
        assert text in " ".join(capsys.readouterr().err.split())
    assert main(["teach", "-opt", str(file), "--gt", "0.5"]) != 0
    assert "--gt belongs to --from" in capsys.readouterr().err


def test_a_folder_is_never_advised_to_be_deleted(options: Options, sources: list[Path]) -> None:
    with pytest.raises(MtkdError, match=r"a is a folder, and must be a file. Name another place.$"):
        combine(options, sources[0], sources, progress=quiet)
    assert list_images(sources[0])
