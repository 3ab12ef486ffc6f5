"""`network_g`, `teachers` and `fusion`: networks, the weights of those that are frozen, and kept answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_serializer

from mtkd.config.schema.fields import Section, UserPath


class NetworkOptions(Section):
    """`{type: ARCH, **args}`: a name of the catalog and its constructor's arguments."""

    type: str
    args: dict[str, Any] = {}

    @property
    def is_none(self) -> bool:
        """There is no network: `network_g` of a test file that measures teachers alone."""
        return not self.type

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"type": self.type, **self.args}


NO_NETWORK = NetworkOptions(type="")
"""`network_g` of a test file that measures teachers alone; also stands where a network could not be read."""


class TeacherOptions(Section):
    """One teacher.

    `pretrain` is a file or `zoo:NAME`; `param_key` is the file's entry that holds the weights, None when the file is a
    bare state dict, "auto" to look for `params_ema` first and `params` next. `network` is None only where it is left to
    the weights, and these were not there when the options were read. `scale` is what the network enlarges by, where
    that is more than the run's.
    """

    network: NetworkOptions | None = None
    pretrain: UserPath
    param_key: str | None = "auto"
    scale: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="what the network enlarges by, where that is more than the run's `scale`: its images are made "
        "smaller by MATLAB's bicubic rule, so that a teacher of x4 teaches at x2 and x3. `~`: the run's",
    )


class AnswersOptions(Section):
    """A teacher that is its answers, which are images; see docs/methods.md."""

    images: UserPath | dict[str, UserPath] = Field(
        description="instead of a network: its answers, a folder of images named as those they answer, or a store; a "
        "folder of such folders or stores called `train` and as the evaluation sets (key or `name`); or a mapping of "
        "them"
    )


class FusionOptions(Section):
    """The network that makes one image of the teachers'; fields as in `TeacherOptions`."""

    network: NetworkOptions | None = None
    pretrain: UserPath
    param_key: str | None = "auto"
