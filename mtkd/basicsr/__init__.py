"""The bridge to BasicSR. Importing it imports basicsr (about a second).

It works in both directions. `adapted` gives mtkd the entries of BasicSR's registries, in the form that mtkd calls.
`register()` enters mtkd's networks, losses and metrics into BasicSR's registries.

`shim` and `inward` do not import the catalog, so that the catalog can import them. `outward` needs the catalog; it is
imported when `register()` is called.
"""

from __future__ import annotations

from mtkd.basicsr.inward import adapted
from mtkd.basicsr.shim import RegistryKind, names, registered

__all__ = ["RegistryKind", "adapted", "names", "register", "registered"]


def register() -> list[str]:
    """Enter mtkd's networks, losses and metrics into BasicSR's registries and return the names given.

    Each is entered as `NAME_mtkd`, and as `NAME` too where BasicSR has nothing of that name: `EDSR` stays BasicSR's,
    `EDSR_mtkd` and `DCTSwin` are ours. Losses take BasicSR's `loss_weight`; metrics take 8-bit BGR arrays. Calling it
    again changes nothing.
    """
    from mtkd.basicsr import outward

    return outward.register()
