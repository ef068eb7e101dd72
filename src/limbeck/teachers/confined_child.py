"""The process that a trusted program runs in: nothing of it arrives before the walls stand.

Run by `teachers.confined` as a script of its own, in isolated mode, with two pipes and no environment; imports nothing
of Limbeck. torch is imported and exercised first, for afterwards no file can be opened. Then the walls:

    no new privileges        no_new_privs: nothing executed could gain rights
    no file, no socket       RLIMIT_NOFILE 0: no new descriptor of any kind; RLIMIT_FSIZE 0: nothing can grow
    no process, no thread    RLIMIT_NPROC 0
    bounded memory and time  RLIMIT_AS: what torch took plus MEMORY; RLIMIT_CPU: a day; the parent times every call
    system calls             a seccomp allow-list: memory, clocks, locks, signals, exit, read on one pipe, write on the
                             other; all else fails with EPERM, also in threads that exist already (TSYNC)

Both sides speak in messages: MAGIC, the length of a JSON header (4 bytes), the header, then raw arrays one after another.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import platform
import socket
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any

MAGIC = b"LMBK"
MEMORY = 4 * 2**30  # bytes beyond what torch takes
CPU_SECONDS = 86_400
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
MAX_HEADER = 2**16
MAX_TEXT = 500  # characters of an error that are told

# ---------------------------------------------------------------- system calls

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER, _TSYNC = 1, 1
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF: ld abs word, jeq, jge, ret
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_X32 = 0x40000000  # system calls of another ABI on x86_64

_X86_64 = (
    *(9, 10, 11, 12, 25, 28),  # mmap mprotect munmap brk mremap madvise
    *(13, 14, 15, 131),  # rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack
    *(24, 35, 96, 98, 201, 202, 204),  # sched_yield nanosleep gettimeofday getrusage time futex sched_getaffinity
    *(228, 229, 230, 309),  # clock_gettime clock_getres clock_nanosleep getcpu
    *(3, 5, 39, 63, 186, 219),  # close fstat getpid uname gettid restart_syscall
    *(273, 318, 324, 334),  # set_robust_list getrandom membarrier rseq
    *(60, 231),  # exit exit_group
)
_AARCH64 = (
    *(222, 226, 215, 214, 216, 233),
    *(134, 135, 139, 132),
    *(124, 101, 169, 165, 98, 123),  # the same; there is no time()
    *(113, 114, 115, 168),
    *(57, 80, 172, 160, 178, 128),
    *(99, 278, 283, 293),
    *(93, 94),
)
# machine -> (AUDIT_ARCH, seccomp, read, write, all that is allowed whatever its arguments)
_CALLS: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, 317, 0, 1, _X86_64),
    "aarch64": (0xC00000B7, 277, 63, 64, _AARCH64),
}


def allow_list(machine: str, answers: int) -> bytes:
    """The filter program: reading from descriptor 0, writing to 1, 2 and `answers`, and the calls of `_CALLS`."""
    arch, _, read, write, calls = _CALLS[machine]
    rules = [_op(_LOAD, _ARCH), _op(_EQUAL, arch, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        rules += [_op(_AT_LEAST, _X32, 0, 1), _op(_RETURN, _KILL)]
    for number in calls:
        rules += [_op(_EQUAL, number, 0, 1), _op(_RETURN, _ALLOW)]
    for number, descriptors in ((read, (0,)), (write, (1, 2, answers))):
        rules += [_op(_EQUAL, number, 0, 2 + 2 * len(descriptors)), _op(_LOAD, _FIRST_ARGUMENT)]
        for descriptor in descriptors:
            rules += [_op(_EQUAL, descriptor, 0, 1), _op(_RETURN, _ALLOW)]
        rules.append(_op(_RETURN, _DENY))
    return b"".join([*rules, _op(_RETURN, _DENY)])


def _op(code: int, k: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, true, false, k)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def raise_walls(answers: int) -> None:
    """From here on this process can compute, read from its pipe and answer. Raises OSError where a wall will not stand."""
    import resource

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
    with open("/proc/self/statm") as stream:
        taken = int(stream.read().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: taken + MEMORY,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    machine = platform.machine()
    rules = ctypes.create_string_buffer(code := allow_list(machine, answers), len(code))
    program = _Program(len(code) // 8, ctypes.cast(rules, ctypes.c_void_p))
    call = ctypes.c_long(_CALLS[machine][1])
    if libc.syscall(call, ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER), ctypes.c_ulong(_TSYNC), ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "seccomp refused the filter")
    _try_walls()


def _try_walls() -> None:
    """Raises OSError if a file can be opened, a socket made or a process started after all."""
    attempts: dict[str, Callable[[], Any]] = {
        "a file was opened": lambda: os.open(os.devnull, os.O_RDONLY),
        "a socket was made": lambda: socket.socket(),
        "a process was started": os.fork,
    }
    for what, attempt in attempts.items():
        try:
            made = attempt()
        except OSError:
            continue
        if what == "a process was started" and made == 0:
            os._exit(0)
        raise OSError(errno.ENOTSUP, f"{what} although the walls stand")


# ---------------------------------------------------------------- torch before the walls


def warm_up(exported: bool) -> Callable[[bytes], Any]:
    """torch with everything imported that loading and running usually needs; returns the loader."""
    import torch

    torch.set_num_threads(1)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.ReLU(), torch.nn.Softmax(-1))
    row = torch.zeros(2, 4)
    load = _exported if exported else _scripted
    kept = io.BytesIO()
    if exported:
        batch = torch.export.Dim("batch", min=1, max=64)
        torch.export.save(torch.export.export(net, (row,), dynamic_shapes=({0: batch},)), kept)
    else:
        torch.jit.save(torch.jit.script(net), kept)
    with torch.inference_mode():
        program = load(kept.getvalue())
        for _ in range(4):  # the third call is where TorchScript optimises
            program(row)
        row.numpy().tobytes()
    return load


def _scripted(content: bytes) -> Any:
    import torch

    read: Any = torch.jit.load  # untyped in torch
    return read(io.BytesIO(content), map_location="cpu").eval()


def _exported(content: bytes) -> Any:
    import torch

    return torch.export.load(io.BytesIO(content)).module()


# ---------------------------------------------------------------- messages


def serve(load: Callable[[bytes], Any], answers: int) -> None:
    """Answer until the parent goes: first the program's content, then observations."""
    import numpy as np
    import torch

    program: Any = None
    while True:
        header = _receive_header()
        arrays = [np.frombuffer(_receive(size), dtype) for dtype, _, size in header["arrays"]]
        shaped = [a.reshape(shape) for a, (_, shape, _) in zip(arrays, header["arrays"], strict=True)]
        try:
            if header["names"] == ["program"]:
                program = load(shaped[0].tobytes())
                _answer(answers, [], False)
                continue
            tensors = [torch.tensor(a) for a in shaped]
            fed = tensors[0] if header["names"] is None else dict(zip(header["names"], tensors, strict=True))
            with torch.inference_mode():
                said = program(fed)
            parts = list(said) if isinstance(said, (tuple, list)) else [said]
            _answer(answers, [p.detach().contiguous().numpy() for p in parts], isinstance(said, (tuple, list)))
        except Exception as error:  # whatever a stranger's program raises is told to the parent in one line
            _send(answers, {"error": _line(error), "forbidden": _is_forbidden(error)})


