"""Installation: what the package needs (ranges), the one command it brings, and what of the repository it carries.

The exact versions everything was tested with are in `constraints.txt`; `make test` installs those.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = ("options/**/*.yml", "options/**/*.json", "datasets/demo/**/*.*")
"""Files outside the package that a wheel carries in `mtkd/shipped`, where `mtkd.runtime.shipped` finds them."""


class BuildWithShipped(build_py):
    """Copies what is `SHIPPED` beside the built modules; an editable install finds it in the checkout."""

    def run(self) -> None:
        """Build the modules, then copy."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "mtkd" / "shipped"
        shutil.rmtree(target, ignore_errors=True)  # a build folder may hold recipes that are gone
        for pattern in SHIPPED:
            for file in ROOT.glob(pattern):
                copy = target / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


def version() -> str:
    """`__version__`, read as text: importing mtkd here would need torch at build time."""
    text = (ROOT / "mtkd" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError('mtkd/__init__.py has no line `__version__ = "..."`.')
    return found[1]


def readme() -> str:
    """Text of the front page, the long description."""
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


setup(
    name="mtkd",
    version=version(),
    description="Knowledge distillation for image super-resolution: teachers, a fused target, a compact student",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["mtkd", "mtkd.*"]),
    package_data={
        "mtkd": ["py.typed"],
        "mtkd.data.manifests": ["*.csv"],
        "mtkd.report.templates": ["*.html", "*.css", "*.js"],
        "mtkd.zoo.students": ["*.json", "*.md", "*.safetensors"],
    },
    cmdclass={"build_py": BuildWithShipped},
    zip_safe=False,
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",  # torch.compiler.set_stance
        "torchvision>=0.21",
        "numpy>=1.26",
        "basicsr>=1.4.2; python_version < '3.13'",  # its setup.py cannot run on 3.13
        "tensorboard; python_version >= '3.13'",  # before, basicsr brings tb-nightly, which holds the same files
        "opencv-python",  # what basicsr requires too; the -headless twin would overwrite the same files
        "pillow",
        "PyWavelets",
        "pytorch-wavelets>=1.3",
        "setuptools<81",  # at run time: pytorch-wavelets imports pkg_resources, which setuptools 81 dropped
        "einops",
        "lightning-fabric>=2.4",
        "lmdb",
        "lpips>=0.1.4",
        "pydantic>=2.4",  # a limit and a description on one field
        "pyyaml",
        "pooch",
        "filelock",
        "rich",
        "matplotlib",
        "safetensors",
        "scipy>=1.15",  # qmc.Sobol(rng=...)
        "jinja2",
    ],
    extras_require={
        "dev": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "pytorch-msssim",
            "hypothesis",
            "ruff",
            "pyright[nodejs]",
            "DISTS-pytorch",
            "huggingface_hub",
            "mkdocs-material",
            "mkdocstrings[python]",
            "ncnn",
            "onnx",
            "onnxconverter-common",
            "onnxruntime",
            "onnxscript",
            "playwright",  # clicks through the report page, with the system's Chromium
            "pnnx",
            "scikit-image",
            "submitit",
            "torch-dct",
        ],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],  # the pages of docs/ as a site
        "hub": ["huggingface_hub"],  # `mtkd.load("hf:...")`, `mtkd push`
        "ncnn": ["ncnn", "pnnx"],  # `mtkd export --format ncnn`
        "onnx": ["onnx", "onnxconverter-common", "onnxruntime", "onnxscript"],  # `mtkd export`, `--weights x.onnx`
        "spandrel": ["spandrel>=0.4"],
        "wandb": ["wandb"],
        "metrics": ["pytorch-msssim", "DISTS-pytorch"],  # MS-SSIM and DISTS
        "slurm": ["submitit"],  # `mtkd bench --launcher slurm`
        "demo": ["scikit-image"],  # photographs to train on when no data set is at hand
    },
    entry_points={"console_scripts": ["mtkd = mtkd.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
)
