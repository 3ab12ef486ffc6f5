"""What is done to valid things: bytes, structures and texts, as hypothesis strategies; and values nobody expects."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DIGITS = "@DIGITS@"
"""Stands for a number of more digits than Python converts; put into the text, because `str` refuses it too."""

PATHS = (
    "", ".", "..", "missing.bin", "~nosuchuser/x", "x" * 300, "a/" * 200 + "b", "/dev/null", "/dev/full", "/proc/x",
    "/proc/self/mem",
    "/dev/stdin", "nul\u0000", "\U0001f984", "a\nb", "-rf", "*", "%s", "{}", "{0}", "{", "$HOME", "zoo:", "zoo:none",
    "zoo:edsr_m_x2",
    "file:///etc/passwd", "http://127.0.0.1:9/x", "pipe", "pipe.png",
)  # fmt: skip
"""Paths and names; `pipe` and `pipe.png` exist as FIFOs where a kind makes them."""
NUMBERS = (
    0, 1, -1, 2, 3, 5, 7, 16, 64, 100, -100, 10**12, -(10**12), 2**31, 2**63, 2**64, 10**20, 10**400, 0.5, -0.5,
    1e-300, 1e300,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
"""Small ones and absurd ones: what lies between is allowed to take long."""
WORDS = (
    "EDSR", "RCAN", "SwinIR", "DCTSwin", "FSRCNN", "Adam", "SGD", "RMSprop", "NAdam", "LBFGS", "SparseAdam", "L1Loss",
    "fp16", "bf16",
    "auto", "none", "null", "true", "yes", "~", ":", "::", ".x:y", "a:b:c", "builtins:dict", "builtins:print",
    "torch.nn:ReLU", "os:getcwd",
    "mtkd.archs.edsr:EDSR", "calculate_niqe", "calculate_lpips", "PrivilegedTeacher", "spandrel", "params",
    "params_ema", "PairedImageDataset",
    "PairedImagesDataset", "higher", "disk", "lmdb", "CosineAnnealingLR", "MultiStepLR",
)  # fmt: skip
STRUCTURES: tuple[Any, ...] = (
    None, True, False, [], {}, [[]], [None], [1, 2], [1, "a"], {"type": None}, {"type": "EDSR"}, {"type": ["EDSR"]},
    {"a": {"b": {"c": 1}}},
    {1: 2}, {None: 1}, [{}], [[[[[[]]]]]],
)  # fmt: skip

values = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.sampled_from(PATHS),
    st.sampled_from(STRUCTURES).map(copy.deepcopy),
    st.just(DIGITS),
    st.text(max_size=12),
    st.integers(-130, 130),
    st.floats(),
)
"""Anything a YAML value may be. Texts have no lone surrogates: no file can hold them."""


@st.composite
def mutated(draw: st.DrawFn, data: bytes, *, most: int = 3) -> bytes:
    """`data` after one to `most` of: flips, other values, cuts, gaps, repetitions, zeros."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        if not content:
            break
        # Headers lie in front and, in zip files, at the end: half of the places are there.
        near = draw(st.sampled_from(("any", "any", "head", "tail")))
        span = len(content) if near == "any" else min(len(content), 128)
        place = draw(st.integers(0, span - 1))
        at = place if near != "tail" else len(content) - 1 - place
        action = draw(st.sampled_from(("flip", "set", "set4", "cut", "gap", "insert", "repeat", "zeros", "swap")))
        length = draw(st.sampled_from((1, 2, 4, 8, 64, 512)))
        if action == "flip":
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "set":
            content[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFE, 0xFF, 0x20, 0x2E)))
        elif action == "set4":
            number = draw(st.sampled_from((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x10000, 0xFFFFFFFE)))
            content[at : at + 4] = number.to_bytes(4, draw(st.sampled_from(("little", "big"))))
        elif action == "cut":
            del content[at:]
        elif action == "gap":
            del content[at : at + length]
        elif action == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif action == "repeat":
            content[at:at] = content[at : at + length]
        elif action == "zeros":
            content[at : at + length] = bytes(len(content[at : at + length]))
        else:
            other = draw(st.integers(0, len(content) - 1))
            content[at], content[other] = content[other], content[at]
    return bytes(content)


