"""WebAssembly: the generated C as one module without imports, and a small loader for browsers and node beside it.

Clang and wasm-ld alone, no C library: what mathematics the policy calls lies in freestanding/math.h. Compiled and linked
in two steps, since a clang that links runs `wasm-opt` wherever binaryen is installed, and that one refuses SIMD. Vectors
of 128 bits make a step two to four times faster and change no sum: every browser has them since 2023, node since 16.
"""

from __future__ import annotations

import re
import shutil
import subprocess  # a C compiler is a program
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from limbeck import storage
from limbeck.contracts import Artifact, Blueprint, Policy
from limbeck.errors import InputError, StorageError, printable
from limbeck.exporters import Backend, c
from limbeck.exporters.contract import Contract
from limbeck.runtimes import wasm

WASM, LOADER = "policy.wasm", "policy.mjs"
FREESTANDING = Path(__file__).parent / "freestanding"
CLANG = ("--target=wasm32", "-msimd128", "-std=c99", "-O2", "-ffp-contract=off", "-ffreestanding", "-fno-math-errno")
LINK = ("--no-entry", "--strip-all", "--gc-sections", "--stack-first", "-z", "stack-size=65536")  # overflows trap
VERSIONS = ("", *(f"-{n}" for n in range(24, 10, -1)))  # of Debian's programs
PACKAGES = {"clang": "clang", "wasm-ld": "lld"}  # program -> package of apt
COMPILE_SECONDS = 300


def export(blueprint: Blueprint, folder: Path) -> Artifact:
    """Write policy.wasm and policy.mjs; the size is the module's, code and weights."""
    content = generate(blueprint)
    storage.write_bytes(folder / WASM, content)
    storage.write_text(folder / LOADER, (FREESTANDING / LOADER).read_text())
    able = [name for name in wasm.ENGINES if not wasm.missing(name)]
    note = "" if able else f"WebAssembly written, not proved here: {wasm.missing(wasm.ENGINES[0])}"
    return Artifact("wasm", folder, (WASM, LOADER), len(content), bool(able), note)


def load(folder: Path, contract: Contract) -> Policy:
    """Play the module of an artefact in the first engine that is here."""
    able = [name for name in wasm.ENGINES if not wasm.missing(name)]
    return _played(folder, contract, able[0] if able else wasm.ENGINES[0])


def missing() -> str:
    """What this machine lacks to make a module; to run one, `backends` says."""
    absent = [name for name in PACKAGES if _program(name) is None]
    return (
        f"no {' and no '.join(absent)}; run: apt-get install {' '.join(PACKAGES[n] for n in absent)}" if absent else ""
    )


def backends(folder: Path, contract: Contract) -> Sequence[Backend]:
    return [Backend(name, wasm.missing(name), partial(_played, folder, contract, name)) for name in wasm.ENGINES]


def _played(folder: Path, contract: Contract, engine: str) -> Policy:
    return wasm.load(folder / WASM, folder / LOADER, contract.spec, contract.head, contract.view, engine)


# ---------------------------------------------------------------- from C to a module


def generate(blueprint: Blueprint) -> bytes:
    """The module. Raises InputError where clang or wasm-ld is absent, or the C needs what no module has."""
    if lacking := missing():
        raise InputError(f"target wasm cannot be made here: {lacking}. Or choose another target.")
    text, _ = c.generate(blueprint)
    with tempfile.TemporaryDirectory(prefix="limbeck-") as place:
        build = Path(place)
        storage.write_text(build / "policy.h", text)
        shell, made, module = FREESTANDING / "shell.c", build / "policy.o", build / WASM
        searched = [f"-I{build}", "-isystem", str(FREESTANDING)]
        _run("clang", [*CLANG, *searched, "-c", str(shell), "-o", str(made)])
        _run("wasm-ld", [*LINK, str(made), "-o", str(module)])
        return module.read_bytes()


def _program(name: str) -> str | None:
    return next((found for version in VERSIONS if (found := shutil.which(f"{name}{version}"))), None)


def _run(name: str, arguments: list[str]) -> None:
    """Run a program of the toolchain; its first error line becomes an InputError."""
    program = _program(name)
    if program is None:
        raise InputError(f"target wasm cannot be made here: {missing()}. Or choose another target.")
    try:
        done = subprocess.run(  # noqa: S603  # the machine's own compiler, the arguments are ours
            [program, *arguments], capture_output=True, text=True, timeout=COMPILE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{name} did not finish: {printable(error)}. Choose another target.") from error
    if done.returncode == 0:
        return
    if "No space left on device" in done.stderr:
        raise StorageError(
            f"{name}: no space left in {tempfile.gettempdir()}. Free space there, then run the same command again."
        )
    if absent := sorted(set(re.findall(r"undefined symbol: (\w+)", done.stderr))):
        raise InputError(
            f"the policy calls {', '.join(absent)}, which target wasm has no own version of. Choose another target."
        )
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
    raise InputError(f"{name} refused the policy: {printable(lines[0])}. Install a current clang and lld.")
