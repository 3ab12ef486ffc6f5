"""The contracts between the parts of mtkd. Everything else may change freely.

Images
    `lq` (low quality), `gt` (ground truth), `sr` (super-resolved) and every teacher output are RGB, floating point,
    nominally in [0, 1] (nothing clamps them outside metrics and file writing), shape (N, 3, H, W). `gt`, `sr` and
    teacher outputs are exactly `scale` times as high and wide as `lq`. With `color: y` they are Y alone, (N, 1, H, W),
    for networks whose `image_channels` (set by `catalog.make_network`) is 1; stores and files stay RGB.

Networks
    Accept any H and W and pad, shift and scale inside, so that image in -> image out holds for the module alone. They
    never change their input in place, run under bf16 autocast, in channels_last and under `torch.compile`, carry
    `scale: int` and `feature_names: tuple[str, ...]` (dotted module names that `mtkd.methods.base.tapped` can read).
    The fusion network is the one exception to lq -> sr: it maps (N, 3 * teachers, H, W), the teachers' images
    concatenated on the channel axis in the order of the ensemble, to (N, 3, H, W).

Losses
    Called with (sr, target), return one unweighted scalar with a gradient for `sr`. Weights belong to the option file.

Randomness
    Everything random in iteration `k` is a pure function of (seed, k, rank). There is no sampler state to save.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class MtkdError(Exception):
    """An error a user can mend. Its text is one clear paragraph: what is wrong, where, and what to do.

    The command line prints the text alone; a traceback would add nothing.
    """


class Stopped(SystemExit):
    """A signal ended the work before its end, and what was made is kept.

    If nobody catches it, the process exits with `code`, 128 + the signal's number as in shells: 130 after Ctrl-C, 143
    after SIGTERM. The command line prints `kept`.

    Attributes:
        kept: what is kept, and how to go on; "" where the log has said it.
    """

    code: int

    def __init__(self, signum: int, kept: str = "") -> None:
        super().__init__(128 + signum)
        self.kept = kept


class Batch(NamedTuple):
    """One training batch.

    `index` (N,) int64 is the position of each image in the data set. `target` is the matching crop of the
    stored teacher image, shaped as `gt`, or None when teachers run on line. `gt` is None where the training images
    are photographs without ground truth, which only methods whose active terms read no gt are given
    (`Method.gt_terms`). `answers` are the same crops of what teachers answered whose answers are kept, by their names;
    None where all teachers are networks.
    """

    lq: Tensor
    gt: Tensor
    index: Tensor
    target: Tensor | None = None
    answers: Mapping[str, Tensor] | None = None


@dataclass
class Step:
    """The result of a method for one batch.

    `losses` holds raw (unweighted) scalar terms that train the student and the method's own modules, `critic` the
    terms of the second optimizer, `logs` detached scalars worth a curve (a mask fraction, a queue's fill).
    """

    sr: Tensor
    losses: dict[str, Tensor]
    critic: dict[str, Tensor] = field(default_factory=dict)
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a method needs of the run: the scale, the number of training images, the number of iterations."""

    scale: int
    num_samples: int
    total_steps: int


Remark = tuple[tuple[str, ...], str]
"""A key of an option file, and what is to be said of it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an option file asks of a method, known before a network is built.

    Attributes:
        options: the `method:` section as the method's `Config`.
        terms: active term -> its options.
        scale: of the run.
        teachers: names of the networks that the method gets: one with `fusion`, none with a `target_store`.
        declared: names under `teachers`.
        sources: the keys of the option file that supply teachers or their images.
        batch_size: images of one batch; None where nobody says.
    """

    options: Any
    terms: Mapping[str, Mapping[str, Any]]
    scale: int
    teachers: tuple[str, ...]
    declared: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    batch_size: int | None = None
