"""Train a student: `train` prepares everything that can fail, then runs the loop.

The loop knows no method by name. It asks a method for raw terms, weighs them by their schedules, makes one backward
pass, and steps every optimizer. Nothing in an iteration makes the device wait for the host: losses are read, and
checked for NaN, every `print_freq` iterations and before every checkpoint.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mtkd.config import Options, TermOptions, resolved_yaml, weight_at
from mtkd.contracts import Batch, MtkdError, Step, Task
from mtkd.data.paired import PairedImages
from mtkd.data.sampling import CropSampler
from mtkd.engine import build, checkpoint, teach
from mtkd.engine.checkpoint import RunFolder
from mtkd.engine.ema import Ema
from mtkd.engine.evaluate import build_metrics, evaluate, save_to
from mtkd.engine.log import RunLog, environment, trim_metrics
from mtkd.engine.optim import LearningRate, build_optimizer, learning_rate
from mtkd.engine.tiling import tiled
from mtkd.methods.base import Method

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass
class Session:
    """Everything a run consists of, ready to step."""

    options: Options
    fabric: Fabric
    folder: RunFolder
    seed: int
    method: Method
    wrapped: nn.Module
    optimizers: dict[str, Any]
    rates: dict[str, LearningRate]
    sampler: CropSampler
    ema: Ema | None
    log: RunLog
    val_sets: dict[str, PairedImages]
    num_samples: int
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    start: int = 0


def train(
    options: Options,
    *,
    auto_resume: bool = False,
    launcher: str = "none",
    option_text: str | None = None,
    command: str | None = None,
) -> Path:
    """Run the training that `options` describes and return the final weights, `models/net_g_latest.pth`.

    Args:
        auto_resume: continue from the newest training state of the run's own folder when there is one.
        launcher: "none", "pytorch" or "slurm"; with the last two, one process a device is already running.
        option_text: the option file as the user wrote it, kept in the run folder.
        command: the command line, kept beside it.

    Raises:
        MtkdError: anything a user can mend. Options, data, weights and the run folder are checked before the first
            iteration and before anything is written.
    """
    session = prepare(options, auto_resume=auto_resume, launcher=launcher)
    try:
        _describe(session, option_text, command)
        with _stop_requests() as stop:
            _loop(session, stop)
        return session.folder.model(checkpoint.LATEST)
    except torch.OutOfMemoryError as error:
        raise MtkdError(
            f"The device ran out of memory: {str(error).splitlines()[0]} Lower batch_size_per_gpu or gt_size, raise "
            "train.accumulate, use `precision: bf16`, or `residence: ram` for the training images."
        ) from error
    finally:
        session.log.close()


def prepare(options: Options, *, auto_resume: bool = False, launcher: str = "none") -> Session:
    """Build and check everything of a run; the run folder is the last thing touched."""
    if options.train is None or options.datasets.train is None or options.network_g is None:
        raise MtkdError("Training needs the sections `train`, `datasets.train` and `network_g` in the option file.")
    folder = RunFolder(Path(options.path.experiments_root or "experiments") / options.name)
    state_path = _state_to_resume(options, folder, auto_resume)
    folder.check_new(resuming=auto_resume or state_path is not None)
    state = checkpoint.load_state(state_path) if state_path else {}
    seed = options.manual_seed
    if seed is None:
        seed = state.get("seed", random.randint(1, 10000))

    fabric = _fabric(options, launcher)
    fabric.launch()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(options.tf32)
    torch.use_deterministic_algorithms(bool(options.deterministic), warn_only=True)
    say = print if fabric.is_global_zero else (lambda *_: None)

    def progress(text: str) -> None:
        say(text, flush=True)

    train_set = options.datasets.train
    images = teach.open_training_images(options, progress=progress)
    num_samples = len(images.gt)
    targets = teach.open_targets(options, images) if options.target_store else None
    total_steps = options.train.total_iter
    task = Task(scale=options.scale, num_samples=num_samples, total_steps=total_steps)

    torch.manual_seed(seed)
    student = build.build_network(options.network_g)
    teachers = {} if targets is not None else build.build_teachers(options)
    # Teachers draw initial weights before theirs are loaded; the student's and the method's must not depend on them.
    torch.manual_seed(seed + 1)
    method = build.build_method(options, student, teachers, task)
    if not method.active:
        raise MtkdError(
            f"No loss is active for {options.model_type}: give at least one of "
            f"{', '.join(f'train.{name}_opt' for name in method.terms)}."
        )
    if method.teacher_use == "image" and targets is None:
        method.require_teachers(exactly=1)
    if state_path is None and options.path.pretrain_network_g:
        build.load_weights(
            student,
            options.path.pretrain_network_g,
            key=options.path.param_key_g or "auto",
            strict=options.path.strict_load_g,
        )

    device = fabric.device
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    method.to(device).to(memory_format=memory_format)
    if options.compile:
        student.compile()
    ema = Ema(student, options.train.ema_decay) if options.train.ema_decay else None
    optimizers, rates = _optimizers(options, method)
    wrapped, *ready = fabric.setup(method, *optimizers.values())
    optimizers = dict(zip(optimizers, ready, strict=True))
    sampler = CropSampler(
        lq=images.lq,
        gt=images.gt,
        target=targets,
        scale=options.scale,
        gt_size=train_set.gt_size,
        batch_size=train_set.batch_size_per_gpu,
        use_hflip=train_set.use_hflip,
        use_rot=train_set.use_rot,
        seed=seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        device=device,
        residence=train_set.residence,
    )
    val_sets = {name: build_image_set(given, options.scale) for name, given in options.val_sets.items()}
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
        num_samples=num_samples,
    )
    if state_path is not None:
        _restore(session, state, state_path)
    if fabric.is_global_zero:
        folder.make()
        if state_path is not None:
            trim_metrics(folder.metrics, session.start)
    fabric.barrier()
    logger = options.logger
    session.log = RunLog(
        folder.root,
        name=options.name,
        total_steps=total_steps,
        rank=fabric.global_rank,
        tensorboard=folder.root.parent.parent / "tb_logger" / options.name if logger.use_tb_logger else None,
        wandb=logger.wandb,
    )
    return session


def build_image_set(given: Any, scale: int) -> PairedImages:
    """Validation or test images from their section of the option file."""
    return PairedImages(
        dataroot_gt=given.dataroot_gt,
        dataroot_lq=given.dataroot_lq,
        scale=scale,
        meta_info_file=given.meta_info_file,
        filename_tmpl=given.filename_tmpl,
    )


def _loop(session: Session, stop: StopRequest) -> None:
    options, fabric, log = session.options, session.fabric, session.log
    assert options.train is not None and options.datasets.train is not None
    settings, logger, total_steps = options.train, options.logger, options.train.total_iter
    if session.start >= total_steps:
        log.say(f"{options.name} is finished: {session.start:,d} of {total_steps:,d} iterations.")
        return
    per_step = options.datasets.train.batch_size_per_gpu * fabric.world_size * settings.accumulate
    trace = LossTrace(fabric)
    log.start_clock(session.start)
    printed_at, printed_step = time.perf_counter(), session.start
    session.method.train()
    for step in range(session.start, total_steps):
        values = _iterate(session, step)
        trace.add(values)
        done = step + 1
        last = done == total_steps or stop.asked
        if done % logger.print_freq == 0 or last:
            means = trace.read(done)
            now = time.perf_counter()
            log.losses(
                step=done,
                epoch=done * per_step // session.num_samples,
                rate=session.rates["main"](step),
                values=means,
                seconds=(now - printed_at) / (done - printed_step),
            )
            printed_at, printed_step = now, done
        if done % logger.save_checkpoint_freq == 0 or last:
            trace.check(done)
            _save(session, done)
        if session.val_sets and options.val and (done % options.val.val_freq == 0 or done == total_steps):
            trace.check(done)
            _validate(session, done)
            session.method.train()
        if stop.asked and done < total_steps:
            log.say(f"Stopped at iteration {done:,d}; everything is saved. Continue with --auto_resume.")
            return
    _save_weights(session, checkpoint.LATEST)
    log.say(f"End of training. Weights: {session.folder.model(checkpoint.LATEST)}")


def _iterate(session: Session, step: int) -> dict[str, Tensor]:
    """One optimizer step; returns the raw terms, the weighted total and the method's logs, detached, unread."""
    assert session.options.train is not None
    settings, fabric = session.options.train, session.fabric
    torch.manual_seed(step_seed(session.seed, step, fabric.global_rank))
    for name, optimizer in session.optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = session.rates[name](step)
    values: dict[str, Tensor] = {}
    for micro in range(settings.accumulate):
        batch: Batch = session.sampler.batch(step * settings.accumulate + micro)
        last = micro == settings.accumulate - 1
        with fabric.no_backward_sync(session.wrapped, enabled=not last):  # pyright: ignore[reportArgumentType]
            out: Step = session.wrapped(batch, step)
            total = weighted_total(out, settings.terms, step)
            fabric.backward(total / settings.accumulate)
        for name, value in [*out.losses.items(), *out.critic.items(), ("l_total", total), *out.logs.items()]:
            share = value.detach().float() / settings.accumulate
            values[name] = values[name] + share if name in values else share
    for optimizer in session.optimizers.values():
        if settings.clip_grad_norm:
            fabric.clip_gradients(session.wrapped, optimizer, max_norm=settings.clip_grad_norm)  # pyright: ignore[reportArgumentType]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if session.ema is not None:
        session.ema.update()
    return values


