"""A prepared run: everything that can fail is built and checked here, before the first iteration."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from torch import nn

from mtkd import catalog, zoo
from mtkd.config import ItemSetOptions, ItemTrainSetOptions, Options, resolved_yaml
from mtkd.contracts import Batch, MtkdError, Task
from mtkd.data.items import ItemImages, Items, ItemSampler
from mtkd.data.paired import PairedImages
from mtkd.data.sampling import CropSampler
from mtkd.engine import build, checkpoint
from mtkd.engine.checkpoint import RunFolder
from mtkd.engine.ema import Ema
from mtkd.engine.evaluate import MetricFunction, build_metrics
from mtkd.engine.log import RunLog, environment, trim_metrics
from mtkd.engine.optim import LearningRate, build_optimizer, learning_rate
from mtkd.engine.progress import Progress
from mtkd.engine.targets import open_targets, open_training_images
from mtkd.methods.base import Method


@dataclass
class Session:
    """Everything a run consists of, ready to step.

    Attributes:
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
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    start: int = 0
    student_copy: Ema | None = None
    images_compile: bool = True

    def epoch(self, done: int) -> int:
        """Passes over the training images that `done` iterations have begun, on all ranks together."""
        assert self.options.train is not None and self.options.datasets.train is not None
        batch = self.options.datasets.train.batch_size_per_gpu * self.options.train.accumulate
        return done * batch * self.fabric.world_size // self.num_samples

    def batches(self) -> Iterator[Batch]:
        """Training batches from iteration `start` on, `train.accumulate` for each iteration."""
        assert self.options.train is not None
        every, curriculum = self.options.train.accumulate, self.options.train.curriculum
        gt_size = (lambda k: curriculum.gt_size_at(k // every)) if curriculum else None
        return self.sampler.batches(self.start * every, self.options.train.total_iter * every, gt_size)


def prepare(options: Options, *, auto_resume: bool = False, launcher: str = "none") -> Session:
    """Build and check everything of a run; the run folder is the last thing touched."""
    if options.train is None or options.datasets.train is None:
        raise MtkdError("Training needs the sections `train` and `datasets.train` in the option file.")
    if options.logger.wandb is not None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise MtkdError(
                "logger.wandb.project is set and wandb is not installed: `pip install wandb`, or ~."
            ) from error
    folder = RunFolder(Path(options.path.experiments_root) / options.name)
    state_path = _state_to_resume(options, folder, auto_resume)
    folder.check_new(resuming=auto_resume or state_path is not None)
    state = checkpoint.load_state(state_path) if state_path else {}

    fabric = _fabric(options, launcher)
    fabric.launch()
    seed = fabric.broadcast(_seed(options, state))
    options = options.model_copy(update={"manual_seed": seed})
    assert options.train is not None and options.datasets.train is not None
    build.set_backends(options)
    train_set = options.datasets.train
    images = items = targets = None
    if isinstance(train_set, ItemTrainSetOptions):
        items = open_items(train_set, options.scale, phase="train", seed=seed)
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
    method = build.build_method(options, student, teachers, task)
    for teacher in method.teachers.values():
        teacher.precision = options.teacher_precision  # pyright: ignore[reportAttributeAccessIssue]
    if not method.active:
        raise MtkdError(
            f"No loss is active for {options.model_type}: give at least one of "
            f"{', '.join(f'train.{name}_opt' for name in method.terms)}."
        )
    if method.teacher_use == "image" and targets is None and not method.takes_several_teachers(options.method):
        method.require_teachers(exactly=1)
    if state_path is None and options.path.pretrain_network_g:
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
    wrapped, *ready = fabric.setup(method, *optimizers.values())
    optimizers = dict(zip(optimizers, ready, strict=True))
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
    val_sets = {name: build_image_set(given, options.scale) for name, given in options.datasets.evaluation.items()}
    session = Session(
        options=options,
        fabric=fabric,
        folder=folder,
        seed=seed,
        method=method,
        wrapped=wrapped,
        optimizers=optimizers,
        rates=rates,
        sampler=sampler,
        ema=ema,
        log=RunLog(None, name=options.name),
        val_sets=val_sets,
        metrics=build_metrics(options.val.metrics),
        num_samples=num_samples,
    )
    if state_path is not None:
        _restore(session, state, state_path)
    if fabric.is_global_zero:
        folder.make()
        trim_metrics(folder.metrics, session.start)
    fabric.barrier()
    logger = options.logger
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


def open_items(given: ItemSetOptions, scale: int, *, phase: str, seed: int = 0) -> Items:
    """The data set of a class from outside that a section of the option file describes."""
    return Items(catalog.get("dataset", given.type), given.model_dump(), phase=phase, scale=scale, seed=seed)


def build_image_set(given: Any, scale: int, *, phase: str = "val") -> PairedImages | ItemImages:
    """Validation or test images from their section of the option file."""
    if isinstance(given, ItemSetOptions):
        return ItemImages(open_items(given, scale, phase=phase))
    return PairedImages.of_section(given.model_dump(), scale=scale)


def save_weights(session: Session, step: int | str) -> None:
    """Write the weights file of iteration `step` (or "latest"); rank 0 only."""
    if not session.fabric.is_global_zero:
        return
    facts = build.network_facts(session.options) | build.plain(session.method.metadata())
    assert session.options.train is not None
    facts["iteration"] = session.options.train.total_iter if step == checkpoint.LATEST else step
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
    """Write a checkpoint. Weights first, then the state: a state on disk always has its weights."""
    if session.fabric.is_global_zero:
        save_weights(session, done)
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
        }
        checkpoint.atomic_save(state, session.folder.state(done))
    session.fabric.barrier()


def _restore(session: Session, state: dict[str, Any], path: Path) -> None:
    assert session.options.train is not None
    done = int(state["iter"])
    weights = path.parent.parent / "models" / f"net_g_{done}.pth"
    session.method.check_metadata(build.load_weights(session.method.student, str(weights), key="params"))
    if session.ema is not None:
        build.load_weights(session.ema.net, str(weights), key="params_ema")
    own = state.get("method", {})
    expected = {key for key in session.method.state_dict() if not key.startswith("student.")}
    if set(own) != expected:
        raise MtkdError(
            f"{path} belongs to another method than {session.options.model_type}: its own modules hold "
            f"{sorted(own)[:3]}, this one's {sorted(expected)[:3]}. Give this run another `name`."
        )
    session.method.load_state_dict(own, strict=False)
    if len(state["optimizers"]) != len(session.optimizers):
        raise MtkdError(
            f"{path} holds {len(state['optimizers'])} optimizers, this method has {len(session.optimizers)}."
        )
    if "method" not in state:
        # Written by BasicSR, whose SRModel has one optimizer, over the network's parameters in their own order.
        state["optimizers"][0] = _in_our_order(state["optimizers"][0], session.method.student, weights)
    if state.get("seed", session.seed) != session.seed:
        raise MtkdError(
            f"{path} was trained with manual_seed {state['seed']}, and the option file says {session.seed}: the "
            "batches would not go on where they stopped. Give the old seed, or start a new run from these weights with "
            "path.pretrain_network_g."
        )
    for optimizer, saved in zip(session.optimizers.values(), state["optimizers"], strict=True):
        # A state brings its moments; weight decay, betas and the kernel are the option file's and this device's.
        for old, new in zip(saved["param_groups"], optimizer.param_groups, strict=True):
            old.update({key: value for key, value in new.items() if key not in ("params", "initial_lr")})
        optimizer.load_state_dict(saved)
        _lay_out_as_parameters(optimizer)
    if state.get("precision"):
        session.fabric._precision.load_state_dict(state["precision"])
    session.best = state.get("best", {})
    session.start = done


def _lay_out_as_parameters(optimizer: Any) -> None:
    """Give moments the memory layout of their parameters: fused optimizers walk both in the order of memory, and a
    state of BasicSR, or of a run with another `channels_last`, lies otherwise.
    """
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _seed(options: Options, state: dict[str, Any]) -> int:
    """The file's seed, else that of the run being resumed, else one drawn from BasicSR's range."""
    if options.manual_seed is not None:
        return options.manual_seed
    # Not torch's generator, which is seeded alike in every new process.
    return state.get("seed", random.SystemRandom().randint(1, 10000))


def _in_our_order(saved: dict[str, Any], student: nn.Module, weights: Path) -> dict[str, Any]:
    """An optimizer state whose parameters stand in the order of the weights file, in the order of `student`'s.

    Raises:
        MtkdError: the state is of another number of parameters, so it cannot be of these weights.
    """
    ours = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    stored = zoo.read_checkpoint(weights, key="params").state
    theirs = [name for name in stored if name in set(ours)]
    count = sum(len(group["params"]) for group in saved["param_groups"])
    if sorted(theirs) != sorted(ours) or count != len(ours) or len(saved["param_groups"]) != 1:
        raise MtkdError(
            f"The training state beside {weights} holds an optimizer of {count} parameters, and the network has "
            f"{len(ours)} in training. To start from these weights without their optimizer, give them as "
            "path.pretrain_network_g and leave path.resume_state out."
        )
    place = {name: position for position, name in enumerate(theirs)}
    state = {new: saved["state"][place[name]] for new, name in enumerate(ours) if place[name] in saved["state"]}
    return {"state": state, "param_groups": [{**saved["param_groups"][0], "params": list(range(len(ours)))}]}


def _state_to_resume(options: Options, folder: RunFolder, auto_resume: bool) -> Path | None:
    if auto_resume:
        found = folder.newest_state()
        if found is not None:
            return found
    if not options.path.resume_state:
        return None
    state = Path(options.path.resume_state)
    newest = folder.newest_state()
    if newest is not None and state.stem.isdigit() and int(newest.stem) > int(state.stem):
        raise MtkdError(
            f"{folder.root} holds later checkpoints ({newest.name}) than path.resume_state, {state.name}; going on "
            "from there would overwrite them. Give this run another `name`, or resume the newest with --auto_resume."
        )
    return state


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


def _fabric(options: Options, launcher: str) -> Fabric:
    gpus = torch.cuda.device_count() if options.num_gpu == "auto" else int(options.num_gpu)
    if gpus > torch.cuda.device_count():
        raise MtkdError(
            f"num_gpu is {gpus} and this machine shows {torch.cuda.device_count()} CUDA devices. Use `num_gpu: "
            "auto` or `num_gpu: 0` for the CPU."
        )
    accelerator = "cuda" if gpus else "cpu"
    if options.precision == "fp16" and not gpus:
        raise MtkdError("`precision: fp16` needs a CUDA device; use bf16 or fp32 on the CPU.")
    if launcher == "none":
        if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise MtkdError(
                "torchrun started several processes, and this one was not told: add `--launcher pytorch`, or every "
                "process would train by itself and write the same files."
            )
        if options.num_gpu != "auto" and gpus > 1:
            raise MtkdError(
                f"num_gpu is {gpus}, and one process drives one device. Start them with `torchrun --nproc_per_node "
                f"{gpus} -m mtkd train -opt FILE --launcher pytorch`."
            )
        return Fabric(accelerator=accelerator, devices=1, plugins=_precision(options, accelerator))
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    world = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or local)
    return Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=max(world // local, 1),
        strategy="ddp",
        plugins=_precision(options, accelerator),
    )


class _Autocast(MixedPrecision):
    """Fabric's mixed precision without its rounding of what enters: gt and targets are not the network's to round,
    and autocast narrows what it should by itself.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def _precision(options: Options, accelerator: str) -> Precision:
    if options.precision == "fp32":
        return Precision()
    return _Autocast("bf16-mixed" if options.precision == "bf16" else "16-mixed", accelerator)


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
    for notice in options.notices:
        log.say(notice)
    trainable = sum(p.numel() for p in session.method.student.parameters() if p.requires_grad)
    log.say(
        f"{options.name}: {options.model_type} x{options.scale}, student {options.network_g.type} with {trainable:,d} "
        f"parameters, {session.num_samples} training images, terms {', '.join(session.method.active)}, seed "
        f"{session.seed}, {facts['device']}"
    )
    if session.start:
        log.say(f"Resuming from iteration {session.start:,d}.")
