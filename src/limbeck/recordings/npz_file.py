"""Recordings in one .npz file: plain arrays, never objects."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from limbeck.contracts import Array, Observation
from limbeck.errors import printable
from limbeck.recordings import records
from limbeck.recordings.records import Recordings, bad, checked

_DAMAGE = (  # what zipfile and numpy raise on files that were cut or changed
    OSError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError, MemoryError, NotImplementedError,
    SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, struct.error, RuntimeError,
)  # fmt: skip
RATIO, FREE = 200, 256 * 2**20  # how tightly more than so many bytes may be packed
_OBS, _ACTION = ("obs", "observations", "observation"), ("action", "actions", "acts")
_REWARD, _TERMINATED, _TRUNCATED = ("reward", "rewards"), ("terminated", "terminations"), ("truncated", "truncations")


def read(path: Path) -> Recordings:
    """obs [N, ...] or obs/KEY, action [N, ...], and where they are known reward, terminated, truncated [N]."""
    try:
        content = records.content_of(path, records.MAX_BYTES)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = _arrays(archive, len(content), path)
    except _DAMAGE as error:
        raise bad(path, f"it is no readable .npz file ({printable(error)})") from error
    obs = _observations(arrays)
    if obs is None:
        raise bad(path, f"it has no observations; its arrays are {printable(', '.join(sorted(arrays)))}")
    columns = [_named(arrays, names) for names in (_ACTION, _REWARD, _TERMINATED, _TRUNCATED)]
    action, reward, terminated, truncated = columns
    return checked(path.stem, hashlib.sha256(content).hexdigest(), obs, action, reward, terminated, truncated)


def _arrays(archive: zipfile.ZipFile, packed: int, path: Path) -> dict[str, Array]:
    """Every array, its declared size checked before anything is unpacked."""
    size = sum(info.file_size for info in archive.infolist())
    if size > records.MAX_BYTES or (size > FREE and size > RATIO * packed):
        raise bad(
            path, f"it unpacks from {packed:,} to {size:,} bytes, at most {records.MAX_BYTES:,} and {RATIO}:1 are read"
        )
    arrays = {}
    for info in archive.infolist():
        with archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(stream)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize > info.file_size:
            raise bad(path, f"{printable(info.filename)} holds objects, or declares more than is there")
        with archive.open(info) as stream:
            arrays[info.filename.removesuffix(".npy")] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _observations(arrays: Mapping[str, Array]) -> Observation | None:
    for name in _OBS:
        if name in arrays:
            return arrays[name]
        inside = {key[len(name) + 1 :]: arrays[key] for key in arrays if key.startswith((f"{name}/", f"{name}."))}
        if inside:
            return inside
    return None


def _named(arrays: Mapping[str, Array], names: tuple[str, ...]) -> Array | None:
    return next((arrays[name] for name in names if name in arrays), None)
