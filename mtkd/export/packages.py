"""Packages of the extras `onnx` and `ncnn`, which exports come through."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from mtkd.contracts import MtkdError


def need(module: str, extra: str) -> Any:
    """The module `module`, which `extra` brings.

    Raises:
        MtkdError: it is missing or cannot be imported; the text says how to install it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0].replace("_", "-")
        raise MtkdError(f'This needs the package {name} ({error}): pip install "mtkd[{extra}]".') from error
