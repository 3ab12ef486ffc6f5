"""What comes with mtkd and is no code: the recipes in `options/`, the demo's images and weights in `datasets/demo`.

In a checkout they lie beside the package. A wheel carries them inside it, under the same names (`setup.py`).
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

import mtkd
from mtkd.contracts import MtkdError

PHOTOGRAPHS = "demo:photographs"
"""As the `data` of a grid: the photographs that `mtkd demo` trains on."""
RECIPE = "recipe:"
"""Prefix of a name that means an option file of `options/train`."""
_INSIDE = "shipped"


def file(name: str) -> Path:
    """The file or folder called `name` in the repository, e.g. `options/benchmark.yml`.

    Raises:
        MtkdError: it is not there.
    """
    package = Path(str(mtkd.__file__)).resolve().parent
    for root in (package / _INSIDE, package.parent):
        if (root / name).exists():
            return root / name
    raise MtkdError(
        f"{name} is missing from this installation of mtkd in {package}. Install it again, or run it from a checkout."
    )


def photographs() -> Path:
    """The folder of the demo's photographs, which scikit-image installs.

    Raises:
        MtkdError: scikit-image is missing.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise MtkdError("The demo trains on photographs that scikit-image installs: pip install 'mtkd[demo]'.")
    return Path(found.origin).parent / "data"


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe; a name is the path under `options/train`, without `.yml`.

    Raises:
        MtkdError: the recipes are not there.
    """
    folder = file("options/train")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yml"))}


def recipe(name: str) -> Path:
    """The option file of the recipe `name`.

    Raises:
        MtkdError: there is none; the text names the nearest ones.
    """
    known = recipes()
    if name in known:
        return known[name]
    # By the whole path, and by its last part: `stage2` is as good a guess as `mtkd/stage2`.
    lower = {key.lower(): key for key in known} | {key.lower().rpartition("/")[2]: key for key in known}
    near = [lower[found] for found in difflib.get_close_matches(name.lower().removesuffix(".yml"), lower, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    raise MtkdError(f"No recipe is called {name[:80]!r}.{hint} `mtkd list recipes` names all of them.")


def recipe_name(path: Path) -> str | None:
    """The name of the recipe in `path`, None where it is another file."""
    return next((name for name, known in recipes().items() if known == path), None)


def summary(path: Path) -> str:
    """The first sentence of the comment that begins an option file, without the line for editors and commands."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or (words and text.startswith("mtkd ")):
            break
        if not text.startswith("yaml-language-server"):
            words += text.split()
    sentence, stop, _ = " ".join(words).partition(". ")
    return sentence + stop.strip()
