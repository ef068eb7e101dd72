"""What must hold before a number is read out of an HDF5 file that a stranger made.

Nothing outside the file is ever opened: soft, external and user-defined links, external storage and virtual data sets
are refused. Nothing is allocated for numbers whose bytes are not there, so a file of one kilobyte cannot ask for a
terabyte.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from limbeck.errors import InputError, UnsafeError, printable

if TYPE_CHECKING:
    import h5py

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_RATIO = 200  # declared to stored bytes of a compressed data set
DAMAGE = (  # what h5py raises on files that were cut or changed
    OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError, NotImplementedError,
    OverflowError, IndexError, UnicodeError, RecursionError,
)  # fmt: skip
_GZIP_AND_SHUFFLE = {1, 2}


def check_link(group: h5py.Group, key: str, where: str, name: str) -> None:
    """Raise UnsafeError for a child that is a link to somewhere else."""
    import h5py

    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        raise UnsafeError(
            f"{name}: {printable(where)} is a link to somewhere else. Refused, it was not followed. Allowed: numbers inside the file; save it again."
        )


def check_local(data: h5py.Dataset, where: str, name: str) -> None:
    """Raise UnsafeError for a data set whose numbers lie in another file."""
    if data.id.get_create_plist().get_external_count() or data.is_virtual:
        raise UnsafeError(
            f"{name}: {printable(where)} keeps its numbers in another file. Refused, nothing was read. Allowed: numbers inside the file; save it again."
        )


def check_stored(data: h5py.Dataset, where: str, name: str, most: int, kinds: str) -> None:
    """Raise InputError unless the bytes that the shape needs are in the file; `kinds` are numpy's letters of its dtypes."""
    dtype: Any = data.dtype
    if dtype.kind not in kinds or dtype.itemsize > 8:
        raise InputError(f"{name}: {printable(where)} holds {printable(dtype)}, no plain numbers. Save it again.")
    needed = math.prod(data.shape or ()) * dtype.itemsize
    if needed > most:
        raise InputError(f"{name}: {printable(where)} declares {needed:,} bytes, allowed {most:,}.")
    plist = data.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if set(filters) - _GZIP_AND_SHUFFLE:
        raise InputError(
            f"{name}: {printable(where)} is stored through filter {filters}. Allowed: gzip or none. Save it again."
        )
    stored = data.id.get_storage_size()
    pieces = math.prod(data.chunks) * dtype.itemsize if data.chunks else 0
    if stored * (MAX_RATIO if filters else 1) < needed or pieces > max(4 * needed, 2**20):
        raise InputError(f"{name}: {printable(where)} declares {needed:,} bytes and stores {stored:,}. Save it again.")
