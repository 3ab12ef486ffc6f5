"""Packages that some metrics come through and that mtkd does not install by itself."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mtkd.contracts import MtkdError

Metric = TypeVar("Metric", bound=Callable[..., Any])


@dataclass(frozen=True)
class Package:
    """One of the extra `metrics`.

    Attributes:
        metric: whom it serves, for messages.
        distribution: its name where packages are installed from.
        module: its name in Python.
    """

    metric: str
    distribution: str
    module: str

    def load(self) -> Any:
        """The module.

        Raises:
            MtkdError: it is missing or cannot be imported.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return importlib.import_module(self.module)
        except ImportError as error:
            raise MtkdError(
                f"The metric {self.metric} needs the package {self.distribution} ({error}): "
                "pip install 'mtkd[metrics]'."
            ) from error


def through(package: Package) -> Callable[[Metric], Metric]:
    """Decorator that declares the package of a metric, as its attribute `package`; it is looked for before weights are
    fetched and networks run.
    """

    def declare(metric: Metric) -> Metric:
        metric.__dict__["package"] = package
        return metric

    return declare
