"""Limbeck: any trained RL policy in, a family of tiny proved ones out.

The public names in the order of the pipeline; nothing heavy is imported before one of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "LimbeckError",
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

if TYPE_CHECKING:
    from limbeck.errors import LimbeckError
    from limbeck.verbs import (
        bench,
        check,
        demo,
        diagnose,
        distill,
        export,
        inspect,
        play,
        prove,
        record,
        report,
        search,
        stress,
        teach,
    )


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module("limbeck.errors" if name == "LimbeckError" else "limbeck.verbs"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
