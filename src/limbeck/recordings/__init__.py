"""Recorded play: what people, experts and other programs did, read from .npz or Minari's layout."""

from __future__ import annotations

import os
from pathlib import Path

from limbeck.errors import InputError, printable
from limbeck.recordings import minari_layout, npz_file
from limbeck.recordings.records import Recordings, checked, refuse_misfit, spec_of

__all__ = ["Recordings", "checked", "looks_like", "minari_layout", "read", "refuse_misfit", "spec_of"]


def looks_like(path: Path) -> bool:
    """Whether a path holds recordings: an .npz file, or a folder in Minari's layout."""
    if os.path.isdir(path):  # false, not an error, for names that no file system takes
        return (path / "data").is_dir() or (path / "metadata.json").is_file()
    return path.suffix.lower() == ".npz"


def read(path: Path) -> Recordings:
    """Recordings from a file or folder, checked. Raises InputError for damage, objects and shapes that do not fit.

    >>> read(Path("nowhere.npz"))
    Traceback (most recent call last):
    ...
    limbeck.errors.InputError: no recordings at nowhere.npz. Give an .npz file or the folder of a Minari data set.
    """
    if not os.path.exists(path):
        raise InputError(f"no recordings at {printable(path)}. Give an .npz file or the folder of a Minari data set.")
    return minari_layout.read(path) if path.is_dir() else npz_file.read(path)
