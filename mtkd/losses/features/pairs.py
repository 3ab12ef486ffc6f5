"""The check that every loss of two feature maps starts with: what cannot be compared is refused."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtkd.contracts import MtkdError
from mtkd.losses.numerics import upcast

Norm = Literal["l1", "l2"]
"""Of a difference: its mean absolute value, or its mean square."""


def pair(
    loss: str, student: Tensor, teacher: Tensor, agree: str, why: str, *, rows: bool = False
) -> tuple[Tensor, Tensor]:
    """Both features in float32 or better, the teacher's detached, after the check.

    Args:
        loss: name of the loss, for the message.
        student, teacher: maps (N, C, H, W); with `rows` also vectors (R, C).
        agree: letters of the axes whose sizes must agree, such as "NHW".
        why: what the loss compares, for the message.

    Raises:
        MtkdError: the number of axes is wrong, or an axis of `agree` differs.
    """
    dims = (2, 4) if rows else (4,)
    if student.dim() not in dims or teacher.dim() not in dims:
        expected = "(N, C, H, W) maps or (R, C) rows" if rows else "(N, C, H, W) maps"
        raise MtkdError(f"{loss} takes {expected}; got {shape(student)} and {shape(teacher)}.")
    axes = {"N": "batch size", "C": "channels", "H": "height", "W": "width"}
    differ = [axes[axis] for axis in agree if student.shape["NCHW".index(axis)] != teacher.shape["NCHW".index(axis)]]
    if differ or student.dim() != teacher.dim():
        hint = " Put a 1x1 convolution behind the student's tap." if differ == ["channels"] else ""
        raise MtkdError(
            f"{loss} cannot compare student features {shape(student)} with teacher features {shape(teacher)}: "
            f"{why}, and their {' and '.join(differ) or 'number of axes'} differ. Choose taps that agree.{hint}"
        )
    student, teacher = upcast(student, teacher.detach())
    return student, teacher


def shape(x: Tensor) -> str:
    """The shape of `x` in a message."""
    return str(tuple(x.shape))
