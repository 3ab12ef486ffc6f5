"""A server that answers what huggingface_hub asks of the hub: one commit a repository, files without LFS."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The state of the server: `repositories[name][file]` are bytes; `asked` are the requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.revisions = ("main", COMMIT)
        self.address = ""


@contextmanager
def served() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, content: object) -> None:
            self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

        def missing(self, what: str) -> None:
            self.answer(404, b"{}", X_Error_Code=f"{what}NotFound", X_Error_Message=f"{what} not found")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            if found := re.fullmatch(r"/(\w+/\w+)/resolve/([^/]+)/(.+)", path):
                repository, revision, file = found.groups()
            elif found := re.fullmatch(r"/api/models/(\w+/\w+)(?:/revision/([^/]+))?", path):
                repository, revision, file = found[1], found[2] or "main", None
            elif found := re.fullmatch(r"/api/models/(\w+/\w+)/tree/([^/]+)", path):
                repository, revision, file = found[1], found[2], None
            else:
                return self.answer(404, b"{}")
            files = hub.repositories.get(repository)
            if files is None:
                return self.missing("Repo")
            if revision not in hub.revisions:
                return self.missing("Revision")
            if file is None and "/tree/" in path:
                return self.json(
                    [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
                )
            if file is None:
                return self.json({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
            if file not in files:
                return self.missing("Entry")
            return self.answer(200, files[file], ETag=f'"{hashlib.sha1(files[file]).hexdigest()}"')

        def do_POST(self) -> None:
            hub.asked.append(f"POST {self.path.partition('?')[0]}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization") != "Bearer hf_good":
                return self.answer(401, b'{"error": "Invalid username or password."}')
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                hub.repositories.setdefault(name, {})
                return self.json({"url": f"{hub.address}/{name}"})
            if self.path == "/api/validate-yaml":
                return self.json({"warnings": [], "errors": []})
            if found := re.match(r"/api/models/(\w+/\w+)/preupload/", self.path):
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                return self.json({"files": modes})
            if found := re.match(r"/api/models/(\w+/\w+)/commit/", self.path):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        hub.repositories[found[1]][line["value"]["path"]] = content
                return self.json({"commitUrl": f"{hub.address}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT})
            return self.answer(404, b"{}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
