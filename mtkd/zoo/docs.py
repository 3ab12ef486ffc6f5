"""The page docs/zoo.md, made from the table: `python -m mtkd.zoo.docs > docs/zoo.md`."""

from __future__ import annotations

from mtkd.zoo import students
from mtkd.zoo.table import ENTRIES, RGB, Entry, Source, Y

INTRODUCTION = """\
# Published weights

Made from the table in `mtkd/zoo/table.py` by `python -m mtkd.zoo.docs > docs/zoo.md`; edit the table, not this page.

An option file names them as `pretrain: zoo:rcan_x4`. The file is fetched when it is first asked for, its sha256 is
checked, it is converted to BasicSR's naming, loaded strictly once, and kept as a safetensors file that says what it is.

```
mtkd zoo list [--arch RCAN] [--scale 4]     what there is
mtkd zoo info rcan_x4                       one entry in full
mtkd zoo download rcan_x4 edsr_l_x4         fetch, check, convert (or --all)
mtkd zoo import rcan_x4 FILE                the same for a file or archive fetched by hand
mtkd zoo verify                             hash every converted file again
mtkd zoo where [rcan_x4]                    the folder, or one file in it
mtkd zoo convert IN OUT --to safetensors    also --to basicsr, --to official
```

The networks called `tiny` and `small` come with the package and are fetched from nowhere; where weights are named,
their names need no `zoo:`. Each has a card:
{cards}.

Files lie in the platform's cache folder, or in `$MTKD_HOME/weights`; `--weights-dir DIR` is of `mtkd zoo` alone, and
what it fetches is not found by a training. Without a network: fetch a
file listed below elsewhere and put it, under its name, into that folder. A file with the wrong hash is set aside and
never used.

The same names work for weights among the options of a method or a metric: `vgg: zoo:vgg19` of CSD, `vqgan:
zoo:vqgan_f16_1024` of DCKD, `weights: zoo:alexnet` of LPIPS, `weights: zoo:vgg16` of DISTS.

## Any other checkpoint

With `pip install 'mtkd[spandrel]'` every RGB super-resolution checkpoint that
[spandrel](https://github.com/chaiNNer-org/spandrel) knows (HAT, DAT, SPAN, CRAFT, Real-ESRGAN, ...) is a teacher or is
tested; the weights say which network it is:

```yaml
teachers:
  hat:
    network: {type: spandrel}
    pretrain: experiments/pretrained_models/HAT_SRx4.pth
```

and for a test `network_g: {type: spandrel}` with `path.pretrain_network_g`. The scale must be that of the option file.
Taps are called `model.` and the module's name in its authors' code. `mtkd zoo convert IN OUT --to safetensors --arch
spandrel` makes a file for `mtkd upscale --weights`.

`python benchmarks/published_weights.py FILE...` measures weights on Set5 and Set14 beside their published scores; what
was measured is in `benchmarks/results/published_weights.json`.

## What is trusted in a file

Weights files may come from anybody, so nothing in them is run (`SECURITY.md`). `mtkd upscale --weights`, `mtkd zoo
convert` and `mtkd.zoo.build` build a network that a file describes only when it is one of mtkd's own, or one whose
module the user has named with `--import`; BasicSR's own networks need `--import basicsr`. The network must have the
very tensors of the file, which is known before memory is taken for it.

torch's files carry a checksum of each member, which torch does not look at and mtkd does: 0.4 to 0.8 s per GB on an AMD
EPYC, beside 0.9 to 1.1 s for reading. A file with a flipped bit is refused, and the member named. safetensors carry
none; those of the zoo have their sha256 in the record beside them.

A file whose tensors are quantized, sparse, complex, of 8 bits, or without values is refused by name. Prefixes that
training programs put before every name (`module.`, `_orig_mod.`, `generator.`, `net_g.`, `netG.`, `model.`) are taken
off; numbers of numpy beside the weights do no harm. With `strict_load_g: false`, tensors that are missing, unknown or
of another shape are left and listed; that nothing fits is an error.

A transfer ends when three attempts in a row bring nothing new (at most 100 at one address), when fewer than 64 kB come
in a minute, or when more comes than the file can have. A file with the wrong hash, or that cannot be used, is set aside
as `FILE.bad-HASH`, and the next address is asked.

## Networks

Scores are as published, for the protocol named at the head of the column, and were not measured by this project, but
for those of the networks that come with it. The
SwinIR networks called `df2k` saw DIV2K and Flickr2K, 3450 images where all the others saw the 800 of DIV2K: a
comparison of students is fair only among teachers of the same data. "Hash" says how the original is known: "sha256" by
its full hash, as published or as mirrors agree on it; "8 digits" by the start of its hash in the publisher's file name;
"none" not at all before it is first used, from when on it is pinned. No hash here was confirmed against the publisher's
own host.
"""

