"""Small networks with which every method of the catalog is run by the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mtkd import catalog
from mtkd.archs.dctswin import DCTSwin
from mtkd.archs.edsr import EDSR
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.archs.fsrcnn import FSRCNN
from mtkd.archs.privileged import PrivilegedTeacher
from mtkd.archs.rcan import RCAN
from mtkd.contracts import Batch, Task
from mtkd.methods.base import Method, MethodConfig

SCALE = 2
TASK = Task(scale=SCALE, num_samples=8, total_steps=100)


def edsr(width: int = 8, blocks: int = 2) -> EDSR:
    return EDSR(num_in_ch=3, num_out_ch=3, num_feat=width, num_block=blocks, upscale=SCALE)


def rcan(width: int = 8) -> RCAN:
    return RCAN(num_in_ch=3, num_out_ch=3, num_feat=width, num_group=2, num_block=1, squeeze_factor=4, upscale=SCALE)


def fusion() -> DCTSwin:
    return DCTSwin(upscale=SCALE, num_teachers=2, embed_dim=12, depths=(2,), num_heads=(2,), num_feat=8)


def fused_teacher() -> dict[str, nn.Module]:
    return {"mean": FusedTeacher(Ensemble({"edsr": edsr(12), "rcan": rcan()}), MeanFusion(2))}


def one_teacher() -> dict[str, nn.Module]:
    return {"teacher": edsr(12)}


def fsrcnn() -> FSRCNN:
    return FSRCNN(num_feat=8, num_shrink=4, num_map=1, upscale=SCALE)


def privileged() -> PrivilegedTeacher:
    decoder = {"type": "FSRCNN", "num_feat": 8, "num_shrink": 4, "num_map": 1}
    return PrivilegedTeacher(decoder=decoder, encoder_feat=8, encoder_shrink=4, upscale=SCALE)


@dataclass(frozen=True)
class Setup:
    """How to build one method: networks, and a configuration in which every term is active."""

    student: Callable[[], nn.Module]
    teachers: Callable[[], Mapping[str, nn.Module]] = dict
    terms: Mapping[str, Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: Callable[[], nn.Module] | None = None
    """The network that the deployed weights must load into, when it is not `student`."""


SETUPS: dict[str, Setup] = {
    "SRModel": Setup(edsr, terms={"pixel": {}}),
    "SwinIRModel": Setup(edsr, terms={"pixel": {}}),
    "OutputKD": Setup(edsr, lambda: {"teacher": edsr(12)}),
    "MTKDFusion": Setup(fusion, lambda: {"edsr": edsr(12), "rcan": rcan()}),
    "MTKD": Setup(edsr, fused_teacher, terms={"pixel": {}, "target": {}, "spatial": {}}),
    "SRKD": Setup(edsr, lambda: {"teacher": rcan()}),
    "FAKD": Setup(edsr, lambda: {"edsr": edsr(blocks=3), "rcan": rcan()}),
    "FitNet": Setup(edsr, lambda: {"teacher": edsr(12, blocks=3)}),
    "AT": Setup(edsr, lambda: {"teacher": edsr(12, blocks=3)}),
    "PKT": Setup(edsr, lambda: {"teacher": rcan(12)}),
    "RKD": Setup(edsr, lambda: {"teacher": rcan(12)}, options={"grid": 2, "angle_vectors": 8}),
    "StructuredKD": Setup(edsr, one_teacher, options={"critic_feat": 4}),
    "DUKD": Setup(edsr, one_teacher, options={"tiles": 2}),
    "DCKD": Setup(edsr, one_teacher, options={"vqgan": "random", "negatives": 1}),
    "CRD": Setup(edsr, one_teacher, options={"positions": 20, "queue_size": 50, "radius": 1}),
    "PISRTeacher": Setup(privileged, plain=fsrcnn),
    "PISR": Setup(fsrcnn, lambda: {"privileged": privileged()}),
    "CSD": Setup(edsr, options={"width": 0.5, "vgg": "random", "negatives": 2}, plain=lambda: edsr(4)),
    "OnlineTeacher": Setup(edsr, options={"margin": -1.0, "num_feat": 8, "num_block": 1}),
}


def build(name: str, seed: int = 0) -> Method:
    setup = SETUPS[name]
    torch.manual_seed(seed)
    cls = catalog.get("method", name)
    terms = setup.terms if setup.terms is not None else {term: {} for term in cls.terms}
    method = cls(setup.student(), setup.teachers(), TASK, MethodConfig(terms=terms, options=setup.options))
    wake(method.student)
    return method.train()


def wake(net: nn.Module) -> None:
    """Move zero-initialised weights off zero, where a gradient cannot pass."""
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.02)


def batch(size: int = 3, height: int = 16, width: int = 16, seed: int = 1, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lq = torch.rand(size, 3, height, width, generator=generator, dtype=dtype)
    gt = torch.rand(size, 3, height * SCALE, width * SCALE, generator=generator, dtype=dtype)
    return Batch(lq=lq, gt=gt, index=torch.arange(size) % TASK.num_samples)
