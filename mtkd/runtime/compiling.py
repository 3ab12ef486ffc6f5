"""torch.compile with a trial: a network that cannot be compiled runs uncompiled, and the log says so at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import nn

from mtkd.runtime.progress import Log

Mode = Literal["default", "graphs", "reduce-overhead", "max-autotune"]
"""torch.compile's modes, of which "reduce-overhead" and "max-autotune" record CUDA graphs where shapes are fixed; and
"graphs", its backend "cudagraphs", which records the kernels as they are: ready in seconds, where the others compile
for minutes.
"""


def compile_networks(
    networks: Iterable[nn.Module],
    trial: Callable[[], object],
    *,
    mode: Mode = "default",
    dynamic: bool | None = None,
    log: Log,
) -> bool:
    """Compile `networks` in place and run `trial` with them. If it fails, they run uncompiled, and `log` says why.

    Args:
        trial: calls the networks as training or inference will, so that nothing is left to compile.
        dynamic: as in `torch.compile`; True for images of all sizes, None for shapes that rarely change.
        log: takes one line.

    Returns:
        Whether the networks are compiled.
    """
    from torch._dynamo import config

    # Taps are hooks that come and go. Without this guard torch would run a graph that was made with other taps.
    config.skip_nnmodule_hook_guards = False
    # All networks of one class share this limit: student, teachers and the validated copy, each with its taps and
    # sizes. Beyond it they would run uncompiled.
    config.recompile_limit = max(config.recompile_limit, 64)
    networks = list(networks)
    names = ", ".join(dict.fromkeys(type(net).__name__ for net in networks))
    began = time.perf_counter()
    try:
        for net in networks:
            if mode == "graphs":
                net.compile(backend="cudagraphs", dynamic=dynamic)
            else:
                net.compile(mode=mode, dynamic=dynamic)
        trial()
    except Exception as error:
        uncompile(networks)
        # torch wraps what a backend raised.
        error = getattr(error, "inner_exception", error)
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        log(f"compile: {names} cannot be compiled here and runs uncompiled ({type(error).__name__}: {reason})")
        return False
    log(f"compile: {names} compiled in {time.perf_counter() - began:.0f} s")
    return True


def uncompile(networks: Iterable[nn.Module]) -> None:
    """Take back what `compile_networks` did."""
    for net in networks:
        net._compiled_call_impl = None
    torch.compiler.reset()
