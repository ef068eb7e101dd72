"""Play generated C: compile policy.h with a small driver into a shared library, load it, call it on whole batches.

Compiling for the machine at hand (`native`) is faster but may round differently on another processor; proofs use the
plain build. Playing an artefact runs its code: play only folders from people you trust.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shlex
import shutil
import struct
import subprocess  # a C compiler is a program
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import spaces, storage
from limbeck.contracts import Array, Head, Observation, PolicyOutput, Spec, State, View
from limbeck.errors import InputError, StorageError, printable
from limbeck.runtimes.cdriver import DRIVER, MethodDef, bind_python

FILE = "policy.h"
BASE_FLAGS = ("-std=c99", "-O2", "-ffp-contract=off")
NATIVE_FLAGS = ("-std=c99", "-O2", "-march=native", "-ffp-contract=fast")
LINK_FLAGS = ("-shared", "-fPIC")
COMPILE_SECONDS = 300
LONG_CONSTANT = re.compile(r"= \{\n[^}]{200000,}\};")


# ---------------------------------------------------------------- the compiler


def find_compiler() -> list[str] | None:
    """The C compiler's command: CC where it is set, else cc, gcc or clang; None where there is none."""
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen:
        return chosen if shutil.which(chosen[0]) else None
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def compiler() -> list[str]:
    """The C compiler's command; InputError where there is none."""
    found = find_compiler()
    if found is None:
        raise InputError(
            "no C compiler was found. Allowed: cc, gcc or clang on PATH, or a command in CC. Install one of them."
        )
    return found


def name_of(command: Sequence[str]) -> str:
    """A compiler's plain name: cc is a link to one of the others.

    >>> name_of(["/usr/bin/clang-14", "-m32"])
    'clang-14'
    """
    name = Path(command[0]).name
    if name != "cc":
        return name
    real = Path(os.path.realpath(shutil.which("cc") or "cc")).name
    return next((known for known in ("clang", "gcc") if known in real), name)


def run_compiler(arguments: list[str], chosen: Sequence[str] | None = None) -> None:
    """Run the compiler, or the one that was chosen; its first error line becomes an InputError."""
    command = [*(chosen or compiler()), *arguments]
    try:
        done = subprocess.run(  # noqa: S603  # the command is the user's own compiler, the arguments are ours
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(
            f"{command[0]} did not finish: {printable(error)}. Set CC to a working C99 compiler."
        ) from error
    if done.returncode != 0:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
        )
        if "No space left on device" in done.stderr:
            raise StorageError(
                f"{command[0]}: {printable(lines[0])}. Free space in {tempfile.gettempdir()}, then run the same command again."
            )
        raise InputError(f"{command[0]} refused {FILE}: {printable(lines[0])}. Set CC to a working C99 compiler.")


def object_size(folder: Path) -> int | None:
    """Bytes of code and constants that the policy occupies when compiled for size; None without a compiler.

    Read from the section table of an ELF object; other object formats count as the file's size. Long constants are
    compiled by their length alone: a compiler takes seconds over a million numbers.
    """
    if find_compiler() is None:
        return None
    with tempfile.TemporaryDirectory(prefix="limbeck-") as build:
        source, target = Path(build) / "policy.c", Path(build) / "policy.o"
        text = (folder / FILE).read_text()
        storage.write_text(source, f"#define {prefix_of(text)}_IMPLEMENTATION\n" + LONG_CONSTANT.sub("= {1};", text))
        run_compiler(["-std=c99", "-Os", "-fno-asynchronous-unwind-tables", "-c", str(source), "-o", str(target)])
        return _allocated(target.read_bytes())


def _allocated(content: bytes) -> int:
    if content[:4] != b"\x7fELF" or content[5] != 1:
        return len(content)
    wide = content[4] == 2
    (table,) = struct.unpack_from("<Q" if wide else "<I", content, 40 if wide else 32)
    size, count = struct.unpack_from("<HH", content, 58 if wide else 46)
    total = 0
    for i in range(count):
        entry = table + i * size
        kind, flags = struct.unpack_from("<IQ" if wide else "<II", content, entry + 4)
        (length,) = struct.unpack_from("<Q" if wide else "<I", content, entry + (32 if wide else 20))
        if flags & 2 and kind == 1:  # allocated program data: code and constants, no unwinding notes
            total += length
    return total


