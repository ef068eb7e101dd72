"""Play a policy's WebAssembly module: in this process with wasmtime, or in node with the loader that ships beside it.

A module that asks for anything from outside is refused, so it can compute and nothing else. The loader is JavaScript and
runs in node as it is: play only folders from people you trust.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import struct
import subprocess  # node is a program
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from limbeck import spaces
from limbeck.contracts import Array, Floats, Head, Observation, PolicyOutput, Spec, State, View
from limbeck.errors import InputError, missing_library, printable, unknown

ENGINES = ("wasmtime", "node")  # in the order of preference
NODE_SCRIPT = Path(__file__).with_name("wasm_node.mjs")
EXPORTS = [
    "memory",
    "obs",
    "params",
    "action",
    "state",
    "obs_size",
    "params_size",
    "action_size",
    "action_is_whole",
    "state_size",
    "reset",
    "step",
    "guard",
    "steps",
    "strange",
    "outside",
]


@dataclass(frozen=True)
class Sizes:
    """What a module says of itself."""

    obs: int
    params: int
    actions: int
    whole: bool  # actions are whole numbers
    fresh: bytes  # the state after a reset; empty where nothing is carried


@dataclass(frozen=True)
class Rows:
    """What an engine is asked, and with other arrays what it answers."""

    flat: Floats  # [B, I]
    first: NDArray[np.bool_]  # [B]
    state: NDArray[np.uint8]  # [B, S]


class Engine(Protocol):
    """One loaded module."""

    @property
    def sizes(self) -> Sizes: ...

    def play(self, rows: Rows) -> tuple[Floats, Array, NDArray[np.uint8]]:
        """Params [B, W], actions [B, n] and states [B, S] after one step of every row."""
        ...


def missing(engine: str) -> str:
    """What this machine lacks to run an engine, in words; empty when nothing."""
    if engine == "wasmtime":
        return "" if find_spec("wasmtime") else 'wasmtime is not installed; run: pip install "limbeck[wasm]"'
    return "" if shutil.which("node") else "node is not installed; run: apt-get install nodejs"


def load(
    module: Path, loader: Path, spec: Spec, head: Head, view: View = View(), engine: str = ENGINES[0]
) -> WasmPolicy:
    """A module, ready to play; of the view, keys and mask are applied here."""
    for path in (module, loader):
        if not path.is_file():
            raise InputError(f"no file at {printable(path)}. Export the policy again.")
    makers: dict[str, Callable[[], Engine]] = {
        "wasmtime": lambda: Wasmtime(module.read_bytes()),
        "node": lambda: Node(loader, module),
    }
    if engine not in makers:
        raise unknown("engine", engine, makers)
    return WasmPolicy(makers[engine](), spec, head, view)


# ---------------------------------------------------------------- engines


class Wasmtime:
    """A module in this process."""

    def __init__(self, content: bytes) -> None:
        try:
            import wasmtime
        except ImportError as error:
            raise missing_library("wasmtime", "wasm", "playing a WebAssembly module") from error
        self._fault = (wasmtime.WasmtimeError, wasmtime.Trap)
        self._store = wasmtime.Store()
        try:
            module = wasmtime.Module(self._store.engine, content)
            if module.imports:
                wanted = ", ".join(f"{part.module}.{part.name}" for part in module.imports)
                raise InputError(f"the module asks for {printable(wanted)} from outside. Allowed: nothing. Export it.")
            found: Any = wasmtime.Instance(self._store, module, []).exports(self._store)
        except self._fault as error:
            raise _broken(error) from error
        if absent := [name for name in EXPORTS if name not in list(found.keys())]:
            raise InputError(f"the module has no {', '.join(absent)}: it is no policy. Export the policy again.")
        self._call: Callable[[str], Any] = lambda name: found[name](self._store)
        memory: Any = found["memory"]
        size = memory.data_len(self._store)  # it never grows
        address = ctypes.addressof(memory.data_ptr(self._store).contents)
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        self.sizes = self._describe()

    def _describe(self) -> Sizes:
        counts = [self._whole(f"{name}_size") for name in ("obs", "params", "action", "state")]
        whole = bool(self._call("action_is_whole"))
        self._obs = self._array("obs", counts[0], np.float32)
        self._params = self._array("params", counts[1], np.float32)
        self._action = self._array("action", counts[2], np.int32 if whole else np.float32)
        self._state = self._array("state", counts[3], np.uint8)
        self._run("reset")
        return Sizes(counts[0], counts[1], counts[2], whole, self._state.tobytes())

    def _whole(self, name: str) -> int:
        value = self._call(name)
        if not isinstance(value, int) or value < 0:
            raise InputError(f"the module says {name} = {printable(value)}: it is no policy. Export the policy again.")
        return value

    def count(self, name: str) -> int:
        """A counter of the guard: guard (its level), steps and strange since the last reset, outside."""
        return self._whole(name)

    def _array(self, name: str, count: int, kind: Any) -> Array:
        """The module's own numbers, not a copy."""
        begin, size = self._whole(name), count * np.dtype(kind).itemsize
        if begin + size > len(self._bytes) or begin % np.dtype(kind).itemsize:
            raise InputError(f"the module's {name} lies outside of its memory. Export the policy again.")
        return self._bytes[begin : begin + size].view(kind)

    def _run(self, name: str) -> None:
        try:
            self._call(name)
        except self._fault as error:
            raise _broken(error) from error

    def play(self, rows: Rows) -> tuple[Floats, Array, NDArray[np.uint8]]:
        count, sizes = len(rows.flat), self.sizes
        params, state = np.empty((count, sizes.params), np.float32), np.empty_like(rows.state)
        actions = np.empty((count, sizes.actions), self._action.dtype)
        for i in range(count):
            self._state[:] = rows.state[i]
            if rows.first[i]:
                self._run("reset")
            self._obs[:] = rows.flat[i]
            self._run("step")
            params[i], actions[i], state[i] = self._params, self._action, self._state
        return params, actions, state


