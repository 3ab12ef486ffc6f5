"""Nothing in a training step reads a value off the device, which would make the host wait for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtkd import catalog
from mtkd.training import loop as train_module
from mtkd.training.optim import build_optimizer
from tests.methods.setups import batch, build
from tests.runs import run_options

aten = torch.ops.aten
READING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2}


class Refuse(TorchDispatchMode):
    """An error for each operation that hands the host a value, or a shape made of values.

    It sees them on the CPU too, where nothing has to wait. What is drawn by `randint` is
    let through: methods draw a teacher so, on the host.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is aten.randint:
            drawn = func(*args, **(kwargs or {}))
            drawn.on_host = True
            return drawn
        if func.overloadpacket in READING and not hasattr(args[0], "on_host"):
            raise AssertionError(f"{func} makes the host wait for the device")
        if func.overloadpacket in (aten.index, aten.index_put_):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} with a mask makes the host wait for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [torch.Tensor.item, bool, torch.nonzero, lambda x: x[x > 0]])
def test_reading_is_noticed(read) -> None:
    with pytest.raises(AssertionError, match="makes the host wait"), Refuse():
        read(torch.ones(1))


@pytest.mark.parametrize("name", list(catalog.METHODS))
def test_a_step_of_every_method_reads_nothing(name: str) -> None:
    method = build(name)
    optimizers = [build_optimizer(p, {"type": "Adam", "lr": 1e-3}) for p in method.param_groups().values()]
    for step in range(2):
        torch.manual_seed(step)
        given = batch(seed=step)
        with Refuse():
            out = method(given, step)
            (sum(out.losses.values()) + sum(out.critic.values())).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()


def test_an_iteration_of_the_trainer_reads_nothing(tmp_path: Path) -> None:
    run = train_module.prepare(
        run_options(tmp_path, train={"accumulate": 2, "clip_grad_norm": 0.1, "total_iter": 4}, precision="bf16")
    )
    batches = run.batches()
    run.method.train()
    for step in range(2):
        with Refuse():
            train_module.train_step(run, step, batches)
    run.close()


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_iteration_on_cuda_comes_back_before_the_device_is_done(tmp_path: Path, precision: str) -> None:
    run = train_module.prepare(
        run_options(tmp_path, num_gpu=1, precision=precision, train={"accumulate": 2, "total_iter": 8})
    )
    batches = run.batches()
    run.method.train()
    for step in range(3):
        train_module.train_step(run, step, batches)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    began = time.perf_counter()
    train_module.train_step(run, 3, batches)
    returned = time.perf_counter() - began
    torch.cuda.synchronize()
    assert returned < (time.perf_counter() - began) / 2
    run.close()