def places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a structure of dicts and lists, the whole left out."""
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield (*at, key)
        yield from places(value, (*at, key))


@st.composite
def restructured(draw: st.DrawFn, data: Any, *, most: int = 2) -> Any:
    """A copy of a structure with one to `most` values replaced, dropped, moved, wrapped or renamed."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, most))):
        paths = list(places(data))
        if not paths:
            return draw(values)
        path = draw(st.sampled_from(paths))
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        last = path[-1]
        action = draw(st.sampled_from(("replace", "replace", "replace", "drop", "wrap", "move", "rename", "add")))
        if action == "replace":
            parent[last] = draw(values)
        elif action == "drop":
            del parent[last]
        elif action == "wrap":
            parent[last] = draw(st.sampled_from((lambda v: [v], lambda v: {"type": v}, lambda v: {"x": v}, str)))(
                parent[last]
            )
        elif action == "move":
            source = data
            for key in draw(st.sampled_from(paths)):
                source = source[key]
            parent[last] = copy.deepcopy(source)
        elif isinstance(parent, dict):
            key = draw(
                st.sampled_from((*WORDS[:6], "typ", "x", "", "type", "name", 1, None, True, f"{last}_", f"{last}"[:-1]))
            )
            parent[key] = parent.pop(last) if action == "rename" else draw(values)
        else:
            parent.insert(0, draw(values))
    return data


SNIPPETS = (
    "!!python/object/apply:os.system [touch PWNED]\n", "x: !!python/object/apply:os.system [touch PWNED]\n",
    "<<: *a\n", "&a [*a]\n",
    "*nothing", "? [a, b]\n: c\n", "--- \n", "...\n", "%YAML 9.9\n---\n", "\t", "\ufeff", "\u0085", "\x00", "\x07",
    "\r", "'", '"', "{", "}", "[", "]",
    "|", ">", "&", "*", "!", "#", "- ", ": ", "? ", "!!float ", "!!int ", "!!binary ", "!!set {a, b}\n", "~", ".inf",
    "-.INF", ".nan",
    "1_000", "0x1F", "0o17", "1e9999", "12:30:45", "2001-12-14t21:59:43.10-05:00", "[" * 300, "{a: " * 200, "- " * 400,
    "&b " * 3,
    "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12)),
    "".join(f"c{i}: &c{i} {'[' * 40}{f'*c{i - 1}' if i else 'x'}{']' * 40}\n" for i in range(60)),
    f"scale: {'9' * 4301}\n", f"manual_seed: 1{'_1' * 4300}\n", f"{'k' * 5000}: 1\n", "name: \"\\0\"\n",
    "name: \"\\ud800\"\n", f"name: {'n' * 240}\n",
)  # fmt: skip
"""Pieces that YAML readers stumble over: tags that run code, aliases that grow, depth, numbers, control characters."""


@st.composite
def rewritten(draw: st.DrawFn, text: str) -> bytes:
    """A YAML text with lines moved, indented or doubled, and snippets put in."""
    rows = text.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(rows) - 1)))
        action = draw(
            st.sampled_from(("snippet", "snippet", "inside", "drop", "double", "indent", "outdent", "swap", "value"))
        )
        if action == "snippet" or not rows:
            rows.insert(at, draw(st.sampled_from(SNIPPETS)))
        elif action == "inside":
            place = draw(st.integers(0, len(rows[at])))
            rows[at] = rows[at][:place] + draw(st.sampled_from(SNIPPETS)) + rows[at][place:]
        elif action == "drop":
            del rows[at]
        elif action == "double":
            rows.insert(at, rows[at])
        elif action == "indent":
            rows[at] = draw(st.sampled_from((" ", "  ", "\t", "- "))) + rows[at]
        elif action == "outdent":
            rows[at] = rows[at].removeprefix(" ")
        elif action == "swap":
            other = draw(st.integers(0, len(rows) - 1))
            rows[at], rows[other] = rows[other], rows[at]
        else:
            key = rows[at].partition(":")[0]
            others = st.one_of(st.sampled_from(SNIPPETS), st.sampled_from(WORDS), st.sampled_from(NUMBERS).map(str))
            rows[at] = f"{key}: {draw(others)}\n"
    encoded = "".join(rows).encode("utf-8", errors="replace")
    return draw(
        st.one_of(
            st.just(encoded), st.just(encoded), mutated(encoded, most=2), st.just(encoded.decode().encode("utf-16"))
        )
    )
