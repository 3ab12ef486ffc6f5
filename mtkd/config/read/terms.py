"""Reads the loss terms, `train.X_opt`, of the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mtkd.catalog import LOSSES
from mtkd.config.basicsr_keys import TERMS as BASICSR_TERMS
from mtkd.config.problems import PROBLEMS_SHOWN, KeyPath, closest, format_value, key_text
from mtkd.config.read.arguments import check_arguments, converted, lookup
from mtkd.config.read.reader import Reader
from mtkd.config.schema import TermOptions
from mtkd.config.signatures import hint_of_default, is_number, whole
from mtkd.contracts import MtkdError


def read_terms(reader: Reader, given: dict[str, Any]) -> tuple[dict[str, TermOptions], list[str]]:
    """The active terms by name in the method's order, its defaults among them, and the names switched off by `~`.

    `given` holds the `X_opt` entries of `train`. Without a method only what the file names is known.
    """
    known: Mapping[str, Any] = reader.method.terms if reader.method is not None else {}
    terms: dict[str, TermOptions] = {}
    for key in given:
        name = key.removesuffix("_opt")
        if reader.method is not None and name not in known:
            near = closest(name, list(known)) if len(reader.problems) < PROBLEMS_SHOWN else None
            hint = f" Did you mean {near}_opt?" if near else ""
            terms_text = ", ".join(f"{term}_opt" for term in known)
            way_on = f" {BASICSR_TERMS[name]}" if name in BASICSR_TERMS else ""
            message = f"{reader.model_type} has no such term.{hint} Its terms are {terms_text}.{way_on}"
            reader.problem(("train", key), message)
        elif given[key] is not None:
            terms[name] = _term(reader, given[key], known.get(name), ("train", key))
    off = [name for name, term in known.items() if term.weight is not None and given.get(f"{name}_opt", 0) is None]
    for name, term in known.items():
        if term.weight is not None and name not in terms and name not in off:
            terms[name] = _term(reader, {}, term, ("train", f"{name}_opt"))
    if known and not any(not known[name].critic for name in terms if name in known):
        choices = [f"{name}_opt" for name, term in known.items() if not term.critic]
        reader.problem(("train",), f"no loss is active; give at least one of {', '.join(choices)}.")
    order = {name: index for index, name in enumerate(known)}
    return dict(sorted(terms.items(), key=lambda item: order.get(item[0], 0))), off


def _term(reader: Reader, data: Any, term: Any, path: KeyPath) -> TermOptions:
    given = dict(reader.mapping(data, path))
    weight = _schedule(reader, given.pop("loss_weight", None), term.weight if term else None, (*path, "loss_weight"))
    if term is None:
        return TermOptions(weight=weight, args=given)
    own = {key: given.pop(key) for key in list(given) if key in term.options}
    for key, value in own.items():
        own[key] = converted(reader, hint_of_default(term.options[key]), value, (*path, key))
    own = {**term.options, **own}
    if term.loss is None:
        for key in given:
            reader.unknown((*path, key), [*term.options, "loss_weight"], "not a key of this term")
        return TermOptions(weight=weight, args=own)
    name = given.pop("type", term.loss)
    if not isinstance(name, str):
        reader.problem((*path, "type"), f"must be a name, found {format_value(name)}.")
    elif (loss := lookup(reader, "loss", name, (*path, "type"))) is not None:
        # BasicSR's losses take their weight as an argument; ours have none, so that it cannot count twice.
        skip = {"loss_weight"}
        more = ["type", "loss_weight", *term.options]
        before = len(reader.problems)
        given = check_arguments(reader, loss, given, path, f"a key of {name}", skip=skip, more=more)
        if name in LOSSES and len(reader.problems) == before:
            _try_loss(reader, loss, given, path)
        return TermOptions(weight=weight, args={"type": name, **given, **own})
    return TermOptions(weight=weight)


def _try_loss(reader: Reader, loss: Callable[..., Any], given: Mapping[str, Any], path: KeyPath) -> None:
    """Report why `loss`, one of ours, cannot be built; note the arguments that it does not read.

    A loss from outside may read files or start to download when it is built, so that it is built in training alone.
    """
    try:
        loss(**given)
    except MtkdError as error:
        reader.problem(path, str(error))
        return
    for key, why in getattr(loss, "ignores", lambda _: ())(given):
        reader.notices.append(f"{key_text((*path, key))} {why}")


def _schedule(reader: Reader, value: Any, default: float | None, path: KeyPath) -> list[tuple[int, float]]:
    """`loss_weight` as (iteration, weight) pairs; a number is one pair at iteration 0."""
    if value is None:
        return [(0, 1.0 if default is None else float(default))]
    if is_number(value):
        return [(0, float(value))]
    pairs: list[tuple[int, float]] = []
    if not isinstance(value, list) or not value:
        reader.problem(path, f"must be a number or a schedule [[iteration, weight], ...], found {format_value(value)}.")
    for index, pair in enumerate(value if isinstance(value, list) else []):
        at = whole(pair[0]) if isinstance(pair, list) and len(pair) == 2 else None
        if not isinstance(at, int) or isinstance(at, bool) or at < 0 or not is_number(pair[1]):
            reader.problem((*path, index), f"must be [iteration, weight], found {format_value(pair)}.")
        elif pairs and at <= pairs[-1][0]:
            reader.problem((*path, index), f"iterations must increase, found {at} after {pairs[-1][0]}.")
        else:
            pairs.append((at, float(pair[1])))
    return pairs or [(0, 1.0)]
