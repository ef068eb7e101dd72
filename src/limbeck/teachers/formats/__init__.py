"""Teacher formats, one per file: this folder is the registry. A format has SUFFIXES, recognises, load and inspect
(`teachers.files.Format`); which one a file has is decided by its content alone, never by its name.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from limbeck.errors import InputError, printable
from limbeck.teachers.files import File, Format


def names() -> list[str]:
    """The formats, by file name."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")


def of(file: File) -> tuple[str, Format]:
    """The format of a file. Raises InputError for content that is none of them."""
    for name in names():
        module = cast(Format, importlib.import_module(f"{__name__}.{name}"))
        if module.recognises(file):
            return name, module
    raise InputError(
        f"{printable(file.name)} begins with {file.content[:8]!r}: no teacher format. Allowed: {', '.join(names())}; "
        "or a module or callable in Python."
    )
