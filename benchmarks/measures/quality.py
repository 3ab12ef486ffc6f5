"""Whether what makes training fast changes what is learnt: short runs with and without each optimisation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from measures import basicsr_world, photos, runs
from measures.timing import Effort, Section
from mtkd import build, zoo
from mtkd.config import NetworkOptions, make_options
from mtkd.targets.make import Recipe, teach
from mtkd.training.loop import train

SCALE, SEEDS = 2, (10, 11, 12)
ITERATIONS, LAST, RATE = 150, 25, 5e-4
EDSR = {"type": "EDSR", "num_feat": 16, "num_block": 4}
SWINIR = {
    "type": "SwinIR",
    "img_size": 24,
    "window_size": 8,
    "depths": [2, 2],
    "embed_dim": 24,
    "num_heads": [2, 2],
    "mlp_ratio": 2.0,
    "upsampler": "pixelshuffledirect",
    "drop_path_rate": 0.0,
}
TEACHER_FILES = runs.ROOT / "datasets/demo/teachers"


@dataclass(frozen=True)
class Family:
    """A baseline, and what is changed in it one at a time.

    Attributes:
        baseline: what it is, for tables.
        keys: top-level keys of the option file.
        variants: what is changed -> keys that replace the baseline's.
        equal: variants that must give the baseline's loss to the last bit.
    """

    baseline: str
    keys: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    equal: Sequence[str] = ()


def measure(device: str, effort: Effort) -> Iterator[Section]:
    quick = effort.quick
    iterations = 2 * LAST if quick else ITERATIONS
    rows = []
    with runs.workplace() as folder:
        photos.pairs(folder / "photographs", 12, (256, 256), SCALE)
        for family in families(folder, device, iterations, quick):
            runner = Runner(folder, device, iterations)
            baselines = [runner.loss(family.keys, seed) for seed in SEEDS[: 2 if quick else None]]
            noise = (max(baselines) - min(baselines)) / baselines[0]
            rows.append(as_row(family.baseline, "baseline", baselines[0], baselines[0], noise, "-"))
            for name, keys in family.variants.items():
                loss = runner.loss({**family.keys, **keys}, SEEDS[0])
                verdict = judged(loss, baselines[0], noise, exactly=name in family.equal)
                rows.append(as_row(family.baseline, name, loss, baselines[0], noise, verdict))
    outside = [f"{row['run']}: {row['change']}" for row in rows if row["verdict"] in ("differs", "not equal")]
    yield Section(
        title="Quality: what is fast learns the same",
        setting=(
            f"Real runs of `mtkd train`, x{SCALE}, {iterations} iterations at batch 8 of 24x24 lq, Adam {RATE:g} with "
            "a cosine to zero, on 12 mosaics of photographs. Every run of a group starts from the same weights and "
            f"sees the same batches; what is compared is the total loss, mean of the last {LAST} iterations. Noise is "
            f"highest minus lowest of the baseline over {2 if quick else len(SEEDS)} seeds (weights and batches); a "
            "change is within noise when it moves the loss by less. Where numbers do not depend on the change at "
            "all, the loss must be equal to the last bit."
        ),
        rows=rows,
        notes=[
            "The plain wavelet path is `wavelet: bior1.1`, whose filters are Haar's and which pytorch-wavelets "
            "computes. Stored targets are made from whole images, and on-line ones from crops, so that teachers see "
            "less around the borders of a crop: that, and for uint8 the rounding, is the difference. BasicSR's "
            "SwinIR has plain attention: "
            "logits, bias, mask, softmax and product one after the other.",
            f"Outside the noise: {'; '.join(outside)}." if outside else "Nothing is outside the noise.",
        ],
    )


def families(folder: Path, device: str, iterations: int, quick: bool) -> list[Family]:
    cuda = device == "cuda"
    plain = Family(
        "EDSR, L1 to gt",
        {
            "network_g": EDSR,
            "model_type": "SRModel",
            "terms": {"pixel_opt": {"type": "L1Loss"}},
            # CUDA's convolutions add in an order of their own, and some rows must be equal to the last bit.
            "deterministic": cuda,
        },
        {
            "channels_last: false": {"channels_last": False},
            "Adam, fused: false": {"optimizer": {"fused": False}},
            "precision: bf16": {"precision": "bf16"},
            **({} if quick else {"compile: true": {"compile": True}}),
            **({"tf32: false": {"tf32": False}, "residence: device": {"residence": "device"}} if cuda else {}),
            "residence: ram": {"residence": "ram"},
            "residence: disk": {"residence": "disk"},
        },
        equal=("residence: device", "residence: ram", "residence: disk"),
    )
    attention = Family(
        "SwinIR, L1 to gt",
        {**plain.keys, "network_g": SWINIR},
        {
            "BasicSR's SwinIR": {"network_g": {**SWINIR, "type": basicsr_world.SWINIR}},
            # On a CPU without units for bf16 this takes minutes.
            **({"precision: bf16": {"precision": "bf16"}} if cuda else {}),
        },
    )
    on_line = {
        "network_g": EDSR,
        "model_type": "MTKD",
        "teachers": teachers(),
        "fusion": "mean",
        "terms": {"pixel_opt": {"type": "L1Loss", "loss_weight": 0.1}, "target_opt": wavelet("haar")},
    }
    stores = {}
    for dtype in ("uint8", "float16"):
        path = folder / f"{dtype}.safetensors"
        teach(make_options(Runner(folder, device, iterations).plain(on_line, SEEDS[0])), path, Recipe(dtype=dtype))
        stores[f"target from a {dtype} store"] = {"target_store": str(path)}
    distilled = Family(
        "EDSR, MTKD, teachers on line",
        on_line,
        {
            **stores,
            "wavelet by pytorch-wavelets": {
                "terms": {**on_line["terms"], "target_opt": wavelet("bior1.1")},
            },
            **({"teacher_precision: bf16": {"teacher_precision": "bf16"}} if cuda else {}),
        },
    )
    return [plain, attention, distilled]


def wavelet(name: str) -> dict[str, Any]:
    return {"type": "WaveletLoss", "wavelet": name, "levels": 1}


def teachers() -> dict[str, Any]:
    """Two of the demo's trained teachers."""
    section = {}
    for name in ("edsr", "rcan"):
        file = TEACHER_FILES / f"{name}_x2.safetensors"
        arch = zoo.read_checkpoint(file).facts["arch"]
        section[name] = {"network": {"type": arch["type"], **arch["args"]}, "pretrain": str(file)}
    return section


