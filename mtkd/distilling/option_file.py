"""The option file of a distillation, as a mapping, and written out with comments for whoever goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtkd.config import yaml_loader
from mtkd.distilling.parts import Parts
from mtkd.distilling.request import Request
from mtkd.distilling.student import BATCH, Student, loss_terms
from mtkd.distilling.teachers import Teacher
from mtkd.runtime.run_folder import DISTILLED

RUN = DISTILLED
"""Name of the run, of its folder, and of its row in tables."""
_LARGE = 1 << 19
"""lq pixels of an image from which on it is measured in tiles."""

_COMMENTS = {
    "name": "",
    "datasets": (
        "The photographs stay where they are; the lists name those that are used. Where there is no dataroot_lq, lq\n"
        "is made of gt by MATLAB's bicubic. gt_size is the side of the crops that are trained on."
    ),
    "network_g": "The student, a name of `mtkd list archs`, or written out as {type: ..., ...}.",
    "teachers": (
        "What it imitates: the image of the teacher, of several their mean. Their answers to the photographs are made\n"
        "once, by `mtkd teach -opt THIS_FILE`, and kept in target_store."
    ),
    "path": "Where it begins and where it writes.",
    "train": (
        "Adam with a cosine that ends with the run, and the loss of recipe:MTKD/stage2_best: the teachers' image by\n"
        "pixel and by its detail bands, without ground truth (no pixel_opt). In tuning the pixels alone are as good.\n"
        "For more training, raise total_iter and periods together."
    ),
    "val": "Measured on photographs that are not trained on, on Y, without a border of `scale` pixels.",
    "logger": "",
}
"""What stands above a section of the file; its keys begin a block each."""


def plain_options(
    request: Request,
    parts: Parts,
    places: Mapping[str, Mapping[str, Any]],
    student: Student,
    teachers: list[Teacher],
    *,
    store: Path,
    root: Path | None = None,
    name: str = RUN,
) -> dict[str, Any]:
    """The option file of `request`, one iteration long; `with_length` sets another length.

    Args:
        places: of `write_parts`.
        store: the targets.
        root: the folder of the folders of run and results; None for the usual ones.
    """
    sets = {"train": {"name": "photographs", "type": "PairedImageDataset", **places["train"]}}
    sets["train"] |= {"gt_size": parts.crop, "batch_size_per_gpu": BATCH, "use_hflip": True, "use_rot": True}
    sets["val"] = {"name": "validation", "type": "PairedImageDataset", **places["validation"]}
    metric = {"crop_border": request.scale, "test_y_channel": True}
    val: dict[str, Any] = {"metrics": {key: {"type": f"calculate_{key}", **metric} for key in ("psnr", "ssim")}}
    largest = max(piece.pixels for piece in parts.validation) / request.scale**2
    if largest > _LARGE and all(teacher.net is not None for teacher in teachers):
        val["tile"] = {"tile_size": 256, "tile_pad": 32}
    path = {"pretrain_network_g": student.start} if student.start else {}
    if root is not None:
        path |= {"experiments_root": str(root), "results_root": str(root / "results")}
    plain = {
        "name": name,
        "model_type": "MTKD",
        "scale": request.scale,
        "num_gpu": 0 if request.device == "cpu" else "auto",
        "manual_seed": request.seed,
        "datasets": sets,
        "network_g": student.name,
        "teachers": {teacher.name: teacher.section for teacher in teachers},
        **({"fusion": "mean"} if len(teachers) > 1 else {}),
        "target_store": str(store),
        **({"path": path} if path else {}),
        "train": {
            "optim_g": {"type": "Adam", "lr": student.rate, "betas": [0.9, 0.99]},
            "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [1], "eta_min": 1e-6},
            "warmup_iter": -1,
            "total_iter": 1,
            **loss_terms(),
        },
        "val": val,
        "logger": {},
    }
    return with_length(plain, 1)


def with_length(plain: Mapping[str, Any], iterations: int) -> dict[str, Any]:
    """`plain` for so many iterations: the schedule, and how often it is logged, validated and saved."""
    train = {**plain["train"], "total_iter": iterations, "warmup_iter": min(50, iterations // 10) or -1}
    train["scheduler"] = {**train["scheduler"], "periods": [iterations]}
    logger = {"print_freq": max(iterations // 20, 1), "save_checkpoint_freq": max(iterations // 10, 1), "keep_last": 2}
    return {**plain, "train": train, "val": {**plain["val"], "val_freq": max(iterations // 5, 1)}, "logger": logger}


def option_text(plain: Mapping[str, Any], command: str) -> str:
    """The file's text: YAML with a comment above each block; it is the user's own from then on.

    Args:
        command: that wrote it.
    """
    head = [
        "# An own student of own photographs. Change what you like; docs/options.md tells of every key. Written by",
        f"#   {command}",
    ]
    blocks: list[list[str]] = []
    for key, value in plain.items():
        if key in _COMMENTS or not blocks:
            comment = _COMMENTS.get(key, "")
            blocks.append([f"# {line}" for line in comment.splitlines()])
        text = yaml_loader.dump({key: value}).rstrip()
        # A mapping of single values comes in braces.
        blocks[-1].append(text if isinstance(value, dict) else text[1:-1])
    return "\n\n".join(["\n".join(head), *("\n".join(block) for block in blocks)]) + "\n"
