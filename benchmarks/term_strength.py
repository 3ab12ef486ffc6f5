"""How hard each loss term pulls at the student, beside the pixel term: |w_term grad term| / |w_pixel grad pixel|.

    python benchmarks/term_strength.py                     # all methods, into results and docs/methods.md
    python benchmarks/term_strength.py --only OnlineTeacher --print

Every method of the catalog trains the demo's student on the demo's photographs, under its own default weights; the
gradients of its terms on the student's parameters are taken one by one, on crops of photographs that it does not train
on, at a fresh student and after some iterations. Results go to `benchmarks/results/term_strength.json` and, as a table,
into `docs/methods.md`. A method without a case here is an error: `CASES` needs a line for it.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkd import catalog, zoo
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.archs.privileged import PrivilegedTeacher
from mtkd.contracts import Batch, MtkdError, Task
from mtkd.data.paired import PairedImages
from mtkd.methods.base import Method, MethodConfig
from mtkd.runtime.environment import environment
from mtkd.runtime.shipped import photographs
from mtkd.variants import VARIANTS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "methods.md"
RESULTS = ROOT / "benchmarks" / "results" / "term_strength.json"
BEGIN, END = "<!-- strength table: begin -->", "<!-- strength table: end -->"
SCALE = 2
EQUAL_WIDTHS = "needs a student as wide as its teacher"


@dataclass(frozen=True)
class Setting:
    """What one run of this script measures on, and how long it trains."""

    points: tuple[int, ...] = (0, 50, 150)
    train_batch: int = 4
    train_lq: int = 24
    batch: int = 4
    lq: int = 48
    lr: float = 1e-3
    seed: int = 0
    vgg: str = "random"


@dataclass(frozen=True)
class Case:
    """One method with the networks that it needs; what is left out has its default.

    Attributes:
        options: its `method:` section.
        weights: term -> weight, for terms that are off by default or other weights than the default.
        without: term -> why it is not measured here.
        last: iteration after which nothing more is measured, for what is slow.
    """

    method: str
    student: Callable[[], nn.Module]
    teachers: Callable[[Setting], Mapping[str, nn.Module]] = lambda setting: {}
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    last: int | None = None


def variant(name: str, **more: Any) -> nn.Module:
    arch, arguments = VARIANTS[name]
    return catalog.get("arch", arch)(**{"upscale": SCALE, **arguments, **more})


def student() -> nn.Module:
    return variant("edsr_tiny")


def demo_teacher(name: str) -> nn.Module:
    return zoo.build(str(ROOT / "datasets/demo/teachers" / f"{name}_x2.safetensors")).eval()


def one(setting: Setting) -> dict[str, nn.Module]:
    return {"edsr": demo_teacher("edsr")}


def three(setting: Setting) -> dict[str, nn.Module]:
    return {name: demo_teacher(name) for name in ("edsr", "rcan", "swinir")}


def fused(setting: Setting) -> dict[str, nn.Module]:
    return {"mean": FusedTeacher(Ensemble(three(setting)), MeanFusion(3))}


def privileged() -> nn.Module:
    return PrivilegedTeacher(upscale=SCALE)


def trained_privileged(setting: Setting) -> dict[str, nn.Module]:
    """Step 1 of PISR, as long as everything else trains."""
    run = Run(Case("PISRTeacher", privileged), setting)
    run.train(setting.points[-1])
    return {"privileged": run.method.student.eval()}


CASES: dict[str, Case] = {
    "SRModel": Case("SRModel", student, weights={"pixel": 1.0}),
    "SwinIRModel": Case("SwinIRModel", student, weights={"pixel": 1.0}),
    "OutputKD": Case("OutputKD", student, one),
    "MTKDFusion": Case("MTKDFusion", lambda: variant("dctswin_demo", num_teachers=3), three),
    "MTKD": Case("MTKD", student, fused),
    "SRKD": Case("SRKD", student, one),
    "SRKD, `normalize: true`": Case("SRKD", student, one, options={"normalize": True}),
    "FAKD": Case("FAKD", student, one, without={"channel": EQUAL_WIDTHS}),
    "FitNet": Case("FitNet", student, one),
    "AT": Case("AT", student, one),
    "AT, `form: fakd`": Case("AT", student, one, options={"form": "fakd"}, weights={"attention": 2.0}),
    "PKT": Case("PKT", student, one),
    "RKD": Case("RKD", student, one),
    "CRD": Case("CRD", student, one),
    "DCKD": Case("DCKD", student, one, without=dict.fromkeys(("contrast", "distribution"), "needs VQGAN's weights")),
    "StructuredKD": Case(
        "StructuredKD",
        student,
        one,
        options={"critic_feat": 16},
        weights={"holistic": 0.1, "critic": 1.0, "penalty": 10.0},
    ),
    "DUKD": Case("DUKD", student, one),
    "PISRTeacher": Case("PISRTeacher", privileged),
    "PISR": Case("PISR", lambda: variant("fsrcnn"), trained_privileged),
    "PISR, `vid` 0.3": Case("PISR", lambda: variant("fsrcnn"), trained_privileged, weights={"vid": 0.3}),
    "CSD": Case("CSD", lambda: variant("edsr_demo"), options={"width": 0.5}, last=50),
    "OnlineTeacher": Case("OnlineTeacher", student),
    "OnlineTeacher, `share: 0.25`": Case("OnlineTeacher", student, options={"share": 0.25}),
    "OnlineTeacher, RIFE's": Case("OnlineTeacher", student, options={"margin": 0.01}, weights={"distill": 0.01}),
}


def missing(cases: Mapping[str, Case] = CASES) -> list[str]:
    """Methods of the catalog without a case."""
    return [name for name in catalog.METHODS if name not in {case.method for case in cases.values()}]


class Crops:
    """Random crops of a folder's images, as batches that depend on the seed and the step alone."""

    def __init__(self, folder: Path, meta_info_file: Path | None = None) -> None:
        names = None if meta_info_file is None else str(meta_info_file)
        images = PairedImages(dataroot_gt=str(folder), scale=SCALE, meta_info_file=names)
        self.pairs = [tuple(_tensor(array) for array in (image.lq, image.gt)) for image in images]

    def batch(self, seed: int, step: int, count: int, side: int) -> Batch:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        lqs, gts, chosen = [], [], torch.randint(len(self.pairs), (count,), generator=generator)
        for index in chosen.tolist():
            lq, gt = self.pairs[index]
            top, left = (int(torch.randint(room - side + 1, (), generator=generator)) for room in lq.shape[-2:])
            lqs.append(lq[:, top : top + side, left : left + side])
            top, left, wide = (SCALE * value for value in (top, left, side))
            gts.append(gt[:, top : top + wide, left : left + wide])
        return Batch(torch.stack(lqs).float() / 255, torch.stack(gts).float() / 255, chosen)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


