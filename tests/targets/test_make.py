"""The target store: made once, in one piece or in shards, checked against the run, equal to on-line teachers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtkd import build, zoo
from mtkd.build import open_training_images
from mtkd.cli import main
from mtkd.config import Options, resolved_yaml
from mtkd.contracts import MtkdError
from mtkd.data.store import ImageStore, write
from mtkd.inference.tiling import self_ensemble
from mtkd.runtime.device import choose_device, named_device
from mtkd.runtime.pixels import to_image, to_tensor
from mtkd.targets.make import Recipe, dry_run, teach
from mtkd.targets.merge import merge
from mtkd.targets.shards import Shard, launched
from mtkd.training.loop import train
from tests.runs import make_images, make_teachers, run_options

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Pointwise(nn.Module):
    """A teacher that sees one pixel, so that its answer to a turned crop is that crop of its answer, to the bit."""

    feature_names = ()

    def __init__(self, upscale: int = 2) -> None:
        super().__init__()
        self.scale = upscale
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, lq: Tensor) -> Tensor:
        return self.mix(lq.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2))


IDENTITY = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
MIXING = [[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.05, 0.25, 0.7]]


def pointwise(folder: Path, mix: Any) -> dict[str, Any]:
    """A `teachers:` section with `Pointwise`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"mix.weight": torch.tensor(mix)[..., None, None].clone(), "mix.bias": torch.zeros(3)}
    network = {"type": "tests.targets.test_make:Pointwise", "upscale": 2}
    facts = {"arch": {"type": network["type"], "args": {"upscale": 2}}, "scale": 2}
    zoo.write_safetensors(folder / "pointwise.safetensors", state, facts)
    return {"pointwise": {"network": network, "pretrain": str(folder / "pointwise.safetensors")}}


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "images": tmp_path / "images",
        "model_type": "MTKD",
        "teachers": make_teachers(tmp_path / "teachers"),
        "fusion": "mean",
        **changes,
    }


def one_teacher(tmp_path: Path, name: str = "edsr", **changes: Any) -> Options:
    """Options of a run with one teacher and four images."""
    if not (tmp_path / "images").exists():
        make_images(tmp_path / "images")
    given = {"teachers": {name: make_teachers(tmp_path / "teachers")[name]}, "fusion": None, **changes}
    return run_options(tmp_path, **settings(tmp_path, **given))


def quiet(_: str) -> None:
    pass


def option_file(tmp_path: Path) -> tuple[Path, Options]:
    """An option file whose store is `tmp_path/targets`, and its options."""
    make_images(tmp_path / "images")
    options = run_options(tmp_path, **settings(tmp_path, target_store=str(tmp_path / "targets")))
    file = tmp_path / "run.yml"
    file.write_text(resolved_yaml(options))
    return file, options


