"""Published weights by name: fetched, checked, converted, loaded strictly; and safe reading of any checkpoint.

`pretrain: zoo:rcan_x4` in an option file goes through `resolve`, `read_checkpoint` and `load_into`; `build` does it
all.
"""

from __future__ import annotations

from mtkd.zoo.cache import converted_path, ensure, home, import_file, resolve, resolve_inside, verify
from mtkd.zoo.conversion import build, convert
from mtkd.zoo.described import Described, describe
from mtkd.zoo.files import Checkpoint, Origin, read_checkpoint, write_safetensors
from mtkd.zoo.loading import load_into
from mtkd.zoo.table import ENTRIES, Entry, Published, Source, entry, is_shipped

__all__ = [
    "ENTRIES",
    "Checkpoint",
    "Described",
    "Entry",
    "Origin",
    "Published",
    "Source",
    "build",
    "convert",
    "converted_path",
    "describe",
    "ensure",
    "entry",
    "home",
    "import_file",
    "is_shipped",
    "load_into",
    "read_checkpoint",
    "resolve",
    "resolve_inside",
    "verify",
    "write_safetensors",
]
