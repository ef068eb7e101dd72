"""Named arrays out of an HDF5 file that a stranger made, each of the shape that is expected of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.contracts import Array
from limbeck.errors import InputError, LimbeckError, missing_library, printable
from limbeck.hdf5 import DAMAGE, MAGIC, check_link, check_local, check_stored

if TYPE_CHECKING:
    import h5py

MAX_OBJECTS, MAX_DEPTH = 10_000, 16
MAX_BYTES = 256 * 2**20  # of one data set
MAX_TEXT = 16 * 2**20


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
                check_link(group, key, where, self._name)
                kind = group.get(key, getclass=True)
                if kind is h5py.Group:
                    todo.append((f"{where}/", group[key], depth + 1))
                elif kind is h5py.Dataset:
                    self.paths[where] = self._declared(group[key], where)

    def _declared(self, data: h5py.Dataset, where: str) -> tuple[int, ...]:
        """The declared shape, after the checks that need no expectation."""
        check_local(data, where, self._name)
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
        check_stored(data, path, self._name, MAX_BYTES, "fiu")
        values = np.asarray(data[()], np.float64)
        if not np.isfinite(values).all():
            raise InputError(
                f"{self._name}: {printable(path)} holds {int((~np.isfinite(values)).sum())} NaN or infinite numbers of {values.size}. Take an earlier checkpoint."
            )
        return values

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
    except DAMAGE as error:
        raise InputError(
            f"{printable(name)} is damaged HDF5: {printable(error) or type(error).__name__}. Copy or save it again."
        ) from error
