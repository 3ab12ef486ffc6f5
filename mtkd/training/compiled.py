"""`compile` of an option file: the networks of a run compiled for its training batches."""

from __future__ import annotations

import torch
from torch import Tensor

from mtkd.data.kept import KeptAnswers
from mtkd.runtime.compiling import compile_networks, uncompile
from mtkd.training.run import Run
from mtkd.training.terms import weighted_total


def compile_run(run: Run) -> None:
    """Compile student and teachers in place, tried on the first batch; the trial leaves no trace in the training."""
    method, fabric, mode = run.method.train(), run.fabric, run.options.compile
    teachers = [teacher.net for teacher in method.teachers.values() if not isinstance(teacher.net, KeptAnswers)]
    networks = [method.student, *teachers]
    kept = {name: value.clone() for name, value in method.state_dict().items()}
    # Read the batch outside the trial: errors of the data are not errors of the compiler.
    batch = next(run.batches())

    def trial() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        # Call the method, not its DDP wrapper: a rank that fails inside DDP would miss an all-reduce and block others.
        with fabric.autocast():
            out = method(batch, run.state.start)
        fabric.backward(weighted_total(out, run.options.training.terms, run.state.start))

    compiled = compile_networks(
        networks,
        trial,
        mode="default" if mode is True else mode,  # pyright: ignore[reportArgumentType]
        log=run.log.info,
    )
    if fabric.world_size > 1:
        failed = fabric.all_reduce(torch.tensor(float(not compiled), device=fabric.device), reduce_op="sum")
        assert isinstance(failed, Tensor)
        if failed.item() and compiled:
            uncompile(networks)
            run.log.info("compile: another process cannot compile its networks, and all run uncompiled")
    method.load_state_dict(kept)
    for optimizer in run.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
