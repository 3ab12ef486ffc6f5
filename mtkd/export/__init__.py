"""Networks as files that other programs run: ONNX, ncnn, torch.export, safetensors.

A file gets its name after its own runtime has computed with it what torch computes, on photos of three odd sizes.
"""

from __future__ import annotations

from mtkd.export.subject import Subject
from mtkd.export.write import FORMATS, PRECISIONS, Exported, Exporter, export

__all__ = ["FORMATS", "PRECISIONS", "Exported", "Exporter", "Subject", "export"]
