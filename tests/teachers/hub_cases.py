"""A stand-in for the Hugging Face Hub: a local server that speaks the requests of hf_hub_download, and nothing else."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


class StandIn:
    """Serves `files[name]` of org/repo at `main` (COMMIT), and `old[name]` at the tag v0 (OTHER)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.old: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.declared: int | None = None  # a size to claim instead of the true one
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                outer.answer(self, body=False)

            def do_GET(self) -> None:
                outer.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = unquote(request.path.split("?")[0])
        self.requests.append(f"{request.command} {path}")
        if not path.startswith("/org/repo/resolve/"):
            code = "GatedRepo" if path.startswith("/org/gated/") else "RepoNotFound"
            return self.refuse(request, 403 if code == "GatedRepo" else 401, code)
        revision, _, name = path.removeprefix("/org/repo/resolve/").partition("/")
        revisions = {"main": (COMMIT, self.files), COMMIT: (COMMIT, self.files), "v0": (OTHER, self.old), OTHER: (OTHER, self.old)}  # fmt: skip
        if revision not in revisions:
            return self.refuse(request, 404, "RevisionNotFound")
        commit, files = revisions[revision]
        if name not in files:
            return self.refuse(request, 404, "EntryNotFound")
        content = files[name]
        request.send_response(200)
        request.send_header("X-Repo-Commit", commit)
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("Content-Length", str(self.declared or len(content)))
        request.end_headers()
        if body:
            request.wfile.write(content)

    def refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