def weighted_total(out: Step, terms: Mapping[str, TermOptions], step: int) -> Tensor:
    """Sum of the terms times their weights at `step`, student and critic together."""
    total = out.sr.new_zeros(())
    for name, value in [*out.losses.items(), *out.critic.items()]:
        total = total + weight_at(terms[name].weight, step) * value
    return total


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the torch generator for one iteration on one rank: distinct triples give unrelated streams."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class LossTrace:
    """Losses of the iterations since the last reading, kept on the device until then."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._checked = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Remember one iteration's values without reading them."""
        self._names = list(values)
        self._rows.append(torch.stack(list(values.values())))

    def check(self, done: int) -> None:
        """Stop the run if a value since the last check is not finite.

        Raises:
            MtkdError: naming the first such iteration and its terms.
        """
        rows = self._rows[self._checked :]
        if not rows:
            return
        table = torch.stack(rows)
        self._checked = len(self._rows)
        bad = (~torch.isfinite(table)).any(dim=1).nonzero()
        if len(bad) == 0:
            return
        first = int(bad[0])
        row = dict(zip(self._names, table[first].tolist(), strict=True))
        guilty = [name for name, value in row.items() if not np.isfinite(value) and name != "l_total"] or ["l_total"]
        raise MtkdError(
            f"Loss term {guilty[0]!r} became {row[guilty[0]]} at iteration {done - len(rows) + first + 1:,d} "
            f"({', '.join(f'{name}: {value:.4g}' for name, value in row.items())}). The last good checkpoint is kept; "
            "nothing was saved after it. Lower the learning rate, give the term a warm-up (`loss_weight: [[0, 0.0], "
            "[5000, 1.0]]`), set train.clip_grad_norm, or train in fp32, then continue with --auto_resume."
        )

    def read(self, done: int) -> dict[str, float]:
        """Means since the last reading, over all ranks; checks them first."""
        self.check(done)
        means = torch.stack(self._rows).mean(dim=0)
        self._rows, self._checked = [], 0
        if self._fabric.world_size > 1:
            means = self._fabric.all_reduce(means, reduce_op="mean")
            assert isinstance(means, Tensor)
        return dict(zip(self._names, means.tolist(), strict=True))


