"""Measure published weights on Set5 and Set14 and hold them to their published scores.

    python benchmarks/published_weights.py [FILE ...] [--images FOLDER] [--weights-dir DIR]

Without files it takes those in `../shared/weights` beside the repository and every entry of the zoo that is already in
the weights folder; nothing is downloaded. `--images` holds `Set5/HR`, `Set5/LR_bicubic/X2` and so on. Which network a
file holds is read from the file, else from its shapes, else left to spandrel. PSNR and SSIM on Y, border = scale, whole
images. Prints a table and writes `benchmarks/results/published_weights.json`; rows that are there from an earlier run
stay unless they are measured again. A difference of more than 0.02 dB is flagged, and then the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mtkd import zoo
from mtkd.contracts import MtkdError
from mtkd.data.paired import PairedImages
from mtkd.inference.evaluate import build_metrics, evaluate
from mtkd.runtime.environment import environment
from mtkd.runtime.files import sha256 as sha256_of
from mtkd.zoo import building, conversion
from mtkd.zoo.docs import Y

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "benchmarks/results/published_weights.json"
SETS = ("Set5", "Set14")
TOLERANCE = 0.02
"""dB."""

Scores = dict[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Reference:
    """Scores to be met, and who measured them."""

    by: str
    scores: Scores


OUTSIDE_THE_ZOO = {
    "f1b8b5465b31ea45f2efcf1e12a06beace0da681c85e78e4b7b2103c1097cbef": Reference(
        "basicsr's EDSR and metrics, not published", {"Set5": (37.801, 0.9598), "Set14": (33.373, 0.9159)}
    ),
    "a3d57001df7e856be6b4e3553d77be3b038609f34db5d41b43c3e6c67756a381": Reference(
        "spandrel's network called directly, not published", {"Set5": (32.420, 0.8973), "Set14": (28.851, 0.7867)}
    ),
}
"""sha256 -> reference for files that no table of the zoo has: an EDSR of 8 blocks (x2), and CRAFT (x4)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--images", type=Path, default=SHARED / "data/test")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--weights-dir", type=Path, help="folder of the zoo's weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    wanted = args.files or found_files(args.weights_dir)
    if not wanted:
        raise MtkdError(f"No weights: name files, or put some into {SHARED / 'weights'} or {zoo.home()}.")
    rows = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else []
    for file in wanted:
        for row in measured(file, args.sets, args.images, args.device):
            rows = [old for old in rows if (old["sha256"], old["dataset"]) != (row["sha256"], row["dataset"])] + [row]
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    show(rows)
    return 1 if any(row["flagged"] for row in rows) else 0


def found_files(weights_dir: Path | None) -> list[Path]:
    """Published weights that are here already."""
    shared = [path for path in sorted((SHARED / "weights").glob("*")) if path.suffix in (".pth", ".pt", ".safetensors")]
    converted = [zoo.converted_path(item, weights_dir) for item in zoo.ENTRIES.values() if item.scale]
    return shared + [path for path in converted if path.is_file()]


def network(file: Path) -> tuple[nn.Module, str]:
    """Network of a file, in eval mode, and its description."""
    checkpoint = zoo.read_checkpoint(file)
    arch = checkpoint.facts.get("arch") or conversion.guess(checkpoint)[0] or {"type": "spandrel", "args": {}}
    net = building.build_trusted(arch, source=str(file))
    zoo.load_into(net, checkpoint.state, source=str(file))
    described = ", ".join(f"{name}={value}" for name, value in arch["args"].items())
    return net.eval(), f"{getattr(net, 'architecture', arch['type'])}({described})"


def reference(file: Path) -> Reference | None:
    """Scores that `file` has to meet: those of its zoo entry, else those of `OUTSIDE_THE_ZOO`."""
    item = zoo.ENTRIES.get(zoo.read_checkpoint(file).facts.get("name", ""))
    for published in item.published if item else ():
        if published.protocol == Y:
            return Reference(published.by, published.scores)
    return OUTSIDE_THE_ZOO.get(sha256_of(file))


def measured(file: Path, sets: list[str], images: Path, device: str) -> list[dict]:
    """One row per test set."""
    net, described = network(file)
    scale: int = net.scale  # pyright: ignore[reportAssignmentType]
    options = {"crop_border": scale, "test_y_channel": True}
    metrics = build_metrics({name: {"type": f"calculate_{name}", **options} for name in ("psnr", "ssim")})
    known = reference(file)
    rows = []
    for name in sets:
        pairs = PairedImages(
            dataroot_gt=str(images / name / "HR"),
            dataroot_lq=str(images / name / f"LR_bicubic/X{scale}"),
            filename_tmpl=f"{{}}x{scale}",
            scale=scale,
        )
        began = time.perf_counter()
        means = evaluate(net.to(device), pairs, metrics, dataset=name, device=device).means()
        expected = known.scores.get(name) if known else None
        difference = means["psnr"] - expected[0] if expected else None
        rows.append(
            {
                "file": file.name,
                "sha256": sha256_of(file),
                "network": described,
                "scale": scale,
                "dataset": name,
                "psnr_y": means["psnr"],
                "ssim_y": means["ssim"],
                "reference": {"by": known.by, "psnr_y": expected[0], "ssim_y": expected[1]}
                if known and expected
                else None,
                "psnr_difference": difference,
                "flagged": difference is not None and abs(difference) > TOLERANCE,
                "seconds": round(time.perf_counter() - began, 1),
                "command": "python " + shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
                "environment": environment(device),
            }
        )
        print(f"{file.name} {name}: {means['psnr']:.3f} / {means['ssim']:.4f}", file=sys.stderr)
    return rows


def show(rows: list[dict]) -> None:
    """Print all rows as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "scale", "set", "PSNR-Y / SSIM-Y", "reference", "difference", "reference by")
    for row in rows:
        known = row["reference"]
        ssim = f" / {known['ssim_y']:.4f}" if known and known["ssim_y"] else ""
        table.add_row(
            row["file"],
            f"x{row['scale']}",
            row["dataset"],
            f"{row['psnr_y']:.3f} / {row['ssim_y']:.4f}",
            f"{known['psnr_y']:.3f}{ssim}" if known else "-",
            f"{row['psnr_difference']:+.3f} dB{' !' if row['flagged'] else ''}" if known else "-",
            known["by"] if known else "-",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MtkdError as error:
        sys.exit(f"published_weights: {error}")
