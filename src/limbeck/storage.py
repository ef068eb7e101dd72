"""The one way anything reaches the disk: aside, flushed, fsynced, renamed, directory fsynced, read back.

Also the run folder's lock, its manifest and its growing metrics file. A kill at any moment leaves the old file or the
new one; an error is reported as a StorageError and never as success. Arrays are stored as safetensors and mapped into
memory by the offsets in their header.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.contracts import Array
from limbeck.errors import InputError, StorageError, printable

ASIDE = ".limbeck-part"  # suffix of files not yet renamed; only these are ever cleaned up
LOCK, MANIFEST, METRICS, PROBE = "run.lock", "manifest.json", "metrics.jsonl", ".write-probe"
TRACKING = "tracking"  # folder of a run that trackers own: their tools write into it whenever they open it


# ---------------------------------------------------------------- atomic files


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, durably; on any failure the old file stays and StorageError is raised."""
    aside = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_through(aside, content)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
        if path.stat().st_size != len(content):
            raise OSError(errno.EIO, "the file read back has another size")
    except OSError as error:
        raise _storage_error(path, error, len(content)) from error


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Plain values, dataclasses and numpy scalars; NaN and infinities become null, so any JSON reader opens it."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise _storage_error(path, error) from error
    except ValueError as error:
        raise StorageError(f"{path} is damaged: {error}. Remove it, or restore it from a copy.") from error


def read_table(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table of names, as every file that Limbeck writes for itself does."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise StorageError(
            f"{path} is damaged: it holds no table, but {type(found).__name__}. Remove it, or restore it from a copy."
        )
    return found


