"""What code a file would run if it were unpickled: names only, found without running or importing anything."""

from __future__ import annotations

import base64
import binascii
import json

from limbeck.teachers import inert
from limbeck.teachers.archive import Archive, is_zip
from limbeck.teachers.files import File

NESTED = 2  # zips inside zips that are looked into


def code_in(file: File) -> dict[str, tuple[str, ...]]:
    """The names that pickles in the file would import, by where they lie; empty for files without pickles."""
    if file.archive is None:
        return {file.name: inert.names_in(file.content)} if _may_be_pickle(file.content) else {}
    found: dict[str, tuple[str, ...]] = {}
    archives = [("", file.archive)]
    while archives:
        prefix, archive = archives.pop()
        for member in archive.members:
            content = archive.read(member) if member.endswith((".pkl", ".pth", ".pt")) else b""
            if is_zip(content) and prefix.count("/") < NESTED:
                archives.append((f"{prefix}{member}/", Archive(content, member)))
            elif content:
                found[f"{prefix}{member}"] = inert.names_in(content)
        if "data" in archive.members:
            found |= {f"{prefix}data: {key}": inert.names_in(blob) for key, blob in serialized(archive).items()}
    return found


def serialized(archive: Archive) -> dict[str, bytes]:
    """The pickles that Stable-Baselines3 hides as text in its settings, by key."""
    try:
        values = json.loads(archive.read("data"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    blobs = {}
    for key, entry in values.items():
        if isinstance(entry, dict) and ":serialized:" in entry:
            try:
                blobs[key] = base64.b64decode(str(entry[":serialized:"]).encode("ascii", "replace"))
            except (binascii.Error, ValueError):
                blobs[key] = b""
    return blobs


def _may_be_pickle(content: bytes) -> bool:
    return content[:1] == b"\x80" or content[-1:] == b"."
