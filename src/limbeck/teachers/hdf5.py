"""Reading named arrays out of an HDF5 file that a stranger made.

Nothing outside the file is ever opened: soft, external and user-defined links, external storage and virtual data sets
are refused. A data set is read only if it has the shape that is expected of it and its bytes are really there, so a
file of one kilobyte cannot ask for a terabyte.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.contracts import Array
from limbeck.errors import InputError, LimbeckError, UnsafeError, missing_library, printable

if TYPE_CHECKING:
    import h5py

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS, MAX_DEPTH = 10_000, 16
MAX_BYTES = 256 * 2**20  # of one data set
MAX_TEXT = 16 * 2**20
MAX_RATIO = 200
_DAMAGE = (
    OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError, NotImplementedError,
    OverflowError, IndexError, UnicodeError, RecursionError,
)  # fmt: skip


class Store:
    """The data sets of an open file by path, none of them read yet."""

    def __init__(self, file: h5py.File, name: str) -> None:
        self._file, self._name = file, printable(name)
        self.paths: dict[str, tuple[int, ...]] = {}  # path -> declared shape
        self._walk()

    def _walk(self) -> None:
        import h5py

        seen, todo = 0, [("", self._file, 0)]
        while todo:
            path, group, depth = todo.pop()
            for key in group:
                seen += 1
                if seen > MAX_OBJECTS or depth > MAX_DEPTH:
                    raise InputError(
                        f"{self._name} holds more than {MAX_OBJECTS} objects or deeper than {MAX_DEPTH}. Save the teacher again."
                    )
                where = f"{path}{key}"
                if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                    raise UnsafeError(
                        f"{self._name}: {printable(where)} is a link to somewhere else. Refused, it was not followed. Allowed: weights inside the file; save the model again."
                    )
                kind = group.get(key, getclass=True)
                if kind is h5py.Group:
                    todo.append((f"{where}/", group[key], depth + 1))
                elif kind is h5py.Dataset:
                    self.paths[where] = self._declared(group[key], where)

    def _declared(self, data: h5py.Dataset, where: str) -> tuple[int, ...]:
        """The declared shape, after the checks that need no expectation."""
        plist = data.id.get_create_plist()
        if plist.get_external_count() or data.is_virtual:
            raise UnsafeError(
                f"{self._name}: {printable(where)} keeps its numbers in another file. Refused, nothing was read. Allowed: weights inside the file; save the model again."
            )
        return tuple(int(n) for n in data.shape or ()) if data.shape is not None else (0,)

    def read(self, path: str, shape: tuple[int, ...]) -> Array:
        """One data set of numbers in float64. Raises InputError where it is missing, of another shape, or not there in full."""
        if path not in self.paths:
            held = ", ".join(printable(p, 60) for p in list(self.paths)[:8])
            raise InputError(
                f"{self._name}: weights {printable(path)} are missing. It holds: {held or 'none'}. Save the model again."
            )
        if self.paths[path] != shape:
            raise InputError(
                f"{self._name}: {printable(path)} has shape {list(self.paths[path])}, the configuration needs {list(shape)}. Save the model again."
            )
        data = self._file[path]
        self._check_stored(data, path, shape)
        values = np.asarray(data[()], np.float64)
        if not np.isfinite(values).all():
            raise InputError(
                f"{self._name}: {printable(path)} holds {int((~np.isfinite(values)).sum())} NaN or infinite numbers of {values.size}. Take an earlier checkpoint."
            )
        return values

    def _check_stored(self, data: h5py.Dataset, path: str, shape: tuple[int, ...]) -> None:
        """That the bytes which the shape needs are in the file, before anything is allocated for them."""
        where, dtype = printable(path), data.dtype
        if dtype.kind not in "fiu" or dtype.itemsize > 8:
            raise InputError(f"{self._name}: {where} holds {printable(dtype)}, no plain numbers. Save the model again.")
        needed = math.prod(shape) * dtype.itemsize
        if needed > MAX_BYTES:
            raise InputError(f"{self._name}: {where} declares {needed:,} bytes, allowed {MAX_BYTES:,}.")
        plist = data.id.get_create_plist()
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        if set(filters) - {1, 2}:  # deflate, shuffle
            raise InputError(
                f"{self._name}: {where} is stored through filter {filters}. Allowed: gzip or none. Save the model again."
            )
        stored = data.id.get_storage_size()
        pieces = math.prod(data.chunks) * dtype.itemsize if data.chunks else 0
        if stored * (MAX_RATIO if filters else 1) < needed or pieces > max(4 * needed, 2**20):
            raise InputError(
                f"{self._name}: {where} declares {needed:,} bytes and stores {stored:,}. Save the model again."
            )

    def text(self, attribute: str) -> str | None:
        """A text kept beside the data, None where there is none."""
        if attribute not in self._file.attrs:
            return None
        held = self._file.attrs.get_id(attribute)
        if held.shape != () or held.dtype.kind not in "OS" or held.get_storage_size() > MAX_TEXT:
            raise InputError(f"{self._name}: its {printable(attribute)} is no text. Save the model again.")
        value: Any = self._file.attrs[attribute]
        text = value.decode("utf-8") if isinstance(value, bytes) else value
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise InputError(f"{self._name}: its {printable(attribute)} is no text. Save the model again.")
        return text


@contextmanager
def opened(content: bytes, name: str) -> Iterator[Store]:
    """The file's data sets. Raises InputError for damage, UnsafeError for what points outside the file."""
    try:
        import h5py
    except ImportError as error:
        raise missing_library("h5py", "keras", "reading a Keras model") from error
    if not content.startswith(MAGIC):
        raise InputError(f"{printable(name)} holds no HDF5 data. Save the model again.")
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            yield Store(file, name)
    except LimbeckError:
        raise
    except _DAMAGE as error:
        raise InputError(
            f"{printable(name)} is damaged HDF5: {printable(error) or type(error).__name__}. Copy or save it again."
        ) from error