class Run:
    """One method in training: its own weights, Adam, the demo's photographs."""

    def __init__(self, case: Case, setting: Setting) -> None:
        self.case, self.setting, self.step = case, setting, 0
        cls = catalog.get("method", case.method)
        active = {name: {} for name in cls.terms if name not in case.without}
        options = dict(case.options)
        if case.method == "CSD":
            options["vgg"] = setting.vgg
        teachers = case.teachers(setting)
        torch.manual_seed(setting.seed)
        task = Task(scale=SCALE, num_samples=len(training().pairs), total_steps=max(1, setting.points[-1]))
        self.method: Method = cls(case.student(), teachers, task, MethodConfig(terms=active, options=options)).train()
        self.weights = {name: case.weights.get(name, term.weight) for name, term in cls.terms.items()}
        groups = self.method.param_groups().values()
        self.optimizers = [torch.optim.Adam(group, setting.lr, betas=(0.9, 0.99)) for group in groups]

    def train(self, until: int) -> None:
        """Go on to that iteration."""
        setting = self.setting
        while self.step < until:
            batch = training().batch(setting.seed, self.step, setting.train_batch, setting.train_lq)
            out = self.method(batch, self.step)
            values = {**out.losses, **out.critic}
            total = sum(self.weights[name] * value for name, value in values.items() if self.weights[name])
            assert isinstance(total, Tensor)
            total.backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1

    def measure(self) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        """Term -> norm of its raw gradient on the student and its cosine with the pixel term's; and what was logged."""
        batch = held_out().batch(self.setting.seed, 0, self.setting.batch, self.setting.lq)
        torch.manual_seed(self.setting.seed)
        # A copy, because a queue or a spectral norm remembers what it has seen.
        method = copy.deepcopy(self.method)
        out = method(batch, self.step)
        parameters = [p for p in method.student.parameters() if p.requires_grad]
        gradients = {}
        for name, value in out.losses.items():
            parts = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            gradients[name] = torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, parts, strict=True)]
            ).double()
        pixel = gradients["pixel"]
        rows = {
            name: {
                "norm": float(grad.norm()),
                "cosine": float(grad @ pixel / (grad.norm() * pixel.norm()).clamp_min(1e-300)),
            }
            for name, grad in gradients.items()
        }
        return rows, {name: float(value) for name, value in out.logs.items()}


_IMAGES: dict[str, Crops] = {}


def training() -> Crops:
    return _IMAGES["training"]


def held_out() -> Crops:
    return _IMAGES["held_out"]


def open_images(train: Path | None, test: Path | None) -> None:
    """Decode what `training` and `held_out` serve; None for what the demo takes."""
    demo = ROOT / "datasets/demo"
    _IMAGES["training"] = Crops(train) if train else Crops(photographs(), demo / "train_photographs.txt")
    _IMAGES["held_out"] = Crops(test or demo / "test")


