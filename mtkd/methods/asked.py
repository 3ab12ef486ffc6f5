"""What an option file asks of a method, judged before a network is built: what it refuses, and what does nothing.

Both stand at the method, beside the formula, so that `mtkd check` and training cannot disagree.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtkd.contracts import Asked, MtkdError, Remark

if TYPE_CHECKING:
    from mtkd.methods.base import Term

TEACHERS = "teachers"
"""Stands in `Term.uses` for the teachers, their fused image or the stored one."""


def unread(terms: Mapping[str, Term], config: Callable[..., Any], asked: Asked) -> Iterator[Remark]:
    """What only terms read that are off: options that differ from their defaults, and the teachers."""
    for name in dict.fromkeys(name for term in terms.values() for name in term.uses):
        readers = [term for term, about in terms.items() if name in about.uses]
        if any(term in asked.terms for term in readers):
            continue
        why = f"has no effect: only {_listed(readers)} would read it, and that is off."
        if name == TEACHERS:
            if asked.sources:
                yield asked.sources[:1], why.replace("it, and", "the teachers, and")
        elif getattr(asked.options, name) != inspect.signature(config).parameters[name].default:
            yield ("method", name), why


def tried(key: tuple[str, ...], loss: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Remark]:
    """Why `loss` refuses any maps (N, C, H, W), tried on small ones of one shape."""
    maps = torch.zeros(2, 4, 32, 32)
    try:
        with torch.no_grad():
            loss(maps, maps)
    except MtkdError as error:
        yield key, str(error)


def _listed(terms: list[str]) -> str:
    names = [f"train.{term}_opt" for term in terms]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
