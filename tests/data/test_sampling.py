"""Training batches: which crop of which image in which orientation, the same wherever the images lie."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest
import torch

from mtkd.contracts import MtkdError
from mtkd.data import residence, store
from mtkd.data.crops import Crops
from mtkd.data.residence import choose_residence
from mtkd.data.sampling import CropSampler
from mtkd.data.workers import prefetch_in_workers
from tests.helpers import photo

SCALE, SIDE = 2, 12
SIZES = [(12, 12), (20, 14), (14, 32), (26, 22), (16, 16)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Each lq pixel is the top left pixel of its gt block and each target is the negative of its gt."""
    root = tmp_path_factory.mktemp("stores")
    names = [f"i{i}" for i in range(len(SIZES))]
    gts = [
        np.ascontiguousarray(photo("coffee")[30 * i : 30 * i + h, 40 * i : 40 * i + w])
        for i, (h, w) in enumerate(SIZES)
    ]
    return {
        "lq": store.write(root / "lq", names, [gt[::SCALE, ::SCALE] for gt in gts]),
        "gt": store.write(root / "gt", names, gts),
        "target": store.write(root / "target", names, [255 - gt for gt in gts]),
    }


def sampler(stores, **changes):
    options = {"scale": SCALE, "gt_size": SIDE, "batch_size": 4, "use_hflip": True, "use_rot": True, "seed": 10}
    return CropSampler(**{**stores, **options, **changes})


def to_uint8(image):
    """(3, h, w) in [0, 1] -> (h, w, 3) uint8; exactly on the grid of 8 bits or the test fails."""
    values = image.mul(255).round()
    assert torch.equal(values.div(255), image)
    return values.to(torch.uint8).permute(1, 2, 0).numpy()


def variants(image, side, step=1):
    """Every crop at every `step`-th position and orientation: {(top, left, hflip, vflip, transpose): bytes}."""
    found = {}
    for top in range(0, image.shape[0] - side + 1, step):
        for left in range(0, image.shape[1] - side + 1, step):
            for hflip in (False, True):
                for vflip in (False, True):
                    for transpose in (False, True):
                        crop = image[top : top + side, left : left + side]
                        crop = crop[:, ::-1] if hflip else crop
                        crop = crop[::-1] if vflip else crop
                        crop = crop.transpose(1, 0, 2) if transpose else crop
                        found[top, left, hflip, vflip, transpose] = crop.tobytes()
    return found


