"""A prepared run: everything that can fail is built and checked here, before the first iteration."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from mtkd import build
from mtkd.config import ItemTrainSetOptions, Options, resolved_yaml
from mtkd.contracts import Batch, MtkdError, Task
from mtkd.data.items import ItemImages, ItemSampler
from mtkd.data.paired import PairedImages
from mtkd.data.sampling import CropSampler
from mtkd.inference.evaluate import MetricFunction, build_metrics
from mtkd.inference.preflight import raise_if_any, try_images, try_metrics, try_output
from mtkd.methods.base import Frozen, Method
from mtkd.runtime.device import set_backends
from mtkd.runtime.environment import environment
from mtkd.runtime.launch import launch, together
from mtkd.runtime.progress import Progress
from mtkd.runtime.run_folder import LATEST, RunFolder
from mtkd.targets.store_check import open_targets, open_training_images
from mtkd.training import checkpoint, preflight, resume
from mtkd.training.claim import Claim, claim
from mtkd.training.ema import Ema
from mtkd.training.log import RunLog, trim_metrics
from mtkd.training.loss_trace import LossTrace
from mtkd.training.optim import LearningRate, build_optimizer, learning_rate


@dataclass
class Session:
    """Everything a run consists of, ready to step.

    Attributes:
        record: what a training state keeps of the run, see `resume.record`.
        trace: losses that have not been logged yet.
        held: the claim on the run folder; None on ranks other than 0.
        notices: lines for the log, beside those of `options`.
        start: iteration that this process goes on from.
        done: iterations that are complete.
        saved: iteration of the newest checkpoint in the folder; 0 for none.
        stepping: optimizers are moving the weights, which belong to no iteration meanwhile.
        validation_due: iteration `done` is still to be validated. A checkpoint is saved before its validation and
            `amend`ed after it; a run that is killed or fails in between validates first when it is resumed.
        student_copy: what is validated in the student's stead when it is compiled for images and there is no EMA.
        images_compile: False once `val.compile` has failed, so that it is not tried at every validation.
    """

    options: Options
    fabric: Fabric
    folder: RunFolder
    seed: int
    method: Method
    wrapped: nn.Module
    optimizers: dict[str, Any]
    rates: dict[str, LearningRate]
    sampler: CropSampler | ItemSampler
    ema: Ema | None
    log: RunLog
    val_sets: dict[str, PairedImages | ItemImages]
    metrics: dict[str, MetricFunction]
    num_samples: int
    record: dict[str, Any]
    trace: LossTrace
    held: Claim | None = None
    notices: list[str] = field(default_factory=list)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    start: int = 0
    done: int = 0
    saved: int = 0
    stepping: bool = False
    validation_due: bool = False
    student_copy: Ema | None = None
    images_compile: bool = True

    @property
    def losses_due(self) -> bool:
        """Whether the losses of iteration `start` are still to be logged: the run failed before its line was."""
        return self.trace.waiting and self.start % self.options.logger.print_freq == 0

    def epoch(self, done: int) -> int:
        """Passes over the training images that `done` iterations have begun, on all ranks together."""
        assert self.options.train is not None and self.options.datasets.train is not None
        batch = self.options.datasets.train.batch_size_per_gpu * self.options.train.accumulate
        return done * batch * self.fabric.world_size // self.num_samples

    def close(self) -> None:
        """End the log and give the run folder free; a run that has trained nothing takes its folder away."""
        try:
            self.log.close()
        finally:
            if self.held is not None:
                self.held.release()

    def label(self, key: str) -> str:
        """What the screen calls the validation set `key`: its `name`, with the key where several have that name."""
        sets = self.options.datasets.evaluation
        name = sets[key].name or key
        return name if sum(given.name == sets[key].name for given in sets.values()) == 1 else f"{name} ({key})"

    def batches(self) -> Iterator[Batch]:
        """Training batches from iteration `start` on, `train.accumulate` for each iteration."""
        assert self.options.train is not None
        every, curriculum = self.options.train.accumulate, self.options.train.curriculum
        gt_size = (lambda k: curriculum.gt_size_at(k // every)) if curriculum else None
        return self.sampler.batches(self.start * every, self.options.train.total_iter * every, gt_size)


def prepare(options: Options, *, auto_resume: bool = False, launcher: str = "none") -> Session:
    """Build and check everything of a run. Its folder is made and locked first; close the session to give it free.

    Raises:
        MtkdError: anything a user can mend. A start that fails leaves nothing behind.
    """
    if options.train is None or options.datasets.train is None:
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
        session = _prepared(options, fabric, folder, held, state_path)
    except BaseException:
        if held is not None:
            held.release()
        raise
    session.notices[:0] = notices
    return session


def _prepared(
    options: Options, fabric: Fabric, folder: RunFolder, held: Claim | None, state_path: Path | None
) -> Session:
    with together(fabric):
        state = checkpoint.load_state(state_path) if state_path else {}
    seed = fabric.broadcast(_seed(options, state))
    options = options.model_copy(update={"manual_seed": seed})
    with together(fabric):
        session = _built(options, fabric, folder, held, seed, from_weights=state_path is None)
    session.wrapped, *ready = fabric.setup(session.method, *session.optimizers.values())
    session.optimizers = dict(zip(session.optimizers, ready, strict=True))
    with together(fabric):
        if state_path is not None:
            session.notices += resume.restore(session, state, state_path)
            session.saved = session.start if state_path.parent == folder.states else 0
        if fabric.is_global_zero:
            folder.make()
            trim_metrics(
                folder.metrics,
                session.start,
                losses_due=session.losses_due,
                validation_due=session.validation_due,
            )
        logger, total_steps = options.logger, session.method.task.total_steps
        session.log = RunLog(
            folder.root,
            name=options.name,
            total_steps=total_steps,
            start=session.start,
            rank=fabric.global_rank,
            tensorboard=folder.root.parent.parent / "tb_logger" / options.name if logger.use_tb_logger else None,
            wandb=logger.wandb.model_dump() if logger.wandb else None,
        )
    return session


def _built(
    options: Options, fabric: Fabric, folder: RunFolder, held: Claim | None, seed: int, *, from_weights: bool
) -> Session:
    """The session of this process before processes have met over it: nothing here may wait for others.

    Args:
        from_weights: start from path.pretrain_network_g where it is given; False when a training state brings weights.
    """
    assert options.train is not None and options.datasets.train is not None
    set_backends(tf32=options.tf32, deterministic=options.deterministic)
    train_set = options.datasets.train
    images = items = targets = None
    if isinstance(train_set, ItemTrainSetOptions):
        items = build.open_items(train_set, options.scale, phase="train", seed=seed)
    else:
        with Progress("decoding the training images", print) as decoding:
            images = open_training_images(options, decoding)
        targets = open_targets(options, images) if options.target_store else None
    num_samples = len(items if images is None else images.gt)  # pyright: ignore[reportArgumentType]
    total_steps = options.train.total_iter
    task = Task(scale=options.scale, num_samples=num_samples, total_steps=total_steps)

    torch.manual_seed(seed)
    student = build.build_network(options.network_g, options.scale)
    teachers = {} if targets is not None else build.build_teachers(options)
    # Teachers draw initial weights before theirs are loaded; the student's and the method's must not depend on them.
    torch.manual_seed(seed + 1)
    method = build.build_method(options, student, teachers, task, teacher_precision=options.teacher_precision)
    if not method.active:
        raise MtkdError(
            f"No loss is active for {options.model_type}: give at least one of "
            f"{', '.join(f'train.{name}_opt' for name in method.terms)}."
        )
    if method.teacher_use == "image" and targets is None and not method.takes_several_teachers(options.method):
        method.require_teachers(exactly=1)
    if from_weights and options.path.pretrain_network_g:
        facts = build.load_weights(
            student,
            options.path.pretrain_network_g,
            key=options.path.param_key_g,
            strict=options.path.strict_load_g,
        )
        method.check_metadata(facts)

    device = fabric.device
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    method.to(device).to(memory_format=memory_format)
    for buffer in method.buffers():
        # DDP's broadcast refuses a lone (1, C, 1, 1) buffer with the strides of channels_last.
        buffer.data = buffer.detach().clone(memory_format=torch.contiguous_format)
    ema = Ema(student, options.train.ema_decay) if options.train.ema_decay else None
    optimizers, rates = _optimizers(options, method)
    place: dict[str, Any] = {
        "batch_size": train_set.batch_size_per_gpu,
        "rank": fabric.global_rank,
        "world_size": fabric.world_size,
        "device": device,
        "memory_format": memory_format,
    }
    if isinstance(train_set, ItemTrainSetOptions):
        assert items is not None
        sampler = ItemSampler(items, workers=train_set.num_worker_per_gpu, **place)
    else:
        assert images is not None
        sampler = CropSampler(
            lq=images.lq,
            gt=images.gt,
            target=targets,
            scale=options.scale,
            gt_size=train_set.gt_size,
            use_hflip=train_set.use_hflip,
            use_rot=train_set.use_rot,
            seed=seed,
            residence=train_set.residence,
            workers=train_set.num_worker_per_gpu,
            **place,
        )
    val_sets = {
        name: build.build_image_set(given, options.scale) for name, given in options.datasets.evaluation.items()
    }
    for name, teacher in method.teachers.items():
        assert isinstance(teacher, Frozen)
        try_output(options, teacher.net, f"The teacher {name}")
    try_output(options, method.predictor(student), options.network_g.type)
    if fabric.is_global_zero:
        raise_if_any([*try_images(options, val_sets), *try_metrics(options, val_sets, device=device)])
    return Session(
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
        num_samples=num_samples,
        record=resume.record(options, fabric.world_size, images, items),
        trace=LossTrace(fabric),
        held=held,
    )


def save_weights(session: Session, step: int | str) -> None:
    """Write the weights file of iteration `step` (or "latest"); rank 0 only."""
    if not session.fabric.is_global_zero:
        return
    facts = build.network_facts(session.options) | build.plain(session.method.metadata())
    assert session.options.train is not None
    facts["iteration"] = session.options.train.total_iter if step == LATEST else step
    ema = session.ema.net if session.ema is not None else None
    checkpoint.save_weights(session.folder.model(step), session.method.student, ema, facts)


def save_deployable(session: Session) -> Path | None:
    """Write `models/deployable.pth` when a user deploys another network than was trained (CSD's narrow one), from EMA
    weights when there are any; None when the student itself is deployed.
    """
    method = session.method
    student = session.ema.net if session.ema is not None else method.student
    net = method.deployable(student)
    if net is student or not session.fabric.is_global_zero:
        return None
    facts = build.network_facts(session.options)
    facts["arch"] = build.plain(dict(method.deployable_arch(facts["arch"])))
    path = session.folder.models / "deployable.pth"
    checkpoint.save_weights(path, net, None, facts)
    return path


def save(session: Session, done: int) -> None:
    """Write the checkpoint of iteration `done`; every rank calls it. Weights first, then the state: a state on disk
    always has its weights.
    """
    pending = session.trace.pending()
    if session.fabric.is_global_zero:
        save_alone(session, done, pending)
    session.saved = done
    session.fabric.barrier()


def save_alone(session: Session, done: int, pending: dict[str, Any]) -> None:
    """What rank 0 does of `save`, without waiting for others."""
    save_weights(session, done)
    _save_state(session, done, pending)


def amend(session: Session, done: int) -> None:
    """Write the state of iteration `done` again, which has been validated since; every rank calls it."""
    session.validation_due = False
    pending = session.trace.pending()
    if session.fabric.is_global_zero:
        _save_state(session, done, pending)
    session.fabric.barrier()


def _save_state(session: Session, done: int, pending: dict[str, Any]) -> None:
    own = {key: value for key, value in session.method.state_dict().items() if not key.startswith("student.")}
    state = {
        "epoch": session.epoch(done),
        "iter": done,
        "optimizers": [optimizer.state_dict() for optimizer in session.optimizers.values()],
        "schedulers": [],
        "method": own,
        "precision": session.fabric._precision.state_dict(),
        "seed": session.seed,
        "best": session.best,
        "validation_due": session.validation_due,
        "losses": pending,
        "run": session.record,
    }
    checkpoint.atomic_save(state, session.folder.state(done))


def _seed(options: Options, state: dict[str, Any]) -> int:
    """The file's seed, else that of the run being resumed, else one drawn from BasicSR's range."""
    if options.manual_seed is not None:
        return options.manual_seed
    # Not torch's generator, which is seeded alike in every new process.
    return state.get("seed", random.SystemRandom().randint(1, 10000))


def _optimizers(options: Options, method: Method) -> tuple[dict[str, torch.optim.Optimizer], dict[str, LearningRate]]:
    assert options.train is not None
    optimizers, rates = {}, {}
    for name, parameters in method.param_groups().items():
        given = options.train.optim_g if name == "main" else options.train.optim_d
        if given is None:
            key = "optim_g" if name == "main" else "optim_d"
            raise MtkdError(f"{options.model_type} trains a {name} group: give train.{key} (type, lr, ...).")
        optimizers[name] = build_optimizer(parameters, given.model_dump())
        scheduler = options.train.scheduler.model_dump() if options.train.scheduler else None
        rates[name] = learning_rate(given.lr, scheduler, options.train.warmup_iter)
    if options.precision == "fp16" and len(optimizers) > 1:
        raise MtkdError(
            f"{options.model_type} trains {len(optimizers)} groups of parameters with an optimizer each, and one fp16 "
            "loss scale cannot serve them all. Use `precision: bf16`."
        )
    return optimizers, rates


def describe(session: Session, option_text: str | None, command: str | None) -> None:
    """Keep with the run what it was: the option file as written and as resolved, the command, versions, commit."""
    options, log = session.options, session.log
    if not session.fabric.is_global_zero:
        return
    root = session.folder.root
    if option_text is not None:
        header = f"# GENERATE TIME: {time.ctime()}\n# CMD:\n# {command or ' '.join(sys.argv)}\n\n"
        (root / f"{options.name}.yml").write_text(header + option_text, encoding="utf-8")
    (root / "resolved.yml").write_text(resolved_yaml(options), encoding="utf-8")
    facts = environment()
    (root / "environment.json").write_text(
        json.dumps({**facts, "command": command, "seed": session.seed}, indent=2) + "\n", encoding="utf-8"
    )
    for notice in [*options.notices, *session.notices]:
        log.say(notice)
    trainable = sum(p.numel() for p in session.method.student.parameters() if p.requires_grad)
    log.say(
        f"{options.name}: {options.model_type} x{options.scale}, student {options.network_g.type} with {trainable:,d} "
        f"parameters, {session.num_samples} training images, terms {', '.join(session.method.active)}, seed "
        f"{session.seed}, {facts['device']}"
    )
    if session.start:
        log.say(f"Resuming from iteration {session.start:,d}.")