NOT_LISTED = """\
## Not listed, and why

- `eugenesiow/edsr` and `eugenesiow/edsr-base` on Hugging Face: trained anew, and their code skips the mean shifts that
  are in the file, so in an official EDSR they compute something else without any error.
- `eugenesiow/rcan-bam`: far below RCAN (x4 Set5 30.80 dB).
- OpenMMLab's EDSR: trained anew, in another naming.
"""


def page() -> str:
    """The whole page."""
    cards = ",\n".join(f"[{name}](../mtkd/zoo/students/{name}.md)" for name in students.index())
    lines = [INTRODUCTION.replace("{cards}", cards)]
    lines += [
        "| name | network | scale | trained on | parameters | size | Set5 PSNR-Y / SSIM-Y | DIV2K100 PSNR-Y "
        "| Set5 PSNR-RGB | DIV2K100 PSNR-RGB | hash |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for item in ENTRIES.values():
        cells = (
            f"`{item.name}`",
            item.arch.rpartition(":")[2],
            f"x{item.scale}" if item.scale else "-",
            item.data,
            count_text(item),
            size_text(item),
            score_text(item, Y, "Set5"),
            score_text(item, Y, "DIV2K100"),
            score_text(item, RGB, "Set5"),
            score_text(item, RGB, "DIV2K100"),
            hash_text(item),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "All borders cut as wide as the scale. A size with ~ is four bytes per parameter, not a published size.",
        "",
    ]
    lines += ["## Sources", ""]
    for item in ENTRIES.values():
        lines += [
            f"### {item.name}",
            "",
            f"{item.paper}. Licence: {item.licence}.{f' {item.note}' if item.note else ''}",
            "",
        ]
        lines += [f"- {source_text(source)}" for source in item.sources]
        lines += ["", *(f"Published by {p.by} ({p.protocol}): {scores_text(p.scores)}." for p in item.published), ""]
    return "\n".join(lines + [NOT_LISTED])


def size_text(item: Entry) -> str:
    """Size of the first source in MB, or with a tilde what its parameters take in fp32."""
    if item.shipped:
        return f"{students.index()[item.name]['size'] / 1e3:.0f} kB"
    source = item.sources[0]
    size = source.size / 1e6 if source.size else source.about
    return f"{size:.1f} MB" if size else f"~{4 * item.params / 1e6:.1f} MB"


def count_text(item: Entry) -> str:
    """Number of parameters, in millions or thousands."""
    return f"{item.params / 1e6:.2f} M" if item.params > 99_999 else f"{item.params / 1e3:.1f} k"


def hash_text(item: Entry) -> str:
    """How well the first source is known."""
    if item.shipped:
        return "shipped"
    return "; ".join(dict.fromkeys(hash_status(source) for source in item.sources))


def hash_status(source: Source) -> str:
    """How well one file is known."""
    if source.sha256 is None:
        return "none"
    return f"{'sha256' if len(source.sha256) == 64 else '8 digits'} ({source.sha256_from})"


def source_text(source: Source) -> str:
    """One source in a line: file, address, hash."""
    known = {0: "sha256 unknown, pinned on first use", 8: f"sha256 {source.sha256}...", 64: f"sha256 {source.sha256}"}
    text = known[len(source.sha256 or "")] + (f", from {source.sha256_from}" if source.sha256 else "")
    member = f" (holds {source.member})" if source.member else ""
    size = f", {source.size:,} bytes" if source.size else ""
    return f"`{source.file}`{member}: <{source.url}>{size}; {text}"


def score_text(item: Entry, protocol: str, data_set: str) -> str:
    """First published score of one protocol and data set; "-" when there is none."""
    for published in item.published:
        if published.protocol == protocol and data_set in published.scores:
            return pair_text(published.scores[data_set])
    return "-"


def scores_text(scores: dict[str, tuple[float, float | None]]) -> str:
    """All scores in a line."""
    return ", ".join(f"{data_set} {pair_text(pair)}" for data_set, pair in scores.items())


def pair_text(pair: tuple[float, float | None]) -> str:
    """PSNR and, where published, SSIM."""
    psnr, ssim = pair
    return f"{psnr:g}" if ssim is None else f"{psnr:g} / {ssim:.4f}"


if __name__ == "__main__":
    print(page(), end="")
