"""Prepare a run: everything that can fail is built and tried here, before the first iteration.

The order matters. Each seed is set just before what it seeds. Blocks of `together` hold what may fail on one process
alone, so that no other process waits for it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from mtkd import build
from mtkd.build import names_of_set
from mtkd.config import ItemTrainSetOptions, Options
from mtkd.contracts import MtkdError, Task
from mtkd.data.foreign import ForeignImages, ForeignSampler
from mtkd.data.kept import learn_sets
from mtkd.data.paired import PairedImages
from mtkd.data.sampling import CropSampler
from mtkd.inference.evaluate import build_metrics
from mtkd.inference.preflight import raise_if_any, try_images, try_metrics, try_output, try_teacher
from mtkd.methods.base import Frozen, Method
from mtkd.runtime.device import move, set_backends
from mtkd.runtime.launch import launch, together
from mtkd.runtime.run_folder import RunFolder
from mtkd.training import checkpoint, preflight, resume
from mtkd.training.best import restore_best
from mtkd.training.claim import Claim, claim
from mtkd.training.data import TrainingData, open_data
from mtkd.training.ema import Ema
from mtkd.training.log import RunLog, trim_metrics
from mtkd.training.loss_trace import LossTrace
from mtkd.training.optim import LearningRate, build_optimizer, learning_rate
from mtkd.training.record import record
from mtkd.training.run import Run

ValidationSets = dict[str, PairedImages | ForeignImages]


def prepare(options: Options, *, auto_resume: bool = False, launcher: str = "none") -> Run:
    """Build and check everything of a run. Its folder is made and locked first; close the run to release it.

    Raises:
        MtkdError: anything a user can mend. A start that fails leaves nothing behind.
    """
    if not options.is_train or options.datasets.train is None:
        raise MtkdError("Training needs the sections `train` and `datasets.train` in the option file.")
    raise_if_any([*preflight.try_packages(options), *preflight.try_optimizers(options)])
    fabric = launch(launcher, num_gpu=options.num_gpu, precision=options.precision)
    folder = RunFolder(Path(options.path.experiments_root) / options.name)
    held: Claim | None = None
    state_path: Path | None = None
    notices: list[str] = []
    try:
        with together(fabric):
            if fabric.is_global_zero:
                resuming = auto_resume or bool(options.path.resume_state)
                held = claim(folder, options.name, resuming=resuming)
                state_path, notices = resume.state_to_resume(options, folder, auto_resume)
        state_path = fabric.broadcast(state_path)
        return _prepared(options, fabric, folder, held, state_path, notices)
    except BaseException:
        if held is not None:
            held.release()
        raise


def _prepared(
    options: Options,
    fabric: Fabric,
    folder: RunFolder,
    held: Claim | None,
    state_path: Path | None,
    notices: list[str],
) -> Run:
    with together(fabric):
        saved = checkpoint.load_state(state_path) if state_path else {}
    seed = fabric.broadcast(_seed(options, saved))
    options = options.model_copy(update={"manual_seed": seed})
    with together(fabric):
        run = _built(options, fabric, folder, held, seed, from_weights=state_path is None)
    wrapped, *ready = fabric.setup(run.method, *run.optimizers.values())
    run = replace(run, wrapped=wrapped, optimizers=dict(zip(run.optimizers, ready, strict=True)))
    with together(fabric):
        if state_path is not None:
            notices = [*notices, *resume.restore(run, saved, state_path)]
            run.state.saved = run.state.start if state_path.parent == folder.states else 0
            if fabric.is_global_zero:
                notices += restore_best(run, RunFolder(state_path.parent.parent))
        # Open the log last: its rows are dropped from the iteration on that the run starts at.
        run = replace(run, log=_open_log(run), notices=tuple(notices))
    return run


def _seed(options: Options, saved: dict[str, Any]) -> int:
    """The file's seed, else that of the run being resumed, else one drawn from 1 to 10000."""
    if options.manual_seed is not None:
        return options.manual_seed
    # Not torch's generator: it starts with the same seed in every process.
    return saved.get("seed", random.SystemRandom().randint(1, 10000))


def _built(
    options: Options, fabric: Fabric, folder: RunFolder, held: Claim | None, seed: int, *, from_weights: bool
) -> Run:
    """The run of this process, not yet joined with others: nothing here may wait for them.

    Args:
        from_weights: start from path.pretrain_network_g where it is given; False when a training state brings weights.
    """
    set_backends(tf32=options.tf32, deterministic=options.deterministic)
    data = open_data(options, seed)
    method = _build_method(options, data, seed)
    known = record(options, fabric.world_size, data, {name: teacher.net for name, teacher in method.teachers.items()})
    _check_method(options, method, data)
    if from_weights:
        _load_start(options, method)
    _move(method, fabric.device, _memory_format(options))
    decay = options.training.ema_decay
    ema = Ema(method.student, decay) if decay else None
    optimizers, rates = _build_optimizers(options, method)
    sampler = _build_sampler(options, data, seed, fabric)
    val_sets = build.build_image_sets(options)
    _try_parts(options, method, val_sets, fabric)
    return Run(
        options=options,
        fabric=fabric,
        folder=folder,
        seed=seed,
        method=method,
        wrapped=method,
        optimizers=optimizers,
        rates=rates,
        sampler=sampler,
        ema=ema,
        log=RunLog(None, name=options.name),
        val_sets=val_sets,
        metrics=build_metrics(options.val.metrics),
        num_samples=data.num_samples,
        record=known,
        trace=LossTrace(fabric),
        held=held,
    )


