"""Keys of an option file that a call sets for the machine at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtkd.config import yaml_loader
from mtkd.contracts import MtkdError

MACHINE = ("num_gpu", "compile", "tf32", "channels_last")
"""Keys of an option file that say how a machine computes, and not what: no part of what is compared or hashed."""


def machine(items: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` items, VALUE in YAML, as the keys of an option file that a call sets for this machine.

    Raises:
        MtkdError: an item is no such thing, or its key says what is trained.
    """
    found: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or key not in MACHINE:
            raise MtkdError(
                f"--machine {item}: must be KEY=VALUE with a KEY of {', '.join(MACHINE)}. What else an option file "
                "says belongs to the grid, because it changes what is trained."
            )
        found[key] = yaml_loader.parse(text, "--machine").data
    return found
