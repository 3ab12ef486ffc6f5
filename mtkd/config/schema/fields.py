"""What the sections of an option file are made of: a strict mapping, and the kinds of values in it."""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mtkd.config.signatures import whole
from mtkd.contracts import MtkdError
from mtkd.runtime.given import check_name, check_readable
from mtkd.runtime.given import path as given_path


def _file_name(value: str) -> str:
    try:
        check_name(value)
    except MtkdError as error:
        raise ValueError(str(error)) from error
    return value


def _user_path(value: str) -> str:
    try:
        check_readable(given_path(value))
    except MtkdError as error:
        raise ValueError(str(error)) from error
    return os.path.expanduser(value)


MOST = 2**31 - 1
"""Largest count: products of two still fit into 64 bits."""
Int = Annotated[int, BeforeValidator(whole)]
Count = Annotated[int, BeforeValidator(whole), Field(ge=1, le=MOST)]
Batch = Annotated[int, BeforeValidator(whole), Field(ge=1, le=65_536)]
Workers = Annotated[int, BeforeValidator(whole), Field(ge=0, le=1024)]
Precision = Literal["fp32", "bf16", "fp16"]
UserPath = Annotated[str, AfterValidator(_user_path)]
FileName = Annotated[str, AfterValidator(_file_name)]


class Section(BaseModel):
    """A mapping of an option file: no further keys, no conversions between kinds of values."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    internal: ClassVar[frozenset[str]] = frozenset()
    """Fields that the reader fills, not the file."""
