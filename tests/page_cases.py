"""Questions to the server of `limbeck play`, asked as its page asks them, or as somebody else would."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

Ask = Callable[..., tuple[int, dict[str, Any]]]


def asking(url: str) -> Ask:
    """A function that asks like the page does."""
    place = urlsplit(url)

    def ask(name: str, body: object = None, path: str = place.path, **headers: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        told = {"Content-Type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path + name, None if body is None else content, told)
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        kind = answer.headers.get_content_type()
        return answer.status, json.loads(read) if kind == "application/json" else {
            "text": read.decode(),
            **answer.headers,
        }

    return ask