# ---------------------------------------------------------------- the library


@dataclass(frozen=True)
class Library:
    """A loaded policy: sizes and the entry points of the driver."""

    obs: int  # O
    params: int  # W
    actions: int  # A
    state_bytes: int  # of the whole state, the scratch of long vectors included
    carried_bytes: int  # of the part of it that is memory
    memoryless: bool
    reset: Callable[..., None]  # (rows, one, memory)
    batch: Callable[..., None]  # (rows, obs, first, one, memory, params, actions)
    outside: Callable[..., None]  # (rows, obs, counts)
    method: MethodDef
    session_bytes: int
    action_offset: int  # of the action inside a session


def build(folder: Path, native: bool = False, command: Sequence[str] | None = None) -> Library:
    """Compile and load policy.h of a folder; the same text is compiled once per process."""
    return _build(text_of(folder), native, tuple(command or compiler()))


def text_of(folder: Path) -> str:
    """The generated header of a folder."""
    try:
        return (folder / FILE).read_text()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no readable {FILE} ({printable(error)}). Export the policy again.") from error


def prefix_of(text: str) -> str:
    """The prefix of a generated header's macros, such as LIMBECK."""
    found = re.search(r"^#ifndef ([A-Z0-9_]+)_POLICY_H$", text, re.MULTILINE)
    if found is None:
        raise InputError(f"{FILE} has no LIMBECK_POLICY_H guard: Limbeck did not write it. Export the policy again.")
    return found.group(1)


@functools.cache
def _build(text: str, native: bool, command: tuple[str, ...]) -> Library:
    prefix = prefix_of(text)
    with tempfile.TemporaryDirectory(prefix="limbeck-") as place:
        target, driver = Path(place) / "policy.so", Path(place) / "driver.c"
        storage.write_text(Path(place) / FILE, text)
        storage.write_text(driver, DRIVER.replace("@P", prefix).replace("@p", prefix.lower()))
        flags = NATIVE_FLAGS if native else BASE_FLAGS
        run_compiler([*flags, *LINK_FLAGS, str(driver), "-o", str(target), "-lm"], command)
        try:
            library = ctypes.CDLL(str(target))
        except OSError as error:
            raise InputError(
                f"the compiled policy cannot be loaded: {printable(error)}. Set TMPDIR to a folder that allows execution."
            ) from error
    return _describe(library)


def _describe(library: ctypes.CDLL) -> Library:
    sizes = (ctypes.c_int * 7)()
    library.driver_sizes(sizes)
    library.driver_reset.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2]
    library.driver_batch.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 6]
    library.driver_outside.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2]
    library.driver_reset.restype = library.driver_batch.restype = library.driver_outside.restype = None
    return Library(
        obs=sizes[0], params=sizes[1], actions=sizes[2], state_bytes=sizes[3],
        carried_bytes=sizes[6], memoryless=sizes[6] == 0, reset=library.driver_reset, batch=library.driver_batch,
        outside=library.driver_outside, method=bind_python(library), session_bytes=sizes[4], action_offset=sizes[5],
    )  # fmt: skip


# ---------------------------------------------------------------- the policy