def test_every_sample_is_one_crop_in_one_orientation_of_the_named_image(stores) -> None:
    ours = sampler(stores)
    references = [variants(image, SIDE, SCALE) for image in stores["gt"]]
    lq_references = [variants(image, SIDE // SCALE) for image in stores["lq"]]
    seen = set()
    for k in range(150):
        batch = ours.batch(k)
        assert batch.gt.shape == batch.target.shape == (4, 3, SIDE, SIDE)
        assert batch.lq.shape == (4, 3, SIDE // SCALE, SIDE // SCALE)
        assert batch.gt.dtype == batch.lq.dtype == batch.target.dtype == torch.float32
        assert batch.index.dtype == torch.int64
        for lq, gt, target, i in zip(batch.lq, batch.gt, batch.target, batch.index.tolist(), strict=True):
            lq, gt, target = map(to_uint8, (lq, gt, target))
            keys = [key for key, crop in references[i].items() if crop == gt.tobytes()]
            assert len(keys) == 1, "the crop is not in the image, or the photo is too flat for this test"
            top, left, hflip, vflip, transpose = keys[0]
            assert np.array_equal(target, 255 - gt)
            assert lq.tobytes() == lq_references[i][top // SCALE, left // SCALE, hflip, vflip, transpose]
            seen.add((i, *keys[0]))
    assert {key[3:] for key in seen} == {(h, v, t) for h in (0, 1) for v in (0, 1) for t in (0, 1)}
    positions = {key[1:3] for key in seen if key[0] == 1}
    assert positions == {(top, left) for top in range(0, 9, 2) for left in (0, 2)}, "a position is never drawn"


@pytest.mark.parametrize(
    "use_hflip, use_rot, expected",
    [
        (False, False, {(0, 0, 0)}),
        (True, False, {(0, 0, 0), (1, 0, 0)}),
        (False, True, {(0, v, t) for v in (0, 1) for t in (0, 1)}),
    ],
)
def test_augmentations_are_basicsrs(stores, use_hflip, use_rot, expected) -> None:
    ours = sampler(stores, use_hflip=use_hflip, use_rot=use_rot)
    references = [variants(image, SIDE, SCALE) for image in stores["gt"]]
    seen = set()
    for k in range(15):
        batch = ours.batch(k)
        for gt, i in zip(batch.gt, batch.index.tolist(), strict=True):
            crop = to_uint8(gt).tobytes()
            seen |= {key[2:] for key, reference in references[i].items() if reference == crop}
    assert seen == expected


def same(one, two):
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("lq", "gt", "target", "index"))


def test_a_batch_depends_on_seed_iteration_and_rank_alone(stores) -> None:
    ours = sampler(stores)
    in_order = [ours.batch(k) for k in range(8)]
    fresh = sampler(stores)
    assert all(same(fresh.batch(k), in_order[k]) for k in (7, 0, 3))
    assert all(same(one, two) for one, two in zip(sampler(stores).batches(2, 8), in_order[2:], strict=True))
    torch.manual_seed(5)
    np.random.seed(5)
    assert same(sampler(stores).batch(3), in_order[3])
    assert not same(in_order[0], in_order[5])
    assert not same(sampler(stores, seed=11).batch(0), in_order[0])
    assert not same(sampler(stores, rank=1, world_size=2).batch(0), in_order[0])


# (k, rank, world_size) -> index, top, left, and the digits hflip vflip transpose of six samples with seed 10.
GOLDEN = {
    (0, 0, 1): ([3, 4, 0, 2, 1, 1], [6, 0, 0, 0, 0, 3], [1, 2, 0, 3, 1, 0], "100 101 100 101 100 100"),
    (1000, 0, 1): ([2, 4, 0, 3, 1, 1], [0, 1, 0, 7, 4, 3], [7, 2, 0, 0, 1, 1], "011 111 001 100 001 010"),
    (1000, 1, 2): ([4, 3, 2, 0, 3, 1], [0, 1, 0, 0, 7, 2], [2, 4, 5, 0, 3, 0], "010 111 111 010 111 001"),
}


@pytest.mark.parametrize(("k", "rank", "world_size"), GOLDEN)
def test_batches_are_those_of_every_version_before(stores, k, rank, world_size) -> None:
    """Other numbers here mean that runs which were begun before can no longer be resumed, or repeated."""
    crops = Crops(
        [stores["lq"]], [1], batch_size=6, use_hflip=True, use_rot=True, seed=10, rank=rank, world_size=world_size
    )
    draw = crops.draw(k, SIDE // SCALE)
    turned = zip(draw.hflip, draw.vflip, draw.transpose, strict=True)
    digits = " ".join("".join(str(int(bit)) for bit in bits) for bits in turned)
    found = (draw.index.tolist(), draw.top.tolist(), draw.left.tolist(), digits)
    assert found == GOLDEN[k, rank, world_size]


@pytest.mark.parametrize("batch_size, world_size", [(1, 1), (4, 1), (2, 3), (3, 4)])
def test_every_image_is_visited_once_per_pass_over_all_ranks(stores, batch_size, world_size) -> None:
    ranks = [sampler(stores, batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    assert len(ranks[0]) == len(SIZES)
    visited = []
    while len(visited) < 8 * len(SIZES):
        k = len(visited) // (batch_size * world_size)
        for rank in ranks:
            visited += rank.batch(k).index.tolist()
    passes = [visited[start : start + len(SIZES)] for start in range(0, 8 * len(SIZES), len(SIZES))]
    assert all(sorted(p) == list(range(len(SIZES))) for p in passes)
    assert len({tuple(p) for p in passes}) > 4, "the order must differ from pass to pass"


def test_ranks_draw_different_crops(stores, tmp_path) -> None:
    single = {name: store.write(tmp_path / name, ["only"], [images[3]]) for name, images in stores.items()}
    one, two = (sampler(single, rank=r, world_size=2) for r in (0, 1))
    assert torch.equal(one.batch(0).index, two.batch(0).index)
    assert not torch.equal(one.batch(0).gt, two.batch(0).gt)


def test_crop_size_may_change_from_batch_to_batch(stores) -> None:
    ours = sampler(stores)
    assert ours.batch(0, 8).gt.shape == (4, 3, 8, 8)
    sides = [batch.gt.shape[-1] for batch in ours.batches(0, 4, lambda k: 4 + 2 * k)]
    assert sides == [4, 6, 8, 10]
    assert torch.equal(ours.batch(0, 8).index, ours.batch(0).index)


@pytest.mark.parametrize("gt_size", [0, 11, 14])
def test_a_crop_that_does_not_fit_is_refused(stores, gt_size) -> None:
    with pytest.raises(MtkdError, match=f"gt_size {gt_size}"):
        sampler(stores, gt_size=gt_size)
    with pytest.raises(MtkdError, match=f"gt_size {gt_size}"):
        sampler(stores).batch(0, gt_size)


def test_without_stored_targets_there_is_no_target(stores) -> None:
    assert sampler({"lq": stores["lq"], "gt": stores["gt"]}).batch(0).target is None


def test_half_precision_targets_are_handed_out_as_they_are(stores, tmp_path) -> None:
    values = [np.random.default_rng(i).random((h, w, 3)).astype(np.float16) for i, (h, w) in enumerate(SIZES)]
    target = store.write(tmp_path / "half", stores["gt"].names, values, dtype="float16")
    batch = sampler({**stores, "target": target}, use_hflip=False, use_rot=False).batch(0)
    for image, i in zip(batch.target, batch.index.tolist(), strict=True):
        crops = torch.from_numpy(values[i]).float().permute(2, 0, 1).unfold(1, SIDE, 1).unfold(2, SIDE, 1)
        assert (crops.permute(1, 2, 0, 3, 4) == image).all(dim=(2, 3, 4)).any()


def test_memory_format_is_the_one_asked_for(stores) -> None:
    assert sampler(stores).batch(0).gt.is_contiguous()
    last = sampler(stores, memory_format=torch.channels_last).batch(0).gt
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, sampler(stores).batch(0).gt)


def test_stores_that_do_not_belong_together_are_refused(stores) -> None:
    with pytest.raises(MtkdError, match="no multiple|must be"):
        sampler(stores, scale=3)
    with pytest.raises(MtkdError, match="target image i0 is 6x6 .* must be 12x12"):
        sampler({**stores, "target": stores["lq"]})


def test_other_names_are_refused(stores, tmp_path) -> None:
    other = store.write(tmp_path / "other", [*stores["gt"].names[1:], "x"], list(stores["target"]))
    with pytest.raises(MtkdError, match="target store .* holds other images"):
        sampler({**stores, "target": other})


def test_images_stay_where_they_fit(stores, monkeypatch) -> None:
    monkeypatch.setattr(residence, "available_memory", lambda: 1000)
    assert [choose_residence(n, "cpu") for n in (1, 750, 751)] == ["ram", "ram", "disk"]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1200, 4000))
    assert [choose_residence(n, "cuda") for n in (600, 601, 751)] == ["device", "ram", "disk"]
    assert sampler(stores).residence == "disk"
    monkeypatch.undo()
    assert sampler(stores).residence == "ram"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "changes", [{"residence": "device"}, {"residence": "disk"}, {"residence": "disk", "workers": 2}]
)
def test_batches_are_the_same_wherever_the_images_live(stores, tmp_path, changes, memory_format) -> None:
    halves = [(image / 255).astype(np.float16) for image in stores["target"]]
    target = store.write(tmp_path / "half", stores["gt"].names, halves, dtype="float16")
    common = {**stores, "target": target, "memory_format": memory_format, "rank": 1, "world_size": 2}
    in_ram = sampler(common, residence="ram")
    curriculum = lambda k: 4 + 2 * (k % 5)  # noqa: E731
    found = list(sampler(common, **changes).batches(3, 10, curriculum))
    assert len(found) == 7
    for k, batch in enumerate(found, start=3):
        want = in_ram.batch(k, curriculum(k))
        assert same(batch, want)
        assert batch.gt.stride() == want.gt.stride() and batch.target.stride() == want.target.stride()
    direct = sampler(common, **changes)
    assert same(direct.batch(5, curriculum(5)), in_ram.batch(5, curriculum(5)))


def test_what_goes_to_workers_names_the_stores_instead_of_holding_them(stores) -> None:
    crops = sampler(stores)._crops
    sent = pickle.dumps(crops)
    assert len(sent) < sum(s.nbytes for s in stores.values()) / 2
    for one, two in zip(pickle.loads(sent)[7, SIDE // SCALE], crops[7, SIDE // SCALE], strict=True):
        assert torch.equal(one, two)


def test_a_store_that_was_removed_is_still_read(stores, tmp_path) -> None:
    copies = {name: store.write(tmp_path / name, images.names, list(images)) for name, images in stores.items()}
    ours = sampler(copies, residence="disk")
    for path in tmp_path.iterdir():
        path.unlink()
    assert same(ours.batch(2), sampler(stores).batch(2))


def test_a_worker_that_dies_is_a_clear_error(stores) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    batches = sampler(stores, residence="disk", workers=2).batches(0, 1000)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) is before, "a dead worker would interrupt the training step"
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(MtkdError, match="died .* a smaller num_worker_per_gpu") as raised:
        list(batches)
    assert multiprocessing.active_children() == [] and raised is not None


def test_workers_leave_interrupts_to_the_run_and_end_with_the_iterator(stores) -> None:
    batches = sampler(stores, residence="disk", workers=1).batches(0, 6)
    got = [next(batches)]
    os.kill(only_child(), signal.SIGINT)
    os.kill(only_child(), signal.SIGTERM)
    got += [next(batches) for _ in range(3)]
    ours = sampler(stores)
    assert all(same(batch, ours.batch(k)) for k, batch in enumerate(got))
    batches.close()
    assert multiprocessing.active_children() == []


def test_an_error_in_a_worker_arrives_as_it_was_raised() -> None:
    with pytest.raises(MtkdError, match=r"^the fourth is wrong$") as raised:
        list(prefetch_in_workers(Wrong(), iter(range(9)), workers=2, pin_memory=False))
    assert multiprocessing.active_children() == [] and raised is not None


class Wrong:
    def __getitem__(self, key):
        if key == 3:
            raise MtkdError("the fourth is wrong")
        return (torch.tensor(key),)


def only_child():
    (child,) = multiprocessing.active_children()
    return child.pid


@pytest.mark.parametrize(
    "changes",
    [{"residence": "device"}, {"residence": "ram"}, {"residence": "disk"}, {"residence": "disk", "workers": 2}],
)
def test_answers_are_cut_as_gt_and_change_nothing_else(stores, changes) -> None:
    kept = {"gt": stores["target"], "same": stores["gt"]}
    ours = sampler(stores, target=None, answers=kept, **changes)
    without = sampler(stores, target=None)
    for k, batch in enumerate(ours.batches(0, 6)):
        want = without.batch(k)
        assert batch.target is None and want.answers is None and list(batch.answers) == ["gt", "same"]
        for name in ("lq", "gt", "index"):
            assert torch.equal(getattr(batch, name), getattr(want, name))
        assert torch.equal(batch.answers["same"], batch.gt)
        assert np.array_equal(to_uint8(batch.answers["gt"][0]), 255 - to_uint8(batch.gt[0]))


def test_answers_of_other_images_are_refused(tmp_path, stores) -> None:
    names = stores["gt"].names
    small = store.write(tmp_path / "small", names, [image[:-2] for image in stores["gt"]])
    with pytest.raises(MtkdError, match="answers of x image i0 is 10x12"):
        sampler(stores, answers={"x": small})
    renamed = store.write(tmp_path / "renamed", [f"other{name}" for name in names], list(stores["gt"]))
    with pytest.raises(MtkdError, match="answers of x store .* holds other images"):
        sampler(stores, answers={"x": renamed})


@pytest.mark.cuda
@pytest.mark.parametrize(
    "changes",
    [{"residence": "device"}, {"residence": "ram"}, {"residence": "disk"}, {"residence": "disk", "workers": 2}],
)
def test_cuda_batches_equal_cpu_batches(stores, changes) -> None:
    kept = {"answers": {"x": stores["target"]}}
    on_gpu = sampler(stores, device="cuda", **kept, **changes)
    on_cpu = sampler(stores, **kept)
    for k, batch in enumerate(on_gpu.batches(0, 6)):
        want = on_cpu.batch(k)
        assert batch.gt.device.type == batch.index.device.type == "cuda"
        for name in ("lq", "gt", "target", "index"):
            torch.testing.assert_close(getattr(batch, name).cpu(), getattr(want, name), atol=1e-7, rtol=0)
        torch.testing.assert_close(batch.answers["x"].cpu(), want.answers["x"], atol=1e-7, rtol=0)
