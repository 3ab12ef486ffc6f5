"""JSON that every reader takes: RFC 8259 has no infinite numbers and no NaN, which Python writes all the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **settings: Any) -> str:
    """`json.dumps` with the text "inf", "-inf" or "nan" where a number is not finite; Python's `float` reads it."""
    return json.dumps(_finite(value), allow_nan=False, **settings)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
