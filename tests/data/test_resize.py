"""MATLAB's bicubic: exact arithmetic and the published lq images."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from mtkd.contracts import MtkdError
from mtkd.data.images import list_images, read_image
from mtkd.data.resize import bicubic_lq, imresize, modcrop
from tests.helpers import photo, shared_data


def synthetic(height: int, width: int) -> np.ndarray:
    y, x, c = np.ogrid[:height, :width, :3]
    return ((7 * x * x + 13 * y + 5 * x * y + 31 * c) % 256).astype(np.uint8)


# Made once by the rule that reproduces the standard LR images of Set5 and Set14 (57 files) bit for bit.
GOLDEN = {
    2: [
        [40, 90, 168, 112, 133, 131, 92, 130, 85, 177, 97, 115],
        [71, 149, 142, 110, 96, 141, 150, 132, 133, 133, 137, 104],
        [105, 167, 109, 143, 124, 117, 134, 152, 175, 138, 113, 103],
        [145, 127, 128, 130, 140, 98, 121, 130, 130, 151, 148, 109],
        [162, 114, 147, 145, 128, 129, 122, 83, 86, 117, 118, 103],
        [183, 110, 158, 142, 143, 106, 121, 99, 123, 103, 139, 95],
        [161, 132, 123, 137, 95, 133, 127, 115, 110, 115, 126, 89],
        [143, 109, 116, 112, 172, 103, 64, 83, 116, 120, 112, 83],
        [172, 110, 118, 159, 117, 151, 185, 158, 137, 120, 76, 77],
        [81, 154, 117, 102, 143, 111, 124, 134, 123, 94, 112, 94],
        [79, 94, 131, 108, 82, 102, 115, 136, 96, 111, 171, 133],
        [110, 147, 112, 186, 120, 91, 135, 149, 122, 135, 139, 109],
    ],
    3: [
        [60, 145, 118, 128, 118, 116, 144, 109],
        [117, 137, 120, 119, 144, 155, 133, 108],
        [146, 126, 143, 119, 114, 117, 139, 116],
        [155, 136, 141, 123, 117, 104, 115, 108],
        [145, 126, 129, 116, 97, 106, 123, 98],
        [145, 111, 139, 138, 136, 133, 109, 77],
        [99, 123, 109, 119, 138, 117, 108, 117],
        [108, 131, 142, 92, 133, 123, 136, 129],
    ],
    4: [
        [87, 133, 123, 125, 134, 115],
        [133, 131, 121, 132, 143, 118],
        [148, 140, 127, 109, 110, 113],
        [140, 126, 125, 105, 117, 99],
        [123, 121, 130, 141, 117, 93],
        [106, 135, 105, 129, 122, 133],
    ],
}


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_small_images_have_the_known_pixels(factor) -> None:
    assert imresize(synthetic(24, 24), 1 / factor)[..., 1].tolist() == GOLDEN[factor]


def exact_pass(rows: list[list[int]], factor: int) -> list[list[int]]:
    """MATLAB's rule along the first axis in rational arithmetic, rounded half up and clipped."""

    def kernel(x: Fraction) -> Fraction:
        x = abs(x)
        if x <= 1:
            return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
        return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2 if x <= 2 else Fraction(0)

    length = len(rows)
    out = []
    for o in range(length // factor):
        centre = (o + Fraction(1, 2)) * factor - Fraction(1, 2)
        taps = range(int(centre) - 2 * factor - 1, int(centre) + 2 * factor + 3)
        weights = [kernel((centre - t) / factor) for t in taps]
        source = [rows[(-1 - t) if t < 0 else (2 * length - 1 - t) if t >= length else t] for t in taps]
        total = sum(weights)
        sums = [sum(w * row[j] for w, row in zip(weights, source)) / total for j in range(len(rows[0]))]
        out.append([min(255, max(0, (s + Fraction(1, 2)).__floor__())) for s in sums])
    return out


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downscaling_equals_exact_arithmetic_rounded_after_each_pass(factor) -> None:
    image = photo("astronaut", (24, 36))[..., 0]
    rows_done = exact_pass(image.tolist(), factor)
    both_done = np.array(exact_pass(np.array(rows_done).T.tolist(), factor)).T
    assert np.array_equal(imresize(image, 1 / factor), both_done)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 0.7, 1.0, 2, 3, 4, 2.5])
