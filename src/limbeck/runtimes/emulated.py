"""Play generated C on a microcontroller that QEMU emulates: the environment stays here, the policy runs there.

Every number is the emulated processor's own. An instruction count is exact and repeats; it is not a count of cycles,
because QEMU models no pipeline, no caches and no wait states.
"""

from __future__ import annotations

import os
import selectors
import struct
import subprocess  # an emulator is a program
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from limbeck import spaces
from limbeck.contracts import Array, Device, Floats, Head, Observation, PolicyOutput, Spec, State, View
from limbeck.errors import EnvironmentFault, InputError, LimbeckError, printable
from limbeck.runtimes import compiled_c, firmware

SECONDS = 60.0  # without a byte from the emulator: it hangs
MAGIC = 0x4B424D4C
MEASURE_ROWS = 64  # that `measure` plays; more would not move the median
MEASURE_INSTRUCTIONS = 3e8  # and not many more than so many: under a second


@dataclass(frozen=True)
class Sizes:
    """What the program says of itself when it starts."""

    obs: int  # O
    params: int  # W
    actions: int  # A
    carried: int  # bytes of memory from one step to the next


class Emulator:
    """A running QEMU: bytes in, bytes out. It ends with this object, and by itself when its input closes."""

    def __init__(self, name: str, image: firmware.Image) -> None:
        board = firmware.board_of(name)
        self._name, self._image, self._messages = name, image, tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the emulator
        with tempfile.NamedTemporaryFile(prefix="limbeck-", suffix=".elf") as kernel:
            kernel.write(image.elf)
            kernel.flush()
            self._process = _started(board, kernel.name, self._messages)
            self.close = weakref.finalize(self, _stop, self._process, self._messages)
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
            words = struct.unpack("<5I", self.exchange(b"", 20))
        if words[0] != MAGIC:
            raise self._fault("said something else than a policy")
        self.sizes = Sizes(*words[1:])

    def exchange(self, request: bytes, wanted: int) -> bytes:
        """Send `request` while `wanted` bytes are read. Raises EnvironmentFault when QEMU ends or stays silent."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        if not self.close.alive:
            raise self._fault("was closed")
        answer, left = bytearray(), memoryview(request)
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if left:
                selector.register(stdin, selectors.EVENT_WRITE)
            while len(answer) < wanted or left:
                ready = [key.fileobj for key, _ in selector.select(SECONDS)]
                if not ready:
                    raise self._fault(f"was silent for {SECONDS:g} seconds")
                try:
                    if stdin in ready:
                        left = left[os.write(stdin.fileno(), left[: 1 << 16]) :]
                        if not left:
                            selector.unregister(stdin)
                    chunk = os.read(stdout.fileno(), 1 << 16) if stdout in ready else None
                except BrokenPipeError:
                    raise self._fault("ended") from None
                if chunk == b"":
                    raise self._fault("ended")
                answer += chunk or b""
        return bytes(answer)

    def _fault(self, what: str) -> LimbeckError:
        if not self.close.alive:
            return EnvironmentFault(f"the emulated {self._name} {what}. Load the policy again.")
        self._messages.seek(0)
        said = self._messages.read(4000).decode(errors="replace").splitlines()
        self.close()
        if any("Lockup" in line for line in said):  # of the processor: below the stack there is no memory
            return firmware.DoesNotFit(
                f"does not fit: its stack passes the {self._image.stack:,} bytes of RAM that are left for it. Take a smaller student."
            )
        note = f" It said: {printable(said[0])}." if said else ""
        return EnvironmentFault(
            f"the emulated {self._name} {what}.{note} Run the same command again, or take a larger microcontroller."
        )


def _started(board: firmware.Board, kernel: str, messages: IO[bytes]) -> subprocess.Popen[bytes]:
    """QEMU under its own count of instructions, so that a run repeats exactly."""
    bios = ["-bios", "none"] if board.machine == "virt" else []
    command = [
        board.qemu, "-M", board.machine, *bios, "-nodefaults", "-display", "none", "-monitor", "none", "-serial", "none",
        "-semihosting-config", "enable=on,target=native", "-icount", f"shift={board.shift}", "-kernel", kernel,
    ]  # fmt: skip
    try:
        return subprocess.Popen(  # noqa: S603  # a fixed program, the arguments are ours
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, bufsize=0
        )
    except OSError as error:
        raise InputError(
            f"{board.qemu} does not start: {printable(error)}. Install {board.packages[1]} again."
        ) from error


def _stop(process: subprocess.Popen[bytes], messages: IO[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.kill()
    process.wait()
    messages.close()


# ---------------------------------------------------------------- the policy


class EmulatedPolicy:
    """Compiled C that plays on an emulated microcontroller. Rows are independent, same row in, same bits out.

    Memory travels with the rows, so any number of them may be played side by side, whatever the board's RAM.
    """

    def __init__(self, emulator: Emulator, spec: Spec, head: Head, view: View = View()) -> None:
        self.spec, self.head, self._view = spec, head, view
        self.sizes, self._emulator = emulator.sizes, emulator
        self._memoryless = self.sizes.carried == 0
        wanted = spaces.input_size(spec.observation_space, view)
        if (self.sizes.obs, self.sizes.params) != (wanted, head.width):
            emulator.close()
            raise InputError(
                f"the policy's C takes {self.sizes.obs} numbers and gives {self.sizes.params}; its contract says "
                f"{wanted} and {head.width}. Export the policy again."
            )

    def close(self) -> None:
        """End the emulator now."""
        self._emulator.close()

    def initial_state(self, batch: int) -> State:
        return {} if self._memoryless else {"memory": np.zeros((batch, self.sizes.carried), np.uint8)}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        return self.on_flat(spaces.input_rows(obs, self.spec.observation_space, self._view), state, first)

    def on_flat(self, flat: Array, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        """The same from float32 rows [B, I] as `spaces.input_rows` makes them; rows that are alike are asked once."""
        rows = self._requests(flat, state, first)
        distinct, back = np.unique(rows, axis=0, return_inverse=True)
        (memory, params, actions), _ = self.asked(distinct)
        back = back.reshape(-1)
        memory, params, actions = memory[back], params[back], actions[back]
        executed = actions.astype(np.int64) if self.head.discrete else actions
        after: State = {} if self._memoryless else {"memory": memory}
        return PolicyOutput(params, after, action=executed.reshape(len(rows), *self.head.shape))

    def asked(self, requests: NDArray[np.uint8]) -> tuple[tuple[NDArray[np.uint8], Floats, Array], NDArray[np.uint32]]:
        """(memory, params, actions) of requests [B, bytes], and [B, 2] counts of the timer and bytes of the stack."""
        carried, params, actions = self.sizes.carried, 4 * self.sizes.params, 4 * self.sizes.actions
        length = carried + params + actions + 8
        answer = np.frombuffer(self._emulator.exchange(requests.tobytes(), len(requests) * length), np.uint8)
        cuts = np.cumsum([carried, params, actions])
        parts = [np.ascontiguousarray(part) for part in np.split(answer.reshape(len(requests), length), cuts, axis=1)]
        kind = np.int32 if self.head.discrete else np.float32
        return (parts[0], parts[1].view(np.float32), parts[2].view(kind)), parts[3].view(np.uint32)

    def _requests(
        self, flat: Array, state: State, first: NDArray[np.bool_], measure: bool = False
    ) -> NDArray[np.uint8]:
        """[B, bytes] what the program reads for every row: flags, memory, observation."""
        count, carried = len(flat), self.sizes.carried
        memory = np.zeros((count, carried), np.uint8) if self._memoryless else state.get("memory")
        if flat.shape != (count, self.sizes.obs) or first.shape != (count,) or memory is None or memory.shape != (count, carried):  # fmt: skip
            raise InputError(
                f"a batch of {flat.shape} observations, {first.shape} first flags and state {list(state)} does not fit the "
                f"policy: [B, {self.sizes.obs}], [B] and the state of its last output are allowed."
            )
        flags = np.ascontiguousarray(first.astype("<u4") + 2 * measure)[:, None].view(np.uint8)
        kept = np.where(first[:, None], np.uint8(0), memory)
        return np.concatenate(
            [flags, kept, np.ascontiguousarray(flat, "<f4").view(np.uint8).reshape(count, -1)], axis=1
        )

    def measured(self, flat: Array, first: NDArray[np.bool_], most: float = np.inf) -> NDArray[np.uint32]:
        """[N, 2] counts of the timer and bytes of the stack of every step along rows [N, I] lived one after the other;
        fewer rows once the counts pass `most`."""
        state, told = self.initial_state(1), np.zeros((0, 2), np.uint32)
        for row in range(len(flat)):
            request = self._requests(flat[row : row + 1], state, first[row : row + 1], True)
            (memory, _, _), numbers = self.asked(request)
            state = {} if self._memoryless else {"memory": memory}
            told = np.concatenate([told, numbers])
            if float(told[:, 0].sum(dtype=np.float64)) > most:
                break
        return told


def load(folder: Path, spec: Spec, head: Head, view: View, name: str) -> EmulatedPolicy:
    """The C of `folder`, built for the board `name` and ready to play there. Raises DoesNotFit, of the stack as well."""
    emulator = Emulator(name, firmware.build(compiled_c.text_of(folder), name))
    policy = EmulatedPolicy(emulator, spec, head, view)
    policy.on_flat(np.zeros((1, emulator.sizes.obs), np.float32), policy.initial_state(1), np.ones(1, bool))
    return policy


def measure(policy: EmulatedPolicy, folder: Path, name: str, flat: Array, first: NDArray[np.bool_]) -> Device:
    """What the policy costs on a board, along visited rows [N, I]: instructions are the median, the stack is the deepest.

    Flash and RAM are those of the policy linked alone with what it needs of libm and libgcc; RAM holds one state.
    """
    image, tick = firmware.build(compiled_c.text_of(folder), name), firmware.board_of(name).tick
    told = policy.measured(flat[:MEASURE_ROWS], first[:MEASURE_ROWS], MEASURE_INSTRUCTIONS / tick)
    count = round(float(np.median(told[:, 0])) * tick)
    return Device(name, image.flash, image.ram, int(told[:, 1].max()), count, firmware.tools(name))


def cost(folder: Path, spec: Spec, head: Head, view: View, name: str, flat: Array, first: NDArray[np.bool_]) -> Device:  # fmt: skip
    """`measure` of a policy that is loaded for it and closed. Raises DoesNotFit."""
    policy = load(folder, spec, head, view, name)
    try:
        return measure(policy, folder, name, flat, first)
    finally:
        policy.close()