class CPolicy:
    """Compiled C that plays. Rows are independent of one another and of the batch: same row in, same bits out.

    `action` of its output is the executed action that the C code itself chose.
    """

    def __init__(self, library: Library, spec: Spec, head: Head, view: View = View()) -> None:
        self.library, self.spec, self.head, self._view = library, spec, head, view
        self._action_type = np.int32 if head.discrete else np.float32
        wanted = spaces.input_size(spec.observation_space, view)
        if library.params != head.width or library.obs != wanted:
            raise InputError(
                f"{FILE} takes {library.obs} numbers and gives {library.params}; its contract says "
                f"{wanted} and {head.width}. Export the policy again."
            )
        self._session = bytearray(library.session_bytes)
        self._session_address = ctypes.addressof(ctypes.c_char.from_buffer(self._session))
        self._counters = np.frombuffer(self._session, np.uint32, 2, library.carried_bytes)
        self._action = np.frombuffer(self._session, self._action_type, library.actions, library.action_offset)
        self.step: Callable[[Array], Any] = library.method.bind(
            (self._session, self._action), not head.shape and head.discrete
        )
        self.reset()

    def initial_state(self, batch: int) -> State:
        if self.library.memoryless:
            return {}
        memory = np.zeros((batch, self.library.carried_bytes), np.uint8)
        one = np.zeros(self.library.state_bytes, np.uint8)
        self.library.reset(batch, one.ctypes.data, memory.ctypes.data)
        return {"memory": memory}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        return self.on_flat(spaces.input_rows(obs, self.spec.observation_space, self._view), state, first)

    def on_flat(self, flat: Array, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        """The same from float32 rows [B, I] as `spaces.input_rows` makes them: flat observation, then action mask."""
        rows = len(flat)
        params = np.empty((rows, self.library.params), np.float32)
        actions = np.empty((rows, self.library.actions), self._action_type)
        flat, first = np.ascontiguousarray(flat, np.float32), np.ascontiguousarray(first, bool)
        after = {name: np.array(values, order="C") for name, values in state.items()}
        memory = after["memory"].ctypes.data if after else None
        self._check(flat, first, after)
        one = np.empty(self.library.state_bytes, np.uint8)
        given = (flat.ctypes.data, first.ctypes.data, one.ctypes.data, memory)
        self.library.batch(rows, *given, params.ctypes.data, actions.ctypes.data)
        executed = actions.astype(np.int64) if self.head.discrete else actions
        return PolicyOutput(params, after, action=executed.reshape(rows, *self.head.shape))

    def reset(self) -> None:
        """Forget the memory that `step` keeps. `step(obs)` is the fast path from Python for one robot: a contiguous
        float32 array [I] in; an int, or the array of the executed action (overwritten by the next step), out."""
        self.library.reset(0, self._session_address, None)

    @property
    def steps(self) -> int:
        """Calls of `step` since the last reset."""
        return int(self._counters[0])

    @property
    def strange(self) -> int:
        """Of `steps`, those whose observation held numbers that are not finite or that training never saw."""
        return int(self._counters[1])

    def outside(self, flat: Array) -> NDArray[np.uint32]:
        """[B] how many numbers of each row [B, I] are not finite or outside of what training saw; changes nothing."""
        flat, counts = np.ascontiguousarray(flat, np.float32), np.empty(len(flat), np.uint32)
        self._check(flat, np.zeros(len(flat), bool), self.initial_state(len(flat)))
        self.library.outside(len(flat), flat.ctypes.data, counts.ctypes.data)
        return counts

    def _check(self, flat: Array, first: Array, state: State) -> None:
        rows, memory = len(flat), state.get("memory")
        fits = memory is None if self.library.memoryless else memory is not None and memory.dtype == np.uint8
        if memory is not None:
            fits = fits and memory.shape == (rows, self.library.carried_bytes)
        if flat.shape != (rows, self.library.obs) or first.shape != (rows,) or not fits:
            raise InputError(
                f"a batch of {flat.shape} observations, {first.shape} first flags and state {list(state)} does not fit the "
                f"policy: [B, {self.library.obs}], [B] and the state of its last output are allowed."
            )


def load(
    folder: Path,
    spec: Spec,
    head: Head,
    view: View = View(),
    *,
    native: bool = False,
    command: Sequence[str] | None = None,
) -> CPolicy:
    """The policy of `folder`, compiled and ready to play; of the view, keys and mask are applied here."""
    return CPolicy(build(folder, native, command), spec, head, view)
