"""A host for weights that lies: contents, protocol, archives, redirections, and transfers that never end.

The zoo gets one small entry whose sources lie on a server in the process of the case, bound to 127.0.0.1. What comes
out with exit code 0 must be the published weights bit for bit, nothing may be written beside the folder of the
weights, and a file that says how large it is may not fill the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import threading
import time
import zipfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from tests.hostile import mutations, sandbox
from tests.hostile.cases import Case
from tests.hostile.ground import ARGS, Ground
from tests.hostile.weights import disguised, payloads, same

NAME, FILE, MEMBER = "edsr_tiny_x2", "edsr_tiny.pt", "net.pth"

BEHAVIOURS = (
    "plain", "plain", "plain", "no_length", "short_length", "long_length", "word_length", "negative_length",
    "two_lengths", "huge_length", "chunked",
    "bad_chunks", "gzip", "html", "redirect_loop", "redirect_file", "redirect_ftp", "redirect_nowhere",
    "redirect_long", "404", "416", "429", "500", "204", "206",
    "206_wrong", "206_word", "cut", "cut_always", "cut_416", "cut_206", "silent", "endless", "drip", "garbage",
    "long_header", "many_headers", "no_header", "reset", "etag_changes",
    "encoding", "http09", "100", "empty",
)  # fmt: skip
"""How a host answers; see `_Handler.answer`."""


def archives(good: bytes) -> dict[str, bytes]:
    """Archives with the wanted member and things that must not be unpacked."""
    found = {}

    def zipped(*members: tuple[Any, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in members:
                archive.writestr(name, data)
        return buffer.getvalue()

    def tarred(*members: tuple[tarfile.TarInfo, bytes], mode: Any = "w") -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as archive:
            for info, data in members:
                info.size = len(data) if info.isreg() else 0
                archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
        return buffer.getvalue()

    def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        return info

    wanted = (MEMBER, good)
    found["zip"] = zipped(wanted)
    found["zip_stored"] = zipped(wanted, method=zipfile.ZIP_STORED)
    found["zip_lzma"] = zipped(wanted, method=zipfile.ZIP_LZMA)
    for number, name in enumerate(
        ("../../PWNED", "/tmp/../PWNED", "a/../../PWNED", "..\\..\\PWNED", "C:\\PWNED", "a:b/PWNED", "/", "x" * 3000)
    ):
        found[f"zip_path_{number}"] = zipped((name, b"x"), wanted)
    found["zip_twice"] = zipped(wanted, (f"other/{MEMBER}", b"x"))
    found["zip_none"] = zipped(("other", b"x"))
    found["zip_bomb"] = zipped((MEMBER, bytes(300_000_000)))
    plain = zipped(wanted, method=zipfile.ZIP_STORED)
    found["zip_encrypted"] = plain.replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    ).replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01")
    found["zip_unknown"] = plain.replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x63\x00"
    )
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        found[f"tar_{mode[2:]}"] = tarred((entry(MEMBER), good), mode=mode)
        found[f"tar_cut_{mode[2:]}"] = found[f"tar_{mode[2:]}"][: len(found[f"tar_{mode[2:]}"]) // 2]
    found["tar_symlink"] = tarred((entry(MEMBER, tarfile.SYMTYPE, "/etc/passwd"), b""))
    found["tar_hardlink"] = tarred((entry(MEMBER, tarfile.LNKTYPE, "../../x"), b""))
    found["tar_fifo"] = tarred((entry(MEMBER, tarfile.FIFOTYPE), b""))
    found["tar_device"] = tarred((entry(MEMBER, tarfile.CHRTYPE), b""))
    found["tar_path"] = tarred((entry("../../PWNED"), b"x"), (entry(MEMBER), good))
    found["tar_absolute"] = tarred((entry("/tmp/PWNED"), b"x"), (entry(MEMBER), good))
    found["tar_twice"] = tarred((entry(MEMBER), good), (entry(MEMBER), b"x"))
    found["tar_last"] = tarred((entry("readme"), b"x"), (entry(MEMBER), good))
    return found


def cases(ground: Ground) -> st.SearchStrategy[Case]:
    """Downloads from a host that lies."""
    good = (ground.weights / "net.pth").read_bytes()
    packed = archives(good)
    hidden = payloads()
    bodies = {
        "zeros": bytes(len(good)), "html": b"<!doctype html><html>click</html>", "nothing": b"",
        "half": good[: len(good) // 2], "more": good + bytes(100), "twice": good + good,
        "safetensors": (ground.weights / "net.safetensors").read_bytes(),
        "other": (ground.weights / "t.pth").read_bytes(), "lfs": b"version https://git-lfs",
        "text": b"x" * 1000,
    }  # fmt: skip

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        member = draw(st.integers(0, 3)) == 0
        original = packed["zip"] if member else good
        if member:
            body = packed[draw(st.sampled_from(sorted(packed)))]
            if draw(st.integers(0, 3)) == 0:
                body = draw(mutations.mutated(body))
        else:
            body = good
            if draw(st.booleans()):
                body = draw(st.one_of(st.sampled_from(sorted(bodies)).map(bodies.__getitem__), mutations.mutated(good)))
            if draw(st.integers(0, 7)) == 0:
                body = disguised(
                    hidden[draw(st.sampled_from(sorted(hidden)))], protocol=2, place="params", container="zip"
                )
        known = draw(st.sampled_from(("full", "full", "prefix", "none", "body")))
        digest = hashlib.sha256(body if known == "body" else original).hexdigest()
        facts = {
            "behaviour": draw(st.sampled_from(BEHAVIOURS)),
            "sha256": {"full": digest, "body": digest, "prefix": digest[:8], "none": None}[known],
            "size": draw(st.sampled_from((len(original), len(original), None, 10))),
            "member": MEMBER if member else None,
            "mirror": draw(st.booleans()),
            "vouched": known in ("full", "prefix"),
            "original": str(ground.weights / "net.pth"),
        }
        files = {"body": body}
        junk = st.sampled_from(
            (
                b"",
                b"{",
                b"[]",
                b"3",
                b"null",
                b'{"url": 3}',
                b'{"source": 3}',
                b'{"source": {"file": 1}}',
                b'{"sha256": []}',
                b"\xff",
                b"[" * 100_000,
            )
        )
        place = draw(
            st.sampled_from(
                ("",) * 6
                + (
                    f"w/{NAME}.json",
                    f"w/{NAME}.safetensors",
                    f"w/downloads/{FILE}",
                    "part",
                    "part.json",
                    "w/downloads/x",
                    "w",
                )
            )
        )
        if place in ("part", "part.json"):
            # The name of a part holds a hash of the address, whose port is not known yet.
            facts[place] = draw(
                junk if place == "part.json" else st.sampled_from((good[:100], bytes(50), good, good + good))
            ).hex()
        elif place:
            files[place] = draw(st.one_of(junk, st.just(good)))
        fetch = ("zoo", "download", NAME, "--weights-dir", "w")
        commands = draw(
            st.sampled_from(
                (
                    (fetch,),
                    (fetch, fetch),
                    (fetch, ("zoo", "verify", "--weights-dir", "w")),
                    (("zoo", "import", NAME, "body", "--weights-dir", "w"),),
                )
            )
        )
        return Case("server", (*commands, ("@fetched",)), files, before="host", facts=facts)

    return case()


def always(ground: Ground) -> list[Case]:
    """Every behaviour of a host, before a file whose hash and size are known."""
    good = (ground.weights / "net.pth").read_bytes()
    facts = {
        "sha256": hashlib.sha256(good).hexdigest(),
        "size": len(good),
        "member": None,
        "mirror": False,
        "vouched": True,
        "original": str(ground.weights / "net.pth"),
    }
    command = ("zoo", "download", NAME, "--weights-dir", "w")
    return [
        Case("server", (command, ("@fetched",)), {"body": good}, before="host", facts={**facts, "behaviour": behaviour})
        for behaviour in dict.fromkeys(BEHAVIOURS)
    ]


class _Handler(BaseHTTPRequestHandler):
    facts: Mapping[str, Any]
    body: bytes
    requests = 0
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802  the base class calls it so
        type(self).requests += 1
        self.close_connection = True
        if type(self).requests > 20_000:
            raise ConnectionAbortedError
        behaviour = "plain" if self.path.startswith("/mirror") else self.facts["behaviour"]
        with contextlib.suppress(ConnectionError):
            self.answer(behaviour, self.body)

    def head(self, status: int = 200, **headers: Any) -> None:
        """Status and headers; `_` in a name stands for a hyphen."""
        self.send_response(status)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def answer(self, behaviour: str, body: bytes) -> None:
        """Answer as the behaviour says."""
        length, kind = len(body), "application/octet-stream"
        asked = self.headers.get("Range")
        start = int(asked[6:].rstrip("-") or 0) if asked and asked.startswith("bytes=") else 0
        write = self.wfile.write
        if behaviour == "plain":
            if start and start < length:
                self.head(206, Content_Length=length - start, Content_Range=f"bytes {start}-{length - 1}/{length}")
                write(body[start:])
            elif start:
                self.head(416)
            else:
                self.head(Content_Length=length, Content_Type=kind)
                write(body)
        elif behaviour == "no_length":
            self.head(Content_Type=kind)
            write(body)
        elif behaviour.endswith("_length"):
            said = {
                "short": length // 2,
                "long": length + 50,
                "word": "abc",
                "negative": -5,
                "two": length,
                "huge": 10**30,
            }
            extra = {"content_length": 3} if behaviour == "two_lengths" else {}
            self.head(Content_Length=said[behaviour.removesuffix("_length")], **extra)
            write(body)
        elif behaviour in ("chunked", "bad_chunks"):
            self.head(Transfer_Encoding="chunked")
            size = b"%x" % length if behaviour == "chunked" else b"zz"
            write(size + b"\r\n" + body + b"\r\n0\r\n\r\n")
        elif behaviour in ("gzip", "encoding"):
            self.head(Content_Encoding=behaviour, Content_Length=length)
            write(body)
        elif behaviour == "html":
            self.head(Content_Type="text/html", Content_Length=length)
            write(body)
        elif behaviour.startswith("redirect"):
            target = {
                "loop": self.path,
                "file": "file:///etc/passwd",
                "ftp": "ftp://127.0.0.1:9/x",
                "nowhere": "http://127.0.0.1:9/x",
                "long": "/" + "x" * 60_000,
            }
            self.head(302, Location=target[behaviour.removeprefix("redirect_")])
        elif behaviour in ("404", "416", "429", "500", "204"):
            self.head(int(behaviour), Content_Length=0)
        elif behaviour.startswith("206"):
            ranges = {
                "206": f"bytes 0-{length - 1}/{length}",
                "206_wrong": f"bytes 7-{length}/{length}",
                "206_word": "bytes x-y/z",
            }
            self.head(206, Content_Range=ranges[behaviour], Content_Length=length)
            write(body)
        elif behaviour.startswith("cut"):
            if start and behaviour == "cut_416":
                self.head(416)
            elif start and behaviour == "cut_206":
                self.head(206, Content_Range=f"bytes 0-{length - 1}/{length}", Content_Length=length)
                write(body[: length // 2])
            elif start and behaviour == "cut":
                self.answer("plain", body)
            else:
                self.head(Content_Length=length)
                write(body[: length // 2])
        elif behaviour == "silent":
            time.sleep(60)
        elif behaviour in ("endless", "drip"):
            self.head(Content_Type=kind)
            while True:
                write(bytes(1 << 18) if behaviour == "endless" else b"x")
                time.sleep(0.001 if behaviour == "endless" else 0.02)
        elif behaviour == "garbage":
            write(os.urandom(300))
        elif behaviour == "long_header":
            self.head(X="x" * 100_000)
        elif behaviour == "many_headers":
            self.head(**{f"X{i}": i for i in range(300)})
        elif behaviour == "no_header":
            write(body)
        elif behaviour == "reset":
            self.connection.close()
        elif behaviour == "etag_changes":
            self.head(Content_Length=length, ETag=f'"{type(self).requests}"')
            write(body[: length // 2] if type(self).requests < 3 else body)
        elif behaviour == "http09":
            write(b"HTTP/9.9 200 OK\r\n\r\n" + body)
        elif behaviour == "100":
            write(b"HTTP/1.1 100 Continue\r\n\r\n" * 200)
            self.head(Content_Length=length)
            write(body)
        elif behaviour == "empty":
            self.head(Content_Length=0)


def _host(facts: Mapping[str, Any]) -> None:
    """Start the server and put its entry into the zoo; waiting is cut to what a test can bear."""
    from mtkd.zoo import ENTRIES, Entry, Source, download

    body = Path("body").read_bytes()
    handler = type("Bound", (_Handler,), {"facts": facts, "body": body})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # what a broken connection raises is the point  # pyright: ignore
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    # Waiting as long as a user would is not what is tested.
    for name, short in (("PAUSE", 0.0), ("TIMEOUT", 1.0), ("STALL", 2.0), ("LARGEST_FILE", 64 << 20)):
        if hasattr(download, name):
            setattr(download, name, short)
    addresses = [f"{url}/{FILE}"] + ([f"{url}/mirror/{FILE}"] if facts["mirror"] else [])
    file = FILE if facts["member"] is None else "pack.zip"
    sources = tuple(
        Source(a, file, facts["sha256"], "this test", facts["size"], member=facts["member"]) for a in addresses
    )
    ENTRIES[NAME] = Entry(NAME, "EDSR", dict(ARGS), 2, "DIV2K", 1, sources, "none", "none")
    part = Path("w/downloads") / f"{file}.{hashlib.sha256(addresses[0].encode()).hexdigest()[:8]}.part"
    for key, path in (("part", part), ("part.json", part.with_name(part.name + ".json"))):
        if key in facts:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes.fromhex(facts[key]))


def _fetched(code: int, arguments: tuple[str, ...], facts: Mapping[str, Any]) -> str:
    outside = [str(path) for path in Path().rglob("*") if path.is_file() and path.parts[0] not in ("w", "body", "home")]
    if outside:
        return f"written outside: {outside[0]}"
    size = facts["size"]
    large = [
        p for p in Path("w").rglob("*") if size and p.is_file() and p.stat().st_size > 4 * max(size, 5000) + (1 << 20)
    ]
    if large:
        return f"{large[0].stat().st_size:,} bytes taken of a file of {size:,}"
    made = Path(f"w/{NAME}.safetensors")
    if code or not facts["vouched"] or not made.exists():
        return ""
    from safetensors.torch import load_file

    original = torch.load(facts["original"], weights_only=True)["params"]
    return "" if same(load_file(made), original) else "converted to other weights than were published"


sandbox.BEFORE["host"] = _host
sandbox.CHECKS["@fetched"] = _fetched