def _line(error: Exception) -> str:
    """The first and the last line of what it says: TorchScript puts its whole stack between them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    told = lines[0] if len(lines) == 1 else f"{lines[0][: MAX_TEXT // 2]} ... {lines[-1][: MAX_TEXT // 2]}"
    return f"{type(error).__name__}: {told}"[:MAX_TEXT]


def _is_forbidden(error: BaseException | None) -> bool:
    """Whether a wall was touched: the exception, or one that it came from, speaks of EPERM or of descriptors."""
    words = tuple(os.strerror(code) for code in (errno.EPERM, errno.EMFILE, errno.EFBIG))
    while error is not None:
        if isinstance(error, PermissionError) or any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def _answer(answers: int, arrays: list[Any], several: bool) -> None:
    table = [[str(a.dtype), list(a.shape)] for a in arrays]
    _send(answers, {"arrays": table, "several": several}, b"".join(a.tobytes() for a in arrays))


def _send(answers: int, header: dict[str, Any], body: bytes = b"") -> None:
    text = json.dumps(header).encode()
    rest = memoryview(MAGIC + struct.pack("<I", len(text)) + text + body)
    while rest:
        rest = rest[os.write(answers, rest) :]


def _receive_header() -> dict[str, Any]:
    start = _receive(8)
    if start[:4] != MAGIC:
        os._exit(3)
    header: dict[str, Any] = json.loads(_receive(struct.unpack("<I", start[4:])[0]))
    return header


def _receive(size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = os.read(0, min(missing, 2**20))
        if not part:
            os._exit(0)  # the parent is gone
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def main() -> None:
    warnings.simplefilter("ignore")
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # a program that prints must not speak on the pipe
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        load = warm_up(exported=sys.argv[1] == "exported")
        raise_walls(answers)
    except Exception as error:  # told to the parent, which then runs nothing
        _send(answers, {"error": _line(error), "forbidden": False})
        return
    _answer(answers, [], False)
    serve(load, answers)


if __name__ == "__main__":
    main()
