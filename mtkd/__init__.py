"""mtkd: knowledge distillation for image super-resolution.

Several pretrained teachers, a DCT-Swin fusion network, a compact student, a wavelet loss (MTKD, Jiang et al.,
ECCV 2024), and the methods it must be compared with, in one trainer. Read `docs/architecture.md` first, then
`mtkd/catalog.py`, which lists everything that exists.
"""

__version__ = "0.1.0"