def test_store_holds_the_teachers_answers_at_full_size(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    options = run_options(tmp_path, **settings(tmp_path, channels_last=False))
    said: list[str] = []
    store = teach(options, tmp_path / "targets", progress=said.append)
    images = open_training_images(options)
    (net,) = build.build_teachers(options).values()
    with torch.no_grad():
        for index in range(len(store)):
            expected = to_image(net.eval()(to_tensor(images.lq[index]).contiguous()))
            assert np.array_equal(store[index], expected)
            assert store.sizes[index] == images.gt.sizes[index]
    assert {key: store.facts[key] for key in ("x8", "precision", "dtype")} == {
        "x8": False, "precision": "fp32", "dtype": "uint8",
    }  # fmt: skip
    assert any(line.startswith("decoding the training images: 4 of 4 images, ") for line in said)
    assert "left" in said[-2] and said[-1].startswith("targets: 4 of 4 images, ") and "images/s" in said[-1]


def test_a_float16_store_keeps_the_answers_unclamped(tmp_path: Path) -> None:
    beyond = [[4.0, 0, 0], [0, 1.0, 0], [-1.0, 0, 0]]
    options = one_teacher(tmp_path, teachers=pointwise(tmp_path / "teachers", beyond))
    store = teach(options, tmp_path / "half", Recipe(dtype="float16"), progress=quiet)
    lq = to_tensor(open_training_images(options).lq[0])
    (net,) = build.build_teachers(options).values()
    with torch.no_grad():
        expected = net(lq)[0].permute(1, 2, 0).numpy()
    assert store.dtype == "float16" and expected.min() < 0 and expected.max() > 1
    assert np.abs(store[0] - expected).max() < 1e-3


def test_tiles_with_enough_context_are_the_whole_image(tmp_path: Path) -> None:
    # Six 3x3 convolutions, of which one sees gt pixels.
    options = one_teacher(tmp_path)
    whole = teach(options, tmp_path / "whole", progress=quiet)
    tiles = teach(options, tmp_path / "tiles", Recipe(tile_size=9, tile_pad=6), progress=quiet)
    assert np.array_equal(whole.flat, tiles.flat)
    seams = teach(options, tmp_path / "seams", Recipe(tile_size=9, tile_pad=0), progress=quiet)
    assert not np.array_equal(whole.flat, seams.flat)


def test_stored_targets_have_the_precision_of_teachers_on_line_and_tiles_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def tile_size(*_: Any, **__: Any) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))

    monkeypatch.setattr("mtkd.inference.tiling.tile_size", tile_size)
    for on_line, given, narrow in (("bf16", None, True), ("bf16", "fp32", False), (None, None, False)):
        options = one_teacher(tmp_path, teacher_precision=on_line)
        seen.clear()
        store = teach(options, tmp_path / f"{on_line}{given}", Recipe(precision=given), progress=quiet)  # pyright: ignore[reportArgumentType]
        assert store.facts["precision"] == ("bf16" if narrow else "fp32")
        assert seen == [narrow] * 4


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(tmp_path: Path, device: str) -> None:
    with pytest.raises(MtkdError, match=f"no device {device}"):
        teach(one_teacher(tmp_path), tmp_path / "targets", device=device, progress=quiet)
    assert not (tmp_path / "targets.partial").exists()


@pytest.mark.cuda
def test_a_plain_cuda_is_a_device(tmp_path: Path) -> None:
    teach(one_teacher(tmp_path), tmp_path / "targets", device="cuda", progress=quiet)
    assert named_device("cuda").index is not None


def test_half_precision_answers_are_averaged_and_rounded_in_full(tmp_path: Path) -> None:
    options = one_teacher(tmp_path, precision="bf16", channels_last=False)
    store = teach(options, tmp_path / "x8", Recipe(x8=True, dtype="float16"), progress=quiet)
    (net,) = build.build_teachers(options).values()

    def answer(lq: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net.eval()(lq.contiguous()).float()

    with torch.no_grad():
        expected = self_ensemble(answer, to_tensor(open_training_images(options).lq[1]))
    assert np.array_equal(store[1], expected.half()[0].permute(1, 2, 0).numpy())
    exact = teach(options, tmp_path / "fp32", Recipe(x8=True, precision="fp32", dtype="float16"), progress=quiet)
    assert store.facts["precision"] == "bf16" and exact.facts["precision"] == "fp32"
    assert 0 < np.abs(store[1].astype(float) - exact[1]).max() < 0.02


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 runs on CUDA")
def test_fp16_on_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MtkdError, match="--precision bf16 or fp32"):
        teach(one_teacher(tmp_path), tmp_path / "targets", Recipe(precision="fp16"), progress=quiet)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_answers_on_cuda_are_those_on_the_cpu(tmp_path: Path, precision: Any) -> None:
    options = one_teacher(tmp_path, tf32=False)
    cpu = teach(options, tmp_path / "cpu", Recipe(dtype="float16"), device="cpu", progress=quiet)
    recipe = Recipe(dtype="float16", precision=precision)
    cuda = teach(options, tmp_path / "cuda", recipe, device="cuda:0", progress=quiet)
    assert (cpu.flat.float() - cuda.flat.float()).abs().max() < {"fp32": 1e-3, "bf16": 0.02, "fp16": 5e-3}[precision]


