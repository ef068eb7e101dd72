"""Every error Limbeck raises on purpose, and the exit code each one becomes on the command line.

    LimbeckError
    ├── InputError        2   a file, a value, a name or a library that the user can mend
    ├── IncompleteError   3   stopped early; the same command continues
    ├── UnsafeError       4   refused: the file would run code, or hides what it does
    ├── StorageError      5   disk full, read-only folder, a run folder in use or damaged
    └── EnvironmentFault  6   the environment raised, hung or returned numbers that are none

The first line of a message says what was given, what is allowed and what to do, in that order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LimbeckError(Exception):
    """Base of all deliberate errors. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(LimbeckError):
    exit_code = 2


class IncompleteError(LimbeckError):
    exit_code = 3


class UnsafeError(LimbeckError):
    exit_code = 4


class StorageError(LimbeckError):
    exit_code = 5


class EnvironmentFault(LimbeckError):
    exit_code = 6


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'mlp'?"`, or a full stop when nothing is close: the end of a sentence."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else "."


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """The one wording for every unknown key, verb, environment, loss, target or member."""
    options = sorted(known)
    return InputError(f"unknown {what} {printable(name)!r}{nearest(name, options)} Allowed: {', '.join(options)}.")


def missing_library(library: str, extra: str, purpose: str) -> InputError:
    """A library of an extra is absent: name the exact line that installs it."""
    return InputError(f'{purpose} needs {library}, which is not installed. Run: pip install "limbeck[{extra}]"')


def printable(text: object, limit: int = 200) -> str:
    """`text` safe for a terminal: control characters escaped, long text cut."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
