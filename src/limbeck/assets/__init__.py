"""Files inside the package, such as the bundled teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.errors import unknown

PREFIX = "bundled:"


def bundled(source: Any) -> Any:
    """The path behind `bundled:NAME`; everything else unchanged."""
    if not (isinstance(source, str) and source.startswith(PREFIX)):
        return source
    folder, name = Path(__file__).parent, source[len(PREFIX) :]
    known = {path.stem: path for path in folder.glob("*.safetensors")}
    if name not in known:
        raise unknown("bundled teacher", name, known)
    return known[name]
