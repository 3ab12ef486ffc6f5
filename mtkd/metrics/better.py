"""The good direction of a metric, declared at the metric itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

Metric = TypeVar("Metric", bound=Callable[..., Any])


def better(direction: Literal["higher", "lower"]) -> Callable[[Metric], Metric]:
    """Decorator that declares which value of a metric is the better one, as its attribute `better`.

    Option files, the best checkpoint and the log read it, so that a metric without it is refused unless the option file
    has the key.

    Example:
        >>> @better("lower")
        ... def mean_error(sr, gt, *, crop_border=0):
        ...     return (sr - gt).abs().double().mean(dim=(1, 2, 3))
        >>> mean_error.better
        'lower'
    """

    def declare(metric: Metric) -> Metric:
        metric.__dict__["better"] = direction
        return metric

    return declare