def _build_method(options: Options, data: TrainingData, seed: int) -> Method:
    """The method with its student and teachers, on the CPU."""
    task = Task(scale=options.scale, num_samples=data.num_samples, total_steps=options.training.total_iter)
    torch.manual_seed(seed)
    student = build.build_network(options.network_g, options.scale)
    teachers = build.build_teachers(options, stored=data.targets is not None)
    # Teachers draw initial weights before theirs are loaded. Seed again, so that the method's do not depend on them.
    torch.manual_seed(seed + 1)
    return build.build_method(options, student, teachers, task, teacher_precision=options.teacher_precision)


def _check_method(options: Options, method: Method, data: TrainingData) -> None:
    if not method.active:
        raise MtkdError(
            f"No loss is active for {options.model_type}: give at least one of "
            f"{', '.join(f'train.{name}_opt' for name in method.terms)}."
        )
    if method.teacher_use == "image" and data.targets is None and not method.takes_several_teachers(options.method):
        method.require_teachers(exactly=1)


def _load_start(options: Options, method: Method) -> None:
    """Load path.pretrain_network_g, where the option file names it, into the student."""
    path = options.path
    if path.pretrain_network_g:
        facts = build.load_weights(
            method.student, path.pretrain_network_g, key=path.param_key_g, strict=path.strict_load_g
        )
        method.check_metadata(facts)


def _memory_format(options: Options) -> torch.memory_format:
    return torch.channels_last if options.channels_last else torch.contiguous_format


def _move(method: Method, device: torch.device, memory_format: torch.memory_format) -> None:
    move(method, device, memory_format)
    for buffer in method.buffers():
        # DDP's broadcast refuses a (1, C, 1, 1) buffer with the strides of channels_last.
        buffer.data = buffer.detach().clone(memory_format=torch.contiguous_format)


def _build_optimizers(
    options: Options, method: Method
) -> tuple[dict[str, torch.optim.Optimizer], dict[str, LearningRate]]:
    settings, optimizers, rates = options.training, {}, {}
    for name, parameters in method.param_groups().items():
        given = settings.optim_g if name == "main" else settings.optim_d
        if given is None:
            key = "optim_g" if name == "main" else "optim_d"
            raise MtkdError(f"{options.model_type} trains a {name} group: give train.{key} (type, lr, ...).")
        optimizers[name] = build_optimizer(parameters, given.model_dump())
        scheduler = settings.scheduler.model_dump() if settings.scheduler else None
        rates[name] = learning_rate(given.lr, scheduler, settings.warmup_iter)
    if options.precision == "fp16" and len(optimizers) > 1:
        raise MtkdError(
            f"{options.model_type} trains {len(optimizers)} groups of parameters with an optimizer each, and one fp16 "
            "loss scale cannot serve them all. Use `precision: bf16`."
        )
    return optimizers, rates


def _build_sampler(options: Options, data: TrainingData, seed: int, fabric: Fabric) -> CropSampler | ForeignSampler:
    train_set = options.train_set
    sampler_settings: dict[str, Any] = {
        "batch_size": train_set.batch_size_per_gpu,
        "rank": fabric.global_rank,
        "world_size": fabric.world_size,
        "device": fabric.device,
        "memory_format": _memory_format(options),
        "workers": train_set.num_worker_per_gpu,
    }
    if isinstance(train_set, ItemTrainSetOptions):
        assert data.items is not None
        return ForeignSampler(data.items, **sampler_settings)
    assert data.images is not None
    return CropSampler(
        lq=data.images.lq,
        gt=data.images.gt,
        target=data.targets,
        answers=data.answers,
        scale=options.scale,
        gt_size=train_set.gt_size,
        use_hflip=train_set.use_hflip,
        use_rot=train_set.use_rot,
        seed=seed,
        residence=train_set.residence,
        color=options.color,
        **sampler_settings,
    )


def _try_parts(options: Options, method: Method, val_sets: ValidationSets, fabric: Fabric) -> None:
    """Run every network once, and on rank 0 read every validation image and try every metric."""
    for name, teacher in method.teachers.items():
        assert isinstance(teacher, Frozen)
        try_teacher(options, teacher.net, name)
    predictor = method.predictor(method.student)
    try_output(options, predictor, options.network_g.type)
    learn_sets(predictor, {names_of_set(options, key): images for key, images in val_sets.items()})
    if fabric.is_global_zero:
        raise_if_any([*try_images(options, val_sets), *try_metrics(options, val_sets, device=fabric.device)])


def _open_log(run: Run) -> RunLog:
    """Make the folders of the run, drop what a resumed run logs again, and open its log."""
    options, folder, start = run.options, run.folder, run.state.start
    if run.fabric.is_global_zero:
        folder.make()
        trim_metrics(folder.metrics, start, losses_due=run.losses_due, validation_due=run.state.validation_due)
    logger = options.logger
    return RunLog(
        folder.root,
        name=options.name,
        total_steps=run.method.task.total_steps,
        start=start,
        rank=run.fabric.global_rank,
        tensorboard=folder.root.parent.parent / "tb_logger" / options.name if logger.use_tb_logger else None,
        wandb=logger.wandb.model_dump() if logger.wandb else None,
    )
