"""The student: where it begins, by what it is trained, and how long a step of it takes here."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from typing import Any

import torch

from mtkd import build, catalog, zoo
from mtkd.config import NetworkOptions, Options
from mtkd.contracts import Batch, MtkdError, Task
from mtkd.inference.preflight import try_network
from mtkd.runtime.device import autocast, move
from mtkd.runtime.modes import deployed
from mtkd.training.optim import build_optimizer
from mtkd.training.terms import weighted_total
from mtkd.variants import variant

SMALL = 200_000
"""Parameters up to which a student is trained by the rate of benchmarks/cpu_x4.yml."""
RATES = {"tuned": 1e-4, "folded": 2e-3, "small": 1e-3, "large": 2e-4}
"""Of Adam. `tuned` and `small` are those of benchmarks/cpu_x4_few.yml, `folded`, of networks that deploy folded
kernels, is that of benchmarks/students.yml; `large` was not measured.
"""
CROP_LQ = {"cpu": 24, "cuda": 48}
"""Side of training crops in lq pixels: benchmarks/cpu_x4.yml's, and options/base/div2k.yml's."""
BATCH = 16
_TIMED = 6.0
"""Seconds that steps are timed in."""


@dataclass(frozen=True)
class Student:
    """A student.

    Attributes:
        name: of `mtkd.variants`.
        start: weights that it begins with, `zoo:NAME`, or None.
        parameters: their number, as it is deployed.
        folded: it trains more weights than it is deployed with.
    """

    name: str
    start: str | None
    parameters: int
    folded: bool = False

    @property
    def rate(self) -> float:
        """Adam's."""
        if self.start:
            return RATES["tuned"]
        return RATES["folded" if self.folded else "small" if self.parameters <= SMALL else "large"]

    @property
    def about(self) -> str:
        """A few words for people."""
        begins = f"begins as {self.start}" if self.start else "from scratch"
        return f"{self.name}, {self.parameters:,d} parameters, {begins}"


def find_student(name: str, scale: int, *, from_scratch: bool) -> Student:
    """The student `name` of `scale`, built and tried. One that comes with mtkd begins with its weights.

    Raises:
        MtkdError: there is no such network, or it does not make a larger image of an image.
    """
    described = variant(name)
    arguments = {key: value for key, value in described.items() if key != "type"}
    takes = inspect.signature(catalog.get("arch", described["type"])).parameters
    arguments |= {key: scale for key in ("upscale", "scale") if key in takes}
    try:
        net = build.build_network(NetworkOptions(type=described["type"], args=arguments), scale)
        try_network(net, name, scale=scale)
    except MtkdError as error:
        raise MtkdError(f"--student {name} cannot be one: {error}") from error
    entry = f"{name}_x{scale}"
    start = f"zoo:{entry}" if not from_scratch and zoo.is_shipped(entry) else None
    used = deployed(net)
    return Student(name, start, sum(parameter.numel() for parameter in used.parameters()), used is not net)


def seconds_of_a_step(options: Options, device: torch.device) -> float:
    """Median time of one iteration of `options` with a stored target, on batches of noise; reading them is left out."""
    train_set, memory_format = options.train_set, torch.channels_last
    assert hasattr(train_set, "gt_size")
    with torch.random.fork_rng():
        student = build.build_network(options.network_g, options.scale)
        task = Task(options.scale, num_samples=1, total_steps=options.training.total_iter)
        method = move(build.build_method(options, student, {}, task), device, memory_format).train()
        side, number = train_set.gt_size, train_set.batch_size_per_gpu  # pyright: ignore[reportAttributeAccessIssue]
        gt = torch.rand(number, 3, side, side, device=device).contiguous(memory_format=memory_format)
        lq = torch.nn.functional.avg_pool2d(gt, options.scale)
        batch = Batch(lq, gt, torch.arange(number, device=device), target=gt)
        groups = method.param_groups()
        optimizers = [build_optimizer(group, options.training.optim_g.model_dump()) for group in groups.values()]
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 5 or (time.perf_counter() - began < _TIMED and len(times) < 200):
            start = time.perf_counter()
            with autocast(options.precision, device):
                total = weighted_total(method(batch, 0), options.training.terms, 0)
            total.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            float(total.detach())  # waits for the device
            times.append(time.perf_counter() - start)
            if time.perf_counter() - began > 10 * _TIMED:
                break
    # The first ones warm up.
    kept = sorted(times[2:] or times)
    return kept[len(kept) // 2]


def iterations_in(minutes: float, seconds: float) -> int:
    """Iterations of `seconds` each that fit into `minutes`, a twentieth of which is left for validation and saving;
    rounded down to three digits and to tens, and 10 at least.

    Example:
        >>> iterations_in(10, 0.0312), iterations_in(1, 0.17), iterations_in(0.01, 1)
        (18200, 330, 10)
    """
    number = int(0.95 * 60 * minutes / seconds)
    unit = 10 ** max(len(str(number)) - 3, 1)
    return max(number // unit * unit, 10)


def loss_terms() -> dict[str, Any]:
    """The loss of `recipe:MTKD/stage2_best`: the teachers' image by pixel and by its detail bands, without gt."""
    return {
        "pixel_opt": None,
        "spatial_opt": {"type": "L1Loss", "loss_weight": 1.0},
        "target_opt": {
            "type": "WaveletLoss",
            "wavelet": "haar",
            "levels": 1,
            "criterion": "charbonnier",
            "eps": 0.02,
            "band_weights": {"ll": 0},
            "loss_weight": 1.0,
        },
    }
