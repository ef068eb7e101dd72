"""The verbs: what the command line offers is exactly these functions, with the same names and arguments.

Importing this module loads neither torch nor gymnasium; each verb imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limbeck.verbs.judging import diagnose, inspect, prove, stress
from limbeck.verbs.making import demo, distill, record, search, teach
from limbeck.verbs.shipping import bench, check, export, play, report

__all__ = [
    "VERBS",
    "bench",
    "check",
    "demo",
    "diagnose",
    "distill",
    "export",
    "inspect",
    "play",
    "prove",
    "record",
    "report",
    "search",
    "stress",
    "teach",
]

VERBS: dict[str, Callable[..., Any]] = {
    "distill": distill,
    "search": search,
    "inspect": inspect,
    "teach": teach,
    "record": record,
    "prove": prove,
    "stress": stress,
    "diagnose": diagnose,
    "export": export,
    "check": check,
    "bench": bench,
    "play": play,
    "report": report,
    "demo": demo,
}
