"""W&B online: its own client against a stand-in for its server, which knows what a run's start, curve and files need."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import reporting_samples as samples

from limbeck import storage
from limbeck.reporting import trackers


class Server(BaseHTTPRequestHandler):
    """Keeps the lines of every run's history; `asked` are the paths of all requests."""

    protocol_version = "HTTP/1.1"
    kept: ClassVar[dict[str, list[str]]] = {}
    asked: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        told = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        self.asked.append(self.path)
        if self.path.endswith("/file_stream"):
            history = (told.get("files") or {}).get("wandb-history.jsonl")
            if history is not None:
                self.kept[self.path.split("/")[-2]][history["offset"] :] = history["content"]
            self.answer({"exitcode": None, "limits": {}})
        else:
            self.answer({"data": self.query(told["query"], told.get("variables") or {})})

    def query(self, text: str, told: dict[str, Any]) -> dict[str, Any]:
        owner = {"name": "limbeck", "entity": {"id": "e", "name": "me"}}
        if " RunResumeStatus" in text:
            lines = self.kept.get(told["name"])
            bucket = lines and {
                "id": "b", "name": told["name"], "summaryMetrics": "{}", "displayName": "run", "logLineCount": 0, "historyLineCount": len(lines),
                "eventsLineCount": 0, "historyTail": json.dumps(lines[-1:]), "eventsTail": "[]", "config": "{}", "tags": [], "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            return {"model": {"bucket": bucket or None, **owner}}
        if " UpsertBucket" in text:
            self.kept.setdefault(told["name"], [])
            bucket = {"id": "b", "name": told["name"], "displayName": "run", "config": "{}", "project": {"id": "p", **owner}}  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if " CreateRunFiles" in text:
            port = self.server.server_address[1]
            files = [{"name": name, "uploadUrl": f"http://127.0.0.1:{port}/{name}"} for name in told["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    Server.kept, Server.asked = {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as serving:
        serving.handle_error = lambda *_: None  # a client that hangs up
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{serving.server_address[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield Server
        serving.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_run_on_a_server_is_continued_after_what_it_has(
    server: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thrice: stopped early, stopped again where nothing is new, and whole. No line is there twice, and none is missing."""
    pytest.importorskip("wandb", reason="needs limbeck[track]")
    monkeypatch.setenv("WANDB_MODE", "online")
    run = samples.write_run(tmp_path / "run", samples.partly(), samples.metrics())
    lines = trackers.lines_of(storage.read_metrics(run))
    for given, kept in ((10, 10), (7, 10), (len(lines), len(lines))):
        feed = trackers.begin(run, "wandb")
        feed.add(lines[:given])
        feed.close()
        (history,) = server.kept.values()
        assert len(history) == kept
    found = [json.loads(line) for line in history]
    assert [row["_step"] for row in found] == list(range(len(lines)))
    for row, line in zip(found, lines, strict=True):
        assert {point.name: point.value for point in line}.items() <= row.items()
        assert row[f"{line[0].name.split('/')[0]}/step"] == line[0].step


@pytest.mark.slow
def test_an_offline_run_asks_no_server(server: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs limbeck[track]")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = samples.write_run(tmp_path / "run", samples.partly(), samples.metrics())
    trackers.track(run, ["wandb"])
    assert server.asked == []
