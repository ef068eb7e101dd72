"""A stranger's ONNX model as a policy: batches filled up to what it takes, memory that goes round, answers as rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import tasks
from limbeck.contracts import Array, Head, Observation, PolicyOutput, Spec, State
from limbeck.errors import InputError, printable
from limbeck.runtimes import onnx_session
from limbeck.teachers import modules
from limbeck.teachers.modules import Form
from limbeck.teachers.onnx_feeds import Feed
from limbeck.teachers.onnx_ports import Memory, Port, Wiring, batch_axis

TRIAL_SECONDS = 20.0
_SAMPLE = 4  # rows of the trial batch


@dataclass(frozen=True)
class Answer:
    """Which outputs are the policy's rows, and how they are read."""

    names: tuple[str, ...]
    head: Head
    form: Form
    assemble: Callable[[list[Array]], Any]  # the outputs as a callable would return them
    value: str | None = None  # the output that is the policy's own estimate
    notes: tuple[str, ...] = ()


class ModelPolicy:
    """Plays once `answer` is set."""

    answer: Answer

    def __init__(self, run: Any, spec: Spec, wiring: Wiring, fed: tuple[Feed, ...], name: str) -> None:
        self.spec, self._run, self._wiring, self._fed, self._name = spec, run, wiring, fed, name
        self._outputs = [o.name for o in run.get_outputs()]
        self._limit: float | None = None

    @property
    def head(self) -> Head:
        return self.answer.head

    def initial_state(self, batch: int) -> State:
        widths = {m.into.name: math.prod(m.rest) for m in self._wiring.memory}
        widths |= dict(feed.memory for feed in self._fed if feed.memory is not None)
        return {name: np.zeros((batch, width), np.float32) for name, width in widths.items()}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        said, after = self._step(obs, state, first)
        answer = self.answer
        parts = modules.arrays(answer.assemble([said[name] for name in answer.names]), self._name)
        params = modules.FORMS[answer.form](parts, answer.head)
        value = None if answer.value is None else said[answer.value].reshape(len(first)).astype(np.float32)
        if params.shape != (len(first), answer.head.width):
            raise InputError(
                f"{printable(self._name)} answered {params.shape}, needed ({len(first)}, {answer.head.width}). Export it again."
            )
        if not np.isfinite(params).all():
            raise InputError(f"{printable(self._name)} answered NaN or infinite numbers. Export a sound checkpoint.")
        return PolicyOutput(np.ascontiguousarray(params, np.float32), after, value)

    # ------------------------------------------------------------ before it plays

    def trial(self) -> dict[str, Array]:
        """What it answers to four observations, [4, ...] by output; it has TRIAL_SECONDS."""
        self._limit = TRIAL_SECONDS
        try:
            obs = modules.trial_batch(self.spec)
            return self._step(obs, self.initial_state(_SAMPLE), np.ones(_SAMPLE, bool))[0]
        finally:
            self._limit = None

    def check(self) -> None:
        """Refuse models whose answer to an observation depends on chance or on the other rows."""
        obs, state, fresh = modules.trial_batch(self.spec), self.initial_state(_SAMPLE), np.ones(_SAMPLE, bool)
        once, again = self(obs, state, fresh).params, self(obs, state, fresh).params
        alone = self(tasks.take_rows(obs, slice(0, 1)), self.initial_state(1), fresh[:1]).params
        if not np.allclose(once, again, rtol=1e-4, atol=1e-5) or not np.allclose(once[:1], alone, rtol=1e-3, atol=1e-4):
            raise InputError(
                f"{printable(self._name)} gave two answers to the same observation: it draws at random or mixes the rows of a batch. Export the distribution, not a draw."
            )

    # ------------------------------------------------------------ one step

    def _step(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> tuple[dict[str, Array], State]:
        """The answers [B, ...] by output, and the memory after."""
        count, after = len(first), dict(state)
        whole: dict[str, tuple[Array, int]] = {}
        for feed in self._fed:
            whole[feed.port.name] = feed.rows(obs, state, first, after), batch_axis(feed.port)
        for memory in self._wiring.memory:
            kept = np.where(first[:, None], np.float32(0), state[memory.into.name]).reshape(count, *memory.rest)
            whole[memory.into.name] = np.moveaxis(kept, 0, memory.axis).astype(memory.into.dtype), memory.axis
        if self._wiring.first is not None:
            port = self._wiring.first
            column = first.reshape(count, *(1 for _ in port.dims[1:])).astype(port.dtype)
            whole[port.name] = column, 0
        blocks = [self._run_block(whole, begin, count) for begin in range(0, count, self._wiring.block or count)]
        joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        for memory in self._wiring.memory:
            after[memory.into.name] = joined.pop(memory.out.name).reshape(count, -1).astype(np.float32)
        return joined, after

    def _run_block(self, whole: Mapping[str, tuple[Array, int]], begin: int, count: int) -> dict[str, Array]:
        """The model on as many rows as it takes at once, the last row repeated where there are fewer."""
        rows = min(self._wiring.block or count, count - begin)
        size = self._wiring.block or rows
        places = np.minimum(np.arange(begin, begin + size), begin + rows - 1)
        feeds = {name: np.ascontiguousarray(np.take(array, places, axis)) for name, (array, axis) in whole.items()}
        arrays = onnx_session.run_within(self._run, feeds, self._name, self._limit)
        said = dict(zip(self._outputs, arrays, strict=True))
        kept = {m.out.name: self._rows(said[m.out.name], m, size)[:rows] for m in self._wiring.memory}
        return kept | {port.name: self._batched(said[port.name], port, size)[:rows] for port in self._wiring.answers}

    def _rows(self, array: Array, memory: Memory, size: int) -> Array:
        """A memory [B, ...], checked against what was fed."""
        wanted = (*memory.rest[: memory.axis], size, *memory.rest[memory.axis :])
        if array.shape != wanted or not np.isfinite(array).all():
            raise InputError(
                f"{printable(self._name)}: its memory {memory.out} came back as {array.shape} or not finite, needed {wanted}. Export it again."
            )
        return np.moveaxis(array, memory.axis, 0)

    def _batched(self, array: Any, port: Port, size: int) -> Array:
        """An answer [B, ...]; what has no row per observation, as a shared log std, is repeated."""
        if not isinstance(array, np.ndarray):
            raise InputError(f"{printable(self._name)}: {port} is no array. Export it with numbers.")
        if (
            array.ndim > 1 and array.shape[0] == 1 and array.shape[1] == size
        ):  # sequences of one step lie before the batch
            array = array[0]
        if array.ndim == 0 or array.shape[0] != size:
            array = np.broadcast_to(
                array, (size, *(array.shape[1:] if array.ndim and array.shape[0] == 1 else array.shape))
            )
        return array
