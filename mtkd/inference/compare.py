"""`mtkd test RUN | FILE | zoo:NAME ...`: trained networks side by side on test sets, without an option file.

A run folder says itself what its network is and how it is measured, a weights file of ours what it holds. All networks
of a table have one scale, see the same images and are held to the same metrics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkd import build, catalog, zoo
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.config import EvalSetOptions, Options, PathOptions, load_options
from mtkd.contracts import MtkdError
from mtkd.data.items import ItemImages
from mtkd.data.paired import PairedImages
from mtkd.data.residence import available_memory
from mtkd.data.resize import imresize
from mtkd.inference import report
from mtkd.inference.evaluate import Evaluation, build_metrics, evaluate
from mtkd.inference.report import Subject, describe
from mtkd.inference.tiling import check_tiles, tiled
from mtkd.methods.base import Method
from mtkd.runtime import given, shipped
from mtkd.runtime.progress import Say, tracked
from mtkd.training.checkpoint import LATEST, RunFolder
from mtkd.training.preflight import try_network

BENCHMARK = Path("options/benchmark.yml")
"""The option file whose `datasets` are measured on where none are named, at every scale: the user's own in the working
folder, else the one that comes with mtkd."""
_GT, _HR, _LQ = "gt", "HR", "lq"
"""Folders inside a folder of test images: gt, or HR as in datasets/README.md, and lq beside gt."""

ImageSets = dict[str, PairedImages | ItemImages]
Metrics = Mapping[str, Mapping[str, Any]]


def compare(
    targets: Sequence[str],
    *,
    data: Sequence[Path] = (),
    bicubic: bool = False,
    teachers: bool = False,
    tile_size: int | None = None,
    tile_pad: int = 32,
    device: str | torch.device | None = None,
    command: str | None = None,
    results_root: Path = Path("results"),
    say: Say = print,
) -> list[tuple[str, Evaluation]]:
    """Measure trained networks, print one table, write `results/NAME`; return (network's name, its result on a set).

    Every network runs in fp32, on whole images unless `tile_size` is given. NAME is that of the one network, or
    `comparison_xSCALE`.

    Args:
        targets: run folders, weights files that say what they hold, `zoo:NAME`.
        data: folders of gt images, each a set of the folder's name, with lq made by MATLAB's bicubic; or folders that
            hold `gt` (or `HR`) and may hold `lq` beside `gt`. Without any, the sets of `options/benchmark.yml` that are
            here.
        bicubic: measure MATLAB's bicubic enlargement too.
        teachers: measure the teachers that the runs declare too, the mean of several and their fused image.
        tile_size: run in tiles of so many lq pixels.
        tile_pad: lq pixels of context around each tile.

    Raises:
        MtkdError: something named is not there or cannot be measured, scales or metrics differ, or there are no images.
            Nothing was measured then. Or an image cannot be measured; what was, has been said.
    """
    if tile_size is not None:
        check_tiles(tile_size, tile_pad)
    where = build.named_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = [_find(target) for target in _once(targets)]
    scale = _common_scale(found)
    if teachers and not any(target.options is not None and target.options.teachers for target in found):
        raise MtkdError(
            "--with teachers: nothing that is named declares teachers. Only a run folder does; name one whose option "
            "file has `teachers:`."
        )
    images = folder_sets(data, scale) if data else _benchmark_sets(scale, say)
    protocol = _common_metrics(found, scale)
    metrics = build_metrics(protocol)
    build.set_backends(None, sizes_vary=True)

    baselines = [Subject("bicubic", Bicubic(scale), None, None, 0, None)] if bicubic else []
    subjects = _unique([*baselines, *_networks(found, teachers=teachers)])
    for subject in subjects:
        subject.net.to(where, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        try_network(subject.net, subject.name, scale=scale)

    rows: list[tuple[str, Evaluation]] = []
    name = _folder_name(found, scale)
    with report.results_folder(results_root / name) as folder:
        for dataset, image_set in images.items():
            for subject in subjects:
                predict: Callable[[Tensor], Tensor] = subject.net
                if tile_size is not None:
                    predict = partial(tiled, predict, scale=scale, tile_size=tile_size, tile_pad=tile_pad)
                watch = partial(tracked, about=f"{dataset}, {subject.name}")
                result = evaluate(predict, image_set, metrics, dataset=dataset, device=where, progress=watch)
                rows.append((subject.name, result))
                if len(subjects) * len(images) > 1:
                    means = ", ".join(f"{metric} {mean:.4f}" for metric, mean in result.means().items())
                    say(f"{dataset}, {subject.name}: {means}")
            for module in (module for subject in subjects for module in subject.net.modules()):
                if isinstance(module, Remembered):
                    module.forget()
    report.print_table(subjects, rows, scale=scale)
    say(f"Metrics: {_told(protocol)}; fp32, {_tiles(tile_size, tile_pad)}.")
    facts = {
        "name": name,
        "scale": scale,
        "networks": [subject.facts() for subject in subjects],
        "metrics": build.plain(dict(protocol)),
        "sets": {dataset: _places(image_set) for dataset, image_set in images.items()},
        "precision": "fp32",
        "tile": None if tile_size is None else {"tile_size": tile_size, "tile_pad": tile_pad},
        "device": str(where),
        "command": command,
    }
    report.write(folder, rows, facts)
    return rows


class Bicubic(nn.Module):
    """MATLAB's bicubic enlargement, the row every table starts with: lq (N, C, h, w), floating point, -> sr."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h * scale, w * scale), not clamped."""
        return imresize(lq, self.scale)


class Remembered(nn.Module):
    """A network that answers the same image only once: a table asks each teacher alone, in the mean and fused.

    Args:
        net: lq -> sr, with its `scale`; put in eval mode.
        room: bytes of answers that are kept, in main memory; what finds no room is computed again.
    """

    def __init__(self, net: nn.Module, *, room: int) -> None:
        super().__init__()
        self.net = net.eval()
        self.scale = net.scale
        self.room = room
        self._answers: dict[bytes, Tensor] = {}

    def forward(self, lq: Tensor) -> Tensor:
        """`net(lq)`, computed or remembered."""
        pixels = lq.cpu().numpy()
        key = hashlib.blake2b(str(pixels.shape).encode() + pixels.tobytes()).digest()
        if key in self._answers:
            return self._answers[key].to(lq.device)
        sr = self.net(lq)
        if sum(known.nbytes for known in self._answers.values()) + sr.nbytes <= self.room:
            self._answers[key] = sr.detach().cpu()
        return sr

    def forget(self) -> None:
        """Give the memory of all answers back."""
        self._answers.clear()


@dataclass(frozen=True)
class _Target:
    """What the user named: a run, with its options as a test of its weights; a file, read; a zoo entry, not fetched."""

    spec: str
    name: str
    scale: int
    options: Options | None = None
    total_iter: int | None = None
    net: nn.Module | None = None


def _once(targets: Sequence[str]) -> Sequence[str]:
    for number, spec in enumerate(targets):
        if spec in targets[:number]:
            raise MtkdError(f"{spec} is named twice, and one table has it once.")
    return targets


def _find(spec: str) -> _Target:
    if spec.startswith("zoo:"):
        entry = zoo.entry(spec)
        if entry.scale is None:
            raise MtkdError(f"{spec} does not enlarge images; `mtkd zoo list` shows what each entry is for.")
        return _Target(spec, entry.name, entry.scale)
    path = given.path(spec)
    if path.is_dir():
        return _run(spec, path)
    if path.suffix.lower() in (".yml", ".yaml"):
        raise MtkdError(f"{spec} is called like an option file: `mtkd test -opt {spec}` measures what it describes.")
    if not path.exists():
        also = f" The zoo's weights of that name are zoo:{spec}." if spec in zoo.ENTRIES else ""
        raise MtkdError(f"There is no run folder or weights file {spec}.{also}")
    return _file(spec, path)


def _run(spec: str, path: Path) -> _Target:
    """The run in folder `path`: `net_g_latest.pth`, which ends a run, or the newest weights of one that goes on."""
    described = path / "resolved.yml"
    if not described.is_file():
        raise MtkdError(
            f"{path} is not the folder of a run: it has no resolved.yml, which `mtkd train` writes. Name a run folder "
            "(experiments/NAME), a weights file or zoo:NAME; folders of test images follow --data."
        )
    options = load_options(described, kind="train")
    folder = RunFolder(path)
    steps = folder.saved_weights()
    if not folder.model(LATEST).is_file() and not steps:
        raise MtkdError(f"{path} holds no weights yet: there is no models/net_g_latest.pth, and no checkpoint.")
    weights = folder.model(LATEST) if folder.model(LATEST).is_file() else folder.model(steps[0])
    # The entries and the strictness that the file names are those of the weights it started from.
    own = PathOptions(pretrain_network_g=str(weights))
    tested = options.model_copy(update={"train": None, "path": own})
    total = options.train.total_iter if options.train else None
    return _Target(spec, path.resolve().name, options.scale, options=tested, total_iter=total)


def _file(spec: str, path: Path) -> _Target:
    facts = zoo.read_checkpoint(path).facts
    method = facts.get("method")
    if isinstance(method, str) and method in catalog.METHODS and "iteration" in facts:
        cls = catalog.get("method", method)
        if cls.predictor is not Method.predictor or cls.deployable is not Method.deployable:
            raise MtkdError(
                f"{path} was trained by {method}, which does not measure and deploy the bare network that the file "
                "holds. Name the folder of its run, or models/deployable.pth of it where there is one."
            )
    net = zoo.build(path)
    scale = getattr(net, "scale", None)
    if not isinstance(scale, int):
        raise MtkdError(f"{path} holds a {type(net).__name__}, whose scale nobody says: describe it in an option file.")
    short = (
        f"{path.absolute().parent.parent.name} {path.stem}" if path.absolute().parent.name == "models" else path.stem
    )
    return _Target(spec, short, scale, net=net)


def _common_scale(found: Sequence[_Target]) -> int:
    scales = {target.scale for target in found}
    if len(scales) > 1:
        listed = ", ".join(f"{target.spec} x{target.scale}" for target in found)
        raise MtkdError(f"One table has one scale, and these differ: {listed}. Measure each scale by itself.")
    return scales.pop()


def _common_metrics(found: Sequence[_Target], scale: int) -> Metrics:
    """What the runs measure in validation; else PSNR and SSIM on Y, without a border of `scale` pixels."""
    declared = [
        (target, target.options.val.metrics) for target in found if target.options and target.options.val.metrics
    ]
    if not declared:
        settings = {"crop_border": scale, "test_y_channel": True}
        return {name: {"type": f"calculate_{name}", **settings} for name in ("psnr", "ssim")}
    first, metrics = declared[0]
    for target, other in declared[1:]:
        if _bare(other) != _bare(metrics):
            raise MtkdError(
                f"One table has one set of metrics, and these runs declare different ones (val.metrics): {first.spec} "
                f"{_told(metrics)}; {target.spec} {_told(other)}. Measure each by itself, or name the weights files, "
                "models/net_g_latest.pth: files alone are held to PSNR and SSIM on Y, crop_border = scale."
            )
    return metrics


def _bare(metrics: Metrics) -> dict[str, dict[str, Any]]:
    return {name: {key: value for key, value in one.items() if key != "better"} for name, one in metrics.items()}


def _told(metrics: Metrics) -> str:
    told = []
    for name, settings in _bare(metrics).items():
        arguments = ", ".join(f"{key}: {value}" for key, value in settings.items() if key != "type")
        told.append(f"{name} = {settings['type']}({arguments})")
    return ", ".join(told)


def _tiles(tile_size: int | None, tile_pad: int) -> str:
    return "whole images" if tile_size is None else f"tiles of {tile_size} lq pixels with {tile_pad} around them"


def _networks(found: Sequence[_Target], *, teachers: bool) -> list[Subject]:
    """The networks of `found`, after the teachers of those that are runs."""
    names = [target.name for target in found]
    subjects = []
    for target in found:
        if target.options is not None:
            net, weights = report.output_network(target.options), target.options.path.pretrain_network_g
        else:
            net, weights = target.net or zoo.build(target.spec), target.spec
        name = target.name if names.count(target.name) == 1 else target.spec
        subject = describe(name, net, weights=weights)
        iteration = subject.origin.iteration if subject.origin else None
        if target.total_iter is not None and iteration is not None and iteration < target.total_iter:
            subject = replace(subject, note=f"its run is not finished, which has {target.total_iter:,d} iterations")
        subjects.append(subject)
    if not teachers:
        return subjects
    groups: dict[str, _Teachers] = {}
    for number, (target, subject) in enumerate(zip(found, subjects, strict=True)):
        if target.options is None or not target.options.teachers:
            continue
        key = json.dumps([(name, one.model_dump()) for name, one in target.options.teachers.items()], default=str)
        own = subject.net if isinstance(subject.net, FusedTeacher) else None
        loaded = {"own": own} if own else build.build_teachers(target.options)
        fused = next(net for net in loaded.values())
        if key not in groups:
            members = fused.ensemble.members if isinstance(fused, FusedTeacher) else loaded
            groups[key] = _Teachers(dict(members.items()), subject.name)
        if own is not None:
            subjects[number] = replace(subject, net=groups[key].behind(own.fusion))
        elif isinstance(fused, FusedTeacher) and not isinstance(fused.fusion, MeanFusion):
            groups[key].add_fusion(fused.fusion, subject.name)
    several = len(groups) > 1
    return [*(row for group in groups.values() for row in group.rows(several=several)), *subjects]


class _Teachers:
    """Teachers that runs declare, each answering an image once for all rows that need it, and fusions of theirs."""

    def __init__(self, members: dict[str, nn.Module], run: str) -> None:
        self.members, self.run = members, run
        room = available_memory() // 4 // len(members)
        self._remembered = {name: Remembered(net, room=room) for name, net in members.items()}
        self._fusions: dict[str, tuple[nn.Module, str]] = {}

    def behind(self, fusion: nn.Module) -> FusedTeacher:
        """The image that `fusion` makes of the teachers'."""
        return FusedTeacher(Ensemble(self._remembered), fusion).eval()

    def add_fusion(self, fusion: nn.Module, run: str) -> None:
        """A fusion network with its weights, once for all runs that declare it."""
        self._fusions.setdefault(str(fusion.origin), (fusion, run))

    def rows(self, *, several: bool) -> Iterator[Subject]:
        """Each teacher, their mean and their fused images; `several`: there are other teachers in the table."""
        of = f" of {self.run}" if several else ""
        alone = len(self.members) == 1 and not self._fusions
        for name, net in self.members.items():
            subject = describe(f"teacher {name}{of}", net.eval(), weights=_source(net))
            yield subject if alone else replace(subject, net=self._remembered[name])
        if len(self.members) > 1:
            mean = MeanFusion(len(self.members))
            # The cost is that of the bare networks.
            subject = describe(f"mean of the teachers{of}", FusedTeacher(Ensemble(self.members), mean))
            yield replace(subject, net=self.behind(mean))
        for fusion, run in self._fusions.values():
            of = f" of {run}" if several or len(self._fusions) > 1 else ""
            subject = describe(
                f"fused teachers ({type(fusion).__name__}){of}",
                FusedTeacher(Ensemble(self.members), fusion).eval(),
                weights=_source(fusion),
                origin=_origin(fusion),
            )
            yield replace(subject, net=self.behind(fusion))


def _origin(net: nn.Module) -> zoo.Origin | None:
    return getattr(net, "origin", None)


def _source(net: nn.Module) -> str | None:
    origin = _origin(net)
    return origin.source if origin else None


def _unique(subjects: Sequence[Subject]) -> list[Subject]:
    """`subjects`, of which none is called like one before it."""
    unique: dict[str, Subject] = {}
    for subject in subjects:
        name, number = subject.name, 1
        while name in unique:
            number += 1
            name = f"{subject.name} ({number})"
        unique[name] = replace(subject, name=name)
    return list(unique.values())


def folder_sets(folders: Sequence[Path], scale: int) -> ImageSets:
    """A set of test images for each folder, called like it; see `compare`.

    Raises:
        MtkdError: a folder is named twice, or its images cannot be used.
    """
    names = [folder.resolve().name for folder in folders]
    sets: ImageSets = {}
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            name = f"{folder.resolve().parent.name}/{name}"
        if name in sets:
            raise MtkdError(f"--data: two folders are called {name}; a table tells sets apart by their names.")
        gt = next((folder / inner for inner in (_GT, _HR) if (folder / inner).is_dir()), folder)
        lq = folder / _LQ if (folder / _LQ).is_dir() else None
        if lq is not None and gt != folder / _GT:
            raise MtkdError(f"{folder} holds `{_LQ}`, and no `{_GT}` beside it: put the images to compare with there.")
        sets[name] = PairedImages(dataroot_gt=gt, dataroot_lq=lq, scale=scale)
    return sets


def _benchmark_sets(scale: int, say: Say) -> ImageSets:
    ways = (
        "Give folders of gt images, `--data FOLDER ...`, or put the usual sets where datasets/README.md says and "
        f"begin in the folder that holds `datasets`; an {BENCHMARK} of yours names others."
    )
    file = BENCHMARK if BENCHMARK.is_file() else shipped.file(str(BENCHMARK))
    say(f"No --data is given: the test sets are those of {file}.")
    options = load_options(file, kind="test")
    sets: ImageSets = {}
    for key, section in options.datasets.evaluation.items():
        name = section.name or key
        if isinstance(section, EvalSetOptions) and not Path(section.dataroot_gt).is_dir():
            say(f"Left out, as it is not here: {name} ({section.dataroot_gt}).")
        else:
            sets[name] = build.build_image_set(section, scale, phase="test")
    if not sets:
        raise MtkdError(f"There are no images to measure on: of the sets of {file} none is here. {ways}")
    return sets


def _folder_name(found: Sequence[_Target], scale: int) -> str:
    name = found[0].name.replace(" ", "_") if len(found) == 1 else f"comparison_x{scale}"
    try:
        given.check_name(name)
    except MtkdError:
        return f"test_x{scale}"
    return name


def _places(images: PairedImages | ItemImages) -> dict[str, Any]:
    if not isinstance(images, PairedImages):
        return {"images": len(images)}
    lq = "MATLAB's bicubic" if images.dataroot_lq is None else str(images.dataroot_lq)
    return {"images": len(images), "gt": str(images.dataroot_gt), "lq": lq}
