"""A checked option file, written out in full."""

from __future__ import annotations

from mtkd.config import yaml_loader
from mtkd.config.schema import Options


def resolved_yaml(options: Options) -> str:
    """`options` as a complete option file, every default and every forced value written out; it loads back equal."""
    plain = options.model_dump()
    if not options.is_train:
        del plain["logger"]
    if options.network_g.is_none:
        del plain["network_g"]
    for given in plain["datasets"].values():
        # BasicSR reads a type from it, also where it is null.
        if given is not None and given.get("io_backend", "") is None:
            del given["io_backend"]
    if not options.datasets.evaluation:
        del plain["val"]
    return yaml_loader.dump({key: value for key, value in plain.items() if value is not None and value != {}})
