"""How verbs say how far they are."""

from __future__ import annotations

import sys


def say(stage: str, text: str) -> None:
    """Progress for people: one line on standard error."""
    sys.stderr.write(f"{stage:<8} {text}\n")
    sys.stderr.flush()