def plain(value: Any) -> Any:
    """`value` as JSON-able data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _write_through(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _storage_error(path: Path, error: OSError, size: int = 0) -> StorageError:
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(
            f"{path}: {what} while writing {size:,} bytes. Free that much space, then run the same command again; nothing was lost."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"{path}: {what}. Choose a folder you may write to with --out.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return StorageError(
            f"{path}: {what}. A file stands where a folder is needed, or a folder where a file is: choose another --out."
        )
    if size and error.errno == errno.ENOENT:  # its folder was made just before: only special file systems say so
        return StorageError(f"{path} cannot be written to: {what}. Choose another --out.")
    return StorageError(f"{path}: {what}. Check the disk, then run the same command again.")


# ---------------------------------------------------------------- arrays


def write_arrays(path: Path, arrays: Mapping[str, Array], meta: Mapping[str, str] | None = None) -> None:
    """Named arrays and string metadata as one safetensors file: the same values always give the same bytes."""
    write_bytes(path, to_safetensors(arrays, meta or {}))


def to_safetensors(arrays: Mapping[str, Array], meta: Mapping[str, str]) -> bytes:
    """The file's content. Written here because the library orders several metadata keys anew in every process.

    Layout: header length (u64), JSON header padded by blanks to 8 bytes, then the arrays, widest numbers first so that
    each begins at a multiple of its own item size.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(meta.items()))} if meta else {}
    parts: list[bytes] = []
    position = 0
    for name in sorted(arrays, key=lambda key: (-np.asarray(arrays[key]).itemsize, key)):
        array = np.asarray(arrays[name])
        content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()  # C order
        entry = {"dtype": _CODES[array.dtype.newbyteorder("<").str], "shape": list(array.shape)}
        header[name] = {**entry, "data_offsets": [position, position + len(content)]}
        parts.append(content)
        position += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def read_arrays(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and metadata that `write_arrays` wrote, copied into memory."""
    arrays, meta = map_arrays(path)
    return {k: np.array(v) for k, v in arrays.items()}, meta


def digest(arrays: Mapping[str, Array], text: str) -> str:
    """SHA-256 of named arrays and a text."""
    whole = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        whole.update(name.encode())
        whole.update(np.ascontiguousarray(arrays[name]).tobytes())
    return whole.hexdigest()


_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def map_arrays(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Read-only views into a memory-mapped safetensors file; the header is checked against the file's size."""
    try:
        raw = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise _storage_error(path, error) from error
    return parse_safetensors(raw, str(path))


def parse_safetensors(raw: Array, name: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays as views into `raw` (uint8). Refuses overlaps, holes, duplicates, unknown types and lying sizes."""

    def damaged(why: str) -> InputError:
        return InputError(f"{printable(name)} is not a valid safetensors file: {why}. Export the weights again.")

    if raw.size < 8:
        raise damaged(f"{raw.size} bytes long")
    length = int.from_bytes(bytes(raw[:8]), "little")
    if not 2 <= length <= min(raw.size - 8, 100_000_000):
        raise damaged(f"its header claims {length} bytes")
    header = _unique_json(bytes(raw[8 : 8 + length]), damaged)
    meta = header.pop("__metadata__", {})
    arrays, position = {}, 8 + length
    try:
        entries = sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
        for key, entry in entries:
            dtype, shape, (begin, end) = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
            if any(not isinstance(n, int) or n < 0 for n in (*shape, begin, end)):
                raise damaged(f"{key!r} has negative sizes")
            if (
                begin + 8 + length != position
                or end - begin != math.prod(shape) * dtype.itemsize
                or end + 8 + length > raw.size
            ):
                raise damaged(f"{key!r} does not fit its place")
            arrays[key] = raw[position : end + 8 + length].view(dtype).reshape(shape)
            position = end + 8 + length
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(f"bad entry ({error})") from error
    if position != raw.size:
        raise damaged(f"{raw.size - position} bytes belong to no array")
    return arrays, meta


def _unique_json(text: bytes, damaged: Any) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) != len(pairs):
            raise ValueError("a key appears twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except ValueError as error:
        raise damaged(f"unreadable header ({error})") from error
    if not isinstance(header, dict):
        raise damaged("its header is no table")
    return header


# ---------------------------------------------------------------- the run folder


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def probe_writable(folder: Path) -> None:
    """Fail before any work if the folder cannot take files."""
    path = folder / PROBE
    write_bytes(path, b"ok")
    path.unlink()


def is_aside(path: Path) -> bool:
    """Whether a kill left this file before it was renamed."""
    return path.name.startswith(".") and path.name.endswith(ASIDE)


@contextmanager
def locked(folder: Path, name: str = LOCK, orphans: str = f"**/.*{ASIDE}") -> Iterator[None]:
    """Hold the run folder; a second process is refused at once and told who holds it. The kernel frees it at any death.

    `orphans` is the pattern of files that a killed process may have left and that are removed now.
    """
    import fcntl  # not at the top: limbeck-runtime, which only reads, is imported where there is none

    probe_writable(folder)
    with (folder / name).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = printable(file.read().strip()) or "another process"
            raise StorageError(
                f"{folder} is in use by {holder}. Wait for it, stop it, or choose another --out."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        for orphan in folder.glob(orphans):
            orphan.unlink(missing_ok=True)
        yield


def write_manifest(folder: Path) -> None:
    """SHA-256 of every file of the run but the manifest, locks and what trackers own."""
    ours = (p for p in folder.rglob("*") if p.relative_to(folder).parts[0] != TRACKING and p.is_file())
    files = sorted(p for p in ours if p.name != MANIFEST and not p.name.endswith((".lock", ASIDE)))
    write_json(folder / MANIFEST, {str(p.relative_to(folder)): sha256(p) for p in files})


def check_manifest(folder: Path) -> list[str]:
    """Files whose content is no longer what the manifest says, or that are gone."""
    wanted = read_manifest(folder)
    return [name for name, digest in wanted.items() if not (folder / name).is_file() or sha256(folder / name) != digest]


def read_manifest(folder: Path) -> dict[str, str]:
    """The checksums by file name. Raises StorageError for another content, and for files outside of the folder."""
    path = folder / MANIFEST
    listed = read_json(path)
    if not isinstance(listed, dict) or not all(isinstance(digest, str) for digest in listed.values()):
        raise StorageError(f"{path} is damaged: it holds no checksums by file name. Restore it from a copy.")
    outside = [name for name in listed if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name]
    if outside:
        raise StorageError(
            f"{path} is damaged: {printable(outside[0])} is outside of its folder. Restore it from a copy."
        )
    return listed


def append_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Add lines to metrics.jsonl. A tail cut by a kill is moved to a side file first, so every line stays readable."""
    path = folder / METRICS
    try:
        if path.exists():
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):
                keep = content.rfind(b"\n") + 1
                write_bytes(path.with_suffix(".cut"), content[keep:])
                os.truncate(path, keep)
        with path.open("ab") as file:
            file.write("".join(json.dumps(plain(row)) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _storage_error(path, error) from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / METRICS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise StorageError(f"{path} is damaged: {error}. Remove it: it holds the curves only, no student.") from error
