"""The strict reading of an option file: every problem is found, named by file, line and key, and reported at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mtkd.config import basicsr_models, layers
from mtkd.config.basicsr_keys import IGNORED_AT_TOP, apply_debug
from mtkd.config.problems import KeyPath, OptionError, Origin, Problem, in_order_of_the_file
from mtkd.config.read.arguments import lookup
from mtkd.config.read.datasets import read_datasets
from mtkd.config.read.edits import apply_force, filled
from mtkd.config.read.folders import read_logger, read_path
from mtkd.config.read.methods import check_effects, check_teachers, read_method
from mtkd.config.read.networks import check_luma, read_fusion, read_teachers, read_tested
from mtkd.config.read.reader import Reader, is_training_file, keys_of
from mtkd.config.read.training import check_curriculum, check_early_stop, check_gt, read_training
from mtkd.config.read.validation import read_validation
from mtkd.config.schema import Head, Options
from mtkd.config.yaml_nodes import Document

Kind = Literal["train", "test"]


def load_options(
    path: str | Path,
    *,
    force: Sequence[str] = (),
    scale: int | None = None,
    debug: bool = False,
    check: bool = True,
    kind: Kind | None = None,
) -> Options:
    """Options of the YAML file at `path`, laid over its `base`, with the scale in place of `{scale}`.

    Args:
        path: a file in the dialect of `mtkd.config.yaml_loader`.
        force: `a:b=VALUE` items that replace or add values, VALUE in YAML (BasicSR's `--force_yml`).
        scale: the same as the item `scale=N`, after the others.
        debug: BasicSR's debug run, see `basicsr_keys.apply_debug`. A name that holds "debug" means the same.
        check: look names up in the catalog and check arguments against the signatures found; without it only the
            file's own shape is checked, terms that it does not name are left out, and so is a metric's `better`.
        kind: what the file must be, a training file (it has `datasets.train`) or a test file.

    Raises:
        OptionError: lists everything that is wrong. Missing files are not looked for: `mtkd check --data` does.
            Weights are read only where they exist and have to say which network they are of.
    """
    force = force if scale is None else [*force, f"scale={scale}"]
    return _read(layers.load(path), force, debug=debug, check=check, kind=kind)


def make_options(data: Mapping[str, Any], *, file: str = "options", debug: bool = False, check: bool = True) -> Options:
    """`load_options` for a mapping in memory, which is not changed; `file` stands in the messages."""
    return _read(Document(json.loads(json.dumps(data, default=str)), file), (), debug=debug, check=check)


def _read(document: Document, force: Sequence[str], *, debug: bool, check: bool, kind: Kind | None = None) -> Options:
    reader = _reader(document, force, debug=debug, check=check)
    if kind == "train" and not reader.is_train:
        reader.problem(
            ("datasets",),
            "has no `train` set: this is a test file, and a training file is expected. `mtkd test -opt FILE` takes it.",
        )
    if kind == "test" and reader.is_train:
        reader.problem(
            ("datasets",),
            "has a `train` set: this is a training file, and a test file is expected. `mtkd train -opt FILE` takes it; "
            "the run that it makes is measured by its folder, `mtkd test experiments/NAME`.",
        )
    _read_model_of_basicsr(reader)
    top = {key: value for key, value in reader.data.items() if _is_known(reader, key)}
    if isinstance(top.get("model_type"), str) and "+" in top["model_type"]:
        top["model_type"] = " + ".join(name.strip() for name in top["model_type"].split("+"))
    head = reader.section(Head, {key: top[key] for key in top if key in Head.model_fields}, ())
    scale = top.get("scale")
    # What the sections are read with, even where another key of the head is wrong.
    reader.scale = head.scale if head else scale if isinstance(scale, int) else None
    reader.model_type = top.get("model_type", Head.model_fields["model_type"].default)
    if isinstance(reader.model_type, str):
        reader.method = lookup(reader, "method", reader.model_type, ("model_type",))
    datasets = read_datasets(reader, top.get("datasets"))
    path = read_path(reader, top.get("path"))
    network_g = read_tested(reader, top.get("network_g"), path.pretrain_network_g)
    teachers = read_teachers(reader, top.get("teachers"))
    fusion = read_fusion(reader, top.get("fusion"))
    target_store = reader.file_path(top.get("target_store"), ("target_store",))
    method = read_method(reader, top.get("method"))
    train = read_training(reader, top.get("train"))
    val = read_validation(reader, top.get("val"))
    logger = read_logger(reader, top.get("logger"))
    check_teachers(reader, method, has_store=target_store is not None)
    check_curriculum(reader, train, datasets)
    check_early_stop(reader, train, val, datasets)
    check_gt(reader, train, datasets)
    check_luma(reader, network_g, datasets)
    check_effects(reader, method, train, datasets, has_store=target_store is not None)
    if head is None or reader.problems:
        raise OptionError(in_order_of_the_file(reader.problems, document.file))
    options = Options(
        **dict(head),
        datasets=datasets,
        network_g=network_g,
        teachers=teachers,
        fusion=fusion,
        target_store=target_store,
        method=method,
        path=path,
        train=train,
        val=val,
        logger=logger,
        file=document.file,
        notices=reader.all_notices(),
    )
    options._origin = reader.origin
    return options


def _reader(document: Document, force: Sequence[str], *, debug: bool, check: bool) -> Reader:
    """A reader of the document's values, after everything that changes them."""
    data = document.data
    if not isinstance(data, dict):
        raise OptionError([Problem(document.file, None, "", "an option file is a mapping, `key: value` lines.")])
    forced: list[KeyPath] = []
    problems: list[Problem] = []
    for item in force:
        found = apply_force(data, item)
        if isinstance(found, tuple):
            forced.append(found)
        else:
            problems += found
    origin = Origin(document.file, document.lines, frozenset(forced), document.files)
    data = filled(data, origin)
    apply_debug(data, debug=debug, is_train=is_training_file(data))
    return Reader(data, origin, problems, check=check)


def _read_model_of_basicsr(reader: Reader) -> None:
    """Report once that the file is of another kind, and not each of its keys as unknown; test generators of GANs as
    the plain networks that they are.
    """
    name = reader.data.get("model_type")
    if not isinstance(name, str):
        return
    if not reader.is_train and name in basicsr_models.GENERATORS:
        reader.data["model_type"] = basicsr_models.TESTED_AS
        reader.data.pop("network_d", None)
        reader.notices.append(f"model_type {name}: its network_g is tested as a plain network of images.")
    elif (why := basicsr_models.refusal(name)) is not None:
        raise OptionError([reader.origin.problem(("model_type",), why)])


def _is_known(reader: Reader, key: str) -> bool:
    """Whether a top-level key is one of ours; if not, it is noted or reported."""
    valid = keys_of(Options)
    if key in IGNORED_AT_TOP:
        reader.ignore_basicsr_key((key,))
    elif key == layers.BASE:
        reader.problem((key,), "has no effect here. Only the option file itself can name its base. Write it there.")
    elif key not in valid:
        reader.unknown((key,), valid)
    else:
        return True
    return False
