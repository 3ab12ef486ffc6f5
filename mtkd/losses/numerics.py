"""What the feature, contrastive, adversarial and perceptual losses share: float32, safe directions, closed options."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor

from mtkd.contracts import MtkdError

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(loss: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Run `loss` with autocast off on the device of its first argument, so that its matrix products stay float32.

    On CUDA their factors are rounded to TF32's 10 bits where torch allows it (`tf32`).
    """

    @wraps(loss)
    def wrapped(first: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(first.device.type, enabled=False):
            return loss(first, *args, **kwargs)

    return wrapped


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common dtype, float32 at least: squares and exponentials of half precision overflow."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def unit_vectors(x: Tensor, dim: int, *, eps: float = 0.0, detach_norm: bool = False) -> Tensor:
    """x / (|x| + eps) along `dim`.

    A vector of exactly zero stays zero and passes no gradient: it has no direction, and the formula's derivative there
    is 1 / eps or NaN. `detach_norm` treats the norm as a constant in the backward pass.
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    if detach_norm:
        norm = norm.detach()
    return x / torch.where(norm == 0, torch.inf, norm + eps)


def check_choice(what: str, value: object, choices: object) -> None:
    """Hold `value` against the `Literal` type `choices`; option files are not type-checked.

    Raises:
        MtkdError: it is none of them.
    """
    if value not in get_args(choices):
        raise MtkdError(f"{what} is one of {', '.join(map(repr, get_args(choices)))}; got {value!r}.")