class Node:
    """A module in a node process of its own, which ends with this object."""

    def __init__(self, loader: Path, module: Path) -> None:
        program = shutil.which("node")
        if program is None:
            raise InputError(f"{missing('node')}.")
        command = [program, str(NODE_SCRIPT), str(loader.resolve()), str(module.resolve())]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)  # noqa: S603  # our own script
        self._end = weakref.finalize(self, _end, self._process)
        try:
            told = json.loads(self._out.readline())
            self.sizes = Sizes(told["obs"], told["params"], told["actions"], told["whole"], bytes(told["fresh"]))
        except (ValueError, KeyError, TypeError) as error:
            raise self._failed() from error

    @property
    def _out(self) -> Any:
        return self._process.stdout

    def play(self, rows: Rows) -> tuple[Floats, Array, NDArray[np.uint8]]:
        count, sizes = len(rows.flat), self.sizes
        parts = (np.ascontiguousarray(part).tobytes() for part in (rows.flat, rows.first, rows.state))
        widths = (4 * sizes.params, 4 * sizes.actions, len(sizes.fresh))
        try:
            self._in.write(struct.pack("<I", count) + b"".join(parts))
            self._in.flush()
            answers = [self._out.read(count * width) for width in widths]
        except OSError as error:
            raise self._failed() from error
        if any(len(answer) != count * width for answer, width in zip(answers, widths, strict=True)):
            raise self._failed()
        kinds = ("<f4", "<i4" if sizes.whole else "<f4", "u1")
        params, actions, state = (np.frombuffer(a, k).reshape(count, -1) for a, k in zip(answers, kinds, strict=True))
        return params, actions, state.reshape(count, len(sizes.fresh))

    @property
    def _in(self) -> Any:
        return self._process.stdin

    def _failed(self) -> InputError:
        self._process.kill()
        words = (self._process.communicate()[1] or b"").decode(errors="replace")
        lines = [line for line in words.splitlines() if "Error" in line] or ["it ended without a word"]
        return _broken(lines[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None and not pipe.closed:
            try:
                pipe.close()
            except BrokenPipeError:  # a question that nobody reads any more
                continue


def _broken(error: object) -> InputError:
    return InputError(f"policy.wasm does not run: {printable(str(error).strip())}. Export the policy again.")


# ---------------------------------------------------------------- the policy


class WasmPolicy:
    """A module that plays. Rows are independent of one another and of the batch: same row in, same bits out.

    `action` of its output is the executed action that the module itself chose.
    """

    def __init__(self, engine: Engine, spec: Spec, head: Head, view: View = View()) -> None:
        self.engine, self.spec, self.head, self._view = engine, spec, head, view
        sizes, wanted = engine.sizes, spaces.input_size(spec.observation_space, view)
        if (sizes.obs, sizes.params, sizes.whole) != (wanted, head.width, head.discrete):
            raise InputError(
                f"policy.wasm takes {sizes.obs} numbers and gives {sizes.params}; its contract says {wanted} and "
                f"{head.width}. Export the policy again."
            )
        self._fresh = np.frombuffer(sizes.fresh, np.uint8)
        self._memoryless = not len(self._fresh)

    def initial_state(self, batch: int) -> State:
        return {} if self._memoryless else {"memory": self._states(batch)}

    def _states(self, batch: int) -> NDArray[np.uint8]:
        return np.tile(self._fresh, (batch, 1))

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        flat = spaces.input_rows(obs, self.spec.observation_space, self._view)
        memory = state.get("memory") if not self._memoryless else self._states(len(flat))
        wanted = (len(flat), len(self._fresh))
        if memory is None or memory.shape != wanted or memory.dtype != np.uint8 or first.shape != (len(flat),):
            raise InputError(
                f"a batch of {flat.shape} observations, {first.shape} first flags and state {list(state)} does not fit the "
                f"policy: [B, {self.engine.sizes.obs}], [B] and the state of its last output are allowed."
            )
        params, actions, after = self.engine.play(Rows(flat, first, memory))
        executed = actions.astype(np.int64) if self.head.discrete else actions
        output = {} if self._memoryless else {"memory": after}
        return PolicyOutput(params, output, action=executed.reshape(len(flat), *self.head.shape))