def test_float_images_equal_basicsr(scale) -> None:
    pytest.importorskip("mtkd.basicsr", exc_type=ImportError)
    from basicsr.utils.matlab_functions import imresize as basicsr_imresize

    image = torch.rand(3, 37, 50)
    ours, theirs = imresize(image, scale), basicsr_imresize(image, scale)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_float_resize_keeps_leading_axes_dtype_and_gradient() -> None:
    image = torch.rand(2, 1, 3, 8, 12, dtype=torch.float64)
    assert torch.equal(imresize(image, 0.5)[1, 0], imresize(image[1, 0], 0.5))
    assert imresize(image.bfloat16(), 2).dtype == torch.bfloat16
    assert torch.autograd.gradcheck(lambda x: imresize(x, 0.5), image[0, 0, :1, :6, :6].clone().requires_grad_())


@pytest.mark.parametrize("scale", [0.25, 0.5, 2, 3])
def test_a_flat_image_stays_flat(scale) -> None:
    assert (imresize(np.full((16, 20, 3), 137, np.uint8), scale) == 137).all()


def test_sides_are_rounded_up_without_float_noise() -> None:
    image = np.zeros((30, 31, 3), np.uint8)
    assert imresize(image, 0.1).shape == (3, 4, 3)
    assert imresize(image, 1 / 3).shape == (10, 11, 3)
    assert modcrop(image, 4).shape == (28, 28, 3)
    assert bicubic_lq(image, 4).shape == (7, 7, 3)


@pytest.mark.parametrize(
    "image, scale",
    [(np.zeros((4, 4), np.float32), 2), (torch.zeros(4, 4, dtype=torch.uint8), 2), (np.zeros((4, 4), np.uint8), 0)],
)
def test_wrong_kinds_of_image_and_scale_are_refused(image, scale) -> None:
    with pytest.raises(MtkdError):
        imresize(image, scale)


needs_data = pytest.mark.skipif(shared_data() is None, reason="benchmark images are not here")


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("dataset", ["Set5", "Set14"])
def test_standard_lr_images_are_reproduced_bit_for_bit(dataset, factor) -> None:
    root = shared_data() / "test" / dataset
    gt_paths = list_images(root / "HR")
    different = [
        path.name
        for path in gt_paths
        if not np.array_equal(
            bicubic_lq(read_image(path), factor),
            read_image(root / f"LR_bicubic/X{factor}/{path.stem}x{factor}.png"),
        )
    ]
    assert len(gt_paths) == {"Set5": 5, "Set14": 14}[dataset]
    assert different == []


@needs_data
@pytest.mark.parametrize("factor, published", [(2, 33.678), (3, 30.404), (4, 28.431)])
def test_bicubic_upscaling_of_set5_scores_the_known_psnr(factor, published):
    def luma(image: torch.Tensor) -> torch.Tensor:
        return (image * torch.tensor([65.481, 128.553, 24.966]).double().view(3, 1, 1)).sum(0) + 16

    scores = []
    for path in list_images(shared_data() / "test/Set5/HR"):
        gt = torch.tensor(modcrop(read_image(path), factor)).permute(2, 0, 1).double() / 255
        lq = read_image(path.parents[1] / f"LR_bicubic/X{factor}/{path.stem}x{factor}.png")
        sr = imresize(torch.tensor(lq).permute(2, 0, 1).double() / 255, factor)
        sr = sr.clamp(0, 1).mul(255).round().div(255)
        error = (luma(sr) - luma(gt))[factor:-factor, factor:-factor]
        scores.append(10 * torch.log10(255**2 / error.square().mean()).item())
    assert np.mean(scores) == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize("scale", [0.25, 1 / 3, 2.0])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_strips_leave_no_trace(monkeypatch, scale, channels) -> None:
    image = np.random.default_rng(0).integers(0, 256, (41, 60, *channels), dtype=np.uint8)
    whole = imresize(image, scale)
    monkeypatch.setattr("mtkd.data.resize._STRIP", 200)
    assert np.array_equal(imresize(image, scale), whole)


def test_sixteen_bits_are_resized_in_their_own_range() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    deep = imresize(image.astype(np.uint16) * 257, 2.0)
    assert deep.dtype == np.uint16
    # The 8-bit image is rounded once more, after the first pass.
    assert np.abs(deep / 257 - imresize(image, 2.0)).max() <= 1.5
