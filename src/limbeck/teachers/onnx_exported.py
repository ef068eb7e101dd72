"""A model with Limbeck's own description in its metadata: anybody can write that, so the model is tried like any other.

Its ports must be those of our exports; it has a trial with a time limit; every answer is checked for shape, NaN and
infinity; what it draws at random, or from other rows, is refused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, tasks
from limbeck.contracts import Array, Head, Observation, PolicyOutput, Spec, State, View
from limbeck.errors import InputError, printable
from limbeck.runtimes import onnx_session
from limbeck.teachers import modules
from limbeck.teachers.onnx_playing import TRIAL_SECONDS

MAX_WIDTH = 2**24  # numbers of one memory of one row
_SAMPLE = 4  # rows of the trial batch
_FLOATS = ("tensor(float)", "tensor(double)")


class ExportedPolicy:
    """An export of ours, played by `onnx_session.OnnxPolicy` on a session that is checked at every step."""

    def __init__(self, run: Any, spec: Spec, head: Head, view: View, name: str) -> None:
        self.spec, self.head, self._name = spec, head, printable(name)
        self._run = _Checked(run, head, name)
        self._check_ports()
        self._inner = onnx_session.OnnxPolicy(self._run, spec, head, view)
        self._try()

    def initial_state(self, batch: int) -> State:
        return self._inner.initial_state(batch)

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        return self._inner(obs, state, first)

    def _check_ports(self) -> None:
        """Inputs obs, first and memories [B, N]; outputs params, action [B, ...] and a successor of each memory."""
        inputs = {port.name: port for port in self._run.get_inputs()}
        outputs = {port.name for port in self._run.get_outputs()}
        memories = [name for name in inputs if name.startswith("state_")]
        wrong = [name for name in inputs if name not in ("obs", "first", *memories)]
        for name in ("obs", *memories):
            shape = inputs[name].shape if name in inputs else []
            fits = len(shape) == 2 and type(shape[1]) is int and 0 < shape[1] <= MAX_WIDTH
            if not fits or inputs[name].type not in _FLOATS:
                wrong.append(name)
        wrong += [name for name in ("params", "action", *(f"{m}_next" for m in memories)) if name not in outputs]
        if wrong:
            raise InputError(
                f"{self._name} describes itself as an export of Limbeck, which has no such {printable(wrong[0], 60)!r}. Export it again."
            )

    def _try(self) -> None:
        """Play four made-up observations within TRIAL_SECONDS a run. Raises InputError for what no export of ours does."""
        self._run.seconds = TRIAL_SECONDS
        obs, fresh = modules.trial_batch(self.spec), np.ones(_SAMPLE, bool)
        try:
            once = self(obs, self.initial_state(_SAMPLE), fresh)
            again = self(obs, self.initial_state(_SAMPLE), fresh)
            alone = self(tasks.take_rows(obs, slice(0, 1)), self.initial_state(1), fresh[:1])
        finally:
            self._run.seconds = None
        meant = distributions.act(self.head, once.params)
        if once.action is None or not np.allclose(once.action, meant, rtol=1e-3, atol=1e-4):
            raise InputError(f"{self._name} acts otherwise than its params say. Export it again.")
        same = np.allclose(once.params, again.params, rtol=1e-4, atol=1e-5) and np.allclose(
            once.params[:1], alone.params, rtol=1e-3, atol=1e-4
        )
        if not same:
            raise InputError(
                f"{self._name} gave two answers to the same observation: it draws at random or mixes the rows of a batch. Export it again."
            )


class _Checked:
    """A session whose runs end after `seconds`, and whose answers have the shapes that were asked for and are finite."""

    def __init__(self, run: Any, head: Head, name: str) -> None:
        self._session, self._name, self._head = run, printable(name), head
        self._outputs = [port.name for port in run.get_outputs()]
        self.seconds: float | None = None

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        return self._session.get_outputs()

    def run(self, _: None, feeds: dict[str, Array]) -> list[Array]:
        answers = onnx_session.run_within(self._session, feeds, self._name, self.seconds)
        count = len(feeds["obs"])
        wanted: dict[str, tuple[int, ...]] = {f"{name}_next": array.shape for name, array in feeds.items()}
        wanted |= {"params": (count, self._head.width), "action": (count, math.prod(self._head.shape))}
        for name, array in zip(self._outputs, answers, strict=True):
            if name in wanted:
                self._check(name, array, wanted[name])
        return answers

    def _check(self, name: str, array: Any, wanted: tuple[int, ...]) -> None:
        whole = isinstance(array, np.ndarray) and (array.dtype == np.float32 or name == "action")
        if not whole or array.dtype.kind not in "fiub" or array.shape != wanted:
            given = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(
                f"{self._name} answered {printable(name, 60)!r} as {given}, needed float32{list(wanted)}. Export it again."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{self._name} answered NaN or infinite numbers. Export a sound checkpoint.")
