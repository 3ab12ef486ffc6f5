"""BasicSR's kinds of models: whose generators are tested as plain networks, and what is said of the others."""

from __future__ import annotations

from mtkd import catalog

GENERATORS = ("SRGANModel", "ESRGANModel", "RealESRGANModel", "RealESRNetModel")
"""Models that differ from SRModel in training alone: a test runs network_g over images, whole."""
TESTED_AS = "SRModel"

_GAN = (
    "GAN training is not part of mtkd. Train the generator without its critic, `model_type: SRModel` with `pixel_opt` "
    "alone (the PSNR training that such a run starts from); weights of GANs work in test files and in `mtkd upscale`."
)
_VIDEO = (
    "video super-resolution is not part of mtkd, whose networks take one image. Frames one by one: `mtkd upscale "
    "FOLDER OUT` with a network of images."
)
_SAID = {
    "RealESRNetModel": "degradations that are made during training are not part of mtkd. Make the lq images before and "
    "train `model_type: SRModel` on the pairs, or name a data set class that makes them (`type: "
    "my_package.my_module:MyClass`); its weights work in test files and in `mtkd upscale`.",
    "HiFaceGANModel": "restoring faces is not part of mtkd, whose networks enlarge any photograph.",
    "StyleGAN2Model": "making images without an input is not part of mtkd.",
    **dict.fromkeys(GENERATORS[:3], _GAN),
    **dict.fromkeys(
        ("VideoBaseModel", "VideoGANModel", "VideoRecurrentModel", "VideoRecurrentGANModel", "EDVRModel"), _VIDEO
    ),
}


def refusal(name: str) -> str | None:
    """Why a file of model `name` cannot be used; None where mtkd has it, or has never heard of its kind."""
    if name in catalog.METHODS or ":" in name:
        return None
    # Of projects on BasicSR: SwinIRGANModel, RealHATGANModel.
    kind = _VIDEO if "Video" in name else _GAN if "GAN" in name else None
    said = _SAID.get(name, kind)
    return said and f"{name} is not supported: {said}"