def measure(label: str, setting: Setting) -> dict[str, Any]:
    """One case: term -> weight, and at every point its raw norm, weighted ratio and cosine."""
    case, began = CASES[label], time.perf_counter()
    run = Run(case, setting)
    terms: dict[str, Any] = {}
    logs = {}
    for point in setting.points:
        if case.last is not None and point > case.last:
            break
        run.train(point)
        rows, logs[point] = run.measure()
        pixel = rows["pixel"]["norm"] * (run.weights["pixel"] or 1.0)
        for name, row in rows.items():
            weight = run.weights[name]
            ratio = None if weight is None else weight * row["norm"] / pixel
            entry = terms.setdefault(name, {"weight": weight, "off_by_default": _off(case, name), "at": {}})
            raw = row["norm"] / rows["pixel"]["norm"]
            entry["at"][str(point)] = {"raw_ratio": raw, "weighted_ratio": ratio, "cosine": row["cosine"]}
    return {
        "method": case.method,
        "options": dict(case.options),
        "terms": terms,
        "logs": {str(point): values for point, values in logs.items()},
        "not_measured": dict(case.without),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _square(side: int) -> str:
    return f"{side}x{side}"


def plain(setting: Setting) -> dict[str, Any]:
    """The setting as JSON gives it back."""
    return json.loads(json.dumps(vars(setting)))


def _off(case: Case, term: str) -> bool:
    return catalog.get("method", case.method).terms[term].weight is None


def table(record: dict[str, Any]) -> str:
    setting = record["setting"]
    machines, torches, commits = (
        ", ".join(dict.fromkeys(found(row["environment"]) for row in record["cases"].values()))
        for found in (lambda e: e["device"], lambda e: e["versions"]["torch"], lambda e: str(e["commit"]))
    )
    points = [str(point) for point in setting["points"]]
    heads = ["fresh" if point == "0" else f"after {point}" for point in points]
    vgg = "" if setting["vgg"] != "random" else " CSD's VGG-19 has random weights here."
    lines = [
        f"Measured on {machines}, torch {torches}, commit {commits}, with `python benchmarks/term_strength.py`: x2, "
        "the demo's photographs and networks (student EDSR 16x4, or FSRCNN; teacher EDSR 32x6; CSD splits that), Adam "
        f"{setting['lr']:g}, batch {setting['train_batch']} of {_square(setting['train_lq'])} lq; gradients on "
        f"{setting['batch']} crops of {_square(setting['lq'])} lq that are "
        f"not trained on.{vgg}",
        "",
        f"| method | term | weight | {' | '.join(heads)} | cosine |",
        f"|---|---|---:|{'---:|' * len(heads)}---:|",
    ]
    for label, row in record["cases"].items():
        others = {name: term for name, term in row["terms"].items() if name != "pixel"}
        pixel = row["terms"]["pixel"]["weight"]
        beside = "" if pixel in (None, 1) else f" (`pixel` {pixel:g})"
        if not others:
            lines.append(f"| {label} | `pixel` alone | | {' | ' * len(heads)} |")
        for name, term in others.items():
            raw = term["weight"] is None
            at = [term["at"][point] for point in points if point in term["at"]]
            numbers = [f"{value['raw_ratio' if raw else 'weighted_ratio']:.2g}" for value in at]
            numbers += [""] * (len(points) - len(numbers))
            weight = "1; off" if raw else f"{term['weight']:.3g}" + ("; off" if term["off_by_default"] else "")
            lines.append(f"| {label}{beside} | `{name}` | {weight} | {' | '.join(numbers)} | {at[-1]['cosine']:.2f} |")
        for name, why in row["not_measured"].items():
            lines.append(f"| {label}{beside} | `{name}` | {why} | {' | '.join('' for _ in heads)} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=catalog.METHODS, help="measure these again, keep the other rows")
    parser.add_argument(
        "--points", nargs="+", type=int, default=list(Setting.points), help="iterations after which to measure"
    )
    parser.add_argument("--images", type=Path, help="folder of photographs to train on, instead of the demo's")
    parser.add_argument("--test", type=Path, help="folder of photographs to measure on, instead of the demo's")
    parser.add_argument("--vgg", default="random", help="VGG-19's weights for CSD: zoo:vgg19 or a file")
    parser.add_argument("--print", action="store_true", help="print the table and store nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if missing():
        raise MtkdError(f"CASES of {Path(__file__).name} needs a line for {', '.join(missing())}.")
    torch.set_num_threads(args.threads)
    setting = Setting(points=tuple(sorted(set(args.points))), vgg=args.vgg)
    open_images(args.images, args.test)
    cases: dict[str, Any] = {}
    if args.only and not args.print and RESULTS.exists():
        stored = json.loads(RESULTS.read_text(encoding="utf-8"))
        if stored["setting"] != plain(setting):
            raise MtkdError(
                f"{RESULTS.name} was measured with {stored['setting']}; measure all methods to change that."
            )
        cases = stored["cases"]
    command = "python " + shlex.join(["benchmarks/term_strength.py", *sys.argv[1:]])
    facts = environment()
    for label, case in CASES.items():
        if args.only is None or case.method in args.only:
            cases[label] = {**measure(label, setting), "command": command, "environment": facts}
            print(f"{label}: {cases[label]['seconds']} s", flush=True)
    record = {"setting": plain(setting), "cases": {label: cases[label] for label in CASES if label in cases}}
    print(table(record))
    if args.print:
        return
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(record)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
