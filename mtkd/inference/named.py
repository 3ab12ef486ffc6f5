"""The run folders, weights files and zoo entries that a user names for `mtkd test`, and their networks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal, TypeAlias

from torch import nn

from mtkd import build, catalog, zoo
from mtkd.archs.ensemble import FusedTeacher
from mtkd.config import Options, PathOptions, load_options
from mtkd.contracts import MtkdError
from mtkd.inference import hub
from mtkd.inference.baselines import Teachers
from mtkd.inference.results import Subject, describe
from mtkd.methods.base import Method
from mtkd.runtime import given
from mtkd.runtime.names import closest
from mtkd.runtime.run_folder import BEST, DISTILLED, LATEST, RunFolder

Which: TypeAlias = Literal["latest", "best"]


@dataclass(frozen=True)
class Target:
    """A target: a run (its options, as a test of its weights), a file (its network), or a zoo entry (only its name and
    scale; it is not fetched yet).
    """

    spec: str
    name: str
    scale: int
    options: Options | None = None
    total_iter: int | None = None
    net: nn.Module | None = None


def check_once(targets: Sequence[str]) -> Sequence[str]:
    """`targets`, unless one is named twice, by whatever path, which is an MtkdError."""
    places = [os.path.realpath(spec) if os.path.exists(spec) else spec for spec in targets]
    for number, spec in enumerate(targets):
        if places[number] in places[:number]:
            raise MtkdError(f"{spec} is named twice. Name it once.")
    return targets


def find_target(spec: str, *, which: Which = "latest") -> Target:
    """What `spec` names. A file is read and its network built; a zoo entry is not fetched yet.

    Args:
        which: of the weights in a run folder: "latest", those that ended it, or "best", those of its best validation.

    Raises:
        MtkdError: nothing has that name, or it does not describe its network.
    """
    if spec.startswith("zoo:") or (zoo.is_shipped(spec) and not Path(spec).exists()):
        entry = zoo.entry(spec)
        if entry.scale is None:
            raise MtkdError(f"{spec} does not enlarge images; `mtkd zoo list` shows what each entry is for.")
        return Target(spec, entry.name, entry.scale)
    if spec.startswith(hub.PREFIX):
        return _file(spec, hub.fetch(spec))
    path = given.path(spec)
    if path.is_dir():
        return _run(spec, path, which)
    if path.suffix.lower() in (".yml", ".yaml"):
        raise MtkdError(f"{spec} looks like an option file. Use `mtkd test -opt {spec}`.")
    if not path.exists():
        if spec in zoo.ENTRIES:
            also = f" The zoo's weights of that name are zoo:{spec}."
        else:
            near = closest(spec, zoo.ENTRIES)
            also = f" Did you mean {' or '.join(f'zoo:{name}' for name in near)}?" if near else ""
        raise MtkdError(f"There is no run folder or weights file {spec}.{also}")
    return _file(spec, path)


def _run(spec: str, path: Path, which: Which) -> Target:
    """The run in folder `path`: `net_g_latest.pth`, which ends a run, or the newest weights of one that goes on; or
    `net_g_best.pth`.
    """
    described = path / "resolved.yml"
    if not described.is_file() and (path / DISTILLED / "resolved.yml").is_file():
        path = path / DISTILLED
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
    if which == "best":
        weights = folder.model(BEST)
        if not weights.is_file():
            raise MtkdError(
                f"{path} holds no best weights, models/{weights.name}: it was trained without validation or with "
                "`logger.save_best: false`. Leave --which out for its latest."
            )
    # param_key_g and strict_load_g of the file describe the weights that the run started from, not its own.
    own = PathOptions(pretrain_network_g=str(weights))
    tested = options.model_copy(update={"train": None, "path": own})
    train = options.train
    # A run that may end early is finished when it has its last file.
    unfinished = train is not None and not (train.early_stop and folder.model(LATEST).is_file()) and which == "latest"
    total = train.total_iter if train is not None and unfinished else None
    return Target(spec, path.resolve().name, options.scale, options=tested, total_iter=total)


def _file(spec: str, path: Path) -> Target:
    if path.suffix.lower() == ".onnx":
        # By name, so that nothing else needs onnxruntime.
        net = import_module("mtkd.export.onnx_network").OnnxNetwork(path)
        return Target(spec, path.stem, net.scale, net=net)
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
        raise MtkdError(f"{path} holds a {type(net).__name__}, whose scale is unknown. Describe it in an option file.")
    short = (
        f"{path.absolute().parent.parent.name} {path.stem}" if path.absolute().parent.name == "models" else path.stem
    )
    return Target(spec, short, scale, net=net)


def networks_of(found: Sequence[Target], *, teachers: bool, advice: str = "") -> list[Subject]:
    """The networks of `found`, after the teachers of those that are runs; of a test without weights only its teachers.

    Raises:
        MtkdError: weights are missing or do not fit; `advice` follows what is said of a teacher's.
    """
    names = [target.name for target in found]
    groups: dict[str, Teachers] = {}
    subjects = []
    for target in found:
        name = target.name if names.count(target.name) == 1 else target.spec
        subject = _own(target, name)
        if teachers and target.options is not None and target.options.teachers:
            try:
                subject = _among_teachers(subject, target.options, name, groups)
            except MtkdError as error:
                raise MtkdError(f"{error}{advice}") from error
        subjects += [subject] if subject is not None else []
    several = len(groups) > 1
    return [*(row for group in groups.values() for row in group.rows(several=several)), *subjects]


def _own(target: Target, name: str) -> Subject | None:
    """The network of `target`; None where its options name no weights of one."""
    if target.options is None:
        net, weights = target.net or zoo.build(target.spec), target.spec
    elif target.options.path.pretrain_network_g is None:
        return None
    else:
        net, weights = build.output_network(target.options), target.options.path.pretrain_network_g
    subject = describe(name, net, weights=weights)
    iteration = subject.origin.iteration if subject.origin else None
    if target.total_iter is not None and iteration is not None and iteration < target.total_iter:
        return replace(subject, note=f"its run is not finished, which has {target.total_iter:,d} iterations")
    return subject


def _among_teachers(
    subject: Subject | None, options: Options, name: str, groups: dict[str, Teachers]
) -> Subject | None:
    """`subject`, on what its teachers have answered where it fuses them; `groups` gets the teachers of `options`."""
    key = json.dumps([(teacher, one.model_dump()) for teacher, one in options.teachers.items()], default=str)
    if subject is not None and isinstance(own := subject.net, FusedTeacher):
        group = groups.setdefault(key, Teachers(dict(own.ensemble.members.items()), name))
        return replace(subject, net=group.behind(own), bare=own)
    members, fused = build.build_ensemble(options)
    group = groups.setdefault(key, Teachers(members, name))
    if fused is not None:
        group.add_fusion(fused, name)
    return subject


def unique(subjects: Sequence[Subject]) -> list[Subject]:
    """`subjects`, renamed where two have one name."""
    unique: dict[str, Subject] = {}
    for subject in subjects:
        name, number = subject.name, 1
        while name in unique:
            number += 1
            name = f"{subject.name} ({number})"
        unique[name] = replace(subject, name=name)
    return list(unique.values())
