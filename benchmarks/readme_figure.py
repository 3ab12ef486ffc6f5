"""Draw README's figure, what MTKD's recipe and FAKD gain over ground truth: python benchmarks/readme_figure.py

It is made of the kept results of the grids, as the tables are. The numbers stand in the file too, as its description,
and a test holds them to the results.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from readme_tables import METRIC, ROOT, results

from mtkd.report.arrange import POOLED

FIGURE = ROOT / "docs/assets/gains.svg"
RECIPE = "MTKD, our recipe, mean"
GAINS = (
    ("edsr_m_x4", "10,000", RECIPE, "EDSR_M, 1.5M parameters, 299 images\nMTKD, 10,000 iterations"),
    ("students_x4", "small", f"{RECIPE} of three teachers", "small, 52k, 299 images\nMTKD, 40,000 iterations"),
    ("students_x4", "tiny", f"{RECIPE} of three teachers", "tiny, 17k, 299 images\nMTKD, 40,000 iterations"),
    (
        "cpu_x4",
        "edsr_32x4, x4, 4,000",
        "MTKD, our recipe, fused",
        "EDSR, 98k, 299 images\nMTKD on fused, 4,000 iterations",
    ),
    ("cpu_x4", "edsr_16x4, x4, 24,000", RECIPE, "EDSR, 28k, 299 images\nMTKD, 24,000 iterations"),
    ("cpu_x4_few", " 5 photographs, x4, 2,000", RECIPE, "EDSR, 98k, 5 photographs\nMTKD, 2,000 iterations"),
    (
        "cpu_x4_few",
        " 5 photographs, x4, 2,000",
        "L1(T), mean, and 294 photographs without gt",
        "the same, 294 more without gt\nL1 on the mean",
    ),
    ("cpu_x4_few", " 20 photographs, x4, 2,000", RECIPE, "EDSR, 98k, 20 photographs\nMTKD, 2,000 iterations"),
    ("cpu_x4_few", " 100 photographs, x4, 2,000", RECIPE, "EDSR, 98k, 100 photographs\nMTKD, 2,000 iterations"),
    ("cpu_x4", "edsr_16x4, x4, 4,000", "FAKD, EDSR 32x8", "EDSR, 28k, 299 images\nFAKD, 4,000 iterations"),
    ("cpu_x4", "edsr_16x4, x4, 24,000", "FAKD, EDSR 32x8", "EDSR, 28k, 299 images\nFAKD, 24,000 iterations"),
)
"""Grid, words of a group's title, row, and what the figure calls it."""


def gains() -> list[dict[str, Any]]:
    """Of each of `GAINS`: label, gain over ground truth in dB, and its interval."""
    found = []
    for name, words, row, label in GAINS:
        report, compared = results(name)
        base = report.baselines[0]
        (one,) = (
            one
            for one in compared
            if words in one.group and (one.row, one.baseline, one.dataset, one.metric) == (row, base, POOLED, METRIC)
        )
        low, high = one.interval
        found.append({"label": label, "gain": round(one.gain, 4), "low": round(low, 4), "high": round(high, 4)})
    return found


def kept(text: str) -> list[dict[str, Any]]:
    """What the figure `text` says that it shows."""
    (description,) = re.findall(r"<dc:description>(.*?)</dc:description>", text, re.DOTALL)
    return json.loads(description.replace("&quot;", '"').replace("&amp;", "&"))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the figure of `rows` as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    # The same numbers give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "mtkd", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.6, 0.5 * len(rows) + 0.9), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="#888888", linewidth=1)
        for place, row in enumerate(rows):
            sure = row["low"] > 0 or row["high"] < 0
            color = "#8a8a8a" if not sure else "#1b7f4d" if row["gain"] > 0 else "#b3372f"
            axes.plot([row["low"], row["high"]], [place, place], color=color, linewidth=2.5, solid_capstyle="round")
            axes.plot([row["gain"]], [place], "o", color=color, markersize=6)
            axes.text(row["high"] + 0.012, place, f"{row['gain']:+.3f}", va="center", color=color)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(-0.15, 0.56)
        axes.set_xlabel("PSNR-Y above training on ground truth (dB)")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.savefig(path, format="svg", metadata={"Date": None, "Description": json.dumps(rows)})


def main() -> None:
    """Renew the figure."""
    draw(gains(), FIGURE)
    print(f"{FIGURE.relative_to(ROOT)}: {FIGURE.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
