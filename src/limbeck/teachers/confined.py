"""A program of a stranger in a process of its own, behind walls (`confined_child.py` says which).

The child is started clean, builds its walls, and only then is given the program, through a pipe. What comes back is
taken for hostile: lengths, types and shapes are checked before anything is read, every exchange has a time limit.
"""

from __future__ import annotations

import json
import math
import os
import platform
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from limbeck.contracts import Array
from limbeck.errors import EnvironmentFault, InputError, UnsafeError, printable
from limbeck.teachers import confined_child as child

Kind = Literal["scripted", "exported"]
MACHINES = ("x86_64", "aarch64")
START_SECONDS, LOAD_SECONDS, CALL_SECONDS = 180.0, 120.0, 60.0
MAX_ANSWER = 256 * 2**20  # bytes of one answer
MAX_PARTS, MAX_AXES = 8, 8
KEPT = ("PATH", "LD_LIBRARY_PATH")  # of the environment: what Python and torch need to be found


class Confined:
    """A program that answers. Ends with this object, or with the process."""

    def __init__(self, content: bytes, kind: Kind, name: str, call_seconds: float = CALL_SECONDS) -> None:
        """Start the child, wait for its walls, then send the program. Raises UnsafeError where no wall can stand,
        where the program touches one, and InputError for content that torch does not load."""
        if sys.platform != "linux" or platform.machine() not in MACHINES:
            raise UnsafeError(
                f"{printable(name)} is a program, and this system ({sys.platform}, {platform.machine()}) cannot confine one. "
                f"Allowed: Linux on {' or '.join(MACHINES)}. Convert it to weights there, or where it was made."
            )
        self._name, self._seconds, self._lock = printable(name), call_seconds, threading.Lock()
        environment = {key: os.environ[key] for key in KEPT if key in os.environ}
        self._process = subprocess.Popen(  # noqa: S603 - our own script, by its full path
            [sys.executable, "-I", "-B", str(Path(child.__file__).resolve()), kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, cwd="/",
            env=environment | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        self._finalizer = weakref.finalize(self, _end, self._process)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._answers, False)
        ready = self._hear(START_SECONDS)
        if isinstance(ready, str):
            self.close()
            raise UnsafeError(
                f"{self._name} is a program, and no walls could be put around it here: {ready}. It was not run. Allowed: a kernel with seccomp."
            )
        self._exchange(["program"], [np.frombuffer(content, np.uint8)], LOAD_SECONDS)

    def __call__(self, obs: Array | Mapping[str, Array]) -> Any:
        """What the program answers to one array or to arrays by name: an array, or a tuple of arrays."""
        names = list(obs) if isinstance(obs, Mapping) else None
        arrays = list(obs.values()) if isinstance(obs, Mapping) else [obs]
        return self._exchange(names, arrays, self._seconds)

    def close(self) -> None:
        self._finalizer()

    # ------------------------------------------------------------ one exchange

    def _exchange(self, names: list[str] | None, arrays: list[Array], seconds: float) -> Any:
        with self._lock:
            if not self._finalizer.alive:
                raise EnvironmentFault(f"{self._name}: its confined process has ended. Load the teacher again.")
            table = [[str(a.dtype), list(a.shape), a.nbytes] for a in arrays]
            header = json.dumps({"names": names, "arrays": table}).encode()
            self._say(child.MAGIC + struct.pack("<I", len(header)) + header, seconds)
            for array in arrays:
                self._say(np.ascontiguousarray(array).tobytes(), seconds)
            answer = self._hear(seconds)
        if isinstance(answer, str):
            raise InputError(
                f"{self._name} raised {printable(answer, 400)}. A teacher takes observations with a leading batch axis."
            )
        return answer

    def _hear(self, seconds: float) -> Any:
        """An answer, or the text of an error that the program raised."""
        deadline = time.monotonic() + seconds
        start = self._read(8, deadline)
        size = struct.unpack("<I", start[4:])[0]
        if start[:4] != child.MAGIC or size > child.MAX_HEADER:
            self._broken("it answered out of turn")
        try:
            header = json.loads(self._read(size, deadline))
            if "error" in header:
                text = printable(header["error"], child.MAX_TEXT)
                if header.get("forbidden") is True:
                    self.close()
                    raise UnsafeError(
                        f"{self._name} tried what its confinement forbids: {text}. It was stopped; nothing was written. Do not use this file."
                    )
                return text
            if len(header["arrays"]) > MAX_PARTS:
                raise ValueError("too many arrays")
            sizes = [(np.dtype(_known(dtype)), _shape(shape)) for dtype, shape in header["arrays"]]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._broken("its answer is no answer")
        if sum(dtype.itemsize * math.prod(shape) for dtype, shape in sizes) > MAX_ANSWER:
            self._broken(f"its answer is larger than {MAX_ANSWER >> 20} MiB")
        arrays = tuple(
            np.frombuffer(self._read(dtype.itemsize * math.prod(shape), deadline), dtype).reshape(shape)
            for dtype, shape in sizes
        )
        return arrays if header.get("several") is True or len(arrays) != 1 else arrays[0]

    # ------------------------------------------------------------ bytes, under a deadline

    def _say(self, content: bytes, seconds: float) -> None:
        deadline, rest = time.monotonic() + seconds, memoryview(content)
        while rest:
            self._wait(self._requests, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._requests, rest[: 2**20]) :]
            except BrokenPipeError:
                self._died()
            except BlockingIOError:
                continue

    def _read(self, size: int, deadline: float) -> bytes:
        parts, missing = [], size
        while missing:
            self._wait(self._answers, select.POLLIN, deadline)
            part = os.read(self._answers, min(missing, 2**20))
            if not part:
                self._died()
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            self.close()
            raise EnvironmentFault(
                f"{self._name} did not answer in time and was ended. Use a smaller program, or its weights."
            )

    def _died(self) -> NoReturn:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._broken("it closed its pipe")
        self.close()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise EnvironmentFault(
            f"{self._name} ended its confined process ({how}): it crashed, ran out of memory or quit. Do not use this file."
        )

    def _broken(self, why: str) -> NoReturn:
        self.close()
        raise UnsafeError(
            f"{self._name} misbehaved in its confined process: {why}. It was ended. Do not use this file."
        )


def _known(dtype: Any) -> str:
    if dtype not in child.DTYPES:
        raise ValueError(dtype)
    return str(dtype)


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(shape)
    return tuple(shape)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