def _validate(session: Session, done: int) -> None:
    options, fabric = session.options, session.fabric
    if not fabric.is_global_zero or options.val is None:
        fabric.barrier()
        return
    student = session.ema.net if session.ema is not None else session.method.student
    net = session.method.predictor(student).eval()
    metrics = build_metrics(options.val.metrics)
    for name, images in session.val_sets.items():
        save = None
        if options.val.save_img:

            def save(image: str, sr: np.ndarray) -> None:
                save_to(session.folder.visualization / image, str(done))(image, sr)

        result = evaluate(
            tiling_predict(net, options),
            images,
            metrics,
            dataset=name,
            device=fabric.device,
            autocast=fabric.autocast,
            save=save,
        )
        means = result.means()
        for metric, value in means.items():
            best = session.best.setdefault(name, {})
            higher = options.val.metrics[metric].get("better", "higher") == "higher"
            if metric not in best or (value >= best[metric]["val"] if higher else value <= best[metric]["val"]):
                best[metric] = {"val": value, "iter": done}
        session.log.validation(step=done, dataset=name, values=means, best=session.best[name])
    fabric.barrier()


def tiling_predict(net: nn.Module, options: Options) -> Any:
    """`net`, in tiles when `val.tile` asks for them."""
    tile = options.val.tile if options.val else None
    if tile is None:
        return net
    return lambda lq: tiled(net, lq, scale=options.scale, tile_size=tile.tile_size, tile_pad=tile.tile_pad)