def test_an_answer_that_is_not_finite_names_the_image(tmp_path: Path) -> None:
    huge = [[1e6, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
    options = one_teacher(tmp_path, teachers=pointwise(tmp_path / "teachers", huge))
    with pytest.raises(MtkdError, match="image of astronaut is not finite.*--precision bf16"):
        teach(options, tmp_path / "targets", Recipe(dtype="float16"), progress=quiet)


@pytest.mark.parametrize(
    ("mix", "dtype", "bound"), [(IDENTITY, "uint8", 0.0), (MIXING, "uint8", 1 / 510), (MIXING, "float16", 2**-12)]
)
def test_training_from_the_store_is_training_on_line(tmp_path: Path, mix: Any, dtype: Any, bound: float) -> None:
    make_images(tmp_path / "images")
    loss = {"total_iter": 4, "target_opt": {"type": "L1Loss"}}
    online = settings(tmp_path, teachers=pointwise(tmp_path / "teachers", mix), fusion=None, train=loss)
    online["logger"] = {"print_freq": 1}
    store = tmp_path / "targets"
    stored = run_options(tmp_path, **{**online, "name": "stored", "target_store": str(store)})
    teach(stored, store, Recipe(dtype=dtype), progress=quiet)
    losses: list[list[float]] = []
    for options in (stored, run_options(tmp_path, **{**online, "name": "online"})):
        train(options)
        lines = (tmp_path / f"experiments/{options.name}/metrics.jsonl").read_text().splitlines()
        losses.append([row["losses"]["target"] for row in map(json.loads, lines) if "losses" in row])
    assert len(losses[0]) == 4 and losses[0][0] > 0.01
    if bound == 0:
        # Answers of whole 8-bit levels lose nothing in the store, so nothing may differ, in any step.
        assert losses[0] == losses[1]
    # Afterwards the students differ too.
    assert abs(losses[0][0] - losses[1][0]) <= bound + 1e-7


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, options = option_file(tmp_path)
    script = """
import os, signal, sys
from mtkd.data.store import StoreWriter
real = StoreWriter.put
def put(self, index, image):
    if self.path.name == "targets" and len(self.missing()) == 2:
        # Killed in the middle of the third image, before it is marked as there.
        self._data.seek(self._starts[index])
        self._data.write(b"\\xff" * 999)
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, index, image)
StoreWriter.put = put
from mtkd.cli import main
main(["teach", "-opt", sys.argv[1]])
"""
    killed = subprocess.run([sys.executable, "-c", script, str(file)], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "targets").exists()
    assert main(["teach", "-opt", str(file)]) == 0
    assert "targets: going on with 2 of 4 images" in capsys.readouterr().out
    fresh = teach(options, tmp_path / "fresh", progress=quiet)
    assert ImageStore(tmp_path / "targets").digest() == fresh.digest()
    assert not list(tmp_path.glob("targets.*"))


def test_store_of_other_teachers_or_images_is_refused(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    store = tmp_path / "targets"
    given = settings(tmp_path, target_store=str(store))
    options = run_options(tmp_path, **given)
    with pytest.raises(MtkdError, match="mtkd teach"):
        train(options)
    teach(options, store, progress=quiet)
    swapped = {**given, "teachers": dict(reversed(given["teachers"].items()))}
    with pytest.raises(MtkdError, match="teachers is edsr, rcan in the store, rcan, edsr here"):
        train(run_options(tmp_path, **swapped))
    retrained = {**given, "teachers": {**given["teachers"]}}
    retrained["teachers"]["edsr"] = {**given["teachers"]["edsr"], "pretrain": str(tmp_path / "edsr.safetensors")}
    net = build.build_network(options.teachers["edsr"].network, options.scale)
    facts = {"arch": {"type": "EDSR", "args": dict(options.teachers["edsr"].network.args)}, "scale": 2}
    zoo.write_safetensors(tmp_path / "edsr.safetensors", net.state_dict(), build.plain(facts))
    with pytest.raises(
        MtkdError, match=r"option file: teachers\.edsr\.sha256 is \w+ in the store, \w+ here\. Make a new one"
    ):
        train(run_options(tmp_path, **retrained))
    other = {**given, "images": make_images(tmp_path / "other")}
    (tmp_path / "other/rocket.png").unlink()
    with pytest.raises(MtkdError, match="option file: images is"):
        train(run_options(tmp_path, **other))
    assert not (tmp_path / "experiments").exists()
    train(options)


def test_an_interrupted_store_is_not_finished_with_another_recipe(tmp_path: Path) -> None:
    options = one_teacher(tmp_path, teachers=pointwise(tmp_path / "teachers", [[1e6, 0, 0]] * 3))
    with pytest.raises(MtkdError, match="not finite"):
        teach(options, tmp_path / "targets", Recipe(dtype="float16"), progress=quiet)
    with pytest.raises(MtkdError, match="half-written.*its dtype, x8 differ"):
        teach(options, tmp_path / "targets", Recipe(x8=True), progress=quiet)


def test_shards_are_images_taken_in_turn() -> None:
    shards = [Shard.parse(f"{number}/3") for number in (1, 2, 3)]
    assert [list(shard.indices(7)) for shard in shards] == [[0, 3, 6], [1, 4], [2, 5]]
    assert Shard(3, 16).path(Path("a/targets.st")) == Path("a/targets.st.shard-03-of-16")
    for wrong in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(MtkdError):
            Shard.parse(wrong)
    with pytest.raises(MtkdError, match="4 or fewer"):
        Shard(1, 5).indices(4)


def test_merged_shards_are_the_store_made_in_one_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, options = option_file(tmp_path)
    whole = teach(options, tmp_path / "whole", progress=quiet)
    for number in (3, 1, 1):
        assert main(["teach", "-opt", str(file), "--shard", f"{number}/3"]) == 0
    said = capsys.readouterr().out
    assert "shard-1-of-3 is complete already" in said and f"mtkd teach -opt {file} --merge" in said
    other = f"target_store={tmp_path / 'other'}"
    assert main(["teach", "-opt", str(file), "--force_yml", other, "--shard", "1/3"]) == 0
    assert f"mtkd teach -opt {file} --force_yml {other} --merge`" in capsys.readouterr().out
    with pytest.raises(MtkdError, match="--merge"):
        train(options)

    assert main(["teach", "-opt", str(file), "--merge"]) == 2
    error = capsys.readouterr().err
    assert "1 of 3 shards" in error and "1 of 4 images still to make" in error
    assert f"for k in 2; do mtkd teach -opt {file} --shard $k/3; done" in error
    assert not (tmp_path / "targets").exists()

    assert main(["teach", "-opt", str(file), "--shard", "2/3"]) == 0
    assert main(["teach", "-opt", str(file), "--merge"]) == 0
    merged = ImageStore(tmp_path / "targets")
    assert (merged.digest(), merged.facts) == (whole.digest(), whole.facts)
    assert [path.name for path in tmp_path.glob("targets*")] == ["targets"]
    train(options)


def test_what_is_complete_stays_so_however_often_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = option_file(tmp_path)
    store = tmp_path / "targets"
    assert main(["teach", "-opt", str(file)]) == 0
    made = store.read_bytes()
    monkeypatch.setattr("mtkd.targets.make._Teacher", None)  # no teacher is loaded for it
    monkeypatch.setattr("mtkd.targets.make.__version__", "999")
    for more in ([], ["--shard", "1/3"], ["--merge"]):
        assert main(["teach", "-opt", str(file), *more]) == 0
        assert f"{store} is complete already" in capsys.readouterr().out
    assert store.read_bytes() == made
    with pytest.raises(MtkdError, match="x8 is False in the store, True here. Name another target_store, or delete"):
        teach(options, store, Recipe(x8=True), progress=quiet)
    with pytest.raises(MtkdError, match="exists already, so there is nothing to measure"):
        dry_run(options, store, progress=quiet)
    assert store.read_bytes() == made


def test_a_merge_killed_after_its_store_was_named_ends_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, path = one_teacher(tmp_path), tmp_path / "targets"
    for number in (1, 2):
        teach(options, path, shard=Shard(number, 2), progress=quiet)
    real = Path.unlink

    def unlink(file: Path, missing_ok: bool = False) -> None:
        if "shard-2" in file.name:
            raise KeyboardInterrupt
        real(file, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", unlink)
        merge(options, path, progress=quiet)
    assert sorted(file.name for file in tmp_path.glob("targets*")) == ["targets", "targets.shard-2-of-2"]
    foreign = teach(options, tmp_path / "targets.shard-1-of-9", Recipe(dtype="float16"), progress=quiet)
    said: list[str] = []
    merged = merge(options, path, progress=said.append)
    assert f"targets: {path} is complete already" in said and f"{foreign.path} is not a shard" in said[-1]
    assert merged.digest() == teach(options, tmp_path / "whole", progress=quiet).digest()
    assert sorted(file.name for file in tmp_path.glob("targets.shard*")) == [foreign.path.name]


def test_a_damaged_store_or_shard_is_named_and_not_used(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    store = tmp_path / "targets"
    options = run_options(tmp_path, **settings(tmp_path, target_store=str(store)))

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-100] ^= 4
        path.write_bytes(content)

    damage(teach(options, store, shard=Shard(2, 2), progress=quiet).path)
    teach(options, store, shard=Shard(1, 2), progress=quiet)
    with pytest.raises(MtkdError, match="shard-2-of-2 is damaged: 1 of 2 images"):
        merge(options, store, progress=quiet)
    damage(teach(options, store, progress=quiet).path)
    for use in (lambda: train(options), lambda: teach(options, store, progress=quiet)):
        with pytest.raises(MtkdError, match="targets is damaged: 1 of 4 images differ from their checksums"):
            use()


@pytest.mark.parametrize(
    "facts", [{}, {"fingerprint": 7}, {"fingerprint": {"teachers": [1]}}, {"fingerprint": {"teachers": [{"name": 1}]}}]
)
def test_a_store_that_says_something_else_about_itself_is_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    make_images(tmp_path / "images")
    options = run_options(tmp_path, **settings(tmp_path, target_store=str(tmp_path / "targets")))
    write(tmp_path / "targets", ["a"], [np.zeros((4, 4, 3), np.uint8)], facts)
    with pytest.raises(MtkdError, match="is not a store of targets|does not match this option file"):
        train(options)
    with pytest.raises(MtkdError, match="was made differently"):
        teach(options, tmp_path / "targets", progress=quiet)


def test_shards_that_do_not_belong_together_are_not_merged(tmp_path: Path) -> None:
    options, path = one_teacher(tmp_path), tmp_path / "targets"
    with pytest.raises(MtkdError, match="no shards of targets.*--shard 1/N"):
        merge(options, path, progress=quiet)
    first = teach(options, path, shard=Shard(1, 2), progress=quiet)
    teach(options, path, Recipe(x8=True), shard=Shard(2, 2), progress=quiet)
    with pytest.raises(
        MtkdError, match="shard-2-of-2 was made differently: x8 is True in the store, False here.*--shard 2/2"
    ):
        merge(options, path, progress=quiet)
    with pytest.raises(MtkdError, match="x8 is True in the store, False here"):
        teach(options, path, shard=Shard(2, 2), progress=quiet)
    Shard(2, 2).path(path).unlink()
    shutil.copy(first.path, Shard(2, 2).path(path))
    with pytest.raises(MtkdError, match="the images of the shard in its name"):
        merge(options, path, progress=quiet)
    other = one_teacher(tmp_path, "rcan")
    with pytest.raises(MtkdError, match=r"differently: fingerprint\.teachers is edsr in the store, rcan here"):
        merge(other, path, progress=quiet)
    teach(options, path, shard=Shard(1, 3), progress=quiet)
    with pytest.raises(MtkdError, match="shards of 2 and of 3"):
        merge(options, path, progress=quiet)


def test_an_interrupted_merge_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtkd.data.store import StoreWriter

    options, path = one_teacher(tmp_path), tmp_path / "targets"
    for number in (1, 2):
        teach(options, path, shard=Shard(number, 2), progress=quiet)
    real = StoreWriter.put

    def put(self: StoreWriter, index: int, image: Any) -> None:
        if index == 2:
            raise KeyboardInterrupt
        real(self, index, image)

    monkeypatch.setattr(StoreWriter, "put", put)
    with pytest.raises(KeyboardInterrupt):
        merge(options, path, progress=quiet)
    monkeypatch.setattr(StoreWriter, "put", real)
    said: list[str] = []
    merged = merge(options, path, progress=said.append)
    assert said[-1].startswith("merging: 2 of 2 images")
    assert merged.digest() == teach(options, tmp_path / "whole", progress=quiet).digest()


@pytest.mark.parametrize("launcher", ["pytorch", "slurm"])
def test_ranks_are_shards(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = option_file(tmp_path)
    keys = {"pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")}
    arguments = ["teach", "-opt", str(file), "--launcher", launcher]
    assert main(arguments) == 2
    assert f"{keys[launcher][0]} is not set" in capsys.readouterr().err
    for rank in (0, 1):
        for key, value in zip(keys[launcher], (rank, 2, rank), strict=True):
            monkeypatch.setenv(key, str(value))
        assert launched(launcher, options)[0] == Shard(rank + 1, 2)
        assert main(arguments) == 0
    assert main(["teach", "-opt", str(file), "--merge"]) == 0
    assert len(ImageStore(tmp_path / "targets")) == 4


def test_ranks_have_devices_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    options = one_teacher(tmp_path, num_gpu="auto")
    assert [choose_device(options.num_gpu, local).index for local in (0, 3)] == [0, 3]
    # slurm may show each process its own device alone.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device(options.num_gpu, 3) == torch.device("cuda:0")
    assert choose_device(0, 3) == torch.device("cpu")


def test_a_rank_that_does_not_know_it_is_one_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = option_file(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["teach", "-opt", str(file)]) == 2
    assert "--launcher pytorch" in capsys.readouterr().err
    assert main(["teach", "-opt", str(file), "--merge", "--shard", "1/2"]) == 2
    assert "leave out" in capsys.readouterr().err


def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, options = option_file(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["teach", "-opt", str(file), "--dry_run", "--x8", "--precision", "bf16"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    # Photographs of 48, 52, 56 and 60 by 52 pixels.
    assert "4 of 4 images: 0.0 megapixels" in said and "kB of uint8" in said and "free there" in said
    assert "bf16" in said and "time: about 0:0" in said and "for an lq crop of" in said
    teach(options, tmp_path / "targets", shard=Shard(1, 2), progress=quiet)
    assert main(["teach", "-opt", str(file), "--dry_run", "--shard", "2/2"]) == 0
    assert "2 of 4 images for shard 2/2" in capsys.readouterr().out


def test_the_estimate_scales_with_pixels_tiles_and_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = one_teacher(tmp_path)
    monkeypatch.setattr("mtkd.targets.make._time", lambda run, device: 26.0 * 24)

    def seconds(recipe: Recipe, shard: Shard) -> str:
        said: list[str] = []
        dry_run(options, tmp_path / "targets", recipe, shard=shard, progress=said.append)
        return said[0].partition("time: about ")[2].partition(", from")[0]

    # lq images of 24, 26, 28 and 30 by 26 pixels; the whole first one is timed, here at 24 * 26 seconds.
    assert seconds(Recipe(), Shard()) == "0:46:48"
    assert seconds(Recipe(), Shard(2, 4)) == "0:10:24"
    assert seconds(Recipe(x8=True), Shard(2, 4)) == "1:23:12"
    # A tile of 2x2 pixels is seen with 2 more on each side: nine times the work, by the time of 6x6 pixels.
    assert seconds(Recipe(tile_size=2, tile_pad=2), Shard(1, 4)) == "1 day, 3:02:24"


def test_a_full_disk_is_noticed_before_the_teachers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, path = one_teacher(tmp_path), tmp_path / "new_folder" / "targets"
    monkeypatch.setattr("mtkd.targets.store_check.shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    monkeypatch.setattr("mtkd.targets.make.StoreWriter", None)
    for run in (teach, dry_run):
        with pytest.raises(MtkdError, match=r"needs .* kB more, and its disk has 1.0 kB free.*target_store elsewhere"):
            run(options, path, progress=quiet)


@pytest.mark.parametrize("place", ["a_file/targets", "/proc/x/targets"])
def test_a_place_that_takes_no_file_is_noticed_before_the_teachers_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "a_file").touch()
    options = one_teacher(tmp_path)
    monkeypatch.setattr("mtkd.targets.make._Teacher", None)
    with pytest.raises(MtkdError, match="Nothing can be written into "):
        teach(options, tmp_path / place, progress=quiet)
