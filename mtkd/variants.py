"""Networks of known sizes by name: `network_g: edsr_m` in an option file is the arch with the arguments of this table.

A name sets neither the scale nor the number of teachers of a fusion network: the run sets them.
"""

from __future__ import annotations

from typing import Any

from mtkd.contracts import MtkdError
from mtkd.runtime.names import closest

_MEAN = {"img_range": 255.0, "rgb_mean": [0.4488, 0.4371, 0.4040]}
_RCAN = {"num_feat": 64, "num_group": 10, "squeeze_factor": 16, "res_scale": 1, **_MEAN}
_SWINIR = {"in_chans": 3, "window_size": 8, "img_range": 1.0, "mlp_ratio": 2, "resi_connection": "1conv"}
_SWINIR_M = {**_SWINIR, "depths": [6] * 6, "embed_dim": 180, "num_heads": [6] * 6, "upsampler": "pixelshuffle"}
_DCTSWIN = {"window_size": 8, "mlp_ratio": 2}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "edsr_m": ("EDSR", {"num_feat": 64, "num_block": 16, "res_scale": 1, **_MEAN}),
    "edsr_l": ("EDSR", {"num_feat": 256, "num_block": 32, "res_scale": 0.1, **_MEAN}),
    "rcan": ("RCAN", {"num_block": 20, **_RCAN}),
    "rcan_lw": ("RCAN", {"num_block": 6, **_RCAN}),
    "swinir_m": ("SwinIR", {"img_size": 48, **_SWINIR_M}),
    "swinir_m_df2k": ("SwinIR", {"img_size": 64, **_SWINIR_M}),
    "swinir_s": (
        "SwinIR",
        {
            "img_size": 64,
            **_SWINIR,
            "depths": [6] * 4,
            "embed_dim": 60,
            "num_heads": [6] * 4,
            "upsampler": "pixelshuffledirect",
        },
    ),
    # What ships: small enough for video on two cores, trained with wide kernels that `deployable()` folds.
    "tiny": ("PlainSR", {"num_feat": 16, "num_conv": 6, "expand": 256}),
    "small": ("PlainSR", {"num_feat": 32, "num_conv": 5, "expand": 256}),
    "fsrcnn": ("FSRCNN", {"num_feat": 56, "num_shrink": 12, "num_map": 4}),
    "dctswin": (
        "DCTSwin",
        {"embed_dim": 96, "depths": [4, 4], "num_heads": [6, 6], **_DCTSWIN, "drop_path_rate": 0.1},
    ),
    # The demo's: a student and its teachers, each trained in minutes on a CPU.
    "edsr_tiny": ("EDSR", {"num_feat": 16, "num_block": 4}),
    "edsr_demo": ("EDSR", {"num_feat": 32, "num_block": 6}),
    "rcan_demo": ("RCAN", {"num_feat": 28, "num_group": 2, "num_block": 4, "squeeze_factor": 4}),
    "swinir_demo": (
        "SwinIR",
        {
            "img_size": 24,
            "window_size": 8,
            "depths": [2] * 4,
            "embed_dim": 32,
            "num_heads": [2] * 4,
            "mlp_ratio": 2,
            "upsampler": "pixelshuffledirect",
            "drop_path_rate": 0.0,
        },
    ),
    "dctswin_demo": (
        "DCTSwin",
        {
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads": [3, 3],
            "num_feat": 16,
            "drop_path_rate": 0.0,
            "contrast": 16.0,
        },
    ),
}
"""Name -> arch of the catalog and its arguments."""


TEACHERS: dict[str, str] = {"edsr_m": "edsr_l", "rcan_lw": "rcan", "swinir_s": "swinir_m_div2k"}
"""Student -> the published teacher of its family, trained on DIV2K: `{teacher}` in option files."""


def variant(name: str) -> dict[str, Any]:
    """The network `name` as an option file writes it out: `type` and its arguments, a copy.

    Raises:
        MtkdError: there is none of that name; the text names the nearest ones.
    """
    if name not in VARIANTS:
        lowered = name.lower()
        near = closest(lowered, VARIANTS)
        near = list(dict.fromkeys([*near, *of_arch(name)]))
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise MtkdError(
            f"No network is called {name!r}.{hint} There are {', '.join(VARIANTS)}; write any other out as "
            "`{type: ARCH, ...}`."
        )
    arch, arguments = VARIANTS[name]
    return {
        "type": arch,
        **{key: list(value) if isinstance(value, list) else value for key, value in arguments.items()},
    }


def of_arch(arch: str) -> list[str]:
    """Names of the variants of `arch`, in whatever case it is written."""
    return [name for name, (whose, _) in VARIANTS.items() if whose.lower() == arch.lower()]