def _save_weights(session: Session, step: int | str) -> None:
    if not session.fabric.is_global_zero:
        return
    facts = build.network_facts(session.options) | build.plain(session.method.metadata())
    ema = session.ema.net if session.ema is not None else None
    checkpoint.save_weights(session.folder.model(step), session.method.student, ema, facts)


def _save(session: Session, done: int) -> None:
    """Weights first, then the state: a state on disk always has its weights."""
    if session.fabric.is_global_zero:
        _save_weights(session, done)
        own = {key: value for key, value in session.method.state_dict().items() if not key.startswith("student.")}
        state = {
            "epoch": 0,
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
    build.load_weights(session.method.student, str(weights), key="params")
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
        raise MtkdError(f"{path} holds {len(state['optimizers'])} optimizers, this method has {len(session.optimizers)}.")
    for optimizer, saved in zip(session.optimizers.values(), state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    if state.get("precision"):
        session.fabric._precision.load_state_dict(state["precision"])
    session.best = state.get("best", {})
    session.start = done


def _state_to_resume(options: Options, folder: RunFolder, auto_resume: bool) -> Path | None:
    if auto_resume:
        found = folder.newest_state()
        if found is not None:
            return found
    return Path(options.path.resume_state) if options.path.resume_state else None


def _optimizers(
    options: Options, method: Method
) -> tuple[dict[str, torch.optim.Optimizer], dict[str, LearningRate]]:
    assert options.train is not None
    optimizers, rates = {}, {}
    for name, parameters in method.param_groups().items():
        given = options.train.optim_g if name == "main" else options.train.optim_d
        if given is None:
            key = "optim_g" if name == "main" else "optim_d"
            raise MtkdError(f"{options.model_type} trains a {name} group: give train.{key} (type, lr, ...).")
        arguments = given.arguments()
        optimizers[name] = build_optimizer(parameters, arguments)
        rates[name] = learning_rate(arguments["lr"], options.train.scheduler.arguments(), options.train.warmup_iter)
    return optimizers, rates


def _fabric(options: Options, launcher: str) -> Fabric:
    gpus = torch.cuda.device_count() if options.num_gpu == "auto" else int(options.num_gpu)
    if gpus > torch.cuda.device_count():
        raise MtkdError(
            f"num_gpu is {gpus} and this machine shows {torch.cuda.device_count()} CUDA devices. Use `num_gpu: auto` or "
            "`num_gpu: 0` for the CPU."
        )
    accelerator = "cuda" if gpus else "cpu"
    if options.precision == "fp16" and not gpus:
        raise MtkdError("`precision: fp16` needs a CUDA device; use bf16 or fp32 on the CPU.")
    if launcher == "none":
        if options.num_gpu != "auto" and gpus > 1:
            raise MtkdError(
                f"num_gpu is {gpus}, and one process drives one device. Start them with `torchrun --nproc_per_node {gpus} "
                "-m mtkd train -opt FILE --launcher pytorch`."
            )
        return Fabric(accelerator=accelerator, devices=1, precision=PRECISIONS[options.precision])  # pyright: ignore[reportArgumentType]
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    world = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or local)
    return Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=max(world // local, 1),
        strategy="ddp_find_unused_parameters_true" if options.find_unused_parameters else "ddp",
        precision=PRECISIONS[options.precision],  # pyright: ignore[reportArgumentType]
    )


def _describe(session: Session, option_text: str | None, command: str | None) -> None:
    """Keep with the run what it was: the option file as written and as resolved, the command, versions, commit."""
    import json

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
        f"{options.name}: {options.model_type} x{options.scale}, student {options.network_g.type} with {trainable:,d} "  # pyright: ignore[reportOptionalMemberAccess]
        f"parameters, {session.num_samples} training images, terms {', '.join(session.method.active)}, seed {session.seed}, "
        f"{facts['device']}"
    )
    if session.start:
        log.say(f"Resuming from iteration {session.start:,d}.")


@dataclass
class StopRequest:
    """Whether someone asked the run to stop."""

    asked: bool = False


@contextmanager
def _stop_requests() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request, so that a run stops between iterations with everything saved."""
    request = StopRequest()
    previous: dict[int, Any] = {}

    def ask(signum: int, frame: Any) -> None:
        request.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            previous[signum] = signal.signal(signum, ask)
    except ValueError:
        # Not the main thread: signals go elsewhere.
        pass
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
