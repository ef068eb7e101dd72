"""Who is at work on what: locks of the kernel, which frees them at any death of their holder.

A heartbeat tells a dead process from a slow one by waiting; a lock of the kernel tells at once, and is never wrong
about a process that sleeps. Processes on several machines need a shared file system that carries flock.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck.errors import StorageError


class Claim:
    """An exclusive lock on a file, held until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    def release(self) -> None:
        os.close(self._descriptor)


def take(path: Path, wait: bool = False) -> Claim | None:
    """The lock on `path`, or None where another process (or another place in this one) holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror}. Choose a folder you may write to with --out, on a disk with space."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise StorageError(
            f"{path}: {error.strerror}. A search needs a file system with locks: choose another --out."
        ) from error
    return Claim(path, descriptor)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The lock on `path` for a block; waits for it."""
    claim = take(path, wait=True)
    assert claim is not None
    try:
        yield
    finally:
        claim.release()
