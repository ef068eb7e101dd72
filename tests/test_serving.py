"""The server of `limbeck play`: nobody but its page may ask, and what goes wrong is told."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
from page_cases import asking

from limbeck.errors import EnvironmentFault, InputError
from limbeck.standalone.serving import Server


def test_only_the_page_may_ask() -> None:
    def fault(body: Mapping[str, Any]) -> dict[str, Any]:
        raise EnvironmentFault("it raised")

    server = Server("<p>page</p>", "default-src 'none'", {"echo": lambda body: {"said": body["say"]}, "fault": fault})
    try:
        ask, port = asking(server.url), urlsplit(server.url).port
        status, page = ask("")
        assert (status, page["text"], page["Cache-Control"]) == (200, "<p>page</p>", "no-store")
        assert page["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert page["Referrer-Policy"] == "no-referrer"
        assert ask("other")[0] == 404
        for refused in ({"path": "/"}, {"path": "/wrong/"}, {"Host": "evil.example"}, {"Host": f"evil.example:{port}"},
                        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{port}1"}):  # fmt: skip
            assert ask("echo", {"say": 1}, **refused)[0] == 403, refused
            assert ask("", **refused)[0] == 403, refused
        for body, headers in ((b"no json", {}), ([1], {}), ({"say": 1}, {"Content_Type": "text/plain"}), ({"say": 1}, {"Content_Length": str(2**20 + 1)})):  # fmt: skip
            assert ask("echo", body, **headers) == (400, {"error": "no such question"}), (str(body)[:20], headers)
        assert ask("nothing", {})[0] == 400
        assert server.answer(0) is False, "nothing of that may reach the main thread"
        found: list[Any] = []
        asker = threading.Thread(
            target=lambda: found.append(ask("echo", {"say": "x"}, Origin=f"http://localhost:{port}"))
        )
        asker.start()
        assert server.answer(10)
        asker.join()
        assert found == [(200, {"said": "x"})]
        asker = threading.Thread(target=lambda: found.append(ask("fault", {})))
        asker.start()
        with pytest.raises(EnvironmentFault, match="it raised"):
            server.answer(10)
        asker.join()
        assert found[1] == (500, {"error": "it raised"}), "the page must read why"
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is taken. Choose another with --port"):
            Server("", "", {}, port or 0)
    finally:
        server.close()
    with pytest.raises(InputError, match="--port 70000 is out of range"):
        Server("", "", {}, 70000)