class Runner:
    """Starts runs that differ in what they are asked to differ in."""

    def __init__(self, folder: Path, device: str, iterations: int) -> None:
        self.folder, self.device, self.iterations = folder, device, iterations

    def loss(self, keys: Mapping[str, Any], seed: int) -> float:
        """Mean total loss of the last iterations of a run with `keys`."""
        options = make_options(self.plain(keys, seed))
        train(options)
        root = Path(options.path.experiments_root) / options.name
        lines = (root / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        log = "".join(file.read_text(encoding="utf-8") for file in root.glob("*.log"))
        if options.compile and "cannot be compiled" in log:
            raise RuntimeError(f"The run was to be compiled and was not:\n{log}")
        last = [row for row in map(json.loads, lines) if "losses" in row][-1]
        assert last["step"] == self.iterations
        return last["losses"]["l_total"]

    def plain(self, keys: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """An option file. `terms`, `optimizer` and `residence` of `keys` go where they belong."""
        rest = dict(keys)
        terms, optimizer, residence = (rest.pop(key, default) for key, default in PLACED.items())
        gt_folder, lq_folder = sorted((self.folder / "photographs").iterdir())
        number = len(list(self.folder.glob("run_*")))
        (self.folder / f"run_{number}").mkdir()
        return {
            "name": "quality",
            "scale": SCALE,
            "num_gpu": 1 if self.device == "cuda" else 0,
            "manual_seed": seed,
            "datasets": {
                "train": {
                    "name": "photographs",
                    "type": "PairedImageDataset",
                    "dataroot_gt": str(gt_folder),
                    "dataroot_lq": str(lq_folder),
                    "gt_size": 24 * SCALE,
                    "batch_size_per_gpu": 8,
                    "cache": "gpu" if residence == "device" else residence,
                }
            },
            **rest,
            "path": {
                "experiments_root": str(self.folder / f"run_{number}"),
                "pretrain_network_g": self.start(keys["network_g"], seed),
                "param_key_g": "auto",
            },
            "train": {
                "optim_g": {"type": "Adam", "lr": RATE, **optimizer},
                # At a high rate to the end, rounding alone would move the last losses by percents.
                "scheduler": {
                    "type": "CosineAnnealingRestartLR",
                    "periods": [self.iterations],
                    "eta_min": 1e-6,
                },
                "total_iter": self.iterations,
                **terms,
            },
            "logger": {"print_freq": LAST, "save_checkpoint_freq": self.iterations},
        }

    def start(self, network: Mapping[str, Any], seed: int) -> str:
        """First weights of that seed."""
        # The classes of mtkd draw the weights, whoever's are trained.
        arch = network["type"].rpartition(":")[2]
        path = self.folder / f"start_{arch}_{seed}.safetensors"
        if not path.exists():
            torch.manual_seed(seed)
            arguments = {key: value for key, value in network.items() if key != "type"}
            net = build.build_network(NetworkOptions(type=arch, args={**arguments, "upscale": SCALE}), SCALE)
            zoo.write_safetensors(path, net.state_dict(), {})
        return str(path)


PLACED: dict[str, Any] = {"terms": {}, "optimizer": {}, "residence": "auto"}


def judged(loss: float, baseline: float, noise: float, *, exactly: bool) -> str:
    if exactly:
        return "equal" if loss == baseline else "not equal"
    return "within noise" if math.isfinite(loss) and abs(loss / baseline - 1) <= noise else "differs"


def as_row(run: str, change: str, loss: float, baseline: float, noise: float, verdict: str) -> dict[str, Any]:
    return {
        "run": run,
        "change": change,
        "loss": loss,
        "difference %": 100 * (loss / baseline - 1),
        "noise %": 100 * noise,
        "verdict": verdict,
    }
