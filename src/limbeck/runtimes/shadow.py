"""One artefact plays, others watch: do they take the same actions throughout?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions
from limbeck.contracts import Array, Head, Observation, Policy, PolicyOutput, Spec, State

TOLERANCE = 1e-5  # of a continuous action, relative to max(1, |action|): float rounding of another backend


class Shadowed:
    """Plays like `main` and counts, for every shadow, the rows in which its executed action differs.

    Rows that only pad a batch count too: a difference there costs a proof of its own, never a wrong verdict.
    """

    def __init__(self, main: Policy, shadows: Mapping[str, Policy]) -> None:
        self._main, self._shadows = main, dict(shadows)
        self.different = dict.fromkeys(shadows, 0)

    @property
    def spec(self) -> Spec:
        return self._main.spec

    @property
    def head(self) -> Head:
        return self._main.head

    def agreed(self) -> str:
        """What to say of a shadow that never differed, in a note."""
        exact = "" if self.head.discrete else f" to {TOLERANCE:g}"
        return f"shares the verdict: the same action{exact} throughout the proof"

    def initial_state(self, batch: int) -> State:
        state = {f"main/{k}": v for k, v in self._main.initial_state(batch).items()}
        for name, shadow in self._shadows.items():
            state |= {f"{name}/{k}": v for k, v in shadow.initial_state(batch).items()}
        return state

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        output = self._main(obs, _part(state, "main"), first)
        action, after = executed(output, self.head), {f"main/{k}": v for k, v in output.state.items()}
        for name, shadow in self._shadows.items():
            other = shadow(obs, _part(state, name), first)
            after |= {f"{name}/{k}": v for k, v in other.state.items()}
            self.different[name] += int(differs(action, executed(other, shadow.head)).sum())
        return PolicyOutput(output.params, after, output.value, action)


def executed(output: PolicyOutput, head: Head) -> Array:
    """The executed action an output stands for."""
    return output.action if output.action is not None else distributions.act(head, output.params)


def differs(a: Array, b: Array) -> NDArray[np.bool_]:
    """[B] rows whose actions are not the same: exactly for discrete actions, beyond TOLERANCE for continuous ones."""
    batch = len(a)
    if np.issubdtype(a.dtype, np.floating):
        bad = np.abs(a - b) > TOLERANCE * np.maximum(1.0, np.abs(a))
    else:
        bad = a != b
    return np.asarray(bad.reshape(batch, -1).any(axis=1))


def _part(state: State, name: str) -> State:
    return {k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(f"{name}/")}
