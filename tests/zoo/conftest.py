"""A web server on this machine that behaves as badly as a test wants, and small networks to publish on it."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mtkd.zoo import ENTRIES, Entry, Source, download
from tests.zoo.official import edsr_shapes, filled


@dataclass
class Reply:
    """How one address answers. `cuts` holds, per request, after how many bytes it hangs up (None: at the end)."""

    body: bytes
    status: int = 200
    cuts: list[int | None] = field(default_factory=list)
    stalls: bool = False
    ranges: bool = True
    etag: str | None = None
    content_type: str = "application/octet-stream"
    announces_length: bool = True
    length: str | None = None
    """What Content-Length says in place of the truth."""
    drip: float | None = None
    """Seconds between single bytes."""
    refuses_ranges: bool = False
    """Answers 416 to whoever goes on from where it stopped."""


class Host:
    """Replies by path, and a list of the (path, Range header) that were asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.replies: dict[str, Reply] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.closing = threading.Event()

    def serve(self, path: str, body: bytes, **behaviour: object) -> str:
        """Publish `body` and return its address."""
        self.replies[path] = Reply(body, **behaviour)
        return f"{self.url}/{path}"

    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.requests]


class Handler(BaseHTTPRequestHandler):
    host: Host

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802  the base class calls it so
        path, asked = self.path.lstrip("/"), self.headers.get("Range")
        self.host.requests.append((path, asked))
        reply = self.host.replies.get(path)
        if reply is None or reply.status != 200:
            self.send_error(404 if reply is None else reply.status)
            return
        start = self._start(reply, asked)
        if asked and reply.refuses_ranges or start >= len(reply.body) > 0 and start:
            self.send_error(416)
            return
        body = reply.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", reply.content_type)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(reply.body) - 1}/{len(reply.body)}")
        if reply.announces_length:
            self.send_header("Content-Length", reply.length or str(len(body)))
        if reply.etag:
            self.send_header("ETag", reply.etag)
        self.end_headers()
        cut = reply.cuts.pop(0) if reply.cuts else None
        if reply.drip is not None:
            for byte in body:
                if self.host.closing.wait(reply.drip):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
        self.wfile.write(body if cut is None else body[:cut])
        if reply.stalls:
            self.wfile.flush()
            self.host.closing.wait(20)

    def _start(self, reply: Reply, asked: str | None) -> int:
        if not asked or not reply.ranges:
            return 0
        condition = self.headers.get("If-Range")
        if condition is not None and condition != reply.etag:
            return 0
        return int(asked.removeprefix("bytes=").rstrip("-"))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A server on 127.0.0.1; pauses between attempts are cut to nothing."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = Host(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("BoundHandler", (Handler,), {"host": served})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    served.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def dead_url() -> str:
    """An address where nothing listens."""
    import socket

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    return f"http://127.0.0.1:{port}/edsr_tiny.pt"


@pytest.fixture
def weights_dir(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """A tiny EDSR in official naming."""
    return filled(edsr_shapes(8, 1, 2))


@pytest.fixture
def body(state: dict[str, torch.Tensor]) -> bytes:
    """The file that is published: `state` as the authors save it."""
    return saved(state)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tiny_entry(*sources: Source, name: str = "edsr_tiny_x2") -> Entry:
    return Entry(
        name=name,
        arch="EDSR",
        args={"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2},
        scale=2,
        data="DIV2K",
        params=1,
        sources=sources,
        licence="none",
        paper="none",
    )


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Entry]:
    """Put an entry with these sources into the zoo for one test."""

    def add(*sources: Source) -> Entry:
        item = tiny_entry(*sources)
        monkeypatch.setitem(ENTRIES, item.name, item)
        return item

    return add
